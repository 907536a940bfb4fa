"""Fixtures of the mounted tests; what they hand out is in harness.py."""

import os
import re
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # pylint: disable=wrong-import-position


def pytest_configure(config):
    config.addinivalue_line("markers", "stress: runs under the sanitizers by default")
    config.addinivalue_line("markers", "root: needs to be root (other users, devices)")
    config.addinivalue_line("markers", "limit(seconds): the test's own time limit")
    if not os.access(harness.CELLARD, os.X_OK):
        raise pytest.UsageError(
            "CELLAR_BUILD must name the build directory; run tests/run or make check"
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise pytest.UsageError("/dev/fuse cannot be opened by this user")
    if not harness.ROOT:
        # control sockets and pools of our own, not among those of the user
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
            os.environ[name] = tempfile.mkdtemp(prefix="cellar-test-xdg-")
            config.add_cleanup(lambda d=os.environ[name]: shutil.rmtree(d, ignore_errors=True))


def pytest_collection_modifyitems(config, items):
    if harness.ROOT:
        return
    theirs = [i for i in items if i.get_closest_marker("root")]
    if theirs:
        items[:] = [i for i in items if not i.get_closest_marker("root")]
        config.hook.pytest_deselected(items=theirs)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    setattr(item, "report_" + report.when, report)
    box = getattr(item, "cellar_box", None)
    if box is not None and report.failed:
        if box.watchdog_fired:
            report.sections.append(("watchdog", "the test took too long; daemons were killed"))
        logs = box.log_text() if os.path.isdir(box.logs) else box.last_logs
        report.sections.append(("daemon logs", logs))


@pytest.fixture
def box(request):
    b = harness.Box(re.sub(r"[^A-Za-z0-9]+", "-", request.node.name))
    request.node.cellar_box = b
    limit = request.node.get_closest_marker("limit")
    seconds = limit.args[0] if limit else 90
    dog = harness.Watchdog(b, seconds * harness.SLOW * harness.ROUNDS)
    try:
        yield b
        failed = getattr(request.node, "report_call", None)
        if failed is not None and failed.passed:
            for c in b.cellars:
                c.finish()
        assert not b.watchdog_fired, "the test took too long"
    finally:
        dog.stop()
        b.close()


@pytest.fixture
def cellar(box):
    """A running cellar in which nothing is written back before the test says so."""
    return box.cellar(writeback_delay="1h").start()


@pytest.fixture
def lively(box):
    """A running cellar that writes back as soon as it can."""
    return box.cellar(writeback_delay="50ms").start()


@pytest.fixture(params=sorted(harness.MODES))
def mode(request):
    """Options for box.cellar(**mode, ...): a test that takes this runs in each mode that the
    daemon has for this user."""
    return harness.MODES[request.param]


@pytest.fixture
def plain(box, mode):
    """As `cellar`, in each mode."""
    return box.cellar(writeback_delay="1h", **mode).start()
