"""Locks between processes, mappings, and programs that are run from the mount."""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import signal
import struct
import subprocess

import pytest

from harness import KIB, MIB, child, errno_of, read_file, reap, spawn, text, wait_for, write_file

F_OFD_SETLK, F_OFD_SETLKW, F_OFD_GETLK = 37, 38, 36


def flock_struct(kind, start=0, length=0):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def try_lock(path, how, start=0, length=0, exclusive=True):
    """Whether another process gets the lock at once."""

    def attempt():
        fd = os.open(path, os.O_RDWR)
        if how == "flock":
            kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            return errno_of(fcntl.flock, fd, kind | fcntl.LOCK_NB)
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        command = fcntl.F_SETLK if how == "posix" else F_OFD_SETLK
        return errno_of(fcntl.fcntl, fd, command, flock_struct(kind, start, length))

    got = child(attempt)
    assert got in (0, errno.EAGAIN, errno.EACCES), errno.errorcode.get(got)
    return got == 0


def take(fd, how, start=0, length=0, exclusive=True):
    if how == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    else:
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        fcntl.fcntl(
            fd,
            fcntl.F_SETLKW if how == "posix" else F_OFD_SETLKW,
            flock_struct(kind, start, length),
        )


@pytest.mark.parametrize("how", ["flock", "posix", "ofd"])
def test_locks(plain, how):
    """Exclusive and shared, over a flush and the file's replacement in the store, to the last
    close of who holds it."""
    path = plain.write("f", text(10 * KIB, 1))
    fd = os.open(path, os.O_RDWR)
    take(fd, how)
    assert not try_lock(path, how) and not try_lock(path, how, exclusive=False)
    os.pwrite(fd, b"new object", 0)
    plain.flush()
    assert not try_lock(path, how), "a flush drops no lock"
    take(fd, how, exclusive=False)
    assert try_lock(path, how, exclusive=False) and not try_lock(path, how)
    os.close(fd)
    assert try_lock(path, how)


@pytest.mark.parametrize("how", ["posix", "ofd"])
def test_ranges(plain, how):
    path = plain.write("f", bytes(1000))
    fd = os.open(path, os.O_RDWR)
    take(fd, how, 100, 50)
    take(fd, how, 1 << 40, 10)
    for start, length, free in ((0, 100, True), (149, 1, False), (150, 0, False), (150, 100, True)):
        assert try_lock(path, how, start, length) == free, (start, length)
    got = child(
        lambda: list(
            struct.unpack(
                "hhqqi4x",
                fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_GETLK, flock_struct(fcntl.F_WRLCK)),
            )[:4]
        )
    )
    assert got == [fcntl.F_WRLCK, os.SEEK_SET, 100, 50]
    fcntl.fcntl(
        fd,
        fcntl.F_SETLK if how == "posix" else F_OFD_SETLK,
        flock_struct(fcntl.F_UNLCK, 100, 20),
    )
    assert try_lock(path, how, 100, 20) and not try_lock(path, how, 120, 1)
    os.close(fd)


def test_posix_locks_go_with_any_close(plain):
    """And OFD locks do not: what databases work around, as it is everywhere."""
    path = plain.write("f", b"x")
    for how, kept in (("posix", False), ("ofd", True)):
        fd = os.open(path, os.O_RDWR)
        take(fd, how)
        os.close(os.open(path, os.O_RDONLY))
        assert try_lock(path, how) != kept, how
        os.close(fd)


@pytest.mark.parametrize("how", ["flock", "posix", "ofd"])
def test_waiting_and_dying(plain, how):
    """A waiter gets the lock when its holder is killed."""
    path = plain.write("f", b"x")
    r, w = os.pipe()

    def hold():
        fd = os.open(path, os.O_RDWR)
        take(fd, how)
        os.write(w, b"h")
        signal.pause()

    def want():
        fd = os.open(path, os.O_RDWR)
        os.write(w, b"w")
        take(fd, how)

    holder = spawn(hold)
    assert os.read(r, 1) == b"h"
    waiter = spawn(want)
    assert os.read(r, 1) == b"w"
    assert os.waitpid(waiter, os.WNOHANG) == (0, 0)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert reap(waiter, 30) == 0
    os.close(r)
    os.close(w)


# ---- mappings ----


def test_shared_mapping_between_processes(plain):
    """One writes, the other sees it without any call in between; flush sees both."""
    path = plain.write("f", bytes(256 * KIB))
    plain.make_cold("f")
    go, done = os.pipe(), os.pipe()

    def other():
        with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
            m[5000:5005] = b"other"
            os.write(done[1], b"x")
            os.read(go[0], 1)
            assert m[70000:70004] == b"mine"

    pid = spawn(other)
    os.read(done[0], 1)
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        assert m[5000:5005] == b"other"
        m[70000:70004] = b"mine"
        os.write(go[1], b"x")
        assert reap(pid) == 0
        m.flush()
    plain.flush()
    want = bytearray(256 * KIB)
    want[5000:5005], want[70000:70004] = b"other", b"mine"
    assert plain.stored("f") == want
    for fd in go + done:
        os.close(fd)


def test_private_mapping_stays_private(plain):
    data = text(100 * KIB, 1)
    path = plain.write("f", data)
    plain.make_cold("f")
    with open(path, "r+b") as f:
        m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    m[0:7] = b"private"
    assert plain.read("f") == data
    plain.flush()
    assert plain.stored("f") == data and m[0:7] == b"private"
    m.close()
    plain.make_cold("f")
    assert plain.read("f") == data


def test_bus_error_behind_the_end(plain):
    """A mapping of what was cut off is SIGBUS, and nothing else happens to the daemon."""
    path = plain.write("f", text(64 * KIB, 1))

    def touch():
        libc = ctypes.CDLL(None)
        fd = os.open(path, os.O_RDWR)
        m = mmap.mmap(fd, 64 * KIB)
        os.ftruncate(fd, 4096)
        at = ctypes.addressof(ctypes.c_char.from_buffer(m))
        libc.memcpy(ctypes.create_string_buffer(1), ctypes.c_void_p(at + 20000), 1)

    assert reap(spawn(touch)) == -signal.SIGBUS
    assert plain.read("f") == text(64 * KIB, 1)[:4096]


# ---- running programs ----


def test_text_busy(plain):
    """What runs cannot be written, and can be replaced."""
    path = plain.path("sleep")
    shutil.copy("/bin/sleep", path)
    plain.make_cold("sleep")
    with subprocess.Popen([path, "1000"]) as p:
        try:
            wait_for(lambda: os.readlink(f"/proc/{p.pid}/exe") == path, what="it to run")
            assert errno_of(os.open, path, os.O_WRONLY) == errno.ETXTBSY
            plain.flush()
            assert errno_of(os.open, path, os.O_RDWR) == errno.ETXTBSY, "also after a flush"
            assert plain.evict("sleep", check=False).returncode == 1, "it is in use"
            shutil.copy("/bin/cat", plain.path("new"))
            os.rename(plain.path("new"), path)
            assert read_file(path) == read_file("/bin/cat")
            assert p.poll() is None
        finally:
            p.kill()
    fd = os.open(path, os.O_RDWR)
    assert errno_of(subprocess.run, [path], check=True) == errno.ETXTBSY
    os.close(fd)
    assert subprocess.run([path], input=b"x", capture_output=True, check=True).stdout == b"x"


def test_shared_library_from_the_mount(plain):
    """dlopen maps private and executable."""
    source = os.path.join(plain.box.path, "lib.c")
    write_file(source, b"int answer(void) { return 42; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", plain.path("lib.so"), source], check=True)
    plain.make_cold("lib.so")
    assert child(lambda: ctypes.CDLL(plain.path("lib.so")).answer()) == 42
    assert os.stat(plain.path("lib.so")).st_size < MIB
