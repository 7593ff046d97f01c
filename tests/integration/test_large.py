"""Memory does not depend on a transaction's size: a million rows, a restart in the middle, large rows."""
import os

import pytest

from tests.support import scratch
from tests.support.world import MemoryWatch

CONNECTOR_KB, SINK_KB = 32 * 1024, 64 * 1024
ROWS = int(os.environ.get("LARGE_ROWS", "1000000"))


@pytest.fixture(autouse=True)
def segments_of_the_default_size(world):
    del world.bus["local"]["segment_bytes"]


def test_a_million_row_transaction_with_a_restart_in_the_middle(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector()
    sink = world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
    world.src("INSERT INTO t VALUES (0, 'first')")
    world.wait_rows("SELECT count(*) FROM team.t", [(1,)])
    watch = MemoryWatch(lambda: world.connector_process)
    sink_watch = MemoryWatch(lambda: sink)
    published = bus_size(world)
    world.src("INSERT INTO t SELECT g, 'row number ' || g FROM generate_series(1, %s) g", [ROWS])
    scratch.until(lambda: bus_size(world) > published + 60 * ROWS, "about a quarter of it is on the bus", 60)
    connector.kill()
    connector = world.connector()
    world.wait_rows("SELECT count(*) FROM team.t", [(ROWS + 1,)], seconds=120, sink=sink)
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    world.src("UPDATE t SET v = 'x' WHERE id <= 100000; DELETE FROM t WHERE id > 900000")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    peak, sink_peak = watch.stop(), sink_watch.stop()
    found = world.check_bus(sample=20000, seconds=200)
    assert found["ops"]["insert"] == ROWS + 1
    print(f"private memory at most: connector {peak} kB, sink {sink_peak} kB")
    assert watch.samples > 50 and peak < CONNECTOR_KB and sink_peak < SINK_KB, (peak, sink_peak)


def bus_size(world):
    """Bytes that records take in the hot or archived segments of the stream."""
    total = 0
    for base, _folders, files in os.walk(world.bus["local"]["path"]):
        if os.path.basename(base) == "shop":
            for name in files:
                if name.endswith(".seg"):
                    total += os.stat(os.path.join(base, name)).st_blocks * 512
    return total


def test_large_rows(world):
    """Rows of several megabytes pass with bounded memory."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, small int, v text)")
    world.connector()
    sink = world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
    watch = MemoryWatch(lambda: sink)
    world.src("INSERT INTO t SELECT g, g, repeat(md5(g::text), 100000 * g) FROM generate_series(1, 4) g")  # 3 to 13 MB
    world.src("UPDATE t SET small = small + 1; UPDATE t SET id = id + 10 WHERE id = 2")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    assert watch.stop() < 2 * SINK_KB
    # More than any segment takes, and than Kafka does: a file of its own (test_room).
    world.src("INSERT INTO t VALUES (99, 0, repeat('x', 17 * 1024 * 1024))")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    assert world.connector_process.running()
