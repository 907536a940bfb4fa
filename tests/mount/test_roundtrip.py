"""Real input goes in, plain .zst lie in the store, the same bytes come out."""

import hashlib
import itertools
import os
import stat
import subprocess

import pytest

from harness import (
    KIB,
    MIB,
    SOAK,
    fallocate,
    noise,
    parse_object,
    read_file,
    text,
    tree_files,
    wait_for,
    write_file,
    zstd_cat,
)


def digest(path):
    h = hashlib.blake2b()
    with open(path, "rb") as f:
        while piece := f.read(MIB):
            h.update(piece)
    return h.digest()


def shape(top):
    """Everything that cp -a should carry over, by relative path."""
    found = {}
    top = os.fsencode(top)
    for where, dirs, files in os.walk(top):
        for name in itertools.chain(dirs, files):
            path = os.path.join(where, name)
            st = os.lstat(path)
            rel = os.path.relpath(path, top)
            if stat.S_ISLNK(st.st_mode):
                found[rel] = ("link", os.readlink(path))
            elif stat.S_ISDIR(st.st_mode):
                found[rel] = ("dir", stat.S_IMODE(st.st_mode), st.st_mtime_ns)
            else:
                found[rel] = (
                    "file",
                    stat.S_IMODE(st.st_mode),
                    st.st_mtime_ns,
                    st.st_size,
                    digest(path),
                )
    return found


def numbers(top):
    """Inode numbers by path."""
    top = os.fsencode(top)
    found = {}
    for where, dirs, files in os.walk(top):
        for name in itertools.chain(dirs, files):
            path = os.path.join(where, name)
            found[os.path.relpath(path, top)] = os.lstat(path).st_ino
    return found


def differences(a, b):
    return [(k, a.get(k), b.get(k)) for k in sorted(set(a) | set(b)) if a.get(k) != b.get(k)][:5]


def check_objects(source, store):
    """Every file of the tree `source` is an object below `store`; batches, then one by one
    where a batch differs."""
    source, store = os.fsencode(source), os.fsencode(store)
    files = tree_files(source)
    for at in range(0, len(files), 100):
        some = files[at : at + 100]
        want = b"".join(read_file(os.path.join(source, f)) for f in some)
        if zstd_cat(*[os.path.join(store, f + b".zst") for f in some]) == want:
            continue
        for f in some:
            assert zstd_cat(os.path.join(store, f + b".zst")) == read_file(
                os.path.join(source, f)
            ), f
        raise AssertionError("a batch differs but no file of it does")
    return len(files)


def round_trip(c, source, least_files):
    """Copies in, compares, flushes, compares object by object, remounts, compares again."""
    target = c.path("tree")
    subprocess.run(["cp", "-a", source, target], check=True)
    want = shape(source)
    files = tree_files(source)
    assert len(files) >= least_files
    total = sum(os.path.getsize(os.path.join(os.fsencode(source), f)) for f in files)
    assert total > c.status_limit(), "the pool must be smaller than the data"

    got = shape(target)
    assert got == want, differences(got, want)
    inos = numbers(target)

    c.flush()
    assert check_objects(source, c.store_path("tree")) == len(files)
    wait_for(lambda: c.counter("evictions") > 0, what="an eviction")

    got = shape(target)
    assert got == want, differences(got, want)
    assert numbers(target) == inos

    c.stop("umount")
    assert check_objects(source, c.store_path("tree")) == len(files)
    c.start()
    got = shape(target)
    assert got == want, differences(got, want)
    assert numbers(target) == inos
    assert subprocess.run(["diff", "-r", "--no-dereference", source, target], check=False).returncode == 0
    c.stop()


def copy_some(sources, target, most_files, most_bytes):
    """Copies whole regular files below `sources` to `target` until there are enough."""
    count = size = 0
    for source in sources:
        for where, dirs, names in os.walk(source):
            dirs.sort()
            for name in sorted(names):
                path = os.path.join(where, name)
                st = os.lstat(path)
                if not (stat.S_ISREG(st.st_mode) or stat.S_ISLNK(st.st_mode)):
                    continue
                if not os.access(path, os.R_OK, follow_symlinks=False):
                    continue
                if count >= most_files or size + st.st_size > most_bytes:
                    return
                to = os.path.join(target, os.path.relpath(where, os.path.dirname(source)))
                os.makedirs(to, exist_ok=True)
                subprocess.run(["cp", "-a", path, to], check=True) if stat.S_ISLNK(
                    st.st_mode
                ) else _copy(path, os.path.join(to, name), st)
                count += 1
                size += st.st_size


def _copy(path, to, st):
    write_file(to, read_file(path))
    os.chmod(to, stat.S_IMODE(st.st_mode))
    os.utime(to, ns=(st.st_atime_ns, st.st_mtime_ns))


@pytest.mark.limit(150)
def test_corpus(box):
    """The logs that $CELLAR_TEST_CORPUS names, else what lies in /usr/share/doc."""
    source = os.path.join(box.dir("source"), "tree")
    corpus = os.environ.get("CELLAR_TEST_CORPUS")
    copy_some([corpus] if corpus else ["/usr/share/doc"], source, 400, 24 * MIB)
    c = box.cellar(pool_size="1M", writeback_delay="100ms", flushers=2).start()
    round_trip(c, source, 10)


@pytest.mark.limit(240)
def test_include_tree(box):
    """Some thousand small files in many directories."""
    source = os.path.join(box.dir("source"), "tree")
    count = 3000 if SOAK else 1500
    copy_some(["/usr/include"], source, count, count * 16 * KIB)
    c = box.cellar(pool_size="4M", writeback_delay="200ms").start()
    round_trip(c, source, count // 10)


FRAME = 64 * KIB


@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 17, 2 * MIB])
def test_sizes(box, size):
    c = box.cellar(frame_size="64K", writeback_delay="1h").start()
    data = text(size, size)
    c.write("f", data)
    assert c.read("f") == data
    c.flush()
    assert c.stored("f") == data
    o = parse_object(c.object_path("f"))
    assert o["logical"] == size
    assert len(o["frames"]) == -(-size // FRAME)
    assert all(f[2] == FRAME for f in o["frames"][:-1])
    assert o["cellar"]["version"] == 1 and o["cellar"]["len"] == 80
    assert o["cellar"]["ino"] == os.stat(c.path("f")).st_ino
    c.make_cold("f")
    assert os.stat(c.path("f")).st_size == size
    assert c.read("f") == data
    c.remount()
    assert c.read("f") == data


def test_every_frame_stands_alone(box):
    """What the seek table says can be cut out and decoded by the zstd CLI."""
    c = box.cellar(frame_size="64K", writeback_delay="1h").start()
    data = text(5 * FRAME + 1000, 3)
    c.write("f", data)
    c.flush()
    o = parse_object(c.object_path("f"))
    at = 0
    for off, stored_len, logical_len in o["frames"]:
        piece = os.path.join(box.path, "piece.zst")
        write_file(piece, o["raw"][off : off + stored_len])
        assert zstd_cat(piece) == data[at : at + logical_len]
        at += logical_len
    assert at == len(data)


def test_compresses(cellar):
    """The point of it all: text takes a fraction, and du shows what the object costs."""
    data = text(4 * MIB, 9)
    cellar.write("f", data)
    cellar.flush()
    stored = os.path.getsize(cellar.object_path("f"))
    assert stored < len(data) // 3
    cellar.make_cold("f")
    assert 0 < os.stat(cellar.path("f")).st_blocks * 512 < len(data) // 2


def test_sparse(cellar):
    size = 48 * MIB
    path = cellar.path("sparse")
    marks = {0: b"begin", 5 * MIB + 123: b"five", 17 * MIB - 2: b"across", size - 3: b"end"}
    with open(path, "wb") as f:
        f.truncate(size)
        for off, word in marks.items():
            f.seek(off)
            f.write(word)
    want = bytearray(size)
    for off, word in marks.items():
        want[off : off + len(word)] = word
    assert os.stat(path).st_size == size
    assert read_file(path) == want
    cellar.flush()
    assert os.path.getsize(cellar.object_path("sparse")) < 200 * KIB
    assert cellar.stored("sparse") == want
    cellar.make_cold("sparse")
    assert read_file(path) == want
    with open(path, "rb") as f:
        seen = set()
        off = 0
        while True:  # whatever is reported as data and hole, no mark may lie in a hole
            try:
                data = os.lseek(f.fileno(), off, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(f.fileno(), data, os.SEEK_HOLE)
            assert hole > data
            seen.update(m for m in marks if data <= m < hole)
            off = hole
        assert seen == set(marks)


def test_incompressible(cellar):
    data = noise(3 * MIB + 5, 1)
    cellar.write("noise", data)
    cellar.write("text", text(MIB, 2))
    cellar.flush()
    o = parse_object(cellar.object_path("noise"))
    assert o["cellar"]["flags"] & 1, "marked as not worth trying again"
    assert len(o["raw"]) < len(data) + len(data) // 100 + 4096
    assert not parse_object(cellar.object_path("text"))["cellar"]["flags"] & 1
    assert cellar.stored("noise") == data
    cellar.make_cold("noise")
    assert cellar.read("noise") == data


def test_larger_than_eager_size(box):
    """Read here and there while it is not hydrated as a whole."""
    c = box.cellar(eager_size="1M", writeback_delay="1h", frame_size="256K").start()
    data = text(12 * MIB, 4)
    c.write("big", data)
    c.make_cold("big")
    with open(c.path("big"), "rb") as f:
        for off in (11 * MIB, 0, 5 * MIB - 7, len(data) - 10, 3 * MIB):
            assert os.pread(f.fileno(), 5000, off) == data[off : off + 5000]
    c.make_cold("big")
    with open(c.path("big"), "r+b") as f:  # change the middle of a cold one
        f.seek(7 * MIB)
        f.write(b"changed in the middle")
    want = bytearray(data)
    want[7 * MIB : 7 * MIB + 21] = b"changed in the middle"
    assert c.read("big") == want
    c.flush()
    assert c.stored("big") == want
    c.make_cold("big")
    with open(c.path("big"), "ab") as f:  # append to a cold one
        f.write(b"the end")
    want += b"the end"
    c.flush()
    assert c.stored("big") == want
    assert c.read("big") == want


def test_many_flushes_of_one_file(cellar):
    """Each flush leaves exactly the content of that moment."""
    want = bytearray(text(300 * KIB, 5))
    cellar.write("f", want)
    for i in range(12):
        off = (i * 37123) % len(want)
        word = b"change %d" % i
        with open(cellar.path("f"), "r+b") as f:
            f.seek(off)
            f.write(word)
        want[off : off + len(word)] = word
        cellar.flush()
        assert cellar.stored("f") == want, f"flush {i}"
    assert parse_object(cellar.object_path("f"))["cellar"]["seq"] >= 12


def test_fallocated_file_survives(cellar):
    path = cellar.path("f")
    with open(path, "wb") as f:
        f.write(b"x" * 1000)
        f.flush()
        fallocate(f.fileno(), 0, 0, 3 * MIB)
    assert read_file(path) == b"x" * 1000 + bytes(3 * MIB - 1000)
    cellar.make_cold("f")
    assert read_file(path) == b"x" * 1000 + bytes(3 * MIB - 1000)
