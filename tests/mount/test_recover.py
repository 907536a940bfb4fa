"""cellarctl recover: lost+found of the pool is listed, read, restored and never lost (L1), (V1) to
(V3), (C1) to (C3)."""

import errno
import json
import os
import re
import struct
import subprocess
import uuid

import pytest

from harness import (
    CELLARCTL,
    KIB,
    MIB,
    ROOT,
    SOURCE,
    child,
    environment,
    errno_of,
    read_file,
    run,
    socket_of,
    talk,
    text,
    write_file,
)
from test_ctl import validate

ALICE = 12001


def lost_dir(c):
    return os.path.join(c.pool_dir(), "lost+found")


def entries(c):
    answer = json.loads(c.ctl("recover", "--json", c.mnt).out)
    validate(json.loads(read_file(os.path.join(SOURCE, "data/recover.schema.json"))), answer)
    assert [i["mountpoint"] for i in answer["cellars"]] == [c.mnt]
    return answer["cellars"][0]["lost_and_found"]


def lose(box, *names, data=None):
    """A cellar in which these files were changed, never synced, and the machine went down: what was
    written lies in lost+found, the objects say what they said."""
    c = box.cellar(writeback_delay="1h", sync_interval="1h").start()
    for i, name in enumerate(names):
        c.write(name, b"old %d" % i)
    c.flush()
    for i, name in enumerate(names):
        c.write(name, data or text(20 * KIB, i))
    c.kill9()
    c.lost_expected = True
    c.expect("moved to lost.found")
    return c.start(env={"CELLAR_BOOT_ID": str(uuid.uuid4())})


def test_list_restore_and_move(box):
    c = lose(box, "d/a.log", "b")
    assert c.read("d/a.log") == b"old 0", "the object is the truth"
    found = {e["path"]: e for e in entries(c)}
    assert sorted(found) == ["b", "d/a.log"]
    a = found["d/a.log"]
    assert a["name"] == "%016x" % a["number"]
    assert (a["state"], a["kind"], a["size_bytes"]) == ("dirty", "whole", 20 * KIB)
    assert "synced before the reboot" in a["why"] and a["tail_from_bytes"] is None
    assert a["set_aside"] >= a["modified"]
    out = c.ctl("recover").out
    assert a["name"] in out and "d/a.log" in out and "synced before the reboot" in out
    status = {e["path"]: e for e in c.status()["lost_and_found"]}
    assert "synced before the reboot" in status["d/a.log.zst"]["why"]

    # (V2) the name is taken: beside it; the entry stays (V1)
    out = c.ctl("recover", a["name"]).out
    assert "d/a.log.recovered" in out
    assert c.read("d/a.log") == b"old 0" and c.read("d/a.log.recovered") == text(20 * KIB, 0)
    assert len(entries(c)) == 2
    st = os.stat(c.path("d/a.log.recovered"))
    assert st.st_mode & 0o777 == 0o600, "nobody may read it who might not have before"
    assert abs(st.st_mtime - os.stat(os.path.join(lost_dir(c), a["name"])).st_mtime) < 1e-6
    c.ctl("recover", c.mnt, a["name"])
    assert c.read("d/a.log.recovered-2") == text(20 * KIB, 0)

    # the hinted name is free again
    os.unlink(c.path("b"))
    c.ctl("recover", "--all", "--move")
    assert c.read("b") == text(20 * KIB, 1) and entries(c) == []
    assert os.listdir(lost_dir(c)) == [] and c.status()["lost_and_found_files"] == 0
    # (C1) what was moved is durable: another cut does not take it
    c.kill9()
    c.start(env={"CELLAR_BOOT_ID": str(uuid.uuid4())})
    assert c.read("b") == text(20 * KIB, 1)
    assert c.read("d/a.log.recovered-3") == text(20 * KIB, 0)
    c.expect("recovered")


def test_read_only(box):
    """--output reads an entry and changes nothing."""
    c = lose(box, "f", data=text(3 * MIB, 5))
    (e,) = entries(c)
    out = os.path.join(box.path, "out")
    c.ctl("recover", "--output", out, e["name"])
    assert read_file(out) == text(3 * MIB, 5)
    done = subprocess.run(
        [CELLARCTL, "recover", "-o", "-", e["name"]],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )
    assert done.stdout == text(3 * MIB, 5)
    write_file(out, b"mine")
    done = c.ctl("recover", "--output", out, e["name"], check=False)
    assert done.returncode == 1 and read_file(out) == b"mine", "(V2)"
    assert entries(c) == [e] and c.read("f") == b"old 0"


def test_holes_stay_holes(box):
    c = lose(box, "f")
    (e,) = entries(c)
    path = os.path.join(lost_dir(c), e["name"])
    with open(path, "r+b") as f:
        f.truncate(0)
        f.seek(40 * MIB)
        f.write(b"in the middle")
        f.truncate(90 * MIB)
    out = os.path.join(box.path, "out")
    c.ctl("recover", "--output", out, e["name"])
    data = read_file(out)
    assert len(data) == 90 * MIB and data.strip(b"\0") == b"in the middle"
    assert os.stat(out).st_blocks * 512 < 2 * MIB


def test_to(box):
    c = lose(box, "d/f")
    (e,) = entries(c)
    os.mkdir(c.path("e"))
    c.ctl("recover", e["name"], "--to", c.path("e/new"))
    assert c.read("e/new") == text(20 * KIB, 0)
    run(CELLARCTL, "recover", e["name"], "--to", "relative", cwd=c.path("e"))
    assert c.read("e/relative") == text(20 * KIB, 0)
    refused = [
        (c.path("d/f"), "exists"),  # (V2)
        (c.path("missing/f"), "missing"),
        (os.path.join(box.path, "outside"), "no cellar|does not lie"),
        (c.path(".cellar/x"), "cellar"),
        (c.path("e/" + "n" * 252), "too long"),
    ]
    for to, why in refused:
        done = c.ctl("recover", e["name"], "--to", to, check=False)
        assert done.returncode == 1 and re.search(why, done.err), (to, done.err)
    assert c.read("d/f") == b"old 0" and not os.path.exists(os.path.join(box.path, "outside"))
    assert sorted(os.listdir(c.path("e"))) == ["new", "relative"], "(C3)"
    assert len(entries(c)) == 1


def test_hint_leads_nowhere_else(box):
    """(C2) whatever hint and mount say, nothing is written outside the cellar."""
    c = lose(box, "d/f")
    (e,) = entries(c)
    outside = box.dir("outside")
    os.unlink(c.path("d/f"))
    os.rmdir(c.path("d"))
    done = c.ctl("recover", e["name"], check=False)
    assert done.returncode == 1 and "--to" in done.err, "its directory is gone"
    os.symlink(outside, c.path("d"))
    done = c.ctl("recover", e["name"], check=False)
    assert done.returncode == 1 and "link" in done.err
    done = c.ctl("recover", e["name"], "--to", c.path("d/f"), check=False)
    assert done.returncode == 1
    path = os.path.join(lost_dir(c), e["name"])
    for hint in (b"../outside/f.zst", b"/etc/cellar-test.zst", b"..", b"", b"a/..", outside.encode()):
        os.setxattr(path, "user.cellar.path", hint)
        done = c.ctl("recover", e["name"], check=False)
        assert done.returncode == 1, (hint, done.out)
    assert os.listdir(outside) == [] and not os.path.exists("/etc/cellar-test")
    assert len(entries(c)) == 1


def test_strange_names(box):
    """Names are restored to the byte and printed with control characters escaped."""
    name = b"evil\x1b]0;t\x07\n\xff\xfe"
    c = box.cellar(writeback_delay="1h", sync_interval="1h").start()
    c.write(name, b"old")
    c.flush()
    c.write(name, b"new")
    c.kill9()
    c.lost_expected = True
    c.expect("lost.found")
    c.start(env={"CELLAR_BOOT_ID": str(uuid.uuid4())})
    (e,) = entries(c)
    assert "evil" in e["path"]
    done = c.ctl("recover", e["name"])
    for out in (done.out, c.ctl("recover").out, c.ctl("status").out, c.log_text()):
        assert "\x1b" not in out and "\x07" not in out
    assert c.read(name + b".recovered") == b"new"


def test_discard(box):
    c = lose(box, "a", "b")
    a, b = entries(c)
    done = c.ctl("recover", "--discard", a["name"], check=False)
    assert done.returncode == 1 and "--force" in done.err and len(entries(c)) == 2, "(V1)"
    c.ctl("recover", "--discard", "--force", a["name"])
    assert entries(c) == [b] and os.listdir(lost_dir(c)) == [b["name"]]
    # (L1) what has changed since it was looked at is not deleted
    path = socket_of(c)
    ask = {"version": 1, "command": "lost", "name": b["name"]}
    token = talk(path, ask)[-1]["result"]["entry"]["token"]
    with open(os.path.join(lost_dir(c), b["name"]), "ab") as f:
        f.write(b"more")
    gone = {"version": 1, "command": "discard", "name": b["name"], "token": token}
    assert talk(path, gone)[-1]["errno"] == "ESTALE"
    for name in ("../pool.self", "..", ".", "", "/etc/passwd", "../scratch"):
        assert talk(path, dict(gone, name=name))[-1]["errno"] == "EINVAL", name
        assert talk(path, dict(ask, name=name))[-1]["errno"] == "EINVAL", name
    assert talk(path, dict(gone, name="none"))[-1]["errno"] == "ENOENT"
    assert talk(path, {"version": 1, "command": "discard"})[-1]["errno"] == "EINVAL"
    assert len(entries(c)) == 1


def test_what_is_no_file(box):
    """Whatever somebody put there is shown, does not hang, and can be discarded."""
    c = box.cellar().start()
    c.lost_expected = True
    os.mkfifo(os.path.join(lost_dir(c), "fifo"))
    os.symlink("/etc/passwd", os.path.join(lost_dir(c), "link"))
    os.mkdir(os.path.join(lost_dir(c), "dir"))
    write_file(os.path.join(lost_dir(c), "plain"), b"no record")
    found = {e["name"]: e for e in entries(c)}
    assert sorted(found) == ["dir", "fifo", "link", "plain"]
    assert {e["kind"] for n, e in found.items() if n != "plain"} == {"no file"}
    assert found["plain"]["kind"] == found["plain"]["state"] == "unknown"
    for name in ("fifo", "link", "dir"):
        assert c.ctl("recover", "-o", "-", name, check=False, timeout=20).returncode == 1
    assert c.ctl("recover", "plain", check=False).returncode == 1, "no hint"
    c.ctl("recover", "plain", "--to", c.path("p"))
    assert c.read("p") == b"no record"
    c.ctl("recover", "--all", "--discard", "--force")
    assert entries(c) == [] and os.path.exists("/etc/passwd")


def xxh64(data):
    """As the record's checksum has it; for more than 32 bytes."""
    p1, p2, p3 = 11400714785074694791, 14029467366897019727, 1609587929392839161
    p4, p5, mask = 9650029242287828579, 2870177450012600261, (1 << 64) - 1

    def rot(x, n):
        return (x << n | x >> (64 - n)) & mask

    def step(acc, v):
        return rot((acc + v * p2) & mask, 31) * p1 & mask

    acc = [(p1 + p2) & mask, p2, 0, -p1 & mask]
    whole = len(data) // 32 * 32
    for i in range(0, whole, 32):
        acc = [step(a, v) for a, v in zip(acc, struct.unpack_from("<4Q", data, i))]
    h = sum(rot(a, n) for a, n in zip(acc, (1, 7, 12, 18))) & mask
    for a in acc:
        h = ((h ^ step(0, a)) * p1 + p4) & mask
    h = (h + len(data)) & mask
    for i in range(whole, len(data) // 8 * 8, 8):
        h = (rot(h ^ step(0, struct.unpack_from("<Q", data, i)[0]), 27) * p1 + p4) & mask
    assert len(data) % 8 == 0 and p3 and p5
    h = (h ^ h >> 33) * p2 & mask
    h = (h ^ h >> 29) * p3 & mask
    return h ^ h >> 32


def make_tail(path, ask):
    """Makes the entry one that holds only the bytes from ask on."""
    record = bytearray(os.getxattr(path, "user.cellar.record"))
    assert struct.pack("<Q", xxh64(bytes(record[:120]))) == record[120:], "the record's checksum"
    record[7] = 1
    record[16:24] = struct.pack("<Q", ask)
    record[120:] = struct.pack("<Q", xxh64(bytes(record[:120])))
    os.setxattr(path, "user.cellar.record", bytes(record))


def test_tail(box):
    """(V3) bytes below ask are not there: never shown as the file."""
    c = lose(box, "d/f")
    (e,) = entries(c)
    path = os.path.join(lost_dir(c), e["name"])
    with open(path, "r+b") as f:
        f.truncate(0)
        f.truncate(5000)
        f.seek(5000)
        f.write(b"the end")
    make_tail(path, 5000)
    (e,) = entries(c)
    assert (e["kind"], e["tail_from_bytes"], e["size_bytes"]) == ("tail", 5000, 5007)
    assert "5000" in c.ctl("recover").out
    for args in ((), ("-o", "-"), ("--move",)):
        done = c.ctl("recover", e["name"], *args, check=False)
        assert done.returncode == 1 and "--tail" in done.err and not done.out
    os.unlink(c.path("d/f"))
    done = c.ctl("recover", "--all", check=False)
    assert done.returncode == 1 and not os.path.exists(c.path("d/f"))
    c.ctl("recover", "--tail", e["name"])
    assert os.listdir(c.path("d")) == ["f.tail"] and c.read("d/f.tail") == b"the end"
    assert c.ctl("recover", "--tail", "-o", "-", e["name"]).out == "the end"
    assert len(entries(c)) == 1


def test_without_a_daemon(box):
    c = lose(box, "f")
    (e,) = entries(c)
    c.kill9()
    for args in ((), (e["name"],), ("--all",)):
        done = run(CELLARCTL, "recover", c.mnt, *args, check=False, timeout=20)
        assert done.returncode == 3 and "start cellard" in done.err
    c.start()
    assert len(entries(c)) == 1


def test_usage(cellar):
    for args in (
        ["--to", "x"], ["--all", "x"], ["--discard"], ["--move"], ["--force"], ["--wrong"],
        ["--to", "a", "--output", "b", "n"], ["--discard", "--move", "n"], ["--json", "n"],
        ["--output", "x", "--all"],
    ):  # fmt: skip
        done = cellar.ctl("recover", *args, check=False)
        assert done.returncode == 2 and done.err, args
    done = cellar.ctl("recover", "0123", check=False)
    assert done.returncode == 1 and "0123" in done.err
    help_text = cellar.ctl("recover", "--help").out
    for word in ("--to", "--move", "--output", "--tail", "--discard"):
        assert word in help_text


def test_two_cellars_with_the_same_name(box):
    a, b = box.cellar("a").start(), box.cellar("b").start()
    for c in (a, b):
        c.lost_expected = True
        write_file(os.path.join(lost_dir(c), "same"), c.mnt.encode())
    done = a.ctl("recover", "-o", "-", "same", check=False)
    assert done.returncode == 1 and "mount point" in done.err
    assert a.ctl("recover", b.mnt, "-o", "-", "same").out == b.mnt


@pytest.mark.root
def test_others_see_nothing_of_it(box):
    c = lose(box, "f")
    assert ROOT and len(entries(c)) == 1

    def ask():
        path = socket_of(c)
        name = os.listdir(lost_dir(c))[0] if os.access(lost_dir(c), os.R_OK) else "0"
        return [
            talk(path, {"version": 1, "command": "lost"})[-1],
            talk(path, {"version": 1, "command": "lost", "name": name})[-1],
            talk(path, {"version": 1, "command": "discard", "name": name, "token": "x"})[-1],
            talk(path, {"version": 1, "command": "status"})[-1],
        ]

    *refused, status = child(ask, uid=ALICE)
    assert [r["errno"] for r in refused] == ["EPERM"] * 3
    assert status["result"]["lost_and_found"] == []
    assert errno_of(child, lambda: os.listdir(lost_dir(c)), uid=ALICE) == errno.EACCES
