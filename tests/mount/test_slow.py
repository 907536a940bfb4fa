"""A store that answers slowly, or not at all (tests/tools/slowfs.c under it): what is warm is read and
written, what is known is looked at, what waits waits alone, and who is killed goes."""

import os
import signal
import subprocess
import threading
import time

import pytest

from harness import (
    BUILD,
    KIB,
    MIB,
    detach,
    environment,
    mounts_at,
    read_file,
    text,
    wait_for,
    write_file,
)

SLOWFS = os.path.join(BUILD, "tests", "tools", "slowfs")
STUCK = 3600 * 1000
SOON = 5  # seconds in which something happens that waits for nothing


class Slow:
    """A cellar over a slow store; the pool is on a disk."""

    def __init__(self, box, **opts):
        if not os.access(SLOWFS, os.X_OK):
            pytest.fail(f"{SLOWFS} is not built (make check TESTS=)")
        self.control = os.path.join(box.path, "delay")
        self.source = box.dir("source")
        self.store = box.dir("slow")
        self.set(0)
        log = open(os.path.join(box.logs, "slowfs.log"), "ab")  # pylint: disable=consider-using-with
        self.proc = subprocess.Popen(  # pylint: disable=consider-using-with
            [SLOWFS, self.control, self.source, self.store],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            start_new_session=True,
        )
        log.close()
        box.add_process(self.proc)
        wait_for(lambda: mounts_at(self.store), what="the slow filesystem")
        self.cellar = box.cellar(
            store=self.store, pool=os.path.join(box.path, "pool"), writeback_delay="1h", **opts
        )

    def set(self, ms):
        with open(self.control, "wb") as f:  # the same inode: it is read all the time
            f.write(b"%d\n" % ms)

    def end(self):
        self.set(0)
        if self.cellar.running:
            self.cellar.stop()
        detach(self.store)
        self.proc.wait(30)


@pytest.fixture
def slow(box):
    made = []

    def make(**opts):
        made.append(Slow(box, **opts))
        return made[-1]

    yield make
    for s in made:
        s.end()


def in_background(function, *args):
    """A thread; its result or exception is in .out"""

    class Run(threading.Thread):
        out = None

        def run(self):
            try:
                self.out = function(*args)
            except OSError as e:
                self.out = e

    t = Run(daemon=True)
    t.start()
    return t


def promptly(function, *args):
    """It must not wait for the store."""
    t = in_background(function, *args)
    t.join(SOON)
    assert not t.is_alive(), "it waits for the store"
    if isinstance(t.out, OSError):
        raise t.out
    return t.out


def reader(path):
    """A process that opens and reads, with default signals."""
    return subprocess.Popen(  # pylint: disable=consider-using-with
        ["cat", path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def waits_in_kernel(pid):
    """In a request to cellar (and not in starting)."""
    try:
        return "request_wait_answer" in read_file(f"/proc/{pid}/wchan").decode()
    except FileNotFoundError:
        return False


@pytest.mark.limit(120)
def test_stuck_store(slow, box):
    """Nothing comes from the store any more, and twenty opens of cold files wait for it: warm open
    files are read, written and looked at; what is in the kernel is; then all goes on."""
    s = slow()
    c = s.cellar.start()
    names = [f"cold{i}" for i in range(20)]
    for i, name in enumerate(names):
        c.write(name, text(100 * KIB, i))
    c.write("warm", text(300 * KIB, 99))
    c.write("dirty", text(10 * KIB, 98))
    c.make_cold(*names)
    fd = os.open(c.path("warm"), os.O_RDWR)
    assert os.pread(fd, 300 * KIB, 0) == text(300 * KIB, 99)
    rw = os.open(c.path("dirty"), os.O_RDWR)
    for name in names:
        os.stat(c.path(name))
    # the kernel asks once for security.capability, and after a change for attributes
    os.pwrite(rw, b"x", 0)
    assert os.fstat(fd).st_size == 300 * KIB
    s.set(STUCK)
    waiting = [in_background(c.read, name) for name in names]
    for round_ in range(20):
        block = text(4 * KIB, 1000 + round_)
        assert promptly(os.pwrite, rw, block, 4 * KIB * round_) == len(block)
        assert promptly(os.pread, rw, len(block), 4 * KIB * round_) == block
        assert promptly(os.pread, fd, 1000, 1000 * round_) == text(300 * KIB, 99)[1000 * round_ :][:1000]
        assert promptly(os.stat, c.path(names[round_])).st_size == 100 * KIB
        assert promptly(os.fstat, fd).st_size == 300 * KIB
    assert all(t.is_alive() for t in waiting)
    s.set(0)
    for i, t in enumerate(waiting):
        t.join(60)
        assert t.out == text(100 * KIB, i)
    os.close(fd)
    os.close(rw)
    c.flush()
    assert c.read("warm") == text(300 * KIB, 99)
    assert c.read("dirty")[: 80 * KIB] == b"".join(text(4 * KIB, 1000 + i) for i in range(20))


def test_slow_opens_are_parallel(slow):
    """Each operation takes 100 ms: twenty opens take hardly longer than one."""
    s = slow()
    c = s.cellar.start()
    names = [f"f{i}" for i in range(16)]
    for i, name in enumerate(names):
        c.write(name, text(50 * KIB, i))
    c.make_cold(*names)
    for name in names:
        os.stat(c.path(name))
    s.set(100)
    start = time.monotonic()
    assert c.read(names[0]) == text(50 * KIB, 0)
    one = time.monotonic() - start
    start = time.monotonic()
    threads = [in_background(c.read, name) for name in names[1:]]
    for i, t in enumerate(threads):
        t.join(60)
        assert t.out == text(50 * KIB, i + 1)
    assert time.monotonic() - start < 6 * one + 2, f"one takes {one} s"
    s.set(0)


def test_writeback_to_a_slow_store(slow):
    """A flush that takes long holds up neither the writer nor the reader of its file."""
    s = slow()
    c = s.cellar.start()
    c.write("f", text(200 * KIB, 1))
    c.flush()
    fd = os.open(c.path("f"), os.O_RDWR)
    os.pwrite(fd, b"first", 0)
    s.set(STUCK)
    flush = in_background(lambda: c.flush(check=False))
    for i in range(50):
        assert promptly(os.pwrite, fd, b"%05d" % i, 1000) == 5
        assert promptly(os.pread, fd, 5, 1000) == b"%05d" % i
    s.set(0)
    flush.join(60)
    os.close(fd)
    c.flush()
    assert c.read("f")[1000:1005] == b"00049"


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("eager", ["16M", "64K"])
def test_interrupted_caller_returns(slow, sig, eager):
    """In the open of a small file, in the read of a large one: the store never answers."""
    s = slow(eager_size=eager, frame_size="64K")
    c = s.cellar.start()
    c.write("f", text(2 * MIB, 1))
    c.make_cold("f")
    os.stat(c.path("f"))
    s.set(STUCK)
    p = reader(c.path("f"))
    wait_for(lambda: waits_in_kernel(p.pid), what="cat to wait")
    p.send_signal(sig)
    assert p.wait(SOON) == -sig
    s.set(0)
    assert c.read("f") == text(2 * MIB, 1), "the next one gets it"


def test_interrupted_twice(slow):
    """The first signal is caught and does not disturb; the second kills."""
    s = slow()
    c = s.cellar.start()
    c.write("f", text(100 * KIB, 1))
    c.make_cold("f")
    os.stat(c.path("f"))
    s.set(STUCK)
    p = subprocess.Popen(  # pylint: disable=consider-using-with
        ["sh", "-c", 'trap : USR1; exec 3<"$1"', "sh", c.path("f")], stdin=subprocess.DEVNULL
    )
    wait_for(lambda: waits_in_kernel(p.pid), what="sh to wait")
    p.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        p.wait(0.3)  # it goes on waiting: a handler is no reason to fail an open
    p.kill()
    assert p.wait(SOON) == -signal.SIGKILL
    s.set(0)
    assert c.read("f") == text(100 * KIB, 1)


def test_many_killed(slow):
    """Forty readers of files that never come are killed; none stays, and nothing is left open."""
    s = slow()
    c = s.cellar.start()
    for i in range(40):
        c.write(f"f{i}", text(30 * KIB, i))
    c.make_cold(*[f"f{i}" for i in range(40)])
    for i in range(40):
        os.stat(c.path(f"f{i}"))
    s.set(STUCK)
    procs = [reader(c.path(f"f{i}")) for i in range(40)]
    wait_for(lambda: all(waits_in_kernel(p.pid) for p in procs), what="all to wait")
    for p in procs:
        p.kill()
    for p in procs:
        assert p.wait(SOON) == -signal.SIGKILL
    s.set(0)
    for i in range(40):
        assert c.read(f"f{i}") == text(30 * KIB, i)
    wait_for(lambda: c.status()["scratch"]["open"] == 0, what="the last close")
