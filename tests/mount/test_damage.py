"""Damage of everything that is kept on disk, seen through a mount: objects, catalog, records.

Never a wrong byte, never a crash; only the damaged frame's range answers EIO; status and
verify name it; dirty data survives a lost catalog by its record. The exhaustive part, without
a mount: tests/unit/test-damage.c, test-catalog-damage.c.
"""

import errno
import os
import random
import shutil
import struct

import pytest

from harness import (
    KIB,
    MIB,
    SEED,
    errno_of,
    noise,
    parse_object,
    pread_all,
    read_file,
    text,
    wait_for,
    write_file,
    zstd_cat,
    zstd_make,
)

FRAME = 64 * KIB


def patch(path, off, data):
    """In place, with the file's times as they were: as a disk damages."""
    st = os.stat(path)
    with open(path, "r+b") as f:
        f.seek(off)
        f.write(data)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def flip(path, off, bit=0):
    byte = read_file(path)[off]
    patch(path, off, bytes([byte ^ (1 << bit)]))


def read_ranges(path, size, step=4 * KIB):
    """{offset: bytes or errno} by one pread each, with its own handle."""
    found = {}
    fd = os.open(path, os.O_RDONLY)
    try:
        for off in range(0, size, step):
            try:
                found[off] = pread_all(fd, min(step, size - off), off)
            except OSError as e:
                found[off] = e.errno
    finally:
        os.close(fd)
    return found


def check_reads(path, data, bad):
    """Every 4 KiB is right, or EIO if it lies in one of the logical ranges `bad`."""
    for off, got in read_ranges(path, len(data)).items():
        hit = any(off < end and off + 4 * KIB > start for start, end in bad)
        if hit:
            assert got == errno.EIO, f"{off}: damaged and not said"
        else:
            assert got == data[off : off + 4 * KIB], f"{off}: {got if isinstance(got, int) else 'wrong bytes'}"


def logical_ranges(shape):
    """[(start, end)] of the data frames."""
    ranges, at = [], 0
    for _, _, length in shape["frames"]:
        ranges.append((at, at + length))
        at += length
    return ranges


def listed(c):
    """{path: [(offset, length)]} of status."""
    status = c.status()
    assert status["damaged_files"] == len(status["damaged"])
    return {
        d["path"]: [(r["offset_bytes"], r["length_bytes"]) for r in d["ranges"]]
        for d in status["damaged"]
    }


def places(shape):
    """{name: (offset in the object, frame or None)}: one byte of each kind."""
    off, length, _ = shape["frames"][3]
    cellar_off, cellar_len = shape["skippable"][-1]
    end = len(shape["raw"])
    return {
        "magic": (off + 1, 3),
        "header": (off + 4, 3),
        "size": (off + 6, 3),
        "block": (off + length // 2, 3),
        "checksum": (off + length - 2, 3),
        "last byte": (off + length - 1, 3),
        "first frame": (2, 0),
        "cellar magic": (cellar_off, None),
        "cellar length": (cellar_off + 4, None),
        "cellar number": (cellar_off + 42, None),
        "cellar check": (cellar_off + 66, None),
        "table magic": (cellar_off + cellar_len + 1, None),
        "table length": (cellar_off + cellar_len + 5, None),
        "table entry": (cellar_off + cellar_len + 8 + 12 * 2, None),
        "table size": (cellar_off + cellar_len + 8 + 12 * 2 + 5, None),
        "table checksum": (cellar_off + cellar_len + 8 + 12 * 2 + 9, None),
        "count": (end - 9, None),
        "descriptor": (end - 5, None),
        "footer": (end - 1, None),
    }


@pytest.mark.parametrize("eager", ["16M", "64K"])
def test_one_bit_at_every_kind_of_place(box, eager):
    """(promise 8) Hydrated whole at open, and by ranges. Other frames and files stay well."""
    c = box.cellar(writeback_delay="1h", frame_size="64K", eager_size=eager).start()
    data = text(10 * FRAME - 777, 1)
    c.write("model", data)
    c.flush()
    names = list(places(parse_object(c.object_path("model"))))
    for name in names:
        c.write(name, data)
    c.make_cold("model", *names)
    c.stop()
    bad = {}
    for name in names:
        shape = parse_object(c.object_path(name))
        off, frame = places(shape)[name]
        flip(c.object_path(name), off)
        bad[name] = [] if frame is None else [logical_ranges(shape)[frame]]
    before = {n: read_file(c.object_path(n)) for n in names}
    c.start()
    c.expect("cannot decode bytes")
    for name in names:
        assert os.stat(c.path(name)).st_size == len(data), name
        check_reads(c.path(name), data, bad[name])
        assert read_file(c.object_path(name)) == before[name], "reading changes nothing"
    assert c.read("model") == data
    want = {n: [(s, e - s) for s, e in r] for n, r in bad.items() if r}
    assert listed(c) == want
    # verify names these, and the damage that cost nothing
    result = c.ctl("verify", c.mnt, check=False)
    assert result.returncode == 1
    for name in names:
        assert f"{name}.zst: " in result.err, name
        if bad[name]:
            start, end = bad[name][0]
            assert f"{name}.zst: bytes {start}-{end - 1}: " in result.err
    assert "model" not in result.err
    assert set(listed(c)) == set(names)
    assert {n: r for n, r in listed(c).items() if r} == want
    shown = c.ctl("status", c.mnt).out
    assert f"damaged objects, as far as they were read ({len(names)})" in shown
    # a write to a damaged frame's file is refused, cutting it is not; then it is well again. A
    # large file opens all the same: appending to it needs nothing of what is there.
    for name in ("block", "checksum"):
        fd = errno_of(os.open, c.path(name), os.O_RDWR) if eager == "16M" else os.open(c.path(name), os.O_RDWR)
        if eager == "16M":
            assert fd == errno.EIO
        else:
            assert errno_of(os.pwrite, fd, b"x", 10) == errno.EIO
            os.close(fd)
    c.write("block", b"new")
    os.unlink(c.path("checksum"))
    with open(c.path("table entry"), "ab") as f:
        f.write(b"more")
    c.flush()
    assert c.stored("block") == b"new"
    assert c.stored("table entry") == data + b"more"
    left = set(names) - {"block", "checksum", "table entry"}
    assert set(listed(c)) == left
    result = c.ctl("verify", c.mnt, check=False)
    assert "block.zst" not in result.err and "table entry.zst" not in result.err


def damage_blocks(path, kind, rng):
    """4 KiB (or what there is) in the middle: returns the range [from, to) of the object."""
    size = os.path.getsize(path)
    at = rng.randrange(0, max(1, size - 4 * KIB)) // 512 * 512
    length = min(4 * KIB, size - at)
    if kind == "zeroed":
        patch(path, at, bytes(length))
    elif kind == "garbage":
        patch(path, at, rng.randbytes(length))
    elif kind == "other block":
        other = rng.randrange(0, max(1, size - length)) // 512 * 512
        patch(path, at, read_file(path)[other : other + length])
    elif kind == "truncated":
        st = os.stat(path)
        os.truncate(path, at)
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        length = size - at
    elif kind == "lost tail":
        # the length is right, the last blocks were never written
        patch(path, at, bytes(size - at))
        length = size - at
    return at, at + length


@pytest.mark.parametrize("kind", ["zeroed", "garbage", "other block", "truncated", "lost tail"])
def test_blocks(box, kind):
    """(promise 8) Every read is right or EIO; frames that the damage does not touch are read,
    unless the trailer is gone too. Small files and large ones."""
    rng = random.Random(SEED + len(kind))
    c = box.cellar(writeback_delay="1h", frame_size="64K", eager_size="256K").start()
    want = {}
    for i in range(8):
        data = text(rng.randrange(1, 14 * FRAME), i) if i % 2 else noise(rng.randrange(1, 5 * FRAME), i)
        want[f"f{i}"] = data
        c.write(f"f{i}", data)
    c.make_cold(*want)
    c.stop()
    hit = {}
    for name in want:
        path = c.object_path(name)
        shape = parse_object(path)
        start, end = damage_blocks(path, kind, rng)
        ranges = logical_ranges(shape)
        touched = [
            ranges[i]
            for i, (off, length, _) in enumerate(shape["frames"])
            if off < end and off + length > start
        ]
        trailer = shape["skippable"][-1][0]
        hit[name] = (touched, end > trailer and start < len(shape["raw"]))
    c.start()
    c.expect("cannot decode", r"no zstd", "input/output error")
    for name, data in want.items():
        if errno_of(os.stat, c.path(name)):
            # nothing of it is zstd any more, and no catalog says that it was
            assert False, f"{name} is gone"
        touched, no_trailer = hit[name]
        fd = -1
        try:
            fd = os.open(c.path(name), os.O_RDONLY)
        except OSError as e:
            assert e.errno == errno.EIO
            assert no_trailer, f"{name} cannot be opened, though its trailer is well"
            continue
        for off in range(0, len(data), 4 * KIB):
            end = min(off + 4 * KIB, len(data))
            inside = no_trailer or any(off < e and end > s for s, e in touched)
            try:
                assert pread_all(fd, end - off, off) == data[off:end], f"{name} at {off}"
            except OSError as e:
                assert e.errno == errno.EIO and inside, f"{name} at {off}: {e}"
        os.close(fd)
    c.write("new", b"still writable")
    c.flush("/".join((c.mnt, "new")))
    assert c.stored("new") == b"still writable"


def test_cut_between_two_frames(box):
    """Two whole frames are left, and nothing that says there were more: not a shorter file."""
    c = box.cellar(writeback_delay="1h", frame_size="64K").start()
    c.write("f", text(5 * FRAME, 1))
    c.make_cold("f")
    c.stop()
    shape = parse_object(c.object_path("f"))
    os.truncate(c.object_path("f"), shape["frames"][2][0])
    assert zstd_cat(c.object_path("f")) == text(2 * FRAME, 1), "zstd sees nothing wrong"
    for catalog in (True, False):
        if not catalog:
            os.unlink(os.path.join(c.pool_dir(), "catalog.db"))
        c.start()
        c.expect("cannot decode", "catalog")
        assert errno_of(c.read, "f") == errno.EIO
        assert listed(c) == {"f": []}
        assert c.ctl("verify", c.mnt, check=False).returncode == 1
        c.stop()


def test_whole_object_overwritten_with_zeros(box):
    """Nothing of it is zstd: it keeps its name and answers EIO, it never shows as zeros."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("f", text(3000, 1))
    c.make_cold("f")
    c.stop()
    size = os.path.getsize(c.object_path("f"))
    patch(c.object_path("f"), 0, bytes(size))
    c.start()
    c.expect("no zstd")
    assert os.listdir(c.mnt) == ["f"]
    assert os.stat(c.path("f")).st_size == 3000
    assert errno_of(c.read, "f") == errno.EIO
    assert listed(c) == {"f": []}
    c.write("f", b"again")
    c.flush()
    assert c.stored("f") == b"again"
    assert listed(c) == {}


def test_damage_while_open(box):
    """A large file that is partly hydrated when its object goes bad: what was read stays
    readable, the good frames too, the bad one answers EIO; closed and opened again as well."""
    c = box.cellar(writeback_delay="1h", frame_size="64K", eager_size="64K").start()
    data = text(20 * FRAME, 1)
    c.write("f", data)
    c.make_cold("f")
    c.remount()  # the kernel's copy would be right, and served
    shape = parse_object(c.object_path("f"))
    fd = os.open(c.path("f"), os.O_RDONLY)
    assert os.pread(fd, 4096, 0) == data[:4096]
    off, length, _ = shape["frames"][15]
    patch(c.object_path("f"), off + length // 2, b"\0\0\0\0\0\0\0\0")
    c.expect("cannot decode bytes")
    bad = [logical_ranges(shape)[15]]
    assert os.pread(fd, 4096, 0) == data[:4096]
    check_reads(c.path("f"), data, bad)
    assert errno_of(os.pread, fd, 4096, bad[0][0]) == errno.EIO
    os.close(fd)
    check_reads(c.path("f"), data, bad)
    assert listed(c) == {"f": [(bad[0][0], FRAME)]}
    # repaired behind us (a backup of these bytes): well again without a restart
    patch(c.object_path("f"), off + length // 2, shape["raw"][off + length // 2 :][:8])
    assert c.read("f") == data
    assert c.ctl("verify", c.mnt).returncode == 0
    assert listed(c) == {}


# ---- the catalog ----


def set_aside(c):
    return [n for n in os.listdir(c.pool_dir()) if n.startswith("catalog.db.set-aside-")]


def catalog_files(c):
    return {
        n: read_file(os.path.join(c.pool_dir(), n))
        for n in ("catalog.db", "catalog.db-wal")
        if os.path.exists(os.path.join(c.pool_dir(), n))
    }


def put_catalog(c, files):
    for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm"):
        path = os.path.join(c.pool_dir(), name)
        if os.path.exists(path):
            os.unlink(path)
    for name, data in files.items():
        write_file(os.path.join(c.pool_dir(), name), data)


def break_catalog(c, kind, older, rng):
    """Between two runs. Whether it must have been set aside."""
    now = catalog_files(c)
    db = bytearray(now["catalog.db"])
    if kind == "header":
        db[3] ^= 0x20
    elif kind == "newer":
        db[60:64] = (77).to_bytes(4, "big")
    elif kind == "read only":
        db[18] ^= 0x10
    elif kind == "garbage":
        db = bytearray(rng.randbytes(len(db)))
    elif kind == "truncated":
        del db[len(db) // 2 :]
    elif kind == "zeroed":
        for at in range(4096, len(db), 8192):
            db[at : at + 4096] = bytes(len(db[at : at + 4096]))
    if kind == "db gone":
        del now["catalog.db"]
    elif kind == "wal gone":
        now.pop("catalog.db-wal", None)
    elif kind == "wal flipped":
        wal = bytearray(now.get("catalog.db-wal", b""))
        for at in range(33, len(wal), 3000):
            wal[at] ^= 4
        now["catalog.db-wal"] = bytes(wal)
    elif kind == "another day":
        now = older
    elif kind == "another day's db":
        now["catalog.db"] = older["catalog.db"]
    else:
        now["catalog.db"] = bytes(db)
    put_catalog(c, now)
    return kind in ("header", "newer", "read only", "garbage", "truncated", "zeroed")


CATALOG_KINDS = [
    "header",
    "newer",
    "read only",
    "garbage",
    "truncated",
    "zeroed",
    "db gone",
    "wal gone",
    "wal flipped",
    "another day",
    "another day's db",
]


@pytest.mark.parametrize("kind", CATALOG_KINDS)
def test_catalog(box, kind):
    """(promise 10) Set aside, the mount comes up, dirty data is recovered by its records:
    new files, changed ones, renamed ones, ones in renamed directories."""
    rng = random.Random(SEED)
    c = box.cellar(writeback_delay="1h").start()
    want = {}
    for i in range(30):
        want[f"d{i % 3}/f{i}"] = text(2000 + 500 * i, i)
        c.write(f"d{i % 3}/f{i}", want[f"d{i % 3}/f{i}"])
    c.flush()
    c.stop()
    older = catalog_files(c)
    c.start()
    for i in range(0, 30, 3):  # flushed after the older one was made
        want[f"d0/f{i}"] = text(3000 + i, 100 + i)
        c.write(f"d0/f{i}", want[f"d0/f{i}"])
    c.flush()
    for i in range(1, 30, 6):  # dirty when killed
        want[f"d1/f{i}"] += b"dirty"
        with open(c.path(f"d1/f{i}"), "ab") as f:
            f.write(b"dirty")
    c.write("new", text(5000, 7))
    want["new"] = text(5000, 7)
    os.rename(c.path("d1"), c.path("e1"))
    want = {k.replace("d1/", "e1/"): v for k, v in want.items()}
    os.rename(c.path("e1/f1"), c.path("moved"))
    want["moved"] = want.pop("e1/f1")
    os.unlink(c.path("d2/f2"))
    del want["d2/f2"]
    inos = {n: os.stat(c.path(n)).st_ino for n in want}
    c.kill9()
    aside = break_catalog(c, kind, older, rng)
    c.expect("catalog")
    c.start()
    found = {os.fsdecode(n): c.read(os.fsdecode(n)) for n in tree(c)}
    assert sorted(found) == sorted(want)
    assert found == want
    assert bool(set_aside(c)) == aside, c.log_text()
    assert c.counter("recovered") >= 6
    c.flush()
    for name in want:
        assert c.stored(name) == want[name], name
    assert {n: os.stat(c.path(n)).st_ino for n in want} == inos, "numbers stay"
    c.remount()
    assert {n: c.read(n) for n in want} == want
    assert len(set_aside(c)) == (1 if aside else 0) * len(set_aside(c))
    assert c.counter("conflicts") == 0


def tree(c):
    top = os.fsencode(c.mnt)
    for where, _, names in os.walk(top):
        for name in names:
            yield os.path.relpath(os.path.join(where, name), top)


def test_catalog_of_another_pool(box):
    """Put there by mistake: set aside, its rows are not believed."""
    c = box.cellar("one", writeback_delay="1h").start()
    d = box.cellar("two", writeback_delay="1h").start()
    for i in range(10):
        c.write(f"f{i}", text(1000 * i, i))
        d.write(f"f{i}", text(1500 * i, 50 + i))
    c.flush()
    d.flush()
    with open(c.path("f3"), "ab") as f:
        f.write(b"dirty")
    c.kill9()
    d.stop()
    put_catalog(c, catalog_files(d))
    c.expect("catalog")
    c.start()
    for i in range(10):
        assert c.read(f"f{i}") == text(1000 * i, i) + (b"dirty" if i == 3 else b"")
    assert len(set_aside(c)) >= 1


def test_catalog_damaged_while_running(box):
    """Overwritten under the daemon: it goes on, and what it wrote is there after a restart."""
    c = box.cellar(writeback_delay="50ms").start()
    for i in range(50):
        c.write(f"f{i}", text(1000 + i, i))
    c.flush()
    c.expect("catalog")
    c.lost_expected = False
    path = os.path.join(c.pool_dir(), "catalog.db")
    with open(path, "r+b") as f:
        f.write(random.Random(SEED).randbytes(os.path.getsize(path)))
    for i in range(50):
        c.write(f"g{i}", text(1000 + i, 100 + i))
        os.rename(c.path(f"f{i}"), c.path(f"h{i}"))
    c.flush()
    c.remount()
    for i in range(50):
        assert c.read(f"g{i}") == text(1000 + i, 100 + i)
        assert c.read(f"h{i}") == text(1000 + i, i)


# ---- records of scratch files ----

RECORD = "user.cellar.record"
HINT = "user.cellar.path"


def scratch_path(c, ino):
    return os.path.join(c.pool_dir(), "scratch", "%02x" % (ino & 0xFF), "%016x" % ino)


def lost(c):
    return os.listdir(os.path.join(c.pool_dir(), "lost+found"))


def damaged_records():
    """{name: what becomes of the 128 bytes; None removes it}."""
    kinds = {"zeroed": lambda r: bytes(128), "cut": lambda r: r[:60], "longer": lambda r: r + b"x"}
    kinds["empty"] = lambda r: b""
    for at in (0, 4, 6, 7, 8, 16, 24, 40, 56, 64, 80, 88, 96, 104, 112, 116, 120, 127):
        kinds[f"bit in {at}"] = lambda r, at=at: r[:at] + bytes([r[at] ^ 2]) + r[at + 1 :]
    return kinds


def test_records(box):
    """(promise 10) A dirty scratch whose record is damaged, or gone, is never deleted and never
    believed: it goes to lost+found, and the object is served."""
    c = box.cellar(writeback_delay="1h").start()
    kinds = damaged_records()
    for i, _ in enumerate(kinds):
        c.write(f"f{i}", text(3000, i))
    c.write("gone", text(3000, 99))
    c.write("well", text(3000, 98))
    c.flush()
    names = [f"f{i}" for i in range(len(kinds))] + ["gone", "well"]
    for name in names:
        with open(c.path(name), "ab") as f:
            f.write(b"dirty " + name.encode())
    inos = {n: os.stat(c.path(n)).st_ino for n in names}
    c.kill9()
    for i, change in enumerate(kinds.values()):
        path = scratch_path(c, inos[f"f{i}"])
        os.setxattr(path, RECORD, change(os.getxattr(path, RECORD)))
    os.removexattr(scratch_path(c, inos["gone"]), RECORD)
    c.expect("no valid record", "lost.found")
    c.lost_expected = True
    c.start()
    for i in range(len(kinds)):
        assert c.read(f"f{i}") == text(3000, i), list(kinds)[i]
    assert c.read("gone") == text(3000, 99)
    assert c.read("well") == text(3000, 98) + b"dirty well"
    kept = {read_file(os.path.join(c.pool_dir(), "lost+found", n)) for n in lost(c)}
    want = {text(3000, i) + b"dirty f%d" % i for i in range(len(kinds))}
    want.add(text(3000, 99) + b"dirty gone")
    assert kept == want
    assert c.status()["lost_and_found_files"] == len(want)


def test_clean_records(box):
    """A clean scratch with a damaged record: not believed, whatever it holds."""
    c = box.cellar(writeback_delay="1h").start()
    for i in range(8):
        c.write(f"f{i}", text(3000, i))
    c.flush()
    inos = [os.stat(c.path(f"f{i}")).st_ino for i in range(8)]
    c.kill9()
    for i in range(8):
        path = scratch_path(c, inos[i])
        record = bytearray(os.getxattr(path, RECORD))
        record[i * 15] ^= 8
        os.setxattr(path, RECORD, bytes(record))
        write_file(path, b"not what the object says")
        os.setxattr(path, RECORD, bytes(record))
    c.expect("no valid record", "lost.found")
    c.lost_expected = True
    c.start()
    for i in range(8):
        assert c.read(f"f{i}") == text(3000, i)


def test_hints(box):
    """A damaged path hint costs a search: never another file's name, also where the damaged
    one leads to an object of somebody else."""
    c = box.cellar(writeback_delay="1h").start()
    for i in range(6):
        c.write(f"f{i}", text(3000, i))
    c.flush()
    zstd_make(b"a stranger", c.store_path("g0.zst"))
    c.write("d/f6", text(3000, 6))
    names = [f"f{i}" for i in range(6)]
    for name in names:
        with open(c.path(name), "ab") as f:
            f.write(b"dirty " + name.encode())
    inos = {n: os.stat(c.path(n)).st_ino for n in names + ["d/f6"]}
    c.kill9()
    for name, hint in (
        ("f0", b"g0.zst"),
        ("f1", b"f2.zst"),
        ("f2", b""),
        ("f3", b"\xff\x00/../x"),
        ("f4", b"../../etc/passwd.zst"),
        ("f5", b"nowhere/at/all.zst"),
        ("d/f6", b"d"),
    ):
        os.setxattr(scratch_path(c, inos[name]), HINT, hint)
    c.start()
    for i, name in enumerate(names):
        wait_for(lambda n=name, i=i: c.read(n) == text(3000, i) + b"dirty " + n.encode(), what=name)
    assert c.read("g0") == b"a stranger"
    assert c.read("d/f6") == text(3000, 6)
    c.flush()
    for i, name in enumerate(names):
        assert c.stored(name) == text(3000, i) + b"dirty " + name.encode()
    assert c.counter("conflicts") == 0
