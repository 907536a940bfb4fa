"""cellarctl compact: what it wins, what it must not change, and who wins a race with it.

The invariants (P1) to (P4) are those of src/pool/compact.c.
"""

import os
import re
import signal

import pytest
from harness import (
    KIB,
    MIB,
    ROOT,
    fallocate,
    noise,
    parse_object,
    read_file,
    text,
    wait_for,
    write_file,
    zstd_cat,
    zstd_make,
)

LEVEL = 6  # as 19, in a tenth of the time


def compact(c, *rels, check=True):
    return c.ctl("compact", *[c.path(r) for r in rels], check=check)


def figures(out):
    return [int(n) for n in re.findall(r"(\d+) (?:files|are)\b", out)]


def picture(path):
    st = os.stat(path)
    names = os.listxattr(path)
    return (
        (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_mode, st.st_uid)
        + (st.st_gid, st.st_nlink)
        + tuple((n, os.getxattr(path, n)) for n in sorted(names))
    )


@pytest.fixture
def c(box):
    return box.cellar(
        frame_size="64K", compact_frame_size="512K", compact_level=LEVEL, writeback_delay="10ms"
    ).start()


def test_it_shrinks_and_nothing_shows(c):
    """Smaller, fewer frames, the wanted level; to users the file and its directory are as before,
    also after a remount; the flush number grows (P3)."""
    data = text(MIB + 12345, 1)
    c.write("d/f", data)
    os.setxattr(c.path("d/f"), "user.mine", b"kept")
    os.chmod(c.path("d/f"), 0o751)
    os.utime(c.path("d/f"), ns=(10**18 + 7, 10**18 + 9))
    c.make_cold("d/f")
    before, shown = parse_object(c.object_path("d/f")), picture(c.path("d/f"))
    dir_shown = os.stat(c.path("d")).st_mtime_ns, os.stat(c.path("d")).st_ctime_ns
    size = os.path.getsize(c.object_path("d/f"))
    assert figures(compact(c, "d/f").out) == [1, 0, 0]
    after = parse_object(c.object_path("d/f"))
    assert os.path.getsize(c.object_path("d/f")) < size
    assert after["cellar"]["level"] == LEVEL
    assert after["cellar"]["seq"] == before["cellar"]["seq"] + 1
    assert after["cellar"]["ino"] == before["cellar"]["ino"]
    assert zstd_cat(c.object_path("d/f")) == data
    assert picture(c.path("d/f")) == shown
    assert (os.stat(c.path("d")).st_mtime_ns, os.stat(c.path("d")).st_ctime_ns) == dir_shown
    assert not c.is_warm("d/f")
    assert c.read("d/f") == data
    c.remount()
    assert picture(c.path("d/f")) == shown
    assert c.read("d/f") == data


def test_again_is_nothing(c):
    """What has the level already, cannot shrink, or is empty is left alone: the same inode."""
    c.write("f", text(300 * KIB, 2))
    c.write("noise", noise(300 * KIB, 3))
    c.write("empty", b"")
    c.make_cold("f", "noise", "empty")
    assert figures(c.ctl("compact", c.mnt).out) == [1, 2, 0]
    inodes = [os.stat(c.object_path(n)).st_ino for n in ("f", "noise", "empty")]
    assert figures(c.ctl("compact", c.mnt).out) == [0, 3, 0]
    assert [os.stat(c.object_path(n)).st_ino for n in ("f", "noise", "empty")] == inodes


def test_warm_open_and_dirty_files_are_left_alone(c):
    """(P1)"""
    for name in ("warm", "open", "dirty"):
        c.write(name, text(200 * KIB, 4))
    c.flush()
    c.make_cold("open", "dirty")
    assert c.read("warm")
    with open(c.path("open"), "rb") as reader, open(c.path("dirty"), "r+b", buffering=0) as writer:
        assert reader.read(10)
        writer.write(b"changed")
        objects = {n: read_file(c.object_path(n)) for n in ("warm", "open", "dirty")}
        assert figures(compact(c, "warm", "open", "dirty").out) == [0, 0, 3]
        for name, stored in objects.items():
            assert read_file(c.object_path(name)) == stored


@pytest.mark.parametrize("what", ["write", "chmod", "rename", "unlink", "open", "behind"])
def test_losing_the_race_costs_nothing(box, what):
    """(P2): whatever happens to the file while it is encoded wins."""
    flag = os.path.join(box.path, "step")
    c = box.cellar(frame_size="64K", compact_level=LEVEL, writeback_delay="1h")
    c.start({"CELLAR_TEST_STEP": "compact.encoded:1=wait", "CELLAR_TEST_STEP_FILE": flag})
    data = text(400 * KIB, 5)
    c.write("f", data)
    c.make_cold("f")
    pid = os.fork()
    if pid == 0:
        os._exit(compact(c, "f", check=False).returncode)
    box.add_pid(pid)
    wait_for(lambda: os.path.exists(flag), what="the compaction to stand still")
    name = "f"
    if what == "write":
        with open(c.path("f"), "r+b", buffering=0) as f:
            f.write(b"newer")
        data = b"newer" + data[5:]
    elif what == "chmod":
        os.chmod(c.path("f"), 0o600)
    elif what == "rename":
        os.rename(c.path("f"), c.path("g"))
        name = "g"
    elif what == "unlink":
        os.unlink(c.path("f"))
    elif what == "open":
        assert c.read("f") == data
    else:
        data = text(50 * KIB, 6)
        zstd_make(data, c.object_path("f") + "~new")
        os.rename(c.object_path("f") + "~new", c.object_path("f"))
    os.unlink(flag)
    assert os.waitpid(pid, 0)[1] == 0
    if what == "unlink":
        assert os.listdir(c.mnt) == []
        assert [n for n in os.listdir(c.store) if n != ".cellar"] == []
        return
    assert os.listdir(c.mnt) == [name]
    assert c.read(name) == data
    if what == "chmod":
        assert os.stat(c.path("f")).st_mode & 0o777 == 0o600
    c.flush()
    assert c.stored(name) == data
    wait_for(lambda: os.listdir(os.path.join(c.store, ".cellar", "tmp")) == [], what="tmp/")


def test_foreign_and_plain_files(c):
    """One huge frame becomes seekable, a plain file an object; hard links stay links."""
    foreign, plain, linked = text(900 * KIB, 7), text(150 * KIB, 8), text(200 * KIB, 9)
    zstd_make(foreign, c.object_path("foreign"))
    write_file(c.store_path("plain"), plain)
    c.write("linked", linked)
    os.link(c.path("linked"), c.path("second"))
    c.make_cold("linked")
    shown = {n: picture(c.path(n)) for n in ("foreign", "plain", "linked", "second")}
    inode = os.stat(c.object_path("linked")).st_ino
    assert figures(c.ctl("compact", c.mnt).out)[0] >= 3
    assert parse_object(c.object_path("foreign"))["cellar"]["level"] == LEVEL
    assert not os.path.exists(c.store_path("plain"))
    assert zstd_cat(c.object_path("plain")) == plain
    assert os.stat(c.object_path("linked")).st_ino == inode
    assert os.stat(c.object_path("second")).st_ino == inode
    assert zstd_cat(c.object_path("second")) == linked
    for name, before in shown.items():
        assert picture(c.path(name)) == before, name
    assert c.read("foreign") == foreign and c.read("plain") == plain
    assert c.read("second") == linked


def test_damage_is_no_reason_to_write(c):
    """(P4): an object that does not decode is named and left as it is."""
    c.write("f", text(300 * KIB, 10))
    c.make_cold("f")
    with open(c.object_path("f"), "r+b") as f:
        f.seek(2000)
        byte = f.read(1)
        f.seek(2000)
        f.write(bytes([byte[0] ^ 0x40]))
    stored = read_file(c.object_path("f"))
    done = compact(c, "f", check=False)
    assert done.returncode == 1
    assert re.search(r"/?f: .*frame", done.err), done.err
    assert read_file(c.object_path("f")) == stored
    c.expect("frame")


@pytest.mark.parametrize("kind", ["own", "foreign", "plain", "linked"])
@pytest.mark.parametrize("step", ["compact.encoded", "compact.synced", "compact.installed"])
def test_kill_at_each_step(c, step, kind):
    """Old or new, the same bytes under the same number (P3); nothing is left in tmp/."""
    data = text(500 * KIB, 11)
    if kind == "foreign":
        zstd_make(data, c.object_path("f"))
    elif kind == "plain":
        write_file(c.store_path("f"), data)
    else:
        c.write("f", data)
        if kind == "linked":
            os.link(c.path("f"), c.path("g"))
        c.make_cold("f")
    shown = picture(c.path("f"))
    c.stop()
    c.start({"CELLAR_TEST_STEP": f"{step}:1=kill"})
    assert compact(c, "f", check=False).returncode != 0
    assert c.wait_end() == -signal.SIGKILL
    c.expect_crash()
    if kind != "plain":
        assert zstd_cat(c.object_path("f")) == data
    c.start()
    assert os.listdir(os.path.join(c.store, ".cellar", "tmp")) == []
    now = picture(c.path("f"))
    if kind == "linked":  # in place: its ctime is the catalog's alone, and that row was lost
        now = now[:3] + shown[3:4] + now[4:]
    assert now == shown
    assert c.read("f") == data


def test_stopping_does_not_wait_for_it(box):
    """A drain ends a compaction that would take long; the object is as it was."""
    c = box.cellar(frame_size="64K", compact_level=19, compact_frame_size="64K").start()
    data = b"".join(text(MIB, i) for i in range(16))
    c.write("f", data)
    c.make_cold("f")
    stored = read_file(c.object_path("f"))
    pid = os.fork()
    if pid == 0:
        os._exit(compact(c, "f", check=False).returncode)
    box.add_pid(pid)
    wait_for(lambda: os.listdir(os.path.join(c.store, ".cellar", "tmp")), what="it to begin")
    c.stop()
    os.waitpid(pid, 0)
    assert read_file(c.object_path("f")) == stored


def test_words(c):
    """Directories are walked, what is no file is refused, what is not there is named."""
    c.write("d/e/f", text(100 * KIB, 12))
    os.symlink("f", c.path("d/e/l"))
    c.make_cold("d/e/f")
    assert figures(compact(c, "d").out) == [1, 0, 0]
    done = compact(c, "nothing", check=False)
    assert done.returncode == 1 and "nothing" in done.err
    os.mkfifo(c.path("fifo"))
    done = compact(c, "fifo", check=False)
    assert done.returncode == 1 and "no regular file" in done.err
