"""Sinks that ask: when they are new, when a table or a column is, when they have missed something; and what they
do when they are refused, cancelled, or told to by a person."""
import json
import re
import signal

import pytest

from tests.support import scratch
from tests.support.desk import Control

ROWS = 5000
TABLE = {"t": {"from": "public.t"}}


def fill(world, rows=ROWS, full=False):
    world.src(f"CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t REPLICA IDENTITY {'FULL' if full else 'DEFAULT'}; INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, {rows}) g")


def equal(world, source="SELECT * FROM public.t ORDER BY 1", target="SELECT * FROM team.t ORDER BY 1"):
    world.wait_equal([(source, target)])


def ready(world, sink, seconds=30):
    sink.wait_log("event=snapshot-finished", seconds)


def test_a_new_sink_asks_for_what_was_there_before(world):
    """T16, F44: rows that are older than the stream come, those of the target that exist no longer go, and what is
    written meanwhile is neither lost nor undone."""
    fill(world)
    world.connector()
    sink = world.sink(world.sink_file("team", TABLE, snapshot="auto"))
    world.src("UPDATE t SET v = 'changed' WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0; INSERT INTO t VALUES (-1, 'new')")
    ready(world, sink)
    equal(world)
    world.src("DELETE FROM t WHERE id < 100; UPDATE t SET id = -id WHERE id > 4900")
    equal(world)
    assert sink.stop() == 0
    # It has its place, and asks for nothing when it comes again.
    world.src("INSERT INTO t VALUES (100000, 'later')")
    sink = world.sink(world.sink_file("team", TABLE, snapshot="auto"))
    equal(world)
    assert "snapshot-asked" not in sink.text()


def test_a_projection_that_changed_and_a_table_that_is_new(world):
    """What the file says now, for rows that were written as it said before; without a moment without rows."""
    fill(world, full=True)
    world.src("CREATE TABLE u (id int PRIMARY KEY, n int); INSERT INTO u SELECT g, g FROM generate_series(1, 100) g")
    world.connector()
    sink = world.sink(world.sink_file("team", TABLE, snapshot="auto"))
    ready(world, sink)
    assert sink.stop() == 0
    changed = {"t": {"from": "public.t", "where": "id % 2 = 0", "columns": {"id": "id", "v": "upper(v)"}}, "u": {"from": "public.u"}}
    sink = world.sink(world.sink_file("team", changed, snapshot="auto"))
    ready(world, sink)
    equal(world, "SELECT id, upper(v) FROM public.t WHERE id % 2 = 0")
    equal(world, "SELECT * FROM public.u", "SELECT * FROM team.u")
    # A column that comes later: old rows have its default, and no change says so (P32).
    assert sink.stop() == 0
    sink = world.sink(world.sink_file("team", TABLE, snapshot="auto"))
    ready(world, sink)
    world.tgt("ALTER TABLE team.t ADD COLUMN w text")
    world.src("ALTER TABLE t ADD COLUMN w text DEFAULT 'there'; INSERT INTO t VALUES (0, 'z')")
    sink.wait_log("event=column-added")
    equal(world)


def test_swap_leaves_the_old_picture_until_the_end(world):
    """T16: a reader sees all of the old rows, or all of the new ones."""
    fill(world, full=True)
    world.connector()
    sink = world.sink(world.sink_file("team", TABLE, snapshot="auto", on_snapshot="swap"))
    ready(world, sink)
    equal(world)
    assert sink.stop() == 0
    world.src("TRUNCATE t; INSERT INTO t SELECT g, 'w' || g FROM generate_series(1, 7000) g")
    sink = world.sink(world.sink_file("team", {"t": {"from": "public.t", "where": "id > 0"}}, snapshot="auto", on_snapshot="swap"))
    ready(world, sink)
    equal(world)


@pytest.mark.parametrize("how", ["log", "hole"])
def test_stale_in_auto_mode_begins_anew(world, how):
    """F44: it says what it missed, and makes up for it; rows that were deleted meanwhile go."""
    fill(world)
    world.connector()
    file = world.sink_file("team", TABLE, snapshot="auto")
    sink = world.sink(file)
    ready(world, sink)
    assert sink.stop() == 0
    world.src("DELETE FROM t WHERE id < 1000; UPDATE t SET v = 'x' WHERE id > 4000")
    if how == "log":
        world.tgt("UPDATE team.spate_sink SET log_id = 'another'")
    else:
        world.tgt("UPDATE team.spate_sink SET epoch_uuid = '00000000-0000-4000-8000-000000000000'")
    sink = world.sink(file)
    sink.wait_log("level=error event=stale .*STALE")
    ready(world, sink)
    equal(world)


def test_a_person_asks_for_it(world):
    """spate snapshot --sink: with a sink that never asks by itself."""
    fill(world)
    world.connector()
    sink = world.sink(world.sink_file("team", TABLE, snapshot="manual"))
    sink.wait_log("event=streaming")
    world.src("INSERT INTO t VALUES (-1, 'x')")
    world.wait_rows("SELECT count(*) FROM team.t", [(1,)])
    assert world.run("snapshot", "-c", world.connector_file(), "--sink", "team", "--follow", seconds=60, check=0)
    equal(world)
    # Asked for while the sink is not there: it is taken up when it comes, once.
    assert sink.stop() == 0
    world.tgt("DELETE FROM team.t WHERE id < 0")
    asked = world.snapshot("--sink", "team", "--follow")
    file = world.sink_file("team", TABLE, snapshot="manual")
    sink = world.sink(file)
    ready(world, sink)
    assert asked.wait_exit() == 0
    equal(world)
    assert sink.stop() == 0
    sink = world.sink(file)
    sink.wait_log("event=streaming")
    # With conditions: rows come and are corrected, none goes.
    world.tgt("DELETE FROM team.t WHERE id > 4000; UPDATE team.t SET v = 'wrong' WHERE id < 100")
    world.run("snapshot", "-c", world.connector_file(), "--sink", "team", "--tables", "public.t", "--where", "id > 2000", "--follow", seconds=60, check=0)
    world.wait_rows("SELECT count(*), count(*) FILTER (WHERE v = 'wrong') FROM team.t", [(ROWS + 1, 100)])
    assert len(re.findall("event=snapshot-asked", sink.text())) == 1


def test_a_sink_that_the_file_does_not_allow(world):
    """A new one stops, and says whose word that is and what would mend it; one that has all its rows goes on."""
    fill(world, 10)
    world.config["snapshots"] = {"allow": {"other": "public.*"}}
    world.connector()
    sink = world.sink(world.sink_file("team", TABLE, snapshot="auto"))
    assert sink.wait_exit() == 4
    sink.wait_log("first snapshot was not fulfilled: .*allow")
    sink = world.sink(world.sink_file("calm", TABLE, snapshot="manual"))
    world.src("INSERT INTO t VALUES (11, 'v')")
    world.wait_rows("SELECT count(*) FROM calm.t", [(1,)])
    code, out, err = world.run("snapshot", "-c", world.connector_file(), "--sink", "calm", "--follow", seconds=60)
    assert code == 4, (out, err)
    world.src("INSERT INTO t VALUES (12, 'v')")
    world.wait_rows("SELECT count(*) FROM calm.t", [(2,)])


def test_what_is_cancelled_while_the_connector_is_away_stays_cancelled(world):
    fill(world, ROWS)
    world.config["snapshots"] = {"rows_per_second": 1000, "chunk_bytes": "64KiB"}
    connector = world.connector()
    file = world.sink_file("team", TABLE, snapshot="manual")
    sink = world.sink(file)
    sink.wait_log("event=streaming")
    world.src("INSERT INTO t VALUES (-1, 'x')")
    world.wait_rows("SELECT count(*) FROM team.t", [(1,)])
    asked = world.snapshot("--sink", "team", "--follow")
    request = sink.wait_log(r"event=snapshot-began sink=team request=(\S+) ").group(1)
    connector.kill()
    world.run("snapshot", "-c", world.connector_file(), "--cancel", request, seconds=60)
    sink.wait_log(f"event=snapshot-ended sink=team request={request} .*cancelled")
    sink.wait_log("event=table-incomplete sink=team table=team.t .*remedy=.*--sink team")
    assert asked.wait_exit() == 1
    connector = world.connector()
    world.src("INSERT INTO t VALUES (-2, 'x')")
    world.wait_rows("SELECT count(*) FROM team.t WHERE id = -2", [(1,)])
    assert f"snapshot-begin request={request}" not in connector.text(), connector.text()


def swapping(world, rows=1500):
    """A team whose table is being exchanged, slowly; the source's rows have values that are not sent again."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int, large text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL; "
              f"INSERT INTO t SELECT g, g, repeat('x', 3000) FROM generate_series(1, {rows}) g")
    world.config["snapshots"] = {"rows_per_second": 400, "chunk_bytes": "64KiB"}
    world.config["source"]["postgres"]["catalog_every"] = "200ms"
    world.connector()
    sink = world.sink(world.sink_file("team", TABLE, on_snapshot="swap"))
    ready(world, sink)
    world.snapshot("--sink", "team")
    request = sink.wait_log(r"event=snapshot-asked sink=team request=(\S+) by=").group(1)
    sink.wait_log(f"event=snapshot-table .*table=team.t request={request} kind=shadow")
    return sink, request


def test_T16_P32_a_load_ends_though_its_table_is_stale_meanwhile_and_another_follows(world):
    """By swap the old picture stands still until the end: changes cannot go on with it when the load is let go of."""
    sink, request = swapping(world)
    world.src("UPDATE t SET v = v + 1 WHERE id <= 10")
    world.src("CLUSTER t USING t_pkey")
    sink.wait_log("event=table-stale.* table=team.t .*why=rewritten")
    assert request not in re.findall(r"event=snapshot-finished sink=team request=(\S+)", sink.text())
    assert world.tgt("SELECT count(*) FROM team.t WHERE v <> id") == [(0,)]  # the old picture, whole
    world.src("UPDATE t SET v = v + 1 WHERE id <= 10")
    sink.wait_log(f"event=snapshot-finished sink=team request={request}")
    asked = re.findall(r"event=snapshot-asked sink=team request=(\S+)", sink.text())
    sink.wait_log(r"event=snapshot-asked sink=team request=(?!" + request + r")\S+ tables=1 why=\"tables are new, or their rows lack")
    assert len(asked) <= 3
    world.wait_equal([("SELECT id, v, large FROM t", "SELECT id, v, large FROM team.t")])
    scratch.until(lambda: world.tgt("SELECT snapshotted, outdated FROM team.spate_table") == [(True, None)], "the table is complete", 30)


def test_T16_a_row_may_move_to_where_a_stale_one_stands(world):
    """A load by swap that is cancelled leaves rows that are gone at the source."""
    sink, request = swapping(world)
    world.src("DELETE FROM t WHERE id = 2")
    world.run("snapshot", "-c", world.connector_file(), "--cancel", request, seconds=60, check=0)
    sink.wait_log("event=table-incomplete sink=team table=team.t")
    world.src("UPDATE t SET id = 2, v = -1 WHERE id = 1")  # the large value is not sent (P42)
    world.wait_rows("SELECT v, length(large) FROM team.t WHERE id = 2", [(-1, 3000)])
    assert world.tgt("SELECT count(*) FROM team.t WHERE id = 1") == [(0,)] and sink.running()


def test_a_wish_outlives_the_sink_that_heard_it(world):
    """F44: it was asked for, nothing of it had begun, and the sink died: the one that comes next goes on with it."""
    fill(world, 100)
    connector = world.connector()
    file = world.sink_file("team", TABLE)
    sink = world.sink(file)
    ready(world, sink)
    assert connector.stop() == 0
    asked = world.snapshot("--sink", "team", "--follow", "--wait", "60")
    again = sink.wait_log(r"event=snapshot-asked sink=team request=(\S+) by=").group(1)
    sink.kill()
    sink = world.sink(file)
    sink.wait_log(f"event=snapshot-asked sink=team request={again} by=")
    world.tgt("DELETE FROM team.t WHERE id < 50")
    world.connector()
    ready(world, sink)
    assert asked.wait_exit() == 0, asked.tail()
    equal(world)


def test_a_cancel_that_a_started_connector_refuses(world):
    """It was started and does not know of the request yet: the sink ends it as a person's wish, and does not stop."""
    fill(world, 20000)
    world.config["snapshots"] = {"rows_per_second": 2000, "chunk_bytes": "64KiB"}
    world.connector()
    sink = world.sink(world.sink_file("team", TABLE))
    sink.wait_log("event=snapshot-began")
    request = re.search("event=snapshot-asked.* request=([0-9a-f-]+)", sink.text()).group(1)
    sink.process.send_signal(signal.SIGSTOP)
    world.connector_process.kill()
    world.connector()
    control = Control(world)

    def refused():
        control.tell(json.dumps({"spate": 1, "op": "cancel", "request": request, "sink": "team"}))
        # Said before its session it is noted, and answered as what is over.
        return any((said["op"] == "refused" or said.get("state") == "cancelled") and said.get("request") == request for said in control.said)

    scratch.until(refused, "the connector refuses", 10, 0.2)
    sink.process.send_signal(signal.SIGCONT)
    sink.wait_log("event=snapshot-ended.*cancelled")
    world.src("INSERT INTO t VALUES (-1, 'x')")
    world.wait_rows("SELECT v FROM team.t WHERE id = -1", [("x",)])
    assert sink.running()
    control.close()
