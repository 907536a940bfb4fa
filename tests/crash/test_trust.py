"""What a next start may believe of a pool: the mark of a clean end, the mark in the runtime
directory (src/pool/trust.h), and neither."""

import os
import subprocess

import pytest

from harness import KIB, FaultControl, errno_of, reap, spawn, text, wait_for
from powercut import a_boot, power_off, records

pytestmark = pytest.mark.root

OLD, NEW = text(80 * KIB, 1), text(90 * KIB, 2)


def scratch_of(c, rel):
    ino = os.stat(c.path(rel)).st_ino
    return os.path.join(c.pool_dir(), "scratch", f"{ino & 0xFF:02x}", f"{ino:016x}")


def overwritten_and_killed(c, before_sync=None):
    """f holds OLD in the store and NEW in the pool. Returns the errno of its fsync, if there is
    one."""
    c.write("f", OLD)
    c.flush()
    fd = os.open(c.path("f"), os.O_RDWR)
    os.pwrite(fd, NEW, 0)
    failed = 0
    if before_sync:
        before_sync()
        failed = errno_of(os.fsync, fd)
    c.kill9()
    errno_of(os.close, fd)
    return failed


def test_pool_mounted_anew_is_a_reboot(rig):
    """kill -9, then the pool's disk loses what was only in memory and is mounted again: the
    kernel has not booted, and yet nothing unsynced may be believed."""
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    c.lost_expected = True
    c.expect("lost.found", "mounted anew")
    boot = a_boot()
    c.start(boot)
    overwritten_and_killed(c)
    r.commit("pool")
    r.shut_down("pool")
    subprocess.run(["umount", "-l", c.mnt], check=True)
    r.umount()
    r.mount()
    c.start(boot)
    assert c.read("f") == OLD
    c.wait_log("mounted anew")


def test_same_mount_is_no_reboot(rig):
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    boot = a_boot()
    c.start(boot)
    overwritten_and_killed(c)
    c.start(boot)
    assert c.read("f") == NEW


def test_failed_sync_is_a_reboot(box):
    """The kernel tells once that it lost a page; a daemon that is started after that must not
    take the scratch for whole."""
    c = box.cellar(writeback_delay="1h", sync_interval="1h")
    c.lost_expected = True
    c.expect("lost.found", "sync of it failed", "a sync of the pool", "Input/output")
    boot = a_boot()
    control = FaultControl(os.path.join(box.path, "control"))
    c.start({**boot, **control.env})
    assert overwritten_and_killed(c, lambda: control.arm("fdatasync:1:EIO")) != 0
    c.start(boot)
    assert c.read("f") == OLD
    c.wait_log("sync of it failed")
    with open(c.path("f"), "wb") as f:
        f.write(NEW)
    c.kill9()
    c.start(boot)  # once: what came later is believed
    assert c.read("f") == NEW


def test_dirty_after_a_clean_stop_outlives_a_reboot(rig):
    """What could not be flushed at the end was synced with the pool: it is taken over after a
    reboot, and after a power cut right behind that one too."""
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h", drain_timeout="1s")
    c.expect("cannot flush", "stay in the pool")
    c.start(a_boot())
    c.write("d/f", OLD)
    c.flush()
    c.write("d/f", NEW)
    subprocess.run(["chattr", "+i", c.store_path("d")], check=True)
    c.proc.terminate()
    assert c.wait_end() == 0
    subprocess.run(["chattr", "-i", c.store_path("d")], check=True)
    r.umount()
    r.mount()
    c.start(a_boot())
    assert c.read("d/f") == NEW
    r.snapshot("cut")
    power_off(r, c)
    r.load("cut")
    c.start(a_boot())
    assert c.read("d/f") == NEW
    c.flush()
    assert c.stored("d/f") == NEW


def test_failed_start_leaves_no_clean_mark(box):
    """A start that could not recover has looked at nothing: what it found is as doubtful as
    before (R3)."""
    c = box.cellar(writeback_delay="1h")
    c.start(a_boot())
    c.write("f", OLD)
    c.make_cold("f")
    assert c.read("f") == OLD  # hydrated: clean and never synced
    scratch = scratch_of(c, "f")
    c.kill9()
    with open(scratch, "r+b") as f:
        f.write(bytes(50 * KIB))  # what a power cut may make of it
    c.expect("cannot recover")
    c.launch({**a_boot(), "CELLAR_TEST_FAULT": "unlinkat:1:EIO:always"})
    assert c.wait_end() != 0
    c.start(a_boot())
    assert c.read("f") == OLD


def test_pool_older_than_the_flush_that_was_under_way(rig):
    """(F5) fsync while the new object is made; then the flush puts it in place. Of the pool what
    the fsync wrote outlives the cut, of the store all: the object is known for our own."""
    r = rig("ext4", True)
    held = os.path.join(r.box.path, "held")
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    c.start({**a_boot(), "CELLAR_TEST_STEP": "flush.verified:2=wait", "CELLAR_TEST_STEP_FILE": held})
    c.write("f", OLD)
    c.flush()
    with open(c.path("f"), "r+b", buffering=0) as f:
        f.write(NEW)
        flusher = spawn(c.flush)
        wait_for(lambda: os.path.exists(held), what="the flush to come to the step")
        os.fsync(f.fileno())
        r.snapshot("synced")
        os.unlink(held)
    assert reap(flusher) == 0
    assert c.stored("f") == NEW
    r.sync("store")
    r.snapshot("flushed")
    power_off(r, c)
    r.load({"pool": "synced", "store": "flushed"})
    c.start(a_boot())
    assert c.read("f") == NEW
    c.flush()
    assert os.listdir(c.mnt) == ["f"]  # no conflict
    assert c.stored("f") == NEW


def cut_off(r, c, *fds):
    """The power goes now, and comes back. fds: open files, which may keep the pool's disk busy."""
    r.snapshot("cut")
    power_off(r, c, *fds)
    r.load("cut")
    c.start(a_boot())


def test_scratch_of_before_does_not_come_back(rig):
    """(S5) fsync of a file that turns out to be unchanged; its scratch goes, and the next one's number is
    no higher than what that fsync recorded. The first must not be found beside the second's object."""
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    c.start(a_boot())
    c.write("f", OLD)
    c.make_cold("f")
    r.sync("pool")
    with open(c.path("f"), "r+b", buffering=0) as f:
        for _ in range(3):
            f.write(OLD)
            f.seek(0)
            os.fsync(f.fileno())
    c.make_cold("f")  # nothing was encoded: the same bytes
    c.write("f", NEW)
    c.flush()
    cut_off(r, c)
    assert c.read("f") == NEW
    c.flush()
    assert os.listdir(c.mnt) == ["f"]
    assert c.stored("f") == NEW


def test_sync_that_looked_before_a_flush(rig):
    """(Y4) It comes to its record after the flush: the record must not say less than the object has,
    with a higher number."""
    r = rig("ext4", True)
    held = os.path.join(r.box.path, "held")
    c = r.cellar(writeback_delay="1h", sync_interval="1s")
    c.start({**a_boot(), "CELLAR_TEST_STEP": "fsync.data:1=wait", "CELLAR_TEST_STEP_FILE": held})
    fd = os.open(c.path("f"), os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, NEW[:1000])
    wait_for(lambda: os.path.exists(held), what="the background sync to come to the step")
    os.write(fd, NEW[1000:])
    c.flush()
    os.unlink(held)
    number = os.fstat(fd).st_ino
    wait_for(lambda: records(r.pool)[number][2] > 0, what="the record of a sync")
    r.commit("pool")
    cut_off(r, c, fd)
    assert c.read("f") == NEW
    c.flush()
    assert os.listdir(c.mnt) == ["f"]


def test_synced_and_then_changed_back(rig):
    """Synced with other bytes on the way; in the end it is what the object has, and nothing is
    encoded. What that sync recorded is not believed instead."""
    r = rig("ext4", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h", frame_size="64K")
    c.start(a_boot())
    c.write("f", OLD * 3)
    c.flush()
    with open(c.path("f"), "r+b", buffering=0) as f:
        os.pwrite(f.fileno(), NEW[: 40 * KIB], 0)
        os.fsync(f.fileno())
        os.pwrite(f.fileno(), OLD[: 40 * KIB], 0)
    before = os.stat(c.object_path("f")).st_ino
    c.flush()
    assert os.stat(c.object_path("f")).st_ino == before, "another object was made"
    cut_off(r, c)
    assert c.read("f") == OLD * 3


def test_directory_that_says_it_is_synced(rig):
    """(E3) XFS answers 0 to the fsync of a directory after it was shut down: what an unlink left is not
    thrown away on that."""
    r = rig("xfs", True)
    c = r.cellar(writeback_delay="1h", sync_interval="1h")
    c.expect(".")
    c.start(a_boot())
    fd = os.open(c.path("f"), os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(fd, NEW, 0)
    os.fsync(fd)
    number = os.fstat(fd).st_ino
    os.unlink(c.path("f"))
    r.shut_down("store")
    before = c.counter("store_syncs")
    os.close(fd)  # now the scratch may go, once the unlink is durable
    wait_for(lambda: c.counter("store_syncs") > before + 1, what="two tries to make it so")
    assert number in records(r.pool)
    power_off(r, c)
    r.mount()
    c.start(a_boot())
    assert c.read("f") == NEW
