"""The published JSON Schemas, held against the golden lines by a validator that is not ours."""
import copy
import json
import pathlib

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
}
SCHEMA_OF = {"schema": "schema-message"}


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


GOLDEN = golden()
VALIDATORS = {op: validator(SCHEMA_OF.get(op, "message")) for op in REST}
STRICT = {op: validator(SCHEMA_OF.get(op, "message"), strict) for op in REST}


def first(op, **wanted):
    """The first golden message of an op with these fields, as a fresh object."""
    for stem, line in GOLDEN:
        message = json.loads(line)
        if stem == op and all(message.get(k) == v for k, v in wanted.items()):
            return message
    raise AssertionError(f"no golden {op} with {wanted}")


@pytest.mark.parametrize("name", ["message", "schema-message", "epoch", "control"])
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
        optional = field == "end" and op not in ("heartbeat", "epoch")
        assert VALIDATORS[op].is_valid(less) == optional, field


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


def test_control_messages():
    control = validator("control")
    assert control.is_valid({"spate": 1, "op": "request", "request": "r1", "tables": ["a.b"]})
    assert control.is_valid(
        {"spate": 1, "op": "refused", "to": "billing", "request": "r1", "reason": "x", "remedy": "y"})
    assert not control.is_valid({"spate": 1, "op": "refused", "to": "billing", "request": "r1"})
    assert not control.is_valid({"spate": 1, "op": "insert"})


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
    fingerprint = 0xCBF29CE484222325
    for byte in form:
        fingerprint = (fingerprint ^ byte) * 0x100000001B3 % 2**64
    assert f"{fingerprint:016x}" == message["fingerprint"]
