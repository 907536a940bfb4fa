"""What backup programs, editors and shells look at: numbers, times, modes, owners, attributes,
sizes on disk; and that nothing of it moves when a file was only read, flushed, evicted or
mounted anew (promise 9)."""

import errno
import os
import stat
import struct
import subprocess

import time

import pytest

from harness import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    KIB,
    MIB,
    ROOT,
    SEEK_FOOTER,
    SEEK_MAGIC,
    SOAK,
    child,
    errno_of,
    fallocate,
    noise,
    read_file,
    reap,
    spawn,
    text,
    wait_for,
    write_file,
    zstd_make,
)

ACL_ACCESS, ACL_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl(*entries):
    """An ACL as the kernel takes it: (tag, permissions, id or None)."""
    out = struct.pack("<I", 2)
    for tag, perm, who in entries:
        out += struct.pack("<HHI", tag, perm, 0xFFFFFFFF if who is None else who)
    return out


# owner rw, user 65534 r, group r, mask r, others nothing
SOME_ACL = acl((1, 6, None), (2, 4, 65534), (4, 4, None), (16, 4, None), (32, 0, None))


def has_acls(path):
    return errno_of(os.setxattr, path, ACL_ACCESS, SOME_ACL) == 0


def identity(path):
    """All that must stay."""
    st = os.lstat(path)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return {
        "st": (
            st.st_ino,
            st.st_mode,
            st.st_nlink,
            st.st_uid,
            st.st_gid,
            st.st_size,
            st.st_mtime_ns,
            st.st_ctime_ns,
        ),
        "xattrs": [(n, os.getxattr(path, n, follow_symlinks=False)) for n in names],
    }


def tree_identity(top):
    seen = {}
    for where, dirs, names in os.walk(top):
        for path in [where] + [os.path.join(where, n) for n in dirs + names]:
            seen[path] = identity(path)
    return seen


def different(before, after):
    return "\n".join(
        f"{p}: {before.get(p)} -> {after.get(p)}"
        for p in sorted(set(before) | set(after))
        if before.get(p) != after.get(p)
    )


def test_nothing_moves(box, mode):
    """A tree of all kinds, through flush, reading, eviction and two remounts."""
    c = box.cellar(writeback_delay="1h", frame_size="64K", eager_size="64K", **mode).start()
    for d in ("d", "d/sub", "quiet"):
        os.mkdir(c.path(d))
    for i, size in enumerate((0, 1, 5000, 300 * KIB)):
        c.write(f"d/f{i}", text(size, i))
        os.chmod(c.path(f"d/f{i}"), 0o600 + i)
        os.setxattr(c.path(f"d/f{i}"), "user.note", b"%d" % i)
    os.chmod(c.path("d/f1"), 0o4755)
    os.chmod(c.path("d/f2"), 0o2755)
    os.utime(c.path("d/f3"), ns=(1, 1_234_567_890_123_456_789))
    os.link(c.path("d/f2"), c.path("d/sub/again"))
    os.symlink("f1", c.path("d/link"))
    os.mkfifo(c.path("d/fifo"))
    os.utime(c.path("quiet"), ns=(1, 1_000_000_000_000_000_001))
    with_acl = has_acls(c.path("d/f3"))
    if with_acl:
        os.setxattr(c.path("d/sub"), ACL_DEFAULT, SOME_ACL)
    if ROOT:
        os.setxattr(c.path("d/f3"), "trusted.t", b"t")
        os.setxattr(c.path("d/f3"), "security.s", b"s")
        os.chown(c.path("d/f0"), 1234, 4321)
    files = ["d/f0", "d/f1", "d/f2", "d/f3", "d/sub/again"]

    before = tree_identity(c.mnt)
    assert not ROOT or ("trusted.t", b"t") in before[c.path("d/f3")]["xattrs"]

    def same(when):
        after = tree_identity(c.mnt)
        assert after == before, f"{when}:\n{different(before, after)}"

    same("dirty")
    c.flush()
    same("flushed")
    for f in files:
        c.read(f)
    same("read")
    c.make_cold(*files[:4])
    same("cold")
    for f in files:  # opened for writing, and not written
        os.close(os.open(c.path(f), os.O_RDWR))
    same("opened for writing")
    c.flush()
    same("flushed again")
    c.remount()
    same("mounted anew")
    for f in files:
        c.read(f)
    c.make_cold(*files[:4])
    same("read and cold after that")
    c.remount("umount")
    same("mounted once more")
    # and the store shows the same attributes to whoever copies it away
    st = os.stat(c.object_path("d/f3"))
    assert st.st_mtime_ns == 1_234_567_890_123_456_789 and stat.S_IMODE(st.st_mode) & 0o700 == 0o600
    assert os.getxattr(c.object_path("d/f3"), "user.note") == b"3"
    if with_acl:
        assert os.getxattr(c.object_path("d/f3"), ACL_ACCESS) == SOME_ACL


def test_ctime_moves_when_it_should(plain):
    """Every change of content or attributes moves ctime forward, also of a cold file."""
    path = plain.write("f", text(10 * KIB, 1))
    changes = [
        lambda: os.chmod(path, 0o600),
        lambda: os.setxattr(path, "user.a", b"1"),
        lambda: os.removexattr(path, "user.a"),
        lambda: os.link(path, plain.path("g")),
        lambda: os.unlink(plain.path("g")),
        lambda: os.rename(path, plain.path("h")),
        lambda: os.rename(plain.path("h"), path),
        lambda: os.utime(path, ns=(1, 1)),
        lambda: os.truncate(path, 5000),
        lambda: open(path, "ab").write(b"x"),
    ]
    fd = os.open(path, os.O_PATH)
    for cold in (False, True):
        for i, change in enumerate(changes):
            if cold and os.path.exists(path):
                plain.make_cold("f")
            before = os.stat(fd).st_ctime_ns
            wait_for(lambda b=before: time.clock_gettime_ns(time.CLOCK_REALTIME) > b + 8_000_000)
            change()
            assert os.stat(fd).st_ctime_ns > before, f"change {i}, cold {cold}"
    os.close(fd)


def test_sync_of_a_new_file_does_not_show(plain):
    """What the daemon notes on the object at the first sync moves no ctime."""
    with open(plain.path("f"), "wb") as f:
        f.write(b"x")
        f.flush()
        os.link(plain.path("f"), plain.path("again"))
        before = identity(plain.path("f"))
        wait_for(
            lambda: time.clock_gettime_ns(time.CLOCK_REALTIME) > before["st"][7] + 8_000_000
        )
        os.fsync(f.fileno())
        plain.flush()
        assert identity(plain.path("f")) == before
    plain.make_cold("f")
    assert identity(plain.path("f")) == before


def keeps_during_a_flush(box, mode, step, change, linked=False):
    """The first flush of a file comes to `step`, change(its path) is made, and the flush goes on: the
    file's identity of then stays, flushed, cold and mounted anew. Returns it."""
    held = os.path.join(box.path, "held")
    c = box.cellar(writeback_delay="1h", **mode)
    c.start(env={"CELLAR_TEST_STEP": f"{step}=wait", "CELLAR_TEST_STEP_FILE": held})
    path = c.write("f", text(20 * KIB, 1))
    if linked:
        os.link(path, c.path("again"))
    pid = spawn(c.flush)
    wait_for(lambda: os.path.exists(held), what="the flush to come to the step")
    change(path)
    before = identity(path)
    os.unlink(held)
    assert reap(pid) == 0
    c.flush()
    assert identity(path) == before
    c.make_cold("f")
    assert identity(path) == before
    c.remount()
    assert identity(path) == before
    return before


@pytest.mark.parametrize("how", ["replaced", "linked"])
def test_a_change_during_a_flush_keeps_its_ctime(box, mode, how):
    """(F7): chmod while the new object is made is in it, and its ctime is not set back."""

    def change(path):
        os.chmod(path, 0o604)
        os.setxattr(path, "user.late", b"1")

    kept = keeps_during_a_flush(box, mode, "flush.verified", change, linked=how == "linked")
    assert kept["xattrs"] == [("user.late", b"1")]


def test_a_hole_made_during_a_flush_keeps_its_ctime(box, mode):
    """Past the end: the flush goes on, and takes the new mtime with it. The next one finds nothing to
    write, and the ctime is that of the hole all the same."""

    def change(path):
        fd = os.open(path, os.O_WRONLY)
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 64 * KIB, 128 * KIB)
        os.close(fd)

    keeps_during_a_flush(box, mode, "flush.encoded", change)


def test_directory_times(plain):
    """A new, a removed and a renamed entry move mtime and ctime; write-back does not."""
    os.mkdir(plain.path("d"))
    os.mkdir(plain.path("e"))
    where = plain.path("d")
    steps = [
        lambda: write_file(plain.path("d/a"), b"a"),
        lambda: os.mkdir(plain.path("d/b")),
        lambda: os.symlink("a", plain.path("d/s")),
        lambda: os.link(plain.path("d/a"), plain.path("d/l")),
        lambda: os.rename(plain.path("d/a"), plain.path("d/a2")),
        lambda: os.rename(plain.path("d/a2"), plain.path("e/a2")),
        lambda: os.unlink(plain.path("d/l")),
        lambda: os.rmdir(plain.path("d/b")),
    ]
    for i, step in enumerate(steps):
        before = os.stat(where)
        wait_for(
            lambda b=before: time.clock_gettime_ns(time.CLOCK_REALTIME) > b.st_ctime_ns + 8_000_000
        )
        step()
        after = os.stat(where)
        assert after.st_mtime_ns > before.st_mtime_ns, f"step {i}"
        assert after.st_ctime_ns > before.st_ctime_ns, f"step {i}"
        plain.flush()
        flushed = os.stat(where)
        assert (flushed.st_mtime_ns, flushed.st_ctime_ns) == (
            after.st_mtime_ns,
            after.st_ctime_ns,
        ), f"step {i}: the flush shows"


AGES = (-1, 0, -(2**31), 2**31 - 1, 2**31, 2**32 + 5, 7_000_000_000, 2**34 - 2**31 - 1)


def test_times_of_all_ages(plain, box):
    """Before 1970 and after 2038, as far as the store's filesystem holds them; reading and
    flushing moves no atime either."""
    want = {}
    for seconds in AGES:
        beneath = os.path.join(box.path, "beneath")
        write_file(beneath, b"x")
        path = plain.write(f"f{seconds}", b"x")
        ns = seconds * 10**9 + 123_456_789
        for p in (beneath, path):
            os.utime(p, ns=(ns, ns))
        want[path] = (os.stat(beneath).st_mtime_ns,) * 2

    def check():
        assert {p: (os.stat(p).st_mtime_ns, os.stat(p).st_atime_ns) for p in want} == want

    check()
    plain.make_cold(*[os.path.basename(p) for p in want])
    check()
    for p in want:
        with open(p, "ab") as f:
            f.write(b"more")
        os.utime(p, ns=want[p])
    plain.make_cold(*[os.path.basename(p) for p in want])
    check()
    for p in want:
        plain.read(p)
    check()
    plain.remount()
    check()


def bits(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def writer(path, how):
    fd = os.open(path, os.O_RDWR)
    if how == "write":
        os.pwrite(fd, b"x", 0)
    elif how == "truncate":
        os.ftruncate(fd, 3)
    elif how == "truncate by name":
        os.truncate(path, 3)
    elif how == "allocate":
        os.posix_fallocate(fd, 0, 9000)
    elif how == "open with truncation":
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    elif how == "copy":
        os.copy_file_range(fd, fd, 2, 0, 6)
    elif how == "chown":
        os.chown(path, -1, os.getgid())
    elif how == "map":
        import mmap

        with mmap.mmap(fd, 5) as m:
            m[0:1] = b"x"
            m.flush()
    elif how == "read":
        os.pread(fd, 5, 0)
    os.close(fd)


HOWS = (
    "write, truncate, truncate by name, allocate, open with truncation, copy, chown, map, read"
).split(", ")


@pytest.mark.root
@pytest.mark.parametrize("cold", [False, True])
def test_privileges_are_cleared(box, plain, cold):
    """By whoever is not root, as on the filesystem beneath; root keeps them, but for chown."""
    beneath = box.dir("beneath")
    os.chmod(plain.mnt, 0o777)
    os.chmod(beneath, 0o777)
    modes = (0o6777,) if cold and not SOAK else (0o6777, 0o2767, 0o4666)
    cases = [(h, m, u) for h in HOWS for m in modes for u in (65534, 0)]
    names = [f"{h}-{m:o}-{u}" for h, m, u in cases]
    for name, (_, mode, _) in zip(names, cases):
        for top in (beneath, plain.mnt):
            path = os.path.join(top, name)
            write_file(path, b"0123456789")
            os.chown(path, 65534, 65534)
            os.chmod(path, mode)
    if cold:
        plain.make_cold(*names)
    for name, (how, _, uid) in zip(names, cases):
        for top in (beneath, plain.mnt):
            child(writer, os.path.join(top, name), how, uid=uid)
    want = {name: oct(bits(os.path.join(beneath, name))) for name in names}
    assert {name: oct(bits(plain.path(name))) for name in names} == want
    plain.flush()
    assert {name: oct(bits(plain.path(name))) for name in names} == want
    assert len(set(want.values())) > (4 if len(modes) > 1 else 1)


@pytest.mark.root
def test_file_capabilities_are_cleared(plain):
    """security.capability goes with the first write, whoever writes."""
    path = plain.write("f", b"0123456789")
    value = struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0)
    for how in ("write", "truncate", "open with truncation", "allocate", "chown"):
        os.setxattr(path, "security.capability", value)
        plain.make_cold("f")
        assert os.getxattr(path, "security.capability") == value
        writer(path, how)
        assert errno_of(os.getxattr, path, "security.capability") == errno.ENODATA, how


@pytest.mark.root
def test_a_new_file_s_capability(plain):
    """It has none and the daemon knows that; until it is given one, or has an object that others
    may have given one."""
    value = struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0)
    path = plain.write("f", b"new")
    assert errno_of(os.getxattr, path, "security.capability") == errno.ENODATA
    os.setxattr(path, "security.capability", value)
    assert os.getxattr(path, "security.capability") == value
    writer(path, "write")
    assert errno_of(os.getxattr, path, "security.capability") == errno.ENODATA
    plain.write("g", b"new too")
    plain.make_cold("g")
    os.setxattr(plain.object_path("g"), "security.capability", value)
    assert os.getxattr(plain.path("g"), "security.capability") == value


@pytest.mark.root
def test_acls(plain):
    """They decide, they are inherited, and they outlive a new object."""
    os.chmod(plain.mnt, 0o755)
    path = plain.write("f", text(5 * KIB, 1))
    os.chmod(path, 0o600)
    if not has_acls(path):
        pytest.skip("the store's filesystem has no ACLs")

    def can(flags, uid):
        return errno_of(child, lambda: os.close(os.open(path, flags)), uid=uid) == 0

    def check():
        assert can(os.O_RDONLY, 65534) and not can(os.O_WRONLY, 65534)
        assert not can(os.O_RDONLY, 65533)
        assert os.getxattr(path, ACL_ACCESS) == SOME_ACL
        assert bits(path) == 0o640

    check()
    plain.make_cold("f")
    check()
    with open(path, "ab") as f:
        f.write(b"more")
    plain.make_cold("f")
    check()
    plain.remount()
    check()
    os.chmod(path, 0o600)  # takes the mask away
    assert not can(os.O_RDONLY, 65534)
    os.mkdir(plain.path("d"))
    os.setxattr(plain.path("d"), ACL_DEFAULT, SOME_ACL)
    plain.write("d/new", b"x")
    os.mkdir(plain.path("d/sub"))
    assert os.getxattr(plain.path("d/sub"), ACL_DEFAULT) == SOME_ACL
    assert bits(plain.path("d/new")) == 0o640
    plain.make_cold("d/new")
    assert bits(plain.path("d/new")) == 0o640
    path = plain.path("d/new")
    assert can(os.O_RDONLY, 65534) and not can(os.O_RDONLY, 65533)


def test_blocks(box, mode):
    """What a file costs: object, and scratch while dirty; du and df tell it."""
    pool = box.dir("pool")
    c = box.cellar(writeback_delay="1h", pool=pool, **mode).start()
    size = 4 * MIB
    path = c.write("log", text(size, 1))
    c.write("noise", noise(MIB, 1))
    c.write("empty", b"")
    c.write("tiny", b"x")
    dirty = os.stat(path).st_blocks * 512
    assert dirty >= size, "a dirty file costs its scratch"

    def du(*options):
        out = subprocess.run(
            ["du", "-B1", *options, path], capture_output=True, check=True
        ).stdout
        return int(out.split()[0])

    assert du("--apparent-size") == size
    c.flush()
    wait_for(lambda: os.stat(path).st_blocks * 512 < size // 2, what="the flush to show in st_blocks")
    assert os.stat(path).st_blocks == os.stat(c.object_path("log")).st_blocks
    assert du("--apparent-size") == size
    assert du() == os.stat(c.object_path("log")).st_blocks * 512 < size // 2
    assert os.stat(c.path("noise")).st_blocks * 512 >= MIB
    assert os.stat(c.path("empty")).st_size == 0
    assert os.stat(c.path("tiny")).st_blocks > 0, "tar takes a file without blocks for zeros"
    with open(c.path("hole"), "wb") as f:
        f.truncate(MIB)
    assert os.stat(c.path("hole")).st_blocks > 0
    c.make_cold("log", "hole")
    assert os.stat(path).st_blocks == os.stat(c.object_path("log")).st_blocks
    assert os.stat(c.path("hole")).st_blocks > 0
    here, there = os.statvfs(c.mnt), os.statvfs(c.store)
    assert (here.f_blocks * here.f_frsize, here.f_files) == (
        there.f_blocks * there.f_frsize,
        there.f_files,
    )
    assert abs(here.f_bavail * here.f_frsize - there.f_bavail * there.f_frsize) < 1 << 30
    df = subprocess.run(["df", "-B1", "--output=size", c.mnt], capture_output=True, check=True)
    assert int(df.stdout.split()[-1]) == there.f_blocks * there.f_frsize


def huge_object(path, tail):
    """4 GiB of zeros and tail, in frames of 64 MiB and with a seek table: made of one frame."""
    zeros = os.path.join(os.path.dirname(path), "zeros")
    zstd_make(bytes(64 * MIB), zeros)
    zstd_make(tail, path)
    frame, last = read_file(zeros), read_file(path)
    os.unlink(zeros)
    entries = [(len(frame), 64 * MIB)] * 64 + [(len(last), len(tail))]
    table = b"".join(struct.pack("<II", *e) for e in entries)
    table += struct.pack("<IBI", len(entries), 0, SEEK_FOOTER)
    write_file(path, frame * 64 + last + struct.pack("<II", SEEK_MAGIC, len(table)) + table)


@pytest.mark.limit(150)
def test_beyond_4_gib(box, mode):
    """Offsets that need more than 32 bits: of a dirty file that is mostly hole, and of a cold
    one. Writing such a file back takes its time: --soak does."""
    c = box.cellar(writeback_delay="1h", **mode).start()
    tail = text(20000, 1)
    huge_object(c.object_path("cold"), tail)
    at = (4 << 30) + 12345
    with open(c.path("f"), "wb") as f:
        f.write(b"begin")
        f.seek(at)
        f.write(b"beyond")

    def check():
        fd = os.open(c.path("f"), os.O_RDONLY)
        assert os.fstat(fd).st_size == at + 6
        assert os.pread(fd, 6, at) == b"beyond" and os.pread(fd, 10, at + 3) == b"ond"
        assert os.pread(fd, 5, 0) == b"begin"
        assert os.pread(fd, 20, (4 << 30) - 10) == bytes(20)
        assert os.lseek(fd, at, os.SEEK_DATA) == at
        assert os.lseek(fd, 0, os.SEEK_END) == at + 6
        os.close(fd)

    check()
    fd = os.open(c.path("f"), os.O_RDWR)
    os.pwrite(fd, b"second", (2 << 30) - 3)
    os.ftruncate(fd, at + 3)
    os.ftruncate(fd, at + 6)
    assert os.pread(fd, 6, at) == b"bey\0\0\0"
    os.pwrite(fd, b"ond", at + 3)
    assert os.pread(fd, 6, (2 << 30) - 3) == b"second"
    os.close(fd)
    check()
    assert os.stat(c.path("cold")).st_size == (4 << 30) + 20000
    before = c.counter("bytes_decoded")
    fd = os.open(c.path("cold"), os.O_RDONLY)
    assert os.pread(fd, 30000, 4 << 30) == tail
    assert os.pread(fd, 20, (4 << 30) - 10) == bytes(10) + tail[:10]
    assert os.lseek(fd, -5, os.SEEK_END) == (4 << 30) + 19995
    os.close(fd)
    assert c.counter("bytes_decoded") - before < 1 << 30, "it decoded all of it to show the end"
    if SOAK:
        c.flush()
        check()
        assert os.stat(c.object_path("f")).st_size < 4 * MIB
        c.remount()
        assert os.stat(c.path("f")).st_size == at + 6
        check()
    os.unlink(c.path("f"))


def test_second_change_within_a_tick(plain):
    """Two writes of the same length right after each other: mtime alone may not tell them
    apart, the content must."""
    path = plain.path("f")
    for i in range(30):
        write_file(path, b"%06d" % i)
        if i % 3 == 0:
            plain.make_cold("f")
        write_file(path, b"%06d" % (i + 500))
        plain.flush()
        assert plain.stored("f") == b"%06d" % (i + 500)
