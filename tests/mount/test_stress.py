"""Several processes at once, with flushes, evictions and questions in between, against a
model; short enough to run under every sanitizer."""

import os
import random
import time

import pytest

from harness import (
    KIB,
    ROUNDS,
    SEED,
    errno_of,
    read_file,
    reap,
    spawn,
    text,
    wait_for,
    write_file,
)
from workload import Model, Worker, compare, replay

SECONDS = 10 * ROUNDS


def churn(c, stop, seed):
    """Makes, renames and removes names in a directory that others list meanwhile."""
    rng = random.Random(seed)
    top = c.path("names")
    i = 0
    while not os.path.exists(stop):
        i += 1
        a = os.path.join(top, f"n{rng.randrange(40)}")
        b = os.path.join(top, f"n{rng.randrange(40)}")
        what = rng.randrange(6)
        if what == 0:
            errno_of(os.mkdir, a)
        elif what == 1:
            errno_of(os.rmdir, a)
        elif what == 2:
            errno_of(os.rename, a, b)
        elif what == 3:
            errno_of(os.unlink, a)
        elif what == 4:
            errno_of(os.link, a, b)
        else:
            errno_of(write_file, a, b"%d" % i)


def check_blocks(data):
    """A shared file is made of 4 KiB blocks, each written by one pwrite: none is torn."""
    for at in range(0, len(data), 4096):
        block = data[at : at + 4096]
        assert block == bytes(4096) or (
            len(set(block)) == 1
        ), f"a torn block at {at}: {sorted(set(block))[:5]}"


def block_writer(c, stop, seed):
    rng = random.Random(seed)
    fd = os.open(c.path("shared"), os.O_RDWR)
    while not os.path.exists(stop):
        for _ in range(20):
            at = rng.randrange(64) * 4096
            os.pwrite(fd, bytes([rng.randrange(1, 255)]) * 4096, at)
        if rng.random() < 0.2:
            os.close(fd)
            fd = os.open(c.path("shared"), os.O_RDWR)
        if rng.random() < 0.1:
            os.fsync(fd)
    os.close(fd)


def block_reader(c, stop):
    while not os.path.exists(stop):
        fd = os.open(c.path("shared"), os.O_RDONLY)
        for i in range(64):  # the kernel may mix two writes in one read, but not cut it
            assert len(os.pread(fd, 4096, i * 4096)) == 4096
        os.close(fd)


def appender(c, stop, who):
    n = 0
    while not os.path.exists(stop):
        fd = os.open(c.path("log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for _ in range(10):
            os.write(fd, b"%s %d\n" % (who, n))
            n += 1
        os.close(fd)
    write_file(os.path.join(c.box.path, f"appended-{who.decode()}"), b"%d" % n)


@pytest.mark.stress
@pytest.mark.limit(150)
def test_stress(box):
    c = box.cellar(
        writeback_delay="20ms",
        pool_size="1M",
        frame_size="64K",
        max_idle="500ms",
        sync_interval="300ms",
        max_dirty_age="1s",
        flushers=3,
    ).start()
    stop = os.path.join(box.path, "stop")
    os.mkdir(c.path("names"))
    write_file(c.path("shared"), bytes(64 * 4096))
    for i in range(20):
        c.write(f"cold/f{i}", text(100 * KIB, i))
    journals = []
    pids = {}
    for w in range(3):
        os.mkdir(c.path(f"w{w}"))
        journals.append(os.path.join(box.path, f"journal-{w}"))
        worker = (c.path(f"w{w}"), journals[w], SEED + w)
        pids[spawn(lambda a=worker: Worker(*a).run(stop=stop))] = f"worker {w}"
    for w in range(2):
        pids[spawn(block_writer, c, stop, SEED + 10 + w)] = f"block writer {w}"
        pids[spawn(appender, c, stop, b"AB"[w : w + 1])] = f"appender {w}"
    pids[spawn(block_reader, c, stop)] = "block reader"
    pids[spawn(churn, c, stop, SEED + 20)] = "churn"

    rng = random.Random(SEED + 30)
    end = time.monotonic() + SECONDS
    flushes = 0
    try:
        while time.monotonic() < end and c.running:
            what = rng.randrange(6)
            if what == 0:
                c.flush()
                flushes += 1
            elif what == 1:
                c.evict(f"cold/f{rng.randrange(20)}", check=False)
            elif what == 2:
                i = rng.randrange(20)
                assert c.read(f"cold/f{i}") == text(100 * KIB, i)
            elif what == 3:
                os.listdir(c.path("names"))
            elif what == 4:
                c.status()
            else:
                for w in range(3):
                    for entry in os.scandir(c.path(f"w{w}")):
                        errno_of(entry.stat)
    finally:
        write_file(stop, b"")
        ended = {what: reap(pid) for pid, what in pids.items()}
    assert c.running, c.log_text()
    assert ended == dict.fromkeys(ended, 0)
    assert flushes > 0

    models = [Model() for _ in range(3)]
    for w in range(3):
        assert replay(journals[w], models[w]) is None
        assert sum(1 for _ in read_file(journals[w]).splitlines()) > 20, "it did hardly anything"

    def check():
        for w in range(3):
            compare(c.path(f"w{w}"), models[w], None)
        for i in range(20):
            assert c.read(f"cold/f{i}") == text(100 * KIB, i)
        check_blocks(c.read("shared"))
        lines = c.read("log").splitlines()
        for who in (b"A", b"B"):
            n = int(read_file(os.path.join(box.path, f"appended-{who.decode()}")))
            assert [line for line in lines if line.startswith(who)] == [
                b"%s %d" % (who, i) for i in range(n)
            ]

    check()
    shared = c.read("shared")
    c.flush()
    check()
    for w in range(3):
        for name, data in models[w].files.items():
            assert c.stored(f"w{w}/{name}") == data
    assert c.stored("shared") == shared
    s = wait_for(
        lambda: (s := c.status()) and s["scratch"]["open"] == 0 and s, what="all handles to go"
    )
    assert s["scratch"]["dirty"] == 0 and s["queue"]["files"] == 0
    assert s["counters"]["conflicts"] == s["counters"]["damaged"] == 0
    assert s["counters"]["lost_and_found"] == 0
    c.ctl("verify", c.mnt)
    c.remount("umount")
    check()


@pytest.mark.stress
@pytest.mark.limit(120)
def test_many_openers_of_one_cold_file(box):
    """One hydration serves all; nobody sees a byte before it is there."""
    c = box.cellar(writeback_delay="1h", frame_size="64K", eager_size="256K").start()
    c.write("small", text(200 * KIB, 1))
    c.write("large", text(2000 * KIB, 2))

    def read_all(name, data):
        for _ in range(3):
            assert read_file(c.path(name)) == data

    for _ in range(4):
        c.make_cold("small", "large")
        pids = [spawn(read_all, "small", text(200 * KIB, 1)) for _ in range(3)]
        pids += [spawn(read_all, "large", text(2000 * KIB, 2)) for _ in range(3)]
        assert [reap(p) for p in pids] == [0] * 6
