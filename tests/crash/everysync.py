"""One scenario, cut at each sync that the daemon makes: before the call, and after it when
nobody knows yet that it returned (src/base/syncgate.h).

With store and pool on two disks the disks may also stop at different instants: between two
cuts only what was not synced is in doubt, so a disk may be as it was at an earlier cut if
no sync of it was answered since."""

import os
import threading

from gate import Gate
from load import Journal, Writer, replay
from powercut import AFTER_A_CUT, a_boot
from promise import Model

TOP = "w"


class Cut:
    def __init__(self, number, when, disk, at):
        self.number = number
        self.when = when
        self.disk = disk  # on which the sync was
        self.at = at  # length of the journal
        self.tag = f"sync{number}"

    def __str__(self):
        return f"cut {self.number}, {self.when}"


class Recorder:
    """Takes a snapshot at every gate while armed."""

    def __init__(self, rig, journal):
        self.rig = rig
        self.journal = journal
        self.cuts = []
        self.armed = False
        self.between = None  # called at each gate, before the snapshot
        self.lock = threading.Lock()
        self.gate = Gate(rig.box.path, self.visit)

    def visit(self, when, number, call, path):
        if not self.armed:
            return
        pool = self.rig.split and path.startswith(self.rig.point("pool") + "/")
        what = f"{when} {call} of {os.path.relpath(path, self.rig.box.path)}"
        if self.between:
            self.between(when, call, path)
        self.take(what, "pool" if pool else "store", when)

    def take(self, what, disk, when="before"):
        with self.lock:
            cut = Cut(len(self.cuts), what, disk, self.journal.length)
            cut.after = when == "after"
            self.rig.snapshot(cut.tag)
            self.cuts.append(cut)
            return cut

    def pairs(self):
        """(store's cut, pool's cut) with different instants that one power cut can leave."""
        found = []
        for i, first in enumerate(self.cuts):
            synced = set()  # disks with a sync that was answered since `first`
            for k in range(i + 1, len(self.cuts)):
                if self.cuts[k - 1].after:
                    synced.add(self.cuts[k - 1].disk)
                if "store" not in synced:
                    found.append((first, self.cuts[k]))
                if "pool" not in synced:
                    found.append((self.cuts[k], first))
                if len(synced) == 2:
                    break
        return found


class Scenario:
    """A daemon behind a gate and one writer; all that is synced is synced on request."""

    def __init__(self, rig, env=None, **opts):
        self.rig = rig
        self.path = os.path.join(rig.box.path, f"journal{len(os.listdir(rig.box.path))}")
        self.journal = Journal(self.path)
        self.recorder = Recorder(rig, self.journal)
        options = {"writeback_delay": "1h", "sync_interval": "1h", "flushers": 1, "frame_size": "64K"}
        self.c = rig.cellar(**{**options, **opts})
        self.c.expect(*AFTER_A_CUT).lost_expected = True
        self.c.start({**a_boot(), **self.recorder.gate.environment(), **(env or {})})
        os.makedirs(self.c.path(TOP), exist_ok=True)
        rig.sync("store")
        self.w = Writer(self.c.path(TOP), self.journal)

    def end(self):
        """kill -9; the snapshots are what is left."""
        self.recorder.armed = False
        if self.c.running:
            self.c.kill9()
        self.w.close_all()
        self.recorder.gate.close()
        self.rig.box.cellars.remove(self.c)
        from harness import detach

        detach(self.c.mnt)
        self.rig.umount()

    def models(self, at):
        model = Model()
        replay(self.path, model, at)
        return {TOP: model}

    def run(self):
        """Create, append, overwrite, fsync, flush, evict, rename over, links, unlink,
        truncate; with syncs, without them, and flushed while open."""
        w = self.w
        for name in ("a", "b", "c", "links", "over", "gone", "cut"):
            w.create(name)
            w.append(name, 90_000, len(name))
            w.close(name)
        w.fsync("a")
        w.flush()
        w.append("a", 50_000, 11)
        w.fsync("a")
        w.write("a", 100, 9000, 12)
        w.fsync("a")  # an overwrite of synced bytes
        w.write("a", 300, 700, 13)
        w.flush()  # while it is open
        w.write("a", 500, 4000, 14)
        w.fsync("a")
        w.append("b", 60_000, 15)
        w.flush()
        w.write("b", 0, 10, 16)
        w.close("a")
        w.close("b")
        w.flush()
        w.evict("a")
        w.evict("b")
        w.read("a")
        w.mkdir("d")
        w.create("d/new")
        w.append("d/new", 70_000, 20)
        w.fsync("d/new")
        w.append("d/new", 30_000, 21)
        w.link("links", "d/second")
        w.write("links", 1000, 5000, 22)
        w.fsync("links")
        w.close("links")
        w.flush()  # copied over
        w.create("tmp")
        w.append("tmp", 65_000, 23)
        w.rename("tmp", "over")  # of what nobody synced
        w.write("over", 10, 100, 24)
        w.close("over")
        w.append("gone", 1000, 25)
        w.fsync("gone")
        w.unlink("gone")
        w.truncate("cut", 5000)
        w.append("cut", 40_000, 26, sync=True)
        w.truncate("cut", 100)
        w.append("cut", 3000, 27)
        w.fsyncdir("d")
        w.rename("d/new", "moved")
        w.fsync("moved")
        w.flush()
        w.create("last")
        w.append("last", 10, 28)
        w.fsyncdir("")
