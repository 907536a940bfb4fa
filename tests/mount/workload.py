"""A writing load whose every acknowledged step is known, however it ends.

A Worker owns one directory of the mount and changes files in it by a seeded choice of
operations. Before an operation it notes what it is about to do, after it that it returned,
in a side file outside the mount. From that log a Model is rebuilt: what every file must
hold, and for the one operation that was under way when the daemon died, what it may hold.
"""

import errno
import json
import os
import random
import time

from harness import noise, read_file, text

MAX_FILES = 10
MAX_SIZE = 400_000


def payload(kind, size, seed):
    return noise(size, seed) if kind == "noise" else text(size, seed)


class Model:
    """Names and contents after a sequence of operations."""

    def __init__(self):
        self.files = {}  # name -> bytes

    def apply(self, op):
        kind, name = op["op"], op["name"]
        files = self.files
        if kind == "create":
            files[name] = b""
        elif kind == "write":
            old = files[name]
            data = payload(op["kind"], op["size"], op["seed"])
            off = len(old) if op["off"] < 0 else op["off"]
            old = old.ljust(off, b"\0")
            files[name] = old[:off] + data + old[off + len(data) :]
        elif kind == "truncate":
            files[name] = files[name][: op["size"]].ljust(op["size"], b"\0")
        elif kind == "rename":
            files[op["to"]] = files.pop(name)
        elif kind == "unlink":
            del files[name]
        elif kind == "link":
            # links share content: kept simple by unlinking the old name right after
            files[op["to"]] = files[name]
        else:
            assert kind in ("open", "close", "fsync"), kind

    def copy(self):
        other = Model()
        other.files = dict(self.files)
        return other


def acceptable(name, got, before, after, op):
    """Whether content `got` (None: no such file) of `name` is explained by `op` having
    happened, not happened, or, for a write, having happened up to some byte."""
    old, new = before.files.get(name), after.files.get(name)
    if got in (old, new):
        return True
    if op["op"] == "write" and name == op["name"] and got is not None and old is not None:
        off = len(old) if op["off"] < 0 else op["off"]
        old_padded = old.ljust(off, b"\0")
        for_sure = len(os.path.commonprefix([got, new]))
        if for_sure < off:
            return False
        return got[for_sure:] == old_padded[for_sure:] or (
            len(got) == for_sure and for_sure >= len(old)
        )
    if op["op"] == "truncate" and name == op["name"] and got is not None:
        return got == old
    return False


class Journal:
    """The side file: one JSON line when an operation begins, one when it returned."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def begin(self, op):
        os.write(self.fd, b"+" + json.dumps(op).encode() + b"\n")

    def end(self):
        os.write(self.fd, b".\n")


def replay(path, model):
    """Applies what the journal acknowledges to model; returns the pending op or None."""
    pending = None
    for line in read_file(path).split(b"\n"):
        if line.startswith(b"+"):
            pending = json.loads(line[1:])
        elif line == b"." and pending is not None:
            model.apply(pending)
            pending = None
    return pending


class Worker:
    """The load itself; runs in a process of its own until told to stop or the mount dies."""

    def __init__(self, top, journal, seed, model=None):
        self.top = top
        self.journal = Journal(journal)
        self.rng = random.Random(seed)
        self.model = model.copy() if model else Model()
        self.fds = {}  # name -> descriptor
        self.counter = 0

    def path(self, name):
        return os.path.join(self.top, name)

    def do(self, call, **op):
        self.journal.begin(op)
        result = call()
        self.model.apply(op)
        self.journal.end()
        return result

    def fd_of(self, name):
        if name not in self.fds:
            self.fds[name] = os.open(self.path(name), os.O_RDWR)
        return self.fds[name]

    def close(self, name):
        fd = self.fds.pop(name, None)
        if fd is not None:
            os.close(fd)

    def new_name(self):
        self.counter += 1
        return f"n{self.rng.randrange(10**6)}-{self.counter}"

    def step(self):
        """One operation."""
        rng, files = self.rng, self.model.files
        if not files or (len(files) < MAX_FILES and rng.random() < 0.15):
            name = self.new_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            self.fds[name] = self.do(
                lambda: os.open(self.path(name), flags, 0o644), op="create", name=name
            )
            return
        name = rng.choice(sorted(files))
        dice = rng.random()
        if dice < 0.60:
            size = rng.choice((1, 100, 4000, 4096, 30000, 65536))
            kind = rng.choice(("text", "text", "noise"))
            seed = rng.randrange(1 << 30)
            length = len(files[name])
            off = rng.choice((-1, -1, 0, rng.randrange(length + 1), length + 5000))
            if max(off, length) + size > MAX_SIZE:
                off = 0
            data = payload(kind, size, seed)
            at = length if off < 0 else off
            fd = self.fd_of(name)

            def write():
                if os.pwrite(fd, data, at) != len(data):  # the daemon died in the middle
                    raise OSError(errno.ENOTCONN, "a short write")

            self.do(write, op="write", name=name, off=off, size=size, kind=kind, seed=seed)
        elif dice < 0.68:
            size = rng.choice((0, rng.randrange(len(files[name]) + 1), len(files[name]) + 10000))
            size = min(size, MAX_SIZE)
            fd = self.fd_of(name)
            self.do(lambda: os.ftruncate(fd, size), op="truncate", name=name, size=size)
        elif dice < 0.80:
            self.close(name)
        elif dice < 0.85:
            fd = self.fd_of(name)
            self.do(lambda: os.fsync(fd), op="fsync", name=name)
        elif dice < 0.93:
            to = rng.choice(sorted(files) + [self.new_name()])
            if to == name:
                return
            self.close(to)
            self.do(lambda: os.rename(self.path(name), self.path(to)), op="rename", name=name, to=to)
            if name in self.fds:
                self.fds[to] = self.fds.pop(name)
        elif dice < 0.96:
            self.close(name)
            to = self.new_name()
            self.do(lambda: os.link(self.path(name), self.path(to)), op="link", name=name, to=to)
            self.do(lambda: os.unlink(self.path(name)), op="unlink", name=name)
        else:
            self.close(name)
            self.do(lambda: os.unlink(self.path(name)), op="unlink", name=name)

    def why_dead(self):
        """The error of a mount whose daemon is gone (or going: looked at for a moment)."""
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            try:
                os.statvfs(self.top)
            except OSError as e:
                return e
        return None

    def run(self, steps=1 << 60, stop=None):
        """Until the mount is gone, `steps` are done or the file `stop` exists."""
        try:
            for i in range(steps):
                self.step()
                if stop and i % 8 == 0 and os.path.exists(stop):
                    break
        except OSError as e:
            # only a dead daemon excuses an error, and only where one is expected; the kernel
            # answers EIO to a write that the daemon died in
            dead = (errno.ENOTCONN, errno.ECONNABORTED)
            if e.errno == errno.EIO and stop is None:
                e = self.why_dead() or e
            if stop is not None or e.errno not in dead:
                raise
        finally:
            for name in list(self.fds):
                try:
                    self.close(name)
                except OSError:
                    pass


def compare(top, before, pending):
    """The directory `top` against the model. Returns the model that holds now."""
    after = before.copy()
    if pending is not None:
        after.apply(pending)
    names = set(os.listdir(top))
    now = Model()
    for name in sorted(names | set(before.files) | set(after.files)):
        got = read_file(os.path.join(top, name)) if name in names else None
        if pending is None:
            assert got == before.files.get(name), describe(name, got, before.files.get(name))
        else:
            assert acceptable(name, got, before, after, pending), (
                describe(name, got, before.files.get(name)) + f", pending {pending}"
            )
        if got is not None:
            now.files[name] = got
    if pending is not None and pending["op"] == "rename":
        here = {n for n in (pending["name"], pending["to"]) if n in names}
        assert here in ({pending["to"]}, {pending["name"]}, {pending["name"], pending["to"]}), (
            f"a rename left {here}"
        )
        if pending["name"] in here and pending["to"] in here:
            # not happened: both must be the old ones
            assert now.files[pending["to"]] == before.files.get(pending["to"])
        elif pending["name"] in here:
            assert pending["to"] not in before.files
        else:
            assert now.files[pending["to"]] == before.files[pending["name"]]
    # stopped between a link and the unlink after it: two names of one inode, which the model
    # does not know; one of them goes
    inodes = {}
    for name in sorted(now.files):
        if inodes.setdefault(os.lstat(os.path.join(top, name)).st_ino, name) != name:
            os.unlink(os.path.join(top, name))
            del now.files[name]
    return now


def describe(name, got, want):
    if got is None or want is None:
        return f"{name}: {'missing' if got is None else 'there'} instead of " + (
            "missing" if want is None else f"{len(want)} bytes"
        )
    same = len(os.path.commonprefix([got, want]))
    return f"{name}: {len(got)} bytes instead of {len(want)}, the first {same} are right"
