"""How cellard starts, refuses, drains and ends; mount.cellar."""

import errno
import os
import re
import shutil
import signal
import subprocess
import threading

import pytest

from harness import (
    CELLARD,
    KIB,
    MIB,
    MOUNT_CELLAR,
    ROOT,
    SLOW,
    SOURCE,
    child,
    environment,
    errno_of,
    is_cellard,
    kill_quietly,
    mount_answers,
    mounts_at,
    read_file,
    run,
    text,
    wait_for,
    write_file,
    zstd_cat,
)

NO_STEPS = not os.path.isdir(os.path.join(SOURCE, "src"))


def cellard(box, *argv, program=CELLARD, env=None, timeout=60):
    """Runs cellard with output to files (a daemon keeps them open): (status, out, err)."""
    out, err = (os.path.join(box.logs, f"run.{n}") for n in ("out", "err"))
    with open(out, "wb") as o, open(err, "wb") as e:
        done = subprocess.run(
            [program, *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=o,
            stderr=e,
            env=environment(env),
            timeout=timeout * SLOW,
            check=False,
        )
    return done.returncode, read_file(out).decode(), read_file(err).decode()


def refused(box, *argv, says, status=None, program=CELLARD):
    """It ends with non-zero and one clear sentence that matches."""
    code, _, err = cellard(box, *argv, program=program)
    assert code != 0, "it should have been refused"
    if status is not None:
        assert code == status, err
    assert re.search(says, err, re.IGNORECASE), err
    assert "Sanitizer" not in err
    return err


def lock_pid(store):
    """The pid in the store's lock file."""
    found = re.search(r"^pid (\d+)$", read_file(os.path.join(store, ".cellar/lock")).decode(), re.M)
    return int(found.group(1)) if found else 0


def in_background(box, c, *extra, env=None):
    """Starts it as a daemon; returns its pid. The mount must answer at once."""
    status, _, err = cellard(box, *extra, c.store, c.mnt, env=env)
    assert status == 0, err
    assert mount_answers(c.mnt), "it returned 0 before the mount answered"
    pid = lock_pid(c.store)
    assert pid and is_cellard(pid)
    box.add_pid(pid)
    return pid


def gone(pid):
    return not is_cellard(pid)


def test_daemon_in_the_background(box):
    c = box.cellar()
    pid = in_background(box, c)
    write_file(c.path("f"), text(10 * KIB, 1))
    assert c.status()["pid"] == pid
    assert os.getsid(pid) != os.getsid(0), "a session of its own"
    assert os.readlink(f"/proc/{pid}/cwd") == "/", "it keeps no directory busy"
    c.umount()
    wait_for(lambda: gone(pid), 60, "the daemon to drain and end")
    assert zstd_cat(c.object_path("f")) == text(10 * KIB, 1)


def test_store_is_initialised_and_said_so(box):
    c = box.cellar()
    status, out, err = cellard(box, c.store, c.mnt)
    assert status == 0
    assert re.search("initiali[sz]ed a", out + err, re.IGNORECASE)
    box.add_pid(lock_pid(c.store))
    for name in ("store.id", "lock", "tmp", "pool.id", "catalog.db", "scratch"):
        assert os.path.exists(c.store_path(f".cellar/{name}")), name
    assert os.stat(c.store_path(".cellar")).st_mode & 0o777 == 0o700
    c.ctl("umount", c.mnt)
    wait_for(lambda: gone(lock_pid(c.store)), 60, "the end")
    status, out, err = cellard(box, c.store, c.mnt)
    assert status == 0
    assert not re.search("initiali[sz]ed a", out + err)
    box.add_pid(lock_pid(c.store))
    c.ctl("umount", c.mnt)


def test_version_and_help(box):
    status, out, err = cellard(box, "--version")
    assert status == 0 and re.match(r"cellard \d+\.\d+", out) and err == ""
    status, out, err = cellard(box, "--help")
    assert status == 0 and err == ""
    if NO_STEPS:
        return
    table = read_file(os.path.join(SOURCE, "src/base/options.def")).decode()
    names = re.findall(r"^OPTION_\w+\(\s*(\w+),", table, re.M)
    assert len(names) > 15
    for name in names:
        assert re.search(rf"\b{name}\b", out), f"--help says nothing of {name}"
    for default in ("3", "16M", "5s", "auto", "60s|1m"):
        assert re.search(default, out)
    assert max(len(line) for line in out.splitlines()) <= 80


@pytest.mark.parametrize(
    "option, says",
    [
        ("nonsense=1", "nonsense"),
        ("level=99", "level.*99|99.*level"),
        ("level=three", "level"),
        ("level", "level"),
        ("pool_size=12X", "pool_size.*12X"),
        ("pool_size=1", "pool_size"),
        ("frame_size=1K", "frame_size"),
        ("writeback_delay=-1", "writeback_delay"),
        ("writeback_delay=5 parsecs", "writeback_delay"),
        ("foreign_zst=maybe", "foreign_zst.*maybe"),
        ("create=perhaps", "create"),
        ("flushers=0", "flushers"),
        ("max_idle=99999999999999999999", "max_idle"),
        ("=1", "."),
    ],
)
def test_wrong_options(box, option, says):
    c = box.cellar()
    refused(box, "-f", "-o", option, c.store, c.mnt, says=says, status=2)
    assert not os.path.exists(c.store), "nothing is left behind"


def test_wrong_usage(box):
    c = box.cellar()
    refused(box, says="usage|STORE", status=2)
    refused(box, c.store, says="MOUNTPOINT", status=2)
    refused(box, c.store, c.mnt, "third", says="third|arguments", status=2)
    refused(box, "--wrong", c.store, c.mnt, says="--wrong", status=2)
    refused(box, "-o", says="-o", status=2)
    assert not os.path.exists(c.store)


def test_store_is_a_file(box):
    c = box.cellar()
    write_file(c.store, b"not a directory")
    refused(box, "-f", c.store, c.mnt, says="not a directory", status=1)
    assert read_file(c.store) == b"not a directory"
    os.unlink(c.store)
    os.symlink("nowhere", c.store)
    refused(box, "-f", c.store, c.mnt, says=re.escape(c.store), status=1)


def test_wrong_mount_points(box):
    c = box.cellar()
    refused(box, "-f", c.store, c.mnt + "/missing", says="missing", status=1)
    write_file(os.path.join(box.path, "file"), b"")
    refused(box, "-f", c.store, os.path.join(box.path, "file"), says="not a directory", status=1)
    assert not os.path.exists(c.store), "nothing is left behind"


def test_mount_point_is_taken(box):
    a, b = box.cellar("a"), box.cellar("b")
    a.start()
    err = refused(box, "-f", b.store, a.mnt, says="mount", status=1)
    assert a.mnt in err
    assert not os.path.exists(b.store)
    assert a.running and len(mounts_at(a.mnt)) == 1


def test_second_daemon_is_refused(box):
    c = box.cellar().start()
    other = box.dir("other.mnt")
    refused(box, "-f", c.store, other, says=rf"\b{c.pid}\b", status=1)
    assert not mounts_at(other)
    c.write("f", b"the first one goes on")
    c.flush()


def test_pool_belongs_to_one_store(box):
    a = box.cellar("a", pool=os.path.join(box.path, "pool")).start()
    b = box.cellar("b")
    # in use, by whom is said to a store; an empty directory does not become one for it
    refused(box, "-f", "-o", f"pool={a.opts['pool']}", b.store, b.mnt, says="holds no cellar", status=1)
    b.start()
    b.stop()
    refused(box, "-f", "-o", f"pool={a.opts['pool']}", b.store, b.mnt, says=str(a.pid), status=1)
    a.stop()
    # free, but of another store
    refused(box, "-f", "-o", f"pool={a.opts['pool']}", b.store, b.mnt, says="store|pool", status=1)
    # the right store with another, empty pool: its dirty files would not be seen
    empty = box.dir("empty")
    refused(box, "-f", "-o", f"pool={empty}", a.store, a.mnt, says="pool", status=1)
    refused(box, "-f", a.store, a.mnt, says="pool", status=1)
    a.start()
    a.write("f", b"dirty")
    a.kill9()
    c = box.cellar("c", pool=empty, new_pool="true")
    c.store = a.store
    c.expect("pool")
    c.start()  # told to
    c.stop()


def test_pool_under_the_mount(box):
    c = box.cellar()
    os.mkdir(c.path("pool"))
    refused(box, "-f", "-o", f"pool={c.path('pool')}", c.store, c.mnt, says="pool", status=1)
    refused(box, "-f", "-o", f"pool={c.mnt}", c.store, c.mnt, says="pool")
    assert not os.path.exists(c.store)
    assert os.listdir(c.path("pool")) == []


def test_store_under_the_mount(box):
    """A store below its own mount point would be hidden by the mount."""
    c = box.cellar()
    store = c.path("store")
    code, _, err = cellard(box, "-f", "-o", f"pool={c.mnt}/pool", store, c.mnt)
    assert code == 1 and err, "a pool under it is refused whatever the store is"
    assert os.listdir(c.mnt) == []


def test_no_create(box):
    c = box.cellar()
    config = os.path.join(box.path, "cellar.conf")
    write_file(config, f'store = "{c.store}"\nmountpoint = "{c.mnt}"\n'.encode())
    refused(box, "-f", "-o", "create=no", c.store, c.mnt, says="no cellar|does not exist", status=1)
    refused(box, "-f", "--config", config, says="no cellar|does not exist", status=1)
    assert not os.path.exists(c.store)
    os.mkdir(c.store)
    refused(box, "-f", "--config", config, says="no cellar", status=1)
    code, _, err = cellard(box, c.store, c.mnt, program=MOUNT_CELLAR)
    assert code != 0 and "no cellar" in err
    assert os.listdir(c.store) == []


def test_config_file(box):
    c = box.cellar()
    c.start()
    c.stop()
    config = os.path.join(box.path, "cellar.conf")
    write_file(
        config,
        f"""# a comment
store = "{c.store}"
mountpoint = "{c.mnt}"
level = 7
pool_size = 3M
writeback_delay = "1h"
foreign_zst = keep
""".encode(),
    )
    c.launch(argv=[CELLARD, "-f", "--config", config, "-o", "level=5"]).wait_up()
    options = c.status()["options"]
    assert options["level"] == "5", "-o goes before the file"
    assert options["pool_size"] == "3M"
    assert options["foreign_zst"] == "keep"
    assert c.status_limit() == 3 * MIB
    c.stop()
    for line, text_, says in (
        (2, "levle = 3", "levle"),
        (3, "level = 99", "level"),
        (2, "pool_size = lots", "pool_size"),
        (4, 'foreign_zst = "maybe"', "foreign_zst"),
    ):
        write_file(config, ("# x\n" * (line - 1) + text_ + "\n").encode())
        err = refused(box, "-f", "--config", config, c.store, c.mnt, says=says)
        assert f"{config}:{line}" in err, err
    refused(box, "-f", "--config", config + ".missing", c.store, c.mnt, says="missing")


def test_mount_helper(box):
    """mount(8) calls it as mount.cellar SOURCE TARGET -o rw,…"""
    c = box.cellar()
    c.start()
    c.write("f", b"content")
    c.stop()
    status, _, err = cellard(
        box, c.store, c.mnt, "-o", "rw,noexec,nofail,x-systemd.automount,level=4", program=MOUNT_CELLAR
    )
    assert status == 0, err
    assert mount_answers(c.mnt)
    box.add_pid(lock_pid(c.store))
    assert c.status()["options"]["level"] == "4"
    write_file(c.path("script"), b"#!/bin/sh\n")
    os.chmod(c.path("script"), 0o755)
    assert errno_of(subprocess.run, [c.path("script")], check=False) == errno.EACCES, "noexec"
    pid = lock_pid(c.store)
    c.umount()
    wait_for(lambda: gone(pid), 60, "the end")
    status, _, err = cellard(box, c.store, c.mnt, "-o", "wrong=1", program=MOUNT_CELLAR)
    assert status == 1 and "wrong" in err, "mount(8): 1 is wrong usage"
    status, _, err = cellard(box, c.store, c.mnt + ".missing", program=MOUNT_CELLAR)
    assert status in (2, 32) and err


def test_read_only(box):
    c = box.cellar()
    c.start()
    c.write("f", text(10 * KIB, 1))
    c.stop()
    c.opts["ro"] = None
    c.option_list = lambda: "ro"
    c.start()
    assert c.read("f") == text(10 * KIB, 1)
    assert errno_of(write_file, c.path("g"), b"x") == errno.EROFS
    assert errno_of(os.truncate, c.path("f"), 0) == errno.EROFS
    assert errno_of(os.unlink, c.path("f")) == errno.EROFS


def test_sigterm_drains(box):
    c = box.cellar(writeback_delay="1h").start()
    for i in range(30):
        c.write(f"f{i}", text(50 * KIB, i))
    c.stop("term")
    for i in range(30):
        assert zstd_cat(c.object_path(f"f{i}")) == text(50 * KIB, i)


def test_umount_drains(box):
    c = box.cellar(writeback_delay="1h").start()
    for i in range(30):
        c.write(f"f{i}", text(50 * KIB, i))
    c.stop("umount")
    for i in range(30):
        assert zstd_cat(c.object_path(f"f{i}")) == text(50 * KIB, i)


def test_cellarctl_umount(box):
    c = box.cellar(writeback_delay="1h").start()
    for i in range(30):
        c.write(f"f{i}", text(50 * KIB, i))
    c.ctl("umount", c.mnt)
    assert not mounts_at(c.mnt), "it returns when the mount is gone"
    for i in range(30):
        assert zstd_cat(c.object_path(f"f{i}")) == text(50 * KIB, i), "and everything is written"
    assert c.wait_end() == 0
    c.check_log()
    c.check_drained()


def test_sigterm_with_open_files(box):
    """A file held open for writing does not keep the daemon from ending; nothing is lost."""
    c = box.cellar(writeback_delay="1h").start()
    fd = os.open(c.path("f"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, text(100 * KIB, 1))
    c.proc.terminate()
    assert c.wait_end() == 0, c.log_text()
    errno_of(os.close, fd)
    assert not mounts_at(c.mnt)
    assert zstd_cat(c.object_path("f")) == text(100 * KIB, 1)
    c.start()
    assert c.read("f") == text(100 * KIB, 1)


def test_interrupt_is_like_sigterm(box):
    c = box.cellar(writeback_delay="1h").start()
    c.write("f", b"x")
    c.proc.send_signal(signal.SIGINT)
    assert c.wait_end() == 0
    assert zstd_cat(c.object_path("f")) == b"x"


def test_new_daemon_waits_for_a_draining_one(box):
    """Started while the old one drains after umount: it waits and then mounts."""
    c = box.cellar(writeback_delay="1h", flushers=1).start()
    for i in range(40):
        c.write(f"f{i}", text(400 * KIB, i))
    first = c.proc
    c.umount()
    draining = first.poll() is None
    c.proc = None
    c.start()
    assert draining, "it drained faster than this test could look"
    assert first.wait(60) == 0
    for i in range(40):
        assert c.read(f"f{i}") == text(400 * KIB, i)


def test_dead_mount_is_detached(box):
    c = box.cellar().start()
    c.write("f", b"x")
    c.flush()
    c.kill9()
    assert errno_of(os.stat, c.mnt) == errno.ENOTCONN
    c.start()
    assert re.search("dead|detach", c.log_text(), re.IGNORECASE), "and it is said"
    assert len(mounts_at(c.mnt)) == 1
    assert c.read("f") == b"x"


def test_dead_mount_of_another_store_is_left(box):
    """Only what is a dead mount of this store is detached."""
    a, b = box.cellar("a"), box.cellar("b")
    a.start()
    a.kill9()
    refused(box, "-f", b.store, a.mnt, says="mount|not connected", status=1)
    assert len(mounts_at(a.mnt)) == 1
    a.start()


def test_store_is_the_mount_point(box):
    """An existing directory mounted over itself: shown, written, and shrunk at the flush."""
    c = box.cellar(writeback_delay="1h")
    c.store = c.mnt
    c.opts["pool"] = os.path.join(box.path, "pool")
    hidden = os.open(c.mnt, os.O_RDONLY)  # the directory below the mount
    os.mkdir(c.path("sub"))
    for i in range(10):
        write_file(c.path(f"sub/f{i}.log"), text(200 * KIB, i))
    c.start()
    assert sorted(os.listdir(c.mnt)) == ["sub"]
    for i in range(10):
        assert c.read(f"sub/f{i}.log") == text(200 * KIB, i)
    with open(c.path("sub/f3.log"), "ab") as f:
        f.write(b"appended")
    c.write("new", text(300 * KIB, 20))
    c.flush()
    below = os.open("sub", os.O_RDONLY, dir_fd=hidden)
    names = sorted(os.listdir(below))
    assert "f3.log.zst" in names and "f3.log" not in names
    assert "f4.log" in names, "what was only read stays as it is"
    st = os.stat("f3.log.zst", dir_fd=below)
    assert st.st_size < 100 * KIB
    os.close(below)
    c.remount()
    assert c.read("sub/f3.log") == text(200 * KIB, 3) + b"appended"
    assert c.read("new") == text(300 * KIB, 20)
    c.stop()
    assert zstd_cat(os.path.join(c.mnt, "new.zst")) == text(300 * KIB, 20)
    assert sorted(os.listdir(c.mnt)) == [".cellar", "new.zst", "sub"]
    os.close(hidden)


def test_default_pool_over_itself(box):
    """STORE == MOUNTPOINT without pool=: the pool is outside, because SQLite needs a path."""
    c = box.cellar(writeback_delay="1h")
    c.store = c.mnt
    c.start()
    uuid = c.status()["uuid"]
    if ROOT:
        pool = f"/var/lib/cellar/{uuid}"
    else:
        pool = os.path.join(os.environ["XDG_STATE_HOME"], "cellar", uuid)
    box.cleanups.append(lambda: shutil.rmtree(pool, ignore_errors=True))
    assert os.path.exists(os.path.join(pool, "catalog.db"))
    c.write("f", b"over itself")
    c.opts["pool"] = pool  # where check_drained() looks; the same place
    c.remount()
    assert c.read("f") == b"over itself"
    c.stop()
    assert zstd_cat(os.path.join(c.mnt, "f.zst")) == b"over itself"


def test_it_keeps_off_its_own_mount(box):
    """A relative store and mount point, and the daemon's work while the mount is busy."""
    c = box.cellar()
    os.mkdir(c.store)
    c.launch(argv=["/bin/sh", "-c", f"cd {box.path} && exec {CELLARD} -f c.store c.mnt"]).wait_up()
    c.write("a/b/c", b"x")
    c.flush()
    assert c.stored("a/b/c") == b"x"
    assert c.status()["store"] == c.store


@pytest.mark.root
def test_mount_inside_the_store_is_not_entered(box):
    c = box.cellar()
    os.makedirs(c.store_path("other"))
    run("mount", "-t", "tmpfs", "none", c.store_path("other"))
    box.cleanups.append(lambda: subprocess.run(["umount", "-l", c.store_path("other")], check=False))
    write_file(c.store_path("other/f"), b"on another filesystem")
    c.expect("other")
    c.start()
    assert errno_of(os.listdir, c.path("other")) == errno.EXDEV
    assert c.ctl("verify", c.mnt, check=False).returncode in (0, 1)
    c.write("fine", b"x")
    c.stop()
    run("umount", c.store_path("other"))


def test_clean_log_at_debug_level(box):
    """Debug lines are lines: names with line ends cannot forge one."""
    c = box.cellar(log_level="debug", writeback_delay="20ms").start()
    c.write(b"evil\ncellard: error: forged".decode(), b"x")
    c.flush()
    c.evict(b"evil\ncellard: error: forged".decode(), check=False)
    assert not re.search(r"^cellard: error: forged", c.log_text(), re.M)
    assert "debug:" in c.log_text()
    c.expect("evil")


def test_start_while_starting(box):
    """Two daemons started at once: one serves, the other is refused; never both, never none."""
    a, b = box.cellar("a"), box.cellar("b")
    b.store = a.store
    results = {}

    def go(c):
        results[c] = c.launch()

    threads = [threading.Thread(target=go, args=(c,)) for c in (a, b)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    wait_for(
        lambda: (not a.running and mount_answers(b.mnt)) or (not b.running and mount_answers(a.mnt)),
        30,
        "one to win",
    )
    loser, winner = (a, b) if not a.running else (b, a)
    loser.expect("already|locked|served")
    assert loser.proc.returncode == 1
    assert str(winner.pid) in loser.log_text()
    winner.write("f", b"x")
    winner.stop()


def test_damaged_store_id(box):
    c = box.cellar().start()
    c.stop()
    path = c.store_path(".cellar/store.id")
    os.chmod(path, 0o600)
    write_file(path, b"rubbish\n")
    refused(box, "-f", c.store, c.mnt, says="store.id|not a cellar|damaged", status=1)
    write_file(path, b"cellar-store 99\nuuid x\n")
    refused(box, "-f", c.store, c.mnt, says="store.id|version|newer", status=1)
    assert not mounts_at(c.mnt)


def test_kill9_leaves_the_lock_free(box):
    c = box.cellar().start()
    pid = c.pid
    c.kill9()
    assert lock_pid(c.store) in (0, pid)
    c.start()
    assert lock_pid(c.store) == c.pid


def test_long_paths(box):
    """A mount point path near PATH_MAX: sockets and SQLite have shorter limits of their own."""
    deep = box.path
    while len(deep) < 3000:
        deep = os.path.join(deep, "d" * 200)
        os.mkdir(deep)
    c = box.cellar()
    c.mnt = os.path.join(deep, "mnt")
    os.mkdir(c.mnt)
    c.start()
    c.write("f", b"x")
    c.flush()
    assert c.stored("f") == b"x"
    c.stop()
    c.mnt = os.path.join(box.path, "c.mnt")


def test_strange_paths(box):
    """Blanks, commas and line ends in the paths of store and mount point."""
    c = box.cellar()
    c.store = os.path.join(box.path, "st ore,with=ro,\\and")
    c.mnt = os.path.join(box.path, "mo unt,\\x")
    os.mkdir(c.mnt)
    c.start()
    c.write("f", b"x")
    c.flush()
    assert c.stored("f") == b"x"
    assert c.status()["store"] == c.store


@pytest.mark.root
def test_other_users_may_look(cellar):
    """Root's mounts are for all users (allow_other), and default_permissions holds."""
    os.chmod(cellar.mnt, 0o755)
    cellar.write("f", b"x")
    assert child(lambda: os.listdir(cellar.mnt), uid=12001) == ["f"]
    assert errno_of(child, lambda: write_file(cellar.path("g"), b""), uid=12001) == errno.EACCES


def test_no_leftover_processes(box):
    c = box.cellar()
    pid = in_background(box, c)
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, check=False).stdout
    assert children == b"", "the daemon leaves no helper behind"
    kill_quietly(pid)
    wait_for(lambda: gone(pid), what="the end")
