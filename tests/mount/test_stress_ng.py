"""stress-ng's filesystem stressors with --verify; only with --soak."""

import os

import pytest

from harness import SOAK, run, tree_files

STRESSORS = """access chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify fallocate fcntl
fiemap file-ioctl filename flock fpunch fstat getdent handle hdd inode-flags iomix io
lease link locka lockf lockofd mknod open readahead rename revio seek sendfile symlink
sync-file touch utime xattr""".split()

if SOAK:

    @pytest.mark.limit(60)
    def test_stress_ng(box, mode):
        """No failed verification, no hang, nothing left over."""
        c = box.cellar(writeback_delay="50ms", pool_size="64M", max_idle="1s", **mode).start()
        os.chmod(c.mnt, 0o777)
        argv = [word for s in STRESSORS for word in (f"--{s}", "1")]
        done = run(
            "stress-ng", "--temp-path", c.mnt, "--timeout", "60s", "--verify", "--no-rand-seed",
            *argv, timeout=400, cwd=c.mnt, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and "fail:" not in done.err + done.out, done.out + done.err
        c.flush()
        assert tree_files(c.mnt) == []
        c.ctl("verify", c.mnt)
        c.remount()
        assert os.listdir(c.mnt) == []
