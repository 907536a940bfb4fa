"""What a sync and a flush of one file tell recovery when they meet, and cuts right there: each test
holds the daemon at a named step, or makes one call fail, and cuts the power."""

import os

import pytest

from gate import Gate
from harness import KIB, FaultControl, reap, run, spawn, text, wait_for, write_file
from powercut import a_boot, power_off, records
from test_trust import scratch_of

pytestmark = pytest.mark.root

OLD, NEW, MORE = text(80 * KIB, 1), text(80 * KIB, 2), text(30 * KIB, 3)


class Held:
    """The environment of a daemon that waits at a step."""

    def __init__(self, r, step):
        self.path = os.path.join(r.box.path, "held")
        self.env = {"CELLAR_TEST_STEP": f"{step}=wait", "CELLAR_TEST_STEP_FILE": self.path}

    def wait(self):
        wait_for(lambda: os.path.exists(self.path), what="the daemon to come to the step")

    def go_on(self):
        os.unlink(self.path)


def after_the_cut(r, c):
    """The power went at the snapshot."""
    power_off(r, c)
    r.load("cut")
    c.expect("lost.found").lost_expected = True  # what was not synced, where the object counts
    c.start(a_boot())


def holds(c, name, content):
    """That and nothing beside it, in the mount and in the store."""
    assert c.read(name) == content
    c.flush()
    assert os.listdir(c.mnt) == [name]  # no conflict
    assert c.stored(name) == content


@pytest.mark.parametrize("before", ["new", "foreign"])
def test_sync_before_the_directory_is(rig, before):
    """(F9) fsync when a flush has put its object in place and not synced the directory: the record
    that it makes durable must know the object that is still there after a cut, though nothing
    in that one says whose it is."""
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    held = Held(r, "flush.installed:1")
    c.start({**a_boot(), **held.env})
    if before == "foreign":
        write_file(os.path.join(r.box.path, "plain"), OLD)
        run("zstd", "-q", os.path.join(r.box.path, "plain"), "-o", c.store_path("f.zst"))
        r.sync("store")
    with open(c.path("f"), "r+b" if before == "foreign" else "x+b", buffering=0) as f:
        f.write(NEW)
        os.fsync(f.fileno())
        f.write(MORE)
        flusher = spawn(c.flush)
        held.wait()
        os.fsync(f.fileno())
        r.snapshot("cut")
        held.go_on()
        assert reap(flusher) == 0
    after_the_cut(r, c)
    holds(c, "f", NEW + MORE)


def test_killed_before_the_directory_is_synced(rig):
    """(F9) the same by a daemon that was started after kill -9 and has met the new object."""
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    boot = a_boot()
    c.start({**boot, "CELLAR_TEST_STEP": "flush.installed:1=kill"})
    with open(c.path("f"), "x+b", buffering=0) as f:
        f.write(OLD)
        os.fsync(f.fileno())
        f.write(MORE)
        c.flush(check=False)
        wait_for(lambda: not c.running, what="the daemon to be gone")
        c.expect_crash()
    held = Held(r, "recovery.taken:1")
    c.launch({**boot, **held.env})
    held.wait()
    r.commit("pool")
    r.snapshot("cut")
    held.go_on()
    c.wait_up()
    after_the_cut(r, c)
    got = c.read("f")
    assert got in (OLD, OLD + MORE)
    holds(c, "f", got)


def test_copy_over_that_stopped_halfway(rig):
    """(F5) the object of two links is half written and its intent durable, when an fsync writes the
    record: what the next start makes of the intent is known for our own."""
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    control = FaultControl(os.path.join(r.box.path, "control"))
    c.expect("cannot flush", "stopped halfway")
    c.start({**a_boot(), **control.env})
    c.write("d/f", OLD)
    os.link(c.path("d/f"), c.path("d/second"))
    c.flush()
    r.sync("store")
    with open(c.path("d/f"), "r+b", buffering=0) as f:
        f.write(NEW)
        control.arm("ftruncate:1:EIO:always")
        assert c.flush(check=False).returncode != 0
        assert control.disarm()[1] > 0
        os.fsync(f.fileno())
        r.snapshot("cut")
    control.close()
    after_the_cut(r, c)
    for name in ("d/f", "d/second"):
        assert c.read(name) == NEW
    c.flush()
    assert sorted(os.listdir(c.path("d"))) == ["f", "second"]
    assert c.stored("d/second") == NEW


@pytest.mark.parametrize("how", ["unlink", "replace"])
def test_removed_with_two_names(rig, how):
    """(E3) both names of a dirty and synced file go, in two directories. Its scratch may go only when
    neither can come back: one that does still leads to what was synced."""
    r = rig("btrfs", True)
    c = r.cellar(writeback_delay="1h", sync_interval="200ms")
    c.start(a_boot())
    c.write("a/f", OLD)
    os.mkdir(c.path("b"))
    os.link(c.path("a/f"), c.path("b/f"))
    for name in ("a/g", "b/g"):
        c.write(name, MORE)
    c.flush()
    r.sync("store")
    with open(c.path("a/f"), "r+b") as f:
        f.write(NEW)
        os.fsync(f.fileno())
    scratch = scratch_of(c, "a/f")
    for d in ("a", "b"):
        if how == "unlink":
            os.unlink(c.path(f"{d}/f"))
        else:
            os.rename(c.path(f"{d}/g"), c.path(f"{d}/f"))
    wait_for(lambda: not os.path.exists(scratch), what="the doomed scratch to go")
    r.sync("pool")
    r.snapshot("cut")
    after_the_cut(r, c)
    for name in ("a/f", "b/f"):
        assert not os.path.exists(c.path(name)) or c.read(name) in (NEW, MORE), name


def test_catalog_older_than_the_object(rig):
    """Two versions of an object that was copied over alike in all that a look sees: inode, size and
    time. The catalog's row is of the first, record and object are of the second: our own."""
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    c.start(a_boot())
    c.write("d/f", b"one 0123456789abcdef")
    os.link(c.path("d/f"), c.path("d/second"))
    c.flush()
    c.stop()  # the catalog is on disk
    held = Held(r, "flush.installed:1")
    c.start({**a_boot(), **held.env})
    with open(c.path("d/f"), "r+b", buffering=0) as f:
        times = os.fstat(f.fileno())

        def write(data):
            os.pwrite(f.fileno(), data, 0)
            os.utime(f.fileno(), ns=(times.st_atime_ns, times.st_mtime_ns))

        write(b"two 0123456789abcdef")
        flusher = spawn(c.flush)
        held.wait()
        write(b"six 0123456789abcdef")
        os.fsync(f.fileno())
        r.snapshot("cut")
        held.go_on()
        assert reap(flusher) == 0
    after_the_cut(r, c)
    c.flush()
    assert sorted(os.listdir(c.path("d"))) == ["f", "second"]
    assert c.stored("d/second") == b"six 0123456789abcdef"


@pytest.mark.parametrize("how", ["rename", "unlink", "replace"])
def test_name_that_was_left_does_not_come_back(rig, how):
    """(F10) a file loses its name in one directory and is flushed into another one, of which alone a
    filesystem may make that durable: after a cut the old object must not be there, too."""
    r = rig("btrfs", True)
    c = r.cellar(writeback_delay="100ms", sync_interval="1h")
    c.start(a_boot())
    for name, content in (("a/f", OLD), ("a/g", MORE), ("b/h", OLD)):
        c.write(name, content)
    if how != "rename":
        os.link(c.path("a/f"), c.path("b/f"))
    c.flush()
    r.sync("store")
    if how == "rename":
        os.rename(c.path("a/f"), c.path("b/f"))
    elif how == "unlink":
        os.unlink(c.path("a/f"))
    else:
        os.rename(c.path("a/g"), c.path("a/f"))
    with open(c.path("b/f"), "r+b") as f:
        f.write(NEW)
    ino = os.stat(c.path("b/f")).st_ino
    wait_for(lambda: not records(r.pool).get(ino, (True,))[0], what="the flush")
    r.sync("pool")
    r.snapshot("cut")
    after_the_cut(r, c)
    assert c.read("b/f") == NEW
    assert not os.path.exists(c.path("a/f")) or c.read("a/f") in (NEW, MORE)


@pytest.mark.parametrize("fs, broken", [("ext4", ""), ("btrfs", ""), ("btrfs", "btrfs-commit")])
def test_no_log_of_a_store_on_btrfs(rig, fs, broken):
    """Nothing in a store on btrfs goes into the log that its fsync writes (store/durable.h): neither
    objects, new, appended to, copied over or with other times, nor directories. The gate would
    show it, as it does elsewhere and where the rule is broken."""
    r = rig(fs, True)
    calls = set()

    def visit(when, _number, call, path):
        if when == "before" and path.startswith(r.store + "/"):
            calls.add(call)

    gate = Gate(r.box.path, visit)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    c.expect("broken for a test")
    c.start({**a_boot(), **gate.environment(), "CELLAR_TEST_BREAK": broken})
    os.mkdir(c.path("d"))
    for name in ("d/f", "d/g"):
        c.write(name, OLD)
        with open(c.path(name), "rb") as f:
            os.fsync(f.fileno())
    os.rename(c.path("d/g"), c.path("d/f"))
    c.flush()
    with open(c.path("d/f"), "ab") as f:
        f.write(MORE)
    c.flush()
    os.link(c.path("d/f"), c.path("h"))
    c.write("h", NEW)
    c.flush()
    os.utime(c.path("h"), (1, 1))
    c.flush()
    os.unlink(c.path("d/f"))
    fd = os.open(c.path("d"), os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
    c.stop()
    gate.close()
    if fs == "btrfs" and not broken:
        assert calls == {"syncfs"}
    else:
        assert "fsync" in calls
