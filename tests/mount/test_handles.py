"""One file, one content: several handles, processes, mappings."""

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
import sys

import pytest

from harness import (
    FALLOC_COLLAPSE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    KIB,
    MIB,
    FaultControl,
    child,
    errno_of,
    fallocate,
    open_fds,
    pread_all,
    read_file,
    reap,
    same_errno,
    spawn,
    text,
    wait_for,
    write_file,
)


def test_two_handles(cellar):
    path = cellar.path("f")
    w = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    r = os.open(path, os.O_RDONLY)
    for i in range(50):
        piece = b"line %d of many\n" % i
        os.pwrite(w, piece, i * 20)
        assert os.pread(r, len(piece), i * 20) == piece
        assert os.fstat(r).st_size == os.stat(path).st_size == i * 20 + len(piece)
    os.close(w)
    assert os.fstat(r).st_size == 49 * 20 + len(piece)
    cellar.flush()
    assert os.pread(r, 20, 20) == b"line 1 of many\n".ljust(20, b"\0")
    os.close(r)


def test_two_writers(cellar):
    """Neither the first nor the last close wins: all writes are in."""
    path = cellar.path("f")
    write_file(path, bytes(100 * KIB))
    cellar.make_cold("f")
    a, b = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    for i in range(0, 100 * KIB, 2 * KIB):
        os.pwrite(a, b"A" * KIB, i)
        os.pwrite(b, b"B" * KIB, i + KIB)
    os.close(a)
    cellar.flush()
    os.pwrite(b, b"late", 0)
    os.close(b)
    want = b"late" + ((b"A" * KIB + b"B" * KIB) * 50)[4:]
    assert read_file(path) == want
    cellar.flush()
    assert cellar.stored("f") == want


def test_two_processes(cellar):
    """A writer in one process, a reader in another: at once, not after close."""
    path = cellar.path("f")
    ask_r, ask_w = os.pipe()
    say_r, say_w = os.pipe()

    def reader():
        fd = os.open(path, os.O_RDONLY)
        while True:
            n = int.from_bytes(os.read(ask_r, 4), "little")
            if n == 0:
                return
            size = os.fstat(fd).st_size
            data = pread_all(fd, size)
            os.write(say_w, b"y" if data == text(n, 1) else b"n")

    w = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    pid = spawn(reader)
    data = text(60000, 1)
    try:
        for n in range(1500, 60000, 1500):
            os.write(w, data[n - 1500 : n])
            os.write(ask_w, n.to_bytes(4, "little"))
            assert os.read(say_r, 1) == b"y", f"after {n} bytes"
    finally:
        os.write(ask_w, bytes(4))
        os.close(w)
        assert reap(pid) == 0
        for fd in (ask_r, ask_w, say_r, say_w):
            os.close(fd)


def test_unlink_while_open(cellar):
    path = cellar.path("f")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    ino = os.fstat(fd).st_ino
    os.write(fd, text(200 * KIB, 1))
    os.unlink(path)
    assert errno_of(os.stat, path) == errno.ENOENT
    assert not os.path.exists(cellar.object_path("f"))
    assert os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b"still here", 1000)
    assert os.pread(fd, 10, 1000) == b"still here"
    assert os.pread(fd, 100, 5000) == text(200 * KIB, 1)[5000:5100]
    os.ftruncate(fd, 300 * KIB)
    assert os.fstat(fd).st_size == 300 * KIB
    write_file(path, b"a new one of the same name")
    assert os.pread(fd, 10, 1000) == b"still here"
    cellar.flush()
    os.close(fd)
    assert read_file(path) == b"a new one of the same name"
    wait_for(lambda: ino not in cellar.scratches(), what="the scratch to go")
    assert cellar.stored("f") == b"a new one of the same name"


def test_unlink_cold_file_while_open(cellar):
    data = text(3 * MIB, 1)
    cellar.write("f", data)
    cellar.make_cold("f")
    fd = os.open(cellar.path("f"), os.O_RDONLY)
    os.unlink(cellar.path("f"))
    assert pread_all(fd, len(data)) == data
    os.close(fd)
    assert cellar.store_path() and os.listdir(cellar.store) == [".cellar"]


def test_rename_while_open_and_dirty(cellar):
    os.mkdir(cellar.path("d"))
    fd = os.open(cellar.path("a"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, text(100 * KIB, 1))
    os.rename(cellar.path("a"), cellar.path("d/b"))
    os.pwrite(fd, b"after the rename", 0)
    want = b"after the rename" + text(100 * KIB, 1)[16:]
    assert cellar.read("d/b") == want
    cellar.flush()
    assert cellar.stored("d/b") == want
    os.rename(cellar.path("d"), cellar.path("e"))
    os.pwrite(fd, b"and once more", 50)
    os.close(fd)
    want = want[:50] + b"and once more" + want[63:]
    cellar.flush()
    assert cellar.stored("e/b") == want
    assert not os.path.exists(cellar.store_path("a.zst"))
    assert not os.path.exists(cellar.store_path("d"))
    cellar.remount()
    assert cellar.read("e/b") == want


def test_rename_over_open_file(cellar):
    cellar.write("old", text(50 * KIB, 1))
    cellar.flush()
    fd = os.open(cellar.path("old"), os.O_RDONLY)
    cellar.write("new", text(60 * KIB, 2))
    os.rename(cellar.path("new"), cellar.path("old"))
    assert cellar.read("old") == text(60 * KIB, 2)
    assert pread_all(fd, 100 * KIB) == text(50 * KIB, 1)
    os.close(fd)
    cellar.flush()
    assert cellar.stored("old") == text(60 * KIB, 2)
    assert sorted(os.listdir(cellar.store)) == [".cellar", "old.zst"]


@pytest.mark.parametrize("cold", [False, True])
def test_truncate(cellar, cold):
    data = text(3 * MIB + 100, 1)
    want = bytearray(data)
    path = cellar.write("f", data)
    for size in (2 * MIB + 5, 2 * MIB + 4096, 10, 3 * MIB, 0, 0, 5, MIB):
        if cold:
            cellar.make_cold("f")
        os.truncate(path, size)
        if size < len(want):
            del want[size:]
        else:
            want += bytes(size - len(want))
        assert os.stat(path).st_size == size
        assert read_file(path) == want, size
    cellar.flush()
    assert cellar.stored("f") == want
    with open(path, "r+b") as f:  # the same through a handle, with a second one looking
        other = os.open(path, os.O_RDONLY)
        f.write(b"abcdef")
        f.flush()
        f.truncate(3)
        assert os.fstat(other).st_size == 3
        assert os.pread(other, 10, 0) == b"abc"
        f.truncate(8)
        assert os.pread(other, 10, 0) == b"abc\0\0\0\0\0"
        os.close(other)
    cellar.flush()
    assert cellar.stored("f") == b"abc\0\0\0\0\0"


def test_open_with_truncation(cellar):
    """O_TRUNC needs nothing of the old content: it is not decoded."""
    cellar.write("f", text(3 * MIB, 1))
    cellar.make_cold("f")
    before = cellar.counter("bytes_decoded")
    reader = None
    fd = os.open(cellar.path("f"), os.O_WRONLY | os.O_TRUNC)
    reader = os.open(cellar.path("f"), os.O_RDONLY)
    assert os.fstat(reader).st_size == 0
    assert os.read(reader, 10) == b""
    os.write(fd, b"short")
    assert os.pread(reader, 10, 0) == b"short"
    os.close(fd)
    os.close(reader)
    cellar.flush()
    assert cellar.stored("f") == b"short"
    assert cellar.counter("bytes_decoded") == before


def test_truncation_of_what_is_partly_there(box, mode):
    """(H2), G1: cut to nothing while only its begin is decoded, then written elsewhere: what is
    between is zeros, in the object too."""
    c = box.cellar(writeback_delay="1h", frame_size="64K", eager_size="64K", **mode).start()
    path = c.write("f", text(700 * KIB, 1))
    c.make_cold("f")
    with open(path, "rb") as f:
        f.read(10)
    with open(path, "wb") as f:
        f.seek(500 * KIB)
        f.write(b"far")
    want = bytes(500 * KIB) + b"far"
    assert c.read("f") == want
    c.flush()
    assert c.stored("f") == want
    c.make_cold("f")
    assert c.read("f") == want


def test_append_from_two_processes(lively):
    """O_APPEND: every line of every writer exactly once, whole, in its writer's order."""
    path = lively.path("log")
    lines = 400

    def writer(who):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for i in range(lines):
            line = b"%s %06d %s\n" % (who, i, who * (i % 50))
            assert os.write(fd, line) == len(line)
            if i % 100 == 50:  # and with re-opening
                os.close(fd)
                fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.close(fd)

    pids = [spawn(writer, who) for who in (b"A", b"B", b"C")]
    assert [reap(p) for p in pids] == [0, 0, 0]
    got = lively.read("log").splitlines()
    for who in (b"A", b"B", b"C"):
        mine = [g for g in got if g.startswith(who)]
        assert mine == [b"%s %06d %s" % (who, i, who * (i % 50)) for i in range(lines)]
    assert len(got) == 3 * lines
    lively.flush()
    assert lively.stored("log").splitlines() == got


def test_append_to_cold_file(cellar):
    data = text(2 * MIB + 10, 1)
    cellar.write("f", data)
    for i in range(3):
        cellar.make_cold("f")
        with open(cellar.path("f"), "ab") as f:
            f.write(b"line %d\n" % i)
        data += b"line %d\n" % i
    assert cellar.read("f") == data
    cellar.flush()
    assert cellar.stored("f") == data


def test_shared_mapping_reaches_the_object(cellar):
    data = text(2 * MIB, 1)
    path = cellar.write("f", data)
    want = bytearray(data)
    cellar.make_cold("f")
    fd = os.open(path, os.O_RDWR)
    m = mmap.mmap(fd, len(data))
    os.close(fd)  # the mapping outlives the descriptor
    assert m[:] == data
    m[100:110] = b"0123456789"
    m[MIB + 5 : MIB + 10] = b"abcde"
    want[100:110] = b"0123456789"
    want[MIB + 5 : MIB + 10] = b"abcde"
    m.flush()
    assert cellar.read("f") == want
    cellar.flush()
    assert cellar.stored("f") == want, "flushed while mapped"
    m[200:204] = b"last"  # after a flush, without msync
    want[200:204] = b"last"
    assert cellar.read("f") == want
    m.close()
    cellar.flush()
    assert cellar.stored("f") == want
    cellar.make_cold("f")
    assert cellar.read("f") == want


def test_mapping_sees_writes(cellar):
    path = cellar.write("f", bytes(100 * KIB))
    r = os.open(path, os.O_RDONLY)
    w = os.open(path, os.O_RDWR)
    m = mmap.mmap(r, 100 * KIB, prot=mmap.PROT_READ)
    assert m[50 * KIB] == 0
    os.pwrite(w, b"seen through the mapping", 50 * KIB)
    assert m[50 * KIB : 50 * KIB + 24] == b"seen through the mapping"
    cellar.flush()
    os.pwrite(w, b"again", 60 * KIB)
    assert m[60 * KIB : 60 * KIB + 5] == b"again"
    m.close()
    os.close(r)
    os.close(w)


def test_mapping_survives_unlink_and_flush(cellar):
    path = cellar.write("f", text(300 * KIB, 1))
    cellar.make_cold("f")
    with open(path, "rb") as f:
        m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    assert cellar.evict("f", check=False).returncode == 1, "mapped is open"
    os.unlink(path)
    cellar.flush()
    assert m[:] == text(300 * KIB, 1)
    m.close()


def test_run_a_program_from_it(cellar):
    shutil.copy("/bin/cat", cellar.path("cat"))
    cellar.write("script", b"#!/bin/sh\necho from the cellar\n")
    os.chmod(cellar.path("script"), 0o755)
    cellar.make_cold("cat", "script")
    out = subprocess.run([cellar.path("script")], capture_output=True, check=True)
    assert out.stdout == b"from the cellar\n"
    out = subprocess.run([cellar.path("cat")], input=b"x", capture_output=True, check=True)
    assert out.stdout == b"x"


def test_fsync_and_friends(lively):
    path = lively.path("f")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for i in range(20):
        os.pwrite(fd, b"%07d\n" % i, i * 8)
        (os.fsync if i % 2 else os.fdatasync)(fd)
    os.close(fd)
    fd = os.open(path, os.O_WRONLY | os.O_SYNC)
    os.pwrite(fd, b"osync", 4000)
    os.close(fd)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # of a handle that cannot write
    os.close(fd)
    d = os.open(lively.mnt, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(d)
    os.close(d)
    assert lively.counter("fsyncs") >= 22
    assert os.stat(path).st_size == 4005
    os.sync()


def test_an_error_of_fsync_is_not_forgotten(box):
    """(Y3) the kernel reports a lost page once; the file is not called synced until it was written
    back whole."""
    control = FaultControl(os.path.join(box.path, "control"))
    c = box.cellar(writeback_delay="1h", sync_interval="1h").start(control.env)
    fd = os.open(c.path("f"), os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(fd, text(50 * KIB, 1), 0)
    control.arm("fdatasync:1:EIO")
    assert [errno_of(os.fsync, fd) for _ in range(3)] == [errno.EIO] * 3
    c.expect("fsync|sync")
    c.flush()
    assert c.stored("f") == text(50 * KIB, 1)
    assert errno_of(os.fsync, fd) == 0, "it was written back from memory"
    os.close(fd)


def test_fallocate_and_holes(cellar):
    path = cellar.path("f")
    data = bytearray(text(300 * KIB, 1))
    write_file(path, data)
    cellar.make_cold("f")
    fd = os.open(path, os.O_RDWR)
    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 64 * KIB, 128 * KIB)
    data[64 * KIB : 192 * KIB] = bytes(128 * KIB)
    assert read_file(path) == data
    fallocate(fd, FALLOC_ZERO_RANGE, 200 * KIB + 5, 1000)
    data[200 * KIB + 5 : 200 * KIB + 1005] = bytes(1000)
    fallocate(fd, FALLOC_KEEP_SIZE, 300 * KIB, MIB)
    assert os.fstat(fd).st_size == 300 * KIB
    fallocate(fd, 0, 350 * KIB, 50 * KIB)
    data += bytes(100 * KIB)
    assert os.fstat(fd).st_size == 400 * KIB
    assert read_file(path) == data
    assert errno_of(fallocate, fd, FALLOC_COLLAPSE, 0, 4096) in (
        errno.EOPNOTSUPP,
        errno.EINVAL,
    )
    assert read_file(path) == data
    os.close(fd)
    cellar.flush()
    assert cellar.stored("f") == data
    cellar.make_cold("f")
    assert read_file(path) == data


def test_seek_data_and_hole(cellar):
    path = cellar.path("f")
    with open(path, "wb") as f:
        f.truncate(8 * MIB)
        f.seek(4 * MIB)
        f.write(b"island")
    for round_ in ("warm", "cold"):
        if round_ == "cold":
            cellar.make_cold("f")
        fd = os.open(path, os.O_RDONLY)
        first = os.lseek(fd, 0, os.SEEK_DATA)
        assert first <= 4 * MIB, "data may begin early, never late"
        at = os.lseek(fd, 4 * MIB, os.SEEK_DATA)
        assert at == 4 * MIB
        assert os.lseek(fd, 4 * MIB, os.SEEK_HOLE) >= 4 * MIB + 6
        assert os.lseek(fd, 8 * MIB - 1, os.SEEK_HOLE) <= 8 * MIB
        assert errno_of(os.lseek, fd, 8 * MIB, os.SEEK_DATA) == errno.ENXIO
        assert errno_of(os.lseek, fd, 8 * MIB, os.SEEK_HOLE) == errno.ENXIO
        os.close(fd)
    cellar.write("full", text(100 * KIB, 1))
    cellar.make_cold("full")
    fd = os.open(cellar.path("full"), os.O_RDONLY)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 100 * KIB
    os.close(fd)


def test_seek_sees_what_a_mapping_stored(plain):
    """cp and tar ask for holes: what was stored there through a mapping, without msync, is
    none. Without a writer holes are shown again."""
    path = plain.path("f")
    with open(path, "w+b") as f:
        f.truncate(MIB)
        with mmap.mmap(f.fileno(), MIB) as m:
            m[300 * KIB : 300 * KIB + 6] = b"island"
            other = os.open(path, os.O_RDONLY)
            at = os.lseek(other, 0, os.SEEK_DATA)
            assert at <= 300 * KIB and os.lseek(other, at, os.SEEK_HOLE) > 300 * KIB
            assert os.lseek(other, 300 * KIB, os.SEEK_DATA) == 300 * KIB
            for how in ("always", "auto"):
                subprocess.run(["cp", f"--sparse={how}", path, plain.path("copy")], check=True)
                assert plain.read("copy") == bytes(m)
    os.close(other)
    fd = os.open(path, os.O_RDONLY)
    wait_for(lambda: os.lseek(fd, 0, os.SEEK_HOLE) == 0, what="the writer's RELEASE")
    assert os.lseek(fd, 0, os.SEEK_DATA) == 300 * KIB // 4096 * 4096
    os.close(fd)


def test_reads_at_and_past_the_end(cellar):
    path = cellar.write("f", b"0123456789")
    fd = os.open(path, os.O_RDWR)
    assert os.pread(fd, 100, 5) == b"56789"
    assert os.pread(fd, 100, 10) == b""
    assert os.pread(fd, 100, 1 << 40) == b""
    os.pwrite(fd, b"x", 100000)  # leaves a gap of zeros
    assert os.pread(fd, 20, 99990) == bytes(10) + b"x"
    os.close(fd)
    want = b"0123456789" + bytes(99990) + b"x"
    cellar.flush()
    assert cellar.stored("f") == want


def test_access_modes(cellar):
    path = cellar.write("f", b"content")
    r = os.open(path, os.O_RDONLY)
    w = os.open(path, os.O_WRONLY)
    assert errno_of(os.write, r, b"x") == errno.EBADF
    assert errno_of(os.read, w, 1) == errno.EBADF
    os.close(r)
    os.pwrite(w, b"C", 0)  # write-only handles must not need what they may not read
    os.close(w)
    assert read_file(path) == b"Content"
    assert errno_of(os.open, cellar.mnt, os.O_WRONLY) == errno.EISDIR
    assert errno_of(os.open, cellar.path("f/x"), os.O_RDONLY) == errno.ENOTDIR
    assert errno_of(os.open, path, os.O_RDONLY | os.O_DIRECTORY) == errno.ENOTDIR


def test_write_through_a_read_only_mode(cellar):
    """A file created 0444 can be written through the handle that created it."""
    fd = os.open(cellar.path("f"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444)
    os.write(fd, b"content")
    os.close(fd)
    cellar.flush()
    assert cellar.stored("f") == b"content"
    cellar.remount()
    assert cellar.read("f") == b"content"


@pytest.mark.limit(120)
def test_many_handles(cellar):
    """No handful of handles: hundreds on one file, hundreds of files, few descriptors."""
    cellar.write("one", b"shared")
    fds = [os.open(cellar.path("one"), os.O_RDONLY) for _ in range(400)]
    for i in range(400):
        fds.append(os.open(cellar.path(f"f{i}"), os.O_RDWR | os.O_CREAT, 0o644))
        os.write(fds[-1], b"%d" % i)
    try:
        assert open_fds(cellar.pid) <= len(fds) + 200, "more than one descriptor a handle"
        for i, fd in enumerate(fds[400:]):
            assert os.pread(fd, 10, 0) == b"%d" % i
    finally:
        for fd in fds:
            os.close(fd)
    cellar.flush()
    wait_for(lambda: open_fds(cellar.pid) < 300, what="descriptors to be closed")


def test_max_open(box):
    # a file that the kernel serves costs no descriptor
    c = box.cellar(writeback_delay="1h", max_open=20, passthrough="off").start()
    for i in range(30):
        c.write(f"f{i}", b"%d" % i)
    fds = []
    failed = 0
    for i in range(30):
        try:
            fds.append(os.open(c.path(f"f{i}"), os.O_RDONLY))
        except OSError as e:
            same_errno(e.errno, "EMFILE", "ENFILE")
            failed = i
            break
    assert len(fds) == failed == 20
    c.expect("open")
    for _ in range(3):
        same_errno(errno_of(c.read, "f29"), "EMFILE", "ENFILE")
        same_errno(errno_of(write_file, c.path("new"), b"x"), "EMFILE", "ENFILE")
    complaints = [
        line for line in c.log_text().splitlines() if "warning:" in line or "error:" in line
    ]
    assert len(complaints) == 1, "logged once"
    os.stat(c.path("f29"))
    os.listdir(c.mnt)
    for fd in fds:
        os.close(fd)
    wait_for(lambda: errno_of(c.read, "f29") == 0, what="room for another handle")
    for i in range(30):
        assert c.read(f"f{i}") == b"%d" % i


def test_sendfile_and_copy_file_range(cellar):
    data = text(3 * MIB, 1)
    cellar.write("a", data)
    cellar.make_cold("a")
    a = os.open(cellar.path("a"), os.O_RDONLY)
    b = os.open(cellar.path("b"), os.O_RDWR | os.O_CREAT, 0o644)
    done = 0
    while done < len(data):
        n = os.sendfile(b, a, done, len(data) - done)
        assert n > 0
        done += n
    os.close(b)
    os.close(a)
    assert cellar.read("b") == data
    subprocess.run(["cp", "--sparse=never", cellar.path("b"), cellar.path("c")], check=True)
    subprocess.run(["cp", "--sparse=always", cellar.path("b"), cellar.path("d")], check=True)
    cellar.flush()
    for name in "abcd":
        assert cellar.stored(name) == data


def test_locks_between_processes(cellar):
    import fcntl

    path = cellar.write("f", b"x")
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def other():
        mine = os.open(path, os.O_RDWR)
        try:
            fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    assert child(other) is False
    cellar.flush()
    assert child(other) is False, "a flush does not drop locks"
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert child(other) is True
    os.close(fd)


def test_interrupted_reader_does_not_hang(cellar):
    """A process in open or read of a large cold file ends when it is killed."""
    cellar.write("big", text(40 * MIB, 1))
    cellar.make_cold("big")
    p = subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1],'rb').read()", cellar.path("big")])
    p.kill()
    assert p.wait(30) != 0
    assert cellar.read("big") == text(40 * MIB, 1)


def test_o_tmpfile_is_refused_cleanly(cellar):
    got = errno_of(os.open, cellar.mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
    same_errno(got, "EOPNOTSUPP", "EISDIR", "ENOSYS")
    assert ctypes.get_errno() in (0, got) and os.listdir(cellar.mnt) == []
