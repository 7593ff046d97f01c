"""F2: dead at every durable step, and nothing lost or doubled.

The names come from the program's own table: one that has no case here fails. Each case makes one process die at a
random hit of its failpoint, by that failpoint, starts it again, and waits until source and target are equal. At
the end the whole stream is held against I2, and what the sink counted against what stands on the bus.

A name that is met in several ways dies one of them, at random; with FAILPOINTS=all each.
"""
import copy
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.world import World

BINARY = os.path.join(scratch.ROOT, "build/failpoints/spate")
T = {"t": {"from": "public.t"}}


def table():
    """(name, process, bus, can it fail) of every failpoint there is."""
    subprocess.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, "VARIANT=failpoints", "compile"], check=True)
    lines = scratch.run([BINARY, "failpoints"]).stdout.splitlines()
    return [tuple(line.split("\t")[:4]) for line in lines]


class Lab:
    """One world in which processes die and come back; a round of work is a few transactions of every size."""

    def __init__(self, source, target, kafka, seed):
        bus = "kafka" if kafka else "local"
        self.bus, self.random, self.base = bus, random.Random(seed), 0
        self.world = World(source, target, heartbeat="100ms", kafka=kafka)
        if bus == "local":
            self.world.bus["local"]["segment_bytes"] = "1MiB"  # so that a round rolls over
        self.world.config["snapshots"] = {"chunk_bytes": "64KiB"}
        self.world.config["source"]["postgres"]["catalog_every"] = "200ms"
        self.world.src("CREATE TABLE t (id int PRIMARY KEY, v text, filler text); CREATE TABLE other (id int PRIMARY KEY, v text);"
                       "CREATE TABLE idle (id int PRIMARY KEY); CREATE SCHEMA private; CREATE TABLE private.noise (x text);"
                       "ALTER TABLE t ALTER filler SET STORAGE EXTERNAL")
        self.file = self.world.sink_file("team", T, snapshot="manual")
        self.connector, self.sink, self.extra = self.world.connector(), self.world.sink(self.file), []

    def first_start(self):
        """A second stream from the same database, which nothing knows of yet."""
        world = copy.copy(self.world)
        number = next(world.marks)
        world.name = world.stream = f"first{number}_{os.urandom(3).hex()}"
        world.dir = scratch.directory("spate-w-")
        world.bus = {kind: dict(options) for kind, options in world.bus.items()}
        if "local" in world.bus:
            world.hot = scratch.hot_directory(room=1 << 28)
            world.bus["local"].update(path=os.path.join(world.dir, "bus"), hot=world.hot)
        postgres = {**world.config["source"]["postgres"], "slot": world.slot(), "publication": world.name}
        world.config = {**world.config, "connector": world.name, "bus": world.bus, "source": {"postgres": postgres}}
        return world

    # Work.
    def round(self):
        base = self.base = self.base + 1000
        self.world.src(f"INSERT INTO t SELECT {base} + g, 'one transaction', repeat('x', 100) FROM generate_series(1, 300) g")
        self.world.src(f"DO $$ BEGIN FOR i IN {base + 400}..{base + 412} LOOP INSERT INTO t VALUES (i, 'small'); "
                       f"UPDATE t SET v = 'changed' WHERE id IN (i, i - 400); COMMIT; END LOOP; END $$")
        self.world.src(f"UPDATE t SET v = NULL WHERE id BETWEEN {base + 50} AND {base + 80}; UPDATE t SET id = id + 600 WHERE id = {base + 90};"
                       f"DELETE FROM t WHERE id < {base + 20}; INSERT INTO other SELECT {base} + g, 'passed by' FROM generate_series(1, 5) g")

    def large_round(self):
        self.round()
        self.world.src(f"INSERT INTO t SELECT {self.base} + 700 + g, 'fills segments', repeat('y', 3000) FROM generate_series(1, 280) g")

    def promising_round(self):
        """More segments than half of those that are promised at once."""
        self.round()
        self.world.src(f"INSERT INTO t SELECT {self.base} + 700 + g % 280, 'fills many', repeat('y', 32000) FROM generate_series(1, 280) g")
        self.world.src("UPDATE t SET filler = 'small again' WHERE v = 'fills many'")

    def pieces(self):
        """More than a sink holds of one transaction."""
        self.base += 1000
        self.world.src(f"INSERT INTO t SELECT {self.base} + g, 'in pieces', repeat('z', 200000) FROM generate_series(1, 80) g")
        self.world.src("UPDATE t SET filler = 'small again' WHERE length(filler) > 100000")

    def large_values(self):
        """Each in a file of its own."""
        self.base += 1000
        self.world.src(f"INSERT INTO t SELECT {self.base} + g, 'spills', repeat('s', 400000) FROM generate_series(1, 3) g")
        self.world.src("UPDATE t SET filler = 'small again' WHERE length(filler) > 300000")

    def touch(self):
        """Changes that leave the table as large as it is."""
        self.world.src("UPDATE t SET v = 'touched' WHERE id % 7 = 0")

    def noise(self):
        self.world.src("INSERT INTO private.noise SELECT repeat('n', 500) FROM generate_series(1, 50)")

    def alter(self):
        """A new version of a table that no sink takes, while the stream is read."""
        scratch.until(lambda: "event=streaming" in self.connector.text() or not self.connector.running(), "the connector streams")
        self.base += 1000
        self.world.src(f"ALTER TABLE other ADD COLUMN c{self.base} int; INSERT INTO other (id) VALUES ({self.base})")

    def rewrite(self):
        """What no message carries, of a table that no sink takes."""
        scratch.until(lambda: "event=streaming" in self.connector.text() or not self.connector.running(), "the connector streams")
        self.base += 1000
        self.world.src(f"ALTER TABLE other ADD COLUMN d{self.base} int DEFAULT 1")

    def opens_epoch(self):
        if not self.connector.running():
            self.connector = self.world.connector("--new-epoch")

    # Death.
    def dies(self, process, name, hit, work=None):
        """How many hits a round of work has depends on how much goes together: work is done until it is enough."""
        end = time.monotonic() + 30
        while work and process.running() and time.monotonic() < end:
            work()
            try:
                process.process.wait(0.3)
            except subprocess.TimeoutExpired:
                pass
        code = process.wait_exit(20)
        line = f" name={name} action=kill hit={hit}\n"
        assert code == -signal.SIGKILL and line in process.text(), f"{name}@{hit}: exit {code}, not by the failpoint:\n{process.tail()}"

    def plan(self, name, hit):
        return {"env": {"SPATE_FP": f"{name}=kill@{hit}"}}

    def connector_dies(self, name, hit, *arguments, stop=True, work=None):
        if stop:
            assert self.connector.stop() == 0, self.connector.tail()
        self.connector = self.world.connector(*arguments, ready=False, **self.plan(name, hit))
        self.dies(self.connector, name, hit, work)

    def sink_dies(self, name, hit, work=None, stop=True):
        if stop:
            assert self.sink.stop() == 0, self.sink.tail()
        self.sink = self.world.sink(self.file, **self.plan(name, hit))
        self.dies(self.sink, name, hit, work)

    # Life.
    def heal(self):
        if not self.connector.running():
            self.connector = self.world.connector()
        if not self.sink.running():
            self.sink = self.world.sink(self.file)
        self.equal()

    def equal(self, schema="team", least=0):
        self.base += 1000
        self.world.src(f"INSERT INTO t VALUES ({self.base}, 'a mark')")
        query = f"SELECT count(*), md5(string_agg((id, v, md5(filler))::text, ',' ORDER BY id)) FROM %s WHERE id >= {least}"
        want = self.world.src(query % "t")
        self.world.wait_rows(query % f"{schema}.t", want, 20, self.sink)

    def finish(self):
        """Every number once on the bus, and every change of the table applied once."""
        found = self.world.check_bus(sample=200)
        of_t = sum(1 for message in self.world.messages() if message.get("table") == "t" and "n" in message)
        applied = self.world.tgt("SELECT applied, missing FROM team.spate_sink WHERE sink = 'team'")
        assert applied == [(of_t, 0)], f"{of_t} changes of the table are on the bus; applied, missing: {applied}"
        assert self.connector.running() and self.sink.running()
        return found


# ---- the ways to die ----

def working(most, work=Lab.round, least=1):
    """While work is done, at one of the first hits."""
    def case(lab, name, process):
        hit = lab.random.randint(least, most)
        dies = lab.connector_dies if process == "connector" else lab.sink_dies
        dies(name, hit, work=work and (lambda: work(lab)))
    return case


def starting(most=1):
    return working(most, None)


def opening(most=1):
    """At the very first start: another stream of the same database, on a bus of its own."""
    def case(lab, name, process):
        world, hit = lab.first_start(), lab.random.randint(1, most)
        lab.dies(world.connector(ready=False, **lab.plan(name, hit)), name, hit)
        connector = world.connector()
        sink = world.sink(world.sink_file(world.name, T, snapshot="manual"))
        lab.base += 1000
        world.src(f"INSERT INTO t SELECT {lab.base} + g, 'first' FROM generate_series(1, 20) g")
        world.wait_rows(f"SELECT count(*), count(v) FROM {world.name}.t", [(20, 20)])
        found = world.messages()
        assert [m["op"] for m in found if m["op"] != "heartbeat"] == ["epoch"] + ["insert"] * 20 + ["message"]
        assert [m["n"] for m in found if "n" in m] == list(range(1, 22))
        assert (connector.stop(), sink.stop()) == (0, 0)
        world.source.sql("SELECT pg_drop_replication_slot(%s)", [world.slot()])
        if world.kafka:
            world.kafka.forget(world.stream)
    return case


def new_epoch(lab, name, process):
    """--new-epoch that dies: the next start goes on in the old epoch, or finishes the new one."""
    if process == "connector":
        lab.connector_dies(name, 1, "--new-epoch")
    else:
        assert lab.connector.stop() == 0
        lab.sink_dies(name, 1, work=lambda: lab.opens_epoch())


def stopping(lab, name, process):
    """Told to stop, it dies on the way."""
    old = lab.connector if process == "connector" else lab.sink
    assert old.stop() == 0
    if process == "connector":
        new = lab.connector = lab.world.connector(**lab.plan(name, 1))
        lab.round()
    else:
        # Others' changes alone, and heard: a position without rows is all that is left to store.
        new = lab.sink = lab.world.sink(lab.file, env={"SPATE_FP": f"{name}=kill,sink_read=sleep:1@20"})
        lab.world.src(f"DO $$ BEGIN FOR i IN 1..30 LOOP INSERT INTO other VALUES (-{lab.base} - i, 'by'); COMMIT; END LOOP; END $$")
        new.wait_log("event=failpoint .*name=sink_read")
    new.process.send_signal(signal.SIGTERM)
    lab.dies(new, name, 1)


def after(prelude, most=1, work=Lab.round):
    """What is met only after another death."""
    def case(lab, name, process):
        working(1, work)(lab, prelude, process)
        lab.connector_dies(name, lab.random.randint(1, most), stop=False)
    return case


def power_cut(most):
    """The shared memory is gone, and every process with it."""
    def case(lab, name, process):
        lab.connector.kill()
        lab.sink.kill()
        for entry in os.listdir(lab.world.hot):
            path = os.path.join(lab.world.hot, entry)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        lab.connector_dies(name, lab.random.randint(1, most), stop=False)
    return case


def new_sink(lab, name, process):
    """A team's first start. It hears the epoch that is open, and not what was before it."""
    least = lab.base + 1000
    schema = f"new{next(lab.world.marks)}"
    file = lab.world.sink_file(schema, T, snapshot="manual")
    sink = lab.world.sink(file, name=schema, **lab.plan(name, 1))
    lab.dies(sink, name, 1)
    sink = lab.world.sink(file, name=schema)
    lab.round()
    lab.equal(schema, least)
    assert sink.stop() == 0


def asking(most=1, again=None):
    """A team asks for everything (F43, F44): at its first start, or once more when it has it, into a table that is full.
    Whoever dies, it is answered in the end, by what was begun."""
    def case(lab, name, process):
        hit, once_more = lab.random.randint(1, most), lab.random.random() < 0.5 if again is None else again
        schema = f"asks{next(lab.world.marks)}"
        file = lab.world.sink_file(schema, T, snapshot="auto", on_snapshot=lab.random.choice(("sweep", "swap")))
        plan = lab.plan(name, hit)
        lab.large_round()
        if process == "connector":
            assert lab.connector.stop() == 0
            lab.connector = lab.world.connector(**({} if once_more else plan))
        sink = lab.world.sink(file, name=schema, **({} if once_more or process == "connector" else plan))
        if once_more:
            sink.wait_log("event=snapshot-finished", 30)
            if process == "connector":
                assert lab.connector.stop() == 0
                lab.connector = lab.world.connector(**plan)
            else:
                assert sink.stop() == 0
                sink = lab.world.sink(file, name=schema, **plan)
            sink.wait_log("event=streaming")
        asks = []

        def work():
            """Asked for until somebody answers: a sink that starts may not listen yet."""
            lab.touch()
            if once_more and not any(process.running() for process in asks):
                asks.append(lab.world.snapshot("--sink", schema, "--wait", "5", file=file, name="asks"))

        lab.dies(lab.connector if process == "connector" else sink, name, hit, work)
        for asked in asks:
            asked.kill()
        if process == "connector":
            lab.connector = lab.world.connector()
        else:
            sink = lab.world.sink(file, name=schema)
        lab.equal(schema)
        scratch.until(lambda: lab.world.tgt(f"SELECT bool_and(snapshotted) FROM {schema}.spate_table")[0][0], lambda: "it has everything:" + lab.world.logs(), 40)
        lab.equal(schema)
        assert sink.stop() == 0
        lab.world.tgt(f"DROP SCHEMA {schema} CASCADE")
    return case


CASES = {
    "connector_bus_opened": [opening(), starting()],
    "connector_publication_created": [opening()],
    "connector_slot_created": [opening()],
    "connector_slot_dropped": [],  # test_an_invalidated_slot
    "connector_schema_published": [opening(3), working(1, Lab.alter)],
    "connector_schemas_durable": [opening(2), starting(), working(2, Lab.alter, least=2)],
    "connector_epoch_before": [opening(), new_epoch],
    "connector_epoch_known": [opening(), new_epoch],
    "connector_epoch_open": [opening(), new_epoch],
    "connector_settle": [opening(2), starting()],
    "connector_tail": [opening(2), starting()],
    "connector_tail_found": [opening(), starting()],
    "connector_started": [opening(), starting()],
    "connector_received": [working(300)],
    "connector_mid_transaction": [working(300)],
    "connector_compared": [after("connector_confirm", 250)],
    "connector_publish": [working(5)],
    "connector_published": [working(5)],
    "connector_durable": [working(5)],
    "connector_heartbeat": [working(1, Lab.noise)],
    "connector_confirm": [working(3)],
    "connector_confirmed": [working(3)],
    "connector_stale_published": [working(1, Lab.rewrite)],
    "connector_stale_durable": [working(1, Lab.rewrite)],
    "connector_storage_published": [opening(3), working(2, Lab.rewrite)],
    "connector_stop": [stopping],
    "connector_chunk_locked": [asking(2)],
    "connector_chunk_read": [asking(2)],
    "connector_chunk_ready": [asking(2)],
    "connector_snapshot_begun": [asking()],
    "connector_chunk_begun": [asking(2)],
    "connector_chunk_half": [asking(2)],
    "connector_chunk_end": [asking(2)],
    "connector_ranges_end": [asking()],
    "local_recover": [opening(4), power_cut(3)],
    "local_cut": [opening(4), power_cut(3)],
    "local_note_written": [opening(5), power_cut(3)],
    "local_segment_made": [opening(4), working(1, Lab.large_round)],
    "local_segment_linked": [opening(4), working(1, Lab.large_round)],
    "local_taken": [working(4)],
    "local_claimed": [working(4)],
    "local_filled": [working(4)],
    "local_committed": [working(4)],
    "local_settle": [after("local_claimed")],
    "local_sealed": [working(1, Lab.large_round)],
    "local_promised": [working(1, Lab.promising_round)],
    "local_created": [working(1, Lab.large_round)],
    "local_rolled": [working(1, Lab.large_round)],
    "local_file_made": [opening(), working(1, Lab.large_round)],
    "local_file_renamed": [opening(), working(1, Lab.large_round)],
    "local_spill": [working(3, Lab.large_values)],
    "local_spilled": [working(3, Lab.large_values)],
    "local_spill_called": [working(3, Lab.large_values)],
    "local_write": [working(3)],
    "local_sync": [working(3)],
    "local_synced": [working(3)],
    "local_durable": [working(3)],
    "local_floor": [opening(), starting()],
    "kafka_topic_created": [opening(4)],
    "kafka_opened": [opening(4), starting(2)],
    "kafka_produce": [working(300)],
    "kafka_produced": [working(300)],
    "kafka_report": [working(300)],
    "kafka_reported": [working(300)],
    "kafka_close": [stopping],
    "sink_locked": [starting()],
    "sink_owned": [starting()],
    "sink_table_made": [new_sink],
    "sink_tables_ready": [new_sink, starting()],
    "sink_read": [working(300)],
    "sink_epoch": [new_epoch],
    "sink_merge": [working(2)],
    "sink_piece": [working(2, Lab.pieces)],
    "sink_merged": [working(2)],
    "sink_commit": [working(2)],
    "sink_sent": [working(3)],
    "sink_committed": [working(2)],
    "sink_position": [stopping],
    "sink_positioned": [stopping],
    "sink_load_begin": [asking()],
    "sink_chunk_applied": [asking()],  # all of it may be one batch
    "sink_sweep": [asking()],
    "sink_swept": [asking()],
}


def dead_while_it_opens_anew(lab):
    """A report is an error: the connector closes all its writers and opens new ones, and dies at that."""
    assert lab.connector.stop() == 0
    hit = lab.random.randint(5, 100)
    lab.connector = lab.world.connector(ready=False, env={"SPATE_FP": f"kafka_report=fail@{hit},connector_bus_opened=kill@2"})
    lab.dies(lab.connector, "connector_bus_opened", 2, lab.round)


@pytest.fixture(scope="module")
def names():
    return table()


@pytest.fixture(scope="module", params=["local", "kafka"])
def lab(request, names, source, target, seed):
    before = os.environ.get("SPATE")
    os.environ["SPATE"] = BINARY
    lab = Lab(source, target, request.getfixturevalue("kafka") if request.param == "kafka" else None, f"{seed} {request.param}")
    yield lab
    lab.world.close()
    os.environ.pop("SPATE")
    if before:
        os.environ["SPATE"] = before


def test_every_name_has_a_case(names):
    assert sorted(CASES) == sorted(name for name, *_ in names)


def test_dead_at_every_failpoint(lab, names, seed):
    died = 0
    for name, process, bus, _ in names:
        if bus not in ("any", lab.bus):
            continue
        cases = CASES[name]
        if cases and os.environ.get("FAILPOINTS") != "all":
            cases = [lab.random.choice(cases)]
        for case in cases:
            try:
                case(lab, name, process)
                lab.heal()
            except Exception as failure:
                raise scratch.Failure(f"{name} on the {lab.bus} bus, SEED={seed}: {failure}\n{lab.world.logs()}") from failure
            died += 1
    if lab.bus == "kafka":
        dead_while_it_opens_anew(lab)
        lab.heal()
        died += 1
    found = lab.finish()
    print(f"\n   {lab.bus}: {died} deaths at failpoints, {found['n']} changes on the bus, none lost, none twice", flush=True)


def test_a_place_that_fails_is_tried_again(lab, names, seed):
    """The process lives, says what failed, and nothing is lost or doubled by trying again."""
    for name, process, bus, fails in names:
        if fails != "fails" or bus not in ("any", lab.bus):
            continue
        hit = lab.random.randint(1, 3)
        old = lab.connector if process == "connector" else lab.sink
        assert old.stop() == 0
        env = {"SPATE_FP": f"{name}=fail@{hit}"}
        new = lab.world.connector(env=env) if process == "connector" else lab.world.sink(lab.file, env=env)
        lab.connector, lab.sink = (new, lab.sink) if process == "connector" else (lab.connector, new)

        def failed():
            (lab.large_values if name == "local_spill" else lab.round)()
            return f" name={name} action=fail hit={hit}\n" in new.text()

        scratch.until(failed, lambda: f"{name}@{hit} is met:\n{new.tail()}", 20, 0.1)
        lab.equal()
        assert new.running(), new.tail()
    lab.finish()


def test_stopped_where_it_hurts(lab, seed):
    """SIGSTOP at a step, as a paused machine would be, and SIGCONT: it goes on, or notices that it may not."""
    for name in ("connector_publish", "connector_durable", "connector_confirm"):
        assert lab.connector.stop() == 0
        lab.connector = lab.world.connector(env={"SPATE_FP": f"{name}=stop@{lab.random.randint(1, 3)}"})
        until_stopped(lab, lab.connector, name)
        lab.round()
        lab.connector.process.send_signal(signal.SIGCONT)
        lab.equal()
    for name in ("sink_commit", "sink_sent", "sink_committed"):
        assert lab.sink.stop() == 0
        lab.sink = lab.world.sink(lab.file, env={"SPATE_FP": f"{name}=stop@{lab.random.randint(1, 3)}"})
        until_stopped(lab, lab.sink, name)
        lab.round()
        lab.sink.process.send_signal(signal.SIGCONT)
        lab.equal()
    lab.finish()


def until_stopped(lab, process, name):
    def stopped():
        lab.round()
        with open(f"/proc/{process.pid}/stat") as stat:
            return stat.read().rsplit(") ", 1)[1][0] == "T"

    scratch.until(stopped, lambda: f"{name} is met:\n{process.tail()}", 20, 0.1)
    assert f" name={name} action=stop " in process.text()


def test_a_plan_that_is_not_understood(names):
    done = subprocess.run([BINARY, "sink", "-c", "/nowhere"], env={**os.environ, "SPATE_FP": "sink_reed=kill"}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "did you mean sink_read?" in done.stderr and all(name in done.stderr for name, *_ in names)


def test_an_invalidated_slot(target, names):
    """connector_slot_dropped: dead between dropping a lost slot and making it anew; the next start still wants --new-epoch."""
    os.environ["SPATE"], before = BINARY, os.environ.get("SPATE")
    own = Cluster("lost", max_slot_wal_keep_size="1MB", min_wal_size="32MB", max_wal_size="32MB").start()
    world = World(own, target)
    try:
        world.src("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE SCHEMA private; CREATE TABLE private.noise (x text)")
        connector = world.connector()
        world.src("INSERT INTO t VALUES (1, 'before')")
        world.messages("public.t", count=1)
        assert connector.stop() == 0

        def lost():
            world.src("INSERT INTO private.noise SELECT repeat(md5(g::text), 30) FROM generate_series(1, 20000) g; SELECT pg_switch_wal()")
            own.sql("CHECKPOINT")
            return own.one("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [world.slot()]) == "lost"

        scratch.until(lost, "the slot is invalidated", 60)
        connector = world.connector("--new-epoch", ready=False, env={"SPATE_FP": "connector_slot_dropped=kill"})
        assert connector.wait_exit() == -signal.SIGKILL and " name=connector_slot_dropped action=kill hit=1\n" in connector.text()
        fenced = world.connector(ready=False)
        assert fenced.wait_exit() == 3 and "--new-epoch" in fenced.text(), fenced.tail()
        world.connector("--new-epoch")
        world.src("INSERT INTO t VALUES (2, 'after')")
        found = world.messages()
        assert [m["epoch"] for m in found if m["op"] == "epoch"] == [1, 2]
        assert [m["after"]["id"] for m in found if m["op"] == "insert"] == [1, 2]
    finally:
        world.close()
        own.destroy()
        os.environ.pop("SPATE") if before is None else os.environ.update(SPATE=before)
