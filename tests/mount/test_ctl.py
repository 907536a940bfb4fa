"""cellarctl: status, flush, evict, verify, umount."""

import json
import os
import re
import subprocess

from harness import (
    CELLARCTL,
    KIB,
    MIB,
    ROOT,
    SOURCE,
    environment,
    read_file,
    run,
    socket_of,
    talk,
    text,
    wait_for,
    write_file,
)


def validate(schema, value, where="$", root=None):
    """As much of JSON Schema as the schema in data/ uses."""
    root = root or schema
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].lstrip("#/").split("/"):
            target = target[part]
        return validate(target, value, where, root)
    for sub in schema.get("allOf", []):
        validate(sub, value, where, root)
    if "anyOf" in schema or "oneOf" in schema:
        problems = []
        for sub in schema.get("anyOf", schema.get("oneOf")):
            try:
                validate(sub, value, where, root)
                break
            except AssertionError as e:
                problems.append(str(e))
        else:
            raise AssertionError("; ".join(problems))
    kinds = schema.get("type")
    if kinds is not None:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        is_kind = {
            "object": isinstance(value, dict),
            "array": isinstance(value, list),
            "string": isinstance(value, str),
            "integer": isinstance(value, int) and not isinstance(value, bool),
            "number": isinstance(value, (int, float)) and not isinstance(value, bool),
            "boolean": isinstance(value, bool),
            "null": value is None,
        }
        assert any(is_kind[k] for k in kinds), f"{where} is {value!r}, not {kinds}"
    if "const" in schema:
        assert value == schema["const"], f"{where} is {value!r}"
    if "enum" in schema:
        assert value in schema["enum"], f"{where} is {value!r}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        assert value >= schema.get("minimum", value), f"{where} is {value}"
        assert value <= schema.get("maximum", value), f"{where} is {value}"
    if isinstance(value, str) and "pattern" in schema:
        assert re.search(schema["pattern"], value), f"{where} is {value!r}"
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for name in schema.get("required", []):
            assert name in value, f"{where} has no {name}"
        for name, item in value.items():
            if name in known:
                validate(known[name], item, f"{where}.{name}", root)
            elif isinstance(schema.get("additionalProperties"), dict):
                validate(schema["additionalProperties"], item, f"{where}.{name}", root)
            else:
                assert schema.get("additionalProperties", True), f"{where} has an unknown {name}"
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            validate(schema["items"], item, f"{where}[{i}]", root)


def test_status_json_is_what_the_schema_says(cellar):
    c = cellar
    schema = json.loads(read_file(os.path.join(SOURCE, "data/status.schema.json")))
    answers = [json.loads(c.ctl("status", "--json", c.mnt).out)]
    c.write("f", text(100 * KIB, 1))
    fd = os.open(c.path("open"), os.O_RDWR | os.O_CREAT, 0o644)
    answers.append(json.loads(c.ctl("status", "--json", c.mnt).out))
    c.flush()
    os.close(fd)
    answers.append(json.loads(c.ctl("status", "--json").out))
    for answer in answers:
        validate(schema, answer)
    # the schema is not empty words: it requires what the status is for
    broken = json.loads(json.dumps(answers[0]))
    del broken["cellars"][0]["pool"]
    try:
        validate(schema, broken)
    except AssertionError:
        return
    raise AssertionError("the schema accepts a status without a pool")


def test_status_numbers(cellar):
    c = cellar
    s = c.status()
    assert s["pid"] == c.pid and s["store"] == c.store and s["mountpoint"] == c.mnt
    assert s["scratch"] == {"warm": 0, "dirty": 0, "flushing": 0, "pinned": 0, "open": 0}
    assert s["queue"]["files"] == 0
    c.write("a", text(300 * KIB, 1))
    c.write("b", text(200 * KIB, 2))
    fd = os.open(c.path("a"), os.O_RDONLY)
    s = wait_for(lambda: (s := c.status()) and s["scratch"]["open"] == 1 and s, what="one open file")
    assert s["scratch"]["warm"] == 2 and s["scratch"]["dirty"] == 2
    assert s["pool"]["bytes"] >= 500 * KIB and s["pool"]["dirty_bytes"] >= 500 * KIB
    assert s["pool"]["limit_bytes"] >= 256 * MIB
    os.close(fd)
    c.flush()
    s = c.status()
    assert s["scratch"]["dirty"] == 0 and s["pool"]["dirty_bytes"] == 0
    assert s["stored"]["files"] == 2
    assert s["stored"]["logical_bytes"] == 500 * KIB
    assert s["stored"]["stored_bytes"] == sum(
        os.path.getsize(c.object_path(n)) for n in ("a", "b")
    )
    assert s["stored"]["ratio"] > 2
    c.make_cold("a", "b")
    before = c.status()
    c.read("a")
    c.read("a")
    after = c.status()
    assert after["hits"]["misses"] == before["hits"]["misses"] + 1
    assert after["hits"]["hits"] == before["hits"]["hits"] + 1
    assert 0 <= after["hits"]["rate"] <= 1
    assert after["uptime_seconds"] >= before["uptime_seconds"] >= 0
    os.unlink(c.path("a"))
    c.flush()
    assert c.status()["stored"]["files"] == 1


def test_status_text(cellar):
    c = cellar
    c.write("f", text(MIB, 1))
    c.flush()
    out = c.ctl("status", c.mnt).out
    for part in (c.store, c.mnt, str(c.pid)):
        assert part in out
    for word in ("pool", "dirty", "warm", "open", "hit", "ratio|stored", "queue", r"\bup\b"):
        assert re.search(word, out, re.IGNORECASE), f"{word} in\n{out}"
    assert "\x1b" not in out, "no terminal codes into a pipe"
    assert c.mnt in c.ctl("status").out, "without a mount point: every cellar of this user"
    inside = c.ctl("status", c.path("f")).out
    assert c.mnt in inside


def test_two_cellars(box):
    a, b = box.cellar("a").start(), box.cellar("b").start()
    both = json.loads(a.ctl("status", "--json").out)["cellars"]
    assert {a.mnt, b.mnt} <= {c["mountpoint"] for c in both}
    a.write("f", b"a")
    b.write("f", b"b")
    a.flush()
    assert a.status()["scratch"]["dirty"] == 0
    assert b.status()["pid"] != a.status()["pid"]
    b.ctl("flush")  # without a mount point: all of them
    assert b.stored("f") == b"b"


def test_no_daemon(box):
    nothing = box.dir("nothing")
    for command in (("status", nothing), ("flush", nothing), ("umount", nothing)):
        done = run(CELLARCTL, *command, check=False)
        assert done.returncode == 3, f"{command}: {done.returncode} {done.err}"
        assert nothing in done.err
    c = box.cellar().start()
    c.kill9()
    done = run(CELLARCTL, "status", c.mnt, check=False, timeout=20)
    assert done.returncode == 3 and done.err, "a dead daemon: it says so and does not hang"
    done = run(CELLARCTL, "status", "--json", c.mnt, check=False)
    assert done.returncode == 3


def test_usage(box):
    for argv in ([], ["nonsense"], ["status", "--wrong"], ["evict"]):
        done = run(CELLARCTL, *argv, check=False)
        assert done.returncode == 2, f"{argv}: {done.returncode}"
        assert done.err
    done = run(CELLARCTL, "--help")
    for word in ("status", "flush", "umount", "evict", "verify"):
        assert word in done.out
    assert re.match(r"cellarctl \d+\.\d+", run(CELLARCTL, "--version").out)
    assert box


def test_flush_of_a_path(cellar):
    c = cellar
    c.write("d/a", text(10 * KIB, 1))
    c.write("d/sub/b", text(10 * KIB, 2))
    c.write("e/c", text(10 * KIB, 3))
    c.ctl("flush", c.path("d"))
    assert c.stored("d/a") == text(10 * KIB, 1)
    assert c.stored("d/sub/b") == text(10 * KIB, 2)
    assert os.path.getsize(c.object_path("e/c")) == 0, "not asked for"
    assert c.status()["scratch"]["dirty"] == 1
    c.write("f", b"x")
    c.write("g", b"y")
    run(CELLARCTL, "flush", "f", "e", cwd=c.mnt)
    assert c.stored("f") == b"x" and c.stored("e/c") == text(10 * KIB, 3)
    assert os.path.getsize(c.object_path("g")) == 0
    done = c.ctl("flush", c.path("missing"), check=False)
    assert done.returncode == 1 and "missing" in done.err


def test_flush_takes_open_files(cellar):
    c = cellar
    fd = os.open(c.path("f"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, text(100 * KIB, 1))
    c.flush()
    assert c.stored("f") == text(100 * KIB, 1)
    os.pwrite(fd, b"again", 0)
    c.flush()
    assert c.stored("f") == b"again" + text(100 * KIB, 1)[5:]
    os.close(fd)
    c.flush()
    # closed a moment ago: its RELEASE may still be under way
    for i in range(30):
        c.write("g", b"%d" % i)
        c.flush()
        assert c.stored("g") == b"%d" % i


def test_flush_without_work(cellar):
    assert cellar.flush().returncode == 0
    assert "\r" not in cellar.flush().out, "no progress bar into a pipe"


def test_flush_shows_progress_on_a_terminal(cellar):
    import pty

    for i in range(20):
        cellar.write(f"f{i}", text(200 * KIB, i))
    here, there = pty.openpty()
    p = subprocess.Popen(
        [CELLARCTL, "flush", cellar.mnt],
        stdin=subprocess.DEVNULL,
        stdout=there,
        stderr=there,
        env=environment({"TERM": "xterm", "COLUMNS": "80"}),
    )
    os.close(there)
    seen = b""
    while True:
        try:
            piece = os.read(here, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(here)
    assert p.wait(60) == 0
    assert b"20" in seen and (b"\r" in seen or b"\x1b" in seen), seen


def test_evict(cellar):
    c = cellar
    for i in range(5):
        c.write(f"d/f{i}", text(100 * KIB, i))
    c.flush()
    assert all(c.is_warm(f"d/f{i}") for i in range(5))
    c.evict_closed("d/f0", "d/f1")
    assert [c.is_warm(f"d/f{i}") for i in range(5)] == [False, False, True, True, True]
    assert c.status()["scratch"]["warm"] == 3
    for i in range(5):
        assert c.read(f"d/f{i}") == text(100 * KIB, i)
    assert c.counter("evictions") >= 2


def test_verify(cellar):
    c = cellar
    for i in range(5):
        c.write(f"d/f{i}", text(100 * KIB, i))
    c.flush()
    out = c.ctl("verify", c.mnt).out
    assert re.search(r"\b5\b", out), out
    assert re.search(r"\b1\b", c.ctl("verify", c.path("d/f2")).out)
    c.write("d/f2", b"dirty files have an old, whole object")
    assert c.ctl("verify", c.mnt).returncode == 0


def test_umount_reports_what_is_left(box):
    """cellarctl umount of a mount that is in use: it says so, or detaches; nothing is lost."""
    c = box.cellar(writeback_delay="1h").start()
    fd = os.open(c.path("f"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, text(50 * KIB, 1))
    done = c.ctl("umount", c.mnt, check=False)
    assert done.returncode in (0, 1), done.err
    os.close(fd)
    if done.returncode == 1:
        assert done.err
        assert c.read("f") == text(50 * KIB, 1)
        c.ctl("umount", c.mnt)
    assert c.wait_end() == 0
    assert c.stored("f") == text(50 * KIB, 1)


def test_protocol_by_hand(cellar):
    c = cellar
    path = socket_of(c)
    answers = talk(path, {"version": 1, "command": "status"})
    assert answers[0]["cellar"] == 1 and answers[0]["pid"] == c.pid
    assert answers[0]["mountpoint"] == c.mnt
    assert answers[-1]["result"]["pid"] == c.pid
    assert talk(path, {"version": 99, "command": "status"})[-1]["errno"] == "EPROTO"
    assert "error" in talk(path, {"version": 1, "command": "nonsense"})[-1]
    for rubbish in (b"\n", b"{}\n", b"[]\n", b"\x00\xff\n", b"{" * 5000 + b"\n", b"x" * (2 << 20)):
        try:
            talk(path, rubbish)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may hang up in the middle of nonsense
    unknown = talk(path, {"version": 1, "command": "flush", "inodes": [1 << 60, -5]})
    assert unknown[-1].get("error") or unknown[-1]["result"]["failed"] >= 1
    assert c.status()["pid"] == c.pid, "and it goes on as before"


def test_socket_goes_with_the_daemon(cellar):
    path = socket_of(cellar)
    assert os.path.exists(path)
    cellar.stop()
    assert not os.path.exists(path)


def test_names_on_the_terminal(cellar):
    """Control characters in names are escaped before they are printed."""
    c = cellar
    name = "evil\x1b]0;title\x07\nname"
    c.write(name, text(1000, 1))
    write_file(c.object_path("broken"), b"")
    c.flush()
    c.expect("evil", "broken")
    path = c.object_path(name)
    raw = bytearray(read_file(path))
    raw[len(raw) // 3] ^= 0xFF
    write_file(path, raw)
    done = c.ctl("verify", c.mnt, check=False)
    assert done.returncode == 1
    assert "\x1b" not in done.out + done.err and "\x07" not in done.out + done.err
    assert "evil" in done.out + done.err


def test_verify_of_what_was_never_flushed(cellar):
    """The object of a new file is empty until its first flush: no damage, unless nobody has
    the bytes."""
    cellar.write("a", b"not flushed")
    cellar.write("b", b"")
    assert "0 damaged" in cellar.ctl("verify", cellar.mnt).out
    assert "0 damaged" in cellar.ctl("verify", cellar.path("a")).out
    cellar.make_cold("a")
    os.truncate(cellar.object_path("a"), 0)
    found = cellar.ctl("verify", cellar.mnt, check=False)
    assert found.returncode == 1 and "1 damaged" in found.out
