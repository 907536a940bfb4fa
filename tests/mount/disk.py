"""A filesystem of its own on a loop device, for tests that fill it, break it, or need its kind. Root only."""

import fcntl
import os
import struct

from harness import KIB, MIB, mkfs, noise, run

EXT4_SHUTDOWN = XFS_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2


class Disk:
    """A filesystem of its own on an image, mounted below the test's directory."""

    def __init__(self, box, name, kind="ext4", size=48 * MIB, options=()):
        self.kind = kind
        self.image = os.path.join(box.path, name + ".img")
        self.path = box.dir(name)
        with open(self.image, "wb") as f:
            f.truncate(size)
        mkfs(f"mkfs.{kind}", "-q", *options, self.image)
        box.cleanups.append(self.umount)
        self.mount()

    def mount(self):
        run("mount", "-o", "loop", self.image, self.path)

    def umount(self):
        run("umount", "-l", self.path, check=False)

    def dir(self, name):
        path = os.path.join(self.path, name)
        os.makedirs(path, exist_ok=True)
        return path

    def fill(self, leave=0):
        """Takes all room but `leave` bytes, the reserve of root too."""
        fd = os.open(os.path.join(self.path, "ballast"), os.O_CREAT | os.O_WRONLY, 0o600)
        step = MIB
        try:
            while step >= 4 * KIB:
                try:
                    os.write(fd, noise(step, 7))
                except OSError:
                    step //= 2
            os.fsync(fd)
            if leave:
                os.ftruncate(fd, os.fstat(fd).st_size - leave)
                os.fsync(fd)
        finally:
            os.close(fd)

    def free(self):
        os.unlink(os.path.join(self.path, "ballast"))
        os.sync()

    def shut_down(self):
        """The device is gone: what was not written out never will be."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)
