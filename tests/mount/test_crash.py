"""kill -9 loses nothing that a write returned for: at random moments, and at every named
step of the code (src/base/steps.h)."""

import errno
import json
import mmap
import os
import random
import re
import signal
import subprocess
import time

import pytest

from harness import (
    KIB,
    MIB,
    RENAME_EXCHANGE,
    ROOT,
    ROUNDS,
    SEED,
    SOAK,
    SOURCE,
    errno_of,
    kill_quietly,
    noise,
    parse_object,
    read_file,
    reap,
    renameat2,
    spawn,
    text,
    tree_files,
    wait_for,
    write_file,
    zstd_cat,
    zstd_make,
)
from workload import Model, Worker, compare, replay


def check_store(c, rels):
    """After a flush: every file is an object that the zstd CLI decodes to the same bytes."""
    c.flush()
    for rel in rels:
        assert c.stored(rel) == c.read(rel), rel


def crash_rounds(c, workers, rounds, rng):
    """kill -9 under load, restart, compare; over and over on the same store."""
    models = [Model() for _ in range(workers)]
    # killed while creating or unlinking: what has a scratch and no name is set aside; if it
    # should have one, the comparison finds it missing
    c.expect("lost.found")
    c.lost_expected = True
    for w in range(workers):
        os.mkdir(c.path(f"w{w}"))
    for round_ in range(rounds):
        journals = [os.path.join(c.box.path, f"journal-{round_}-{w}") for w in range(workers)]
        pids = []
        for w in range(workers):
            worker_args = (c.path(f"w{w}"), journals[w], rng.randrange(1 << 30), models[w])
            pids.append(spawn(lambda a=worker_args: Worker(*a).run()))
        delay = rng.choice((0.02, 0.1, 0.3, 0.6, 1.0)) * rng.random()
        time.sleep(delay)  # the random moment
        c.kill9()
        assert [reap(p) for p in pids] == [0] * workers, "a worker found a broken promise"
        c.start()
        for w in range(workers):
            if not os.path.exists(journals[w]):  # it died before its first step
                continue
            pending = replay(journals[w], models[w])
            try:
                models[w] = compare(c.path(f"w{w}"), models[w], pending)
            except AssertionError as e:
                steps = read_file(journals[w]).decode().replace("\n.\n", " done\n")
                store = sorted(os.listdir(c.store_path(f"w{w}")))
                raise AssertionError(f"w{w}: {e}\nthe store has {store}\n{steps[-8000:]}") from None
        if round_ % 4 == 3:
            check_store(c, [f"w{w}/{n}" for w in range(workers) for n in models[w].files])
            for w in range(workers):
                compare(c.path(f"w{w}"), models[w], None)
    check_store(c, [f"w{w}/{n}" for w in range(workers) for n in models[w].files])
    c.remount()
    for w in range(workers):
        compare(c.path(f"w{w}"), models[w], None)
    return models


@pytest.mark.limit(240)
@pytest.mark.parametrize("delay", ["10ms", "1h"])
def test_kill_at_random_moments(box, delay):
    """Flushing all the time, and not flushing at all."""
    rng = random.Random(SEED + len(delay))
    c = box.cellar(writeback_delay=delay, pool_size="2M", frame_size="64K").start()
    crash_rounds(c, 2, 12 * ROUNDS, rng)


@pytest.mark.stress
@pytest.mark.limit(120)
def test_kill_few_rounds(box):
    """The same, short enough for the sanitizers."""
    c = box.cellar(writeback_delay="10ms", pool_size="2M", frame_size="64K").start()
    crash_rounds(c, 2, 4, random.Random(SEED + 99))


def test_kill_right_after_a_write_returned(box):
    c = box.cellar(writeback_delay="1h").start()
    c.write("old", text(100 * KIB, 1))
    c.flush()
    fd = os.open(c.path("new"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, text(300 * KIB, 2))
    old = os.open(c.path("old"), os.O_RDWR)
    os.pwrite(old, b"changed", 50)
    c.kill9()
    assert errno_of(os.pread, old, 10, 99 * KIB) in (0, errno.ENOTCONN)
    errno_of(os.close, fd)
    errno_of(os.close, old)
    c.start()
    assert c.read("new") == text(300 * KIB, 2)
    want = bytearray(text(100 * KIB, 1))
    want[50:57] = b"changed"
    assert c.read("old") == want
    assert c.counter("recovered") == 2
    c.flush()
    assert c.stored("new") == text(300 * KIB, 2)
    assert c.stored("old") == want


def test_kill_after_changes_of_names(box):
    """create, mkdir, symlink, rename, link, unlink, truncate, chmod: all as they returned."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("a", text(50 * KIB, 1))
    c.write("gone", b"x")
    c.write("cut", text(60 * KIB, 2))
    c.flush()
    os.mkdir(c.path("d"))
    os.rename(c.path("a"), c.path("d/b"))
    os.unlink(c.path("gone"))
    os.truncate(c.path("cut"), 1000)
    os.symlink("target", c.path("link"))
    c.write("d/new", text(70 * KIB, 3))
    os.link(c.path("d/new"), c.path("second"))
    os.rename(c.path("d"), c.path("e"))
    os.chmod(c.path("e/new"), 0o600)
    os.setxattr(c.path("e/new"), "user.k", b"v")
    inos = {n: os.lstat(c.path(n)).st_ino for n in ("e/b", "e/new", "cut")}
    c.kill9()
    c.start()
    assert sorted(os.listdir(c.mnt)) == sorted(["e", "cut", "link", "second"])
    assert c.read("e/b") == text(50 * KIB, 1)
    assert c.read("cut") == text(60 * KIB, 2)[:1000]
    assert c.read("e/new") == c.read("second") == text(70 * KIB, 3)
    assert os.stat(c.path("e/new")).st_ino == os.stat(c.path("second")).st_ino
    assert os.stat(c.path("e/new")).st_mode & 0o777 == 0o600
    assert os.getxattr(c.path("e/new"), "user.k") == b"v"
    assert {n: os.lstat(c.path(n)).st_ino for n in inos} == inos
    check_store(c, ["e/b", "cut", "e/new", "second"])


def test_kill_with_unlinked_open_file(box):
    """A file deleted while open does not come back and leaves nothing behind."""
    c = box.cellar(writeback_delay="1h").start()
    fd = os.open(c.path("f"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, text(200 * KIB, 1))
    os.unlink(c.path("f"))
    c.kill9()
    errno_of(os.close, fd)
    c.lost_expected = True  # it may be kept there: deleting needs a proof
    c.start()
    assert os.listdir(c.mnt) == []
    c.flush()
    assert os.listdir(c.store) == [".cellar"]


def test_kill_with_mapping(box):
    c = box.cellar(writeback_delay="1h").start()
    c.write("f", bytes(100 * KIB))
    fd = os.open(c.path("f"), os.O_RDWR)
    m = mmap.mmap(fd, 100 * KIB)
    m[5000:5005] = b"hello"
    m.flush()
    c.kill9()
    c.start()
    assert c.read("f")[5000:5005] == b"hello"
    m.close()
    errno_of(os.close, fd)


def test_kill_twice_without_a_pause(box):
    """The second daemon dies in the middle of recovering or flushing what the first left."""
    c = box.cellar(writeback_delay="1h").start()
    for i in range(40):
        c.write(f"f{i}", text(100 * KIB, i))
    c.kill9()
    rng = random.Random(SEED)
    for _ in range(6):
        c.launch()
        pause = rng.random() * 0.15
        try:
            c.proc.wait(pause)
        except subprocess.TimeoutExpired:
            pass
        assert c.running, c.log_text()
        c.kill9()
    c.start()
    for i in range(40):
        assert c.read(f"f{i}") == text(100 * KIB, i)
    check_store(c, [f"f{i}" for i in range(40)])


def test_kill_while_draining(box):
    c = box.cellar(writeback_delay="1h", flushers=1).start()
    for i in range(60):
        c.write(f"f{i}", text(200 * KIB, i))
    c.proc.send_signal(signal.SIGTERM)
    wait_for(
        lambda: any(os.path.getsize(c.object_path(f"f{i}")) for i in range(60)),
        what="the first object",
    )
    kill_quietly(c.pid)
    c.proc.wait(30)
    c.expect_crash()
    c.start()
    for i in range(60):
        assert c.read(f"f{i}") == text(200 * KIB, i)
    check_store(c, [f"f{i}" for i in range(60)])


def test_lost_catalog_after_kill(box):
    """No promise about data depends on SQLite: dirty files survive without the catalog."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("flushed", text(30 * KIB, 1))
    c.flush()
    c.write("d/new", text(40 * KIB, 2))
    with open(c.path("flushed"), "ab") as f:
        f.write(b"and dirty")
    inos = {n: os.stat(c.path(n)).st_ino for n in ("flushed", "d/new")}
    c.kill9()
    for name in os.listdir(c.pool_dir()):
        if name.startswith("catalog.db"):
            os.unlink(os.path.join(c.pool_dir(), name))
    c.expect("catalog")
    c.start()
    assert c.read("flushed") == text(30 * KIB, 1) + b"and dirty"
    assert c.read("d/new") == text(40 * KIB, 2)
    assert {n: os.stat(c.path(n)).st_ino for n in inos} == inos
    check_store(c, ["flushed", "d/new"])


def test_object_moved_in_the_store_after_kill(box):
    """The path hint is wrong: the dirty scratch still finds its object."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("d/f", text(30 * KIB, 1))
    c.flush()
    with open(c.path("d/f"), "ab") as f:
        f.write(b"dirty")
    c.kill9()
    os.mkdir(c.store_path("elsewhere"))
    os.rename(c.store_path("d/f.zst"), c.store_path("elsewhere/g.zst"))
    c.expect(r"f|g")
    c.start()
    wait_for(
        lambda: c.read("elsewhere/g") == text(30 * KIB, 1) + b"dirty", 30, "the scratch to find it"
    )
    check_store(c, ["elsewhere/g"])


@pytest.mark.parametrize("flushed", [False, True])
def test_kill_between_a_rename_and_its_hint(box, flushed):
    """The store's rename over a dirty file is done, the path hint is not yet rewritten: what
    was renamed is the file now; what it replaced does not come back under its name."""
    c = box.cellar(writeback_delay="1h").start()
    for name in ("a", "b"):
        c.write(name, text(30 * KIB, ord(name)))
    if flushed:
        c.flush()
    for name in ("a", "b"):
        with open(c.path(name), "ab") as f:
            f.write(b"dirty " + name.encode())
    c.kill9()
    os.rename(c.object_path("a"), c.object_path("b"))  # what the dead daemon's rename did
    c.expect("lost.found")
    c.lost_expected = True
    c.start()
    want = text(30 * KIB, ord("a")) + b"dirty a"
    wait_for(lambda: c.read("b") == want, 30, "the scratch to find its object")
    c.flush()
    assert os.listdir(c.mnt) == ["b"], "no conflict: nobody else was here"
    assert c.stored("b") == want
    c.remount()
    assert c.read("b") == want


def test_another_boot_trusts_only_what_was_synced(box):
    """CELLAR_BOOT_ID stands for a reboot: fsynced content is there, old objects are whole."""
    c = box.cellar(writeback_delay="1h", sync_interval="1h")
    boots = [f"{i}0000000-0000-4000-8000-00000000000{i}" for i in (1, 2)]
    c.start({"CELLAR_BOOT_ID": boots[0]})
    c.write("object", text(50 * KIB, 1))
    c.flush()
    fd = os.open(c.path("synced"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, text(60 * KIB, 2))
    os.fsync(fd)
    with open(c.path("object"), "r+b") as f:
        f.write(b"never synced")
    c.kill9()
    errno_of(os.close, fd)
    c.lost_expected = True
    c.expect("synced", "object", "lost")
    c.start({"CELLAR_BOOT_ID": boots[1]})
    assert c.read("synced") == text(60 * KIB, 2)
    assert c.read("object") in (text(50 * KIB, 1), b"never synced" + text(50 * KIB, 1)[12:])
    check_store(c, ["synced", "object"])


# ---- named steps ----


def named_steps():
    found = set()
    for where, _, names in os.walk(os.path.join(SOURCE, "src")):
        for name in names:
            if name.endswith(".c"):
                body = read_file(os.path.join(where, name)).decode()
                found.update(re.findall(r'\bstep\("([^"]+)"\)', body))
    return sorted(found)


# Passed only by a recovery with something to decide: test_kill_in_recovery_after_a_reboot.
AFTER_A_REBOOT = ("recovery.cut", "recovery.dropped", "recovery.aside", "recovery.met")
AFTER_A_STOP = ("append.cut",)  # passed only where an append was stopped


class Scenario:
    """Passes through everything that the daemon does to a store, noting what returned.

    It works until an operation fails (the daemon is dead) and leaves two pictures: what must
    be there, and what may be there because it was under way."""

    def __init__(self, c):
        self.c = c
        self.sure = {}
        self.maybe = {}  # rel -> list of acceptable contents (None: absent)
        self.swapped = None  # content of a file that changed places with a directory

    def op(self, rel, new, call, other=None):
        """One change of rel to content `new`; other: a second name that it changes."""
        names = {rel: new}
        if other:
            names.update(other)
        for n, content in names.items():
            self.maybe[n] = [self.sure.get(n), content]
        call()
        for n, content in names.items():
            self.sure[n] = content
            self.maybe.pop(n)

    def write(self, rel, data):
        old = self.sure.get(rel)

        def do():
            fd = os.open(self.c.path(rel), os.O_RDWR | os.O_CREAT, 0o644)
            try:
                done = os.pwrite(fd, data, 0)
            finally:
                os.close(fd)
            if done < len(data):  # the daemon died between two requests of it
                self.maybe[rel] = Overwritten(old or b"", data, done)
                raise OSError(errno.ENOTCONN, f"{done} of {len(data)} bytes were written")

        new = data + (old or b"")[len(data) :]
        self.maybe[rel] = [old, new, old or b""]
        do()
        self.sure[rel] = new
        self.maybe.pop(rel)

    def append(self, rel, data):
        old = self.sure[rel]
        self.maybe[rel] = [old, old + data]
        with open(self.c.path(rel), "ab", buffering=0) as f:
            f.write(data)
        self.sure[rel] = old + data
        self.maybe.pop(rel)

    def fsync(self, rel):
        fd = os.open(self.c.path(rel), os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def flush(self):
        if self.c.flush(check=False).returncode != 0 and alive(self.c):
            raise AssertionError("a flush failed without a crash")
        if not alive(self.c):
            raise OSError(errno.ENOTCONN, "the daemon is dead")

    def run(self):
        c = self.c
        for i in range(3):
            self.write(f"f{i}", text(150 * KIB, i))
        os.mkdir(c.path("d"))
        self.write("d/g", text(70 * KIB, 10))
        self.flush()
        self.write("f0", b"changed after the first flush")
        self.fsync("f0")
        self.flush()
        for i in range(2):
            self.append("f2", text(70 * KIB, 20 + i))
            self.flush()  # only grown: appended to
        self.op("l1", self.sure["f1"], lambda: os.link(c.path("f1"), c.path("l1")))
        changed = b"through the link" + self.sure["f1"][16:]
        self.maybe["f1"] = self.maybe["l1"] = [self.sure["f1"], changed]
        with open(c.path("l1"), "r+b", buffering=0) as f:
            f.write(b"through the link")
        self.sure["f1"] = self.sure["l1"] = changed
        self.maybe.clear()
        self.flush()  # several links: copied over
        self.names()
        self.large()
        self.write("f2", b"dirty when renamed")
        moved = self.sure["f2"]
        self.op(
            "d/moved", moved, lambda: os.rename(c.path("f2"), c.path("d/moved")), {"f2": None}
        )
        self.write("x", text(20 * KIB, 5))
        over = self.sure["x"]
        self.op("f0", over, lambda: os.rename(c.path("x"), c.path("f0")), {"x": None})
        self.op("d/g", None, lambda: os.unlink(c.path("d/g")))
        self.write("short-lived", text(50 * KIB, 7))
        doomed = os.stat(c.path("short-lived")).st_ino
        self.op("short-lived", None, lambda: os.unlink(c.path("short-lived")))
        wait_for(lambda: doomed not in c.scratches() or not alive(c), what="the doomed to go")
        self.flush()
        for rel in [r for r in self.sure if self.sure[r] is not None]:
            c.evict(rel, check=False)
        if not alive(c):
            raise OSError(errno.ENOTCONN, "the daemon is dead")
        c.ctl("compact", c.mnt, check=False)
        if not alive(c):
            raise OSError(errno.ENOTCONN, "the daemon is dead")
        for rel, want in self.sure.items():
            if want is not None:
                assert read_file(c.path(rel)) == want, rel
        cut = self.sure["f0"][:5000]
        self.op("f0", cut, lambda: os.truncate(c.path("f0"), 5000))
        self.write("plain", b"changes a plain file, which makes it an object")
        self.write("f1", b"left dirty")
        self.sure["l1"] = self.sure["f1"]
        self.write("last", text(30 * KIB, 9))

    def names(self):
        """Exchanges, other types, a plain file that must become an object, a conflict."""
        c = self.c
        for name, seed in (("ea", 20), ("eb", 21), ("victim", 22), ("swapped", 23), ("both", 24)):
            self.write(name, text(40 * KIB, seed))
        self.flush()
        self.write("ea", b"dirty when exchanged")
        a, b = self.sure["ea"], self.sure["eb"]
        self.op("ea", b, lambda: renameat2(c.path("ea"), c.path("eb"), RENAME_EXCHANGE), {"eb": a})
        os.mkdir(c.path("aside"))
        self.swapped = self.sure.pop("swapped")
        renameat2(c.path("swapped"), c.path("aside"), RENAME_EXCHANGE)
        os.symlink("victim", c.path("link"))
        self.maybe["victim"] = self.sure.pop("victim"), None
        os.rename(c.path("link"), c.path("victim"))
        plain = self.sure["plain2"]
        self.op("x.zst", plain, lambda: os.rename(c.path("plain2"), c.path("x.zst")), {"plain2": None})
        self.write("both", b"dirty while somebody replaces its object")
        self.maybe["both"] = [self.sure["both"], b"foreign"]  # killed too early to notice
        zstd_make(b"foreign", c.object_path("both") + ".new")
        os.rename(c.object_path("both") + ".new", c.object_path("both"))
        self.flush()
        self.maybe.pop("both")
        assert c.read("both") == self.sure["both"]

    def large(self):
        """Big enough in the store for whatever treats large objects in another way: appended
        to twice, flushed while it is open, and a change in its middle."""
        c = self.c
        self.write("large", noise(1400 * KIB, 30) + text(700 * KIB, 31))
        self.flush()
        for seed in (32, 33):
            more = text(300 * KIB, seed)
            before = self.sure["large"]
            fd = os.open(c.path("large"), os.O_WRONLY | os.O_APPEND)
            try:
                self.maybe["large"] = Prefix(before, before + more)
                os.write(fd, more)
                self.op("large", before + more, lambda f=fd: os.fsync(f))
                self.flush()
            finally:
                errno_of(os.close, fd)
        self.write("large", b"changed at its beginning")
        self.flush()

    def check_swapped(self):
        """One of the two names leads to it; or, stopped in between, its object is shown raw."""
        c = self.c
        here = [n for n in ("swapped", "aside") if os.path.isfile(c.path(n))]
        if here:
            assert c.read(here[0]) == self.swapped
        else:
            assert c.stored("aside") == self.swapped, "neither here nor there"

    def check(self):
        c = self.c
        if self.swapped:
            self.check_swapped()
        if os.path.islink(c.path("victim")):
            self.sure.pop("victim", None)
            self.maybe.pop("victim", None)
        for rel in sorted(set(self.sure) | set(self.maybe)):
            got = read_file(c.path(rel)) if os.path.lexists(c.path(rel)) else None
            allowed = self.maybe.get(rel, [self.sure.get(rel)])
            if rel == "l1" and "f1" in self.maybe:
                allowed = allowed + self.maybe["f1"]
            assert got in allowed, (
                f"{rel}: {None if got is None else len(got)} bytes, allowed are "
                f"{[None if a is None else len(a) for a in allowed]}"
            )


class Overwritten:
    """What a write at offset 0 left of which `done` bytes were told to be written."""

    def __init__(self, old, data, done):
        self.old = old
        self.data = data
        self.done = done

    def __contains__(self, got):
        if got is None or len(got) < max(len(self.old), self.done):
            return False
        same = len(os.path.commonprefix([got, self.data]))
        return same >= self.done and got[same:] == self.old[same:]

    def __iter__(self):
        return iter((self.data[: self.done], self.data))


class Prefix:
    """What an append that was under way may have left."""

    def __init__(self, before, after):
        self.before = before
        self.after = after

    def __contains__(self, got):
        return got is not None and len(got) >= len(self.before) and self.after.startswith(got)

    def __iter__(self):
        return iter((self.before, self.after))


def alive(c):
    """Whether the daemon is alive; a step that kills it takes a moment."""
    try:
        c.proc.wait(0.05)
    except subprocess.TimeoutExpired:
        return True
    return False


def killed_in_recovery(c, name):
    """The next two daemons die at steps of recovery, where they come to any."""
    steps = ("recovery.taken", "recovery.dropped", "recovery.unmarked", "recovery.met")
    first = sum(name.encode()) % len(steps)
    for step in (steps[first], steps[(first + 1) % len(steps)]):
        c.launch({"CELLAR_TEST_STEP": f"{step}=kill"})
        try:
            c.wait_up()
        except AssertionError:
            assert not alive(c), c.log_text()
        if alive(c):
            c.proc.kill()
        assert c.wait_end() == -signal.SIGKILL


def kills():
    """(step, which arrival there): the second where the first has left something to stumble over."""
    for name in named_steps():
        if name not in AFTER_A_REBOOT + AFTER_A_STOP:
            yield name, 1
            if SOAK or (ROOT and name.split(".")[0] in ("append", "flush", "store", "recovery")):
                yield name, 2


@pytest.mark.limit(60)
@pytest.mark.parametrize("name, nth", kills())
def test_kill_at_named_step(box, name, nth):
    """The daemon dies at the nth arrival at a step; what had returned is there afterwards."""
    env = {"CELLAR_TEST_STEP": f"{name}:{nth}=kill"}
    c = box.cellar(
        writeback_delay="1h",
        frame_size="64K",
        pool_size="8M",
        sync_interval="100ms",
        compact_level=6,
        append_min="4K",
    )
    if name == "write.done":  # not passed where the kernel writes by itself
        c.opts["passthrough"] = "off"
    os.mkdir(c.store)
    write_file(c.store_path("plain"), b"a plain file")
    write_file(c.store_path("plain2"), text(30 * KIB, 40))
    c.expect("changed behind cellar")
    s = Scenario(c)
    s.sure["plain"] = b"a plain file"
    s.sure["plain2"] = text(30 * KIB, 40)
    c.launch(env)
    try:
        c.wait_up()
        s.run()
    except (OSError, AssertionError):
        if alive(c):
            raise
    if alive(c):  # not reached by ordinary work: perhaps by recovery or by the end
        c.kill9()
        c.launch(env)
        try:
            c.wait_up()
        except AssertionError:
            assert not alive(c), c.log_text()
        if alive(c):
            c.proc.terminate()
    status = c.wait_end()
    if status == 0 and nth > 1:
        c.check_log()
        c.start()
        s.check()
        return  # the step exists but is passed only once: nth=1 has tested it
    assert status == -signal.SIGKILL, f"step {name} was never reached (exit {status})"
    c.expect_crash()
    if name in ("create.prepared", "rename.both", "conflict.kept"):
        # a scratch whose object never came to be, or was not yet in its place
        c.expect("lost.found")
        c.lost_expected = True
    killed_in_recovery(c, name)
    c.start()
    s.check()
    c.flush()
    s.check()
    for rel in map(os.fsdecode, tree_files(c.mnt)):
        if not os.path.exists(c.object_path(rel)):  # plain, or shown raw
            assert rel in ("plain", "plain2", "aside.zst", "victim.zst"), rel
            assert read_file(c.store_path(rel)) == c.read(rel)
        else:
            assert c.stored(rel) == c.read(rel), rel
    tmp = os.path.join(c.store, ".cellar", "tmp")
    assert os.listdir(tmp) == []
    c.remount()
    s.check()


@pytest.mark.parametrize("name", [n for n in named_steps() if n.startswith("recovery.")])
def test_kill_in_recovery_after_a_reboot(box, name):
    """Recovery by the rules of another boot, killed at its steps and begun again: of files that
    were synced and appended to, overwritten without a sync, only read, and moved in the store."""
    c = box.cellar(writeback_delay="1h", sync_interval="1h")
    boots = [f"{i}0000000-0000-4000-8000-00000000000{i}" for i in (1, 2)]
    c.start({"CELLAR_BOOT_ID": boots[0]})
    for i in range(2):
        for kind in ("read", "written", "moved"):
            c.write(f"{kind}{i}", text(60 * KIB, i))
    c.flush()
    fds = []

    def change(rel, flags, data, at, sync):
        fd = os.open(c.path(rel), os.O_RDWR | flags, 0o644)
        fds.append(fd)
        os.pwrite(fd, data, at)
        if sync:
            os.fsync(fd)
        return fd

    for i in range(2):
        fd = change(f"f{i}", os.O_CREAT, text(100 * KIB, i), 0, True)
        os.pwrite(fd, b"x" * 5000, 100 * KIB)  # not synced
        change(f"written{i}", 0, b"never synced", 0, False)
        change(f"moved{i}", 0, b"synced", 0, True)
    c.kill9()
    for fd in fds:
        errno_of(os.close, fd)
    for i in range(2):
        os.rename(c.object_path(f"moved{i}"), c.object_path(f"elsewhere{i}"))
    c.expect("lost.found")
    c.lost_expected = True
    for nth in (1, 2):
        c.launch({"CELLAR_BOOT_ID": boots[1], "CELLAR_TEST_STEP": f"{name}:{nth}=kill"})
        try:
            c.wait_up(5)
            c.proc.wait(1)
        except (AssertionError, subprocess.TimeoutExpired):
            pass
        if alive(c):  # done by the one before, or passed only once
            assert nth > 1, f"{name} was not reached"
            c.kill9()
        assert c.wait_end() == -signal.SIGKILL
        c.expect_crash()
    c.start({"CELLAR_BOOT_ID": boots[1]})
    for i in range(2):
        got = c.read(f"f{i}")
        assert got[: 100 * KIB] == text(100 * KIB, i)
        assert got[100 * KIB :] in (b"", b"x" * 5000), "a prefix of what was written"
        assert c.read(f"read{i}") == text(60 * KIB, i)
        assert c.read(f"written{i}") == text(60 * KIB, i), "the object is what counts"
        moved = b"synced" + text(60 * KIB, i)[6:]
        wait_for(lambda n=i, w=moved: c.read(f"elsewhere{n}") == w, what="the moved one to be met")
    check_store(c, [f"{k}{i}" for k in ("f", "read", "written", "elsewhere") for i in range(2)])


@pytest.mark.parametrize("name", [n for n in named_steps() if n.startswith("append.")])
def test_append_stopped(box, name):
    """At every step of an append (A1): zstd reads the object; recovery, itself stopped at its
    cut, leaves the old content or the new, and what was written is in the scratch. Through the
    daemon, for it must know what was written: that the scratch of an earlier run only grew, the
    hashes of its frames cannot tell."""
    opts = {"frame_size": "64K", "append_min": "4K", "passthrough": "off"}
    c = box.cellar(writeback_delay="1h", **opts).start()
    old, more = text(500 * KIB, 1), text(100 * KIB, 2)
    c.write("log", old)
    c.flush()
    c.stop()
    at = "append.frames" if name == "append.cut" else name
    c.start({"CELLAR_TEST_STEP": f"{at}:1=kill"})
    with open(c.path("log"), "ab", buffering=0) as f:
        f.write(more)
    c.flush(check=False)
    assert c.wait_end() == -signal.SIGKILL, f"{at} was not reached"
    c.expect_crash()
    got = zstd_cat(c.object_path("log"))
    assert (old + more).startswith(got) and got.startswith(old)
    if name == "append.cut":
        c.launch({"CELLAR_TEST_STEP": "append.cut:1=kill"})
        assert c.wait_end() == -signal.SIGKILL, "recovery has cut nothing"
    c.start()
    assert c.read("log") == old + more
    assert zstd_cat(c.object_path("log")) in (old, old + more)
    c.flush()
    assert c.stored("log") == old + more
    assert zstd_cat(c.object_path("log")) == old + more
    c.remount()
    assert c.read("log") == old + more


@pytest.mark.parametrize("name", ["append.frames", "append.trailer", "flush.recorded"])
def test_tail_stopped(box, name):
    """The same for a large cold file, opened and appended to without being hydrated; reads of the
    old part are answered from the object, before and after the crash."""
    opts = {"frame_size": "64K", "append_min": "4K", "eager_size": "100K", "writeback_delay": "1h"}
    c = box.cellar(**opts).start()
    old, more = text(700 * KIB, 1), text(100 * KIB, 2)
    c.write("log", old)
    c.flush()
    c.evict("log")
    c.stop()
    c.start({"CELLAR_TEST_STEP": f"{name}:1=kill"})
    decoded = c.counter("frames_decoded")
    with open(c.path("log"), "ab", buffering=0) as f:
        f.write(more)
    assert c.counter("frames_decoded") == decoded, "an append decodes nothing"
    with open(c.path("log"), "rb") as f:
        f.seek(len(old) - 1000)
        assert f.read(2000) == (old + more)[len(old) - 1000 : len(old) + 1000]
    c.flush(check=False)
    assert c.wait_end() == -signal.SIGKILL, f"{name} was not reached"
    c.expect_crash()
    c.start()
    assert c.read("log") == old + more
    c.flush()
    assert c.stored("log") == old + more
    assert zstd_cat(c.object_path("log")) == old + more
    c.remount()
    assert c.read("log") == old + more


def test_there_are_named_steps():
    """The parametrisation above must not be empty by accident."""
    assert len(named_steps()) >= 8, named_steps()


def test_step_wait_lets_others_work(box):
    """A flusher that stands still (as on a slow disk) keeps nobody from reading and writing."""
    flag = os.path.join(box.path, "step")
    steps = [s for s in named_steps() if s.startswith("flush.")]
    if not steps:
        pytest.fail("no step in the flushers")
    c = box.cellar(writeback_delay="10ms", flushers=1)
    c.start({"CELLAR_TEST_STEP": f"{steps[0]}:1=wait", "CELLAR_TEST_STEP_FILE": flag})
    c.write("a", text(100 * KIB, 1))
    wait_for(lambda: os.path.exists(flag), what="the flusher to stand still")
    assert c.read("a") == text(100 * KIB, 1)
    with open(c.path("a"), "ab") as f:
        f.write(b"while it is flushed")
    c.write("b", b"another")
    os.rename(c.path("b"), c.path("c"))
    assert json.loads(c.ctl("status", "--json", c.mnt).out)["cellars"]
    os.unlink(flag)
    c.flush()
    assert c.stored("a") == text(100 * KIB, 1) + b"while it is flushed"
    assert c.stored("c") == b"another"


def test_seq_grows_over_crashes(box):
    """Flush numbers of one file only grow: recovery tells old from new by them."""
    c = box.cellar(writeback_delay="1h").start()
    last = 0
    for i in range(5):
        c.write("f", text(10 * KIB, i))
        c.flush()
        seq = parse_object(c.object_path("f"))["cellar"]["seq"]
        assert seq > last
        last = seq
        with open(c.path("f"), "ab") as f:
            f.write(b"dirty")
        c.kill9()
        c.start()
    c.flush()
    assert parse_object(c.object_path("f"))["cellar"]["seq"] > last


def test_half_written_replacements_are_swept(box):
    """What a dead daemon left in tmp/ goes at the next start; nothing else is touched."""
    c = box.cellar(writeback_delay="1h").start()
    c.write("f", text(10 * KIB, 1))
    c.stop()
    tmp = os.path.join(c.store, ".cellar", "tmp")
    zstd_make(b"half", os.path.join(tmp, "123"))
    with open(os.path.join(tmp, "garbage"), "wb") as f:
        f.write(os.urandom(MIB))
    c.start()
    wait_for(lambda: os.listdir(tmp) == [], what="tmp/ to be swept")
    assert c.read("f") == text(10 * KIB, 1)
    assert zstd_cat(c.object_path("f")) == text(10 * KIB, 1)
