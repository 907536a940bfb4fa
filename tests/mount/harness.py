"""What the mounted tests share: a cellar to start, ask, stop and kill.

Paths of files inside a cellar are given relative to the mount point, as str or as bytes.
Nothing here sleeps for a fixed time: wait_for() polls a condition and fails loudly.
"""

import ctypes
import errno
import functools
import json
import mmap
import os
import random
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.geteuid() == 0
BUILD = os.environ.get("CELLAR_BUILD", "")
SOURCE = os.environ.get("CELLAR_SOURCE", "")
SANITIZER = os.environ.get("CELLAR_TEST_SANITIZER", "")
SOAK = os.environ.get("CELLAR_TEST_SOAK", "0") not in ("", "0")
ROUNDS = 10 if SOAK else 1  # factor on the rounds of the random tests
PASSTHROUGH = os.environ.get("CELLAR_TEST_PASSTHROUGH", "")  # of all cellars that do not say
SLOW = {"asan": 3, "tsan": 6}.get(SANITIZER, 1)  # factor on every timeout
SEED = int(os.environ.get("CELLAR_TEST_SEED") or 20240)

CELLARD = os.path.join(BUILD, "cellard")
CELLARCTL = os.path.join(BUILD, "cellarctl")
MOUNT_CELLAR = os.path.join(BUILD, "mount.cellar")

FSX = os.path.join(BUILD, "tests", "mount", "fsx")

MIB = 1 << 20
KIB = 1 << 10

# A line of the daemon's log that no test may pass over, unless it expects it.
BAD_LINE = re.compile(
    r"\berror:|\bwarning:|AddressSanitizer|ThreadSanitizer|LeakSanitizer|runtime error"
    r"|invariant|lock order",
    re.IGNORECASE,
)

# ---- modes ----


def _modes():
    """{name: options of cellard}: the ways in which the kernel reaches the bytes of a file.
    Passthrough is root's, and only there once cellard knows the option."""
    try:
        text_ = subprocess.run(
            [CELLARD, "--help"], stdin=subprocess.DEVNULL, capture_output=True, check=True
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        return {"cached": {}}
    found = re.search(r"^  passthrough(?:\[?=)(\S+)", text_, re.MULTILINE)
    if not found:
        return {"cached": {}}
    values = re.split(r"[^a-z]+", found.group(1))
    never = next((v for v in ("no", "off", "never") if v in values), "no")
    modes = {"cached": {"passthrough": never}}
    if ROOT:
        modes["passthrough"] = {"passthrough": "auto" if "auto" in values else "yes"}
    return modes


MODES = _modes()

# ---- waiting ----


def wait_for(condition, timeout=20, what="the condition"):
    """Polls until condition() is true and returns its value."""
    end = time.monotonic() + timeout * SLOW
    pause = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout * SLOW} s in vain for {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


# ---- the mount table ----


def mount_table():
    """[(mount point, type, device)] in the order in which they were mounted."""
    table = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            left, right = line.split(" - ", 1)
            point = re.sub(
                r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), left.split()[4]
            )
            major, minor = map(int, left.split()[2].split(":"))
            table.append((point, right.split()[0], os.makedev(major, minor)))
    return table


def mounts_at(path):
    path = os.path.abspath(path)
    return [m for m in mount_table() if m[0] == path]


def mount_answers(path):
    """Whether the topmost mount at path is a cellar that answers."""
    mounts = mounts_at(path)
    if not mounts or not mounts[-1][1].startswith("fuse"):
        return False
    try:
        os.statvfs(path)
        # not what lies below, because the mount went between the two looks
        return os.stat(path).st_dev == mounts[-1][2]
    except OSError:
        return False


def detach(path):
    """Lazily unmounts whatever is mounted at path."""
    for _ in range(8):
        if not mounts_at(path):
            return
        if ROOT:
            command = ["umount", "-l", path]
        else:
            command = ["fusermount3", "-u", "-z", path]
        subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


# ---- processes ----


def environment(extra=None):
    env = dict(os.environ)
    env["LC_ALL"] = "C"
    env.pop("CELLAR_TEST_STEP", None)
    env.pop("CELLAR_TEST_FAULT", None)
    env.setdefault("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1")
    env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    env.setdefault("TSAN_OPTIONS", "halt_on_error=0:second_deadlock_stack=1")
    if extra:
        env.update({k: str(v) for k, v in extra.items()})
    return env


def run(*argv, check=True, **kw):
    """A command with its output as text; the message of a failure shows both."""
    kw.setdefault("stdin", subprocess.DEVNULL)
    kw.setdefault("env", environment())
    kw.setdefault("timeout", 120 * SLOW)
    done = subprocess.run(
        [os.fspath(a) for a in argv], capture_output=True, check=False, **kw
    )
    done.out = done.stdout.decode("utf-8", "replace")
    done.err = done.stderr.decode("utf-8", "replace")
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(map(str, argv))}: exit {done.returncode}\n{done.out}{done.err}"
        )
    return done


def socket_of(c):
    """The path of a cellar's control socket."""
    if ROOT:
        return f"/run/cellar/{c.pid}.sock"
    return os.path.join(os.environ["XDG_RUNTIME_DIR"], f"cellar/{c.pid}.sock")


def talk(path, *lines):
    """Speaks the control protocol by hand; returns all objects received."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    try:
        s.connect(path)
        for line in lines:
            s.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        s.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while piece := s.recv(65536):
                got += piece
        except ConnectionResetError:
            pass
    finally:
        s.close()
    return [json.loads(line) for line in got.splitlines()]


def mkfs(*argv):
    """mkfs.btrfs looks at the source of everything that is mounted, and gives up where it may not: at a
    store that lies in an ordinary user's own FUSE mount, as some test may have one just now."""
    if argv[0] == "mkfs.btrfs":
        wait_for(lambda: run(*argv, check=False).returncode == 0, 60, " ".join(map(str, argv)))
    else:
        run(*argv)


def child(function, *args, uid=None, gid=None, groups=(), umask=None):
    """Runs function(*args) in a forked process (as another user if asked) and returns what
    it returns; an OSError there is raised here, anything else is an AssertionError."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(r)
            if uid is not None:
                os.setgroups(list(groups))
                os.setresgid(gid if gid is not None else uid, *[gid if gid is not None else uid] * 2)
                os.setresuid(uid, uid, uid)
            if umask is not None:
                os.umask(umask)
            try:
                answer = {"value": function(*args)}
            except OSError as e:
                answer = {"errno": e.errno, "text": str(e)}
            except BaseException as e:  # pylint: disable=broad-except
                answer = {"failure": f"{type(e).__name__}: {e}"}
            with os.fdopen(w, "w", encoding="utf-8") as f:
                json.dump(answer, f)
            status = 0
        finally:
            os._exit(status)
    os.close(w)
    with os.fdopen(r, encoding="utf-8") as f:
        text = f.read()
    os.waitpid(pid, 0)
    if not text:
        raise AssertionError("the child process ended without an answer")
    answer = json.loads(text)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["text"])
    if "failure" in answer:
        raise AssertionError(answer["failure"])
    return answer["value"]


def spawn(function, *args):
    """Starts function(*args) in a forked process; returns its pid. It ends with status 0,
    or 1 with a traceback on stderr."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function(*args)
        status = 0
    except BaseException:  # pylint: disable=broad-except
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def reap(pid, timeout=60):
    """Exit status of a spawn()ed process; killed and failed if it does not end."""
    try:
        return wait_for(
            lambda: (lambda p, s: (os.waitstatus_to_exitcode(s),) if p else None)(
                *os.waitpid(pid, os.WNOHANG)
            ),
            timeout,
            f"process {pid} to end",
        )[0]
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


# ---- contents ----

_WORDS = (
    "connection session user request from to port accepted closed failed opened retry after "
    "timeout block received replica terminating packet kernel error info warn debug thread "
    "main worker node cache index flush read write latency ms bytes id uid pid src dest"
).split()


@functools.lru_cache(maxsize=64)
def _log_lines(size, seed):
    rng = random.Random(seed)
    lines = []
    length = 0
    stamp = 1700000000 + rng.randrange(10**7)
    while length < size:
        stamp += rng.randrange(5)
        line = "%d host%02d app[%d]: %s %d\n" % (
            stamp,
            rng.randrange(20),
            rng.randrange(30000),
            " ".join(rng.choices(_WORDS, k=rng.randrange(4, 14))),
            rng.randrange(10**6),
        )
        lines.append(line)
        length += len(line)
    return "".join(lines).encode()


def text(size, seed=0):
    """size bytes that look like a log and compress like one; the same for the same seed."""
    block = _log_lines(min(size, 256 * KIB), seed)
    out = bytearray()
    n = 0
    while len(out) < size:
        out += b"== part %d of %d ==\n" % (n, seed)
        out += block
        n += 1
    return bytes(out[:size])


def noise(size, seed=0):
    """size bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def write_file(path, data):
    with open(path, "wb") as f:
        f.write(data)


def pread_all(fd, size, off=0):
    parts = []
    while size > 0:
        part = os.pread(fd, size, off)
        if not part:
            break
        parts.append(part)
        off += len(part)
        size -= len(part)
    return b"".join(parts)


def tree_files(top):
    """Relative paths (bytes) of all regular files below top, sorted."""
    top = os.fsencode(top)
    found = []
    for where, _, names in os.walk(top):
        for name in names:
            path = os.path.join(where, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                found.append(os.path.relpath(path, top))
    return sorted(found)


def zstd_cat(*paths):
    """What the zstd CLI makes of objects, without any special option."""
    done = subprocess.run(
        ["zstd", "-dcq", "--", *paths],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300 * SLOW,
        check=False,
    )
    assert done.returncode == 0, f"zstd -dc {paths[:3]}: {done.stderr!r}"
    return done.stdout


def zstd_make(data, target, *options, pipe=False):
    """Makes an object with the zstd CLI: from a file (content size known) or a pipe."""
    if pipe:
        with open(target, "wb") as out:
            subprocess.run(
                ["zstd", "-q", "-c", *options], input=data, stdout=out, check=True
            )
        return
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(os.fspath(target))) as f:
        f.write(data)
        f.flush()
        subprocess.run(
            ["zstd", "-q", "-f", *options, f.name, "-o", target],
            stdin=subprocess.DEVNULL,
            check=True,
        )


SEEK_MAGIC = 0x184D2A5E
SEEK_FOOTER = 0x8F92EAB1
CELLAR_MAGIC = 0x184D2A5C
FRAME_MAGIC = 0xFD2FB528


def parse_object(path):
    """Takes an object apart by the published seekable format, independently of cellar's
    code. Returns {"frames": [(stored_off, stored_len, logical_len)], "skippable": [...],
    "logical": n, "cellar": {...} or None}; an AssertionError where it is not valid."""
    raw = read_file(path)
    assert len(raw) >= 17, "too short for a seek table"
    count, descriptor, magic = struct.unpack("<IBI", raw[-9:])
    assert magic == SEEK_FOOTER, "no seek table footer"
    assert descriptor & 0x7C == 0, "reserved bits are set"
    width = 12 if descriptor & 0x80 else 8
    table_len = count * width + 9
    table_off = len(raw) - table_len - 8
    assert table_off >= 0
    assert struct.unpack_from("<II", raw, table_off) == (SEEK_MAGIC, table_len)
    frames, skippable, cellar = [], [], None
    off = logical = 0
    for i in range(count):
        stored_len, logical_len = struct.unpack_from("<II", raw, table_off + 8 + i * width)
        magic = struct.unpack_from("<I", raw, off)[0]
        if logical_len:
            assert magic == FRAME_MAGIC, f"entry {i} is no zstd frame"
            frames.append((off, stored_len, logical_len))
        else:
            assert magic & 0xFFFFFFF0 == 0x184D2A50, f"entry {i} is not skippable"
            assert struct.unpack_from("<I", raw, off + 4)[0] == stored_len - 8
            skippable.append((off, stored_len))
            if magic == CELLAR_MAGIC:
                body = raw[off : off + stored_len]
                assert body[8:12] == b"CLRF", "the cellar frame has another tag"
                version, flags, level, cnsec = struct.unpack_from("<HHiI", body, 12)
                ino, seq, csec = struct.unpack_from("<QQq", body, 40)
                cellar = {
                    "version": version,
                    "flags": flags,
                    "level": level,
                    "pool": body[24:40],
                    "ino": ino,
                    "seq": seq,
                    "ctime_ns": csec * 10**9 + cnsec,
                    "len": stored_len,
                }
        off += stored_len
        logical += logical_len
    assert off == table_off, "the entries do not add up to the table's offset"
    return {
        "frames": frames,
        "skippable": skippable,
        "logical": logical,
        "cellar": cellar,
        "raw": raw,
    }


# ---- system calls that Python lacks ----

_libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_COLLAPSE = 8
FALLOC_ZERO_RANGE = 16
AT_FDCWD = -100


def _check(result, what):
    if result != 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e), os.fsdecode(what))


def renameat2(old, new, flags):
    _check(
        _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), new
    )


def fallocate(fd, mode, off, length):
    _check(
        _libc.fallocate(fd, mode, ctypes.c_int64(off), ctypes.c_int64(length)),
        f"fallocate({mode})",
    )


def errno_of(function, *args, **kw):
    """The errno with which a call fails; 0 if it does not."""
    try:
        function(*args, **kw)
    except OSError as e:
        return e.errno
    return 0


def open_fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


# ---- a cellar ----


class FaultControl:
    """The file by which a running daemon is armed: struct fault_control."""

    def __init__(self, path):
        with open(path, "wb") as f:
            f.write(bytes(4096))
        # pylint: disable-next=consider-using-with
        self.file = open(path, "r+b")
        self.map = mmap.mmap(self.file.fileno(), 4096)
        self.env = {"CELLAR_TEST_FAULT_FILE": path}

    def arm(self, spec):
        self.map[24:128] = spec.encode().ljust(104, b"\0")
        asked = struct.unpack_from("<I", self.map, 0)[0]
        struct.pack_into("<I", self.map, 0, asked + 1)

    def disarm(self):
        """Returns (calls that matched, calls that failed, name of the first)."""
        asked, seen, calls, fired = struct.unpack_from("<IIQQ", self.map, 0)
        first = bytes(self.map[128:160]).split(b"\0")[0].decode()
        if asked != seen:  # not one call came
            calls = fired = 0
        self.arm("")
        return calls, fired, first

    def close(self):
        self.map.close()
        self.file.close()


class Failed(AssertionError):
    """The daemon ended before its mount answered."""


class Cellar:
    """One store, its mount point and the daemon between them."""

    def __init__(self, box, name="c", store=None, mnt=None, **opts):
        self.box = box
        self.store = store or os.path.join(box.path, f"{name}.store")
        self.mnt = mnt or os.path.join(box.path, f"{name}.mnt")
        self.opts = dict(opts)
        if PASSTHROUGH:
            self.opts.setdefault("passthrough", PASSTHROUGH)
        self.proc = None
        self.expected = []
        self.log_paths = []
        self.lost_expected = False
        os.makedirs(self.mnt, exist_ok=True)

    # ---- life ----

    def option_list(self):
        return ",".join(f"{k}={v}" for k, v in self.opts.items())

    def argv(self):
        options = self.option_list()
        return [CELLARD, "-f", *(["-o", options] if options else []), self.store, self.mnt]

    def launch(self, env=None, argv=None):
        """Starts the daemon in the foreground and does not wait."""
        assert self.proc is None or self.proc.poll() is not None, "it runs already"
        number = len(self.log_paths)
        name = os.path.join(self.box.logs, os.path.basename(self.mnt))
        while os.path.exists(path := f"{name}.{number}.log"):  # of another cellar there
            number += 1
        self.log_paths.append(path)
        with open(path, "ab") as log:
            self.proc = subprocess.Popen(  # pylint: disable=consider-using-with
                argv or self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(env),
                cwd="/",
                start_new_session=True,
            )
        self.box.add_process(self.proc)
        return self

    def wait_up(self, timeout=30):
        def up():
            if self.proc.poll() is not None:
                raise Failed(f"cellard exited with {self.proc.returncode}:\n{self.log_text()}")
            return mount_answers(self.mnt)

        wait_for(up, timeout, f"the mount at {self.mnt} to answer")
        return self

    def start(self, env=None):
        return self.launch(env).wait_up()

    @property
    def pid(self):
        return self.proc.pid

    @property
    def running(self):
        return self.proc is not None and self.proc.poll() is None

    def wait_end(self, timeout=90):
        try:
            return self.proc.wait(timeout * SLOW)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"cellard still runs after {timeout * SLOW} s\n{self.box.stacks(self.proc.pid)}"
            ) from None

    def stop(self, how="term"):
        """SIGTERM or umount; the daemon must end with 0 and have nothing to complain of."""
        assert self.running, f"cellard is gone already:\n{self.log_text()}"
        if how == "term":
            self.proc.terminate()
        else:
            self.umount()
        status = self.wait_end()
        assert status == 0, f"cellard exited with {status}:\n{self.log_text()}"
        assert not mounts_at(self.mnt), "the mount is still there"
        self.check_log()
        self.check_drained()
        return self

    def umount(self):
        run(*(["umount", self.mnt] if ROOT else ["fusermount3", "-u", self.mnt]))

    def kill9(self):
        """SIGKILL. The dead mount stays, as it would; the next start detaches it."""
        assert self.running, f"cellard is gone already:\n{self.log_text()}"
        self.proc.kill()
        self.proc.wait(30)
        self.expect_crash()
        return self

    def expect_crash(self):
        """The next start says that it found a dead mount and recovers."""
        self.expect(r"dead|detach|recover|not (been )?(shut down|closed) cleanly|unclean")

    def restart_after_kill(self, env=None):
        return self.start(env)

    def remount(self, how="term", **opts):
        self.stop(how)
        self.opts.update(opts)
        return self.start()

    def finish(self):
        if self.running:
            self.stop()
        else:
            self.check_log()

    # ---- log ----

    def log_text(self):
        return "".join(
            read_file(p).decode("utf-8", "replace") for p in self.log_paths if os.path.exists(p)
        )

    def expect(self, *patterns):
        """Complaints of the daemon that match are part of the test."""
        self.expected.extend(re.compile(p, re.IGNORECASE) for p in patterns)
        return self

    def check_log(self):
        bad = [
            line
            for line in self.log_text().splitlines()
            if BAD_LINE.search(line) and not any(p.search(line) for p in self.expected)
        ]
        assert not bad, "the daemon complained:\n" + "\n".join(bad[:60])

    def wait_log(self, pattern, timeout=20):
        p = re.compile(pattern, re.IGNORECASE)
        return wait_for(
            lambda: p.search(self.log_text()), timeout, f"a log line like {pattern!r}"
        )

    def check_drained(self):
        """After a stop that reported success nothing is left half done."""
        private = self.pool_dir()
        tmp = os.path.join(self.store, ".cellar", "tmp")
        if os.path.isdir(tmp):
            assert os.listdir(tmp) == [], "tmp/ is not empty after a clean stop"
        lost = os.path.join(private, "lost+found")
        if os.path.isdir(lost) and not self.lost_expected:
            assert os.listdir(lost) == [], "something went to lost+found"

    # ---- places ----

    def path(self, rel=""):
        if isinstance(rel, bytes):
            return os.path.join(os.fsencode(self.mnt), rel)
        return os.path.join(self.mnt, rel)

    def object_path(self, rel):
        if isinstance(rel, bytes):
            return os.path.join(os.fsencode(self.store), rel + b".zst")
        return os.path.join(self.store, rel + ".zst")

    def store_path(self, rel=""):
        if isinstance(rel, bytes):
            return os.path.join(os.fsencode(self.store), rel)
        return os.path.join(self.store, rel)

    def pool_dir(self):
        return str(self.opts.get("pool", os.path.join(self.store, ".cellar")))

    def scratches(self):
        """Inode numbers that have a scratch."""
        top = os.path.join(self.pool_dir(), "scratch")
        found = set()
        for _, _, names in os.walk(top):
            found.update(int(n, 16) for n in names if re.fullmatch(r"[0-9a-f]+", n))
        return found

    def is_warm(self, rel):
        return os.stat(self.path(rel)).st_ino in self.scratches()

    # ---- contents ----

    def write(self, rel, data):
        path = self.path(rel)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, data)
        return path

    def read(self, rel):
        return read_file(self.path(rel))

    def stored(self, rel):
        """The content as the zstd CLI sees it in the store."""
        return zstd_cat(self.object_path(rel))

    # ---- cellarctl ----

    def ctl(self, *args, check=True, **kw):
        return run(CELLARCTL, *args, check=check, env=environment(kw.pop("env", None)), **kw)

    def flush(self, *paths, check=True):
        return self.ctl("flush", *(paths or (self.mnt,)), check=check)

    def evict(self, *rels, check=True):
        return self.ctl("evict", *[self.path(r) for r in rels], check=check)

    def make_cold(self, *rels):
        """Flushes and evicts; the next reader gets the bytes from the objects."""
        self.flush()
        for at in range(0, len(rels), 200):
            some = [r for r in rels[at : at + 200] if self.is_warm(r)]
            if some:
                self.evict_closed(*some)
        for rel in rels:
            assert not self.is_warm(rel), f"{rel} is still warm"

    def evict_closed(self, *rels):
        """A RELEASE arrives a moment after close() returned: try until it has."""

        def done():
            result = self.evict(*rels, check=False)
            return result.returncode == 0 or not any(self.is_warm(r) for r in rels)

        wait_for(done, 20, f"{rels} to be evictable")

    def status(self):
        """What `cellarctl status --json` shows of this cellar; asked of the daemon itself where
        that can be done, since a process for each question is most of what waiting costs."""
        found = None
        try:
            if self.proc:
                found = talk(socket_of(self), {"version": 1, "command": "status"})[-1]["result"]
        except (LookupError, OSError, ValueError):
            pass  # it ends, or cannot be asked that way
        if found is None:
            answer = json.loads(self.ctl("status", "--json", self.mnt).out)
            assert answer["version"] == 1
            cellars = [c for c in answer["cellars"] if c["mountpoint"] == self.mnt]
            assert len(cellars) == 1, f"{self.mnt} is not in {answer}"
            found = cellars[0]
        assert found["mountpoint"] == self.mnt
        return found

    def counter(self, name):
        return self.status()["counters"][name]

    def status_limit(self):
        return self.status()["pool"]["limit_bytes"]


class Box:
    """The private directory of one test on a real disk, and everything started in it."""

    def __init__(self, label):
        top = os.environ.get("CELLAR_TEST_DIR") or "/var/tmp"
        self.path = tempfile.mkdtemp(prefix=f"cellar-test-{label[:40]}-", dir=top)
        os.chmod(self.path, 0o755)
        self.logs = os.path.join(self.path, "logs")
        os.mkdir(self.logs)
        self.processes = []
        self.pids = []
        self.cellars = []
        self.watchdog_fired = False
        self.last_logs = ""
        self.cleanups = []

    def cellar(self, name="c", **opts):
        c = Cellar(self, name, **opts)
        self.cellars.append(c)
        return c

    def dir(self, name):
        path = os.path.join(self.path, name)
        os.makedirs(path, exist_ok=True)
        return path

    def add_process(self, process):
        self.processes.append(process)

    def add_pid(self, pid):
        """A process to be killed at the end that is not our child."""
        self.pids.append(pid)

    def alive(self):
        mine = [p.pid for p in self.processes if p.poll() is None]
        return mine + [p for p in self.pids if is_cellard(p)]

    def stacks(self, pid):
        """What the threads of a stuck daemon are doing, as far as this machine can tell."""
        lines = []
        for tid in sorted(os.listdir(f"/proc/{pid}/task")) if os.path.isdir(f"/proc/{pid}") else []:
            for what in ("comm", "wchan"):
                try:
                    with open(f"/proc/{pid}/task/{tid}/{what}", encoding="utf-8") as f:
                        lines.append(f"{tid} {what} {f.read().strip()}")
                except OSError:
                    pass
        if shutil.which("gdb"):
            try:
                done = subprocess.run(
                    ["gdb", "-p", str(pid), "-batch", "-nx", "-ex", "thread apply all bt"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    timeout=60,
                    check=False,
                )
                lines.append(done.stdout.decode("utf-8", "replace"))
            except (OSError, subprocess.TimeoutExpired):
                pass
        return "\n".join(lines)

    def bark(self):
        """A test takes too long: whoever waits for a daemon gets an error and goes on."""
        self.watchdog_fired = True
        for pid in self.alive():
            with open(os.path.join(self.logs, f"stacks-{pid}.log"), "w", encoding="utf-8") as f:
                f.write(self.stacks(pid))
            kill_quietly(pid)

    def log_text(self):
        out = []
        for name in sorted(os.listdir(self.logs)):
            body = read_file(os.path.join(self.logs, name)).decode("utf-8", "replace")
            out.append(f"---- {name}\n{body[-20000:]}")
        return "\n".join(out)

    def close(self):
        for pid in self.alive():
            kill_quietly(pid)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        inside = self.path + "/"
        for point, _, _ in reversed(mount_table()):
            if point.startswith(inside):
                detach(point)
        for undo in reversed(self.cleanups):
            undo()
        self.last_logs = self.log_text()
        shutil.rmtree(self.path, ignore_errors=True)
        if os.path.lexists(self.path):
            subprocess.run(["chmod", "-R", "u+rwx", self.path], check=False)
            shutil.rmtree(self.path, ignore_errors=True)


def is_cellard(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as f:
            return f.read().startswith("cellard")
    except OSError:
        return False


def kill_quietly(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Watchdog:
    """Calls box.bark() once if not stopped in time."""

    def __init__(self, box, seconds):
        self.timer = threading.Timer(seconds, box.bark)
        self.timer.daemon = True
        self.timer.start()

    def stop(self):
        self.timer.cancel()


def same_errno(got, *names):
    wanted = [getattr(errno, n) for n in names]
    assert got in wanted, f"{errno.errorcode.get(got, got)} instead of {' or '.join(names)}"
