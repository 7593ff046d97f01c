"""Many tables, many columns, many rows: what it costs does not grow faster than they do."""
import os
import re
import time

import pytest

from tests.support import scratch
from tests.support.world import MemoryWatch, lsn

MB = 1024
TABLES = int(os.environ.get("SIZE_TABLES", "10000"))
ROWS = int(os.environ.get("SIZE_ROWS", "10000000"))


def limit(seconds):
    """Seconds on a machine that does nothing else; where more wants to run than it has processors, as many times more."""
    return seconds * max(1.0, os.getloadavg()[0] / os.cpu_count())


def through(world, mark, seconds):
    """Waits until the connector has confirmed all that was committed before the marker."""
    query = f"SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{world.slot()}'"
    scratch.until(lambda: lsn(world.src(query)[0][0]) >= mark, lambda: "confirmed past the marker" + world.logs(), seconds)


def timed_start(world):
    begin = time.monotonic()
    connector = world.connector(ready=False)
    watch = MemoryWatch(lambda: connector)
    connector.wait_log("event=streaming", 120)
    return connector, watch, time.monotonic() - begin


def test_ten_thousand_tables(world):
    """First start and restart in 5 s and 64 MB; a row of each; a sink that follows two of them."""
    world.src(f"""CREATE SCHEMA many; CREATE PUBLICATION spate FOR ALL TABLES WITH (publish_via_partition_root = true)""")
    world.src(f"""DO $$ BEGIN FOR i IN 1..{TABLES} LOOP
                    EXECUTE format('CREATE TABLE many.t%s (id int PRIMARY KEY, a bigint, b numeric(10,2), c timestamptz)', i);
                    IF i % 500 = 0 THEN COMMIT; END IF; END LOOP; END $$""")
    world.config["tables"] = ["many.*"]
    connector, watch, first = timed_start(world)
    sink = world.sink(world.sink_file("team", {"t1": {"from": "many.t1"}, f"t{TABLES}": {"from": f"many.t{TABLES}"}}))
    sink_watch = MemoryWatch(lambda: sink)
    world.src(f"""DO $$ BEGIN FOR i IN 1..{TABLES} LOOP
                    EXECUTE format('INSERT INTO many.t%s VALUES (1, 2, 3.5, ''2026-01-01'')', i);
                    IF i % 2500 = 0 THEN COMMIT; END IF; END LOOP; END $$""")
    world.wait_rows(f"SELECT (SELECT count(*) FROM team.t1), (SELECT count(*) FROM team.t{TABLES})", [(1, 1)], 60, sink)
    through(world, world.emit_marker(), 60)
    sink_peak = sink_watch.stop()
    connector.stop()
    peak = watch.stop()
    assert int(re.search(r"event=stopped .* changes=(\d+)", connector.text()).group(1)) >= TABLES
    connector, watch, again = timed_start(world)
    again_peak = watch.stop()
    print(f"   {TABLES} tables: first start {first:.1f} s, {peak / MB:.0f} MB; restart {again:.1f} s, {again_peak / MB:.0f} MB; "
          f"sink of two {sink_peak / MB:.0f} MB")
    assert "event=schema " not in connector.text(), "nothing of it is published twice"
    assert first < limit(5) and again < limit(5), (first, again, os.getloadavg())
    assert peak < 64 * MB and again_peak < 64 * MB and sink_peak < 24 * MB, (peak, again_peak, sink_peak)


@pytest.mark.parametrize("rows", [ROWS])
def test_a_transaction_of_ten_million_rows_and_a_thousand_savepoints(world, rows):
    """Every tenth savepoint is rolled back. 32 MB whatever the transaction holds (P25, P26)."""
    del world.bus["local"]["segment_bytes"]
    world.src("CREATE TABLE t (id int); CREATE PUBLICATION spate FOR TABLE t")
    connector = world.connector()
    watch = MemoryWatch(lambda: connector)
    begin = time.monotonic()
    world.src(f"""DO $$ BEGIN FOR s IN 0..999 LOOP
                    BEGIN
                      INSERT INTO t SELECT g FROM generate_series(s * {rows // 1000} + 1, (s + 1) * {rows // 1000}) g;
                      IF s % 10 = 9 THEN RAISE EXCEPTION SQLSTATE 'UT001'; END IF;
                    EXCEPTION WHEN SQLSTATE 'UT001' THEN NULL;
                    END; END LOOP; END $$""")
    made = time.monotonic()
    through(world, world.emit_marker(), 400)
    done = time.monotonic()
    samples, peak = watch.samples, watch.stop()
    connector.stop()
    print(f"   {rows} rows: made in {made - begin:.0f} s, through in {done - made:.0f} s, connector {peak / MB:.1f} MB")
    changes = int(re.search(r"event=stopped .* changes=(\d+)", connector.text()).group(1))
    assert changes == rows // 10 * 9 + 1, "what was rolled back is not in the stream; the marker is"
    assert samples > 20 and peak <= 32 * MB, peak
