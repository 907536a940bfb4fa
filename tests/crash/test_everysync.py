"""Cuts at every sync of one scenario: see everysync.py."""

import random

import pytest

from everysync import Scenario
from harness import SEED, SOAK
from images import FILESYSTEMS
from powercut import verify

pytestmark = pytest.mark.root


@pytest.mark.limit(600)
@pytest.mark.parametrize("split", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_cut_at_every_sync(rig, fs, split):
    """(P1) to (P7) at each of them (a sample of them without --soak)."""
    r = rig(fs, split)
    s = Scenario(r)
    s.recorder.armed = True
    s.run()
    s.recorder.take("the end", "store")
    s.end()
    assert len(s.recorder.cuts) > 60, "the daemon syncs more than that"
    states = [(c, c) for c in s.recorder.cuts]
    if split:
        states += s.recorder.pairs()
    if not SOAK:
        states = random.Random(SEED).sample(states, 8)
    for store, pool in states:
        r.load({"store": store.tag, "pool": pool.tag})
        out = verify(r, s.models(max(store.at, pool.at)))
        r.umount()
        assert not out.problems, f"store: {store}\npool: {pool}\n" + "\n".join(out.problems)
