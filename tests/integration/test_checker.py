"""The checker itself: it must find each kind of damage, or its silence means nothing."""
import copy
import json
import subprocess
import sys

import pytest

from tests.support.world import CHECKER


def check(*arguments):
    done = subprocess.run([sys.executable, CHECKER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def sides(source, target):
    for cluster in (source, target):
        cluster.create_database("checker")
        cluster.sql("CREATE TABLE t (id int PRIMARY KEY, v text, x numeric);"
                    "INSERT INTO t SELECT i, 'row ' || i, i / 7.0 FROM generate_series(1, 1000) i", db="checker")
    yield lambda *more: check("tables", "--source", source.dsn("checker"), "--target", target.dsn("checker"),
                              *(more or ("--pair", "SELECT * FROM t", "SELECT * FROM t")))
    for cluster in (source, target):
        cluster.drop_database("checker")


def test_equal_tables_are_equal(sides):
    code, out = sides()
    assert (code, out.split(":")[0]) == (0, "EQUAL 1000 rows"), out


@pytest.mark.parametrize("damage", [
    "DELETE FROM t WHERE id = 500", "INSERT INTO t VALUES (0, NULL, NULL)", "UPDATE t SET v = NULL WHERE id = 7",
    "UPDATE t SET v = v || ' ' WHERE id = 1000", "UPDATE t SET x = x + 0.0000001 WHERE id = 3",
    "UPDATE t SET v = (SELECT v FROM t o WHERE o.id = 3 - t.id) WHERE id IN (1, 2)",
])
def test_any_difference_is_found(sides, target, damage):
    connection = target.connect("checker", autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS TABLE t")
        cursor.execute(damage)
        try:
            code, out = sides()
            assert code == 1 and "DIFFERENT" in out and "only at the" in out
        finally:
            cursor.execute("DROP TABLE t; ALTER TABLE kept RENAME TO t")
    connection.close()


def test_repeated_rows_count(sides):
    twice = "SELECT id % 2 AS id FROM t"
    code, out = sides("--pair", twice, "SELECT DISTINCT " + twice[7:])
    assert code == 1 and "1000 rows at the source, 2 at the target" in out


def test_a_missing_table_is_no_equality(sides):
    assert sides("--pair", "SELECT 1", "SELECT 1 FROM nowhere")[0] == 1


def change(n, commit, ordinal, end=None, op="insert", epoch=1, xid=None):
    message = {"spate": 1, "op": op, "n": n, "epoch": epoch, "schema": "public", "table": "t", "pos": f"{commit:016X}.{ordinal:08X}"}
    if end:
        message["end"] = f"{end:016X}"
    return {**message, "xid": xid or commit, "ts": "2026-11-21T09:14:03.123456Z", "source": "shop", "v": 1, "key": {"id": n},
            "before": None, "after": {"id": n}, "unchanged": []}


def between(op, at, epoch=1, end=0x100, **more):
    return {"spate": 1, "op": op, "at": at, "epoch": epoch, "end": f"{end:016X}", "ts": "2026-11-21T09:14:03.123456Z", "source": "shop", **more}


def good():
    return [between("epoch", 0, previous=None), change(1, 0x200, 1), change(2, 0x200, 2, end=0x280),
            between("heartbeat", 2, end=0x300), change(3, 0x300, 1, end=0x380), change(4, 0x400, 1), change(5, 0x400, 2),
            change(6, 0x400, 3, end=0x480), between("epoch", 6, epoch=2, end=0x500, previous={"epoch": 1, "n": 6}),
            change(1, 0x500, 1, end=0x580, epoch=2)]


def check_stream(tmp_path, messages, *more, until="57F"):
    path = tmp_path / "stream.jsonl"
    path.write_text("".join(json.dumps(m) + "\n" if isinstance(m, dict) else m for m in messages))
    return check("bus", "--tap", f"cat {path}", "--until", until, *more)


def test_a_right_stream_passes(tmp_path):
    code, out = check_stream(tmp_path, good())
    assert code == 0 and json.loads(out)["messages"] == 10, out


def without(index):
    return lambda stream: stream.pop(index)


def repeat(index):
    return lambda stream: stream.insert(index, copy.deepcopy(stream[index]))


def swap(a, b):
    def apply(stream):
        stream[a], stream[b] = stream[b], stream[a]
    return apply


def put(index, **fields):
    return lambda stream: stream[index].update(fields)


@pytest.mark.parametrize("damage, words", [
    (without(1), "a hole"), (without(4), "a hole"), (without(0), "before any epoch"), (repeat(1), "repeated"), (repeat(4), "repeated"),
    (swap(5, 6), "a hole"), (put(5, pos=f"{0x300:016X}.00000001"), "does not ascend"), (put(3, at=1), "`at` is 1"),
    (put(3, end=f"{0x100:016X}"), "goes back"), (lambda s: s[2].pop("end"), "stands inside transaction"),
    (lambda s: s[4].pop("end"), "which had no `end`"), (lambda s: s.__setitem__(1, change(1, 0x200, 1, end=0x280)), "begins with ordinal 2"),
    (put(6, pos=f"{0x400:016X}.00000003"), "ordinal 3 after 1"), (put(4, pos=f"{0x250:016X}.00000001"), "lies before the end"),
    (put(2, end=f"{0x200:016X}"), "not beyond its commit"), (put(8, previous={"epoch": 1, "n": 5}), "ended with 6"),
    (put(8, epoch=3), "follows"), (put(9, epoch=1), "inside epoch"), (put(1, spate=2), "not a message of format 1"),
    (put(1, op="frobnicate"), "unknown op"), (lambda s: s.insert(3, "{\n"), "no JSON"), (without(9), "before 57F"),
    (lambda s: s.__setitem__(1, {**{k: v for k, v in s[1].items() if k != "n"}, "n": 1}), "deciding fields"),
    (put(6, xid=99), "begins inside"),
])
def test_any_damage_to_the_stream_is_found(tmp_path, damage, words):
    stream = good()
    damage(stream)
    code, out = check_stream(tmp_path, stream)
    assert code == 1 and words in out, out


@pytest.mark.parametrize("damage, found", [
    (lambda s: None, (0, 0, 0)),
    (repeat(1), (1, 0, 0)), (repeat(3), (0, 0, 0)), (repeat(4), (1, 0, 0)),
    (lambda s: s.insert(7, copy.deepcopy(s[1])), (1, 0, 0)),          # a zombie's, inside another transaction
    (lambda s: s.insert(1, copy.deepcopy(s[4])), (0, 1, 1)),          # a hole that heals
    (lambda s: s.insert(1, between("heartbeat", 2, end=0x300)), (0, 1, 1)),
    (lambda s: s.insert(9, copy.deepcopy(s[0])), (1, 0, 0)),          # the opening of an epoch that is over
    (lambda s: s.append(copy.deepcopy(s[5])), (0, 0, 0)),             # behind the end
    (lambda s: s.insert(9, copy.deepcopy(s[7])), (1, 0, 0)),          # a change of an epoch that is over
])
def test_a_log_may_repeat_and_heal(tmp_path, damage, found):
    stream = good()
    damage(stream)
    code, out = check_stream(tmp_path, stream, "--log")
    assert code == 0, out
    out = json.loads(out)
    assert (out["repeats"], out["holes"], out["hidden"]) == found and out["ops"]["insert"] == 7, out


@pytest.mark.parametrize("damage, words", [
    (without(1), "ended with 0"), (without(9), "before 57F"),
    (lambda s: s.insert(2, {**s[1], "after": {"id": 99}}), "another message"),
    (lambda s: s.insert(5, {**s[2], "xid": 12}), "another message"),
    (put(5, pos=f"{0x300:016X}.00000001"), "does not ascend"),
    (put(8, previous={"epoch": 1, "n": 5}), "ended with 6"), (put(8, epoch=3), "follows"), (put(9, epoch=3), "inside epoch"),
])
def test_what_no_log_may_do_is_found(tmp_path, damage, words):
    stream = good()
    damage(stream)
    code, out = check_stream(tmp_path, stream, "--log")
    assert code == 1 and words in out, out


def woven():
    """A request of two chunks, between changes of the rows 1 to 9."""
    def addressed(op, at, **more):
        message = between(op, at, **more)
        head = {"to": "team", "request": "r1"}
        if op != "snapshot-begin" and op != "ranges-end":
            head.update(schema="public", table="t")
        deciding = {name: message.pop(name) for name in ("spate", "op", "at", "epoch")}
        end = message.pop("end")
        return {**deciding, **head, **({"end": end} if op == "snapshot-begin" else {}), **message}

    def chunk(op, at, no, **more):
        return addressed(op, at, v=1, by="0000abcd", no=no, **more)

    def read(at, no, key, **columns):
        return chunk("read", at, no, key={"id": key}, after={"id": key, **columns})

    gone = {**change(4, 0x240, 1, end=0x250, op="delete"), "key": {"id": 2}, "after": None}
    moved = {**change(5, 0x260, 1, end=0x270, op="update"), "key": {"id": 9}, "before": {"id": 3}, "after": {"id": 9, "a": 1}, "unchanged": ["b"]}
    tables = [{"schema": "public", "table": "t"}]
    return [between("epoch", 0, previous=None)] + [change(n, 0x200 + 16 * n, 1, end=0x208 + 16 * n) for n in (1, 2, 3)] + [
        addressed("snapshot-begin", 3, end=0x238, tables=tables),
        chunk("chunk", 3, 1, range={"from": "(0,0)", "to": "(8,0)"}, dropped=[]), read(3, 1, 3, a=0, b=7), read(3, 1, 7, a=7),
        chunk("chunk-end", 3, 1, count=2, resume="x"), gone, moved,
        chunk("chunk", 5, 2, range={"from": "(8,0)", "to": "(9,0)"}, dropped=[{"id": 8}]), read(5, 2, 9, a=1, b=7),
        chunk("chunk-end", 5, 2, count=1, resume="y"), addressed("ranges-end", 5, tables=[{**tables[0], "chunks": 2}]),
        between("heartbeat", 5, end=0x580)]


def test_a_right_snapshot_passes(tmp_path):
    code, out = check_stream(tmp_path, woven(), "--truth")
    assert code == 0, out
    out = json.loads(out)
    assert (out["chunks"], out["rows"], out["dropped"], out["broken"]) == (2, 3, 1, 0)


@pytest.mark.parametrize("damage, words", [
    (put(12, key={"id": 2}, after={"id": 2}), "brings back"), (put(12, key={"id": 3}, after={"id": 3}), "brings back"),
    (put(12, after={"id": 9, "a": 0, "b": 7}), "has a = 0, the stream said 1"), (put(12, after={"id": 9, "a": 1, "b": 8}), "has b = 8"),
    (put(8, count=3), "counts 3 rows, there are 2"), (put(6, by="0000abce"), "outside of its chunk"), (put(7, no=2), "outside of its chunk"),
    (put(12, key={"id": 8}, after={"id": 8}), "named as dropped"), (without(5), "outside of its chunk"), (without(4), "has not begun"),
    (put(11, range={"from": "(7,0)", "to": "(9,0)"}), "where no chunk ended"), (put(14, tables=[{"schema": "public", "table": "t", "chunks": 3}]), "there are 2"),
    (lambda s: [m.update(no=3) for m in s[11:14]], "chunk 3 after chunk 1"), (put(11, at=4), "`at` is 4"), (put(4, end=f"{0x100:016X}"), "goes back"),
    (lambda s: s[11].pop("range"), "neither a range nor keys"),
])
def test_any_damage_to_a_snapshot_is_found(tmp_path, damage, words):
    stream = woven()
    damage(stream)
    code, out = check_stream(tmp_path, stream, "--truth")
    assert code == 1 and words in out, out


def test_a_row_read_from_before_a_truncate_is_found(tmp_path):
    stream = woven()
    emptied = {"spate": 1, "op": "truncate", "n": 6, "epoch": 1, "pos": f"{0x280:016X}.00000001", "end": f"{0x290:016X}", "xid": 9, "ts": "x", "source": "shop",
               "tables": [{"schema": "public", "table": "t", "v": 1}], "cascade": False, "restart": False, "key": None}
    stream.insert(11, emptied)
    for message in stream[12:]:
        message["at"] = 6
    code, out = check_stream(tmp_path, stream, "--truth")
    assert code == 1 and "brings back" in out, out


def test_two_writers_of_a_log_may_break_a_chunk(tmp_path):
    stream = woven()
    stream.insert(7, {**stream[7], "by": "0000dead"})
    code, out = check_stream(tmp_path, stream, "--truth", "--log")
    assert code == 0 and json.loads(out)["broken"] == 3, out
    assert json.loads(out)["chunks"] == 1


def test_half_a_bank_transfer_is_found(source):
    query = "SELECT sum(x) FROM (VALUES (1), (2)) AS v (x)"
    assert check("bank", "--target", source.dsn(), "--query", query, "--expect", "3", "--reads", "3")[0] == 0
    code, out = check("bank", "--target", source.dsn(), "--query", query, "--expect", "4", "--reads", "3")
    assert code == 1 and "gave 3, not 4" in out


def segment(lines):
    import struct
    data = bytearray(4096)
    struct.pack_into("=QQQ", data, 0, 0, 0, 1 << 20)
    for line in lines:
        record = struct.pack("=QqIIIHBB", 2 << 56 | len(line), 0, 0, 0, 0, 0, 0, 0) + line
        data += record + bytes(-len(record) % 64)
    return bytes(data) + bytes(64)


def test_a_confirmation_beyond_the_bus_is_found(source, tmp_path):
    slot = "checker_confirmed"
    source.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    try:
        confirmed = source.one("SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s", [slot])
        done = tmp_path / "done"
        done.write_text("")
        for end, code in ((confirmed, 0), (confirmed + 8, 0), (confirmed - 8, 1)):
            (tmp_path / f"{0:016x}.seg").write_bytes(segment([b'{"end":"%016X"}' % 1, b'{"end":"%016X"}' % end]))
            found, out = check("confirmed", "--source", source.dsn(), "--slot", slot, "--archive", str(tmp_path), "--until-file", str(done))
            assert found == code, out
    finally:
        source.sql("SELECT pg_drop_replication_slot(%s)", [slot])
