"""Warm files that the kernel serves by itself: which ones, and what the daemon still has to
know of writes that it never sees (pool/content.c, pool/serve.c: V1, V2)."""

import ctypes
import errno
import fcntl
import mmap
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import threading
import time

import pytest

from disk import Disk
from harness import (
    CELLARCTL,
    CELLARD,
    KIB,
    MIB,
    ROOT,
    SEED,
    SLOW,
    SOAK,
    child,
    noise,
    read_file,
    reap,
    run,
    spawn,
    text,
    wait_for,
    write_file,
    zstd_cat,
)


class Mapping:
    """mmap(2) itself: Python's mmap keeps a duplicate of the descriptor."""

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def __init__(self, fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE):
        self.size = size
        self.at = self.libc.mmap(None, size, prot, mmap.MAP_SHARED, fd, 0)
        if self.at == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")

    def __setitem__(self, off, byte):
        ctypes.c_ubyte.from_address(self.at + off).value = byte

    def __getitem__(self, part):
        return ctypes.string_at(self.at + (part.start or 0), part.stop - (part.start or 0))

    def close(self):
        self.libc.munmap(self.at, self.size)


def open_fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def direct(box):
    """A running cellar whose warm files the kernel serves; nothing is written back by itself."""
    return start_direct(box, writeback_delay="1h")


def start_direct(box, name="c", env=None, **opts):
    opts["passthrough"] = "auto"
    c = box.cellar(name, **opts).start(env)
    state = c.status()["passthrough"]
    if not state["active"]:
        c.stop()
        pytest.skip("passthrough is not to be had here: " + state["reason"])
    return c


def files(c):
    """(served by the kernel, served by the daemon)"""
    state = c.status()["passthrough"]
    return state["direct_files"], state["cached_files"]


def wait_closed(c):
    wait_for(lambda: files(c) == (0, 0), what="the last RELEASE")


def object_says(c, rel):
    """The object's content, b"" where there is none yet."""
    return c.stored(rel) if os.path.getsize(c.object_path(rel)) else b""


def is_dirty(c):
    return c.status()["scratch"]["dirty"]


def cold(c, rel, data):
    c.write(rel, data)
    c.make_cold(rel)


# ---- whether ----


def test_the_option(box):
    c = box.cellar(passthrough="off").start()
    state = c.status()["passthrough"]
    assert not state["active"] and "passthrough=off" in state["reason"]
    assert "passthrough: off (" in c.ctl("status", c.mnt).out
    assert c.log_text().count("passthrough is off") == 1, "logged once"
    c.write("a", b"text")
    with open(c.path("a"), "rb") as f:
        assert files(c) == (0, 1) and f.read() == b"text"
    c.stop()
    c.opts["passthrough"] = "auto"
    c.start()
    if c.status()["passthrough"]["active"]:
        assert "passthrough: on" in c.ctl("status", c.mnt).out
        assert c.log_text().count("passthrough is on") == 1
    else:
        assert c.status()["passthrough"]["reason"]
    assert c.read("a") == b"text"


@pytest.mark.skipif(ROOT, reason="the refusal is an ordinary user's")
def test_a_user_cannot_insist(box):
    c = box.cellar(passthrough="on")
    done = run(CELLARD, "-f", "-o", "passthrough=on", c.store, c.mnt, check=False)
    assert done.returncode == 1 and "CAP_SYS_ADMIN" in done.out + done.err
    c.opts["passthrough"] = "auto"
    c.start()
    assert "CAP_SYS_ADMIN" in c.status()["passthrough"]["reason"]


@pytest.mark.root
def test_without_the_capability(box):
    """Root in a box: silently cached, and refused where it was insisted on."""
    c = box.cellar(passthrough="auto")
    bounded = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = run(*bounded, CELLARD, "-f", "-o", "passthrough=on", c.store, c.mnt, check=False)
    assert done.returncode == 1 and "CAP_SYS_ADMIN" in done.out + done.err


@pytest.mark.root
def test_a_pool_on_an_overlay(box):
    """The kernel refuses a stacked filesystem: cached mode, and the reason is told."""
    lower, upper, work = box.dir("lower"), box.dir("upper"), box.dir("work")
    pool = box.dir("pool")
    run("mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work},xattr",
        "overlay", pool, check=False)
    if not os.path.ismount(pool):
        run("mount", "-t", "overlay", "-o",
            f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", pool)
    box.cleanups.append(lambda: run("umount", "-l", pool, check=False))
    c = box.cellar(pool=pool, passthrough="auto").start()
    state = c.status()["passthrough"]
    assert not state["active"] and state["reason"]
    data = text(3 * MIB, 5)
    cold(c, "a", data)
    assert c.read("a") == data
    c.stop()
    done = run(CELLARD, "-f", "-o", f"pool={pool},passthrough=on", c.store, c.mnt, check=False)
    assert done.returncode == 1 and "passthrough=on is not possible" in done.out + done.err
    assert not os.path.ismount(c.mnt)


# ---- which files, and one mode per file ----


def test_which_files_are_direct(direct):
    c = direct
    big = text(20 * MIB, 1)
    c.write("small", b"x" * 1000)
    c.write("big", big)
    c.make_cold("small", "big")
    wait_closed(c)
    with open(c.path("small"), "rb"):
        assert files(c) == (1, 0), "hydrated whole by its open"
        with open(c.path("small"), "r+b"):
            assert files(c) == (1, 0)
    wait_closed(c)
    with open(c.path("big"), "rb") as f:
        assert files(c) == (0, 1), "only partly hydrated"
        assert f.read(100) == big[:100]
        with open(c.path("big"), "rb") as g:
            assert files(c) == (0, 1)
            assert g.read() == big, "and whole from here on"
        assert files(c) == (0, 1), "one mode until the last close"
    wait_closed(c)

    def opens_direct():
        with open(c.path("big"), "rb") as f:
            assert f.read() == big
            return files(c) == (1, 0)

    wait_for(opens_direct, what="the last of what was read to be kept")
    wait_closed(c)
    with open(c.path("big"), "ab") as f:
        assert files(c) == (0, 1), "the daemon wants to see what is appended to a large file"
        f.write(b"more")
    wait_closed(c)
    with open(c.path("big"), "rb") as f:
        with open(c.path("big"), "ab") as g:
            assert files(c) == (1, 0), "but it is in passthrough now"
            g.write(b" and more")
        assert f.read() == big + b"more and more"
    with open(c.path("new"), "wb") as f:
        f.write(b"new")
        f.flush()
        wait_for(lambda: files(c) == (1, 0), what="the others to be closed")
    assert c.read("new") == b"new"


KINDS = (
    os.O_RDONLY,
    os.O_RDWR,
    os.O_WRONLY,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_SYNC,
    os.O_WRONLY | os.O_DSYNC,
    os.O_RDWR | os.O_APPEND,
    os.O_RDONLY | os.O_SYNC,
)


def mixing(path, seed, rounds):
    """Opens of every kind in any order, with mappings that outlive them. EIO is the kernel's
    answer to a mode that does not fit."""
    rng = random.Random(seed)
    held, maps = [], []
    for _ in range(rounds):
        if held and rng.random() < 0.45:
            os.close(held.pop(rng.randrange(len(held))))
        elif maps and rng.random() < 0.2:
            maps.pop(rng.randrange(len(maps))).close()
        else:
            kind = rng.choice(KINDS)
            fd = os.open(path, kind)
            if kind & os.O_ACCMODE == os.O_RDWR:
                os.pwrite(fd, b"w", rng.randrange(4 * KIB))
                if rng.random() < 0.5:
                    m = Mapping(fd, 4 * KIB)
                    m[rng.randrange(4 * KIB)] = 0x77
                    maps.append(m)
            elif kind & os.O_ACCMODE == os.O_RDONLY:
                assert len(os.pread(fd, 4 * KIB, 0)) == 4 * KIB
            held.append(fd)
            if len(held) > 12:
                os.close(held.pop(0))
    for fd in held:
        os.close(fd)


@pytest.mark.stress
@pytest.mark.limit(180)
@pytest.mark.parametrize("mode", ["auto", "off"])
def test_no_order_of_opens_fails(box, mode):
    """(V1) Also across eviction, with flushes at once."""
    c = box.cellar(passthrough=mode, writeback_delay="10ms", eager_size="1M").start()
    big = text(3 * MIB, 2)
    c.write("big", big)
    c.write("small", b"s" * 8 * KIB)
    c.flush()
    pids = [
        spawn(mixing, c.path(name), SEED + i, 400)
        for i, name in enumerate(("big", "small", "big", "small"))
    ]
    end = time.monotonic() + 20 * SLOW
    while time.monotonic() < end and not all(
        os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in pids
    ):
        c.evict("big", "small", check=False)
    for pid in pids:
        assert reap(pid, 60 * SLOW) == 0
    c.flush()
    wait_for(lambda: is_dirty(c) == 0, what="everything to be clean")
    for name in ("big", "small"):
        assert c.stored(name) == c.read(name)


@pytest.mark.parametrize("size", [100 * KIB, 6 * MIB])
def test_racing_opens_of_a_cold_file(box, size):
    c = start_direct(box, writeback_delay="1h", eager_size="1M")
    data = noise(size, 3)
    for attempt in range(5):
        name = f"f{attempt}"
        cold(c, name, data)
        gate = threading.Barrier(8)
        wrong = []

        def one(i, name=name, gate=gate, wrong=wrong):
            gate.wait()
            try:
                fd = os.open(c.path(name), os.O_RDWR if i % 3 == 0 else os.O_RDONLY)
                if os.pread(fd, len(data) + 1, 0) != data:
                    wrong.append("content")
                os.close(fd)
            except OSError as e:
                wrong.append(str(e))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong


def hold_open(paths, ready, go):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(paths) + 100,) * 2)
    fds = [os.open(p, os.O_RDWR) for p in paths]
    os.write(ready, b".")
    os.read(go, 1)
    for fd in fds:
        os.close(fd)


@pytest.mark.root
@pytest.mark.limit(400)
def test_many_open_files_cost_no_descriptors(box):
    """(V2) The kernel holds the scratch files; neither ids nor descriptors stay behind."""
    c = start_direct(box, writeback_delay="1h", max_dirty_age="1h")  # a flusher has some open
    count = 30000 if SOAK else 4000
    os.mkdir(c.path("d"))
    paths = [c.path(f"d/{i}") for i in range(count)]
    for p in paths:
        os.close(os.open(p, os.O_WRONLY | os.O_CREAT))
    ready_r, ready_w = os.pipe()
    go_r, go_w = os.pipe()
    halves = paths[: count // 2], paths[count // 2 :]
    pids = [spawn(hold_open, half, ready_w, go_r) for half in halves]
    for _ in pids:
        assert os.read(ready_r, 1) == b"."
    assert files(c) == (count, 0)
    assert open_fds(c.pid) < 300
    os.write(go_w, b"..")
    for pid in pids:
        assert reap(pid) == 0
    wait_closed(c)
    for fd in (ready_r, ready_w, go_r, go_w):
        os.close(fd)


# ---- writes that nobody tells the daemon of ----


def test_mapping_outlives_its_descriptor(direct):
    """A store after the last close: the file stays dirty and warm, and is flushed in the end."""
    c = direct
    cold(c, "a", b"a" * 8 * KIB)
    fd = os.open(c.path("a"), os.O_RDWR)
    m = Mapping(fd, 8 * KIB)
    m[0] = ord("b")
    os.close(fd)
    wait_closed(c)
    c.flush(c.path("a"))
    assert c.stored("a") == b"b" + b"a" * (8 * KIB - 1)
    m[1] = ord("c")
    c.flush(c.path("a"))
    assert c.stored("a") == b"bc" + b"a" * (8 * KIB - 2)
    assert is_dirty(c) == 1, "a mapping may write at any time"
    assert c.evict("a", check=False).returncode != 0
    m[4096] = ord("d")
    m.close()
    want = b"bc" + b"a" * 4094 + b"d" + b"a" * 4095
    wait_for(lambda: c.flush() and is_dirty(c) == 0, what="the file to be clean")
    assert c.stored("a") == want
    c.make_cold("a")
    assert c.read("a") == want


def test_mapping_is_flushed_at_its_age(box):
    c = start_direct(box, writeback_delay="1h", max_dirty_age="1s")
    c.write("a", b"a" * 4 * KIB)
    c.flush()
    fd = os.open(c.path("a"), os.O_RDWR)
    m = Mapping(fd, 4 * KIB)
    os.close(fd)
    for byte in b"xyz":
        m[7] = byte
        wait_for(lambda b=byte: c.stored("a")[7] == b, what="the store to reach the object")
    m.close()
    wait_for(lambda: c.flush() and is_dirty(c) == 0, what="the file to be clean")


def test_a_mapped_reader_keeps_the_scratch(direct):
    """Evicted, the next reader would have another copy than the mapping (promise 2)."""
    c = direct
    cold(c, "a", b"a" * 4 * KIB)
    fd = os.open(c.path("a"), os.O_RDONLY)
    m = Mapping(fd, 4 * KIB, mmap.PROT_READ)
    os.close(fd)
    wait_closed(c)
    assert c.evict("a", check=False).returncode != 0
    with open(c.path("a"), "r+b") as f:
        f.write(b"new")
    assert m[:4] == b"newa"
    m.close()
    c.make_cold("a")


def test_same_size_write_and_old_time(direct):
    """tar and rsync -t: the mtime that was, the size that was, other bytes."""
    c = direct
    c.write("a", b"old content")
    c.flush()
    before = os.stat(c.path("a"))
    fd = os.open(c.path("a"), os.O_WRONLY)
    os.pwrite(fd, b"NEW", 0)
    os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.close(fd)
    wait_for(lambda: c.flush() and is_dirty(c) == 0, what="the file to be clean")
    assert c.stored("a") == b"NEW content"
    assert os.stat(c.path("a")).st_mtime_ns == before.st_mtime_ns


def test_opened_for_writing_and_not_written(direct):
    c = direct
    c.write("a", text(300 * KIB, 6))
    c.flush()
    wait_for(lambda: is_dirty(c) == 0, what="the file to be clean")
    before = os.stat(c.object_path("a"))
    with open(c.path("a"), "r+b"):
        assert is_dirty(c) == 1
    wait_for(lambda: is_dirty(c) == 0, what="it to be clean without work")
    assert os.stat(c.object_path("a")).st_ino == before.st_ino


def test_held_open_for_long(box):
    """Flushed every max_dirty_age, and goes on in passthrough."""
    c = start_direct(box, writeback_delay="1h", max_dirty_age="1s")
    fd = os.open(c.path("log"), os.O_WRONLY | os.O_CREAT)
    want = b""
    for i in range(3):
        line = b"line %d\n" % i
        os.write(fd, line)
        want += line
        wait_for(lambda w=want: object_says(c, "log") == w, what="the object to follow")
        assert files(c) == (1, 0)
    flushes = c.counter("flushes")
    os.close(fd)
    wait_for(lambda: is_dirty(c) == 0 or c.flush() and is_dirty(c) == 0, what="a clean end")
    assert c.counter("flushes") <= flushes + 2


def test_flushed_while_open_is_clean_soon_after_its_close(direct):
    """(N3) What a flush read of an open file is not believed; it is read again once the file is
    closed, at once: who waited for the flush does not wait for writeback_delay."""
    c = direct
    fd = os.open(c.path("a"), os.O_RDWR | os.O_CREAT)
    os.write(fd, b"content")
    c.flush()
    assert c.stored("a") == b"content" and is_dirty(c) == 1
    os.close(fd)
    wait_for(lambda: is_dirty(c) == 0, what="the file to be clean")
    assert c.stored("a") == b"content"


def test_closed_while_flushed_is_clean_soon(box):
    """The same where the last RELEASE comes between the reading and the end of the flush."""
    flag = os.path.join(box.path, "at-step")
    c = start_direct(box, writeback_delay="1h",
                     env={"CELLAR_TEST_STEP": "flush.synced:1=wait", "CELLAR_TEST_STEP_FILE": flag})
    fd = os.open(c.path("a"), os.O_RDWR | os.O_CREAT)
    os.write(fd, b"content")
    flush = subprocess.Popen([CELLARCTL, "flush", c.mnt], stdout=subprocess.DEVNULL)
    wait_for(lambda: os.path.exists(flag), what="the flush to have read the file")
    os.close(fd)
    wait_closed(c)
    os.unlink(flag)
    assert flush.wait(60) == 0
    wait_for(lambda: is_dirty(c) == 0, what="the file to be clean")
    assert c.stored("a") == b"content"


def overwrite(path, stop_at, seed):
    rng = random.Random(seed)
    fd = os.open(path, os.O_RDWR)
    end = time.monotonic() + stop_at
    while time.monotonic() < end:
        os.pwrite(fd, bytes([rng.randrange(256)]) * 512, rng.randrange(200) * 512)
    os.close(fd)


@pytest.mark.stress
def test_writes_race_a_flush(box):
    """(F2), (F4) A flush reads while others write: nothing that was written is taken for
    flushed, whatever it caught."""
    c = start_direct(box, writeback_delay="10ms", max_dirty_age="1s")
    c.write("a", b"\0" * 200 * 512)
    pids = [spawn(overwrite, c.path("a"), 4, SEED + i) for i in range(2)]
    for _ in range(8):
        c.flush()
    for pid in pids:
        assert reap(pid) == 0
    wait_for(lambda: is_dirty(c) == 0, what="the file to be clean")
    assert c.stored("a") == c.read("a")
    c.make_cold("a")


def count_up(path, size, seconds):
    """The first block says n before the last one does."""
    fd = os.open(path, os.O_RDWR)
    end = time.monotonic() + seconds
    n = 0
    while time.monotonic() < end:
        n += 1
        os.pwrite(fd, b"%08d" % n, 0)
        os.pwrite(fd, b"%08d" % n, size - 8)
    os.close(fd)


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("mkfs.xfs"), reason="there is no mkfs.xfs")
def test_a_file_that_is_always_written_is_cloned(box):
    """(F2) Where the pool's filesystem shares blocks, an object of a file under constant writing is
    one version of it."""
    pool = Disk(box, "pool", "xfs", 400 * MIB, ("-m", "reflink=1")).path
    os.chmod(pool, 0o700)
    c = start_direct(box, pool=pool, writeback_delay="1h", max_dirty_age="1h")
    size = 24 * MIB
    c.write("a", noise(size, 11))
    c.flush()
    pid = spawn(count_up, c.path("a"), size, 6 * SLOW)
    wait_for(lambda: os.stat(c.path("a")).st_mtime_ns and c.read("a")[:1] == b"0", what="the writer")
    seen = set()
    for _ in range(4):
        c.flush()
        stored = c.stored("a")
        first, last = int(stored[:8]), int(stored[-8:])
        assert first - last in (0, 1), (first, last)
        seen.add(first)
    assert reap(pid) == 0
    assert len(seen) > 1, "the flushes saw it change"
    assert c.counter("flush_retries") == 0
    wait_for(lambda: c.flush() and is_dirty(c) == 0, what="the file to be clean")
    assert c.stored("a") == c.read("a")


@pytest.mark.stress
def test_writes_just_before_each_close(box):
    """The last write and the stamp lie as close together as they can."""
    c = start_direct(box, writeback_delay="0")
    c.write("a", b"0" * 64)
    for i in range(150):
        want = b"%064d" % i
        fd = os.open(c.path("a"), os.O_WRONLY)
        os.pwrite(fd, want, 0)
        os.close(fd)
        if i % 10 == 0:
            c.flush()
            assert c.stored("a") == want
    wait_for(lambda: is_dirty(c) == 0, what="the file to be clean")
    assert c.stored("a") == b"%064d" % 149


@pytest.mark.root
def test_pool_on_tmpfs(box):
    """Stores through mappings move no time there (N4)."""
    pool = box.dir("pool")
    run("mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", pool)
    box.cleanups.append(lambda: run("umount", "-l", pool, check=False))
    c = start_direct(box, pool=pool, writeback_delay="1h", max_dirty_age="1s")
    c.write("a", b"a" * 4 * KIB)
    c.flush()
    fd = os.open(c.path("a"), os.O_RDWR)
    m = Mapping(fd, 4 * KIB)
    for byte in b"xy":
        m[9] = byte
        wait_for(lambda b=byte: c.stored("a")[9] == b, what="the store to reach the object")
    os.close(fd)
    m[10] = ord("z")
    m.close()
    wait_for(lambda: c.flush() and is_dirty(c) == 0, what="the file to be clean")
    assert c.stored("a")[9:11] == b"yz"


# ---- crashes ----


def write_on(path, ready, go):
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"before", 0)
    os.write(ready, b".")
    os.read(go, 1)
    os.pwrite(fd, b"after.", 100)
    os.close(fd)


@pytest.mark.stress
def test_kill_with_unseen_writes(box):
    """(promise 4) ... and a process that goes on writing after the daemon is gone: its file is the
    same one that the next daemon serves."""
    c = start_direct(box, writeback_delay="1h", max_dirty_age="1s")
    c.write("a", b"-" * 8 * KIB)
    c.write("b", b"-" * 8 * KIB)
    c.flush()
    ready_r, ready_w = os.pipe()
    go_r, go_w = os.pipe()
    pid = spawn(write_on, c.path("b"), ready_w, go_r)
    os.read(ready_r, 1)
    fd = os.open(c.path("a"), os.O_RDWR)
    m = Mapping(fd, 8 * KIB)
    os.pwrite(fd, b"written", 0)
    m[4096] = ord("m")
    c.kill9()
    os.close(fd)
    m[4097] = ord("n")
    c.restart_after_kill()
    assert c.read("a")[:7] == b"written" and c.read("a")[4096:4098] == b"mn"
    assert c.read("b")[:6] == b"before"
    m[4098] = ord("o")
    os.write(go_w, b".")
    assert reap(pid) == 0
    m.close()
    wait_for(lambda: c.flush() and is_dirty(c) == 0, what="both files to be clean")
    for name in "ab":
        assert c.stored(name) == c.read(name)
    assert c.stored("a")[4096:4099] == b"mno"
    assert c.stored("b")[100:106] == b"after."
    for f in (ready_r, ready_w, go_r, go_w):
        os.close(f)


def synced_size(c, rel):
    """sync_seq and sync_size of the record (pool/record.h)."""
    ino = os.stat(c.path(rel)).st_ino
    path = os.path.join(c.pool_dir(), "scratch", "%02x" % (ino & 255), "%016x" % ino)
    raw = os.getxattr(path, "user.cellar.record")
    return int.from_bytes(raw[88:96], "little"), int.from_bytes(raw[96:104], "little")


@pytest.mark.root
def test_background_sync_covers_unseen_writes(box):
    """(promise 5), (Y1) Without an fsync, a reboot later."""
    boots = [f"{i}0000000-0000-4000-8000-00000000000{i}" for i in (1, 2)]
    c = box.cellar(writeback_delay="1h", max_dirty_age="1h", sync_interval="200ms")
    c.start({"CELLAR_BOOT_ID": boots[0]})
    if not c.status()["passthrough"]["active"]:
        pytest.skip("passthrough is not to be had here: " + c.status()["passthrough"]["reason"])
    fd = os.open(c.path("log"), os.O_WRONLY | os.O_CREAT)
    want = b""
    for i in range(3):
        os.write(fd, b"line %d\n" % i)
        want += b"line %d\n" % i
        wait_for(lambda w=want: synced_size(c, "log")[1] == len(w), what="the background sync")
    before = c.counter("pool_syncs")
    os.pwrite(fd, b"LINE", 0)
    wait_for(lambda: c.counter("pool_syncs") > before, what="an overwrite to be synced")
    c.kill9()
    os.close(fd)
    c.start({"CELLAR_BOOT_ID": boots[1]})
    assert c.read("log") == b"LINE" + want[4:]


# ---- attributes ----


@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize("how", [os.O_RDWR, os.O_WRONLY])
def test_size_and_times_are_exact(box, mode, how):
    c = box.cellar(writeback_delay="1h", passthrough=mode).start()
    path = c.path("a")
    fd = os.open(path, how | os.O_CREAT)
    last = os.stat(path)
    for i in range(1, 30):
        if i % 3 == 0:
            child(write_at, path, b"y" * 10, i * 10)
        else:
            os.pwrite(fd, b"x" * 10, i * 10)
        a, b, other = os.stat(path), os.fstat(fd), child(stat_of, path)
        assert a.st_size == b.st_size == other[0] == i * 10 + 10
        assert a.st_mtime_ns == b.st_mtime_ns == other[1]
        assert a.st_mtime_ns > last.st_mtime_ns
        assert a.st_ctime_ns >= a.st_mtime_ns and a.st_ctime_ns > last.st_ctime_ns
        last = a
    os.ftruncate(fd, 3)
    assert os.stat(path).st_size == os.fstat(fd).st_size == 3
    os.close(fd)
    c.flush()
    assert os.stat(path).st_size == 3


def write_at(path, data, off):
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, off)
    os.close(fd)


def stat_of(path):
    st = os.stat(path)
    return [st.st_size, st.st_mtime_ns]


def test_a_store_through_a_mapping_shows_in_mtime(direct):
    c = direct
    c.write("a", b"a" * 4 * KIB)
    c.flush()
    os.stat(c.path("a"))
    fd = os.open(c.path("a"), os.O_RDWR)
    m = Mapping(fd, 4 * KIB)
    before = os.stat(c.path("a"))
    m[0] = 1
    after = os.stat(c.path("a"))
    assert after.st_mtime_ns > before.st_mtime_ns
    os.fsync(fd)
    m[0] = 2
    assert os.stat(c.path("a")).st_mtime_ns > after.st_mtime_ns
    os.close(fd)
    m.close()
    wait_closed(c)
    last = os.stat(c.path("a"))
    c.make_cold("a")
    again = os.stat(c.path("a"))
    assert (again.st_mtime_ns, again.st_size) == (last.st_mtime_ns, last.st_size)


def strip_bits(path):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.root
@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_write_clears_setuid(box, mode):
    c = box.cellar(writeback_delay="1h", passthrough=mode).start()
    c.write("a", b"program")
    os.chmod(c.path("a"), 0o6777)
    assert child(strip_bits, c.path("a"), uid=1234) == 0o777
    assert stat.S_IMODE(os.stat(c.path("a")).st_mode) == 0o777
    c.flush()
    assert stat.S_IMODE(os.stat(c.object_path("a")).st_mode) == 0o777


def write_past_limit(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * KIB, 100 * KIB))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    got = [os.write(fd, b"x" * 64 * KIB), os.write(fd, b"x" * 64 * KIB)]
    try:
        os.write(fd, b"x")
    except OSError as e:
        got.append(e.errno)
    return got


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_limit_of_the_file_size(box, mode):
    c = box.cellar(writeback_delay="1h", passthrough=mode).start()
    got = child(write_past_limit, c.path("a"))
    assert got == [64 * KIB, 36 * KIB, errno.EFBIG]
    assert os.stat(c.path("a")).st_size == 100 * KIB


def append_lines(path, who, count):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for i in range(count):
        os.write(fd, b"%d %d\n" % (who, i))
    os.close(fd)


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_several_appenders(box, mode):
    c = box.cellar(writeback_delay="10ms", passthrough=mode).start()
    c.write("log", b"")
    pids = [spawn(append_lines, c.path("log"), who, 500) for who in range(4)]
    for pid in pids:
        assert reap(pid) == 0
    lines = c.read("log").splitlines()
    for who in range(4):
        assert [ln for ln in lines if ln.startswith(b"%d " % who)] == [
            b"%d %d" % (who, i) for i in range(500)
        ]
    assert len(lines) == 2000


@pytest.mark.parametrize("how", ["O_SYNC", "O_DSYNC", "fsync", "fdatasync"])
def test_durable_writes_beside_a_direct_handle(direct, how):
    """An O_SYNC handle of a direct file goes through the daemon; the others see it at once."""
    c = direct
    c.write("a", b"-" * 1000)
    flags = getattr(os, how) if how.startswith("O_") else 0
    beside = os.open(c.path("a"), os.O_RDWR)
    fd = os.open(c.path("a"), os.O_RDWR | flags)
    for i in range(5):
        os.pwrite(fd, b"%04d" % i, i * 300)
        if not flags:
            getattr(os, how)(fd)
        seq, size = synced_size(c, "a")
        assert seq > 0 and size >= os.fstat(fd).st_size
        assert os.pread(beside, 4, i * 300) == b"%04d" % i
        os.pwrite(beside, b"next", i * 300 + 10)
        assert os.pread(fd, 4, i * 300 + 10) == b"next"
    assert files(c) == (1, 0)
    os.close(fd)
    os.close(beside)


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_other_calls_on_an_open_file(box, mode):
    c = box.cellar(writeback_delay="1h", passthrough=mode).start()
    path = c.path("a")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * 64 * KIB, 1 * MIB)
    # Through the daemon no hole is told of what a mapping may have filled.
    assert os.lseek(fd, 0, os.SEEK_DATA) == (1 * MIB if files(c) == (1, 0) else 0)
    assert os.lseek(fd, 1 * MIB, os.SEEK_HOLE) == 1 * MIB + 64 * KIB
    os.posix_fallocate(fd, 0, 2 * MIB)
    assert os.stat(path).st_size == os.fstat(fd).st_size == 2 * MIB
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size_and_punch = 0x01 | 0x02
    assert libc.fallocate(fd, keep_size_and_punch, ctypes.c_long(MIB), ctypes.c_long(4096)) == 0
    assert os.pread(fd, 4097, 1 * MIB) == b"\0" * 4096 + b"x"
    other = os.open(c.path("b"), os.O_RDWR | os.O_CREAT)
    left = 64 * KIB
    while left:
        got = os.copy_file_range(fd, other, left, 1 * MIB + 64 * KIB - left, 64 * KIB - left)
        assert got > 0
        left -= got
    assert os.fstat(other).st_size == 64 * KIB
    assert os.pread(other, 64 * KIB, 0) == b"\0" * 4096 + b"x" * 60 * KIB
    fcntl.lockf(fd, fcntl.LOCK_EX)
    os.close(fd)
    os.close(other)
    c.flush()
    assert c.stored("b") == b"\0" * 4096 + b"x" * 60 * KIB


# ---- the pool's size ----


def test_pool_counts_unseen_bytes(box):
    """Sampled from the scratch files; the others go early."""
    c = start_direct(box, writeback_delay="1h", pool_size="8M")
    c.write("other", noise(3 * MIB, 8))
    fd = os.open(c.path("big"), os.O_WRONLY | os.O_CREAT)
    os.write(fd, noise(12 * MIB, 9))
    wait_for(lambda: c.status()["pool"]["open_bytes"] >= 12 * MIB, what="the sample")
    wait_for(lambda: not c.is_warm("other"), what="the other file to be flushed and evicted")
    assert c.status()["pool"]["over_bytes"] >= 4 * MIB
    os.close(fd)
    wait_for(lambda: c.status()["pool"]["over_bytes"] == 0, 30, "the pool to be small again")


def fill(path):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    block = b"x" * 64 * KIB
    total = 0
    while True:
        try:
            total += os.write(fd, block)
        except OSError as e:
            os.close(fd)
            return [total, e.errno]


@pytest.mark.root
@pytest.mark.limit(120)
def test_full_pool_disk(box):
    """ENOSPC at the write, before the blocks that the filesystem reserves for root; nothing is
    lost, and it goes on when there is room."""
    pool = Disk(box, "pool", "ext4", 64 * MIB, ("-m", "20")).path
    c = start_direct(box, pool=pool, writeback_delay="1h", pool_size="1G")
    c.expect("No space", "full")
    c.write("first", text(1 * MIB, 3))
    total, err = child(fill, c.path("big"))
    assert err == errno.ENOSPC
    vfs = os.statvfs(pool)
    assert vfs.f_bfree - vfs.f_bavail > 0.15 * vfs.f_blocks
    assert vfs.f_bfree * vfs.f_frsize > 0.15 * 64 * MIB, "the reserve was not touched"
    assert os.stat(c.path("big")).st_size == total
    c.flush()
    assert c.stored("first") == text(1 * MIB, 3)
    assert len(c.stored("big")) == total
    c.make_cold("big", "first")
    c.write("next", b"there is room")
    assert c.read("next") == b"there is room"
