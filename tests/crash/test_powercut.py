"""Power cuts: see powercut.py for how they are made and what must hold after them."""

import random
import time

import pytest

from harness import SEED, SOAK
from images import CAN_SHUT_DOWN, FILESYSTEMS
from powercut import Episode, verify

pytestmark = pytest.mark.root

ROUNDS = 25 if SOAK else 1


def cut_and_check(rig, episode, cuts, shut_down, killed):
    """Some snapshots at random instants, then the end, killed: of a daemon that recovers from kill
    -9; all of them are checked."""
    rng = episode.rng
    for i in range(cuts):
        time.sleep(rng.random() * 0.5)  # the random instant
        episode.snapshot(f"cut{i}")
    time.sleep(rng.random() * 0.3)
    if killed:
        episode.kill()
        time.sleep(rng.random() * 0.3)
    if not shut_down:
        episode.snapshot("last")
    where = episode.end(shut_down, pause=rng.random() * 0.3)
    checks = list(episode.cuts)
    if shut_down:
        for name in rig.names:
            rig.clone(name, "last")
        checks.append(("last", where))
    models = None
    for tag, at in checks:
        rig.load(tag)
        out = verify(rig, episode.models(at))
        rig.umount()
        if out.problems:
            story = episode.story(out.problems, at)
            pytest.fail(f"{tag} ({episode.c.opts}):\n" + "\n".join([*out.problems, story]))
        models = out.models
        rig.forget(tag)
    return models


@pytest.mark.limit(300)
@pytest.mark.parametrize("split", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_random_cuts(rig, fs, split):
    """Snapshots under load, and a shutdown of the filesystems where they can; with --soak also behind
    kill -9 (P1 to P7)."""
    rng = random.Random(SEED + len(fs) + split)
    r = rig(fs, split)
    models = None
    for round_ in range(ROUNDS):  # each goes on from what the last cut left
        episode = Episode(r, rng.randrange(1 << 30), models=models)
        shut_down = fs in CAN_SHUT_DOWN and round_ % 2 == 0
        models = cut_and_check(r, episode, 3, shut_down, round_ % 3 == 2)
        r.mount()
