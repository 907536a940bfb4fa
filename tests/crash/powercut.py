"""Cuts under load, and what must hold after each: see promise.py and images.py.

An Episode runs writers on a rig, takes snapshots of its disks and ends in a cut. verify()
stands for the next boot: the disks are mounted again, a fresh cellard with another boot id
recovers, and what it shows is held against what the writers were promised; then

  (P6) everything flushes, and every object in the store decodes to what the mount shows;
  (P7) a dirty scratch of before the cut is taken over, superseded by an object with a later
       flush number, doomed or empty, or in lost+found, which status lists: none is just gone.
"""

import ctypes
import os
import random
import re
import signal
import stat
import struct
import subprocess
import threading
import time
import uuid
import zlib

from harness import errno_of, kill_quietly, parse_object, read_file, reap, run, spawn, wait_for
from load import Journal, RandomWriter, adopt, replay
from promise import Model, look

_libc = ctypes.CDLL(None, use_errno=True)
RECORD = "user.cellar.record"
DOOMED = 8

# What a daemon may say after a cut, and one whose disk went away at any time.
AFTER_A_CUT = (
    r"lost.found",
    r"catalog",
    r"not (been )?(shut down|closed) cleanly|unclean",
    r"is not in the store|looked for",
    r"broken for a test",
)


def a_boot():
    return {"CELLAR_BOOT_ID": str(uuid.uuid4())}


# ---- what lies in a pool ----


def records(pool):
    """{number: (dirty, flags, sync_seq, size)} of the scratch files in a pool."""
    found = {}
    for where, _, names in os.walk(os.path.join(pool, "scratch")):
        for name in names:
            path = os.path.join(where, name)
            try:
                raw = os.getxattr(path, RECORD)
            except OSError:
                continue
            if len(raw) != 128 or raw[:4] != b"CLRR":
                continue
            ino = struct.unpack_from("<Q", raw, 8)[0]
            sync_seq = struct.unpack_from("<Q", raw, 88)[0]
            flags = struct.unpack_from("<I", raw, 116)[0]
            st = os.stat(path)
            if st.st_mode & stat.S_ISVTX:
                flags |= DOOMED
            found[ino] = (raw[6] == 1, flags, sync_seq, st.st_size)
    return found


def objects(store):
    for where, dirs, names in os.walk(store):
        if ".cellar" in dirs:
            dirs.remove(".cellar")
        for name in names:
            if name.endswith(".zst"):
                yield os.path.join(where, name)


def number_of(path):
    """(number, flush) of the object's cellar frame, or None."""
    try:
        cellar = parse_object(path)["cellar"]
    except (AssertionError, OSError, struct.error):
        return None
    return (cellar["ino"], cellar["seq"]) if cellar else None


def lost_numbers(pool):
    names = os.listdir(os.path.join(pool, "lost+found"))
    return names, {int(n.split("-")[0], 16) for n in names if len(n.split("-")[0]) == 16}


def unaccounted(before, store, pool):
    """(P7), looked at before anything is flushed."""
    after = records(pool)
    lost = lost_numbers(pool)[1]
    missing = {
        ino: r
        for ino, r in before.items()
        if r[0] and ino not in after and ino not in lost and not r[1] & DOOMED and r[3] > 0
    }
    if missing:
        newer = dict(filter(None, map(number_of, objects(store))))
        missing = {i: r for i, r in missing.items() if newer.get(i, -1) < r[2] or i not in newer}
    return [f"scratch {i:x} (sync {r[2]}, {r[3]} bytes) is just gone (P7)" for i, r in missing.items()]


def power_off(rig, c, *fds):
    """Of a daemon and its disks. fds: open files, which may keep the pool's disk busy."""
    if c.running:
        c.kill9()
    for fd in fds:
        errno_of(os.close, fd)
    run("umount", "-l", c.mnt)
    rig.umount()


# ---- the next boot ----


class Outcome:
    def __init__(self):
        self.problems = []
        self.lost = 0
        self.models = []


def check_objects(c, tops):
    """(P6) after a flush."""
    problems = []
    paths = sorted(objects(c.store))
    if paths:
        done = subprocess.run(
            ["zstd", "-tq", "--", *paths], capture_output=True, check=False, text=True
        )
        if done.returncode != 0:
            problems.append(f"objects do not decode (P6): {done.stderr[:600]}")
    for top in tops:
        for name, got in look(c.path(top)).items():
            if isinstance(got, bytes):
                path = c.object_path(os.path.join(top, name))
                out = subprocess.run(["zstd", "-dcq", "--", path], capture_output=True, check=False)
                if out.stdout != got:
                    problems.append(f"{name}: the object holds {len(out.stdout)} bytes, not {len(got)} (P6)")
    return problems


def changed(before, after):
    """What two look()s of a directory do not have in common, as sentences without their end."""

    def short(got):
        if isinstance(got, bytes):
            return f"{len(got)} bytes ({got[:40]!r}..., {zlib.crc32(got):08x})"
        return repr(got)

    for name in sorted(set(before) | set(after)):
        a, b = (short(d[name]) if name in d else "not there" for d in (before, after))
        if a != b:
            yield f"{name}: {a} before, {b}"


def store_entries(store):
    """What lies in the store, as the filesystem says: {path: what it is}."""
    found = {}
    for where, dirs, names in os.walk(store):
        for name in dirs + names:
            path = os.path.join(where, name)
            st = os.lstat(path)
            marks = [a for a in os.listxattr(path, follow_symlinks=False) if "cellar" in a]
            found[os.path.relpath(path, store)] = (
                f"inode {st.st_ino} links {st.st_nlink} mode {st.st_mode:o} size {st.st_size}"
                f" mtime {st.st_mtime_ns / 1e9:.6f} {' '.join(marks)}"
            )
    return found


def names_in(problem):
    """The names that a sentence about a broken promise speaks of."""
    return [problem.split(":")[0], *re.findall(r"'([^']+)'", problem)]


def entries_named(problems, entries):
    """Of these entries the ones that problems speak of, and their neighbours by name."""
    names = {
        os.path.join(top, name)
        for top, sep, rest in (p.partition("/") for p in problems)
        if sep
        for name in names_in(rest)
    }
    return [
        f"{path}: {what}"
        for path, what in sorted(entries.items())
        if any(path.startswith(name) for name in names)
    ]


def verify(rig, models, env=None, **opts):
    """Recovers what is on the rig's disks. models: {directory: Model}."""
    out = Outcome()
    c = rig.cellar(writeback_delay="1h", sync_interval="1h", **opts)
    c.expect(*AFTER_A_CUT).lost_expected = True
    before = records(rig.pool)
    entries = store_entries(c.store)
    c.launch({**a_boot(), **(env or {})})
    try:
        c.wait_up()
        found = {top: look(c.path(top)) if os.path.isdir(c.path(top)) else {} for top in models}
        for top, model in models.items():
            out.problems += [f"{top}/{p}" for p in model.check(found[top])]
        out.problems += unaccounted(before, c.store, rig.pool)
        names, _ = lost_numbers(rig.pool)
        out.lost = len(names)
        if len(c.status()["lost_and_found"]) != len(names):
            out.problems.append(f"status does not count {len(names)} in lost+found (P7)")
        flushed = c.flush(check=False)
        if flushed.returncode != 0:
            out.problems.append(f"flush fails (P6): {flushed.out}{flushed.err}")
        tops = [t for t in models if os.path.isdir(c.path(t))]
        out.problems += check_objects(c, tops)
        for top in tops:
            for name in changed(found[top], look(c.path(top))):
                out.problems.append(f"{top}/{name} after a flush")
        if not out.problems:
            out.models = {top: adopt(c.path(top)) for top in tops}
        c.stop()
    except AssertionError as e:
        out.problems.append(str(e))
        if c.running:
            c.kill9()
    if out.problems:
        after_cut = entries_named(out.problems, entries)
        now = entries_named(out.problems, store_entries(c.store))
        out.problems += ["---- in the store after the cut", *after_cut, "---- and now", *now]
        out.problems.append("---- log\n" + c.log_text()[-6000:])
    rig.box.cellars.remove(c)
    return out


# ---- under load ----


def stop_process(pid):
    os.kill(pid, signal.SIGSTOP)

    def stopped():
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[0] in "Tt"

    wait_for(stopped, 20, "the daemon to stand still")


class Disturber:
    """Background write-out in no order: of parts of files, of whole disks, of the journal
    alone."""

    def __init__(self, rig, seed):
        self.rig = rig
        self.rng = random.Random(seed)
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def some_file(self):
        tops = [self.rig.store, os.path.join(self.rig.pool, "scratch")]
        for where, dirs, names in os.walk(self.rng.choice(tops)):
            self.rng.shuffle(dirs)
            if names and self.rng.random() < 0.5:
                return os.path.join(where, self.rng.choice(names))
        return None

    def write_out(self):
        path = self.some_file()
        if not path:
            return
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(fd).st_size
            off = self.rng.randrange(size + 1) & ~4095
            sync_file_range(fd, off, self.rng.choice((0, 4096, 65536)))
        finally:
            os.close(fd)

    def run(self):
        while not self.ending.wait(self.rng.random() * 0.06):
            name = self.rng.choice(self.rig.names)
            dice = self.rng.random()
            try:
                if dice < 0.75:
                    self.write_out()
                elif dice < 0.92:
                    self.rig.commit(name)
                else:
                    self.rig.sync(name)
            except (OSError, AssertionError):
                pass  # gone meanwhile, or its disk is

    def stop(self):
        self.ending.set()
        self.thread.join(30)


def sync_file_range(fd, off, length):
    _libc.sync_file_range(fd, ctypes.c_int64(off), ctypes.c_int64(length), 7)


class Episode:
    """Random writers on a rig until the power goes."""

    def __init__(self, rig, seed, writers=2, models=None, env=None, **opts):
        self.rig = rig
        self.rng = random.Random(seed)
        self.cuts = []  # (tag, {directory: length of its journal})
        self.start_models = models
        options = {
            "writeback_delay": self.rng.choice(("10ms", "100ms", "1h")),
            "sync_interval": self.rng.choice(("100ms", "500ms", "1h")),
            "max_dirty_age": self.rng.choice(("1s", "60s")),
            "pool_size": self.rng.choice(("2M", "64M")),
            "frame_size": self.rng.choice(("64K", "1M")),
        }
        self.c = rig.cellar(**{**options, **opts})
        self.c.expect(r".")  # its disks are going to fail; what counts is what is read later
        self.env = {**a_boot(), **(env or {})}
        self.c.start(self.env)
        self.tops = [f"w{i}" for i in range(writers)]
        self.journals = {}
        self.pids = []
        self.over = os.path.join(rig.box.path, f"over-{seed}")
        for top in self.tops:
            os.makedirs(self.c.path(top), exist_ok=True)
        if models is None:
            rig.sync("store")  # the writers' own directories are not what is tested
        for top in self.tops:
            path = os.path.join(rig.box.path, f"journal-{seed}-{top}")
            self.journals[top] = path
            self.pids.append(spawn(self.write, top, path, self.rng.randrange(1 << 30)))
        self.disturber = Disturber(rig, seed)

    def write(self, top, path, seed):
        model = self.start_models[top].copy() if self.start_models else None
        writer = RandomWriter(self.c.path(top), Journal(path), seed, model)
        writer.run(lambda: os.path.exists(self.over))

    def position(self):
        return {t: os.path.getsize(p) if os.path.exists(p) else 0 for t, p in self.journals.items()}

    def snapshot(self, tag):
        """Both disks at one instant, as the daemon sees it: it stands still, and so do the writers
        once they are out of the kernel, which serves them without the daemon where it
        can. What their calls do in the kernel goes on, and nobody is told."""
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)
        stop_process(self.c.pid)
        try:
            where = self.position()
            self.rig.snapshot(tag)
        finally:
            for pid in (self.c.pid, *self.pids):
                os.kill(pid, signal.SIGCONT)
        self.cuts.append((tag, where))

    def writers_end(self):
        for pid in self.pids:
            status = reap(pid)
            # SIGBUS: it stored through a mapping of what is gone
            assert status in (0, -signal.SIGBUS), f"a writer ended with {status}: it read what it had not written"
        self.pids = []

    def kill(self):
        """kill -9 of the daemon. The next one of the same boot believes what is in memory, of
        which a cut leaves less."""
        with open(self.over, "w", encoding="ascii"):
            pass
        self.c.kill9()
        self.writers_end()
        run("umount", "-l", self.c.mnt, check=False)
        self.c.start(self.env)

    def end(self, shut_down=False, pause=0.0):
        """The power goes, of one disk after the other, and everything with it."""
        assert self.c.running, self.c.log_text()[-6000:]
        with open(self.over, "w", encoding="ascii"):
            pass
        if shut_down:
            names = list(self.rig.names)
            self.rng.shuffle(names)
            for i, name in enumerate(names):
                if i:
                    time.sleep(pause)
                self.rig.shut_down(name)
        self.disturber.stop()
        kill_quietly(self.c.pid)
        self.c.proc.wait(30)
        self.writers_end()
        self.rig.box.cellars.remove(self.c)
        run("umount", "-l", self.c.mnt, check=False)
        self.rig.umount()
        return self.position()

    def story(self, problems, where):
        """What the journals say of the files that problems name, up to a cut."""
        lines = []
        for top, path in self.journals.items():
            mine = [p[len(top) + 1 :] for p in problems if p.startswith(top + "/")]
            names = {name for p in mine for name in names_in(p)}
            body = read_file(path)[: where[top]].decode()
            for line in body.replace("\n.\n", " done\n").split("\n"):
                if '"flush"' in line or any(f'"{n}"' in line for n in names):
                    lines.append(f"{top} {line}")
        return "\n".join(lines[-60:])

    def models(self, where):
        found = {}
        for top, path in self.journals.items():
            model = self.start_models[top].copy() if self.start_models else None
            model = model or Model()
            replay(path, model, where[top])
            found[top] = model
        return found
