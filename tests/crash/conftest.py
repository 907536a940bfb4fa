"""The fixtures of the mounted tests, and rigs that lose power."""

import importlib.util
import os
import sys

import pytest

MOUNT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "mount")
sys.path.insert(0, MOUNT)
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

_spec = importlib.util.spec_from_file_location("mount_conftest", os.path.join(MOUNT, "conftest.py"))
_mount = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_mount)
if "pytest_configure" not in dir(sys.modules.get("conftest")):  # not run together with mount/
    pytest_configure = _mount.pytest_configure
    pytest_collection_modifyitems = _mount.pytest_collection_modifyitems
    pytest_runtest_makereport = _mount.pytest_runtest_makereport
box = _mount.box

import images  # noqa: E402  pylint: disable=wrong-import-position


@pytest.fixture
def rig(box):
    """rig(fs, split) makes filesystems for a store and its pool."""
    why = images.why_not()
    if why:
        pytest.skip(f"no filesystems on image files: {why}")
    return lambda *args, **kw: images.Rig(box, *args, **kw)
