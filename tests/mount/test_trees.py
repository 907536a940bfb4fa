"""Names under everything at once: processes that create, rename (files, whole trees, exchange),
link, unlink, list and write, each in a tree of its own with a model of it, and some together in
one tree, while files are flushed and evicted."""

import errno
import os
import random
import stat
import subprocess
import time

import pytest

from harness import (
    RENAME_EXCHANGE,
    ROUNDS,
    SEED,
    errno_of,
    read_file,
    reap,
    renameat2,
    spawn,
    text,
    wait_for,
    write_file,
)

SECONDS = 6 * ROUNDS
NAMES = [f"n{i}" for i in range(6)] + ["x.zst", "y.zst~"]


class File:
    """Regular file; every link of it is the same object."""

    def __init__(self, data):
        self.data = data


class Tree:
    """A directory of the mount and the same in memory: directories are dicts, symlinks str."""

    def __init__(self, top, seed):
        self.top = top
        self.rng = random.Random(seed)
        self.root = {}
        self.count = 0

    # where things are

    def dirs(self):
        found, todo = [], [("", self.root)]
        while todo:
            path, d = todo.pop()
            found.append((path, d))
            todo += [(os.path.join(path, n), x) for n, x in d.items() if isinstance(x, dict)]
        return found

    def place(self):
        """(path of a directory, its dict, a name in it that may or may not be taken)"""
        path, d = self.rng.choice(self.dirs())
        return path, d, self.rng.choice(NAMES)

    def path(self, where, name=""):
        return os.path.join(self.top, where, name)

    # operations: the mount's answer must be the model's

    def want(self, code, call, *args):
        got = errno_of(call, *args)
        allowed = code if isinstance(code, tuple) else (code,)
        assert got in allowed, (
            f"{getattr(call, '__name__', call)} {args}: {errno.errorcode.get(got, got)} instead of "
            f"{[errno.errorcode.get(c, c) for c in allowed]}"
        )
        return got == 0

    def fresh(self):
        self.count += 1
        return text(self.rng.choice((0, 1, 300, 5000, 80000)), self.count + self.rng.randrange(1000))

    def create(self):
        where, d, name = self.place()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        path = self.path(where, name)
        if name in d:
            self.want(errno.EEXIST, os.open, path, flags)
            return
        data = self.fresh()
        fd = os.open(path, flags, 0o644)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        d[name] = File(data)

    def mkdir(self):
        where, d, name = self.place()
        if where.count("/") > 3:
            return
        if self.want(errno.EEXIST if name in d else 0, os.mkdir, self.path(where, name)):
            d[name] = {}

    def symlink(self):
        where, d, name = self.place()
        if self.want(errno.EEXIST if name in d else 0, os.symlink, "to " + name, self.path(where, name)):
            d[name] = "to " + name

    def write(self):
        where, d, name = self.place()
        if isinstance(d.get(name), File):
            more = self.fresh()
            with open(self.path(where, name), self.rng.choice(("ab", "wb"))) as f:
                f.write(more)
                d[name].data = d[name].data + more if f.mode == "ab" else more

    def read(self):
        where, d, name = self.place()
        if isinstance(d.get(name), File):
            assert read_file(self.path(where, name)) == d[name].data, self.path(where, name)

    def link(self):
        (a, da, name), (b, db, new) = self.place(), self.place()
        x = da.get(name)
        if x is None:
            code = errno.ENOENT
        elif new in db:
            code = (errno.EEXIST, errno.EPERM) if isinstance(x, dict) else errno.EEXIST
        else:
            code = errno.EPERM if isinstance(x, dict) else 0
        if self.want(code, lambda p, q: os.link(p, q, follow_symlinks=False), self.path(a, name), self.path(b, new)):
            db[new] = x

    def unlink(self):
        where, d, name = self.place()
        x = d.get(name)
        code = errno.ENOENT if x is None else errno.EISDIR if isinstance(x, dict) else 0
        if self.want(code, os.unlink, self.path(where, name)):
            del d[name]

    def rmdir(self):
        where, d, name = self.place()
        x = d.get(name)
        if x is None:
            code = errno.ENOENT
        elif not isinstance(x, dict):
            code = errno.ENOTDIR
        else:
            code = errno.ENOTEMPTY if x else 0
        if self.want(code, os.rmdir, self.path(where, name)):
            del d[name]

    def rename(self, exchange=False):
        (a, da, name), (b, db, new) = self.place(), self.place()
        x, y = da.get(name), db.get(new)
        old_path, new_path = self.path(a, name), self.path(b, new)
        inside = (b + "/").startswith(os.path.join(a, name) + "/") and isinstance(x, dict)
        around = (a + "/").startswith(os.path.join(b, new) + "/") and isinstance(y, dict)
        if x is None or (exchange and y is None):
            code = errno.ENOENT
            if inside or around:  # either may be found first
                code = (errno.ENOENT, errno.EINVAL, errno.ENOTEMPTY)
        elif inside:
            code = errno.EINVAL
        elif around:
            code = errno.EINVAL if exchange else (errno.ENOTEMPTY, errno.EISDIR)
        elif exchange or y is None or x is y:
            code = 0
        elif isinstance(x, dict):
            code = (errno.ENOTDIR if not isinstance(y, dict) else errno.ENOTEMPTY if y else 0)
        else:
            code = errno.EISDIR if isinstance(y, dict) else 0
        done = self.want(code, renameat2, old_path, new_path, RENAME_EXCHANGE if exchange else 0)
        if not done or (x is y and (not exchange or isinstance(x, File))):
            return
        if exchange:
            da[name], db[new] = y, x
        else:
            del da[name]
            db[new] = x

    def list(self):
        where, d, _ = self.place()
        assert sorted(os.listdir(self.path(where))) == sorted(d), self.path(where)

    def stat(self):
        where, d, name = self.place()
        if isinstance(d.get(name), File):
            st = os.stat(self.path(where, name))
            assert st.st_size == len(d[name].data) and stat.S_ISREG(st.st_mode)
        else:
            assert os.path.lexists(self.path(where, name)) == (name in d)

    def remove_tree(self):
        where, d, name = self.place()
        if isinstance(d.get(name), dict):
            subprocess.run(["rm", "-r", self.path(where, name)], check=True)
            del d[name]

    def run(self, stop):
        chances = (
            [self.create] * 12 + [self.mkdir] * 6 + [self.symlink] * 2 + [self.write] * 6 + [self.read] * 6
            + [self.link] * 6 + [self.unlink] * 7 + [self.rmdir] * 3 + [self.rename] * 12
            + [lambda: self.rename(exchange=True)] * 8 + [self.list] * 3 + [self.stat] * 5
            + [self.remove_tree]
        )
        steps = 0
        while not os.path.exists(stop):
            self.rng.choice(chances)()
            steps += 1
        return steps

    def describe(self):
        """[(path, what)] of the model; links of one file have the same group."""
        groups, out = {}, []
        for where, d in self.dirs():
            for name, x in d.items():
                path = os.path.join(where, name)
                if isinstance(x, dict):
                    out.append((path, "dir"))
                elif isinstance(x, str):
                    out.append((path, x))
                else:
                    groups.setdefault(id(x), []).append(path)
                    out.append((path, x.data.decode()))
        return sorted(out), sorted(sorted(g) for g in groups.values())


def describe(top):
    """The same of a directory of the mount; and that no inode is counted twice."""
    groups, out = {}, []
    for where, dirs, names in os.walk(top):
        for name in dirs + names:
            path = os.path.join(where, name)
            rel, st = os.path.relpath(path, top), os.lstat(path)
            if stat.S_ISDIR(st.st_mode):
                out.append((rel, "dir"))
            elif stat.S_ISLNK(st.st_mode):
                out.append((rel, os.readlink(path)))
            else:
                groups.setdefault(st.st_ino, []).append((rel, st.st_nlink))
                out.append((rel, read_file(path).decode()))
    for ino, names in groups.items():
        assert {n for _, n in names} == {len(names)}, f"{ino}: {names}"
    return sorted(out), sorted(sorted(n for n, _ in g) for g in groups.values())


def together(top, stop, seed):
    """In one tree with others: any outcome is right, but nothing may hang or break."""
    rng = random.Random(seed)

    def somewhere():
        return os.path.join(top, *rng.choices(NAMES[:3], k=rng.randrange(1, 4)))

    while not os.path.exists(stop):
        what = rng.randrange(8)
        if rng.random() < 0.01:  # directories move into each other: not for ever
            top_one = os.path.join(top, rng.choice(NAMES[:3]))
            subprocess.run(["rm", "-rf", top_one], stderr=subprocess.DEVNULL, check=False)
        a, b = somewhere(), somewhere()
        if what == 0:
            errno_of(os.makedirs, a)
        elif what == 1:
            errno_of(os.rmdir, a)
        elif what in (2, 3):
            errno_of(renameat2, a, b, RENAME_EXCHANGE if what == 3 else 0)
        elif what == 4:
            errno_of(os.unlink, a)
        elif what == 5:
            errno_of(os.link, a, b)
        elif what == 6:
            errno_of(write_file, a, text(rng.randrange(9000), rng.randrange(99)))
        else:
            errno_of(os.listdir, a)
            errno_of(os.stat, b)


@pytest.mark.stress
@pytest.mark.limit(150)
def test_trees(box, mode):
    """(N1) to (N4): afterwards the tree is the model's, each object decodes, no scratch is
    left over, and no inode is counted twice."""
    c = box.cellar(
        writeback_delay="10ms", pool_size="1M", frame_size="64K", max_idle="300ms", flushers=3, **mode
    ).start()
    stop = os.path.join(box.path, "stop")
    trees = [Tree(c.path(f"t{i}"), SEED + i) for i in range(3)]
    os.mkdir(c.path("all"))
    pids = {}

    def work(tree, i):
        os.mkdir(tree.top)
        steps = tree.run(stop)
        write_file(os.path.join(box.path, f"model-{i}"), repr((tree.describe(), steps)).encode())

    for i, tree in enumerate(trees):
        pids[spawn(work, tree, i)] = f"tree {i}"
    for i in range(2):
        pids[spawn(together, c.path("all"), stop, SEED + 50 + i)] = f"together {i}"
    end = time.monotonic() + SECONDS
    rng = random.Random(SEED + 70)
    try:
        while time.monotonic() < end and c.running:
            c.flush()
            names = [os.path.join(w, n) for w, _, ns in os.walk(c.mnt) for n in ns]
            some = rng.sample(names, min(20, len(names)))
            if some:
                c.ctl("evict", *some, check=False)
    finally:
        write_file(stop, b"")
        ended = {what: reap(pid) for pid, what in pids.items()}
    assert c.running and ended == dict.fromkeys(ended, 0)

    want = {}
    for i, tree in enumerate(trees):
        want[tree.top], steps = eval(read_file(os.path.join(box.path, f"model-{i}")))  # pylint: disable=eval-used
        assert steps > 30, "it did hardly anything"

    def check():
        for top, model in want.items():
            assert describe(top) == model, top
        describe(c.path("all"))

    check()
    c.flush()
    check()
    assert "; 0 damaged" in c.ctl("verify", c.mnt).out
    alive = {
        os.lstat(os.path.join(w, n)).st_ino for w, ds, ns in os.walk(c.mnt) for n in ds + ns
    }
    wait_for(lambda: c.scratches() <= alive, what="scratches without a file to go")
    s = c.status()
    assert s["scratch"]["dirty"] == 0 and s["counters"]["conflicts"] == 0
    c.remount()
    check()
