"""Bad input and faults: each gets a message with place, cause and remedy, and the documented exit code or a retry;
after healing nothing is lost."""
import os
import subprocess
import tempfile
import threading
import time

import pytest

from tests.support import scratch, workloads
from tests.support.cluster import Cluster
from tests.support.proxy import Proxy
from tests.support.world import World

T = {"t": {"from": "public.t"}}
PAIR = [("SELECT * FROM t", "SELECT * FROM team.t")]


def with_url(world, url, name="connector.yaml", **more):
    return world.write(name, {**world.config, "source": {"postgres": {**world.config["source"]["postgres"], "url": url, **more}}})


def stops_or_says(process, pattern, seconds=30):
    """The line that says it, whether the process retries or has ended."""
    return process.wait_log(rf"(?i)[^\n]*{pattern}[^\n]*", seconds).group(0)


def test_wrong_password(world):
    world.source.sql("DROP ROLE IF EXISTS pw; CREATE ROLE pw LOGIN SUPERUSER PASSWORD 'right'")
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    connector = world.connector(file=with_url(world, world.source.tcp_url(world.db, "pw", "wrong")), ready=False)
    line = stops_or_says(connector, "password")
    assert "source" in line and "wrong@" not in line and ":wrong" not in line
    assert connector.running()  # the secret may be mended meanwhile (P67)
    assert connector.stop() == 0


def test_a_mended_password_file_is_read_again(world):
    world.source.sql("DROP ROLE IF EXISTS pwf; CREATE ROLE pwf LOGIN SUPERUSER PASSWORD 'right'")
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    secret = world.write("secret", "wrong\n")
    connector = world.connector(file=with_url(world, world.source.tcp_url(world.db, "pwf"), password_file=secret), ready=False)
    connector.wait_log("password")
    world.write("secret", "right\n")
    world.wait_streaming(connector, 60)


def test_wrong_database(world):
    connector = world.connector(file=with_url(world, world.source.url("no_such_db")), ready=False)
    assert "no_such_db" in stops_or_says(connector, "no_such_db")
    if connector.running():
        assert connector.stop() == 0


def test_wrong_host_and_port(world):
    connector = world.connector(file=with_url(world, world.source.tcp_url(world.db, port=1)), ready=False)
    stops_or_says(connector, "(refused|no answer|could not connect)")
    assert connector.running()
    assert connector.stop() == 0


def test_wal_level_below_logical(target):
    own = Cluster("replica", wal_level="replica").start()
    world = World(own, target)
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    connector = world.connector(ready=False)
    line = stops_or_says(connector, "wal_level")
    assert "ALTER SYSTEM SET wal_level" in line
    code = connector.wait_exit()
    assert code == 4, connector.tail()
    own.configure(wal_level="logical")
    own.restart()
    connector = world.connector()
    world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t VALUES (1)")
    world.wait_equal(PAIR)
    world.close()
    own.destroy()


def test_missing_privilege(world):
    world.source.sql("DROP ROLE IF EXISTS meek; CREATE ROLE meek LOGIN")
    world.src("CREATE TABLE t (id int PRIMARY KEY); GRANT SELECT ON t TO meek")
    file = with_url(world, world.source.url(world.db, "meek"))
    connector = world.connector(file=file, ready=False)
    line = stops_or_says(connector, "REPLICATION")
    assert "meek" in line and "ALTER ROLE" in line
    world.source.sql("ALTER ROLE meek REPLICATION")
    world.src("CREATE PUBLICATION spate FOR TABLE t")  # only the owner may: README says so
    if connector.running():
        connector.kill()
    connector = world.connector(file=file)
    world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t VALUES (1)")
    world.wait_equal(PAIR)


def test_missing_table(world):
    world.src("CREATE TABLE orders (id int PRIMARY KEY)")
    connector = world.connector(file=world.connector_file(tables=["public.ordres"]), ready=False)
    line = stops_or_says(connector, "ordres")
    assert "public.orders" in line
    assert connector.wait_exit() in (2, 4), connector.tail()
    assert not world.source.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [world.slot()])


def test_a_table_without_identity_does_not_break_the_application(world):
    """P47: it is left out and named; the application's UPDATE goes on working."""
    world.src("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE nokey (v int)")
    connector = world.connector()
    assert "ALTER TABLE" in stops_or_says(connector, "nokey")
    world.src("INSERT INTO nokey VALUES (1); UPDATE nokey SET v = 2; INSERT INTO t VALUES (1)")
    world.check_bus()
    assert world.src("SELECT tablename FROM pg_publication_tables") == [("t",)]


def test_nothing_is_made_without_being_asked(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.config["source"]["postgres"]["create"] = False
    connector = world.connector(ready=False)
    line = stops_or_says(connector, "CREATE PUBLICATION")
    assert "pg_create_logical_replication_slot" in line or "CREATE_REPLICATION_SLOT" in line
    assert connector.wait_exit() in (2, 4)
    assert world.src("SELECT count(*) FROM pg_publication") == [(0,)]


def test_target_down_and_back(world):
    own = Cluster("tgt2").start()
    world.target = own
    own.create_database(world.db)
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    sink = world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t VALUES (1, 'a')")
    world.wait_equal(PAIR)
    own.stop("immediate")
    world.src("INSERT INTO t SELECT i, 'b' FROM generate_series(2, 500) i; UPDATE t SET v = 'c' WHERE id = 1")
    stops_or_says(sink, "target")
    assert sink.running()
    own.start()
    world.wait_equal(PAIR)
    assert sink.running()
    world.close()
    own.destroy()


def test_target_down_at_start(world):
    own = Cluster("tgt3")
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    sink = world.sink(world.sink_file("team", T, url=own.url("postgres")))
    stops_or_says(sink, "target")
    assert sink.running()
    own.start()
    world.src("INSERT INTO t VALUES (1, 'a')")
    scratch.until(lambda: own.sql("SELECT to_regclass('team.t')")[0][0] and own.sql("SELECT * FROM team.t") == [(1, "a")], lambda: "the row is there:" + sink.tail(), 40)
    sink.kill()
    own.destroy()


def test_source_restarted_under_load(target, seed):
    own = Cluster("src2").start()
    world = World(own, target)
    workloads.prepare(world)
    connector = world.connector()
    sink = world.sink(world.sink_file("team", workloads.MIRROR))
    workloads.load(world)
    with workloads.Loads(world, seed):
        for mode in ("fast", "immediate", "fast", "immediate"):
            begin = workloads_done(world)
            scratch.until(lambda: workloads_done(world) > begin + 30, "the load goes on")
            own.restart(mode, seconds=20)
    world.wait_equal(workloads.mirror_pairs("team"))
    world.check_bus(sample=20)
    assert connector.running() and sink.running()
    world.close()
    own.destroy()


def workloads_done(world):
    try:
        return world.src("SELECT coalesce(sum(n), 0) FROM w1_last")[0][0]
    except Exception:
        return -1


def test_fast_shutdown_of_the_source_is_not_held_up(target):
    """P10: unpublished WAL, and a transaction that was open: the server waits for us to confirm all of it."""
    own = Cluster("src3", wal_sender_timeout="60s").start()
    world = World(own, target)
    world.src("CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA private; CREATE TABLE private.noise (x int, filler text)")
    connector = world.connector(file=world.connector_file(heartbeat="60s"))
    world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t VALUES (1)")
    world.wait_equal(PAIR)
    stop = threading.Event()

    def noise():
        try:
            cursor = own.connect(world.db).cursor()
            while not stop.is_set():
                cursor.execute("INSERT INTO private.noise SELECT i, repeat('x', 100) FROM generate_series(1, 500) i")
        except Exception:
            pass  # the shutdown ends it

    loader = threading.Thread(target=noise)
    loader.start()
    scratch.until(lambda: world.src("SELECT count(*) FROM private.noise")[0][0] > 20000, "there is unpublished WAL")
    open_transaction = own.connect(world.db, autocommit=False)
    open_transaction.cursor().execute("INSERT INTO t SELECT generate_series(2, 5000)")
    took = own.stop("fast", seconds=30)
    stop.set()
    loader.join(20)
    assert took < 5, f"the shutdown took {took:.1f} s"
    assert connector.running()
    own.start()
    world.wait_streaming(connector)
    world.src("INSERT INTO t VALUES (9999)")
    world.wait_equal(PAIR)
    world.check_bus()
    world.close()
    own.destroy()


def flip_bytes(what):
    return {"wrong kind": lambda body: b"\x7f" + body[1:] if body[:1] == b"I" else body,
            "cut short": lambda body: body[:-3] if body[:1] == b"I" else body,
            "endless column": lambda body: body[:9] + b"\x7f\xff\xff\xff" + body[13:] if body[:1] == b"I" else body,
            "wrong column count": lambda body: body[:6] + b"\x00\x09" + body[8:] if body[:1] == b"I" else body,
            "wrong relation": lambda body: b"I\xff\xff\xff\xff" + body[5:] if body[:1] == b"I" else body,
            "more than there is": lambda body: body + b"\x00" if body[:1] == b"C" else body}[what]


@pytest.mark.parametrize("what", ["wrong kind", "cut short", "endless column", "wrong column count", "wrong relation", "more than there is"])
def test_garbage_in_the_protocol(world, what):
    """F14 without TLS: nothing of it is published, the text names the place, and healed all is there."""
    world.source.sql("DO $$BEGIN CREATE ROLE wire LOGIN SUPERUSER PASSWORD 'wire'; EXCEPTION WHEN duplicate_object THEN NULL; END$$")
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    proxy = Proxy(world.source.port)
    file = with_url(world, world.source.tcp_url(world.db, "wire", "wire", port=proxy.port))
    connector = world.connector(file=file)
    world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t VALUES (1, 'whole')")
    world.wait_equal(PAIR)
    proxy.flip = flip_bytes(what)
    world.src("INSERT INTO t VALUES (2, 'damaged on the way')")
    line = stops_or_says(connector, "(level=error|level=warn)[^\n]*(expected|describ|columns|ends after|not protocol|contradict)")
    assert proxy.flipped
    # It tries once more; since the same bytes come again, it stops.
    assert connector.wait_exit() == 1, connector.tail()
    assert "lsn=" in line
    proxy.flip = None
    world.connector(file=file)
    world.src("INSERT INTO t VALUES (3, 'later')")
    world.wait_equal(PAIR)
    assert world.tgt("SELECT count(*) FROM team.t") == [(3,)]
    assert world.check_bus()["ops"]["insert"] == 3
    proxy.close()


def test_network_cut_and_blackhole(world):
    world.source.sql("DO $$BEGIN CREATE ROLE wire LOGIN SUPERUSER PASSWORD 'wire'; EXCEPTION WHEN duplicate_object THEN NULL; END$$")
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    proxy = Proxy(world.source.port)
    connector = world.connector(file=with_url(world, world.source.tcp_url(world.db, "wire", "wire", port=proxy.port)))
    world.sink(world.sink_file("team", T))
    with world.source.connect(world.db, autocommit=False) as connection, connection.cursor() as cursor:
        for turn in range(3):
            cursor.execute("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(%s, %s) g", [turn * 20000, turn * 20000 + 19999])
            connection.commit()
            proxy.cut()  # in the middle of what is being sent
    proxy.mode = "blackhole"
    world.src("INSERT INTO t VALUES (-1, 'in the dark')")
    scratch.until(lambda: not world.source.sql("SELECT 1 FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE slot_name = %s", [world.slot()]),
                  "the server gives the silent connection up", 30)
    proxy.mode = "pass"
    proxy.cut()
    world.wait_equal(PAIR)
    assert connector.running()
    assert world.check_bus(sample=100)["ops"]["insert"] == 60001
    proxy.close()


def test_walsender_terminated(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    connector = world.connector()
    world.sink(world.sink_file("team", T))
    for turn in range(5):
        world.src("INSERT INTO t SELECT generate_series(%s, %s)", [turn * 100, turn * 100 + 99])
        world.source.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [world.slot()])
        world.wait_streaming(connector)
    world.wait_equal(PAIR)
    assert world.check_bus()["ops"]["insert"] == 500


@pytest.fixture
def small_disk():
    """A file system of 24 MB, which a bus outgrows soon."""
    if os.getuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    path = tempfile.mkdtemp(prefix="spate-small-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", path], stderr=subprocess.PIPE).returncode:
        os.rmdir(path)
        pytest.skip("needs root to mount a small tmpfs, and this container may not mount")

    def unmount():
        subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL)
        os.rmdir(path)

    scratch.at_end(unmount)
    yield path
    scratch.forget(unmount)
    unmount()


@pytest.mark.parametrize("which", ["path", "hot"])
def test_full_disk_under_the_bus(world, small_disk, which):
    """Reading pauses, the connection lives, nothing is confirmed; with room again it goes on without a restart."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    filler = os.path.join(small_disk, "filler")
    world.bus["local"][which] = os.path.join(small_disk, "bus")
    if which == "hot":
        os.mkdir(world.bus["local"]["hot"])
        world.bus["local"]["segment_bytes"] = "1MiB"
    else:
        world.bus["local"]["segment_bytes"] = "4MiB"
    connector = world.connector()
    world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t VALUES (0, 'first')")
    world.wait_equal(PAIR)
    with open(filler, "wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    for part in range(8):
        world.src("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(%s, %s) g", [part * 2000 + 1, part * 2000 + 2000])
    if which == "path":
        line = stops_or_says(connector, "(no space|disk.full|ENOSPC)")
        assert small_disk in line or "bus" in line
        assert connector.running()
    os.unlink(filler)
    if which == "path":
        # 16 MB of rows and their frames need more than there is: give it room.
        subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    world.wait_equal(PAIR)
    assert connector.running()
    assert world.check_bus(sample=100)["ops"]["insert"] == 16001
    world.stop_all()


def test_a_full_target_disk_is_waited_out(world, small_disk):
    """53100 is degraded operation: the sink retries and goes on when there is room."""
    uid, gid, _ = world.target.user
    space = os.path.join(small_disk, "space")
    os.mkdir(space)
    os.chown(space, uid, gid)
    os.chmod(small_disk, 0o755)
    world.target.sql(f"CREATE TABLESPACE small LOCATION '{space}'")
    world.tgt("CREATE SCHEMA team; CREATE TABLE team.t (id int PRIMARY KEY, v text) TABLESPACE small")
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    sink = world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t SELECT g, repeat(md5(g::text), 40) FROM generate_series(1, 30000) g")
    stops_or_says(sink, "53100")
    assert sink.running()
    subprocess.run(["mount", "-o", "remount,size=300m", small_disk], check=True)
    world.wait_equal(PAIR)
    assert sink.running()
    world.stop_all()
    scratch.until(lambda: not world.target.sql("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'spate sink%%' AND datname = %s", [world.db]),
                  "what the killed sink had begun has ended")
    world.tgt("DROP SCHEMA team CASCADE")
    world.target.sql("DROP TABLESPACE small")


def test_target_session_killed_and_locked(world):
    """F63: terminated sessions and a lock that somebody holds are waited out."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int)")
    world.connector()
    sink = world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t SELECT g, 0 FROM generate_series(1, 100) g")
    world.wait_equal(PAIR)
    with world.target.connect(world.db, autocommit=False) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE team.t IN ACCESS EXCLUSIVE MODE")
        world.src("UPDATE t SET v = 1")
        scratch.until(lambda: world.tgt("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"), "the sink waits for the lock")
        world.tgt("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
        holder.rollback()
    world.src("UPDATE t SET v = v + 1 WHERE id < 50")
    world.wait_equal(PAIR)
    assert sink.running()


def test_hostile_settings_of_the_role(world):
    """F25: what a role's settings would change in the text is pinned (P79)."""
    world.source.sql("DROP ROLE IF EXISTS hostile; CREATE ROLE hostile LOGIN SUPERUSER")
    for setting in ("datestyle = 'SQL, DMY'", "intervalstyle = iso_8601", "extra_float_digits = 0", "bytea_output = escape",
                    "timezone = 'Asia/Kolkata'", "statement_timeout = '1s'", "idle_session_timeout = '1s'", "search_path = private"):
        world.source.sql(f"ALTER ROLE hostile SET {setting}")
    world.src("CREATE TABLE t (id int PRIMARY KEY, d timestamptz, i interval, f float8, b bytea)")
    connector = world.connector(file=with_url(world, world.source.url(world.db, "hostile")))
    world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t VALUES (1, '2026-02-03 04:05:06.7+00', '1 year 2 days 03:04:05', 0.1::float8 + 0.2, '\\xdeadbeef')")
    after = world.messages("public.t", count=1)[0]["after"]
    assert after == {"id": 1, "d": "2026-02-03 04:05:06.7+00", "i": "1 year 2 days 03:04:05", "f": 0.30000000000000004, "b": "\\xdeadbeef"}
    world.wait_equal(PAIR)
    assert connector.running()


def test_told_to_stop_while_the_brokers_are_away(world):
    file = world.connector_file(bus={"kafka": {"brokers": "127.0.0.1:9"}})
    connector = world.connector(file=file, ready=False)
    connector.wait_log("Connection refused")
    assert connector.stop(10) == 0
    assert "told to stop" not in connector.text(), "an order that was followed is no trouble to be told of"
