"""Objects that something else made, and objects that are damaged."""

import errno
import os
import stat
import subprocess

import pytest

from harness import (
    KIB,
    MIB,
    errno_of,
    parse_object,
    read_file,
    text,
    wait_for,
    write_file,
    zstd_cat,
    zstd_make,
)


def concatenated(store, rel, data):
    third = len(data) // 3
    with open(os.path.join(store, rel + ".zst"), "wb") as out:
        for piece in (data[:third], data[third : 2 * third], data[2 * third :]):
            part = os.path.join(store, "part.tmp")
            zstd_make(piece, part)
            out.write(read_file(part))
            os.unlink(part)


def make_all(store):
    """{name: content} of objects made in every way that the zstd CLI knows."""
    want = {}

    def add(name, data, *options, pipe=False):
        zstd_make(data, os.path.join(store, name + ".zst"), *options, pipe=pipe)
        want[name] = data

    add("plain", text(700 * KIB, 1))
    add("small", b"x")
    add("empty", b"")
    add("fast", text(300 * KIB, 2), "--fast=5")
    add("long", text(5 * MIB, 3), "-19", "--long=27")
    add("no-check", text(200 * KIB, 4), "--no-check")
    add("no-size", text(900 * KIB, 5), pipe=True)
    add("no-size-long", text(900 * KIB, 6), "--long=27", pipe=True)
    data = text(600 * KIB, 7)
    concatenated(store, "three", data)
    want["three"] = data
    skippable = os.path.join(store, "skippable.zst")
    zstd_make(data, skippable)
    write_file(
        skippable, b"\x53\x2a\x4d\x18\x05\x00\x00\x00hello" + read_file(skippable)
    )
    want["skippable"] = data
    if os.access("/usr/bin/pzstd", os.X_OK):
        source = os.path.join(store, "pzstd-input")
        write_file(source, text(3 * MIB, 8))
        subprocess.run(
            ["pzstd", "-q", "-p", "2", source, "-o", os.path.join(store, "pzstd.zst")], check=True
        )
        os.unlink(source)
        want["pzstd"] = text(3 * MIB, 8)
    return want


def test_foreign_objects_are_read(box):
    c = box.cellar(writeback_delay="1h")
    os.mkdir(c.store)
    want = make_all(c.store)
    c.start()
    assert sorted(os.listdir(c.mnt)) == sorted(want)
    for name, data in want.items():
        assert os.stat(c.path(name)).st_size == len(data), name
        assert c.read(name) == data, name
    before = {n: read_file(c.object_path(n)) for n in want}
    c.flush()
    c.remount()
    for name, data in want.items():
        assert c.read(name) == data, name
        assert read_file(c.object_path(name)) == before[name], "reading changes nothing"


def test_foreign_objects_become_seekable_when_written(box):
    c = box.cellar(writeback_delay="1h")
    os.mkdir(c.store)
    want = make_all(c.store)
    for name in want:
        os.chmod(c.object_path(name), 0o640)
    c.start()
    for name in want:
        with open(c.path(name), "ab") as f:
            f.write(b"and more")
    c.flush()
    for name, data in want.items():
        assert c.stored(name) == data + b"and more", name
        o = parse_object(c.object_path(name))
        assert o["logical"] == len(data) + 8 and o["cellar"]
        assert stat.S_IMODE(os.stat(c.object_path(name)).st_mode) == 0o640
    c.remount()
    for name, data in want.items():
        assert c.read(name) == data + b"and more", name


def try_read(path):
    """Opens and reads to the end."""
    with open(path, "rb") as f:
        while f.read(MIB):
            pass


def damage(kind, store):
    """{name} of damaged objects next to healthy ones; made from cellar's or zstd's own."""
    for rel in ("own", "foreign"):
        path = os.path.join(store, rel + ".zst")
        raw = bytearray(read_file(path))
        if kind == "truncated":
            del raw[len(raw) * 2 // 3 :]
        elif kind == "flipped":
            raw[len(raw) // 2] ^= 0x10
        elif kind == "zeroed":
            third = len(raw) // 3
            raw[third : 2 * third] = bytes(third)
        elif kind == "tail":
            raw += b"garbage after the end"
        with open(path, "r+b") as f:
            f.truncate(0)
            f.write(raw)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "zeroed"])
def test_damage_is_an_error_and_stays_where_it_is(box, kind):
    """EIO with a message; neighbours, the rest of the store and the daemon are well."""
    c = box.cellar(writeback_delay="1h", frame_size="64K").start()
    c.write("own", text(800 * KIB, 1))
    c.write("healthy", text(800 * KIB, 2))
    c.make_cold("own", "healthy")  # a warm copy would be right, and served
    c.stop()
    zstd_make(text(800 * KIB, 3), c.store_path("foreign.zst"))
    damage(kind, c.store)
    before = {n: read_file(c.object_path(n)) for n in ("own", "foreign")}
    c.start()
    c.expect(r"\bown\b", r"\bforeign\b")
    for name in ("own", "foreign"):
        os.stat(c.path(name))
        assert errno_of(try_read, c.path(name)) == errno.EIO, name
        c.wait_log(rf"error:.*{name}|warning:.*{name}")
    assert c.counter("damaged") >= 2
    assert c.read("healthy") == text(800 * KIB, 2)
    c.write("new", b"still writable")
    c.flush()
    assert c.stored("new") == b"still writable"
    for name, raw in before.items():
        assert read_file(c.object_path(name)) == raw, "damage is never touched by reading"
        assert errno_of(try_read, c.path(name)) == errno.EIO, "and stays an error"
    # it can be replaced and removed
    with open(c.path("own"), "wb") as f:
        f.write(b"new content")
    os.unlink(c.path("foreign"))
    c.flush()
    assert c.stored("own") == b"new content"
    assert not os.path.exists(c.object_path("foreign"))


def test_garbage_behind_an_object(box):
    """Bytes after the last frame make `zstd -d` fail; cellar must not serve them either."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("own", text(100 * KIB, 1))
    c.make_cold("own")
    c.stop()
    zstd_make(text(100 * KIB, 3), c.store_path("foreign.zst"))
    damage("tail", c.store)
    c.start()
    c.expect(r"\bown\b", r"\bforeign\b")
    for name in ("own", "foreign"):
        assert errno_of(try_read, c.path(name)) == errno.EIO, name


def test_empty_and_oversized_objects(box):
    """0 bytes are no object; a window above 128 MiB is refused."""
    c = box.cellar(writeback_delay="1h")
    os.mkdir(c.store)
    write_file(c.store_path("nothing.zst"), b"")
    zstd_make(text(300 * KIB, 1), c.store_path("window.zst"), "--long=30", pipe=True)
    zstd_make(b"fine", c.store_path("fine.zst"))
    c.start()
    c.expect("nothing", "window")
    assert errno_of(try_read, c.path("nothing")) == errno.EIO
    assert errno_of(try_read, c.path("window")) == errno.EIO
    assert c.read("fine") == b"fine"


def test_max_object(box):
    """A small file that declares or unpacks to more than max_object is refused, not unpacked."""
    c = box.cellar(writeback_delay="1h", max_object="4M")
    os.mkdir(c.store)
    zstd_make(bytes(64 * MIB), c.store_path("declared.zst"))
    zstd_make(bytes(64 * MIB), c.store_path("undeclared.zst"), pipe=True)
    zstd_make(text(3 * MIB, 1), c.store_path("fine.zst"))
    c.start()
    c.expect("declared")
    for name in ("declared", "undeclared"):
        assert errno_of(try_read, c.path(name)) in (errno.EFBIG, errno.EIO), name
    assert c.read("fine") == text(3 * MIB, 1)


def test_verify_finds_damage(box):
    c = box.cellar(writeback_delay="1h", frame_size="64K").start()
    for i in range(5):
        c.write(f"d/f{i}", text(300 * KIB, i))
    c.flush()
    assert c.ctl("verify", c.mnt).returncode == 0
    path = c.object_path("d/f3")
    with open(path, "r+b") as f:
        f.seek(os.path.getsize(path) // 2)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))
    c.expect("f3")
    result = c.ctl("verify", c.mnt, check=False)
    assert result.returncode == 1
    assert "f3" in result.out + result.err
    assert "f2" not in result.err
    assert c.ctl("verify", c.path("d/f2")).returncode == 0
    assert c.ctl("verify", c.path("d/f3"), check=False).returncode == 1


def test_object_replaced_behind_a_dirty_file(box):
    """Both versions are kept: ours under the name, the foreign one beside it."""
    c = box.cellar(writeback_delay="1h", shared_store="true").start()
    c.write("f", text(10000, 1))
    c.flush()
    with open(c.path("f"), "ab") as f:
        f.write(b"ours")
    zstd_make(b"theirs", c.store_path("new.tmp"))
    os.rename(c.store_path("new.tmp"), c.object_path("f"))
    c.expect("conflict", r"\bf\b")
    c.flush()
    assert c.read("f") == text(10000, 1) + b"ours"
    assert c.stored("f") == text(10000, 1) + b"ours"
    beside = [n for n in os.listdir(c.mnt) if n.startswith("f.cellar-conflict-")]
    assert len(beside) == 1
    assert c.read(beside[0]) == b"theirs"
    assert c.counter("conflicts") == 1


def test_object_replaced_behind_a_clean_file(box):
    """A clean copy of what no longer is there is not served (shared_store)."""
    c = box.cellar(writeback_delay="1h", shared_store="true").start()
    c.write("f", text(10000, 1))
    c.flush()
    assert c.read("f") == text(10000, 1)
    zstd_make(text(20000, 2), c.store_path("new.tmp"))
    os.rename(c.store_path("new.tmp"), c.object_path("f"))
    wait_for(lambda: c.read("f") == text(20000, 2), what="the new content")
    zstd_make(b"another", c.store_path("g.zst"))
    wait_for(lambda: os.path.exists(c.path("g")), what="the new name")
    assert c.read("g") == b"another"
    os.unlink(c.object_path("f"))
    wait_for(lambda: not os.path.exists(c.path("f")), what="the name to go")
    assert zstd_cat(c.object_path("g")) == b"another"
