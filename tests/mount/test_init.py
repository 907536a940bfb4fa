"""What the daemon answers to FUSE_INIT: Debian's libfuse asks for some bits and does not send
them, so mount/init-hook.c completes the reply."""

import re

# <linux/fuse.h>
FUSE_DONT_MASK = 1 << 6
FUSE_WRITEBACK_CACHE = 1 << 16
FUSE_PARALLEL_DIROPS = 1 << 18
FUSE_POSIX_ACL = 1 << 20
FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
FUSE_SETXATTR_EXT = 1 << 29


def test_bits_of_the_reply(box):
    c = box.cellar(log_level="debug").start()
    found = re.search(r"init-flags 0x([0-9a-f]+)", c.log_text())
    assert found, c.log_text()
    flags = int(found.group(1), 16)
    for bit in (FUSE_DONT_MASK, FUSE_PARALLEL_DIROPS, FUSE_POSIX_ACL, FUSE_HANDLE_KILLPRIV_V2):
        assert flags & bit, hex(bit)
    for bit in (FUSE_WRITEBACK_CACHE, FUSE_SETXATTR_EXT):
        assert not flags & bit, hex(bit)
