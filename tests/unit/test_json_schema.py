"""The published JSON Schemas, held against the golden lines by a validator that is not ours."""
import copy
import json
import pathlib
import re

import jsonschema
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "schemas"
HEAD = ["spate", "op", "n", "at", "epoch", "to", "request", "schema", "table", "pos", "end"]
META = ["xid", "ts", "source", "v"]
REST = {
    "insert": ["key", "before", "after", "unchanged"],
    "update": ["key", "before", "after", "unchanged"],
    "delete": ["key", "before", "after", "unchanged"],
    "truncate": ["tables", "cascade", "restart", "key"],
    "message": ["prefix", "content", "key"],
    "heartbeat": [],
    "epoch": ["uuid", "why", "identity", "previous", "follower"],
    "schema": ["fingerprint", "identity", "key", "columns"],
    "snapshot-begin": ["tables"],
    "chunk": ["by", "no", "range", "keys", "since", "dropped"],
    "read": ["by", "no", "key", "after"],
    "chunk-end": ["by", "no", "count", "resume"],
    "ranges-end": ["tables"],
    "stale": ["why", "columns"],
    "storage": ["gone", "state"],
}
OPTIONAL = {op: {"end"} for op in ("insert", "update", "delete", "truncate", "message")} | {"chunk": {"since"}, "stale": {"columns"}}
SCHEMA_OF = {"schema": "schema-message", "storage": "storage"}


def load(name):
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


def strict(schema):
    """Published schemas let later additions pass. What we write today has exactly the fields that they list."""
    schema = copy.deepcopy(schema)

    def close(node):
        if isinstance(node, dict):
            properties = node.get("properties", {})
            if node.get("type") == "object" and properties and "not" not in node:
                node.setdefault("additionalProperties", False)
            for child in node.values():
                close(child)
        elif isinstance(node, list):
            for child in node:
                close(child)

    close(schema)
    return schema


def validator(name, make=lambda schema: schema):
    schema = make(load(name))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def golden():
    lines = []
    for path in sorted((SCHEMAS / "golden").glob("*.jsonl")):
        text = path.read_text()
        assert text.endswith("\n"), f"{path} does not end with a line"
        found = [(path.stem, line) for line in text.splitlines()]
        assert found, f"{path} is empty"
        lines += found
    return lines


ALL = golden()
GOLDEN = [(stem, line) for stem, line in ALL if stem != "control"]
CONTROL = [line for stem, line in ALL if stem == "control"]
VALIDATORS = {op: validator(SCHEMA_OF.get(op, "message")) for op in REST}
STRICT = {op: validator(SCHEMA_OF.get(op, "message"), strict) for op in REST}


def first(op, **wanted):
    """The first golden message of an op with these fields, as a fresh object."""
    for stem, line in GOLDEN:
        message = json.loads(line)
        if stem == op and all(message.get(k) == v for k, v in wanted.items()):
            return message
    raise AssertionError(f"no golden {op} with {wanted}")


@pytest.mark.parametrize("name", ["message", "schema-message", "storage", "epoch", "control"])
def test_schema_is_a_schema(name):
    validator(name)


def test_every_op_has_a_golden_line():
    assert {stem for stem, _ in GOLDEN} == set(REST)


@pytest.mark.parametrize("stem,line", GOLDEN)
def test_golden_line_is_valid(stem, line):
    message = json.loads(line)
    assert message["op"] == stem
    VALIDATORS[stem].validate(message)
    STRICT[stem].validate(message)
    if stem == "epoch":
        validator("epoch", strict).validate(message)


@pytest.mark.parametrize("stem,line", GOLDEN)
def test_golden_line_has_its_fields_in_order(stem, line):
    order = HEAD + META + REST[stem]
    fields = list(json.loads(line))
    assert fields == [f for f in order if f in fields]
    assert len(fields) == len(set(k for k, _ in json.loads(line, object_pairs_hook=list)))


def test_epoch_schema_is_the_one_in_the_stream():
    alone, stream = load("epoch"), load("message")["$defs"]
    for key, value in stream["epoch"].items():
        assert alone[key] == value
    for name, value in alone["$defs"].items():
        assert stream[name] == value


@pytest.mark.parametrize("op", REST)
def test_additions_pass_and_missing_fields_do_not(op):
    message = first(op)
    assert VALIDATORS[op].is_valid({**message, "later": {"a": 1}})
    assert not STRICT[op].is_valid({**message, "later": {"a": 1}})
    for field in message:
        less = {k: v for k, v in message.items() if k != field}
        assert VALIDATORS[op].is_valid(less) == (field in OPTIONAL.get(op, ())), field


WRONG = [
    ("insert", {"spate": 2}),
    ("insert", {"spate": "1"}),
    ("insert", {"op": "Insert"}),
    ("insert", {"op": "delete"}),
    ("insert", {"n": 0}),
    ("insert", {"n": "1"}),
    ("insert", {"n": 1.5}),
    ("insert", {"n": 2**64}),
    ("insert", {"epoch": -1}),
    ("insert", {"schema": None}),
    ("insert", {"pos": "16B3748.3"}),
    ("insert", {"pos": "00000000016b3748.00000003"}),
    ("insert", {"end": ""}),
    ("insert", {"end": None}),
    ("insert", {"xid": 2**32}),
    ("insert", {"ts": "2026-11-21 09:14:03.123456Z"}),
    ("insert", {"ts": "2026-11-21T09:14:03Z"}),
    ("insert", {"v": 0}),
    ("insert", {"key": []}),
    ("insert", {"before": {}}),
    ("insert", {"after": None}),
    ("insert", {"after": {"t": {"$bytes": "not base64!"}}}),
    ("insert", {"after": {"t": {"$bytes": 1}}}),
    ("insert", {"unchanged": ["t"]}),
    ("update", {"after": None}),
    ("update", {"unchanged": ["a", "a"]}),
    ("update", {"unchanged": None}),
    ("delete", {"before": None}),
    ("delete", {"after": {}}),
    ("truncate", {"tables": []}),
    ("truncate", {"tables": [{"schema": "s", "table": "t"}]}),
    ("truncate", {"cascade": 0}),
    ("truncate", {"key": {}}),
    ("message", {"content": 5}),
    ("message", {"content": {"bytes": "AA=="}}),
    ("heartbeat", {"end": "0/16B3790"}),
    ("heartbeat", {"at": None}),
    ("epoch", {"uuid": "x"}),
    ("epoch", {"previous": "lost"}),
    ("epoch", {"previous": {"epoch": 1}}),
    ("epoch", {"follower": "continue"}),
    ("epoch", {"identity": {}}),
    ("snapshot-begin", {"to": None}),
    ("snapshot-begin", {"end": "0/16B3790"}),
    ("snapshot-begin", {"tables": [{"schema": "public"}]}),
    ("chunk", {"by": "0A1B2C3D"}),
    ("chunk", {"by": 169552957}),
    ("chunk", {"no": 0}),
    ("chunk", {"keys": []}),
    ("chunk", {"range": {"from": "(0,0)"}}),
    ("chunk", {"range": {"from": "0", "to": "1"}}),
    ("chunk", {"dropped": None}),
    ("chunk", {"dropped": [7]}),
    ("read", {"n": 1, "at": None}),
    ("read", {"after": None}),
    ("read", {"by": "x"}),
    ("chunk-end", {"count": -1}),
    ("chunk-end", {"resume": None}),
    ("ranges-end", {"tables": [{"schema": "public", "table": "orders"}]}),
    ("stale", {"at": None}),
    ("stale", {"v": 0}),
    ("stale", {"why": None}),
    ("stale", {"columns": []}),
    ("stale", {"columns": [1]}),
    ("storage", {"epoch": -1}),
    ("storage", {"gone": 0}),
    ("storage", {"state": None}),
    ("schema", {"v": 0}),
    ("schema", {"fingerprint": "E681A77379C38A1E"}),
    ("schema", {"identity": "d"}),
    ("schema", {"key": []}),
    ("schema", {"columns": [{"name": "a"}]}),
]


@pytest.mark.parametrize("op,change", WRONG)
def test_wrong_message_is_refused(op, change):
    message = first(op)
    assert VALIDATORS[op].is_valid(message)
    assert not VALIDATORS[op].is_valid({**message, **change})


CONTROL_OPS = ["request", "cancel", "reread", "finished", "started", "accepted", "refused", "progress"]


def control(op):
    return next(m for m in map(json.loads, CONTROL) if m["op"] == op and (op != "request" or "to" not in m))


@pytest.mark.parametrize("line", CONTROL)
def test_golden_control_line_is_valid(line):
    message = json.loads(line)
    validator("control").validate(message)
    validator("control", strict).validate(message)
    fields = list(message)
    deciding = [f for f in ["spate", "op", "epoch", "to", "request", "schema", "table"] if f in fields]
    assert fields[:len(deciding)] == deciding


def test_every_control_op_has_a_golden_line():
    assert {json.loads(line)["op"] for line in CONTROL} == set(CONTROL_OPS)


NEEDED = {
    "request": {"request", "sink", "tables"},
    "cancel": {"request", "sink"},
    "reread": {"request", "sink", "schema", "table", "keys"},
    "finished": {"request", "sink"},
    "started": {"epoch"},
    "accepted": {"to", "request", "tables"},
    "refused": {"to", "request", "reason"},
    "progress": {"to", "request", "state"},
}


@pytest.mark.parametrize("op", CONTROL_OPS)
def test_control_fields_that_must_be_there(op):
    schema, message = validator("control"), control(op)
    assert schema.is_valid({**message, "later": [1]})
    for field in message:
        less = {k: v for k, v in message.items() if k != field}
        must = field in NEEDED[op] | {"spate", "op"}
        assert schema.is_valid(less) != must, field
        # null is the same as leaving a field out
        assert schema.is_valid({**message, field: None}) != must, field


TABLE = {"schema": "public", "table": "orders"}
WRONG_CONTROL = [
    ("request", {"spate": 2}),
    ("request", {"op": "Request"}),
    ("request", {"request": ""}),
    ("request", {"sink": "a\u001bb"}),
    ("request", {"sink": 5}),
    ("request", {"tables": []}),
    ("request", {"tables": ["public.orders"]}),
    ("request", {"tables": [{"table": "orders"}]}),
    ("request", {"tables": [{**TABLE, "columns": []}]}),
    ("request", {"tables": [{**TABLE, "where": "id = 1"}]}),
    ("request", {"tables": [{**TABLE, "where": [{"column": "id", "op": "like", "value": "a%"}]}]}),
    ("request", {"tables": [{**TABLE, "where": [{"column": "id", "op": "=", "value": None}]}]}),
    ("request", {"tables": [{**TABLE, "where": [{"column": "id", "op": "is", "value": True}]}]}),
    ("request", {"tables": [{**TABLE, "where": [{"column": "id", "op": "="}]}]}),
    ("request", {"tables": [{**TABLE, "chunk": "1"}]}),
    ("request", {"again": "yes"}),
    ("reread", {"keys": []}),
    ("reread", {"keys": [{}]}),
    ("reread", {"keys": [1]}),
    ("accepted", {"tables": [{"schema": "public"}]}),
    ("refused", {"reason": 1}),
    ("progress", {"percent": -1}),
    ("progress", {"left_s": 0.5}),
    ("started", {"epoch": "1"}),
]


@pytest.mark.parametrize("op,change", WRONG_CONTROL)
def test_wrong_control_message_is_refused(op, change):
    schema, message = validator("control"), control(op)
    assert schema.is_valid(message)
    assert not schema.is_valid({**message, **change})


def test_control_examples_are_valid():
    for example in load("control")["examples"]:
        validator("control", strict).validate(example)


def test_documented_messages_are_valid():
    """What docs/message-format.md shows, and the request that people copy."""
    text = (ROOT / "docs/message-format.md").read_text()
    lines = [line for block in re.findall(r"^```json\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    seen = set()
    for line in lines + (ROOT / "docs/examples/request.json").read_text().splitlines():
        message = json.loads(line)
        seen.add(message["op"])
        if message["op"] in CONTROL_OPS:
            validator("control", strict).validate(message)
        elif message["op"] != "schema":  # its fingerprint is left out there
            STRICT[message["op"]].validate(message)
    assert seen >= {"request", "reread", "finished", "snapshot-begin", "chunk", "read", "chunk-end", "ranges-end",
                    "stale"}
    assert (ROOT / "docs/examples/request.json").read_text() in text


CLASSES = {16: 4, 20: 2, 21: 1, 23: 1, 700: 3, 701: 3, 3802: 5}


@pytest.mark.parametrize("line", [line for stem, line in GOLDEN if stem == "schema"])
def test_fingerprint_is_what_the_documentation_says(line):
    """docs/message-format.md: FNV-1a over the canonical form, written here a second time."""
    message = json.loads(line)
    names = [c["name"] for c in message["columns"]]
    form = bytearray(message["identity"][0].encode())
    form += len(names).to_bytes(4, "little")
    for column in message["columns"]:
        name = column["name"].encode()
        base = {"integer": 23}.get(column.get("base"), column["oid"])
        form += len(name).to_bytes(4, "little") + name
        form += column["oid"].to_bytes(4, "little")
        form += column["mod"].to_bytes(4, "little", signed=True)
        form += column["len"].to_bytes(2, "little", signed=True)
        form += bytes([column["identity"], CLASSES.get(base, 0)])
    key = message["key"] or []
    form += len(key).to_bytes(4, "little")
    for column in key:
        form += names.index(column).to_bytes(4, "little")
    for place, column in enumerate(message["columns"]):
        mask = column.get("mask", "").encode()
        if mask:
            form += place.to_bytes(4, "little") + len(mask).to_bytes(4, "little") + mask
    fingerprint = 0xCBF29CE484222325
    for byte in form:
        fingerprint = (fingerprint ^ byte) * 0x100000001B3 % 2**64
    assert f"{fingerprint:016x}" == message["fingerprint"]
