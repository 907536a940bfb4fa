"""Random operations against a model (fsx.c), with flushes, evictions, verification, remounts
and kill -9 in between. A difference is shrunk to the operations that it needs."""

import os
import random
import shutil
import subprocess
import threading

import pytest

from harness import FSX, ROUNDS, SANITIZER, SEED, SLOW, SOAK, read_file, write_file

# hydration in many frames, a pool that is too small, everything written back at once
RESTLESS = {
    "frame_size": "64K",
    "eager_size": "64K",
    "pool_size": "1M",
    "writeback_delay": "20ms",
    "max_idle": "300ms",
    "sync_interval": "200ms",
    "max_dirty_age": "1s",
    "flushers": 2,
}
# nothing but what the events do
CALM = {"frame_size": "64K", "eager_size": "128K", "writeback_delay": "1h", "sync_interval": "1h"}

EVENTS = ("flush", "dirty", "evict", "cold", "verify", "remount", "kill")
KINDS = {"restless": RESTLESS, "calm": CALM}


class Run:
    """One run of fsx in the directory `name` of a cellar."""

    def __init__(self, c, name):
        self.c = c
        self.name = name
        self.counts = {}
        self.failure = ""
        os.mkdir(c.path(name))

    def rels(self):
        return [
            os.path.join(self.name, n) for n in sorted(os.listdir(self.c.path(self.name)))
        ]

    def event(self, what, file):
        c, rel = self.c, os.path.join(self.name, file)
        if what in ("flush", "dirty"):
            c.flush()
        if what == "flush":
            for r in self.rels():
                assert c.stored(r) == c.read(r), f"the object of {r} has other bytes"
        elif what == "evict":
            c.evict(rel, check=False)
        elif what == "cold":
            c.make_cold(*self.rels())
        elif what == "verify":
            c.ctl("verify", c.mnt)
        elif what == "remount":
            c.remount("umount" if len(self.counts) % 2 else "term")
        elif what == "kill":
            c.kill9().restart_after_kill()
        self.counts[what] = self.counts.get(what, 0) + 1

    def go(self, *args):
        """Exit status of fsx; why is in .failure."""
        with subprocess.Popen(
            [FSX, *args, self.c.path(self.name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        ) as p:
            try:
                for line in p.stdout:
                    word = line.split()
                    if word[0] == "done":
                        continue
                    try:
                        self.event(word[1], word[2])
                        p.stdin.write("ok\n")
                    except AssertionError as e:
                        p.stdin.write(" ".join(str(e).split())[:150] + "\n")
                    p.stdin.flush()
            finally:
                if not self.c.running:
                    p.kill()
            self.failure = p.stderr.read()
        return p.returncode


def same_failure(text):
    """What is alike in two failures: the words, not the numbers."""
    return [w for w in text.split("\n", 1)[-1].split() if w.isalpha()][:4]


def shrink(c, lines, text):
    """Leaves out what the failure does not need. Bounded by time, not by being done."""
    tries = iter(range(400))
    over = threading.Event()
    timer = threading.Timer(60 * SLOW, over.set)
    timer.start()
    log = os.path.join(c.box.path, "shrink.log")

    def fails(some):
        write_file(log, "".join(some).encode())
        run = Run(c, f"shrink-{next(tries, 0)}-{random.random()}")
        try:
            status = run.go("-r", log)
        finally:
            shutil.rmtree(c.path(run.name), ignore_errors=True)
        return status == 1 and same_failure(run.failure) == same_failure(text)

    chunk = len(lines) // 2
    while chunk > 0 and not over.is_set():
        at = 0
        while at < len(lines) and not over.is_set():
            fewer = lines[:at] + lines[at + chunk :]
            if len(fewer) < len(lines) and fails(fewer):
                lines = fewer
            else:
                at += chunk
        chunk //= 2
    timer.cancel()
    return lines


def check_run(c, seed, count, every):
    log = os.path.join(c.box.path, f"fsx-{seed}.log")
    run = Run(c, f"fsx-{seed}")
    status = run.go("-s", str(seed), "-n", str(count), "-e", str(every), "-o", log)
    if status == 1:
        text = run.failure
        lines = read_file(log).decode().splitlines(keepends=True)
        again = shrink(c, lines, text) if c.running else lines
        kept = os.path.join(os.environ.get("CELLAR_TEST_DIR") or "/var/tmp", f"fsx-{seed}.log")
        write_file(kept, "".join(again).encode())
        raise AssertionError(
            f"seed {seed}: {text}\nwhat it needs ({len(again)} operations; "
            f"fsx -r {kept} DIR):\n" + "".join(again[-40:])
        )
    assert status == 0, f"seed {seed}: fsx exits with {status}: {run.failure}"
    return run.counts


COUNT = 6000 if not SANITIZER else 1000


@pytest.mark.limit(240)
@pytest.mark.parametrize("kind", ["calm", pytest.param("restless", marks=pytest.mark.stress)])
def test_random_operations(box, mode, kind):
    """(H1) to (H4), (F1), (F2), (S1), (O1), (O2): one content whatever happens meanwhile; what
    an event does moves neither times nor numbers."""
    assert os.access(FSX, os.X_OK), f"{FSX} is not built: make check TESTS="
    c = box.cellar(**KINDS[kind], **mode).start()
    counts = {}
    for i in range(ROUNDS):
        count = 60000 if SOAK else COUNT
        for what, n in check_run(c, SEED + i, count, 70).items():
            counts[what] = counts.get(what, 0) + n
    assert SANITIZER or set(counts) == set(EVENTS), "an event did not come up"
