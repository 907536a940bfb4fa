"""Every call on every kind of wrong argument, on the mount and on a directory of the
filesystem beneath, side by side: the same errno, and the same tree afterwards.

The tables are made from the man pages. What is known to differ is in DIFFERS, with the reason;
an entry there that differs no longer fails too."""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat

import pytest

from harness import (
    FALLOC_COLLAPSE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    MODES,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT,
    SOAK,
    child,
    fallocate,
    renameat2,
    write_file,
)

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_REMOVEDIR = 0x200
NOBODY = 65534

# ---- the tree ----


def remove(top):
    """Also what its owner has shut himself out of."""
    os.chmod(os.path.dirname(top), 0o777)
    if os.path.isdir(top):
        os.chmod(top, 0o700)
    for where, dirs, _ in os.walk(top):
        for name in dirs:
            if not os.path.islink(os.path.join(where, name)):
                os.chmod(os.path.join(where, name), 0o700)
    shutil.rmtree(top, ignore_errors=True)


def build(top):
    remove(top)
    os.mkdir(top)
    os.chmod(top, 0o777)
    for name, mode in (("f", 0o666), ("g", 0o644), ("private", 0o600), ("none-may", 0)):
        write_file(f"{top}/{name}", name.encode() * 20)
        os.chmod(f"{top}/{name}", mode)
    write_file(f"{top}/empty", b"")
    os.mkdir(f"{top}/d")
    write_file(f"{top}/d/in", b"in")
    os.chmod(f"{top}/d", 0o777)
    for name, mode in (("e", 0o777), ("shut", 0o700), ("sticky", 0o1777)):
        os.mkdir(f"{top}/{name}")
        os.chmod(f"{top}/{name}", mode)
    write_file(f"{top}/shut/in", b"in")
    write_file(f"{top}/sticky/in", b"in")
    os.link(f"{top}/f", f"{top}/f-again")
    os.symlink("f", f"{top}/l")
    os.symlink("d", f"{top}/ld")
    os.symlink("nothing", f"{top}/dangling")
    os.symlink("loop", f"{top}/loop")
    os.mkfifo(f"{top}/p", 0o666)


PATHS = (
    "f f-again empty private none-may d e shut ld l dangling loop p none f/ f/x l/ l/x d/ d/. d/.. d/in "
    "d/in/.. d/none ld/in none/x dangling/x loop/x p/x shut/in shut/none sticky/in . .. ./f ../top/f"
).split() + ["", "n" * 256, "n" * 256 + "/x", "d/" * 2048 + "in", "e/" + "n" * 256]
# for calls with two paths
PAIRS = "f f-again g d e l ld dangling loop p none f/ d/ d/in e/new none/x f/x d/. sticky/in shut/in".split()


def look(top):
    """What is in the tree: names, types, modes, sizes, links, contents of links."""
    seen = {}
    for where, dirs, names in os.walk(top):
        for name in dirs + names:
            path = os.path.join(where, name)
            try:
                st = os.lstat(path)
            except PermissionError:  # an owner who has shut himself out (README, Limits)
                continue
            size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
            links = 0 if stat.S_ISDIR(st.st_mode) else st.st_nlink
            to = os.readlink(path) if stat.S_ISLNK(st.st_mode) else ""
            seen[path[len(top) :]] = (oct(st.st_mode), size, links, to, st.st_uid, st.st_gid)
    return seen


# ---- calls ----


def check(result):
    if result < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return result


def syscall(number, *args):
    return check(libc.syscall(ctypes.c_long(number), *args))


def opened(path, flags, mode=0o644):
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode))


O_TMPFILE = os.O_TMPFILE

ONE_PATH = {
    "stat": os.stat,
    "lstat": os.lstat,
    "open r": lambda p: opened(p, os.O_RDONLY),
    "open w": lambda p: opened(p, os.O_WRONLY),
    "open rw": lambda p: opened(p, os.O_RDWR),
    "open rw trunc": lambda p: opened(p, os.O_RDWR | os.O_TRUNC),
    "open r trunc": lambda p: opened(p, os.O_RDONLY | os.O_TRUNC),
    "open append": lambda p: opened(p, os.O_WRONLY | os.O_APPEND),
    "open creat": lambda p: opened(p, os.O_RDWR | os.O_CREAT),
    "open creat r": lambda p: opened(p, os.O_RDONLY | os.O_CREAT, 0),
    "open creat excl": lambda p: opened(p, os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "open creat trunc": lambda p: opened(p, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "open creat directory": lambda p: opened(p, os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY),
    "open creat nofollow": lambda p: opened(p, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW),
    "open directory": lambda p: opened(p, os.O_RDONLY | os.O_DIRECTORY),
    "open directory w": lambda p: opened(p, os.O_WRONLY | os.O_DIRECTORY),
    "open nofollow": lambda p: opened(p, os.O_RDONLY | os.O_NOFOLLOW),
    "open path": lambda p: opened(p, os.O_PATH),
    "open noatime": lambda p: opened(p, os.O_RDONLY | os.O_NOATIME),
    "open direct": lambda p: opened(p, os.O_RDONLY | os.O_DIRECT),
    "open accmode 3": lambda p: opened(p, os.O_ACCMODE),
    "truncate 5": lambda p: os.truncate(p, 5),
    "truncate -1": lambda p: check(libc.truncate(os.fsencode(p), ctypes.c_int64(-1))),
    "truncate huge": lambda p: os.truncate(p, 1 << 62),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": lambda p: os.mkdir(p, 0o755),
    "mkfifo": lambda p: os.mkfifo(p, 0o600),
    "mknod file": lambda p: os.mknod(p, stat.S_IFREG | 0o600),
    "mknod socket": lambda p: os.mknod(p, stat.S_IFSOCK | 0o600),
    "mknod directory": lambda p: os.mknod(p, stat.S_IFDIR | 0o600),
    "mknod nonsense": lambda p: os.mknod(p, 0o130600),
    "mknod null": lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "symlink": lambda p: os.symlink("somewhere", p),
    "symlink empty": lambda p: os.symlink("", p),
    "symlink long": lambda p: os.symlink("t" * 4096, p),
    "readlink": os.readlink,
    "readlink 0": lambda p: check(libc.readlink(os.fsencode(p), ctypes.create_string_buffer(1), 0)),
    "chmod": lambda p: os.chmod(p, 0o640),
    "chmod suid": lambda p: os.chmod(p, 0o6755),
    "chown": lambda p: os.chown(p, 1, 1),
    "chown nothing": lambda p: os.chown(p, -1, -1),
    "lchown": lambda p: os.chown(p, 1, 1, follow_symlinks=False),
    "utime now": os.utime,
    "utime": lambda p: os.utime(p, (5, 5)),
    "utime link": lambda p: os.utime(p, (5, 5), follow_symlinks=False),
    "utime nonsense": lambda p: utimensat(p, 10**9),
    "access r": lambda p: access(p, os.R_OK),
    "access w": lambda p: access(p, os.W_OK),
    "access x": lambda p: access(p, os.X_OK),
    "access nonsense": lambda p: access(p, 8),
    "listdir": os.listdir,
    "chdir": lambda p: libc_chdir_and_back(p),
    "statvfs": os.statvfs,
    "exec": lambda p: os.execv(p, ["x"]),
    "link to new": lambda p: os.link(p, os.path.join(HERE[0], "new"), follow_symlinks=False),
    "link followed": lambda p: os.link(p, os.path.join(HERE[0], "new"), follow_symlinks=True),
    "rename to new": lambda p: os.rename(p, os.path.join(HERE[0], "new")),
    "rename to itself": lambda p: os.rename(p, p),
    "unlinkat nonsense": lambda p: check(libc.unlinkat(AT_FDCWD, os.fsencode(p), 0x400000)),
    "unlinkat removedir": lambda p: check(libc.unlinkat(AT_FDCWD, os.fsencode(p), AT_REMOVEDIR)),
    "setxattr user": lambda p: os.setxattr(p, "user.a", b"1"),
    "setxattr user link": lambda p: os.setxattr(p, "user.a", b"1", follow_symlinks=False),
    "setxattr trusted": lambda p: os.setxattr(p, "trusted.a", b"1"),
    "setxattr security": lambda p: os.setxattr(p, "security.a", b"1"),
    "setxattr unknown": lambda p: os.setxattr(p, "nonsense.a", b"1"),
    "setxattr no prefix": lambda p: os.setxattr(p, "a", b"1"),
    "setxattr prefix only": lambda p: os.setxattr(p, "user.", b"1"),
    "setxattr no name": lambda p: os.setxattr(p, "", b"1"),
    "setxattr long": lambda p: os.setxattr(p, "user." + "a" * 252, b"1"),
    "setxattr big": lambda p: os.setxattr(p, "user.a", bytes(65537)),
    "setxattr replace": lambda p: os.setxattr(p, "user.a", b"1", os.XATTR_REPLACE),
    "setxattr nonsense": lambda p: os.setxattr(p, "user.a", b"1", 8),
    "setxattr acl": lambda p: os.setxattr(p, "system.posix_acl_access", b"\x02\0\0\0nonsense"),
    "setxattr default acl": lambda p: os.setxattr(p, "system.posix_acl_default", b"\x02\0\0\0"),
    "getxattr": lambda p: os.getxattr(p, "user.a"),
    "getxattr acl": lambda p: os.getxattr(p, "system.posix_acl_access"),
    "getxattr trusted": lambda p: os.getxattr(p, "trusted.a"),
    "getxattr unknown": lambda p: os.getxattr(p, "nonsense.a"),
    "getxattr long": lambda p: os.getxattr(p, "user." + "a" * 252),
    "removexattr": lambda p: os.removexattr(p, "user.a"),
    "removexattr trusted": lambda p: os.removexattr(p, "trusted.a"),
    "removexattr acl": lambda p: os.removexattr(p, "system.posix_acl_access"),
    "listxattr": lambda p: os.listxattr(p),
}

TWO_PATHS = {
    "rename": os.rename,
    "rename noreplace": lambda a, b: renameat2(a, b, RENAME_NOREPLACE),
    "rename exchange": lambda a, b: renameat2(a, b, RENAME_EXCHANGE),
    "rename both": lambda a, b: renameat2(a, b, RENAME_EXCHANGE | RENAME_NOREPLACE),
    "rename nonsense": lambda a, b: renameat2(a, b, 1 << 10),
    "link": lambda a, b: os.link(a, b, follow_symlinks=False),
}

HERE = [""]  # the tree that is worked on


def access(path, mode):
    check(libc.access(os.fsencode(path), mode))


def utimensat(path, nsec):
    times = (ctypes.c_long * 4)(0, 0, 0, nsec)
    check(libc.utimensat(AT_FDCWD, os.fsencode(path), ctypes.byref(times), 0))


def libc_chdir_and_back(path):
    here = os.getcwd()
    os.chdir(path)
    os.chdir(here)


# ---- on descriptors: (path, flags, call) ----


def mapped(fd, prot, length=4096, flags=mmap.MAP_SHARED):
    mmap.mmap(fd, length, flags=flags, prot=prot).close()


def raw_mmap(fd, length, prot, offset=0):
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, ctypes.c_size_t(length), prot, mmap.MAP_SHARED, fd, ctypes.c_int64(offset))
    if at == ctypes.c_void_p(-1).value:
        check(-1)


def with_other(path, flags, call):
    fd = os.open(os.path.join(HERE[0], path), flags)
    try:
        return call(fd)
    finally:
        os.close(fd)


def copy_range(fd_in, fd_out, count, off_in=0, off_out=0, flags=0):
    a, b = ctypes.c_int64(off_in), ctypes.c_int64(off_out)
    check(
        libc.copy_file_range(
            fd_in, ctypes.byref(a), fd_out, ctypes.byref(b), ctypes.c_size_t(count), flags
        )
    )


R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
N = os.O_NONBLOCK
BIG = (1 << 63) - 1

ON_FD = {
    "read of a directory": ("d", R, lambda fd: os.read(fd, 10)),
    "read w": ("f", W, lambda fd: os.read(fd, 10)),
    "read path": ("f", os.O_PATH, lambda fd: os.read(fd, 10)),
    "write r": ("f", R, lambda fd: os.write(fd, b"x")),
    "write to a directory": ("d", R, lambda fd: os.write(fd, b"x")),
    "pread -1": ("f", R, lambda fd: os.pread(fd, 10, -1)),
    "pread at the end of all": ("f", R, lambda fd: os.pread(fd, 10, BIG)),
    "pread of a fifo": ("p", R | N, lambda fd: os.pread(fd, 10, 0)),
    "pwrite -1": ("f", RW, lambda fd: os.pwrite(fd, b"x", -1)),
    "pwrite at the end of all": ("f", RW, lambda fd: os.pwrite(fd, b"x", BIG)),
    "pwrite far": ("f", RW, lambda fd: os.pwrite(fd, b"x", 1 << 62)),
    "write fault": ("f", RW, lambda fd: check(libc.write(fd, ctypes.c_void_p(8), ctypes.c_size_t(10)))),
    "read fault": ("f", RW, lambda fd: check(libc.read(fd, ctypes.c_void_p(8), ctypes.c_size_t(10)))),
    "write of nothing": ("f", RW, lambda fd: os.write(fd, b"")),
    "seek nonsense": ("f", R, lambda fd: os.lseek(fd, 0, 17)),
    "seek -1": ("f", R, lambda fd: os.lseek(fd, -1, os.SEEK_SET)),
    "seek before": ("f", R, lambda fd: os.lseek(fd, -1000, os.SEEK_END)),
    "seek over": ("f", R, lambda fd: os.lseek(fd, BIG, os.SEEK_END)),
    "seek of a fifo": ("p", R | N, lambda fd: os.lseek(fd, 0, os.SEEK_SET)),
    "seek data at end": ("f", R, lambda fd: os.lseek(fd, 20, os.SEEK_DATA)),
    "seek data behind": ("f", R, lambda fd: os.lseek(fd, 21, os.SEEK_DATA)),
    "seek data -1": ("f", R, lambda fd: os.lseek(fd, -1, os.SEEK_DATA)),
    "seek data w": ("f", W, lambda fd: os.lseek(fd, 0, os.SEEK_DATA)),
    "seek hole at end": ("f", R, lambda fd: os.lseek(fd, 20, os.SEEK_HOLE)),
    "seek hole -1": ("f", R, lambda fd: os.lseek(fd, -1, os.SEEK_HOLE)),
    "seek hole empty": ("empty", R, lambda fd: os.lseek(fd, 0, os.SEEK_HOLE)),
    "seek data directory": ("d", R, lambda fd: os.lseek(fd, 1 << 40, os.SEEK_DATA)),
    "ftruncate r": ("f", R, lambda fd: os.ftruncate(fd, 5)),
    "ftruncate -1": ("f", RW, lambda fd: check(libc.ftruncate(fd, ctypes.c_int64(-1)))),
    "ftruncate directory": ("d", R, lambda fd: os.ftruncate(fd, 5)),
    "ftruncate fifo": ("p", RW | N, lambda fd: os.ftruncate(fd, 5)),
    "ftruncate far": ("f", RW, lambda fd: os.ftruncate(fd, 1 << 62)),
    "ftruncate path": ("f", os.O_PATH, lambda fd: os.ftruncate(fd, 5)),
    "fsync directory": ("d", R, os.fsync),
    "fsync fifo": ("p", RW | N, os.fsync),
    "fsync path": ("f", os.O_PATH, os.fsync),
    "fdatasync r": ("f", R, os.fdatasync),
    "fallocate r": ("f", R, lambda fd: fallocate(fd, 0, 0, 10)),
    "fallocate 0": ("f", RW, lambda fd: fallocate(fd, 0, 0, 0)),
    "fallocate -1": ("f", RW, lambda fd: fallocate(fd, 0, -1, 10)),
    "fallocate length -1": ("f", RW, lambda fd: fallocate(fd, 0, 0, -1)),
    "fallocate far": ("f", RW, lambda fd: fallocate(fd, 0, 1 << 62, 1 << 62)),
    "fallocate directory": ("d", R, lambda fd: fallocate(fd, 0, 0, 10)),
    "fallocate fifo": ("p", RW | N, lambda fd: fallocate(fd, 0, 0, 10)),
    "fallocate nonsense": ("f", RW, lambda fd: fallocate(fd, 1 << 12, 0, 10)),
    "punch without keep": ("f", RW, lambda fd: fallocate(fd, FALLOC_PUNCH_HOLE, 0, 10)),
    "punch": ("f", RW, lambda fd: fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 10)),
    "punch and zero": (
        "f",
        RW,
        lambda fd: fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, 0, 10),
    ),
    "zero range": ("f", RW, lambda fd: fallocate(fd, FALLOC_ZERO_RANGE, 5, 10)),
    "collapse": ("f", RW, lambda fd: fallocate(fd, FALLOC_COLLAPSE, 0, 4096)),
    "collapse and keep": ("f", RW, lambda fd: fallocate(fd, FALLOC_COLLAPSE | FALLOC_KEEP_SIZE, 0, 4096)),
    "insert": ("f", RW, lambda fd: fallocate(fd, 32, 0, 4096)),
    "posix_fallocate": ("f", RW, lambda fd: os.posix_fallocate(fd, 0, 40)),
    "mmap directory": ("d", R, lambda fd: raw_mmap(fd, 4096, mmap.PROT_READ)),
    "mmap w of r": ("f", R, lambda fd: raw_mmap(fd, 4096, mmap.PROT_READ | mmap.PROT_WRITE)),
    "mmap r of w": ("f", W, lambda fd: raw_mmap(fd, 4096, mmap.PROT_READ)),
    "mmap 0": ("f", R, lambda fd: raw_mmap(fd, 0, mmap.PROT_READ)),
    "mmap unaligned": ("f", R, lambda fd: raw_mmap(fd, 4096, mmap.PROT_READ, 100)),
    "mmap empty": ("empty", R, lambda fd: raw_mmap(fd, 4096, mmap.PROT_READ)),
    "mmap exec": ("f", R, lambda fd: raw_mmap(fd, 4096, mmap.PROT_READ | 4)),
    "mmap path": ("f", os.O_PATH, lambda fd: raw_mmap(fd, 4096, mmap.PROT_READ)),
    "getdents of a file": ("f", R, lambda fd: syscall(217, fd, ctypes.create_string_buffer(100), 100)),
    "getdents small": ("d", R, lambda fd: syscall(217, fd, ctypes.create_string_buffer(100), 3)),
    "fchdir file": ("f", R, os.fchdir),
    "openat below a file": ("f", R, lambda fd: os.open("x", R, dir_fd=fd)),
    "ioctl nonsense": ("f", R, lambda fd: fcntl.ioctl(fd, 0x12345678)),
    "ioctl tty": ("f", R, lambda fd: fcntl.ioctl(fd, 0x5401, bytes(60))),
    "fcntl nonsense": ("f", R, lambda fd: fcntl.fcntl(fd, 9999)),
    "flock nonsense": ("f", R, lambda fd: check(libc.flock(fd, 0x4000))),
    "lock w of r": ("f", R, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    "lock r of w": ("f", W, lambda fd: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)),
    "lock -1": ("f", RW, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, -1)),
    "lease w": ("g", R, lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)),
    "fchmod path": ("f", os.O_PATH, lambda fd: check(libc.fchmod(fd, 0o640))),
    "fchmod": ("f", R, lambda fd: os.fchmod(fd, 0o640)),
    "fchown": ("f", R, lambda fd: os.fchown(fd, 1, 1)),
    "futimens r": ("f", R, lambda fd: os.utime(fd, (7, 7))),
    "fsetxattr r": ("f", R, lambda fd: os.setxattr(fd, "user.a", b"1")),
    "flistxattr path": ("f", os.O_PATH, lambda fd: check(libc.flistxattr(fd, None, 0))),
    "copy to r": ("f", R, lambda fd: with_other("g", R, lambda o: copy_range(fd, o, 5))),
    "copy from w": ("f", W, lambda fd: with_other("empty", W, lambda o: copy_range(fd, o, 5))),
    "copy from a directory": ("d", R, lambda fd: with_other("f", W, lambda o: copy_range(fd, o, 5))),
    "copy to a directory": ("f", R, lambda fd: with_other("d", R, lambda o: copy_range(fd, o, 5))),
    "copy to append": ("f", R, lambda fd: with_other("f", W | os.O_APPEND, lambda o: copy_range(fd, o, 5))),
    "copy to a fifo": ("f", R, lambda fd: with_other("p", RW | N, lambda o: copy_range(fd, o, 5))),
    "copy onto itself": ("f", RW, lambda fd: copy_range(fd, fd, 10, 0, 5)),
    "copy within itself": ("f", RW, lambda fd: copy_range(fd, fd, 5, 0, 30)),
    "copy nonsense": ("f", RW, lambda fd: copy_range(fd, fd, 5, 0, 30, 1)),
    "copy from behind": ("f", RW, lambda fd: copy_range(fd, fd, 5, 100, 200)),
    "copy far": ("f", RW, lambda fd: copy_range(fd, fd, 5, 0, BIG - 2)),
    "copy -1": ("f", RW, lambda fd: copy_range(fd, fd, 5, -1, 100)),
    "sendfile from a directory": ("d", R, lambda fd: with_other("f", W, lambda o: os.sendfile(o, fd, 0, 5))),
    "sendfile to append": ("g", R, lambda fd: with_other("f", W | os.O_APPEND, lambda o: os.sendfile(o, fd, 0, 5))),
    "linkat empty path": (
        "f",
        os.O_PATH,
        lambda fd: check(libc.linkat(fd, b"", AT_FDCWD, os.fsencode(HERE[0] + "/new"), AT_EMPTY_PATH)),
    ),
    "tmpfile": (".", R, lambda fd: os.close(os.open(".", O_TMPFILE | RW, 0o600, dir_fd=fd))),
    "tmpfile r": (".", R, lambda fd: os.close(os.open(".", O_TMPFILE | R, 0o600, dir_fd=fd))),
    "sync_file_range": ("f", RW, lambda fd: check(libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(10), 2))),
    "sync_file_range nonsense": (
        "f",
        RW,
        lambda fd: check(libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(10), 64)),
    ),
    "fadvise nonsense": ("f", R, lambda fd: os.posix_fadvise(fd, 0, 0, 77)),
    "readahead w": ("f", W, lambda fd: check(libc.readahead(fd, ctypes.c_int64(0), ctypes.c_size_t(10)))),
    "splice to itself": ("f", RW, lambda fd: check(libc.splice(fd, None, fd, None, ctypes.c_size_t(10), 0))),
}

# these change nothing that look() would see
HARMLESS = (
    "stat lstat open_r open_w open_rw open_append open_directory open_nofollow open_path "
    "open_noatime open_direct open_accmode readlink access listdir chdir statvfs getxattr "
    "listxattr"
).split()

# what is known to be different: name of the case -> why
DIFFERS = {
    "seek data directory": "offsets in a directory are FUSE's own; ext4's are hashes",
    "collapse": "the kernel lets no FUSE filesystem see it",
    "insert": "the kernel lets no FUSE filesystem see it",
    "tmpfile": "libfuse 3.14 has no O_TMPFILE",
}

# ---- running ----


def outcome(call, *args):
    try:
        call(*args)
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e.errno))
    except OverflowError:
        return "OverflowError"
    return "fine"


def on_fd(top, path, flags, call):
    fd = os.open(os.path.join(top, path), flags)
    try:
        return outcome(call, fd)
    finally:
        os.close(fd)


def cases(every=1):
    """Of the pairs of paths each `every`th; others with each first path and each call."""
    for name, call in ONE_PATH.items():
        for path in PATHS:
            yield f"{name} {path[:20]}", lambda top, c=call, p=path: outcome(
                c, f"{top}/{p}" if p else ""
            )
    for k, (name, call) in enumerate(TWO_PATHS.items()):
        for i, a in enumerate(PAIRS):
            for b in PAIRS[(i + k) % every :: every]:
                yield f"{name} {a} {b}", lambda top, c=call, x=a, y=b: outcome(
                    c, f"{top}/{x}", f"{top}/{y}"
                )
    for name, (path, flags, call) in ON_FD.items():
        yield name, lambda top, p=path, f=flags, c=call: on_fd(top, p, f, c)


def as_user(uid, function, *args):
    """With the rights of uid for the moment; the tree stays root's."""
    if uid == 0 or not ROOT:
        return function(*args)
    os.setresgid(-1, uid, -1)
    os.setresuid(-1, uid, -1)
    try:
        return function(*args)
    finally:
        os.setresuid(-1, 0, -1)
        os.setresgid(-1, 0, -1)


def is_harmless(name):
    words = name.split()
    return any("_".join(words[:n]) in HARMLESS for n in (1, 2)) and not {"trunc", "creat"} & set(words)


def run_all(tops, uid):
    """[(case, on the disk, on the mount)] where they differ."""
    found = []
    trees = []
    os.setgroups([]) if ROOT else None
    for top in tops:
        HERE[0] = top
        build(top)
        trees.append(look(top))
    assert trees[0] == trees[1]
    pristine = trees[0]
    for name, case in cases(1 if SOAK or uid == 0 else 3):
        got = []
        for top in tops:
            HERE[0] = top
            os.chdir(top)
            got.append(as_user(uid, case, top))
            os.chdir("/")
        if got == ["fine", "fine"] and not is_harmless(name):
            after = [look(top) for top in tops]
            for top, tree in zip(tops, after):
                if tree != pristine:
                    build(top)
            for path in set(after[0]) | set(after[1]):
                a, b = after[0].get(path), after[1].get(path)
                if a != b:
                    found.append((name, f"{path} {a}", f"{b}"))
        elif got[0] != got[1]:
            found.append((name, *got))
            for top in tops:
                build(top)
    # what failed, or is harmless, left everything as it was
    for top in tops:
        assert look(top) == pristine, top
    return found


def modes_and_users():
    """Each mode and each user; both of them at once in the soak only, since they have little to do
    with each other: the modes differ in what an open file does, the users in what a path allows."""
    users = [0, NOBODY] if ROOT else [os.geteuid()]
    for i, mode in enumerate(sorted(MODES, reverse=True)):
        for k, uid in enumerate(users):
            if SOAK or len(users) == 1 or i == k:
                marks = [pytest.mark.root] if uid == NOBODY else []
                yield pytest.param(mode, uid, marks=marks, id=f"{mode}-{uid}")


@pytest.mark.limit(200)
@pytest.mark.parametrize("mode,uid", modes_and_users(), indirect=["mode"])
def test_every_call_on_every_argument(box, plain, uid):
    """Errors are those of the filesystem beneath, and so is what a call leaves behind."""
    reference = box.dir("beneath")
    if ROOT:
        os.chmod(reference, 0o777)
        os.chmod(plain.mnt, 0o777)
    plain.expect("mknod", "nonsense")
    found = child(run_all, [os.path.join(reference, "top"), plain.path("top")], uid, umask=0)
    unknown = [f"{n}: {a} on the disk, {b} on the mount" for n, a, b in found if n not in DIFFERS]
    assert not unknown, f"{len(unknown)} differ:\n" + "\n".join(unknown[:100])
    alike = set(DIFFERS) - {n for n, _, _ in found}
    assert not alike, f"no longer different: {alike}"
