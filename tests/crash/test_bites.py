"""The harness bites: each rule that a power cut needs is broken on purpose (CELLAR_TEST_BREAK,
src/base/breaks.def), and a cut aimed at it must show; unbroken, the same cut must not."""

import os
import re

import pytest

from everysync import TOP, Scenario
from harness import SOURCE, read_file, wait_for
from powercut import records, sync_file_range, verify

pytestmark = pytest.mark.root


def number(s, name):
    return os.stat(s.w.path(name)).st_ino


def scratch(s, name):
    ino = number(s, name)
    return os.path.join(s.rig.pool, "scratch", f"{ino & 0xFF:02x}", f"{ino:016x}")


def write_back(s, name):
    """A flush that nobody asked for and that so syncs no more than it must; then eviction."""
    ino = number(s, name)
    s.w.close(name)
    wait_for(lambda: not records(s.rig.pool).get(ino, (True,))[0], what="the flush")
    s.c.evict_closed(f"{TOP}/{name}")


def a_new_file(s):
    s.w.create("f")
    s.w.append("f", 60_000, 1)
    s.w.fsync("f")


def data_before_record(s):
    """Cut when the data of a second fsync are about to be synced, after a commit of the
    journal alone."""
    a_new_file(s)
    s.w.append("f", 400_000, 2)
    taken = []

    def visit(when, call, path):
        if call == "fdatasync" and not taken:
            s.rig.commit("pool")
            taken.append(s.recorder.cuts)
            s.recorder.between = None

    s.recorder.between = visit
    s.recorder.armed = True
    s.w.fsync("f")
    s.recorder.armed = False
    first = next(c for c in s.recorder.cuts if "before fdatasync" in c.when)
    return first


def rename_over(s):
    a_new_file(s)
    s.w.flush()
    s.w.create("tmp")
    s.w.append("tmp", 50_000, 3)
    s.w.rename("tmp", "f")
    s.rig.sync("store")


def flushed_and_evicted(s):
    a_new_file(s)
    write_back(s, "f")
    s.rig.sync("pool")


def unlinked(s):
    a_new_file(s)
    path = scratch(s, "f")
    s.w.unlink("f")
    wait_for(lambda: not os.path.exists(path), what="the doomed scratch to go")
    s.rig.sync("pool")


def hydrated(s):
    s.w.create("f")
    s.w.append("f", 600_000, 4)
    s.w.close("f")
    s.w.flush()
    s.c.evict_closed(f"{TOP}/f")
    s.w.read("f")
    s.rig.commit("pool")


def flushed_after_a_sync(s):
    """Through the daemon: what the kernel serves is synced before it is flushed while open, and
    so no older than the object."""
    a_new_file(s)
    s.w.write("f", 0, 60_000, 5)
    s.w.flush()


def appended_after_a_sync(s):
    """The end of what was appended reaches the disk, what lies before it does not."""
    a_new_file(s)
    s.w.append("f", 400_000, 6)
    s.w.append("f", 300_000, 7)
    fd = os.open(scratch(s, "f"), os.O_RDONLY)
    try:
        sync_file_range(fd, 512 << 10, 0)
    finally:
        os.close(fd)
    s.rig.commit("pool")


AT_WORK, IN_RECOVERY = "at work", "in recovery"
BITES = {
    "new-name": ("ext4", a_new_file, AT_WORK),
    "record-first": ("ext4", data_before_record, AT_WORK),
    "rename-sync": ("ext4", rename_over, AT_WORK),
    "flush-fsync": ("xfs", flushed_and_evicted, AT_WORK),
    "flush-dir": ("ext4", flushed_and_evicted, AT_WORK),
    "doom-early": ("ext4", unlinked, AT_WORK),
    "keep-clean": ("ext4", hydrated, IN_RECOVERY),
    "seq-compare": ("ext4", flushed_after_a_sync, IN_RECOVERY),
    "no-cut": ("ext4", appended_after_a_sync, IN_RECOVERY),
}


def aimed_cut(r, load, env):
    opts = {"writeback_delay": "10ms" if load is flushed_and_evicted else "1h"}
    if load is flushed_after_a_sync:
        opts["passthrough"] = "off"
    s = Scenario(r, env, **opts)
    try:
        cut = load(s) or s.recorder.take("the cut", "store")
    finally:
        s.end()
    return s.models(cut.at), cut.tag


def assert_noticed(problems):
    """A promise is seen to be broken; that a daemon only complains is not enough."""
    assert any(re.search(r"\(P[1-7]", p) for p in problems), f"not noticed: {problems}"
    print("\n".join(p for p in problems if not p.startswith("----")))


def problems_after(r, models, tag, env):
    r.load(tag)
    out = verify(r, models, env)
    r.umount()
    return out.problems


@pytest.mark.limit(90)
@pytest.mark.parametrize("rule", BITES)
def test_broken_rule_is_noticed(rig, rule):
    fs, load, where = BITES[rule]
    r = rig(fs, True)
    r.umount()
    r.snapshot("base")
    env = {"CELLAR_TEST_BREAK": rule}
    r.mount()
    models, tag = aimed_cut(r, load, env if where == AT_WORK else None)
    if where == AT_WORK:
        assert_noticed(problems_after(r, models, tag, None))
        r.load("base")
        models, tag = aimed_cut(r, load, None)
    else:
        assert_noticed(problems_after(r, models, tag, env))
    problems = problems_after(r, models, tag, None)
    assert not problems, "\n".join(problems)


def test_every_rule_is_broken_once():
    table = read_file(os.path.join(SOURCE, "src/base/breaks.def")).decode()
    # what happens without it is btrfs's to decide: it is held by test_no_log_of_a_store_on_btrfs
    rules = sorted([*BITES, "btrfs-commit"])
    assert sorted(re.findall(r'^BREAK\(\w+, "([^"]+)"', table, re.M)) == rules
