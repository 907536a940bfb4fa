"""Hard links in every order, exchange between types, unlinked open files, and directories of
many entries that change while they are listed."""

import ctypes
import errno
import itertools
import os
import random
import subprocess

import pytest

from harness import (
    KIB,
    RENAME_EXCHANGE,
    SANITIZER,
    SEED,
    SOAK,
    errno_of,
    pread_all,
    reap,
    renameat2,
    spawn,
    text,
    wait_for,
)

# ---- hard links ----

STEPS = ("write a", "write b", "link b", "flush", "cold", "unlink a", "rename b over a", "truncate")


class Linked:
    """A file with up to two names and its model."""

    def __init__(self, c, name):
        self.c = c
        self.dir = name
        os.mkdir(c.path(name))
        self.data = bytearray(text(6 * KIB, len(name)))
        c.write(f"{name}/a", self.data)
        self.names = {"a"}

    def rel(self, name):
        return f"{self.dir}/{name}"

    def path(self, name):
        return self.c.path(self.rel(name))

    def write(self, name, at, data):
        with open(self.path(name), "r+b") as f:
            f.seek(at)
            f.write(data)
        self.data[at : at + len(data)] = data

    def do(self, step, n):
        first = min(self.names)
        if step in ("write a", "write b"):
            name = step[-1]
            if name in self.names:
                self.write(name, 1000 * n, b"%s %d" % (name.encode(), n))
        elif step == "link b" and "b" not in self.names:
            os.link(self.path("a"), self.path("b"))
            self.names.add("b")
        elif step == "flush":
            self.c.flush(self.path(first))
        elif step == "cold":
            self.c.flush(self.path(first))
            if self.c.is_warm(self.rel(first)):
                self.c.evict_closed(self.rel(first))
        elif step == "unlink a" and self.names == {"a", "b"}:
            os.unlink(self.path("a"))
            self.names.remove("a")
        elif step == "rename b over a" and "b" in self.names:
            os.rename(self.path("b"), self.path("a"))
            if "a" not in self.names:  # the same file twice: rename does nothing
                self.names = {"a"}
        elif step == "truncate":
            os.truncate(self.path(first), len(self.data) - 7)
            del self.data[-7:]

    def check(self, order):
        assert set(os.listdir(self.c.path(self.dir))) == self.names, order
        stats = [os.stat(self.path(n)) for n in self.names]
        assert len({s.st_ino for s in stats}) == 1, order
        assert {(s.st_nlink, s.st_size) for s in stats} == {(len(self.names), len(self.data))}, order
        for n in self.names:
            assert self.c.read(self.rel(n)) == self.data, (order, n)

    def check_stored(self, order):
        stats = [os.stat(self.c.object_path(self.rel(n))) for n in self.names]
        assert len({s.st_ino for s in stats}) == 1 and stats[0].st_nlink == len(self.names), order
        for n in self.names:
            assert self.c.stored(self.rel(n)) == self.data, order


def orders():
    """Every order of every four of the steps that begins with a link somewhere."""
    every = [o for o in itertools.permutations(STEPS, 4) if "link b" in o]
    rng = random.Random(SEED)
    return sorted(rng.sample(every, 60 if SANITIZER else 110))


@pytest.mark.limit(180)
def test_orders_of_links_and_writes(plain):
    """(F5): the links share one inode and one content, whatever was written, flushed, evicted,
    unlinked and renamed in which order."""
    files = []
    for i, order in enumerate(orders()):
        f = Linked(plain, f"t{i}")
        for n, step in enumerate(order):
            f.do(step, n)
        f.check(order)
        files.append((f, order))
    plain.flush()
    for f, order in files:
        f.check_stored(order)
    plain.remount()
    for f, order in files:
        f.check(order)


@pytest.mark.parametrize("grow", [5, 200 * KIB])
def test_append_to_a_cold_file_with_two_names(box, mode, grow):
    """(T1): its object is copied over in place, and what was not hydrated is still there."""
    c = box.cellar(writeback_delay="1h", frame_size="64K", eager_size="64K", **mode).start()
    want = bytearray(text(156023, 1))
    path = c.write("a", want)
    os.link(path, c.path("b"))
    c.make_cold("a")
    fd = os.open(path, os.O_RDWR)
    for n in range(2):
        os.pwrite(fd, b"y" * grow, len(want))
        want += b"y" * grow
        mtime = os.stat(path).st_mtime_ns
        c.flush()
        assert c.stored("b") == want and os.stat(path).st_mtime_ns == mtime
        assert os.pread(fd, 100, 70000) == want[70000:70100]
        os.pwrite(fd, b"z" * 8192, 119734 - n * 50000)
        want[119734 - n * 50000 : 119734 - n * 50000 + 8192] = b"z" * 8192
        assert c.read("b") == want
    os.close(fd)
    c.make_cold("a")
    assert c.read("b") == want and c.stored("a") == want
    with open(path, "ab") as f:  # closed before it is flushed
        f.write(b"end")
    want += b"end"
    c.flush()
    assert c.stored("b") == want == c.read("a")



def test_flush_of_a_directory_that_holds_another_name(box):
    """Written under a name elsewhere, or one that is gone by now, while nobody has come by the name
    in the directory that is flushed: it is in the store all the same (promise 11)."""
    c = box.cellar(writeback_delay="1h", sync_interval="1h").start()
    old, new = text(6 * KIB, 1), text(6 * KIB, 2)
    for name in ("outside", "gone"):
        c.write(f"{name}/f", old)
        os.makedirs(c.path("d"), exist_ok=True)
        os.link(c.path(f"{name}/f"), c.path(f"d/{name}"))
    c.flush()
    c.stop()
    c.start()  # which knows of no name yet
    for name in ("outside", "gone"):
        with open(c.path(f"{name}/f"), "r+b") as f:
            f.write(new)
    os.unlink(c.path("gone/f"))
    c.flush(c.path("d"))
    assert c.stored("d/outside") == new
    assert c.stored("d/gone") == new

# ---- exchange ----


@pytest.mark.parametrize("state", ["new", "flushed", "dirty", "cold"])
def test_exchange_between_types(plain, state):
    """A file in each state against a directory, a symlink, a fifo and a file; back and forth,
    in one directory and between two."""
    c = plain
    os.mkdir(c.path("x"))
    for i, kind in enumerate(("directory", "symlink", "fifo", "file")):
        data = text(3000 + i, i)
        f, other = f"f{i}", f"x/{kind}"
        c.write(f, data)
        if kind == "directory":
            os.makedirs(c.path(f"{other}/sub"))
            c.write(f"{other}/sub/in", b"in")
        elif kind == "symlink":
            os.symlink("target", c.path(other))
        elif kind == "fifo":
            os.mkfifo(c.path(other))
        else:
            c.write(other, b"the other")
        if state != "new":
            c.flush()
        if state == "cold":
            c.make_cold(f)
        if state == "dirty":
            data += b"dirty"
            with open(c.path(f), "ab") as h:
                h.write(b"dirty")
        before = {n: os.lstat(c.path(n)) for n in (f, other)}
        fd = os.open(c.path(f), os.O_RDONLY) if state != "cold" else -1
        for _ in range(3):
            renameat2(c.path(f), c.path(other), RENAME_EXCHANGE)
        if fd >= 0:
            assert pread_all(fd, 10000) == data
            os.close(fd)
        for now, was in ((f, other), (other, f)):
            st = os.lstat(c.path(now))
            assert (st.st_ino, st.st_mode) == (before[was].st_ino, before[was].st_mode), kind
        assert c.read(other) == data
        if kind == "directory":
            assert c.read(f"{f}/sub/in") == b"in"
        c.flush()
        assert c.stored(other) == data, kind
    c.remount()
    for i, kind in enumerate(("directory", "symlink", "fifo", "file")):
        assert c.read(f"x/{kind}")[: 3000 + i] == text(3000 + i, i)
    assert c.read("f0/sub/in") == b"in" and c.read("f3") == b"the other"


# ---- unlinked open files ----


@pytest.mark.parametrize("how", ["close", "kill", "umount"])
def test_unlinked_open_files_leave_nothing(box, mode, how):
    """(E2), (E3): their bytes are there until the last close, and then nothing is: no scratch,
    no object, no row; also where the daemon is killed in between."""
    c = box.cellar(writeback_delay="1h", **mode).start()
    c.write("stays", text(9 * KIB, 9))
    c.flush()
    fds = {}
    for i, state in enumerate(("new", "flushed", "cold", "dirty", "renamed over", "linked")):
        c.write(f"f{i}", text(7 * KIB, i))
        if state != "new":
            c.flush()
        if state == "cold":
            c.make_cold(f"f{i}")
        fds[state] = os.open(c.path(f"f{i}"), os.O_RDWR)
        if state == "dirty":
            os.pwrite(fds[state], text(7 * KIB, i)[:100], 0)
        if state == "linked":
            os.link(c.path(f"f{i}"), c.path("again"))
            os.unlink(c.path("again"))
        if state == "renamed over":
            c.write("over", b"over")
            os.rename(c.path("over"), c.path(f"f{i}"))
        os.unlink(c.path(f"f{i}"))
    assert os.listdir(c.mnt) == ["stays"]
    c.flush()
    for i, (state, fd) in enumerate(fds.items()):
        assert os.fstat(fd).st_nlink == 0, state
        assert pread_all(fd, 8 * KIB) == text(7 * KIB, i), state
        os.pwrite(fd, b"still", 7 * KIB)
        assert os.fstat(fd).st_size == 7 * KIB + 5, state
    if how == "kill":
        c.kill9()
    elif how == "umount":
        subprocess.run(["umount", "-l", c.mnt] if os.geteuid() == 0 else
                       ["fusermount3", "-uz", c.mnt], check=True)
    for fd in fds.values():
        errno_of(os.close, fd)
    if how == "kill":
        c.restart_after_kill()
    elif how == "umount":
        assert c.wait_end() == 0
        c.start()
    alive = os.stat(c.path("stays")).st_ino
    wait_for(lambda: c.scratches() <= {alive}, what="the scratches of what is gone to go")
    assert os.listdir(c.mnt) == ["stays"] and c.read("stays") == text(9 * KIB, 9)
    assert sorted(os.listdir(c.store)) == [".cellar", "stays.zst"]
    s = c.status()
    assert s["scratch"]["dirty"] == 0 and s["queue"]["files"] == 0


# ---- large directories ----

libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long


class Dirent(ctypes.Structure):
    _fields_ = [
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("len", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    ]


class Stream:
    """opendir, readdir, telldir, seekdir, rewinddir."""

    def __init__(self, path):
        self.at = ctypes.c_void_p(libc.opendir(os.fsencode(path)))
        assert self.at.value

    def read(self):
        e = libc.readdir(self.at)
        return ctypes.cast(e, ctypes.POINTER(Dirent)).contents.name.decode() if e else None

    def tell(self):
        return libc.telldir(self.at)

    def seek(self, where):
        libc.seekdir(self.at, ctypes.c_long(where))

    def rewind(self):
        libc.rewinddir(self.at)

    def close(self):
        libc.closedir(self.at)


def make_names(where, names):
    top = os.open(where, os.O_RDONLY)
    for name in names:
        os.mknod(name, 0o100644, dir_fd=top)
    os.close(top)


@pytest.mark.limit(200)
def test_large_directory_while_it_changes(box, mode):
    """What is there all the time is listed exactly once, whatever comes and goes; positions
    lead back to the same entry. --soak: 100,000 entries."""
    c = box.cellar(writeback_delay="1h", drain_timeout="1h", **mode).start()
    where = c.path("d")
    os.mkdir(where)
    count = 100000 if SOAK else 10000
    # directly in the store: they show as plain files, and nothing has to be flushed
    stay = {f"stay-{i:06}" for i in range(count)}
    make_names(c.store_path("d"), sorted(stay))
    stop = os.path.join(box.path, "stop")

    def disturb():
        rng = random.Random(SEED)
        while not os.path.exists(stop):
            path = os.path.join(where, f"go-{rng.randrange(300)}")
            if errno_of(os.rmdir, path) == errno.ENOENT:
                errno_of(os.mkdir, path)
            if rng.random() < 0.2:
                errno_of(os.rename, path, os.path.join(where, f"go-{rng.randrange(300)}"))

    pids = [spawn(disturb)]
    try:
        names = os.listdir(where)
        assert len(names) == len(set(names)), "a name came twice"
        assert {n for n in names if n.startswith("stay")} == stay
        d = Stream(where)
        marks, seen = [], []
        while True:
            at = d.tell()
            name = d.read()
            if name is None:
                break
            if len(seen) % (count // 10) == 0:
                marks.append((at, name))
            seen.append(name)
        assert sorted(n for n in seen if n.startswith("stay")) == sorted(stay)
        random.Random(SEED).shuffle(marks)
        for at, name in marks:
            d.seek(at)
            got = d.read()
            if name.startswith("stay"):
                assert got == name, "a position leads elsewhere"
        d.seek(marks[0][0])
        rest = []
        while (name := d.read()) is not None:
            rest.append(name)
        want = [n for n in seen[seen.index(marks[0][1]) :] if n.startswith("stay")]
        assert [n for n in rest if n.startswith("stay")] == want
        d.rewind()
        again = set()
        while (name := d.read()) is not None:
            again.add(name)
        assert stay <= again
        d.close()
    finally:
        os.close(os.open(stop, os.O_CREAT | os.O_WRONLY))
        assert [reap(p) for p in pids] == [0]
    for name in os.listdir(where):
        if name.startswith("go"):
            os.rmdir(os.path.join(where, name))
    assert len(os.listdir(where)) == count
    one = os.path.join(where, "stay-000007")
    with open(one, "w", encoding="ascii") as f:
        f.write("written")
    os.unlink(os.path.join(where, "stay-000008"))
    assert set(os.listdir(where)) == stay - {"stay-000008"}
    c.flush()
    assert set(os.listdir(where)) == stay - {"stay-000008"}
