"""Directories, links, renames, nodes, times, xattrs: what a file system is asked for."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from harness import (
    KIB,
    MIB,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    child,
    errno_of,
    parse_object,
    reap,
    renameat2,
    same_errno,
    spawn,
    text,
    wait_for,
    write_file,
)


def test_hard_links(cellar):
    c = cellar
    c.write("a", text(100 * KIB, 1))
    os.mkdir(c.path("d"))
    os.link(c.path("a"), c.path("d/b"))
    st = os.stat(c.path("a"))
    assert st.st_nlink == 2 and os.stat(c.path("d/b")).st_ino == st.st_ino
    c.flush()
    assert os.stat(c.object_path("a")).st_nlink == 2
    with open(c.path("a"), "ab") as f:
        f.write(b"written through a")
    want = text(100 * KIB, 1) + b"written through a"
    assert c.read("d/b") == want
    assert os.stat(c.path("d/b")).st_size == len(want)
    c.flush()
    assert c.stored("a") == c.stored("d/b") == want
    assert os.stat(c.object_path("a")).st_ino == os.stat(c.object_path("d/b")).st_ino
    assert os.stat(c.object_path("a")).st_nlink == 2
    c.remount()
    assert os.stat(c.path("a")).st_ino == os.stat(c.path("d/b")).st_ino == st.st_ino
    os.unlink(c.path("a"))
    assert os.stat(c.path("d/b")).st_nlink == 1
    with open(c.path("d/b"), "r+b") as f:
        f.write(b"b alone")
    c.flush()
    assert c.stored("d/b") == b"b alone" + want[7:]
    # a link made while dirty and open, one removed while dirty
    fd = os.open(c.path("n"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"new")
    os.link(c.path("n"), c.path("m"))
    os.unlink(c.path("n"))
    os.write(fd, b"er")
    os.close(fd)
    c.flush()
    assert c.stored("m") == b"newer"
    assert not os.path.exists(c.object_path("n"))
    os.link(c.path("m"), c.path("k"))
    os.rename(c.path("m"), c.path("k"))  # both are the same file: nothing happens
    assert os.path.exists(c.path("m")) and os.path.exists(c.path("k"))
    assert errno_of(os.link, c.path("d"), c.path("e")) == errno.EPERM


def test_rename(cellar):
    c = cellar
    c.write("a", b"a")
    c.write("b", b"b")
    os.makedirs(c.path("d/e/f"))
    os.mkdir(c.path("empty"))
    os.rename(c.path("a"), c.path("b"))
    assert c.read("b") == b"a" and not os.path.exists(c.path("a"))
    os.rename(c.path("b"), c.path("d/e/f/deep"))
    os.rename(c.path("d/e"), c.path("moved"))
    assert c.read("moved/f/deep") == b"a"
    assert errno_of(os.rename, c.path("moved"), c.path("moved/f/x")) == errno.EINVAL
    same_errno(errno_of(os.rename, c.path("empty"), c.path("moved")), "ENOTEMPTY", "EEXIST")
    os.rename(c.path("moved"), c.path("empty"))
    assert c.read("empty/f/deep") == b"a"
    assert errno_of(os.rename, c.path("none"), c.path("x")) == errno.ENOENT
    same_errno(errno_of(os.rmdir, c.path("empty")), "ENOTEMPTY")
    assert errno_of(os.unlink, c.path("empty")) in (errno.EISDIR, errno.EPERM)
    assert errno_of(os.rmdir, c.path("empty/f/deep")) == errno.ENOTDIR
    c.flush()
    assert c.stored("empty/f/deep") == b"a"
    c.remount()
    assert c.read("empty/f/deep") == b"a"


def test_rename_flags(cellar):
    c = cellar
    c.write("a", text(1000, 1))
    c.write("b", text(2000, 2))
    os.mkdir(c.path("d"))
    c.write("d/in", b"in d")
    os.symlink("somewhere", c.path("l"))
    ino = {n: os.lstat(c.path(n)).st_ino for n in "abdl"}
    assert errno_of(renameat2, c.path("a"), c.path("b"), RENAME_NOREPLACE) == errno.EEXIST
    assert errno_of(renameat2, c.path("a"), c.path("d"), RENAME_NOREPLACE) == errno.EEXIST
    renameat2(c.path("a"), c.path("fresh"), RENAME_NOREPLACE)
    renameat2(c.path("fresh"), c.path("a"), RENAME_NOREPLACE)
    assert c.read("a") == text(1000, 1) and c.read("b") == text(2000, 2)

    renameat2(c.path("a"), c.path("b"), RENAME_EXCHANGE)
    assert c.read("a") == text(2000, 2) and c.read("b") == text(1000, 1)
    renameat2(c.path("a"), c.path("d"), RENAME_EXCHANGE)  # a file and a directory
    assert c.read("d") == text(2000, 2) and c.read("a/in") == b"in d"
    renameat2(c.path("l"), c.path("b"), RENAME_EXCHANGE)  # a link and a file
    assert os.readlink(c.path("b")) == "somewhere" and c.read("l") == text(1000, 1)
    assert errno_of(renameat2, c.path("a"), c.path("none"), RENAME_EXCHANGE) == errno.ENOENT
    assert {n: os.lstat(c.path(m)).st_ino for n, m in zip("abdl", "ldab")} == ino
    c.flush()
    assert c.stored("d") == text(2000, 2) and c.stored("l") == text(1000, 1)
    c.remount()
    assert c.read("d") == text(2000, 2) and c.read("l") == text(1000, 1)
    assert c.read("a/in") == b"in d" and os.readlink(c.path("b")) == "somewhere"
    assert {n: os.lstat(c.path(m)).st_ino for n, m in zip("abdl", "ldab")} == ino


def test_exchange_of_names_that_end_in_zst(cellar):
    c = cellar
    c.write("x.zst", b"file")
    os.mkdir(c.path("y.zst"))
    c.write("y.zst/in", b"in")
    renameat2(c.path("x.zst"), c.path("y.zst"), RENAME_EXCHANGE)
    assert c.read("y.zst") == b"file" and c.read("x.zst/in") == b"in"
    c.remount()
    assert c.read("y.zst") == b"file" and c.read("x.zst/in") == b"in"
    assert sorted(os.listdir(c.mnt)) == ["x.zst", "y.zst"]


def test_other_types(cellar):
    c = cellar
    os.symlink("a/b/../c d", c.path("link"))
    os.symlink("x" * 4000, c.path("long"))
    os.mkfifo(c.path("fifo"), 0o620)
    s = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(c.mnt)
    try:
        s.bind("socket")
    finally:
        os.chdir(here)
    s.close()
    os.mknod(c.path("node"), stat.S_IFREG | 0o640)
    with open(c.path("node"), "wb") as f:
        f.write(b"through mknod")

    def check():
        assert os.readlink(c.path("link")) == "a/b/../c d"
        assert os.lstat(c.path("link")).st_size == 10
        assert os.readlink(c.path("long")) == "x" * 4000
        assert stat.S_ISFIFO(os.stat(c.path("fifo")).st_mode)
        assert stat.S_ISSOCK(os.stat(c.path("socket")).st_mode)
        assert c.read("node") == b"through mknod"
        kinds = {e.name: (e.is_symlink(), e.is_file(follow_symlinks=False)) for e in os.scandir(c.mnt)}
        assert kinds == {
            "link": (True, False),
            "long": (True, False),
            "fifo": (False, False),
            "socket": (False, False),
            "node": (False, True),
        }

    check()
    c.remount()
    check()
    # a fifo works between processes
    pid = spawn(lambda: write_file(c.path("fifo"), b"through the fifo"))
    assert c.read("fifo") == b"through the fifo"
    assert reap(pid) == 0
    assert c.stored("node") == b"through mknod"


@pytest.mark.root
def test_device_nodes(cellar):
    c = cellar
    os.mknod(c.path("null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(c.path("block"), stat.S_IFBLK | 0o600, os.makedev(7, 200))
    c.remount()
    st = os.stat(c.path("null"))
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(os.stat(c.path("block")).st_mode)


def test_umask(cellar):
    c = cellar

    def make():
        os.close(os.open(c.path("f"), os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(c.path("d"), 0o777)
        os.mkfifo(c.path("p"), 0o666)

    child(make, umask=0o027)
    assert stat.S_IMODE(os.stat(c.path("f")).st_mode) == 0o640
    assert stat.S_IMODE(os.stat(c.path("d")).st_mode) == 0o750
    assert stat.S_IMODE(os.stat(c.path("p")).st_mode) == 0o640
    child(lambda: os.close(os.open(c.path("g"), os.O_CREAT | os.O_WRONLY, 0o666)), umask=0)
    assert stat.S_IMODE(os.stat(c.path("g")).st_mode) == 0o666
    c.flush()
    assert stat.S_IMODE(os.stat(c.object_path("f")).st_mode) == 0o640


def test_times(cellar):
    c = cellar
    path = c.write("f", b"x")
    os.utime(path, ns=(1_111_111_111_111_111_111, 2_222_222_222_222_222_222))
    st = os.stat(path)
    assert (st.st_atime_ns, st.st_mtime_ns) == (
        1_111_111_111_111_111_111,
        2_222_222_222_222_222_222,
    )
    c.flush()
    st = os.stat(c.object_path("f"))
    assert st.st_mtime_ns == 2_222_222_222_222_222_222
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"y")
    os.utime(fd, ns=(5, 1_000_000_000_000_000_005))  # as cp -p and tar do, then close
    os.close(fd)
    c.make_cold("f")
    assert os.stat(path).st_mtime_ns == 1_000_000_000_000_000_005
    os.utime(path, ns=(5, 1_000_000_000_000_000_007))  # of a cold file
    assert os.stat(path).st_mtime_ns == 1_000_000_000_000_000_007
    before = time.time_ns() - 50_000_000
    os.utime(path)
    assert before <= os.stat(path).st_mtime_ns <= time.time_ns()
    os.symlink("f", c.path("l"))
    os.utime(c.path("l"), ns=(3, 1_234_567_890_123_456_789), follow_symlinks=False)
    assert os.lstat(c.path("l")).st_mtime_ns == 1_234_567_890_123_456_789
    os.mkdir(c.path("d"))
    os.utime(c.path("d"), ns=(3, 1_234_567_890_123_456_789))
    c.write("d/x", b"x")
    assert os.stat(c.path("d")).st_mtime_ns > 1_234_567_890_123_456_789, "a new entry"
    os.utime(c.path("d"), ns=(3, 1_234_567_890_123_456_789))
    c.flush()
    assert os.stat(c.path("d")).st_mtime_ns == 1_234_567_890_123_456_789, "a flush is none"
    assert os.stat(c.store_path("d")).st_mtime_ns == 1_234_567_890_123_456_789
    # times before 1970
    os.utime(path, ns=(-5_000_000_001, -5_000_000_001))
    assert os.stat(path).st_mtime_ns == -5_000_000_001


def test_xattrs(cellar):
    c = cellar
    path = c.write("f", text(10 * KIB, 1))
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b", bytes(range(256)))
    assert sorted(os.listxattr(path)) == ["user.a", "user.b"]
    assert os.getxattr(path, "user.b") == bytes(range(256))
    assert errno_of(os.setxattr, path, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    assert errno_of(os.setxattr, path, "user.c", b"2", os.XATTR_REPLACE) == errno.ENODATA
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    with open(path, "ab") as f:
        f.write(b"x")
    c.make_cold("f")
    assert os.getxattr(path, "user.a") == b"3"
    os.removexattr(path, "user.a")
    assert errno_of(os.getxattr, path, "user.a") == errno.ENODATA
    assert errno_of(os.removexattr, path, "user.a") == errno.ENODATA
    c.remount()
    assert os.listxattr(path) == ["user.b"]
    os.mkdir(c.path("d"))
    os.setxattr(c.path("d"), "user.dir", b"d")
    assert os.getxattr(c.path("d"), "user.dir") == b"d"


def test_private_xattrs(cellar):
    """user.cellar.* belongs to the daemon: not listed, not stored, not to be changed."""
    c = cellar
    path = c.write("f", b"x")
    for name in ("user.cellar.record", "user.cellar.anything"):
        assert errno_of(os.setxattr, path, name, b"1") == errno.EPERM
        assert errno_of(os.removexattr, path, name) == errno.EPERM
    assert os.listxattr(path) == []
    c.flush()
    assert os.listxattr(path) == []
    assert [n for n in os.listxattr(c.object_path("f")) if n.startswith("user.cellar")] == []
    assert errno_of(os.getxattr, path, "user.cellar.no-such-thing") == errno.ENODATA


def test_statfs(cellar):
    here, there = os.statvfs(cellar.mnt), os.statvfs(cellar.store)
    assert here.f_namemax == there.f_namemax - 4
    assert here.f_blocks * here.f_frsize == there.f_blocks * there.f_frsize
    assert here.f_files == there.f_files
    out = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE,FSTYPE", cellar.mnt], capture_output=True, check=True
    ).stdout.decode()
    assert out.split() == [cellar.store, "fuse.cellar"]


def test_readdir_of_many_while_changing(cellar):
    """Every name that is there all the time is seen exactly once."""
    c = cellar
    os.mkdir(c.path("d"))
    stay = {f"stay-{i:05}" for i in range(2000)}
    # made as empty objects' directories would be slow; empty files are what mail spools hold
    for name in stay:
        os.close(os.open(c.path(f"d/{name}"), os.O_CREAT | os.O_WRONLY, 0o644))
    done = threading.Event()

    def disturb():
        i = 0
        while not done.is_set():
            path = c.path(f"d/go-{i % 50}")
            if os.path.exists(path):
                os.unlink(path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
            i += 1

    t = threading.Thread(target=disturb)
    t.start()
    try:
        for _ in range(4):
            names = os.listdir(c.path("d"))
            assert len(names) == len(set(names)), "a name came twice"
            assert {n for n in names if n.startswith("stay")} == stay
    finally:
        done.set()
        t.join()
    for i in range(50):
        if os.path.exists(c.path(f"d/go-{i}")):
            os.unlink(c.path(f"d/go-{i}"))
    sizes = {e.name: e.stat().st_size for e in os.scandir(c.path("d"))}
    assert sizes == dict.fromkeys(stay, 0)
    c.flush()
    assert set(os.listdir(c.path("d"))) == stay
    assert len(os.listdir(c.store_path("d"))) == len(stay)
    subprocess.run(["rm", "-r", c.path("d")], check=True)
    assert os.listdir(c.mnt) == []
    assert os.listdir(c.store) == [".cellar"]


def test_readdir_remove_while_reading(cellar):
    """The rm -r pattern: entries unlinked between two reads of the directory."""
    c = cellar
    os.mkdir(c.path("d"))
    for i in range(1200):
        c.write(f"d/{i:04}{'n' * 100}", b"")
    with os.scandir(c.path("d")) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(c.path("d")) == []
    os.rmdir(c.path("d"))


def test_dots_and_links_of_directories(cellar):
    c = cellar
    os.makedirs(c.path("d/e"))
    out = subprocess.run(["ls", "-ai", c.path("d")], capture_output=True, check=True).stdout.decode()
    seen = {line.split()[1]: int(line.split()[0]) for line in out.splitlines()}
    assert seen["."] == os.stat(c.path("d")).st_ino
    assert seen[".."] == os.stat(c.mnt).st_ino == 1
    assert seen["e"] == os.stat(c.path("d/e")).st_ino
    found = subprocess.run(["find", c.mnt, "-type", "d"], capture_output=True, check=True).stdout
    assert len(found.splitlines()) == 3


def test_deleted_directory(cellar):
    c = cellar
    os.mkdir(c.path("d"))
    fd = os.open(c.path("d"), os.O_RDONLY)
    os.rmdir(c.path("d"))
    assert errno_of(os.open, "x", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd) in (
        errno.ENOENT,
        errno.ESTALE,
    )
    assert os.listdir(fd) == []
    os.close(fd)


def test_slow_open_does_not_stop_others(box):
    """Opens that hydrate much run beside look-ups and reads of other files."""
    c = box.cellar(writeback_delay="1h", eager_size="1G").start()
    names = [f"big{i}" for i in range(16)]
    for i, name in enumerate(names):
        c.write(name, text(8 * MIB, i))
    c.write("small", b"small")
    c.flush()
    c.remount()
    c.make_cold(*names)

    def open_it(name):
        fd = os.open(c.path(name), os.O_RDONLY)
        os.close(fd)

    pids = [spawn(open_it, n) for n in names]
    worst = 0
    while pids:
        start = time.monotonic()
        assert not os.path.exists(c.path(f"nothing-{start}"))
        c.read("small")
        os.listdir(c.mnt)
        worst = max(worst, time.monotonic() - start)
        got, status = os.waitpid(pids[0], os.WNOHANG)
        if got:
            assert status == 0
            pids.pop(0)
    assert worst < 5, f"a stat and a read took {worst:.1f} s beside the opens"


def test_shell_tools(cellar):
    """What people do all day: tar, cp -a, mv, sed -i, git-like replaces, find."""
    c = cellar
    script = r"""
        set -e
        mkdir -p src/sub && cd src
        for i in 1 2 3 4 5 6 7 8; do seq 1 2000 > f$i; done
        ln -s f1 link; ln f2 hard; printf 'a b\n' > 'sub/with space'
        sed -i 's/^7$/seven/' f3
        sort -rn f4 -o f4
        printf 'more\n' >> f5
        truncate -s 100 f6
        dd if=f7 of=f7 conv=notrunc bs=1 count=10 seek=500 status=none
        cd .. && cp -a src copy && diff -r src copy
        tar cf all.tar src && mkdir un && tar xf all.tar -C un && diff -r src un/src
        mv copy/f8 copy/g8 && mv copy moved && [ -f moved/g8 ]
        gzip -k moved/g8 && gzip -t moved/g8.gz
        find . -type f -newer all.tar > list || true
        rm -r un moved
    """
    subprocess.run(["bash", "-c", script], cwd=c.mnt, check=True)
    c.flush()
    subprocess.run(["tar", "df", c.path("all.tar")], cwd=c.mnt, check=True)
    assert c.stored("src/f3").splitlines()[6] == b"seven"
    assert os.stat(c.path("src/hard")).st_nlink == 2
    c.remount()
    subprocess.run(["tar", "df", c.path("all.tar")], cwd=c.mnt, check=True)
    assert parse_object(c.object_path("all.tar"))["logical"] == os.path.getsize(c.path("all.tar"))


def test_sqlite_on_it(lively):
    """A program that lives by locks, fsync and exact sizes."""
    script = r"""
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("create table if not exists t (a integer, b text)")
for i in range(20):
    with db:
        db.executemany("insert into t values (?, ?)", [(i, "x" * 100)] * 50)
assert db.execute("pragma integrity_check").fetchone() == ("ok",)
db.close()
"""
    for round_ in range(2):
        subprocess.run(["/usr/bin/python3", "-c", script, lively.path("db")], check=True)
        lively.make_cold("db")
        assert round_ == 0 or os.path.getsize(lively.path("db")) > 200 * KIB


def test_concurrent_creates_of_one_name(cellar):
    """Without O_EXCL everybody gets the file; with it exactly one does."""
    c = cellar

    def create(name, flags):
        for i in range(40):
            try:
                fd = os.open(c.path(f"{name}{i}"), os.O_CREAT | os.O_WRONLY | flags, 0o644)
            except FileExistsError:
                continue
            os.write(fd, b"x")
            os.close(fd)
            if flags:
                os.close(os.open(c.path(f"won-{os.getpid()}-{i}"), os.O_CREAT | os.O_WRONLY))

    pids = [spawn(create, "plain", 0) for _ in range(3)]
    pids += [spawn(create, "excl", os.O_EXCL) for _ in range(3)]
    assert [reap(p) for p in pids] == [0] * 6
    names = os.listdir(c.mnt)
    assert len([n for n in names if n.startswith("plain")]) == 40
    assert len([n for n in names if n.startswith("excl")]) == 40
    assert len([n for n in names if n.startswith("won")]) == 40
    for i in range(40):
        assert c.read(f"plain{i}") == c.read(f"excl{i}") == b"x"


def test_stale_handle_after_forget(cellar):
    """Thousands of look-ups are forgotten again: the table does not grow for ever."""
    c = cellar
    for i in range(300):
        c.write(f"f{i}", b"x")
    c.flush()
    if os.geteuid() == 0:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("2")
    for i in range(300):
        assert c.read(f"f{i}") == b"x"
    assert sys.getsizeof(c.status()) > 0
    wait_for(lambda: c.counter("requests") > 300, what="the counters")
