"""Real programs on the mount, each asked for its own verdict, before and after flush, eviction
and remount."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time

import pytest

from harness import KIB, SOAK, environment, read_file, reap, run, spawn, text, wait_for, write_file


def make_everything_cold(c):
    c.flush()
    c.remount()
    names = [os.fsdecode(os.path.relpath(os.path.join(w, n), c.mnt)) for w, _, ns in os.walk(c.mnt) for n in ns]
    warm = c.scratches()
    c.make_cold(*[n for n in names if os.lstat(c.path(n)).st_ino in warm])


def sources(top, files=60):
    """A tree of text such as a project has."""
    for i in range(files):
        where = os.path.join(top, f"dir{i % 7}", f"sub{i % 3}")
        os.makedirs(where, exist_ok=True)
        write_file(os.path.join(where, f"file{i}.txt"), text((i * 977) % (40 * KIB) + 1, i))
    os.symlink("dir0", os.path.join(top, "link"))
    os.chmod(os.path.join(top, "dir1/sub1/file1.txt"), 0o755)


# ---- git ----


def history(commits):
    """A fast-import stream: a history with merges, renames, deletions and modes."""
    out = []
    for i in range(commits):
        when = 1_600_000_000 + i * 1000
        who = f"committer Some One <some.one@example.com> {when} +0000\n"
        branch = "refs/heads/main" if i % 10 < 7 else "refs/heads/side"
        out.append(f"commit {branch}\nmark :{i + 1}\n{who}data 9\nchange{i % 1000:03}\n")
        if branch.endswith("side") and i % 10 == 7:
            out.append(f"from :{i}\n")
        elif branch.endswith("main") and i and i % 10 == 0:
            out.append(f"from :{i - 3}\nmerge :{i}\n")
        for j in range(3):
            name = f"src/part{(i + j) % 9}/file{(i * 7 + j) % 40}.c"
            body = text((i * 331 + j * 77) % 5000 + 1, i * 3 + j).decode()
            out.append(f"M {'100755' if j == 2 else '100644'} inline {name}\ndata {len(body)}\n{body}\n")
        if i % 17 == 16:
            out.append(f"D src/part{i % 9}\n")
    return "".join(out).encode()


@pytest.mark.limit(240)
def test_git(box, mode):
    """A history comes in, is packed and checked; nothing makes git read an unchanged file
    again, i.e. numbers, sizes and times are the same to the last digit."""
    c = box.cellar(writeback_delay="1h", **mode).start()
    top = c.path("repo")

    def git(*args, **kw):
        env = environment(
            {"HOME": box.path, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "n", "GIT_AUTHOR_EMAIL": "e",
             "GIT_COMMITTER_NAME": "n", "GIT_COMMITTER_EMAIL": "e", **kw.pop("env", {})}
        )
        return run("git", "-C", top, "-c", "gc.auto=0", *args, env=env, **kw)

    os.mkdir(top)
    git("init", "-q", "-b", "main")
    subprocess.run(
        ["git", "-C", top, "fast-import", "--quiet"], input=history(800 if SOAK else 120), check=True
    )
    git("checkout", "-q", "-f", "main")
    git("fsck", "--strict", "--full")
    assert git("status", "--porcelain").out == ""
    files = int(git("ls-files").out.count("\n"))
    assert files > 20

    def clean_without_reading(when):
        """git's trace says how many files it had to hash."""
        # all entries are older than the index: none is "racily clean"
        trace = os.path.join(box.path, f"trace-{when}")
        assert git("status", "--porcelain", env={"GIT_TRACE2_EVENT": trace}).out == "", when
        raw = git("diff-files", "--raw").out  # looks at the stat data alone
        assert raw == "", f"{when}: git sees changed stat data:\n{raw[:500]}"
        assert os.path.getsize(trace) > 0

    # an index newer than all files
    wait_for(lambda: time.time() > os.stat(c.path("repo/.git/index")).st_mtime + 1.1)
    git("update-index", "-q", "--refresh")
    os.utime(c.path("repo/.git/index"))
    clean_without_reading("fresh")
    c.flush()
    clean_without_reading("flushed")
    make_everything_cold(c)
    before = c.counter("hydrations") if "hydrations" in c.status()["counters"] else None
    clean_without_reading("cold")
    if before is not None:
        read = c.counter("hydrations") - before
        assert read < files / 2, f"{read} of {files} files were hydrated to say that nothing changed"
    git("gc", "-q", "--aggressive")
    git("fsck", "--strict", "--full")
    make_everything_cold(c)
    git("fsck", "--strict", "--full")
    clean_without_reading("packed")
    write_file(c.path("repo/src/new.c"), b"new\n")
    git("add", "-A")
    git("commit", "-q", "-m", "more")
    git("checkout", "-q", "side")
    git("checkout", "-q", "main")
    run("git", "clone", "-q", top, c.path("clone"))
    assert run("git", "-C", c.path("clone"), "rev-parse", "HEAD").out == git("rev-parse", "HEAD").out
    make_everything_cold(c)
    run("git", "-C", c.path("clone"), "fsck", "--strict", "--full")
    assert git("status", "--porcelain").out == ""


# ---- SQLite ----


@pytest.mark.limit(150)
def test_sqlite(box, mode):
    """WAL mode, several processes that write, one that flushes; nothing is lost or torn."""
    c = box.cellar(writeback_delay="50ms", max_dirty_age="1s", **mode).start()
    path = c.path("data.db")
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    db.execute("CREATE TABLE t (who INTEGER, n INTEGER, body TEXT, PRIMARY KEY (who, n))")
    db.commit()
    rows = 600 if SOAK else 100

    def write(who):
        mine = sqlite3.connect(path, timeout=60)
        for n in range(rows):
            with mine:
                mine.execute("INSERT INTO t VALUES (?, ?, ?)", (who, n, text(500, n).decode()))
        mine.close()

    pids = [spawn(write, who) for who in range(3)]
    for _ in range(3):
        c.flush()
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
    assert [reap(p, 120) for p in pids] == [0, 0, 0]

    def check(d):
        assert d.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert d.execute("SELECT who, count(*) FROM t GROUP BY who").fetchall() == [
            (w, rows) for w in range(3)
        ]

    check(db)
    db.close()
    make_everything_cold(c)
    db = sqlite3.connect(path)
    check(db)
    db.execute("VACUUM")
    db.execute("PRAGMA journal_mode=DELETE")
    check(db)
    db.close()
    c.flush()
    copy = os.path.join(box.path, "copy.db")
    write_file(copy, c.stored("data.db"))
    check(sqlite3.connect(copy))


# ---- copying and archives ----


def rsync(source, target):
    """What it would have to send, and its statistics."""
    options = "-aHX" if os.geteuid() else "-aHAX"
    done = run("rsync", options, "--itemize-changes", "--stats", source + "/", target + "/")
    changed = [line for line in done.out.splitlines() if re.match(r"[<>ch.*][fdLDS][^ ]{9} ", line)]
    sent = int(re.search(r"Literal data: ([\d,]+)", done.out).group(1).replace(",", ""))
    return changed, sent


def test_rsync(box, mode):
    """In and out again; the second run has nothing to do, also after flush and remount."""
    c = box.cellar(writeback_delay="1h", **mode).start()
    there = box.dir("there")
    sources(there)
    os.link(f"{there}/dir0/sub0/file0.txt", f"{there}/hard-link")
    os.setxattr(f"{there}/dir1/sub1/file1.txt", "user.note", b"n")
    os.utime(f"{there}/dir2", ns=(1, 1_111_111_111_111_111_111))
    os.mkdir(c.path("here"))
    changed, sent = rsync(there, c.path("here"))
    assert len(changed) > 60 and sent > 0
    for when in ("fresh", "flushed", "cold"):
        if when == "flushed":
            c.flush()
        elif when == "cold":
            make_everything_cold(c)
        assert rsync(there, c.path("here")) == ([], 0), when
    back = box.dir("back")
    rsync(c.path("here"), back)
    make_everything_cold(c)
    assert rsync(c.path("here"), back) == ([], 0)
    run("diff", "-r", "--no-dereference", there, back)
    assert os.stat(f"{back}/hard-link").st_nlink == 2
    assert rsync(there, back) == ([], 0)


def test_tar(box, mode):
    """GNU tar and bsdtar, in and out, with holes; --compare has nothing to say."""
    c = box.cellar(writeback_delay="1h", **mode).start()
    there = box.dir("there")
    sources(there, 30)
    with open(f"{there}/sparse", "wb") as f:
        f.truncate(1 << 20)
        f.seek(500_000)
        f.write(b"island")
    for i, program in enumerate(("tar", "bsdtar")):
        archive = os.path.join(box.path, f"{program}.tar")
        run(program, "-cf", archive, "-C", there, ".")
        top = c.path(program)
        os.mkdir(top)
        run(program, "-xpf", archive, "-C", top)
        run("tar", "--compare", "-f", archive, "-C", top)
        c.flush()
        run("tar", "--compare", "-f", archive, "-C", top)
        make_everything_cold(c)
        run("tar", "--compare", "-f", archive, "-C", top)
        again = os.path.join(box.path, f"again-{i}.tar")
        for sparse in ([], ["-S"]):
            options = sparse if program == "tar" else []
            run(program, *options, "-cf", again, "-C", top, ".")
            out = box.dir(f"out-{program}-{len(sparse)}")
            run(program, "-xpf", again, "-C", out)
            run("diff", "-r", "--no-dereference", there, out)
    inside = c.path("inside.tar.gz")
    run("tar", "-czf", inside, "-C", c.path("tar"), ".")
    run("tar", "--compare", "-zf", inside, "-C", c.path("tar"))


@pytest.mark.limit(150)
def test_backup(box, mode):
    """restic: the second backup finds no file new or changed, so it reads none."""
    c = box.cellar(writeback_delay="1h", **mode).start()
    sources(c.mnt, 40)
    repository = os.path.join(box.path, "repository")
    env = environment({"RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": repository, "HOME": box.path})

    def restic(*args):
        return run("restic", "--no-cache", *args, env=env)

    def backup():
        lines = restic("backup", "--json", c.mnt).out.splitlines()
        summary = [json.loads(line) for line in lines if '"summary"' in line][-1]
        return summary["files_new"], summary["files_changed"], summary["files_unmodified"]

    restic("init")
    assert backup() == (40, 0, 0)
    c.flush()
    assert backup() == (0, 0, 40), "flushed"
    make_everything_cold(c)
    warm = c.scratches()
    assert backup() == (0, 0, 40), "cold"
    assert c.scratches() == warm, "it read files"
    with open(c.path("dir0/sub0/file0.txt"), "ab") as f:
        f.write(b"more")
    assert backup() == (0, 1, 39)
    restic("check", "--read-data")
    restic("restore", "latest", "--target", box.dir("restored"))
    run("diff", "-r", "--no-dereference", c.mnt, os.path.join(box.path, "restored") + c.mnt)


# ---- building ----


@pytest.mark.limit(150)
def test_make(box, mode):
    """make -j2 of a small project: the program works, and make finds nothing to do after it."""
    c = box.cellar(writeback_delay="20ms", **mode).start()
    parts = 12
    for i in range(parts):
        c.write(f"p/part{i}.c", f'#include "all.h"\nint part{i}(void) {{ return {i}; }}\n'.encode())
    c.write("p/all.h", "".join(f"int part{i}(void);\n" for i in range(parts)).encode())
    calls = " + ".join(f"part{i}()" for i in range(parts))
    c.write("p/main.c", f'#include <stdio.h>\n#include "all.h"\nint main(void) {{ printf("%d\\n", {calls}); }}\n'.encode())
    c.write(
        "p/Makefile",
        b"OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))\nprogram: libparts.a main.o\n"
        b"\t$(CC) -o $@ main.o libparts.a\nlibparts.a: $(filter-out main.o,$(OBJECTS))\n"
        b"\t$(AR) rc $@ $^\n%.o: %.c all.h Makefile\n\t$(CC) -O1 -c $< -o $@\n",
    )
    run("make", "-j2", "-C", c.path("p"))
    assert run(c.path("p/program")).out == f"{sum(range(parts))}\n"
    for when in ("built", "cold"):
        if when == "cold":
            make_everything_cold(c)
        assert run("make", "-q", "-C", c.path("p"), check=False).returncode == 0, when
    assert run(c.path("p/program")).out == f"{sum(range(parts))}\n"
    wait_for(lambda: time.time() > os.stat(c.path("p/program")).st_mtime + 0.02)
    os.utime(c.path("p/part3.c"))
    assert "part3.c" in run("make", "-C", c.path("p")).out


# ---- logs, mail, editing ----


def test_tail_follows(box, mode):
    """tail -f of a log that is appended to, flushed meanwhile and rotated away."""
    c = box.cellar(writeback_delay="20ms", max_dirty_age="1s", **mode).start()
    path = c.write("log", b"first\n")
    out = os.path.join(box.path, "tailed")
    with open(out, "wb") as f, subprocess.Popen(
        ["tail", "-n", "+1", "-s", "0.05", "-F", path], stdout=f, stderr=subprocess.DEVNULL
    ) as p:
        try:
            want = b"first\n"
            for i in range(20):
                with open(path, "ab") as log:
                    log.write(b"line %d\n" % i)
                want += b"line %d\n" % i
                if i % 5 == 0:
                    c.flush()
            wait_for(lambda: read_file(out) == want, what="tail to show it all")
            os.rename(path, path + ".1")
            write_file(path, b"rotated\n")
            wait_for(lambda: read_file(out) == want + b"rotated\n", what="tail to follow the name")
        finally:
            p.kill()


def test_logrotate(box, mode):
    """Several rotations, by rename and by copying and truncating."""
    c = box.cellar(writeback_delay="20ms", **mode).start()
    os.chmod(c.mnt, 0o755)
    for name in ("moved", "cut"):
        c.write(f"{name}.log", b"")
    conf = os.path.join(box.path, "logrotate.conf")
    who = run("id", "-un").out.strip(), run("id", "-gn").out.strip()
    write_file(
        conf,
        f"{c.mnt}/moved.log {{\n rotate 3\n create 0640 {who[0]} {who[1]}\n}}\n"
        f"{c.mnt}/cut.log {{\n rotate 3\n copytruncate\n}}\n".encode(),
    )
    os.chmod(conf, 0o644)
    for i in range(5):
        for name in ("moved", "cut"):
            with open(c.path(f"{name}.log"), "ab") as f:
                f.write(text(3000, i))
        run("logrotate", "-f", "-s", os.path.join(box.path, "state"), conf)
        if i % 2:
            c.flush()
    make_everything_cold(c)
    for name in ("moved", "cut"):
        assert c.read(f"{name}.log") == b""
        for i in range(1, 4):
            assert c.read(f"{name}.log.{i}") == text(3000, 5 - i), (name, i)
        assert not os.path.exists(c.path(f"{name}.log.4"))
    assert os.stat(c.path("moved.log")).st_mode & 0o777 == 0o640


def test_maildir(box, mode):
    """Deliveries by several processes while one reads and moves: each mail once, whole."""
    import mailbox

    c = box.cellar(writeback_delay="20ms", **mode).start()
    top = c.path("Mail")
    mailbox.Maildir(top, create=True)
    count = 25

    def deliver(who):
        box_ = mailbox.Maildir(top)
        for n in range(count):
            box_.add(f"Subject: {who} {n}\n\n".encode() + text(2000, n))

    pids = [spawn(deliver, who) for who in range(3)]
    seen = []

    def collect():
        for name in os.listdir(os.path.join(top, "new")):
            os.rename(os.path.join(top, "new", name), os.path.join(top, "cur", name + ":2,S"))
            seen.append(name)
        return len(seen) >= 3 * count

    wait_for(collect, 60, "all mails")
    assert [reap(p) for p in pids] == [0, 0, 0]
    make_everything_cold(c)
    mails = mailbox.Maildir(top)
    assert len(mails) == len(set(seen)) == 3 * count
    assert sorted(m["Subject"] for m in mails) == sorted(
        f"{w} {n}" for w in range(3) for n in range(count)
    )
    assert os.listdir(os.path.join(top, "tmp")) == []


def save_like_vim(path, data):
    """backupcopy=no: the old one becomes the backup, a new file takes its name."""
    st = os.stat(path)
    os.rename(path, path + "~")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.fsync(fd)
    os.fchmod(fd, st.st_mode & 0o7777)
    os.close(fd)
    os.unlink(path + "~")


def test_editors(box, mode):
    """sed -i, saving by rename, appending by shell, patch-like replacement; cold each time."""
    c = box.cellar(writeback_delay="1h", **mode).start()
    want = text(50 * KIB, 1)
    path = c.write("f", want)
    os.chmod(path, 0o640)
    for i in range(3):
        c.make_cold("f")
        run("sed", "-i", f"s/kernel/KERNEL{i}/; s/KERNEL{i - 1}/{'K' * i}/", path)
        want = subprocess.run(
            ["sed", f"s/kernel/KERNEL{i}/; s/KERNEL{i - 1}/{'K' * i}/"], input=want, capture_output=True, check=True
        ).stdout
        assert c.read("f") == want
        c.make_cold("f")
        want += b"saved %d\n" % i
        save_like_vim(path, want)
        c.make_cold("f")
        run("sh", "-c", 'echo appended >>"$1"', "sh", path)
        want += b"appended\n"
        assert c.read("f") == want and os.stat(path).st_mode & 0o777 == 0o640
    c.flush()
    assert c.stored("f") == want
    assert sorted(os.listdir(c.mnt)) == ["f"]


def test_find_and_grep(box, mode):
    """They see on the mount what they see on a copy beneath."""
    c = box.cellar(writeback_delay="1h", **mode).start()
    there = box.dir("there")
    sources(there)
    run("cp", "-a", there + "/.", c.mnt)
    make_everything_cold(c)

    def both(*argv):
        outs = []
        for top in (there, c.mnt):
            done = subprocess.run(argv, cwd=top, capture_output=True, check=False, env=environment())
            outs.append((done.returncode, sorted(done.stdout.splitlines())))
        assert outs[0] == outs[1], argv
        return outs[0][1]

    assert both("find", ".", "-type", "f", "-size", "+4k", "-printf", "%p %s %m %n %T@\n")
    assert both("find", ".", "-newermt", "1980-01-01", "-name", "*.txt")
    assert both("find", "-L", ".", "-xtype", "l", "-o", "-path", "*link*")
    assert both("grep", "-rlE", "connection.*kernel", ".")
    assert both("grep", "-rc", "terminating", ".")
    assert both("sh", "-c", "find . -type f -print0 | xargs -0 md5sum")
    shutil.rmtree(there)
