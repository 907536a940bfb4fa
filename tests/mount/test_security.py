"""Who may see and do what, and what a store, a pool or a client that means harm can do: nothing."""

import array
import errno
import json
import os
import pwd
import re
import signal
import socket
import stat
import struct
import subprocess
import time

import pytest

from harness import (
    CELLARCTL,
    CELLARD,
    KIB,
    MIB,
    ROOT,
    child,
    errno_of,
    noise,
    read_file,
    run,
    socket_of,
    talk,
    text,
    wait_for,
    write_file,
    zstd_make,
)

ALICE, BOB = 12001, 12002


def in_time(function, *args, seconds=20):
    """Runs it in a process that is killed when it hangs; an OSError is raised here."""

    def work():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        function(*args)

    return child(work)


def try_start(c, *patterns, env=None):
    """The start is refused, with a reason, in time."""
    c.launch(env)
    c.wait_end(30)
    assert c.proc.returncode == 1, c.log_text()
    for p in patterns:
        assert re.search(p, c.log_text()), (p, c.log_text())
    c.expect("error:")


def rss_peak(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return int(re.search(r"VmHWM:\s+(\d+)", f.read()).group(1)) * KIB


# ---- what is private ----


def test_private_places(box):
    """Scratch, catalog, log and lost+found are closed to others, wherever the pool is."""
    pool = box.dir("pool")
    os.chmod(pool, 0o755)
    for opts in ({}, {"pool": pool}):
        c = box.cellar("p" + str(len(opts)), writeback_delay="1h", **opts).start()
        c.write("secret", text(50 * KIB, 1))
        for where in {c.pool_dir(), c.store_path(".cellar")}:
            for top, dirs, files in os.walk(where):
                for name in dirs:
                    mode = os.lstat(os.path.join(top, name)).st_mode
                    assert stat.S_IMODE(mode) == 0o700, os.path.join(top, name)
                for name in files:
                    mode = os.lstat(os.path.join(top, name)).st_mode
                    assert mode & 0o077 == 0, (os.path.join(top, name), oct(mode))
        c.stop()
        os.chmod(os.path.join(c.pool_dir(), "scratch"), 0o755)
        c.start()
        assert stat.S_IMODE(os.stat(os.path.join(c.pool_dir(), "scratch")).st_mode) == 0o700
        assert c.read("secret") == text(50 * KIB, 1)
        c.stop()
    os.chmod(pool, 0o777)
    try_start(c, "others may write in")


@pytest.mark.root
def test_what_others_made_is_not_believed(box):
    """A .cellar (or a part of it) that belongs to somebody else may hold anything."""
    c = box.cellar().start()
    c.write("f", b"x")
    c.stop()
    os.makedirs(c.store_path(".cellar/scratch/07"), mode=0o700, exist_ok=True)
    for part in (".cellar", ".cellar/tmp", ".cellar/scratch", ".cellar/scratch/07"):
        os.chown(c.store_path(part), ALICE, ALICE)
        try_start(c, "belongs to user 12001", "chown")
        # looking at the store offline is no trust
        assert c.ctl("verify", c.store).returncode == 0
        os.chown(c.store_path(part), 0, 0)
    c.start()
    assert c.read("f") == b"x"


def test_pool_swapped_while_it_is_served(box):
    """Who owns the directory of the store can put another .cellar in it: nothing is written there, or
    where its links lead, and nothing is read."""
    c = box.cellar(writeback_delay="0s").start()
    c.write("a", b"a")
    c.flush()
    outside = {}
    os.rename(c.store_path(".cellar"), c.store_path("real"))
    for sub in ("", "tmp", "scratch", "lost+found"):
        os.mkdir(c.store_path(".cellar/" + sub))
    for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm", "store.id", "lock", "pool.id"):
        path = os.path.join(box.path, "outside-" + name)
        outside[path] = noise(100, len(name))
        write_file(path, outside[path])
        os.symlink(path, c.store_path(".cellar/" + name))
    for i in range(50):
        c.write(f"d{i}/f", text(20 * KIB, i))
    c.flush()
    c.make_cold("d7/f")
    assert c.read("d7/f") == text(20 * KIB, 7)
    assert c.status()["catalog_degraded"] is None
    c.stop()
    assert {p: read_file(p) for p in outside} == outside
    assert os.listdir(c.store_path(".cellar/tmp")) == []
    run("rm", "-r", c.store_path(".cellar"))
    os.rename(c.store_path("real"), c.store_path(".cellar"))
    c.start()
    assert c.read("d7/f") == text(20 * KIB, 7)


# ---- planted in .cellar and the pool ----


def test_links_in_the_private_directory(box):
    outside = box.dir("outside")
    write_file(os.path.join(outside, "precious"), b"precious")
    c = box.cellar().start()
    c.write("f", text(30 * KIB, 1))
    c.stop()
    private = c.store_path(".cellar")
    os.makedirs(os.path.join(private, "scratch/05"), mode=0o700, exist_ok=True)
    for name, reason in (
        ("scratch/05", "not a directory"),
        ("scratch", "not a directory"),
        ("lost+found", "not a directory"),
        ("tmp", "Too many levels|Not a directory"),
        ("", "not a directory"),
    ):
        path = os.path.join(private, name).rstrip("/")
        os.rename(path, path + ".real")
        os.symlink(outside, path)
        try_start(c, reason)
        os.unlink(path)
        os.rename(path + ".real", path)
    assert os.listdir(outside) == ["precious"]
    c.start()
    assert c.read("f") == text(30 * KIB, 1)


def test_files_in_the_private_directory(box):
    """Fifos do not hang the start, second names are not written to."""
    precious = os.path.join(box.path, "precious")
    write_file(precious, b"precious")
    pool = box.dir("pool")
    c = box.cellar(pool=pool)
    for name in ("pool.self.tmp", "catalog.db", "catalog.db-wal", "catalog.db-shm"):
        os.link(precious, os.path.join(pool, name))
    c.expect("catalog .*set aside|no regular file of ours")
    c.start()
    c.write("f", text(30 * KIB, 1))
    c.stop()
    assert read_file(precious) == b"precious"

    os.symlink(precious, os.path.join(pool, "catalog.db-wal"))
    c.start()
    c.write("g", b"g")
    c.stop()
    os.rename(os.path.join(pool, "catalog.db"), os.path.join(pool, "moved"))
    os.link(os.path.join(pool, "moved"), os.path.join(pool, "catalog.db"))
    c.start().stop()
    assert read_file(precious) == b"precious"

    os.unlink(os.path.join(pool, "clean"))
    for name in ("clean", "pool.self.tmp"):
        os.mkfifo(os.path.join(pool, name))
    os.mkfifo(c.store_path(".cellar/store.id.tmp"))
    c.start()
    assert c.read("f") == text(30 * KIB, 1) and c.read("g") == b"g"
    c.stop()
    for name in ("pool.self", "pool.lock"):
        path = os.path.join(pool, name)
        os.rename(path, path + ".real")
        os.mkfifo(path)
        try_start(c)
        os.unlink(path)
        os.rename(path + ".real", path)
    c.start()
    assert read_file(precious) == b"precious"


def test_planted_scratch(box):
    """Scratch that has another name, owner, mode or type than ours is set aside, never served or
    written; the start does not fail for it."""
    c = box.cellar(writeback_delay="1h").start()
    for name in ("linked", "open", "fine"):
        c.write(name, text(30 * KIB, 3))
    numbers = {n: os.stat(c.path(n)).st_ino for n in ("linked", "open", "fine")}
    c.kill9()
    c.expect("lost.found", "recover", "changed behind")
    c.lost_expected = True
    top = c.store_path(".cellar/scratch")

    def scratch(name):
        return os.path.join(top, "%02x" % (numbers[name] & 0xFF), "%016x" % numbers[name])

    outside = os.path.join(box.path, "outside")
    os.link(scratch("linked"), outside)
    os.chmod(scratch("open"), 0o604)
    shard = os.path.join(top, "33")
    os.makedirs(shard, mode=0o700, exist_ok=True)
    write_file(os.path.join(shard, "n" * 200), b"long")
    write_file(os.path.join(shard, "\x1b[2J"), b"control")
    os.symlink(outside, os.path.join(shard, "0000000000000033"))
    os.mkfifo(os.path.join(shard, "0000000000000133"))
    os.mkdir(os.path.join(shard, "0000000000000233"))
    write_file(os.path.join(shard, "0000000000000333"), b"no record")
    c.start()
    assert c.read("fine") == text(30 * KIB, 3)
    os.truncate(c.path("linked"), 0)
    c.write("linked", b"new")
    c.flush()
    assert read_file(outside) == text(30 * KIB, 3)
    entries = json.loads(c.ctl("recover", "--json", c.mnt).out)["cellars"][0]["lost_and_found"]
    why = [e["why"] for e in entries if e["path"] in ("linked", "open")]
    assert len(why) == 2 and all("another owner" in w for w in why)
    assert len(entries) == 8
    assert "\x1b" not in c.log_text()


def test_hints_lead_nowhere_else(box):
    """A hint is a hint: out of the store, over a link, into .cellar, nothing is read or written."""
    outside = box.dir("outside")
    hints = [b"../outside/x.zst", b".cellar/store.id", b"link/x.zst", b"/etc/passwd", b"..", b"a//b", b"\xff\x1b[m"]
    c = box.cellar(writeback_delay="1h").start()
    os.symlink(outside, c.path("link"))
    for i in range(len(hints)):
        c.write(f"f{i}", text(20 * KIB, i))
    numbers = [os.stat(c.path(f"f{i}")).st_ino for i in range(len(hints))]
    c.kill9()
    private = sorted(os.listdir(c.store_path(".cellar")))
    before = read_file(c.store_path(".cellar/store.id"))
    write_file(os.path.join(outside, "x.zst"), b"precious")
    for number, hint in zip(numbers, hints):
        path = os.path.join(c.store_path(".cellar/scratch"), "%02x/%016x" % (number & 0xFF, number))
        os.setxattr(path, "user.cellar.path", hint)
    c.start()
    for i in range(len(hints)):
        assert c.read(f"f{i}") == text(20 * KIB, i), hints[i]
    wait_for(lambda: c.flush(check=False).returncode == 0, 30, "the search to end")
    for i in range(len(hints)):
        assert c.stored(f"f{i}") == text(20 * KIB, i)
    assert read_file(os.path.join(outside, "x.zst")) == b"precious" and os.listdir(outside) == ["x.zst"]
    assert read_file(c.store_path(".cellar/store.id")).split()[:4] == before.split()[:4]
    assert sorted(os.listdir(c.store_path(".cellar"))) == private
    assert "\x1b" not in c.log_text()


# ---- the store changes while it is looked at ----


def test_directory_swapped_for_a_link(box):
    """Who holds the directory open goes on in it, or gets an error; nothing happens where the link
    leads."""
    outside = box.dir("outside")
    for name in ("f.zst", "g.zst", "e/g.zst"):
        os.makedirs(os.path.dirname(os.path.join(outside, name)), exist_ok=True)
        zstd_make(b"outside", os.path.join(outside, name))

    def all_outside():
        return {
            os.path.join(top, n): (os.lstat(os.path.join(top, n)).st_mode, read_file(os.path.join(top, n)))
            for top, _, names in os.walk(outside)
            for n in names
        }, sorted(os.listdir(outside))

    c = box.cellar(writeback_delay="0s").start()
    c.write("d/f", b"inside")
    c.write("d/e/g", b"inside")
    c.flush()
    before = all_outside()
    dirs = [os.open(c.path(d), os.O_RDONLY) for d in ("d", "d/e")]
    fd = os.open(c.path("d/f"), os.O_RDWR)
    os.stat("f", dir_fd=dirs[0])
    os.rename(c.store_path("d"), c.store_path("moved"))
    os.symlink(outside, c.store_path("d"))
    os.pwrite(fd, b"INSIDE", 0)
    for at in dirs:
        for name in ("f", "g"):

            def opened(flags, name=name, at=at):
                f = os.open(name, flags, 0o666, dir_fd=at)
                data = os.read(f, 100) if flags == os.O_RDONLY else b""
                os.close(f)
                assert b"outside" not in data

            for attempt in (
                lambda: opened(os.O_RDONLY),
                lambda: opened(os.O_WRONLY | os.O_TRUNC),
                lambda: opened(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
                lambda: os.chmod(name, 0o777, dir_fd=at),
                lambda: os.utime(name, (1, 1), dir_fd=at),
                lambda: os.link(name, "linked", src_dir_fd=at, dst_dir_fd=at),
                lambda: os.rename(name, "renamed", src_dir_fd=at, dst_dir_fd=at),
                lambda: os.mkdir("made", dir_fd=at),
                lambda: os.symlink("x", "symlinked", dir_fd=at),
                lambda: os.unlink(name, dir_fd=at),
                lambda: os.listdir(at) and None,
            ):
                errno_of(attempt)
    for f in (*dirs, fd):
        os.close(f)
    c.expect("write.back|flush|object|stale|cannot|behind")
    c.flush(check=False)
    assert all_outside() == before
    c.kill9()
    c.lost_expected = True


def swaps(c, outside):
    """What a file of the store may be swapped for."""
    path = c.object_path("f")
    yield "fifo", lambda: os.mkfifo(path)
    yield "link", lambda: os.symlink(outside, path)
    yield "directory", lambda: os.mkdir(path)
    yield "socket", lambda: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path, "/"))
    if ROOT:
        yield "device", lambda: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))


def test_file_swapped_for_another_thing(box):
    """Fifo, link, directory, socket, device: no hang, no byte of anything else."""
    outside = os.path.join(box.path, "outside.zst")
    zstd_make(b"outside", outside)
    c = box.cellar(writeback_delay="0s").start()
    cwd = os.getcwd()
    c.expect(".")
    for warm in (False, True):
        for what, make in swaps(c, outside):
            c.write("f", b"inside")
            c.flush()
            if not warm:
                c.make_cold("f")
            os.stat(c.path("f"))
            os.unlink(c.object_path("f"))
            os.chdir("/")
            make()
            os.chdir(cwd)

            def use():
                for mode in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
                    try:
                        fd = os.open(c.path("f"), mode | os.O_NONBLOCK | os.O_NOFOLLOW)
                    except OSError:
                        continue
                    if stat.S_ISREG(os.fstat(fd).st_mode) and mode != os.O_WRONLY | os.O_TRUNC:
                        assert os.read(fd, 100) in (b"inside", b""), what
                    os.close(fd)
                errno_of(os.chmod, c.path("f"), 0o700)
                errno_of(os.setxattr, c.path("f"), "user.a", b"b")
                errno_of(os.listdir, c.mnt)

            in_time(use)
            c.ctl("flush", c.mnt, check=False, timeout=30)
            c.ctl("verify", c.mnt, check=False, timeout=30)
            for name in os.listdir(c.store):
                if name != ".cellar":
                    run("rm", "-rf", c.store_path(name))
            wait_for(lambda: c.status()["scratch"]["open"] == 0, what="all closed")
    assert read_file(outside) and c.running
    c.kill9()
    c.lost_expected = True


# ---- bombs ----


def rle_bomb(logical, declare):
    """A zstd frame of RLE blocks: 4 bytes stand for 128 KiB."""
    head = struct.pack("<IB", 0xFD2FB528, 0xC0 if declare else 0)
    head += bytes([(27 - 10) << 3])  # window 2^27
    head += struct.pack("<Q", declare) if declare else b""
    block = struct.pack("<I", (128 * KIB) << 3 | 1 << 1)[:3] + b"A"
    last = struct.pack("<I", 0 << 3 | 1)[:3]
    return head + block * (logical // (128 * KIB)) + last


def bombs(c):
    """Objects that are small and say, or are, much."""
    write_file(c.object_path("declared"), rle_bomb(MIB, 1 << 55))
    write_file(c.object_path("liar"), rle_bomb(64 * MIB, 10))
    write_file(c.object_path("silent"), rle_bomb(64 << 30, 0))
    for name, head in (("zeros", b""), ("skippable", struct.pack("<II", 0x184D2A50, 0xFFFFFF00))):
        write_file(c.object_path(name), head)
        os.truncate(c.object_path(name), 8 << 40)
    for name, count in (("table", (1 << 23) - 1), ("huge-table", (1 << 27) - 1)):
        size = 16 << 30
        length = count * 12 + 9
        with open(c.object_path(name), "wb") as f:
            f.truncate(size)
            f.seek(size - length - 8)
            f.write(struct.pack("<II", 0x184D2A5E, length))
            f.seek(size - 9)
            f.write(struct.pack("<IBI", count, 0x80, 0x8F92EAB1))
    # frames of 60 MiB each, as many as fit the limit of all of them
    write_file(c.object_path("many"), b"".join(rle_bomb(60 * MIB, 60 * MIB) for _ in range(2000)))


def test_bombs(box):
    """They cost what their stored bytes cost, not what they stand for (H5)."""
    c = box.cellar(max_object="256M", pool_size="64M").start()
    c.write("good", text(300 * KIB, 1))
    c.flush()
    bombs(c)
    c.expect("declares|decode|answers|more than|cannot")
    fs = os.statvfs(c.store)
    start = time.monotonic()

    def use():
        for name in sorted(os.listdir(c.mnt)):
            errno_of(os.stat, c.path(name))
            for flags in (os.O_RDONLY, os.O_RDWR):
                try:
                    fd = os.open(c.path(name), flags)
                except OSError as e:
                    assert e.errno in (errno.EFBIG, errno.EUCLEAN, errno.EIO, errno.ENOSPC), name
                    continue
                try:
                    os.read(fd, 100)
                except OSError:
                    pass
                os.close(fd)

    in_time(use, seconds=60)
    assert c.read("good") == text(300 * KIB, 1)
    took = time.monotonic() - start
    if not os.environ.get("CELLAR_TEST_SANITIZER"):
        assert rss_peak(c.pid) < 400 * MIB, rss_peak(c.pid)
    assert took < 60
    used = (fs.f_bavail - os.statvfs(c.store).f_bavail) * fs.f_frsize
    assert used < 2 << 30, f"{used} bytes more of the disk are in use"
    c.ctl("verify", c.mnt, check=False, timeout=120)


@pytest.mark.root
def test_bombs_in_a_small_pool(box):
    """The pool's disk is not filled to the brim by what somebody reads (H5)."""
    image = os.path.join(box.path, "image")
    pool = box.dir("pool")
    with open(image, "wb") as f:
        f.truncate(128 * MIB)
    run("mkfs.ext4", "-q", "-m", "0", image)
    if run("mount", "-o", "loop", image, pool, check=False).returncode:
        pytest.skip("no loop devices here")
    box.cleanups.append(lambda: run("umount", "-l", pool, check=False))
    c = box.cellar(pool=os.path.join(pool, "p")).start()
    c.write("good", noise(2 * MIB, 1))
    write_file(c.object_path("silent"), rle_bomb(4 << 30, 0))
    write_file(c.object_path("said"), rle_bomb(1 << 30, 1 << 30))
    write_file(c.object_path("plain"), b"")
    os.truncate(c.object_path("plain"), 4 << 30)
    c.expect("space|decode|full|fit")
    lowest = [os.statvfs(pool).f_bavail]

    def look():
        # reading passes through memory what does not fit; writing needs all of it
        for name in names:
            for flags in (os.O_RDONLY, os.O_RDWR):
                try:
                    fd = os.open(c.path(name), flags)
                except OSError as e:
                    assert e.errno in (errno.ENOSPC, errno.EIO), (name, e)
                    continue
                assert flags == os.O_RDONLY, f"{name} is open for writing"
                for at in (0, 100 * MIB, 300 * MIB):
                    try:
                        os.pread(fd, 100, at)
                    except OSError as e:
                        assert e.errno in (errno.ENOSPC, errno.EIO), (name, e)
                lowest.append(os.statvfs(pool).f_bavail)
                os.close(fd)

    names = [n for n in os.listdir(c.mnt) if n != "good"]
    assert len(names) == 3
    in_time(look, seconds=80)
    assert min(lowest) > os.statvfs(pool).f_blocks // 200, "the disk was filled to the brim"
    fs = os.statvfs(pool)
    wait_for(lambda: os.statvfs(pool).f_bavail * fs.f_frsize > 80 * MIB, what="room again")
    assert c.read("good") == noise(2 * MIB, 1)
    c.write("more", noise(2 * MIB, 2))
    c.flush()
    assert c.stored("more") == noise(2 * MIB, 2)
    c.stop()


# ---- users ----


@pytest.mark.root
def test_as_unreadable_warm_as_cold(cellar):
    c = cellar
    os.chmod(c.mnt, 0o777)

    def make():
        write_file(c.path("private"), text(40 * KIB, 1))
        os.chmod(c.path("private"), 0o600)

    def bob_reads():
        return errno_of(child, lambda: read_file(c.path("private")) and None, uid=BOB)

    child(make, uid=ALICE)
    assert bob_reads() == errno.EACCES, "dirty"
    fd = os.open(c.path("private"), os.O_RDWR)
    assert bob_reads() == errno.EACCES, "open"
    os.close(fd)
    c.flush()
    assert c.is_warm("private") and bob_reads() == errno.EACCES, "warm"
    c.make_cold("private")
    assert bob_reads() == errno.EACCES, "cold"
    c.remount()
    assert bob_reads() == errno.EACCES, "after a remount"
    # while it is open: what is taken away is away for every new open
    os.chmod(c.path("private"), 0o644)
    fd = os.open(c.path("private"), os.O_RDONLY)
    assert bob_reads() == 0
    os.chmod(c.path("private"), 0o600)
    assert bob_reads() == errno.EACCES
    if subprocess.run(["setfacl", "-m", f"u:{BOB}:r", c.path("private")], check=False).returncode == 0:
        assert bob_reads() == 0
        subprocess.run(["setfacl", "-x", f"u:{BOB}", c.path("private")], check=True)
        assert bob_reads() == errno.EACCES
    os.close(fd)
    # nor by the way of the pool or of the store
    number = os.stat(c.path("private")).st_ino
    scratch = c.store_path(".cellar/scratch/%02x/%016x" % (number & 0xFF, number))
    for path in (scratch, c.object_path("private"), c.store_path(".cellar/catalog.db")):
        assert errno_of(child, lambda p=path: read_file(p) and None, uid=BOB) == errno.EACCES, path


@pytest.mark.root
def test_object_swapped_by_the_owner_of_its_directory(box):
    """Who may rename in the store does not get at what he may not read: what was looked at must be
    what is opened."""
    c = box.cellar(writeback_delay="0s").start()
    os.mkdir(c.path("d"))
    os.chown(c.path("d"), ALICE, ALICE)
    c.write("d/secret", b"root's secret")
    os.chmod(c.path("d/secret"), 0o600)
    child(lambda: write_file(c.path("d/mine"), b"mine"), uid=ALICE)
    c.flush()
    c.make_cold("d/mine", "d/secret")
    os.stat(c.path("d/mine"))

    def swap_and_use():
        os.rename(c.store_path("d/secret.zst"), c.store_path("d/mine.zst"))
        got = []
        for use in (
            lambda: read_file(c.path("d/mine")),
            lambda: os.chmod(c.path("d/mine"), 0o666),
            lambda: write_file(c.path("d/mine"), b"x"),
            lambda: os.chmod(c.path("d/secret"), 0o666),
            lambda: read_file(c.path("d/secret")),
        ):
            try:
                answer = use()
                got.append(answer.decode() if answer else "done")
            except OSError as e:
                got.append(errno.errorcode[e.errno])
        return got

    got = child(swap_and_use, uid=ALICE)
    assert "root's secret" not in got, got
    c.flush(check=False)
    st = os.stat(c.store_path("d/mine.zst"))
    assert (st.st_uid, stat.S_IMODE(st.st_mode)) == (0, 0o600), got
    assert c.read("d/mine") == b"root's secret"


def test_mount_options_of_users(box):
    """nosuid,nodev for ordinary users; whoever is root mounts like any filesystem."""
    c = box.cellar().start()
    out = run("findmnt", "-n", "-o", "OPTIONS,FSTYPE", "--mountpoint", c.mnt).out
    assert "fuse.cellar" in out and "default_permissions" in out
    assert ("allow_other" in out) == ROOT
    if ROOT:
        assert "nosuid" not in out and "nodev" not in out
        return
    assert "nosuid" in out and "nodev" in out
    c.stop()
    for word in ("suid", "dev"):
        done = run(CELLARD, "-o", word, c.store, c.mnt, check=False)
        if done.returncode == 0:
            out = run("findmnt", "-n", "-o", "OPTIONS", "--mountpoint", c.mnt).out
            assert "nosuid" in out and "nodev" in out, word
            c.umount()
            wait_for(lambda: not os.path.ismount(c.mnt), what="the end")


@pytest.mark.root
def test_setuid_is_refused(box):
    program = os.path.join(box.path, "cellard")
    run("cp", CELLARD, program)
    os.chmod(program, 0o4755)

    def start():
        done = subprocess.run([program, "--help"], capture_output=True, check=False)
        return [done.returncode, done.stderr.decode()]

    status, err = child(start, uid=ALICE)
    assert status == 1 and "setuid" in err


# ---- the control socket ----


@pytest.mark.root
def test_fallback_directory_in_tmp(box):
    """A directory in /tmp that somebody else made first is not used, nor a link."""
    uid = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants a name
    path = f"/tmp/cellar-{uid}"
    os.chmod("/dev/fuse", 0o666)
    if os.path.lexists(path):
        pytest.skip("somebody else's tests use it now")
    home = box.dir("home")
    os.chown(home, uid, uid)

    def start():
        done = subprocess.run(
            [CELLARD, f"{home}/store", f"{home}/mnt"],
            env={"PATH": os.environ["PATH"], "HOME": home},
            capture_output=True, check=False, timeout=60,
        )
        return [done.returncode, done.stderr.decode()]

    child(lambda: os.mkdir(f"{home}/mnt"), uid=uid)
    box.cleanups.append(lambda: run("rm", "-rf", path, check=False))
    os.mkdir(path, 0o777)
    status, err = child(start, uid=uid)
    assert status == 1 and "belongs to user 0" in err, err
    os.rmdir(path)
    os.symlink(home, path)
    status, err = child(start, uid=uid)
    assert status == 1 and path in err, err
    os.unlink(path)
    # cellarctl does not go into another's directory either: a socket that never answers
    os.mkdir(path, 0o777)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path + "/1.sock")
    os.chmod(path + "/1.sock", 0o777)
    sock.listen(1)
    os.chown(path, ALICE, ALICE)

    def ask():
        return subprocess.run(
            [CELLARCTL, "status"], env={"PATH": os.environ["PATH"]}, capture_output=True,
            check=False, timeout=60,
        ).returncode

    begin = time.monotonic()
    assert child(ask, uid=uid) in (0, 3)  # 0: of a daemon in /run, another test's
    assert time.monotonic() - begin < 2
    sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        sock.accept()
    sock.close()


def open_at(pid, what):
    """How many descriptors of a process lead to it (a file, or "socket:"). All of them together
    tell nothing: every thread that serves the kernel has a pipe, and their number follows the load."""

    def leads_there(fd):
        try:
            return os.readlink(f"/proc/{pid}/fd/{fd}").startswith(what)
        except FileNotFoundError:
            return False  # closed meanwhile

    return sum(leads_there(fd) for fd in os.listdir(f"/proc/{pid}/fd"))


def test_many_clients_and_slow_ones(cellar):
    """Connections that are held, that drip and that send garbage cost little; who may do everything
    gets through; everything is given back."""
    c = cellar
    path = socket_of(c)
    before = open_at(c.pid, "socket:")
    held = []

    def occupy(uid):
        opened = refused = 0
        for i in range(100):
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(20)
            s.connect(path)
            if b"too many" in s.recv(65536):
                refused += 1
                s.close()
                continue
            opened += 1
            s.sendall(b'{"version":1,'[: i % 13])
            held.append(s)
        if uid:
            answer = talk_as_root_is_possible()
            return [opened, refused, answer]
        return [opened, refused, 0]

    def talk_as_root_is_possible():
        # the parent asks while we hold ours: told by a pipe
        os.write(told[1], b"x")
        os.read(go[0], 1)
        return 1

    if ROOT:
        told, go = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setresgid(ALICE, ALICE, ALICE)
                os.setresuid(ALICE, ALICE, ALICE)
                opened, refused, _ = occupy(ALICE)
                os._exit(0 if (opened, refused) == (48, 52) else 1)
            except BaseException:  # pylint: disable=broad-except
                os._exit(2)
        assert os.read(told[0], 1) == b"x"
        assert c.status()["pid"] == c.pid, "root gets through"
        with open(f"/proc/{c.pid}/status", encoding="utf-8") as f:
            assert int(re.search(r"Threads:\s+(\d+)", f.read()).group(1)) < 150
        os.write(go[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    else:
        opened, refused, _ = occupy(0)
        assert (opened, refused) == (64, 36)
        for s in held:
            s.close()
    wait_for(lambda: open_at(c.pid, "socket:") <= before, what="descriptors to be given back")
    for rubbish in (b"\0" * 300000, noise(200000, 1), b"[" * 200000 + b"\n", b"{}" * 100000 + b"\n"):
        try:
            talk(path, rubbish)
        except (BrokenPipeError, ConnectionResetError, json.JSONDecodeError):
            pass
    # descriptors that nobody asked for are not kept
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    passed = os.path.join(c.box.dir("passed"), "file")
    with open(passed, "wb") as f:
        fds = array.array("i", [f.fileno()] * 200)
        for _ in range(20):
            s.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    assert c.status()["pid"] == c.pid
    assert open_at(c.pid, passed) <= 1
    s.close()


@pytest.mark.root
def test_others_learn_no_paths(box):
    """Counters, and no path but those that the mount table tells anyway."""
    c = box.cellar(writeback_delay="1h", pool=box.dir("secret-pool")).start()
    os.chmod(c.mnt, 0o777)
    c.write("secret-name", b"x")
    c.lost_expected = True
    write_file(os.path.join(c.pool_dir(), "lost+found/secret-lost"), b"x")
    number = os.stat(c.path("secret-name")).st_ino
    path = socket_of(c)

    def ask():
        return [
            talk(path, {"version": 1, "command": "status"}),
            talk(path, {"version": 1, "command": "flush", "inodes": [number]}),
            talk(path, {"version": 1, "command": "flush", "inodes": [1]}),
            talk(path, {"version": 1, "command": "verify", "inodes": [number]}),
            talk(path, {"version": 1, "command": "compact", "inodes": [number]}),
            talk(path, {"version": 1, "command": "evict", "inodes": [number]}),
            talk(path, {"version": 1, "command": "umount"}),
        ]

    status, *rest = child(ask, uid=ALICE)
    assert "secret" not in json.dumps([status, *rest])
    assert status[-1]["result"]["lost_and_found"] == []
    for flushed in rest[:2]:
        assert flushed[-1]["result"]["failed"] == 1
    for refused in rest[2:]:
        assert refused[-1].get("errno") == "EPERM", refused
    assert c.status()["scratch"]["dirty"] == 1


# ---- names and attributes ----


def test_log_and_output_are_clean(box):
    """Whatever names say, no line of the log or of cellarctl drives a terminal or forges a line."""
    evil = b"a\x1b]0;x\x07\ncellard: error: forged\r\xc2\x9b2J"
    c = box.cellar(writeback_delay="1h").start()
    c.write(evil, text(10 * KIB, 1))
    c.flush()
    path = c.object_path(evil)
    raw = bytearray(read_file(path))
    raw[len(raw) // 3] ^= 0xFF
    write_file(path, raw)
    errno_of(read_file, c.path(evil))
    os.mkdir(c.path(b"dir" + evil))
    write_file(c.path(b"dir" + evil + b"/f"), b"x")
    outputs = [c.ctl(*a, check=False) for a in (("verify", c.mnt), ("status",), ("flush",), ("recover",))]
    outputs.append(c.ctl("evict", c.path(evil), check=False))
    c.expect("decode|damage|frame|forged")
    for out in [c.log_text()] + [d.out + d.err for d in outputs]:
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]", out), repr(out)
        assert not re.search(r"^cellard: error: forged", out, re.MULTILINE)


def test_hostile_xattrs_on_objects(box):
    """What somebody planted on an object changes nothing in cellar's own knowledge."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("f", text(30 * KIB, 1))
    c.flush()
    c.make_cold("f")
    path = c.object_path("f")
    os.setxattr(path, "user.cellar.record", b"CLRR" + b"\1" * 124)
    os.setxattr(path, "user.cellar.path", b"../../etc/passwd")
    os.setxattr(path, "user.cellar.why", b"because")
    os.setxattr(path, "user." + "n" * 240, noise(1000, 1))
    names = os.listxattr(c.path("f"))
    assert names == ["user." + "n" * 240]
    for call in (
        lambda: os.setxattr(c.path("f"), "user.cellar.record", b"x"),
        lambda: os.removexattr(c.path("f"), "user.cellar.path"),
    ):
        assert errno_of(call) == errno.EPERM
    with open(c.path("f"), "ab") as f:
        f.write(b"more")
    c.flush()
    c.remount()
    assert c.read("f") == text(30 * KIB, 1) + b"more"
    assert os.listxattr(c.path("f")) == names


def test_messages_are_clean(box):
    """What cellard says before it serves goes to a terminal: without control characters."""
    mnt = box.dir("mnt")
    evil = os.path.join(box.path, "no\x1b]0;evil\x07/store")
    for argv in ([], ["-f"]):
        done = run(CELLARD, *argv, evil, mnt, check=False, timeout=60)
        assert done.returncode == 1 and "evil" in done.err
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.err), repr(done.err)
