"""The pool: its bound, its order, what it never does, and what must not show."""

import errno
import os
import stat
import subprocess
import time

import pytest

from harness import (
    KIB,
    MIB,
    ROOT,
    FaultControl,
    read_file,
    text,
    wait_for,
    write_file,
    zstd_cat,
)


def settled(c):
    """Waits until the pool is within its bound."""
    wait_for(
        lambda: pool(c)["bytes"] <= pool(c)["limit_bytes"], 30, "the pool to be within its bound"
    )


def pool(c):
    return c.status()["pool"]


def test_eviction_goes_by_last_use(box):
    c = box.cellar(pool_size="4M", writeback_delay="1h").start()
    names = [f"f{i}" for i in range(12)]
    for i, name in enumerate(names):
        c.write(name, text(MIB, i))
    c.make_cold(*names)
    order = []

    def use(name):
        assert c.read(name) == text(MIB, names.index(name))
        if name in order:
            order.remove(name)
        order.append(name)

    for name in ("f0", "f1", "f2", "f0", "f3", "f4", "f5", "f4", "f6", "f7", "f8", "f7", "f2"):
        use(name)
        settled(c)
        warm = [n for n in order if c.is_warm(n)]
        assert warm, "the most recently used stays"
        assert warm == order[len(order) - len(warm) :], f"{warm} of {order}"
    assert len(warm) <= 4
    assert c.counter("evictions") >= 5
    hits, misses = c.counter("open_hits"), c.counter("open_misses")
    use("f2")
    assert c.counter("open_hits") == hits + 1
    assert c.counter("open_misses") == misses


def test_bound_holds_after_writing(box):
    """Twenty times the pool is written; what is closed and clean does not exceed it."""
    c = box.cellar(pool_size="2M", writeback_delay="20ms").start()
    for i in range(40):
        c.write(f"f{i}", text(MIB, i))
    settled(c)
    c.flush()
    settled(c)
    du = subprocess.run(
        ["du", "-s", "-B1", os.path.join(c.pool_dir(), "scratch")], capture_output=True, check=True
    )
    assert int(du.stdout.split()[0]) <= 2 * MIB + 300 * 4 * KIB, "the 256 folders and the bound"
    for i in range(40):
        assert c.read(f"f{i}") == text(MIB, i)


def test_dirty_is_never_evicted(box):
    """Open for writing and over the bound: nothing of it is deleted before it is in the store."""
    c = box.cellar(pool_size="2M", writeback_delay="1h").start()
    handles = []
    for i in range(6):
        handles.append(os.open(c.path(f"f{i}"), os.O_RDWR | os.O_CREAT, 0o644))
        os.write(handles[-1], text(MIB, i))
    inos = {os.fstat(fd).st_ino for fd in handles}
    for i in range(8):  # clean ones come and go meanwhile
        c.write(f"other{i}", text(MIB, 100 + i))
        assert inos <= c.scratches()
    s = c.status()
    assert s["pool"]["over_bytes"] > 0, f"the bound is exceeded, and by how much: {s}"
    for i, fd in enumerate(handles):
        assert os.pread(fd, MIB, 0) == text(MIB, i)
        os.close(fd)
    c.flush()
    settled(c)
    for i in range(6):
        assert c.stored(f"f{i}") == text(MIB, i)
        assert c.read(f"f{i}") == text(MIB, i)


def test_what_has_no_scratch_is_in_the_store(box):
    """Under pressure, at every moment: no scratch means the object has the content."""
    c = box.cellar(pool_size="1M", writeback_delay="30ms").start()
    names = [f"f{i}" for i in range(30)]
    for i, name in enumerate(names):
        c.write(name, text(300 * KIB, i))
        for j, earlier in enumerate(names[: i + 1]):
            if not c.is_warm(earlier):
                assert c.stored(earlier) == text(300 * KIB, j)


def test_max_idle(box):
    c = box.cellar(max_idle="300ms", writeback_delay="20ms").start()
    c.write("f", text(100 * KIB, 1))
    c.write("open", text(100 * KIB, 2))
    fd = os.open(c.path("open"), os.O_RDONLY)
    wait_for(lambda: not c.is_warm("f"), 30, "the unused scratch to go")
    assert c.is_warm("open"), "what is open stays"
    os.close(fd)
    wait_for(lambda: not c.is_warm("open"), 30, "the closed one to follow")
    assert c.read("f") == text(100 * KIB, 1)


def snapshot(c, rels):
    """What other tools rely on, by name."""
    out = {}
    for rel in rels:
        st = os.lstat(c.path(rel))
        out[rel] = {
            "ino": st.st_ino,
            "mode": st.st_mode,
            "nlink": st.st_nlink,
            "uid": st.st_uid,
            "gid": st.st_gid,
            "size": st.st_size,
            "mtime": st.st_mtime_ns,
            "ctime": st.st_ctime_ns,
        }
        if stat.S_ISREG(st.st_mode):
            out[rel]["xattr"] = {
                n: os.getxattr(c.path(rel), n) for n in sorted(os.listxattr(c.path(rel)))
            }
    return out


def test_nothing_shows(cellar):
    """Numbers, times, modes, xattrs, links: the same through flush, eviction and remount."""
    c = cellar
    os.makedirs(c.path("d/sub"))
    c.write("d/plain", text(50 * KIB, 1))
    c.write("d/sub/big", text(3 * MIB, 2))
    c.write("d/linked", text(70 * KIB, 3))
    os.link(c.path("d/linked"), c.path("d/sub/second"))
    c.write("d/dated", b"old")
    os.utime(c.path("d/dated"), ns=(1_000_000_000_123_456_789, 999_999_999_987_654_321))
    c.write("d/moded", b"mode")
    os.chmod(c.path("d/moded"), 0o2750)
    os.setxattr(c.path("d/moded"), "user.origin", b"somewhere")
    os.symlink("plain", c.path("d/link"))
    os.mkfifo(c.path("d/fifo"))
    c.write("d/empty", b"")
    os.utime(c.path("d/sub"), ns=(5, 1_234_567_890_000_000_001))
    rels = ["", "d", "d/sub", "d/plain", "d/sub/big", "d/linked", "d/sub/second", "d/dated"]
    rels += ["d/moded", "d/link", "d/fifo", "d/empty"]
    before = snapshot(c, rels)
    assert before["d/dated"]["mtime"] == 999_999_999_987_654_321
    assert before["d/linked"]["ino"] == before["d/sub/second"]["ino"]

    def check(when):
        now = snapshot(c, rels)
        for rel in rels:
            assert now[rel] == before[rel], f"{rel!r} {when}"

    c.flush()
    check("after the flush")
    files = ["d/plain", "d/sub/big", "d/linked", "d/dated", "d/moded", "d/empty"]
    c.make_cold(*files)
    check("after eviction")
    for rel in files:
        c.read(rel)
    check("after reading")
    c.remount()
    check("after a remount")
    for rel in files:
        with open(c.path(rel), "r+b"):
            pass
    c.flush()
    check("after an open for writing that wrote nothing")
    c.remount("umount")
    check("after the second remount")


def test_changes_show_once_and_stay(cellar):
    """The times of a change are those of the change, not of its flush."""
    c = cellar
    c.write("f", text(10 * KIB, 1))
    c.write("g", b"g")
    c.make_cold("f", "g")
    before = os.stat(c.path("f"))
    with open(c.path("f"), "ab") as f:
        f.write(b"more")
    changed = os.stat(c.path("f"))
    assert changed.st_mtime_ns > before.st_mtime_ns
    assert changed.st_ctime_ns > before.st_ctime_ns
    assert changed.st_ino == before.st_ino
    c.make_cold("f")
    later = os.stat(c.path("f"))
    assert (later.st_mtime_ns, later.st_ctime_ns) == (changed.st_mtime_ns, changed.st_ctime_ns)
    # metadata of a cold file: ctime moves, mtime does not, and both stay
    os.chmod(c.path("g"), 0o600)
    g = os.stat(c.path("g"))
    c.remount()
    again = os.stat(c.path("g"))
    assert (again.st_mtime_ns, again.st_ctime_ns) == (g.st_mtime_ns, g.st_ctime_ns)
    assert os.stat(c.path("f")).st_mtime_ns == changed.st_mtime_ns
    assert os.stat(c.path("f")).st_ctime_ns == changed.st_ctime_ns


def test_reading_leaves_no_trace(cellar):
    """A flush after nothing but reading rewrites no object."""
    c = cellar
    for i in range(5):
        c.write(f"f{i}", text(100 * KIB, i))
    c.make_cold(*[f"f{i}" for i in range(5)])
    before = [os.stat(c.object_path(f"f{i}")) for i in range(5)]
    for i in range(5):
        c.read(f"f{i}")
    with open(c.path("f0"), "r+b"):
        pass
    c.flush()
    after = [os.stat(c.object_path(f"f{i}")) for i in range(5)]
    assert [(a.st_ino, a.st_mtime_ns) for a in after] == [
        (b.st_ino, b.st_mtime_ns) for b in before
    ]


def test_attributes_follow_the_object(cellar):
    """chmod, xattr and times of a dirty file are on the object after its flush."""
    c = cellar
    c.write("f", text(100 * KIB, 1))
    os.chmod(c.path("f"), 0o640)
    os.setxattr(c.path("f"), "user.tag", b"value")
    os.utime(c.path("f"), ns=(7, 1_500_000_000_000_000_007))
    c.flush()
    st = os.stat(c.object_path("f"))
    assert stat.S_IMODE(st.st_mode) == 0o640
    assert st.st_mtime_ns == 1_500_000_000_000_000_007
    assert os.getxattr(c.object_path("f"), "user.tag") == b"value"
    with open(c.path("f"), "ab") as f:
        f.write(b"more")
    c.flush()
    assert stat.S_IMODE(os.stat(c.object_path("f")).st_mode) == 0o640
    assert os.getxattr(c.object_path("f"), "user.tag") == b"value"
    assert os.stat(c.object_path("f")).st_mtime_ns == os.stat(c.path("f")).st_mtime_ns


class Sealed:
    """A store directory in which nothing can be made or replaced for a while."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        if not ROOT:
            os.chmod(self.path, 0o500)
        elif subprocess.run(["chattr", "+i", self.path], check=False, capture_output=True).returncode:
            pytest.skip("this filesystem has no immutable flag")
        return self

    def __exit__(self, *_):
        if not ROOT:
            os.chmod(self.path, 0o755)
        else:
            subprocess.run(["chattr", "-i", self.path], check=True)


def test_failing_store_costs_nothing(cellar):
    """A flush that cannot work keeps the file dirty, says so, and works later."""
    c = cellar
    c.write("d/f", text(100 * KIB, 1))
    c.write("fine", b"1")
    c.flush()
    with open(c.path("d/f"), "ab") as f:
        f.write(b"precious")
    c.write("fine", b"2")
    c.expect(r"d/f|'d'|\"d\"")
    with Sealed(c.store_path("d")):
        result = c.flush(check=False)
        assert result.returncode == 1
        assert "d/f" in result.out + result.err, "the list of what failed"
        assert c.stored("fine") == b"2", "the others are written"
        assert c.stored("d/f") == text(100 * KIB, 1), "the old object is whole"
        assert c.read("d/f") == text(100 * KIB, 1) + b"precious"
        assert c.is_warm("d/f")
        assert c.evict("d/f", check=False).returncode == 1, "dirty is not evicted"
        status = c.ctl("status", c.mnt)
        assert "d/f" in status.out
        assert c.counter("flush_errors") >= 1
    c.flush()
    assert c.stored("d/f") == text(100 * KIB, 1) + b"precious"
    c.remount()
    assert c.read("d/f") == text(100 * KIB, 1) + b"precious"


def test_failing_store_over_a_restart(box):
    """What could not be drained is reported, stays in the pool and is there after a restart."""
    c = box.cellar(writeback_delay="1h", drain_timeout="1s").start()
    c.write("d/f", b"first")
    c.flush()
    c.write("d/f", b"second")
    c.expect(r".")  # complaints are the point here
    with Sealed(c.store_path("d")):
        c.proc.terminate()
        status = c.wait_end()
        assert status in (0, 1)
        assert "d/f" in c.log_text(), "it says what is left"
        assert zstd_cat(c.object_path("d/f")) == b"first"
    c.start()
    assert c.read("d/f") == b"second"
    c.flush()
    assert c.stored("d/f") == b"second"


def test_pool_elsewhere(box):
    """pool=DIR: catalog and scratch are there, the store holds objects only."""
    c = box.cellar(pool=os.path.join(box.path, "pool"), writeback_delay="1h").start()
    c.write("f", text(100 * KIB, 1))
    assert os.path.exists(os.path.join(c.pool_dir(), "catalog.db"))
    assert not os.path.exists(c.store_path(".cellar/catalog.db"))
    assert len(c.scratches()) == 1
    assert stat.S_IMODE(os.stat(c.pool_dir()).st_mode) == 0o700
    c.flush()
    c.remount()
    assert c.read("f") == text(100 * KIB, 1)


def test_catalog_can_be_lost(box):
    """Deleted or damaged: contents, numbers and times are the same without it."""
    c = box.cellar(writeback_delay="1h").start()
    for i in range(20):
        c.write(f"d{i % 3}/f{i}", text(5000 + i, i))
    c.flush()
    rels = [f"d{i % 3}/f{i}" for i in range(20)]
    before = snapshot(c, rels)
    c.stop()
    for name in os.listdir(c.pool_dir()):
        if name.startswith("catalog.db"):
            os.unlink(os.path.join(c.pool_dir(), name))
    c.start()
    assert snapshot(c, rels) == before
    c.stop()
    path = os.path.join(c.pool_dir(), "catalog.db")
    with open(path, "r+b") as f:
        f.write(b"this is no database at all " * 40)
    c.expect("catalog")
    c.start()
    assert snapshot(c, rels) == before
    for i, rel in enumerate(rels):
        assert c.read(rel) == text(5000 + i, i)
    c.stop()
    aside = [n for n in os.listdir(c.pool_dir()) if "set-aside" in n]
    assert aside, "the damaged one is kept"


def test_copied_object_is_another_file(box):
    """An object copied inside the store by hand gets a number of its own."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("a", text(5000, 1))
    c.flush()
    c.stop()
    write_file(c.object_path("b"), read_file(c.object_path("a")))
    c.start()
    a, b = os.stat(c.path("a")), os.stat(c.path("b"))
    assert a.st_ino != b.st_ino
    with open(c.path("b"), "ab") as f:
        f.write(b"only b")
    c.flush()
    assert c.stored("a") == text(5000, 1)
    assert c.stored("b") == text(5000, 1) + b"only b"


def test_numbers_are_never_reused(cellar):
    """Create and delete: a new file never gets the number of an old one."""
    seen = set()
    for i in range(200):
        path = cellar.write("f", b"%d" % i)
        ino = os.stat(path).st_ino
        assert ino not in seen
        seen.add(ino)
        os.unlink(path)
    cellar.remount()
    path = cellar.write("f", b"after")
    assert os.stat(path).st_ino not in seen


def test_evict_refuses_what_it_must(cellar):
    c = cellar
    c.write("dirty", b"1")
    c.write("open", b"2")
    c.flush()
    c.write("dirty", b"3")
    fd = os.open(c.path("open"), os.O_RDONLY)
    for name in ("dirty", "open"):
        result = c.evict(name, check=False)
        assert result.returncode == 1, name
        assert name in result.err + result.out
        assert c.is_warm(name)
    os.close(fd)
    c.evict_closed("open")
    assert not c.is_warm("open")
    assert c.read("open") == b"2"
    missing = c.evict("missing", check=False)
    assert missing.returncode in (1, 2) and os.strerror(errno.ENOENT) in missing.err


# ---- what a small file costs ----

MANY = 32
COSTS = {
    # call of the system-call table: (most for a create with its close, for a flush), a file
    "fsync": (0, 1),  # the new object; directories are shared
    "fdatasync": (0, 0),
    "syncfs": (0, 0),
    "renameat2": (0, 1),
    "unlinkat": (0, 0),
    "openat": (5, 5),
    "fsetxattr": (4, 2),
    "handle": (4, 5),
    "fstatat": (10, 4),
}


def test_cost_of_small_files(box):
    """Calls and catalog transactions that creating a file costs, and flushing it: both shared by
    many files wherever they can be."""
    control = FaultControl(os.path.join(box.path, "control"))
    opts = {"writeback_delay": "1h", "sync_interval": "1h", "flushers": 1}
    c = box.cellar(**opts).start(control.env)
    data = text(2 * KIB, 1)
    for i in range(256):  # the directories of scratch/, made with their first file
        write_file(c.path(f"first{i}"), b"")
    c.flush()
    seen = {}
    for call in COSTS:
        names = [f"d-{call}/{i}" for i in range(MANY)]
        os.mkdir(c.path(f"d-{call}"))
        control.arm(f"{call}:1000000:EIO")
        for name in names:
            write_file(c.path(name), data)
        wait_for(lambda: c.status()["scratch"]["open"] == 0, what="the last RELEASE")
        created = control.disarm()[0]
        control.arm(f"{call}:1000000:EIO")
        c.flush()
        wait_for(lambda: c.status()["scratch"]["dirty"] == 0, what="the files to be clean")
        seen[call] = (created / MANY, control.disarm()[0] / MANY)
    slack = 12 / MANY  # directories, housekeeping
    for call, most in COSTS.items():
        assert seen[call][0] <= most[0] + slack and seen[call][1] <= most[1] + slack, seen
    commits = c.counter("catalog_commits")
    begin = time.monotonic()
    for i in range(16 * MANY):
        write_file(c.path(f"x{i}"), data)
    c.flush()
    rounds = (time.monotonic() - begin) / 0.5  # CATALOG_BATCH_MS
    assert c.counter("catalog_commits") - commits <= rounds + 2
