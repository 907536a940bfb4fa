"""Filesystems on image files that can lose power.

The images lie on a host filesystem that can clone files (xfs or btrfs, itself an image). A
clone of an image that is mounted and written to is what its device would hold if the power
went at that instant. A second kind of cut is the filesystem's own shutdown ioctl without a
log flush: everything that is only in memory is gone.
"""

import fcntl
import os
import shutil
import struct
import subprocess

from harness import detach, mkfs, run

FICLONE = 0x40049409
SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): ext4 and xfs
NOLOGFLUSH = struct.pack("I", 2)

FILESYSTEMS = ("ext4", "xfs", "btrfs")
CAN_SHUT_DOWN = ("ext4", "xfs")

MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q", "-m", "single"],
}
SIZES = {"ext4": 256, "xfs": 320, "btrfs": 288}  # MiB


def why_not():
    """A reason why this machine cannot have such filesystems, or None."""
    for fs in FILESYSTEMS:
        if not shutil.which(MKFS[fs][0]):
            return f"{MKFS[fs][0]} is not installed"
        with open("/proc/filesystems", encoding="ascii") as f:
            known = fs in f.read().split()
        if not known and subprocess.run(["modprobe", "-q", fs], check=False).returncode != 0:
            return f"this kernel has no {fs}"
    if not os.path.exists("/dev/loop-control"):
        return "there are no loop devices"
    return None


# For hunts, where a filesystem's own journal is under suspicion: "notreelog" for btrfs, say.
MOUNT_OPTIONS = [o for o in os.environ.get("CELLAR_TEST_MOUNT_OPTIONS", "").split(",") if o]


def mount_image(path, point, *options):
    os.makedirs(point, exist_ok=True)
    run("mount", "-o", ",".join(("loop",) + options), path, point)


class Rig:
    """One store and its pool on images: on one, or (split) each on its own."""

    def __init__(self, box, fs="ext4", split=False, host="xfs"):
        self.box = box
        self.fs = fs
        self.names = ("store", "pool") if split else ("store",)
        self.split = split
        self.host = os.path.join(box.path, "host")
        self.mounted = []
        host_image = os.path.join(box.path, "host.img")
        with open(host_image, "wb") as f:
            f.truncate(24 << 30)
        mkfs(*MKFS[host], host_image)
        mount_image(host_image, self.host)
        box.cleanups.append(self.close)
        for name in self.names:
            with open(self.image(name), "wb") as f:
                f.truncate(SIZES[fs] << 20)
            mkfs(*MKFS[fs], self.image(name))
        self.mount()

    def image(self, name, tag="live"):
        return os.path.join(self.host, f"{tag}.{name}")

    def point(self, name):
        return os.path.join(self.box.path, name)

    def mount(self):
        for name in self.names:
            mount_image(self.image(name), self.point(name), *MOUNT_OPTIONS)
            self.mounted.append(name)

    def umount(self):
        while self.mounted:
            run("umount", self.point(self.mounted[-1]))
            self.mounted.pop()

    def clone(self, name, tag, source="live"):
        src = os.open(self.image(name, source), os.O_RDONLY)
        dst = os.open(self.image(name, tag), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            fcntl.ioctl(dst, FICLONE, src)
        finally:
            os.close(src)
            os.close(dst)

    def snapshot(self, tag):
        """What the devices hold now, kept as `tag`."""
        for name in self.names:
            self.clone(name, tag)

    def load(self, tags):
        """Puts kept images (one tag for all, or {name: tag}) in the place of the live ones."""
        assert not self.mounted
        for name in self.names:
            os.unlink(self.image(name))
            self.clone(name, "live", tags if isinstance(tags, str) else tags[name])
        self.mount()

    def forget(self, tag):
        for name in self.names:
            if os.path.exists(self.image(name, tag)):
                os.unlink(self.image(name, tag))

    def shut_down(self, name):
        """The power of one disk goes: nothing reaches it any more."""
        fd = os.open(self.point(name), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, NOLOGFLUSH)
        finally:
            os.close(fd)

    def sync(self, name):
        """All of one disk becomes durable."""
        run("sync", "-f", self.point(name))

    def commit(self, name):
        """The journal of one disk is written, with whatever metadata is in it; data of
        other files is not."""
        path = os.path.join(self.point(name), "commit")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(fd, b"x")
            os.fsync(fd)
        finally:
            os.close(fd)

    @property
    def store(self):
        return os.path.join(self.point("store"), "store")

    @property
    def pool(self):
        if self.split:
            return os.path.join(self.point("pool"), "pool")
        return os.path.join(self.store, ".cellar")

    def cellar(self, **opts):
        if self.split:
            opts["pool"] = self.pool
        return self.box.cellar(store=self.store, **opts)

    def close(self):
        for point in (*map(self.point, reversed(self.mounted)), self.host):
            detach(point)
