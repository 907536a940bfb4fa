"""Every operation under faults, through the mount: the i-th call of the daemon that can fail
fails, once or from then on (src/base/fault.h). tests/fault/test-fault-ops.c does this
exhaustively on the libraries; here the kernel, FUSE and the programs are in between, and the
selection is smaller.

After each fault: the daemon lives (F6, promise 4), the caller got the injected error or none,
no wrong byte was read while it lasted (promise 8), and with the fault gone everything flushes,
verify and the zstd CLI are content and the bytes are what was written (promises 6, 7, 10).

An operation is a class: prepare(), act() under the fault, and what the files may hold after.
"""

import errno
import mmap
import os
import struct

import pytest

from harness import SANITIZER, SOAK, Failed, FaultControl, errno_of, read_file, run, text, wait_for

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENOMEM")
POINTS = 100000 if SOAK else {"asan": 3, "tsan": 3}.get(SANITIZER, 7)  # calls of an operation that fail


@pytest.fixture
def control(box):
    c = FaultControl(os.path.join(box.path, "control"))
    yield c
    c.close()


# ---- operations ----


class Operation:
    """One operation on a running cellar. may: {name: set of contents or None (absent)}."""

    def __init__(self, cellar):
        self.c = cellar
        self.may = {}
        self.serial = 0

    def fresh(self, size):
        self.serial += 1
        return text(size, seed=self.serial)

    def dirty(self, name, size=60000):
        data = self.fresh(size)
        self.c.write(name, data)
        self.may[name] = {data}
        return data

    def cold(self, name, size=60000):
        data = self.dirty(name, size)
        self.c.make_cold(name)
        return data

    def prepare(self):
        pass

    def act(self):
        raise NotImplementedError


class Create(Operation):
    """create, write, close"""

    def act(self):
        data = self.fresh(50000)
        self.may["new"] = {None, b""}
        try:
            fd = os.open(self.c.path("new"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        finally:
            if os.path.lexists(self.c.store_path("new.zst")):
                self.may["new"] = {None, b""}
        done = 0
        self.may["new"] = {b""}
        try:
            while done < len(data):
                done += os.write(fd, data[done : done + 20000])
                self.may["new"] = {data[:done]}
        finally:
            os.close(fd)


class ReadCold(Operation):
    """open and read a cold file"""

    def prepare(self):
        self.cold("cold", 300000)

    def act(self):
        data = self.c.read("cold")
        assert {data} == self.may["cold"], "wrong bytes while the fault lasted"


class WriteCold(Operation):
    """open a cold file for writing, first write"""

    def prepare(self):
        self.cold("cold")

    def act(self):
        (old,) = self.may["cold"]
        head = self.fresh(3000)
        fd = os.open(self.c.path("cold"), os.O_WRONLY)
        try:
            n = os.pwrite(fd, head, 0)
            self.may["cold"] = {head[:n] + old[n:]}
        finally:
            os.close(fd)


class TruncateOpen(Operation):
    """O_TRUNC of a cold file"""

    def prepare(self):
        self.cold("cold")

    def act(self):
        (old,) = self.may["cold"]
        # the kernel may open first and cut after: then an error says so
        self.may["cold"] = {old, b""}
        fd = os.open(self.c.path("cold"), os.O_WRONLY | os.O_TRUNC)
        os.close(fd)
        self.may["cold"] = {b""}


class Fsync(Operation):
    def prepare(self):
        self.dirty("dirty")

    def act(self):
        fd = os.open(self.c.path("dirty"), os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class RenameOver(Operation):
    """rename of a dirty file over a dirty one: old or new, never empty (promise 5)"""

    def prepare(self):
        self.dirty("target")
        self.c.flush()
        self.dirty("target")
        self.dirty("source")

    def act(self):
        (old,), (new,) = self.may["target"], self.may["source"]
        self.may = {"target": {old, new}, "source": {None, new}}
        os.rename(self.c.path("source"), self.c.path("target"))
        self.may = {"target": {new}, "source": {None}}


class Truncate(Operation):
    def prepare(self):
        self.dirty("dirty")
        fd = os.open(self.c.path("dirty"), os.O_RDWR)
        os.fsync(fd)
        os.close(fd)

    def act(self):
        (old,) = self.may["dirty"]
        self.may["dirty"] = {old, old[:1000]}  # done, and then its reply fails
        os.truncate(self.c.path("dirty"), 1000)
        self.may["dirty"] = {old[:1000]}


class Unlink(Operation):
    def prepare(self):
        self.dirty("dirty")

    def act(self):
        (old,) = self.may["dirty"]
        self.may["dirty"] = {old, None}
        os.unlink(self.c.path("dirty"))
        self.may["dirty"] = {None}


class Ctl(Operation):
    """A command of cellarctl: exit 0, or 1 and a sentence; 3 where the daemon cannot take the
    connection."""

    command = ()

    def act(self):
        done = self.c.ctl(*self.command, *self.arguments(), check=False)
        assert done.returncode in (0, 1, 3), f"exit {done.returncode}: {done.err}"
        if done.returncode:
            assert done.out + done.err, "failed without a word"
            raise OSError(errno.EIO, done.err)

    def arguments(self):
        return [self.c.mnt]


class Flush(Ctl):
    command = ("flush",)

    def prepare(self):
        self.dirty("a")
        self.c.flush()
        self.dirty("a")
        self.dirty("b")


class FlushLinked(Flush):
    def prepare(self):
        self.dirty("a")
        os.link(self.c.path("a"), self.c.path("b"))
        self.c.flush()
        self.may["b"] = {self.dirty("a")}


class Evict(Ctl):
    command = ("evict",)

    def prepare(self):
        self.dirty("a")
        self.c.flush()

    def arguments(self):
        return [self.c.path("a")]


class Verify(Ctl):
    command = ("verify",)

    def prepare(self):
        self.cold("a")


OPERATIONS = [
    Create,
    ReadCold,
    WriteCold,
    TruncateOpen,
    Fsync,
    RenameOver,
    Truncate,
    Unlink,
    Flush,
    FlushLinked,
    Evict,
    Verify,
]


# ---- what must hold after ----


def content(c, name):
    try:
        return c.read(name)
    except FileNotFoundError:
        return None


def check_all(c, may, what):
    """With no fault armed."""
    for name in may:
        content(c, name)  # what a create left half made becomes a file when it is looked at
    wait_for(lambda: c.flush(check=False).returncode == 0, 20, f"everything to flush {what}")
    for name, allowed in may.items():
        got = content(c, name)
        assert got in allowed, f"{what}: {name} holds {len(got or b'')} wrong bytes"
        if got is not None:
            assert os.stat(c.path(name)).st_size == len(got), what
            assert c.stored(name) == got, what
        may[name] = {got}
    done = c.ctl("verify", c.mnt, check=False)
    assert done.returncode == 0, f"{what}: {done.out}{done.err}"
    strays = [n for n in os.listdir(c.store) if "cellar-conflict" in n]
    assert not strays, f"{what}: {strays}"


def empty(c, op):
    for name in op.may:
        try:
            os.unlink(c.path(name))
        except FileNotFoundError:
            pass
    op.may = {}


def points(calls):
    """Which of the calls are made to fail: all, or some that are spread evenly."""
    if calls <= POINTS:
        return range(1, calls + 1)
    return sorted({1 + i * (calls - 1) // (POINTS - 1) for i in range(POINTS)})


def learn(control, op):
    op.prepare()
    control.arm("any:1000000000:EIO")
    op.act()
    calls = control.disarm()[0]
    check_all(op.c, op.may, "without a fault")
    empty(op.c, op)
    return calls


def try_fault(control, op, spec):
    """Returns how many calls failed."""
    error = getattr(errno, spec.split(":")[2])
    op.prepare()
    control.arm(spec)
    got = 0
    try:
        op.act()
    except OSError as e:
        got = e.errno
    _, fired, first = control.disarm()
    what = f"after {type(op).__name__} with {spec} ({first})"
    assert op.c.running, f"{what}: the daemon is gone:\n{op.c.log_text()[-3000:]}"
    assert got in (0, error, errno.EIO), f"{what}: {errno.errorcode[got]}"
    if not fired:
        assert got == 0, what
    check_all(op.c, op.may, what)
    empty(op.c, op)
    return fired


@pytest.mark.limit(300)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.__name__)
def test_operation(box, control, operation):
    """(F6), (S1), (O4): promises 4, 6, 7, 8 under faults of the daemon's calls."""
    c = box.cellar(writeback_delay="1h").start(env=control.env)
    c.expect("cannot|error|failed|decode|answers|damage|only \\d+ of|no room", r"moved to lost\+found")
    c.lost_expected = True
    op = operation(c)
    calls = learn(control, op)
    assert calls > 0
    fired = 0
    for k, i in enumerate(points(calls)):
        for always in (False, True):
            names = ERRORS if SOAK else (ERRORS[(k + 2 * always) % len(ERRORS)],)
            for name in names:
                fired += try_fault(control, op, f"any:{i}:{name}{':always' if always else ''}")
    assert fired > 0, "not one fault fired"
    c.remount()


@pytest.mark.limit(300)
def test_start_and_end(box, control):
    """A fault at the start: a sentence and exit 1, or a start; the next one is right. The same
    daemon is stopped (drained) under faults: what is left is said and flushed by the next."""
    c = box.cellar(writeback_delay="1h").start()
    c.expect("cannot|error|failed|stay in the pool|could not", "dead|recover|unclean|set aside")
    data = {"a": text(60000, 1), "b": text(5000, 2)}
    for name, body in data.items():
        c.write(name, body)
    c.stop()
    # how many calls a start makes
    control.arm("any:1000000000:EIO")
    c.start(env=control.env)
    calls = control.disarm()[0]
    c.kill9()
    started = refused = 0
    for k, i in enumerate(points(calls)):
        spec = f"any:{i}:{ERRORS[k % 5]}{':always' if k % 2 else ''}"
        control.arm(spec)
        try:
            c.start(env=control.env)
            started += 1
            control.disarm()
            control.arm(f"any:{10 + 7 * k}:{ERRORS[k % 5]}{':always' if k % 3 == 0 else ''}")
            c.write("a", data["a"][: 50000 + k])
            data["a"] = data["a"][: 50000 + k]
        except Failed:
            refused += 1
            assert c.proc.returncode == 1, f"{spec}: exit {c.proc.returncode}"
            last = read_file(c.log_paths[-1]).decode()
            assert "error" in last or "cannot" in last, f"{spec}: no cause: {last}"
        except OSError:
            pass  # the write: told to its caller
        if c.running:
            if k % 4 == 3:
                c.kill9()
            else:
                c.proc.terminate()
                assert c.wait_end() in (0, 1)
        control.disarm()
        c.start()
        now = c.read("a")
        assert now in (data["a"], b"") or data["a"].startswith(now) or now.startswith(data["a"])
        data["a"] = now
        check_all(c, {n: {b} for n, b in data.items()}, spec)
        c.stop()
    assert started and refused, f"{started} starts, {refused} refusals"
    c.start()


def test_control_reaches_the_daemon(box, control):
    """The harness itself: what is armed fires, is counted, and is gone when disarmed."""
    c = box.cellar(writeback_delay="1h").start(env=control.env)
    assert struct.unpack_from("<I", control.map, 160)[0] == 1, "the daemon did not map it"
    c.write("a", b"x" * 1000)
    c.expect("cannot|sync")
    fd = os.open(c.path("a"), os.O_RDWR)
    control.arm("fdatasync:1:EDQUOT")
    assert errno_of(os.fsync, fd) == errno.EDQUOT
    assert control.disarm()[1:] == (1, "fdatasync")
    # (Y3): sticky until it is flushed
    assert errno_of(os.fsync, fd) == errno.EDQUOT
    c.flush()
    os.fsync(fd)
    os.close(fd)
    control.arm("openat:1:EMFILE")
    assert run("true").returncode == 0
    calls, fired, _ = control.disarm()
    assert fired <= 1 and calls >= fired


@pytest.mark.parametrize("looked_at", [False, True])
def test_create_that_cannot_be_undone(box, control, looked_at):
    """What is left is an empty file: at once for who looks, and marked as such by itself."""
    c = box.cellar(writeback_delay="1h").start(env=control.env)
    c.expect("could not be created", "cannot|error|failed")
    for i in range(1, 100):
        control.arm(f"any:{i}:EIO:always")
        got = errno_of(os.open, c.path("new"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        control.disarm()
        if not got or os.path.exists(c.store_path("new.zst")):
            break
    assert got == errno.EIO
    assert '"new.zst" could not be created' in c.log_text()
    if looked_at:
        assert c.read("new") == b""
        c.flush()
        assert c.stored("new") == b""
    else:
        wait_for(lambda: "user.cellar.new" in os.listxattr(c.store_path("new.zst")), 20, "the mark")
    assert c.ctl("verify", c.mnt, check=False).returncode == 0
    c.remount()
    assert c.read("new") == b""


def test_no_room_to_decompress(box, control):
    """(H6) Small files are decompressed at open; where the pool's disk says only then that it is full, what
    was asked for is read all the same, and kept once there is room."""
    c = box.cellar(writeback_delay="1h")
    c.expect("no room in the pool")
    c.start(control.env)
    data = text(300_000, 1)
    c.write("f", data)
    c.make_cold("f")
    control.arm("pwrite:1:ENOSPC:always")
    assert c.read("f") == data
    assert control.disarm()[1] > 0
    c.make_cold("f")
    assert c.read("f") == data
