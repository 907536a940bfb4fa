"""Files above eager_size: opening costs nothing, reading what it needs; foreign ones stream."""

import errno
import os
import random
import signal
import struct
import subprocess
import sys

import pytest

from harness import (
    KIB,
    MIB,
    errno_of,
    pread_all,
    read_file,
    run,
    text,
    wait_for,
    write_file,
    zstd_make,
)

GIB = 1024 * MIB
SEEK_MAGIC = 0x184D2A5E


def seekable(target, pieces, scratch):
    """An object of these logical pieces, one frame each, equal ones encoded once."""
    encoded = {}
    entries = []
    with open(target, "wb") as out:
        for piece in pieces:
            if piece not in encoded:
                zstd_make(piece, scratch)
                encoded[piece] = read_file(scratch)
                os.unlink(scratch)
            out.write(encoded[piece])
            entries.append((len(encoded[piece]), len(piece)))
        out.write(struct.pack("<II", SEEK_MAGIC, 8 * len(entries) + 9))
        for entry in entries:
            out.write(struct.pack("<II", *entry))
        out.write(struct.pack("<IBI", len(entries), 0, 0x8F92EAB1))


def test_budget_of_a_huge_file(box):
    """First byte, last byte and 4 KiB anywhere of 4 GiB: a few frames; attributes: none."""
    c = box.cellar().start()
    kinds = [text(MIB, seed) for seed in range(7)]
    which = [random.Random(5).randrange(7) for _ in range(4096)]
    seekable(c.store_path("huge.zst"), [kinds[k] for k in which], os.path.join(c.store, "x"))
    decoded = c.counter("frames_decoded")
    assert os.stat(c.path("huge")).st_size == 4 * GIB
    run("ls", "-l", c.mnt)
    fd = os.open(c.path("huge"), os.O_RDONLY)
    assert c.counter("frames_decoded") == decoded, "neither stat nor open decodes"
    assert os.pread(fd, 1, 0) == kinds[which[0]][:1]
    assert os.pread(fd, 10, 4 * GIB - 1) == kinds[which[-1]][-1:]
    at = random.Random(6).randrange(MIB) * 4 * KIB
    inside = at % MIB
    assert os.pread(fd, 4 * KIB, at) == kinds[which[at // MIB]][inside : inside + 4 * KIB]
    assert c.counter("frames_decoded") - decoded <= 10
    os.close(fd)


def read_whole(path, piece):
    data = []
    with open(path, "rb", buffering=0) as f:
        while True:
            got = f.read(piece)
            if not got:
                return b"".join(data)
            data.append(got)


def drop_cache(path):
    """Of the kernel: what the daemon has does not go with it."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


READER = """
import hashlib, sys
h = hashlib.sha256()
with open(sys.argv[1], "rb", buffering=0) as f:
    while True:
        got = f.read(int(sys.argv[2]))
        if not got:
            break
        h.update(got)
print(h.hexdigest())
"""


def wait_for_decodes(c, before, frames, size):
    """All of `frames` are decoded once, and once more what memory could not keep so long."""

    def once():
        again = c.counter("bytes_passed") // size
        return c.counter("frames_decoded") - before == frames + again

    wait_for(once, 60, f"{frames} frames decoded, each once or after it was dropped")


@pytest.mark.stress
def test_readers_share_one_decode(box):
    """Three processes, each at its own pace: every frame is decoded once, some ahead."""
    c = box.cellar(writeback_delay="1h", eager_size="1M", frame_size="256K").start()
    data = text(40 * MIB, 1)
    c.write("big", data)
    c.make_cold("big")
    drop_cache(c.path("big"))
    decoded = c.counter("frames_decoded")
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, c.path("big"), str(piece)], stdout=subprocess.PIPE
        )
        for piece in (16 * KIB, 100 * KIB, MIB)
    ]
    sums = {r.communicate(timeout=120)[0] for r in readers}
    assert len(sums) == 1
    assert read_whole(c.path("big"), MIB) == data
    wait_for_decodes(c, decoded, 160, 256 * KIB)
    assert c.counter("frames_ahead") > 0


def test_read_in_earnest_is_completed(box):
    """Half of it is read and the file closed: the rest follows, and later opens find it."""
    c = box.cellar(writeback_delay="1h", eager_size="1M", frame_size="256K").start()
    data = text(40 * MIB, 2)
    c.write("big", data)
    c.make_cold("big")
    drop_cache(c.path("big"))
    decoded = c.counter("frames_decoded")
    with open(c.path("big"), "rb", buffering=0) as f:
        for at in range(20):
            assert f.read(MIB) == data[at * MIB : (at + 1) * MIB]
    wait_for_decodes(c, decoded, 160, 256 * KIB)
    assert read_whole(c.path("big"), MIB) == data
    wait_for_decodes(c, decoded, 160, 256 * KIB)


@pytest.mark.stress
def test_larger_than_the_pool(box):
    """It passes through memory: the pool stays within its size, and nothing else is pushed out."""
    c = box.cellar(
        writeback_delay="1h", eager_size="1M", frame_size="256K", pool_size="16M"
    ).start()
    data = text(40 * MIB, 3)
    c.write("big", data)
    c.make_cold("big")
    c.write("small", b"stays")
    c.flush()
    drop_cache(c.path("big"))
    assert read_whole(c.path("big"), 128 * KIB) == data
    wait_for(lambda: c.counter("bytes_passed") >= 30 * MIB, 20, "what passed to be dropped")
    assert c.status()["pool"]["over_bytes"] == 0
    assert c.is_warm("small")
    drop_cache(c.path("big"))
    fd = os.open(c.path("big"), os.O_RDONLY)
    for seed in range(200):
        at = random.Random(seed).randrange(len(data))
        assert pread_all(fd, min(9000, len(data) - at), at) == data[at : at + 9000]
    os.close(fd)
    with open(c.path("big"), "r+b") as f:
        f.seek(1000)
        f.write(b"changed")
    changed = data[:1000] + b"changed" + data[1007:]
    assert c.read("big") == changed
    c.flush()
    assert c.stored("big") == changed


def test_foreign_object_streams(box):
    """One frame of 100 MiB: the first bytes cost about a piece, the whole is decoded once."""
    c = box.cellar(pool_size="1G").start()
    data = text(100 * MIB, 4)
    zstd_make(data, c.store_path("foreign.zst"), "-1")
    decoded = c.counter("bytes_decoded")
    assert os.stat(c.path("foreign")).st_size == len(data)
    assert c.counter("bytes_decoded") == decoded
    fd = os.open(c.path("foreign"), os.O_RDONLY)
    assert os.pread(fd, 4 * KIB, 0) == data[: 4 * KIB]
    assert c.counter("bytes_decoded") - decoded <= 4 * MIB
    assert os.pread(fd, 4 * KIB, 50 * MIB) == data[50 * MIB : 50 * MIB + 4 * KIB]
    assert read_whole(c.path("foreign"), MIB) == data
    assert c.counter("bytes_decoded") - decoded == len(data)
    os.close(fd)
    # It becomes seekable with the next flush.
    with open(c.path("foreign"), "ab") as f:
        f.write(b"more")
    c.flush()
    assert c.stored("foreign") == data + b"more"
    c.make_cold("foreign")
    drop_cache(c.path("foreign"))
    before = c.counter("bytes_decoded")
    fd = os.open(c.path("foreign"), os.O_RDONLY)
    assert os.pread(fd, 10, len(data)) == b"more"
    os.close(fd)
    assert c.counter("bytes_decoded") - before <= 4 * MIB


def endless(blocks):
    """One frame without content size: RLE blocks of 128 KiB."""
    header = struct.pack("<IBB", 0xFD2FB528, 0, 0x38)
    block = struct.pack("<I", 0 | 1 << 1 | (128 * KIB) << 3)[:3] + b"a"
    last = struct.pack("<I", 1 | 1 << 1 | (128 * KIB) << 3)[:3] + b"a"
    return header + block * (blocks - 1) + last


def test_killed_while_a_size_is_learnt(box):
    """A terabyte has to be decoded for its size: whoever waits for that can be killed."""
    c = box.cellar().start()
    write_file(c.store_path("endless.zst"), endless(8 * MIB))
    waiting = subprocess.Popen(["stat", c.path("endless")], stdout=subprocess.DEVNULL)
    box.add_process(waiting)
    wait_for(lambda: c.counter("bytes_decoded") > 16 * MIB, 60, "the decoding to begin")
    waiting.send_signal(signal.SIGKILL)
    waiting.wait(20)
    seen = []

    def at_rest():
        seen.append(c.counter("bytes_decoded"))
        return len(seen) > 1 and seen[-1] == seen[-2]

    wait_for(at_rest, 20, "the decoding to end")
    write_file(c.path("other"), b"serves on")
    assert c.read("other") == b"serves on"
    assert errno_of(os.stat, c.path("nothing")) == errno.ENOENT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may set a mount's read-ahead")
def test_read_ahead_of_the_kernel(box):
    """Requests of 992 KiB, two at a time, where the kernel lets us say so."""
    c = box.cellar().start()
    device = os.stat(c.mnt).st_dev
    setting = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    if not os.access(setting, os.W_OK):
        pytest.skip("/sys is read-only here")
    assert int(read_file(setting)) == 1984
