"""Loads whose every promise is known: a Writer notes each operation in a journal outside the
mount, when it begins and when it returned. Cut anywhere, the journal says what was promised
and what was under way."""

import json
import mmap
import os
import random
import stat

from harness import CELLARCTL, environment, read_file, run
from promise import Model, payload

MANY = 14  # files of one writer
SMALL = 300_000  # how far most files grow
LARGE = 7 << 20  # and one of each writer: beyond what appends need


class Journal:
    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.length = 0

    def line(self, text):
        self.length += os.write(self.fd, text.encode() + b"\n")

    def begin(self, op):
        self.line("+" + json.dumps(op))

    def end(self):
        self.line(".")


def replay(path, model, length=None):
    """Tells the model what the journal's first `length` bytes say. Returns the operation that
    was under way, or None."""
    pending = None
    body = read_file(path) if os.path.exists(path) else b""
    for line in body[:length].split(b"\n"):
        if line.startswith(b"+"):
            try:
                pending = json.loads(line[1:])
            except ValueError:  # half a line: it had not begun
                pending = None
        elif line == b"." and pending is not None:
            model.apply(pending)
            pending = None
    if pending is not None:
        model.apply(pending, done=False)
    return pending


class Writer:
    """Changes files below one directory of the mount; what it does, it does in order."""

    def __init__(self, top, journal, model=None):
        self.top = top
        self.journal = journal
        self.model = model or Model()
        self.fds = {}

    def path(self, name=""):
        return os.path.join(self.top, name)

    def do(self, call, **op):
        self.journal.begin(op)
        result = call()
        self.journal.end()
        self.model.apply(op)
        return result

    def fd(self, name, flags=0):
        if name not in self.fds:
            self.fds[name] = os.open(self.path(name), os.O_RDWR | flags)
        return self.fds[name]

    def close(self, name):
        fd = self.fds.pop(name, None)
        if fd is not None:
            os.close(fd)

    def close_all(self):
        for name in list(self.fds):
            try:
                self.close(name)
            except OSError:
                pass

    # ---- operations ----

    def create(self, name, mode=0o644):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.fds[name] = self.do(
            lambda: os.open(self.path(name), flags, mode), op="create", name=name
        )

    def write(self, name, off, size, seed, sync=False):
        data = payload(size, seed)
        fd = self.fd(name)
        if sync:
            fd = os.open(self.path(name), os.O_RDWR | os.O_DSYNC)

        def call():
            if os.pwrite(fd, data, off) != size:
                raise OSError("a short write")

        try:
            self.do(call, op="write", name=name, off=off, size=size, seed=seed, sync=sync)
        finally:
            if sync:
                os.close(fd)

    def map_write(self, name, off, size, seed):
        """Through a mapping, and handed on; what that makes durable depends on who serves it."""
        data = payload(size, seed)
        with mmap.mmap(self.fd(name), off + size) as m:

            def call():
                m[off : off + size] = data
                m.flush()

            self.do(call, op="write", name=name, off=off, size=size, seed=seed, sync=False)

    def append(self, name, size, seed, sync=False):
        self.write(name, len(self.model.file(name).content), size, seed, sync)

    def truncate(self, name, size):
        fd = self.fd(name)
        self.do(lambda: os.ftruncate(fd, size), op="truncate", name=name, size=size)

    def fsync(self, name):
        fd = self.fd(name)
        self.do(lambda: os.fsync(fd), op="fsync", name=name)

    def fsyncdir(self, name=""):
        fd = os.open(self.path(name), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.do(lambda: os.fsync(fd), op="fsyncdir", name=name)
        finally:
            os.close(fd)

    def mkdir(self, name):
        self.do(lambda: os.mkdir(self.path(name)), op="mkdir", name=name)

    def rename(self, name, to):
        self.close(to)
        self.do(
            lambda: os.rename(self.path(name), self.path(to)), op="rename", name=name, to=to
        )
        if name in self.fds:
            self.fds[to] = self.fds.pop(name)

    def link(self, name, to):
        self.do(lambda: os.link(self.path(name), self.path(to)), op="link", name=name, to=to)

    def unlink(self, name):
        self.close(name)
        self.do(lambda: os.unlink(self.path(name)), op="unlink", name=name)

    def flush(self):
        """cellarctl flush of the directory; only a flush that succeeded is a promise."""

        def call():
            done = run(CELLARCTL, "flush", self.top, check=False, env=environment())
            if done.returncode != 0:
                raise OSError(f"cellarctl flush: {done.err}")

        self.do(call, op="flush")

    def evict(self, name):
        """May be refused: open, dirty."""
        self.close(name)
        run(CELLARCTL, "evict", self.path(name), check=False, env=environment())

    def compact(self, name):
        """Of a file that is cold by then."""
        self.evict(name)
        run(CELLARCTL, "compact", self.path(name), check=False, env=environment())

    def read(self, name):
        """What another reader sees has to be right at any time."""
        with open(self.path(name), "rb") as f:
            got = f.read()
        want = self.model.file(name).content
        if got != want:
            raise AssertionError(
                f"{name}: read {len(got)} bytes, {len(want)} were written; "
                f"the first {len(os.path.commonprefix([got, want]))} are right"
            )


class RandomWriter(Writer):
    """All of it in a random order, with few syncs, so that most cuts fall between them."""

    def __init__(self, top, journal, seed, model=None):
        super().__init__(top, journal, model)
        self.rng = random.Random(seed)
        self.count = 0

    def new_name(self):
        self.count += 1
        where = self.rng.choice(["", *self.model.directories()])
        return os.path.join(where, f"n{self.rng.randrange(10**6)}-{self.count}")

    def grow(self, name):
        rng = self.rng
        length = len(self.model.file(name).content)
        limit = LARGE if name == "large" else SMALL
        size = rng.choice((1, 100, 4096, 5000, 30000, 70000) + ((700_000,) * 4 if limit == LARGE else ()))
        if length + size > limit:
            self.truncate(name, rng.choice((0, length // 3)))
        else:
            self.append(name, size, rng.randrange(1 << 30), sync=rng.random() < 0.02)

    def overwrite(self, name):
        rng = self.rng
        length = len(self.model.file(name).content)
        size = rng.choice((1, 100, 4096, 20000))
        off = rng.randrange(length + 1)
        if off + size <= (LARGE if name == "large" else SMALL):
            self.write(name, off, size, rng.randrange(1 << 30))

    def overwrite_mapped(self, name):
        length = len(self.model.file(name).content)
        if length:
            off = self.rng.randrange(length)
            size = min(length - off, self.rng.choice((1, 100, 20000)))
            self.map_write(name, off, size, self.rng.randrange(1 << 30))

    def save(self, name):
        """Replaces a file by a new one, as editors do; half of them without fsync."""
        rng = self.rng
        tmp = name + f".new{rng.randrange(10**9)}"
        self.count += 1
        self.create(tmp)
        for _ in range(rng.randrange(1, 3)):
            self.append(tmp, rng.choice((10, 4096, 60000)), rng.randrange(1 << 30))
        if rng.random() < 0.5:
            self.fsync(tmp)
        if rng.random() < 0.5:
            self.close(tmp)
        self.rename(tmp, name)

    def step(self):
        rng, model = self.rng, self.model
        names = model.names()
        if "large" not in names:
            self.create("large")
            return
        if len(names) < 4 or (len(names) < MANY and rng.random() < 0.12):
            self.create(self.new_name())
            return
        name = rng.choice(sorted(names))
        weighted = (
            (30, self.grow, name),
            (12, self.overwrite, name),
            (4, self.overwrite_mapped, name),
            (6, self.grow, "large"),
            (6, self.close, name),
            (9, self.fsync, name),
            (7, self.save, name if name != "large" else sorted(names)[0]),
            (5, self.shrink, name),
            (5, self.move, name),
            (3, self.second_name, name),
            (4, self.remove, name),
            (5, self.read, name),
            (2, self.fsyncdir, rng.choice(["", *model.directories()])),
            (2, self.make_directory, None),
            (1, self.flush, None),
            (3, self.evict, name),
            (1, self.compact, name),
        )
        pick = rng.randrange(sum(w[0] for w in weighted))
        for weight, action, argument in weighted:
            pick -= weight
            if pick < 0:
                if argument is None:
                    action()
                else:
                    action(argument)
                return

    def shrink(self, name):
        length = len(self.model.file(name).content)
        self.truncate(name, self.rng.choice((0, self.rng.randrange(length + 1), length + 3000)))

    def move(self, name):
        if name != "large":
            self.rename(name, self.new_name())

    def second_name(self, name):
        if name != "large" and len(self.model.file(name).names) < 3:
            self.link(name, self.new_name())

    def remove(self, name):
        if name != "large":
            self.unlink(name)

    def make_directory(self):
        if len(self.model.directories()) < 3:
            self.mkdir(f"d{self.rng.randrange(10**9)}")

    def run(self, expect_end):
        """Until the mount fails. expect_end(): whether that is somebody's doing."""
        try:
            while True:
                self.step()
        except OSError as e:
            if not expect_end():
                raise
            del e
        finally:
            self.close_all()


def adopt(top):
    """A model of what is there, all of it durable."""
    model = Model()
    inodes = {}
    for where, dirs, names in os.walk(top):
        rel = os.path.relpath(where, top)
        rel = "" if rel == "." else rel
        for d in dirs:
            model.do_mkdir({}, os.path.join(rel, d), True)
            model.settle(os.path.join(rel, d))
        for n in names:
            name = os.path.join(rel, n)
            st = os.lstat(os.path.join(where, n))
            assert stat.S_ISREG(st.st_mode)
            if st.st_ino in inodes:
                model.do_link({"to": name}, inodes[st.st_ino], True)
                model.settle(name)
                continue
            inodes[st.st_ino] = name
            model.new_file(name, read_file(os.path.join(where, n)), promised=True)
    return model

