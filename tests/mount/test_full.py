"""Real full disks and failing ones: small ext4, xfs and btrfs images on loop devices under store
and pool. Root only.

Promise 7: a full or failing store never costs data: dirty scratch stays, is retried, and shows in
`cellarctl status` with its cause. Design, section 5: a full pool is told to the writer at write,
never only at close, and nothing that was acknowledged is lost.
"""

import errno
import os

import pytest

from disk import Disk
from harness import KIB, MIB, detach, errno_of, noise, run, wait_for

pytestmark = pytest.mark.root

COMPLAINTS = r"cannot flush|No space|quota|cannot sync|cannot mark|error"


def make(box, store=None, pool=None, **opts):
    c = box.cellar(writeback_delay="1h", sync_interval="1h", **opts)
    if store:
        c.store = store.dir("store")
    if pool:
        c.opts["pool"] = pool.dir("pool")
    return c.expect(COMPLAINTS).start()


def write_until_full(c, name, size=256 * MIB, step=256 * KIB):
    """Writes until an error; returns (the bytes that were acknowledged, errno of the write)."""
    fd = os.open(c.path(name), os.O_CREAT | os.O_WRONLY, 0o644)
    done = bytearray()
    got = 0
    try:
        while len(done) < size and not got:
            piece = noise(step, len(done))
            try:
                done += piece[: os.write(fd, piece)]
            except OSError as e:
                got = e.errno
    finally:
        os.close(fd)  # an error here would raise: never only at close
    return bytes(done), got


def check(c, files):
    for name, data in files.items():
        assert c.read(name) == data, f"{name} is not what was acknowledged"


def check_flushed(c, files):
    wait_for(lambda: c.flush(check=False).returncode == 0, 30, "everything to flush")
    for name, data in files.items():
        assert c.stored(name) == data, f"{name} in the store is not what was acknowledged"
    c.ctl("verify", c.mnt)


def check_failing(c, name, words):
    done = c.flush(check=False)
    assert done.returncode == 1 and name in done.out + done.err, done.out + done.err
    status = c.status()
    assert status["failing_files"] > 0 and status["scratch"]["dirty"] > 0
    assert words in str(status["failing"]), status["failing"]
    assert words in c.ctl("status", c.mnt).out, "the cause is not shown"


@pytest.mark.parametrize("kind,size", [("ext4", 48), ("xfs", 320)])
def test_store_full(box, kind, size):
    """Store full: writes go on, the flush says why not, kill -9 keeps it, room lets it through."""
    store = Disk(box, "disk", kind, size * MIB)
    c = box.cellar(writeback_delay="1h", pool=box.dir("pool"))
    c.store = store.dir("store")
    c.expect(COMPLAINTS).start()
    files = {"old": noise(2 * MIB, 1)}
    c.write("old", files["old"])
    c.write("new", b"")  # an empty object; a full store may have no room for another inode
    c.flush()
    store.fill(leave=64 * KIB)
    files["new"] = noise(3 * MIB, 2)
    files["old"] = noise(3 * MIB, 3)
    for name, data in files.items():
        c.write(name, data)
    check_failing(c, "new", "No space left")
    check(c, files)
    c.kill9()
    c.expect("recover")
    c.start()
    check(c, files)
    check_failing(c, "new", "No space left")
    store.free()
    check_flushed(c, files)
    c.remount()
    check(c, files)


def test_pool_full(box):
    """Pool full: write says so, close does not, and what was acknowledged is there; with room
    again writing goes on."""
    pool = Disk(box, "disk", "ext4", 48 * MIB)
    c = make(box, pool=pool)
    first, got = write_until_full(c, "first")
    assert got == errno.ENOSPC and len(first) > 10 * MIB
    check(c, {"first": first})
    check_flushed(c, {"first": first})
    c.evict_closed("first")
    second, got = write_until_full(c, "second", size=4 * MIB)
    assert got == 0, "there is room again"
    check_flushed(c, {"first": first, "second": second})


def test_both_full(box):
    store, pool = Disk(box, "sdisk"), Disk(box, "pdisk")
    c = make(box, store, pool)
    files = {"old": noise(MIB, 1)}
    c.write("old", files["old"])
    c.flush()
    store.fill(leave=32 * KIB)
    files["new"], got = write_until_full(c, "new")
    assert got == errno.ENOSPC
    check_failing(c, "new", "No space left")
    check(c, files)
    # more than the eviction of "old" gives back
    assert errno_of(c.write, "third", b"x" * (4 * MIB)) == errno.ENOSPC
    c.kill9()
    c.start()
    check(c, files)
    store.free()
    # the pool is as full as before, and it needs none of its room to be flushed
    check_flushed(c, files)


@pytest.mark.parametrize("where", ["store", "pool"])
def test_out_of_inodes(box, where):
    """No inode is left: creating says ENOSPC, what was created is whole."""
    disk = Disk(box, "disk", "ext4", 48 * MIB, options=("-N", "420"))
    c = make(box, **{where: disk})
    files = {}
    got = 0
    while not got and len(files) < 1000:
        name = f"f{len(files)}"
        data = noise(100, len(files))
        try:
            c.write(name, data)
            files[name] = data
        except OSError as e:
            got = e.errno
    assert got == errno.ENOSPC and len(files) > 20
    check(c, files)
    if where == "store":
        # a replacement needs an inode of its own until the old one goes
        check_failing(c, "f", "No space left")
        assert c.status()["scratch"]["dirty"] == len(files)
        for name in [f"f{i}" for i in range(8)]:
            os.unlink(c.path(name))
            del files[name]
    check_flushed(c, files)
    c.remount()
    check(c, files)


@pytest.mark.parametrize("where", ["store", "pool"])
def test_quota(box, where):
    """btrfs quota: EDQUOT at write (pool), or as the cause of a flush that fails (store)."""
    disk = Disk(box, "disk", "btrfs", 256 * MIB)
    part = os.path.join(disk.path, where)
    run("btrfs", "subvolume", "create", part)
    run("btrfs", "quota", "enable", disk.path)
    c = box.cellar(writeback_delay="1h")
    if where == "store":
        c.store = part
        c.opts["pool"] = box.dir("pool")
    else:
        c.opts["pool"] = part
    c.expect(COMPLAINTS).start()
    files = {"old": noise(MIB, 1)}
    c.write("old", files["old"])
    c.flush()
    run("btrfs", "qgroup", "limit", "8M", part)
    if where == "store":
        files["new"] = noise(12 * MIB, 2)
        c.write("new", files["new"])
        check_failing(c, "new", "quota")
    else:
        files["new"], got = write_until_full(c, "new")
        assert got == errno.EDQUOT, errno.errorcode.get(got)
    check(c, files)
    run("btrfs", "qgroup", "limit", "none", part)
    check_flushed(c, files)


@pytest.mark.parametrize("kind,size", [("ext4", 48), ("xfs", 320)])
def test_store_device_fails(box, kind, size):
    """The store's device goes: warm files go on, cold ones are EIO, the dirty stay, and the next
    start with the device back has all of them."""
    store = Disk(box, "disk", kind, size * MIB)
    c = box.cellar(writeback_delay="1h", pool=box.dir("pool"))
    c.store = store.dir("store")
    c.expect(COMPLAINTS, "cannot|draining|stay in the pool").start()
    files = {"cold": noise(MIB, 1), "warm": noise(MIB, 2), "dirty": noise(MIB, 3)}
    for name, data in files.items():
        c.write(name, data)
    c.flush()
    c.evict_closed("cold")
    fd = os.open(c.path("dirty"), os.O_RDWR)
    store.shut_down()
    files["dirty"] = noise(2 * MIB, 4)
    os.pwrite(fd, files["dirty"], 0)
    if kind == "ext4":  # xfs answers not even stat
        assert os.pread(fd, 4 * MIB, 0) == files["dirty"]
    os.close(fd)
    assert errno_of(c.read, "cold") in (errno.EIO, errno.EUCLEAN, errno.ESTALE)
    done = c.flush(check=False)
    assert done.returncode == 1, "it cannot have been flushed"
    assert c.status()["scratch"]["dirty"] >= 1
    c.proc.kill()
    c.proc.wait(30)
    c.expect_crash()
    store.umount()
    store.mount()
    c.start()
    check(c, files)
    check_flushed(c, files)


def test_pool_device_fails(box):
    """The pool's device goes: writers and fsync are told EIO, and after a start with the device
    back (a reboot, as far as it is concerned) fsynced bytes are there, old or new the rest."""
    pool = Disk(box, "disk")
    c = make(box, pool=pool)
    c.expect("cannot|draining|stay in the pool|moved to lost|reading it")
    c.lost_expected = True
    files = {"flushed": noise(MIB, 1), "synced": noise(MIB, 2)}
    for name, data in files.items():
        c.write(name, data)
    c.flush(c.path("flushed"))
    fd = os.open(c.path("synced"), os.O_RDWR)
    os.fsync(fd)
    pool.shut_down()
    assert errno_of(os.pwrite, fd, b"x" * MIB, 0) == errno.EIO
    assert errno_of(os.fsync, fd) == errno.EIO
    os.close(fd)
    assert errno_of(c.write, "third", b"x") == errno.EIO
    c.proc.kill()
    c.proc.wait(30)
    c.expect_crash()
    pool.umount()
    pool.mount()
    c.start(env={"CELLAR_BOOT_ID": "00000000-0000-4000-8000-000000000001"})
    check(c, files)
    check_flushed(c, files)


@pytest.mark.parametrize("where", ["store", "pool"])
def test_read_only(box, where):
    """Remounted read-only under a running daemon: EROFS, nothing lost, and back."""
    disk = Disk(box, "disk")
    c = make(box, **{where: disk})
    files = {"a": noise(MIB, 1)}
    c.write("a", files["a"])
    w = os.open(c.path("a"), os.O_RDWR)
    os.fsync(w)
    os.close(w)
    fd = os.open(c.path("a"), os.O_RDONLY)
    run("mount", "-o", "remount,abort", disk.path)
    assert c.read("a") == files["a"]
    assert c.flush(check=False).returncode == 1
    assert c.read("a") == files["a"]
    os.close(fd)
    c.proc.kill()
    c.proc.wait(30)
    c.expect_crash()
    c.expect("cannot", "recover", "treated as after a reboot")
    detach(c.mnt)  # what its kernel served keeps the pool's disk busy as long as it is there
    disk.umount()
    disk.mount()
    c.start()
    if where == "store":
        check(c, files)
    assert c.flush(check=False).returncode == 0
