"""What listing costs: attributes come with the names for who looks at them (src/mount/interest.h)."""

import itertools
import os
import subprocess
import sys

import pytest

from disk import Disk
from harness import MIB, kill_quietly, read_file, reap, spawn, write_file

COUNT = 500  # files in a directory: several times what the first reply holds

# In a process of its own: who asks is known by its number. Its own start is no look at the mount.
LISTS = "import os, sys\nfor d in sys.argv[1:]: os.listdir(d)"
LOOKS = """import os, sys
for d in sys.argv[1:]:
    for name in os.listdir(d): os.lstat(os.path.join(d, name))"""


def tree_of_objects(box, mode, dirs):
    c = box.cellar(**mode).start()
    c.write("one", b"text\n" * 100)
    c.flush()
    c.stop()
    data = read_file(c.store_path("one.zst"))
    for d in dirs:
        os.mkdir(c.store_path(d))
        for i in range(COUNT):
            write_file(c.store_path(f"{d}/f{i}.zst"), data)
    c.start()
    return c


def cost(c, program, *dirs):
    """The requests that a new process needs."""
    before = c.counter("requests")
    subprocess.run([sys.executable, "-c", program, *(c.path(d) for d in dirs)], check=True)
    return c.counter("requests") - before


def in_memory(c):
    return c.status()["nodes"]


def test_who_looks_gets_attributes(box, mode):
    c = tree_of_objects(box, mode, ["a", "b", "c"])
    assert cost(c, LOOKS, "a") > COUNT / 2, "nobody could know that it would look"
    assert cost(c, LOOKS, "b", "c") < COUNT * 5 / 4, "that it looked was no hint"
    # What it is about to forget it asks for again: on a machine that is busy, time passes.
    again = min(cost(c, LOOKS, "c") for _ in range(3))
    assert again < COUNT / 2, "names that the kernel knows were looked up again"


def test_who_lists_gets_names(box, mode):
    c = tree_of_objects(box, mode, ["a", "b"])
    before = in_memory(c)
    assert cost(c, LISTS, "a", "b") < COUNT / 2
    assert in_memory(c) - before < COUNT, "inodes are kept of which only the names were wanted"


def test_known_names_change(box, mode):
    """What is told from memory is told as it is by then."""
    c = tree_of_objects(box, mode, ["a"])
    where = c.path("a")
    cost(c, LOOKS, "a")
    numbers = {e.name: e.inode() for e in os.scandir(where)}
    assert len(set(numbers.values())) == COUNT
    assert all(os.lstat(os.path.join(where, n)).st_ino == i for n, i in numbers.items())
    os.rename(os.path.join(where, "f1"), os.path.join(where, "moved"))
    os.unlink(os.path.join(where, "f2"))
    os.rename(os.path.join(where, "f3"), os.path.join(where, "f4"))
    os.unlink(os.path.join(where, "f5"))
    os.mkdir(os.path.join(where, "f5"))
    numbers["moved"] = numbers.pop("f1")
    numbers["f4"] = numbers.pop("f3")
    del numbers["f2"], numbers["f5"]
    found = {e.name: e for e in os.scandir(where)}
    assert found.pop("f5").is_dir(follow_symlinks=False)
    assert {n: e.inode() for n, e in found.items()} == numbers
    assert all(e.is_file(follow_symlinks=False) for e in found.values())


def write_for_ever(where, names):
    for i in itertools.count():
        for name in names:
            with open(os.path.join(where, name), "r+b") as f:
                f.write(b"%d" % i)


@pytest.mark.root
def test_names_stay_while_files_are_flushed(box, mode):
    """(K1) On btrfs, where who reads a directory may miss a name that is renamed over."""
    disk = Disk(box, "disk", "btrfs", 256 * MIB)
    c = box.cellar(store=disk.dir("store"), writeback_delay="1ms", **mode).start()
    names = {f"f{i}" for i in range(40)}
    for name in names:
        c.write(name, b"old")
    c.flush()
    enough = c.counter("flushes") + 200
    pid = spawn(write_for_ever, c.mnt, sorted(names))
    listed = 0
    while listed % 500 or listed < 1500 or c.counter("flushes") < enough:
        missing = names - set(os.listdir(c.mnt))
        assert not missing, f"not listed: {missing}"
        listed += 1
    kill_quietly(pid)
    assert reap(pid) != 0
    c.stop()
