"""Names in the mount and names in the store."""

import errno
import os
import stat

from harness import errno_of, read_file, same_errno, text, write_file, zstd_cat, zstd_make

STRANGE = [
    b"with space",
    b" leading and trailing ",
    b"new\nline",
    b"tab\tand \x01 control",
    b"\xff\xfe not utf-8 \x80",
    "ünïcödé – 名前".encode(),
    b"back\\slash",
    b"-rf",
    b"'quotes\" $HOME `x` *?",
    b".hidden",
    b"...",
    b".zst",
    b"%s%n",
    b"a,b=c",
    b"x~",
    b"n.zst",
    b"n.zst.zst",
    b"n.zst~",
    b"L" * 251,
    b"\xe2\x82\xac" * 83,  # 249 bytes
]


def test_strange_names(cellar):
    for i, name in enumerate(STRANGE):
        write_file(cellar.path(name), text(2000, i))
    assert sorted(os.listdir(cellar.path(b""))) == sorted(STRANGE)
    for i, name in enumerate(STRANGE):
        assert read_file(cellar.path(name)) == text(2000, i), name
    cellar.flush()
    for i, name in enumerate(STRANGE):
        assert zstd_cat(cellar.store_path(name + b".zst")) == text(2000, i), name
    cellar.remount()
    assert sorted(os.listdir(cellar.path(b""))) == sorted(STRANGE)
    for i, name in enumerate(STRANGE):
        assert read_file(cellar.path(name)) == text(2000, i), name
        os.unlink(cellar.path(name))
    assert os.listdir(cellar.mnt) == []
    assert os.listdir(cellar.store) == [".cellar"]


def test_strange_directories(cellar):
    """The same names as directories, with a file in each."""
    for name in STRANGE:
        os.mkdir(cellar.path(name))
        write_file(cellar.path(name + b"/inside"), name)
    cellar.flush()
    cellar.remount()
    assert sorted(os.listdir(cellar.path(b""))) == sorted(STRANGE)
    for name in STRANGE:
        assert read_file(cellar.path(name + b"/inside")) == name
        os.unlink(cellar.path(name + b"/inside"))
        os.rmdir(cellar.path(name))
    assert os.listdir(cellar.store) == [".cellar"]


def test_longest_name(cellar):
    assert os.statvfs(cellar.mnt).f_namemax == os.statvfs(cellar.store).f_namemax - 4 == 251
    assert os.pathconf(cellar.mnt, "PC_NAME_MAX") == 251
    write_file(cellar.path(b"n" * 251), b"fits")
    for size in (252, 255, 256, 300):
        name = cellar.path(b"n" * size)
        assert errno_of(write_file, name, b"x") == errno.ENAMETOOLONG, size
        assert errno_of(os.stat, name) == errno.ENAMETOOLONG, size
        assert errno_of(os.rename, cellar.path(b"n" * 251), name) == errno.ENAMETOOLONG
        assert errno_of(os.link, cellar.path(b"n" * 251), name) == errno.ENAMETOOLONG
    assert os.listdir(cellar.mnt) == ["n" * 251]
    cellar.flush()
    assert zstd_cat(cellar.store_path(b"n" * 251 + b".zst")) == b"fits"


def test_deep_directories(cellar):
    """Deeper than PATH_MAX: made and read step by step."""
    here = os.open(cellar.mnt, os.O_RDONLY)
    depth = 30
    for i in range(depth):
        name = f"d{i:03}" + "x" * 196
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    fd = os.open("leaf", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=here)
    os.write(fd, b"far down")
    os.close(fd)
    cellar.flush()
    fd = os.open("leaf", os.O_RDONLY, dir_fd=here)
    assert os.read(fd, 100) == b"far down"
    os.close(fd)
    os.close(here)
    cellar.remount()
    here = os.open(cellar.mnt, os.O_RDONLY)
    for i in range(depth):
        below = os.open(f"d{i:03}" + "x" * 196, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    fd = os.open("leaf", os.O_RDONLY, dir_fd=here)
    assert os.read(fd, 100) == b"far down"
    os.close(fd)
    os.close(here)


def test_directory_zst_beside_file(cellar):
    """Directory x.zst, file x, link x.zst~ and file x.zst~~ live side by side."""
    write_file(cellar.path("x"), b"the file")
    os.mkdir(cellar.path("x.zst"))
    write_file(cellar.path("x.zst/inside"), b"inside")
    os.symlink("x", cellar.path("x.zst~"))
    write_file(cellar.path("x.zst~~"), b"tildes")
    everything = sorted(["x", "x.zst", "x.zst~", "x.zst~~"])

    def check():
        assert sorted(os.listdir(cellar.mnt)) == everything
        assert read_file(cellar.path("x")) == b"the file"
        assert read_file(cellar.path("x.zst/inside")) == b"inside"
        assert os.readlink(cellar.path("x.zst~")) == "x"
        assert read_file(cellar.path("x.zst~~")) == b"tildes"

    check()
    cellar.flush()
    assert sorted(os.listdir(cellar.store)) == sorted(
        [".cellar", "x.zst", "x.zst~", "x.zst~~", "x.zst~~.zst"]
    )
    assert stat.S_ISREG(os.lstat(cellar.store_path("x.zst")).st_mode)
    assert stat.S_ISDIR(os.lstat(cellar.store_path("x.zst~")).st_mode)
    assert stat.S_ISLNK(os.lstat(cellar.store_path("x.zst~~")).st_mode)
    check()
    cellar.remount()
    check()
    # and by rename: a directory that becomes x.zst, a file that becomes y
    os.mkdir(cellar.path("dir"))
    os.rename(cellar.path("dir"), cellar.path("y.zst"))
    os.rename(cellar.path("x"), cellar.path("y"))
    assert read_file(cellar.path("y")) == b"the file"
    assert os.path.isdir(cellar.path("y.zst"))
    os.rename(cellar.path("y.zst"), cellar.path("plain-dir"))
    assert os.path.isdir(cellar.store_path("plain-dir"))
    os.rmdir(cellar.path("plain-dir"))


def test_taken_names(cellar):
    """One logical name, one entry, whatever the forms in the store would allow."""
    write_file(cellar.path("f"), b"1")
    os.mkdir(cellar.path("d"))
    os.mkdir(cellar.path("d.zst"))
    assert errno_of(os.mkdir, cellar.path("f")) == errno.EEXIST
    assert errno_of(os.mkdir, cellar.path("d.zst")) == errno.EEXIST
    assert errno_of(os.symlink, "x", cellar.path("f")) == errno.EEXIST
    assert errno_of(os.mkfifo, cellar.path("d")) == errno.EEXIST
    assert errno_of(os.link, cellar.path("f"), cellar.path("d")) == errno.EEXIST
    assert errno_of(write_file, cellar.path("d"), b"") == errno.EISDIR
    assert errno_of(os.open, cellar.path("f"), os.O_CREAT | os.O_EXCL) == errno.EEXIST
    same_errno(errno_of(os.rename, cellar.path("f"), cellar.path("d")), "EISDIR")
    same_errno(errno_of(os.rename, cellar.path("d"), cellar.path("f")), "ENOTDIR")
    write_file(cellar.path("f"), b"2")
    assert cellar.read("f") == b"2"


def test_private_directory(cellar):
    private = cellar.path(".cellar")
    assert os.listdir(cellar.mnt) == []
    assert errno_of(os.stat, private) == errno.ENOENT
    assert errno_of(os.stat, cellar.path(".cellar/store.id")) == errno.ENOENT
    assert errno_of(os.mkdir, private) == errno.EPERM
    assert errno_of(write_file, private, b"x") == errno.EPERM
    os.mkdir(cellar.path("d"))
    assert errno_of(os.rename, cellar.path("d"), private) == errno.EPERM
    write_file(cellar.path("d/.cellar"), b"only the root is special")
    assert cellar.read("d/.cellar") == b"only the root is special"


def test_store_with_plain_files(box):
    """Plain files are shown as they are, and become objects at their first change."""
    c = box.cellar(writeback_delay="1h")
    os.mkdir(c.store)
    os.mkdir(c.store_path("sub"))
    for name in ("plain.log", "sub/other", "touched", "removed", "renamed"):
        write_file(c.store_path(name), text(5000, len(name)))
    write_file(c.store_path("both"), b"shadowed")
    zstd_make(b"the object wins", c.store_path("both.zst"))
    c.start()
    assert sorted(os.listdir(c.mnt)) == sorted(
        ["plain.log", "sub", "touched", "removed", "renamed", "both"]
    )
    assert c.read("plain.log") == text(5000, 9)
    assert c.read("both") == b"the object wins"

    os.chmod(c.path("touched"), 0o600)
    os.utime(c.path("touched"), ns=(10**18, 10**18))
    c.flush()
    assert os.path.exists(c.store_path("touched")), "chmod and utimes do not ingest"
    assert not os.path.exists(c.store_path("touched.zst"))
    assert stat.S_IMODE(os.stat(c.store_path("touched")).st_mode) == 0o600

    with open(c.path("plain.log"), "ab") as f:
        f.write(b"appended")
    os.unlink(c.path("removed"))
    os.rename(c.path("renamed"), c.path("moved"))
    c.flush()
    assert zstd_cat(c.store_path("plain.log.zst")) == text(5000, 9) + b"appended"
    assert not os.path.exists(c.store_path("plain.log"))
    assert not os.path.exists(c.store_path("removed"))
    assert c.read("moved") == text(5000, 7)
    os.unlink(c.path("both"))
    assert not os.path.exists(c.path("both")), "the shadowed one goes too"
    assert not os.path.exists(c.store_path("both"))
    c.remount()
    assert c.read("plain.log") == text(5000, 9) + b"appended"
    assert c.read("sub/other") == text(5000, 9)
    assert sorted(os.listdir(c.mnt)) == sorted(["plain.log", "sub", "touched", "moved"])


def test_names_that_cannot_be_decoded(box):
    """backup/ beside backup.zst, .zst files that are not zstd: shown under their own name."""
    c = box.cellar(writeback_delay="1h")
    os.makedirs(c.store_path("backup"))
    zstd_make(b"object", c.store_path("backup.zst"))
    raw = read_file(c.store_path("backup.zst"))
    write_file(c.store_path("notes.zst"), b"these are no zstd bytes\n" * 10)
    zstd_make(b"empty name", c.store_path("..zst"))
    c.start()
    names = sorted(os.listdir(c.mnt))
    assert names == sorted(["backup", "backup.zst", "notes.zst", "..zst"])
    assert os.path.isdir(c.path("backup"))
    assert c.read("backup.zst") == raw
    assert c.read("notes.zst") == b"these are no zstd bytes\n" * 10
    assert errno_of(os.stat, c.path("notes")) == errno.ENOENT


def test_foreign_zst_keep(box):
    """With foreign_zst=keep, .zst files that were there before keep their visible name."""
    c = box.cellar(writeback_delay="1h", foreign_zst="keep")
    os.mkdir(c.store)
    zstd_make(text(3000, 1), c.store_path("old.zst"))
    raw = read_file(c.store_path("old.zst"))
    c.start()
    assert os.listdir(c.mnt) == ["old.zst"]
    assert c.read("old.zst") == raw
    c.write("new", text(3000, 2))
    c.flush()
    assert sorted(os.listdir(c.mnt)) == ["new", "old.zst"]
    assert c.stored("new") == text(3000, 2)
    with open(c.path("old.zst"), "ab") as f:
        f.write(b"more")
    c.flush()
    assert zstd_cat(c.store_path("old.zst.zst")) == raw + b"more"
    c.remount()
    assert sorted(os.listdir(c.mnt)) == ["new", "old.zst"]
    assert c.read("old.zst") == raw + b"more"
    assert c.read("new") == text(3000, 2)


def test_writing_to_plain_files(plain):
    """Empty or not, however it is opened: the store gets an object, and there is no conflict."""
    c = plain
    want = {}
    for name, body in (("empty", b""), ("text", b"x" * 100)):
        for how, data in (("w", b"new"), ("r+", b"new" + body[3:]), ("a", body + b"new")):
            rel = f"{name}-{how[0]}"
            with open(c.store_path(rel), "wb") as f:
                f.write(body)
            assert c.read(rel) == body
            with open(c.path(rel), how, encoding="ascii") as f:
                f.write("new")
            want[rel] = data
    c.flush()
    assert sorted(os.listdir(c.mnt)) == sorted(want)
    assert {rel: c.stored(rel) for rel in want} == want
    assert sorted(os.listdir(c.store)) == sorted([".cellar"] + [rel + ".zst" for rel in want])
