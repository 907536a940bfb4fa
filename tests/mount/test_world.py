"""The world changes behind us: objects replaced, edited, removed and restored while clean, dirty and
open; directories renamed, numbers reused, disks missing or exchanged, clocks set back, two daemons
at once. Design, section 8: logged, counted, never silent, nothing overwritten."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from harness import (
    CELLARD,
    KIB,
    MIB,
    ROOT,
    ROUNDS,
    Failed,
    environment,
    errno_of,
    mount_answers,
    mounts_at,
    parse_object,
    read_file,
    run,
    text,
    wait_for,
    write_file,
    zstd_cat,
    zstd_make,
)

OLD, OURS, THEIRS = text(30000, 1), text(31000, 2), text(20000, 3)


def beside(c, name):
    """The foreign versions that were kept: their contents."""
    return {
        n: zstd_cat(c.store_path(n))
        for n in sorted(os.listdir(c.store))
        if n.startswith(f"{name}.cellar-conflict-")
    }


# ---- objects: what is done to them, in what state they are, how it goes on ----

HOWS = ["replaced", "edited", "removed", "restored", "restored-in-place", "exchanged"]


def change(c, how, backups):
    """Does it to file `how` behind the daemon; what the store says then (None: nothing)."""
    path, tmp = c.object_path(how), c.store_path("x.tmp")
    if how == "replaced":
        zstd_make(THEIRS, tmp)
        os.rename(tmp, path)
        return THEIRS
    if how == "edited":
        zstd_make(THEIRS, tmp)
        data = read_file(tmp)
        os.unlink(tmp)
        write_file(path, data)  # truncates and writes the same inode
        return THEIRS
    if how == "removed":
        os.unlink(path)
        return None
    if how == "restored":
        # an older version of our own, with our cellar frame
        shutil.copy2(backups[how], tmp)
        os.rename(tmp, path)
        return OLD
    if how == "restored-in-place":
        write_file(path, read_file(backups[how]))
        return OLD
    if how == "exchanged":
        # another file of ours
        shutil.copy2(c.object_path("other"), tmp)
        os.rename(tmp, path)
        return text(9000, 8)
    raise AssertionError(how)


def make(box, **opts):
    """For each way a file in its second version, flushed; backups of the first; another file."""
    c = box.cellar(writeback_delay="1h", shared_store="true", **opts).start()
    backups = {}
    c.write("other", text(9000, 8))
    for how in HOWS:
        c.write(how, OLD)
    c.flush()
    for how in HOWS:
        backups[how] = os.path.join(box.path, how)
        shutil.copy2(c.object_path(how), backups[how])
        c.write(how, text(500, 77))
    c.flush()
    return c, backups


def check_all(c, want):
    """Nothing else was touched. want: {name: content or None for whatever is there}"""
    c.flush()
    for after in (False, True):
        if after:
            c.remount()
        assert c.read("other") == c.stored("other") == text(9000, 8)
        for name, data in want.items():
            assert c.read(name) == c.stored(name) == data, name


@pytest.mark.parametrize("warm", [True, False])
def test_clean(box, warm):
    """A clean scratch of what is no more is dropped; what is there is shown, and not touched."""
    c, backups = make(box)
    if not warm:
        c.make_cold(*HOWS)
    want = {how: change(c, how, backups) for how in HOWS}
    for how in HOWS:
        if want[how] is None:
            wait_for(lambda h=how: not os.path.exists(c.path(h)), what="the name to go")
            assert errno_of(c.read, how) == errno.ENOENT
            continue
        wait_for(lambda h=how: c.read(h) == want[h], what=f"{how}: what is in the store now")
        assert os.stat(c.path(how)).st_size == len(want[how])
        assert c.stored(how) == want[how]
    assert len({os.stat(c.path(n)).st_ino for n in os.listdir(c.mnt)}) == len(os.listdir(c.mnt))
    # and it can be written: on top of what is there
    for how in HOWS:
        with open(c.path(how), "ab") as f:
            f.write(b"more")
    check_all(c, {how: (want[how] or b"") + b"more" for how in HOWS})
    assert c.counter("conflicts") == 0 and len(os.listdir(c.mnt)) == len(HOWS) + 1


@pytest.mark.parametrize("end", ["flush", "use", "kill", "kill, lost catalog"])
def test_dirty(box, end):
    """Ours wins the name, theirs is kept beside it; or is made again where nothing is there."""
    c, backups = make(box)
    for how in HOWS:
        c.write(how, OURS)
    want = {how: change(c, how, backups) for how in HOWS}
    c.expect("behind cellar", "lost.found", "looked for", "catalog")
    expected = len(HOWS)
    if end.startswith("kill"):
        c.kill9()
        if end == "kill, lost catalog":
            os.unlink(os.path.join(c.pool_dir(), "catalog.db"))
        c.lost_expected = True
        c.start()
        # nothing at the name, and nobody who saw it go: kept for the admin (section 9)
        wait_for(lambda: c.status()["lost_and_found_files"] == 1, what="lost+found")
        lost = os.path.join(c.pool_dir(), "lost+found")
        assert OURS in [read_file(os.path.join(lost, n)) for n in os.listdir(lost)]
        expected -= 1
        wait_for(lambda: c.counter("conflicts") == expected, what="the conflicts")
        del want["removed"]
    elif end == "use":
        for how in HOWS:
            assert errno_of(c.read, how) in (0, errno.ENOENT)
            assert errno_of(os.stat, c.path(how)) in (0, errno.ENOENT)
    c.flush()
    for how in want:
        wait_for(lambda h=how: c.read(h) == OURS, what=f"our version of {how}")
    assert c.counter("conflicts") == expected
    kept = {}
    for how in want:
        kept[how] = beside(c, how)
        assert list(kept[how].values()) == ([] if want[how] is None else [want[how]]), how
        for name in kept[how]:
            assert c.read(name[: -len(".zst")]) == want[how]
    assert len(re.findall("behind cellar", c.log_text())) == expected, "each is said"
    check_all(c, {how: OURS for how in want})
    assert {how: beside(c, how) for how in want} == kept


def test_open_for_reading(box):
    """Whoever has it open goes on with the content that he opened."""
    c, backups = make(box)
    for how in HOWS:
        c.write(how, OURS)
    c.make_cold(*HOWS)
    fds = {how: os.open(c.path(how), os.O_RDONLY) for how in HOWS}
    want = {how: change(c, how, backups) for how in HOWS}
    for how, fd in fds.items():
        assert os.pread(fd, len(OURS) + 1, 0) == OURS, how
        assert os.fstat(fd).st_size == len(OURS), how
        os.close(fd)
    for how in HOWS:
        if want[how] is not None:
            wait_for(lambda h=how: c.read(h) == want[h], what=f"{how}: what is there now")
    check_all(c, {how: data for how, data in want.items() if data is not None})
    assert c.counter("conflicts") == 0


@pytest.mark.parametrize("when", ["before writing", "after writing"])
def test_open_for_writing(box, when):
    """Opened by us, changed by them, written by us: both versions are there in the end."""
    c, backups = make(box)
    c.expect("behind cellar")
    fds = {how: os.open(c.path(how), os.O_RDWR) for how in HOWS}
    if when == "after writing":
        for fd in fds.values():
            os.pwrite(fd, b"ours", 100)
    want = {how: change(c, how, backups) for how in HOWS}
    ours = bytearray(text(500, 77))
    ours[100:104] = b"ours"
    for how, fd in fds.items():
        if when == "before writing":
            os.pwrite(fd, b"ours", 100)
        os.fsync(fd)
        assert os.pread(fd, 1000, 0) == ours, how
        assert os.fstat(fd).st_size == 500, how
    c.flush()
    ours[200:204] = b"more"
    for fd in fds.values():
        os.pwrite(fd, b"more", 200)
        os.close(fd)
    c.flush()
    for how in HOWS:
        wait_for(lambda h=how: c.read(h) == ours, what=f"our version of {how}")
        assert list(beside(c, how).values()) == ([] if want[how] is None else [want[how]]), how
    assert c.counter("conflicts") == len(HOWS)
    check_all(c, {how: bytes(ours) for how in HOWS})


def test_many_conflicts_in_a_second(box):
    """Each foreign version gets a name of its own."""
    c = box.cellar(writeback_delay="1h", shared_store="true").start()
    c.expect("changed behind cellar")
    for i in range(6):
        c.write("f", text(1000, 100 + i))
        zstd_make(text(1000, 200 + i), c.store_path("x.tmp"))
        os.rename(c.store_path("x.tmp"), c.object_path("f"))
        c.flush()
    assert sorted(beside(c, "f").values()) == sorted(text(1000, 200 + i) for i in range(6))
    assert c.stored("f") == text(1000, 105)


def test_all_at_once(box):
    """A backup put back over a whole tree in use: every version that was there is there."""
    c = box.cellar(writeback_delay="1h", shared_store="true").start()
    c.expect("behind cellar", "lost.found")
    for i in range(24):
        c.write(f"d{i % 3}/f{i}", text(4000, i))
    c.flush()
    saved = os.path.join(box.path, "saved")
    os.mkdir(saved)
    for i in range(3):
        shutil.copytree(c.store_path(f"d{i}"), os.path.join(saved, f"d{i}"))
    for i in range(24):
        c.write(f"d{i % 3}/f{i}", text(4000, 100 + i))
    c.flush()
    for i in range(0, 24, 2):
        c.write(f"d{i % 3}/f{i}", text(4000, 200 + i))
    for i in range(3):
        for name in os.listdir(os.path.join(saved, f"d{i}")):
            shutil.copy2(os.path.join(saved, f"d{i}", name), c.store_path("x.tmp"))
            os.rename(c.store_path("x.tmp"), c.store_path(f"d{i}/{name}"))
    c.kill9()
    c.start()
    wait_for(lambda: c.counter("conflicts") == 12, what="the conflicts")
    c.flush()
    for i in range(24):
        want = text(4000, 200 + i) if i % 2 == 0 else text(4000, i)
        assert c.stored(f"d{i % 3}/f{i}") == want, i
        assert c.read(f"d{i % 3}/f{i}") == want, i
    for i in range(0, 24, 2):
        kept = [
            n for n in os.listdir(c.store_path(f"d{i % 3}")) if n.startswith(f"f{i}.cellar-conflict-")
        ]
        assert [zstd_cat(c.store_path(f"d{i % 3}/{n}")) for n in kept] == [text(4000, i)]


# ---- directories and numbers ----


@pytest.mark.parametrize("kill", [True, False])
def test_parent_renamed(box, kill):
    """A directory of dirty files is renamed in the store: they are found by their identity."""
    c = box.cellar(writeback_delay="1h", shared_store="true").start()
    for i in range(10):
        c.write(f"a/b/f{i}", text(5000, i))
    c.flush()
    for i in range(10):
        with open(c.path(f"a/b/f{i}"), "ab") as f:
            f.write(b"dirty")
    c.write("a/b/new", text(700, 9))
    inos = [os.stat(c.path(f"a/b/f{i}")).st_ino for i in range(10)]
    os.mkdir(c.store_path("elsewhere"))
    if kill:
        c.kill9()
    os.rename(c.store_path("a/b"), c.store_path("elsewhere/c"))
    if kill:
        c.start()
    c.expect("cannot flush", "directory are gone")
    wait_for(lambda: os.path.exists(c.path("elsewhere/c/f0")), what="the new place")
    for i in range(10):
        want = text(5000, i) + b"dirty"
        wait_for(lambda i=i, w=want: c.read(f"elsewhere/c/f{i}") == w, what=f"f{i}")
    assert c.read("elsewhere/c/new") == text(700, 9)
    c.flush()
    for i in range(10):
        assert c.stored(f"elsewhere/c/f{i}") == text(5000, i) + b"dirty"
    assert [os.stat(c.path(f"elsewhere/c/f{i}")).st_ino for i in range(10)] == inos
    assert c.stored("elsewhere/c/new") == text(700, 9)
    assert not os.path.exists(c.store_path("a/b"))
    assert c.counter("conflicts") == 0


def test_numbers_reused(box):
    """Another file with the inode number of one that is gone (ext4 gives it at once) is another
    file: neither its scratch nor its number nor its content carry over."""
    c = box.cellar(writeback_delay="1h", shared_store="true").start()
    reused = 0
    for i in range(12 * ROUNDS):
        c.write("f", text(3000, i))
        c.flush()
        assert c.read("f") == text(3000, i)
        before, ours = os.stat(c.object_path("f")).st_ino, os.stat(c.path("f")).st_ino
        size = os.path.getsize(c.object_path("f"))
        times = os.stat(c.object_path("f"))
        zstd_make(text(3000, 1000 + i), c.store_path("x.tmp"))
        data = read_file(c.store_path("x.tmp"))
        os.unlink(c.object_path("f"))
        # of the same size and mtime, under the same name
        data += b"\x50\x2a\x4d\x18" + (size - len(data) - 8).to_bytes(4, "little") if size - len(data) >= 8 else b""
        data += bytes(max(0, size - len(data)))
        # Others on the same disk left free numbers too: one new file after the other.
        tried = []
        while not tried or (len(tried) < 200 and os.stat(tried[-1]).st_ino != before):
            tried.append(c.store_path(f"x{len(tried)}.tmp"))
            write_file(tried[-1], data)
        os.rename(tried.pop(), c.object_path("f"))
        os.utime(c.object_path("f"), ns=(times.st_atime_ns, times.st_mtime_ns))
        reused += os.stat(c.object_path("f")).st_ino == before
        for path in [*tried, c.store_path("x.tmp")]:
            os.unlink(path)
        wait_for(lambda i=i: c.read("f") == text(3000, 1000 + i), what="the other file")
        assert os.stat(c.path("f")).st_ino != ours
        os.unlink(c.path("f"))
    if run("stat", "-f", "-c", "%T", box.path).out.strip() == "ext2/ext3":
        assert reused > 0, "ext4 reuses numbers"


# ---- disks ----


def fails(c, *patterns):
    """It does not start, and says why."""
    c.launch()
    status = c.wait_end()
    log = read_file(c.log_paths[-1]).decode()
    c.expected.append(re.compile("."))
    assert status == 1, log
    for p in patterns:
        assert re.search(p, log), log
    assert not mounts_at(c.mnt)
    return log


def with_pool(box, name="c"):
    c = box.cellar(name, writeback_delay="1h", pool=os.path.join(box.path, f"{name}.pool"))
    c.start()
    for i in range(5):
        c.write(f"f{i}", text(2000, i))
    c.flush()
    with open(c.path("f0"), "ab") as f:
        f.write(b"dirty")
    c.kill9()
    return c


def uuid_of(path, key):
    return re.search(rf"{key} ([0-9a-f-]+)", read_file(path).decode()).group(1)


def test_store_not_mounted(box):
    """An empty directory where the store was: refused by the pool, and nothing is made in it."""
    c = with_pool(box)
    real = c.store + ".real"
    os.rename(c.store, real)
    os.mkdir(c.store)
    fails(c, "belongs to", "mounted")
    assert os.listdir(c.store) == [], "nothing was made in the mount point of a missing disk"
    os.rmdir(c.store)
    os.rename(real, c.store)
    c.start()
    assert c.read("f0") == text(2000, 0) + b"dirty"


def test_another_store_in_its_place(box):
    """Refused by UUID, both ways round; neither is changed."""
    c = with_pool(box, "one")
    d = with_pool(box, "two")
    os.rename(c.store, c.store + ".real")
    os.rename(d.store, c.store)
    uuid = uuid_of(c.opts["pool"] + "/pool.self", "store")
    fails(c, "belongs to another store", uuid)
    os.rename(c.store, d.store)
    os.rename(c.store + ".real", c.store)
    c.opts["pool"], d.opts["pool"] = d.opts["pool"], c.opts["pool"]
    fails(c, "belongs to another store")
    fails(d, "belongs to another store")
    c.opts["pool"], d.opts["pool"] = d.opts["pool"], c.opts["pool"]
    for x in (c, d):
        x.start()
        assert x.read("f0") == text(2000, 0) + b"dirty"


@pytest.mark.parametrize("gone", ["empty", "missing"])
def test_pool_not_mounted(box, gone):
    """Refused, and nothing is made there; new_pool overrides, loudly; the old pool, back again, is
    refused and still has everything."""
    c = with_pool(box)
    pool = c.opts["pool"]
    os.rename(pool, pool + ".real")
    if gone == "empty":
        os.mkdir(pool)
    uuid = uuid_of(pool + ".real/pool.self", "uuid")
    fails(c, uuid, "mounted", "new_pool")
    assert not os.path.exists(pool) or os.listdir(pool) == []
    c.opts["new_pool"] = "true"
    c.start()
    assert re.search(rf"warning: .*new pool.*{uuid}", c.log_text()), "loudly"
    assert c.read("f0") == text(2000, 0), "what was flushed"
    c.stop()
    del c.opts["new_pool"]
    os.rename(pool, pool + ".new")
    os.rename(pool + ".real", pool)
    fails(c, "new_pool")
    found = [
        read_file(os.path.join(where, n))
        for where, _, names in os.walk(os.path.join(pool, "scratch"))
        for n in names
    ]
    assert text(2000, 0) + b"dirty" in found


@pytest.mark.parametrize("what", ["store.id", "pool.id", "pool.self"])
def test_damaged_names(box, what):
    """The few bytes that say what belongs together: damaged they are refused, by name."""
    c = with_pool(box)
    top = c.opts["pool"] if what == "pool.self" else c.store_path(".cellar")
    path = os.path.join(top, what)
    good = read_file(path)
    for bad in (b"", good[: len(good) // 2], good.replace(b"uuid", b"uuie") if b"uuid" in good else b"x" + good):
        write_file(path, bad)
        fails(c, re.escape(what) + "|pool" if what == "pool.id" else re.escape(what))
    write_file(path, good)
    c.start()
    assert c.read("f0") == text(2000, 0) + b"dirty"


def test_store_moved_while_served(box):
    """The directory is renamed away and another put in its place: the daemon works on in the one
    that it holds, and never in the other."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("f", text(3000, 1))
    c.flush()
    os.rename(c.store, c.store + ".moved")
    os.mkdir(c.store)
    zstd_make(b"not ours", c.store_path("f.zst"))
    c.write("g", text(2000, 2))
    with open(c.path("f"), "ab") as f:
        f.write(b"more")
    c.flush()
    assert c.read("f") == text(3000, 1) + b"more"
    assert sorted(os.listdir(c.store)) == ["f.zst"]
    assert c.stored("f") == b"not ours"
    c.stop()
    shutil.rmtree(c.store)
    os.rename(c.store + ".moved", c.store)
    c.start()
    assert c.stored("g") == c.read("g") == text(2000, 2)


# ---- clocks ----


def test_clock_set_back(box):
    """Everything that is on disk is from the future: what is new is new by its numbers."""
    c = box.cellar(writeback_delay="1h", shared_store="true").start()
    future = time.time_ns() + 400 * 86400 * 10**9
    for i in range(6):
        c.write(f"f{i}", text(3000, i))
        os.utime(c.path(f"f{i}"), ns=(future, future))
    c.flush()
    c.kill9()
    for where, _, names in os.walk(c.store):
        for n in names:
            os.utime(os.path.join(where, n), ns=(future, future), follow_symlinks=False)
    c.start()
    for i in range(6):
        assert c.read(f"f{i}") == text(3000, i)
    for i in range(3):
        with open(c.path(f"f{i}"), "ab") as f:
            f.write(b"now")
        assert os.stat(c.path(f"f{i}")).st_mtime_ns < future
    zstd_make(THEIRS, c.store_path("x.tmp"))
    past = 10**9 * 86400 * 365
    os.utime(c.store_path("x.tmp"), ns=(past, past))
    os.rename(c.store_path("x.tmp"), c.object_path("f4"))
    wait_for(lambda: c.read("f4") == THEIRS, what="an older one")
    c.kill9()
    c.start()
    c.flush()
    for i in range(6):
        want = THEIRS if i == 4 else text(3000, i) + (b"now" if i < 3 else b"")
        assert c.stored(f"f{i}") == c.read(f"f{i}") == want
    c.remount()
    assert c.read("f0") == text(3000, 0) + b"now"
    assert c.counter("conflicts") == 0


# ---- two daemons ----


def test_two_daemons_at_once(box):
    """Exactly one serves; the other says who does, and changes nothing."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("f", text(3000, 1))
    c.stop()
    other = os.path.join(box.path, "other.mnt")
    os.mkdir(other)
    for i in range(5 * ROUNDS):
        logs = [os.path.join(box.path, f"log-{i}-{k}") for k in range(2)]
        started = []
        for k, mnt in enumerate((c.mnt, other)):
            with open(logs[k], "wb") as log:
                started.append(
                    subprocess.Popen(  # pylint: disable=consider-using-with
                        [CELLARD, "-f", c.store, mnt],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=environment(),
                        start_new_session=True,
                    )
                )
            box.add_process(started[-1])
        ended = wait_for(lambda: [p for p in started if p.poll() is not None], what="one to give up")
        assert len(ended) == 1
        loser = started.index(ended[0])
        winner = 1 - loser
        assert ended[0].returncode == 1
        text_of = read_file(logs[loser]).decode()
        assert f"pid {started[winner].pid}" in text_of, text_of
        mnt = (c.mnt, other)[winner]
        wait_for(lambda m=mnt: mount_answers(m), what="the winner's mount")
        assert not mounts_at((c.mnt, other)[loser])
        assert read_file(os.path.join(mnt, "f")) == text(3000, 1)
        if i % 2:
            started[winner].kill()  # the next ones find the text of a dead one in the lock
            started[winner].wait(30)
            if mounts_at(mnt):
                run(*(["umount", "-l", mnt] if ROOT else ["fusermount3", "-uz", mnt]))
        else:
            started[winner].terminate()
            assert started[winner].wait(60) == 0


def test_two_stores_one_pool_at_once(box):
    """The pool goes to one of them; the other is refused and says why."""
    pool = os.path.join(box.path, "pool")
    a = box.cellar("a", writeback_delay="1h", pool=pool)
    b = box.cellar("b", writeback_delay="1h", pool=pool)
    a.launch()
    b.launch()
    wait_for(lambda: not a.running or not b.running, what="one to give up")
    winner, loser = (b, a) if not a.running else (a, b)
    assert loser.wait_end() == 1
    loser.expect("pool", "belongs")
    assert re.search(rf"pid {winner.pid}|belongs to", loser.log_text()), loser.log_text()
    winner.wait_up()
    winner.write("f", b"x")
