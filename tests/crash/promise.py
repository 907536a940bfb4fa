"""What a load was promised, and whether a tree keeps it after a power cut.

A Model is fed with the operations of one writer in one directory, in order. What was not made
durable may be old or new, so the model keeps for every file all the contents it has had since
the last promise, and for every name all the files it has led to since it was last certain:

  (P1) A file that was synced (fsync, O_SYNC, a flush that returned) and not removed since is
       there, under its name or one it was given later.
  (P2) Its bytes are those of the promise, or of a later write to the same place; its length
       lies between the shortest and the longest it has had since; so an appended file is a
       prefix, without NULs that nobody wrote.
  (P3) A name that was certain and since then only replaced (rename over it) leads to the old
       file or to the new one, which is complete from the rename on; never empty or missing.
  (P4) What was never synced is absent, or as in (P2) from the empty file on. It can be read.
  (P5) No name leads to what was never there.
"""

import copy
import errno
import os
import random
import stat

DIRECTORY = "directory"

_corpus = []


def corpus():
    """Text that compresses to about half: 4 MiB, no NUL, always the same."""
    if not _corpus:
        rng = random.Random(7)
        words = [b"%s%d" % (w, i) for i in range(40) for w in (b"open", b"close", b"error", b"user")]
        out = []
        length = 0
        while length < 4 << 20:
            line = b" ".join(rng.choices(words, k=9)) + b" " + rng.randbytes(20).hex().encode() + b"\n"
            out.append(line)
            length += len(line)
        _corpus.append(b"".join(out))
    return _corpus[0]


def payload(size, seed):
    whole = corpus()
    at = seed * 40503 % (len(whole) - 1)
    out = whole[at : at + size]
    while len(out) < size:
        out += whole[: size - len(out)]
    return out


class File:
    """One inode. versions[0] is what was promised (or empty), number `first`."""

    def __init__(self, fid, content=b"", promised=False):
        self.fid = fid
        self.versions = [content]
        self.first = 0
        self.promised = promised
        self.spots = set()  # names that may lead to it, if it was promised
        self.names = set()  # names it has now

    @property
    def content(self):
        return self.versions[-1]

    @property
    def last(self):
        return self.first + len(self.versions) - 1

    def promise(self):
        self.first = self.last
        self.versions = self.versions[-1:]
        self.promised = True
        self.spots = set(self.names)

    def accepts(self, got, floor=0):
        """None, or why `got` cannot be this file's content from version `floor` on."""
        versions = self.versions[max(floor - self.first, 0) :]
        if got in versions:
            return None
        shortest = min(map(len, versions))
        longest = max(map(len, versions))
        if not shortest <= len(got) <= longest:
            return f"{len(got)} bytes, not between {shortest} and {longest}"
        at = first_wrong(got, versions)
        if at is None:
            return None
        what = "NUL" if got[at] == 0 else f"{got[at : at + 16]!r}"
        nuls = len(got) - at - len(got[at:].lstrip(b"\0"))
        return (
            f"byte {at} of {len(got)} ({what}, {nuls} NULs) was never written there; "
            f"{len(versions)} versions of {shortest} to {longest} bytes"
        )


def first_wrong(got, versions, start=0, end=None):
    """The first byte of got that no version has in its place, or None."""
    end = len(got) if end is None else end
    if end - start <= 64:
        for i in range(start, end):
            if not any(len(v) > i and v[i] == got[i] for v in versions):
                return i
        return None
    step = max((end - start) // 64, 64)
    for at in range(start, end, step):
        piece = got[at : min(at + step, end)]
        if not any(v[at : at + len(piece)] == piece for v in versions):
            inner = first_wrong(got, versions, at, at + len(piece))
            if inner is not None:
                return inner
    return None


class Entry:
    """What a name leads to: a file from a version on, a directory, or nothing (fid None)."""

    def __init__(self, fid=None, floor=0):
        self.fid = fid
        self.floor = floor


class Model:
    def __init__(self):
        self.files = {}
        self.history = {}  # name -> [Entry]; the first one is certain
        self.counter = 0

    def copy(self):
        return copy.deepcopy(self)

    def now(self, name):
        """fid, DIRECTORY or None."""
        entries = self.history.get(name)
        return entries[-1].fid if entries else None

    def file(self, name):
        return self.files.get(self.now(name))

    def names(self):
        """Names of regular files there are now."""
        return [n for n, h in self.history.items() if h[-1].fid in self.files]

    def directories(self):
        return [n for n, h in self.history.items() if h[-1].fid == DIRECTORY]

    def become(self, name, fid, floor=0):
        self.history.setdefault(name, [Entry()]).append(Entry(fid, floor))

    def new_file(self, name, content=b"", promised=False):
        self.counter += 1
        f = File(self.counter, content, promised)
        self.files[f.fid] = f
        f.names.add(name)
        if promised:
            f.spots.add(name)
            self.history[name] = [Entry(f.fid)]
        else:
            self.become(name, f.fid)
        return f

    def settle(self, name):
        self.history[name] = self.history[name][-1:]

    def lose_name(self, name):
        f = self.file(name)
        if f:
            f.names.discard(name)
            if not f.names:
                f.promised = False

    def apply(self, op, done=True):
        """done: it returned. Otherwise it was under way: nothing was promised by it."""
        kind, name = op["op"], op.get("name")
        getattr(self, "do_" + kind.replace("-", "_"))(op, name, done)

    # ---- contents ----

    def do_create(self, op, name, done):
        self.new_file(name)

    def do_write(self, op, name, done):
        f = self.file(name)
        old, off = f.content, op["off"]
        data = payload(op["size"], op["seed"])
        new = old[:off].ljust(off, b"\0") + data + old[off + len(data) :]
        f.versions.append(new)
        if op.get("sync") and done:
            self.do_fsync(op, name, done)

    def do_truncate(self, op, name, done):
        f = self.file(name)
        f.versions.append(f.content[: op["size"]].ljust(op["size"], b"\0"))

    def do_fsync(self, op, name, done):
        if done:
            self.promise(self.file(name))

    def promise(self, f):
        f.promise()
        if len(f.names) == 1:  # of several names one is made durable, we do not know which
            for name in f.names:
                self.settle(name)
        for name in f.names:
            parts = name.split("/")
            for i in range(1, len(parts)):
                self.settle("/".join(parts[:i]))

    # ---- names ----

    def do_mkdir(self, op, name, done):
        self.become(name, DIRECTORY)

    def do_rename(self, op, name, done):
        f, to = self.file(name), op["to"]
        over = self.now(to) is not None
        if over and done:
            f.promise()
        self.lose_name(to)
        self.become(name, None)
        self.become(to, f.fid, f.last if over else 0)
        f.names.discard(name)
        f.names.add(to)
        f.spots.add(to)

    def do_link(self, op, name, done):
        f = self.file(name)
        self.become(op["to"], f.fid)
        f.names.add(op["to"])
        f.spots.add(op["to"])

    def do_unlink(self, op, name, done):
        self.lose_name(name)
        self.become(name, None)

    def do_fsyncdir(self, op, name, done):
        if not done:
            return
        for n in self.history:
            if os.path.dirname(n) == name:
                self.settle(n)
        for n in list(self.history):
            if n == name or name.startswith(n + "/"):
                self.settle(n)

    def do_flush(self, op, name, done):
        if not done:
            return
        for f in self.files.values():
            if f.names:
                f.promise()
        for n in self.history:
            self.settle(n)

    def do_evict(self, op, name, done):
        pass

    def do_read(self, op, name, done):
        pass

    # ---- the comparison ----

    def wrong_at(self, name, got):
        """None, or why what is at the name (bytes, DIRECTORY, None, or an OSError) breaks a
        promise."""
        entries = self.history.get(name, [Entry()])
        if isinstance(got, OSError):
            return f"reading it fails with {errno.errorcode.get(got.errno, got.errno)} (P4)"
        if got is None or got == DIRECTORY:
            if any(e.fid == (None if got is None else DIRECTORY) for e in entries):
                return None
            return "missing (P1, P3)" if got is None else "a directory (P5)"
        whys = []
        for e in entries:
            if e.fid in self.files:
                why = self.files[e.fid].accepts(got, e.floor)
                if why is None:
                    return None
                whys.append(f"file {e.fid} from version {e.floor}: {why}")
        return "; ".join(whys) + " (P2)" if whys else "never existed (P5)"

    def check(self, found):
        """found: {name: bytes, DIRECTORY or an OSError}. Sentences about broken promises."""
        problems = []
        for name in sorted(set(found) | set(self.history)):
            why = self.wrong_at(name, found.get(name))
            if why:
                problems.append(f"{name}: {why}")
        for f in self.files.values():
            if f.promised and not any(
                isinstance(found.get(n), bytes) and f.accepts(found[n]) is None for n in f.spots
            ):
                problems.append(f"file {f.fid}, synced, is at none of {sorted(f.spots)} (P1)")
        return problems


def look(top):
    """What is in a directory tree: {relative name: bytes, DIRECTORY or an OSError}."""
    found = {}
    stack = [""]
    while stack:
        where = stack.pop()
        for name in os.listdir(os.path.join(top, where)):
            rel = os.path.join(where, name)
            path = os.path.join(top, rel)
            try:
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    found[rel] = DIRECTORY
                    stack.append(rel)
                else:
                    with open(path, "rb") as f:
                        found[rel] = f.read()
            except OSError as e:
                found[rel] = e
    return found
