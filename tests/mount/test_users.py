"""Several users on one mount (root only): owners, permissions, ACLs."""

import errno
import os
import stat
import subprocess

import pytest

from harness import KIB, child, errno_of, read_file, text, write_file

pytestmark = pytest.mark.root

ALICE, BOB = 12001, 12002  # numbers suffice: nobody needs to know the names
GROUP = 12100


def test_owner_of_new_things(cellar):
    c = cellar
    os.chmod(c.mnt, 0o777)

    def make():
        write_file(c.path("f"), b"alice's")
        os.mkdir(c.path("d"))
        os.symlink("f", c.path("l"))
        os.mkfifo(c.path("p"))
        write_file(c.path("d/deep"), text(50 * KIB, 1))

    child(make, uid=ALICE)
    for name in ("f", "d", "l", "p", "d/deep"):
        st = os.lstat(c.path(name))
        assert (st.st_uid, st.st_gid) == (ALICE, ALICE), name
    c.flush()
    st = os.stat(c.object_path("d/deep"))
    assert (st.st_uid, st.st_gid) == (ALICE, ALICE)
    c.remount()
    assert os.stat(c.path("f")).st_uid == ALICE
    # root changes alice's file: it stays hers, in the store too
    with open(c.path("d/deep"), "ab") as f:
        f.write(b"root was here")
    c.flush()
    assert os.stat(c.object_path("d/deep")).st_uid == ALICE
    assert child(lambda: len(read_file(c.path("d/deep"))), uid=ALICE) == 50 * KIB + 13


def test_permissions_are_checked(cellar):
    c = cellar
    os.chmod(c.mnt, 0o1777)
    c.write("secret", b"root only")
    os.chmod(c.path("secret"), 0o600)
    c.write("public", b"for all")
    os.mkdir(c.path("closed"), 0o700)
    c.write("closed/f", b"x")
    child(lambda: write_file(c.path("alices"), b"a"), uid=ALICE)
    cases = [
        (lambda: read_file(c.path("secret")), errno.EACCES),
        (lambda: read_file(c.path("public")) and None, 0),
        (lambda: write_file(c.path("public"), b"x"), errno.EACCES),
        (lambda: os.chmod(c.path("public"), 0o777), errno.EPERM),
        (lambda: os.chown(c.path("public"), BOB, BOB), errno.EPERM),
        (lambda: os.utime(c.path("public"), (1, 1)), errno.EPERM),
        (lambda: os.truncate(c.path("public"), 0), errno.EACCES),
        (lambda: os.listdir(c.path("closed")), errno.EACCES),
        (lambda: os.stat(c.path("closed/f")) and None, errno.EACCES),
        (lambda: os.unlink(c.path("alices")), errno.EPERM),  # sticky directory
        (lambda: os.rename(c.path("alices"), c.path("bobs")), errno.EPERM),
        (lambda: os.setxattr(c.path("public"), "user.x", b"1"), errno.EACCES),
    ]
    for i, (call, want) in enumerate(cases):
        assert errno_of(child, call, uid=BOB) == want, f"case {i}"
    # a file that somebody else made first: its own permissions are checked
    c.write("taken", b"root's")
    os.chmod(c.path("taken"), 0o644)
    got = errno_of(child, lambda: os.open(c.path("taken"), os.O_CREAT | os.O_WRONLY, 0o666), uid=BOB)
    assert got == errno.EACCES
    assert c.read("public") == b"for all"


def test_group_permissions(cellar):
    """Supplementary groups count."""
    c = cellar
    c.write("g", b"group")
    os.chown(c.path("g"), 0, GROUP)
    os.chmod(c.path("g"), 0o660)
    c.make_cold("g")
    os.chmod(c.mnt, 0o755)
    assert errno_of(child, lambda: read_file(c.path("g")) and None, uid=BOB) == errno.EACCES

    def change():
        with open(c.path("g"), "ab") as f:
            f.write(b" bob")

    child(change, uid=BOB, groups=[GROUP])
    assert c.read("g") == b"group bob"
    c.flush()
    st = os.stat(c.object_path("g"))
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, GROUP, 0o660)


def test_setgid_directory(cellar):
    c = cellar
    os.mkdir(c.path("shared"))
    os.chown(c.path("shared"), 0, GROUP)
    os.chmod(c.path("shared"), 0o2777)

    def make():
        write_file(c.path("shared/f"), b"x")
        os.mkdir(c.path("shared/d"))

    child(make, uid=ALICE, groups=[GROUP])
    st = os.stat(c.path("shared/f"))
    assert (st.st_uid, st.st_gid) == (ALICE, GROUP)
    st = os.stat(c.path("shared/d"))
    assert st.st_gid == GROUP and st.st_mode & stat.S_ISGID
    c.flush()
    assert os.stat(c.object_path("shared/f")).st_gid == GROUP


def test_acls(cellar):
    c = cellar
    os.chmod(c.mnt, 0o755)
    probe = subprocess.run(["setfacl", "-m", f"u:{BOB}:r", c.store], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("the store's filesystem has no ACLs")
    subprocess.run(["setfacl", "-b", c.store], check=True)
    c.write("f", b"for bob")
    os.chmod(c.path("f"), 0o600)
    assert errno_of(child, lambda: read_file(c.path("f")) and None, uid=BOB) == errno.EACCES
    subprocess.run(["setfacl", "-m", f"u:{BOB}:rw", c.path("f")], check=True)
    assert child(lambda: read_file(c.path("f")).decode(), uid=BOB) == "for bob"
    with open(c.path("f"), "ab") as f:
        f.write(b" too")
    c.flush()
    c.remount()
    assert child(lambda: read_file(c.path("f")).decode(), uid=BOB) == "for bob too"
    got = subprocess.run(["getfacl", "-cnp", c.path("f")], capture_output=True, check=True).stdout
    assert f"user:{BOB}:rw-".encode() in got

    os.mkdir(c.path("d"))
    subprocess.run(["setfacl", "-d", "-m", f"u:{BOB}:rwx,g::---,o::---", c.path("d")], check=True)

    def make():
        write_file(c.path("d/f"), b"inherits")
        os.mkdir(c.path("d/sub"))

    child(make, umask=0o077)  # a default ACL takes the place of the umask
    got = subprocess.run(["getfacl", "-cnp", c.path("d/f")], capture_output=True, check=True).stdout
    assert f"user:{BOB}:rwx".encode() in got and b"mask::rw-" in got
    assert child(lambda: read_file(c.path("d/f")).decode(), uid=BOB) == "inherits"
    got = subprocess.run(["getfacl", "-cnp", c.path("d/sub")], capture_output=True, check=True).stdout
    assert f"default:user:{BOB}:rwx".encode() in got
    c.flush()
    got = subprocess.run(
        ["getfacl", "-cnp", c.object_path("d/f")], capture_output=True, check=True
    ).stdout
    assert f"user:{BOB}:rwx".encode() in got


def test_chown_and_setuid_bits(cellar):
    c = cellar
    os.chmod(c.mnt, 0o755)
    c.write("f", b"program")
    os.chown(c.path("f"), ALICE, GROUP)
    os.chmod(c.path("f"), 0o6777)
    assert stat.S_IMODE(os.stat(c.path("f")).st_mode) == 0o6777
    c.flush()
    assert stat.S_IMODE(os.stat(c.object_path("f")).st_mode) == 0o6777

    def append():
        with open(c.path("f"), "ab") as f:
            f.write(b"x")

    child(append, uid=BOB)
    assert stat.S_IMODE(os.stat(c.path("f")).st_mode) == 0o777, "a write by another clears them"
    os.chmod(c.path("f"), 0o4755)
    os.chown(c.path("f"), BOB, BOB)
    assert stat.S_IMODE(os.stat(c.path("f")).st_mode) & 0o4000 == 0, "so does chown"
    os.chmod(c.path("f"), 0o4777)
    child(lambda: os.truncate(c.path("f"), 2), uid=ALICE)
    assert stat.S_IMODE(os.stat(c.path("f")).st_mode) == 0o777, "and truncate"
    c.flush()
    c.remount()
    st = os.stat(c.path("f"))
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (BOB, BOB, 0o777)


def test_security_xattrs_of_root(cellar):
    c = cellar
    path = c.write("f", text(5000, 1))
    os.setxattr(path, "trusted.note", b"root's")
    assert os.getxattr(path, "trusted.note") == b"root's"
    with open(path, "ab") as f:
        f.write(b"x")
    c.flush()
    assert os.getxattr(c.object_path("f"), "trusted.note") == b"root's"


def test_who_may_ask_the_daemon(cellar):
    """Others get counters without paths, and may flush what they own; no more."""
    c = cellar
    os.chmod(c.mnt, 0o777)
    c.write("roots", b"x")
    child(lambda: write_file(c.path("alices"), text(1000, 1)), uid=ALICE)

    def ask(*args):
        env = dict(os.environ, XDG_RUNTIME_DIR="/nonexistent")
        done = subprocess.run(
            [os.environ["CELLAR_BUILD"] + "/cellarctl", *args],
            env=env,
            capture_output=True,
            check=False,
        )
        return [done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")]

    status, out = child(ask, "status", c.mnt, uid=ALICE)
    assert status == 0, out
    assert child(ask, "flush", c.path("alices"), uid=ALICE)[0] == 0
    assert c.stored("alices") == text(1000, 1)
    assert child(ask, "flush", c.path("roots"), uid=ALICE)[0] == 1
    assert child(ask, "umount", c.mnt, uid=ALICE)[0] == 1
    assert child(ask, "evict", c.path("alices"), uid=ALICE)[0] == 1
    assert c.running and c.read("roots") == b"x"


def test_a_users_daemon_cannot_be_impersonated(cellar):
    """The socket directory of root belongs to root."""
    st = os.stat("/run/cellar")
    assert st.st_uid == 0 and not st.st_mode & 0o022
    assert cellar.status()["pid"] == cellar.pid
