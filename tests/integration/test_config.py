"""A configuration error names file, line, key, what was expected and the nearest right spelling; exit 2, nothing started."""
import os

import pytest

CONNECTOR = """connector: shop
source:
  postgres:
    url: "%s"
    create: true
tables: ["public.*"]
bus:
  local:
    path: %s/bus
"""
SINK = """sink: team
from: shop
bus: {local: {path: %s/bus}}
into:
  postgres:
    url: "%s"
    schema: team
tables:
  t:
    from: public.t
"""

# name -> (text to replace, replacement, line of the complaint, words)
CONNECTOR_ERRORS = {
    "unknown key": ("    create: true", "    creat: true", 5, ["creat", "create"]),
    "unknown key above": ("connector: shop", "conector: shop", 1, ["conector", "connector"]),
    "unknown key in the bus": ("    path:", "    paht:", 9, ["paht", "path"]),
    "wrong type": ("    create: true", "    create: maybe", 5, ["create", "maybe"]),
    "list expected": ('tables: ["public.*"]', "tables: {a: b}", 6, ["tables"]),
    "mapping expected": ("  local:\n    path: %s/bus", "  local: here", 8, ["local"]),
    "out of range": ("bus:", "stop_deadline: -5s\nbus:", 7, ["stop_deadline"]),
    "no duration": ("bus:", "heartbeat: soon\nbus:", 7, ["heartbeat", "soon"]),
    "unknown choice": ("bus:", "log_level: verbos\nbus:", 7, ["log_level", "verbos", "info"]),
    "given twice": ("connector: shop", "connector: shop\nconnector: shop", 2, ["connector"]),
    "not YAML": ("  postgres:", "\tpostgres:", 3, []),
    "required key": ("    url: \"%s\"\n", "", None, ["source.postgres.url"]),
    "malformed glob": ('tables: ["public.*"]', "tables:\n  - public.*\n  - a.b.c", 8, ["tables", "a.b.c", "two parts"]),
    "name of a side topic": ("connector: shop", "connector: a._b", None, ["connector", "a._b", "beside a stream"]),
    "segment of no power of two": ("    path:", "    segment_bytes: 3MiB\n    path:", None,
                                   ["bus.local.segment_bytes", "power of two"]),
    "no bus": ("    path: %s/bus", "    hot: /dev/shm/none", None, ["bus.local.path"]),
}


@pytest.mark.parametrize("case", CONNECTOR_ERRORS, ids=[c.replace(" ", "-") for c in CONNECTOR_ERRORS])
def test_connector_file(world, case):
    old, new, line, words = CONNECTOR_ERRORS[case]
    values = (world.source.url(world.db), world.dir)
    text = CONNECTOR % values
    parts = old % world.dir if "%s/bus" in old else old % values[0] if "%s" in old else old
    assert parts in text
    file = world.write("bad.yaml", text.replace(parts, new))
    code, out, err = world.run("connector", "-c", file)
    assert code == 2, err
    assert f"bad.yaml:{line}" in err if line else "bad.yaml" in err, err
    for word in words:
        assert word in err, err
    assert not world.source.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = 'spate'")
    assert not os.path.exists(os.path.join(world.dir, "bus"))


@pytest.mark.parametrize("old, new, line, words", [
    ("    from: public.t", "    form: public.t", 10, ["form", "from"]),
    ("from: shop", "", None, ["from"]),
    ("    from: public.t", "    from: public.t\n    columns: [a]", 11, ["columns"]),
    ("    from: public.t", "    from: public.t\n    wehre: x", 11, ["wehre", "where"]),
    ("into:", "mode: upsert\ninto:", 4, ["mode"]),
], ids=["unknown-table-key", "from-missing", "columns-is-a-list", "unknown-key", "unknown-top-key"])
def test_sink_file(world, old, new, line, words):
    text = SINK % (world.dir, world.target.url(world.db))
    assert old in text
    file = world.write("bad.yaml", text.replace(old, new, 1))
    good = world.write("good.yaml", text)
    code, out, err = world.run("sink", "-c", good, "-c", file)
    assert code == 2, err
    assert f"bad.yaml:{line}" in err if line else "bad.yaml" in err, err
    for word in words:
        assert word in err, err
    assert not world.target.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'team'", db=world.db)


def test_missing_file(world):
    code, out, err = world.run("connector", "-c", "/nowhere/x.yaml")
    assert code == 2 and "/nowhere/x.yaml" in err


def test_an_option_of_the_command_line_is_unknown(world):
    code, out, err = world.run("connector", "--new-epock")
    assert code == 2 and "new-epock" in err
    code, out, err = world.run("conector")
    assert code == 2 and "connector" in err


def test_no_arguments_and_help(world):
    for command in ("connector", "sink", "tap"):
        code, out, err = world.run(command, "--help")
        assert code == 0 and "usage" in (out + err).lower(), command
    assert world.run("--version", check=0)[1].strip()
    assert world.run("connector")[0] == 2 and world.run("sink")[0] == 2


def test_the_samples_load(world):
    """The annotated files people copy are right: tap reads the bus out of them."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for name in ("connector.yaml", "billing.yaml", "search.yaml"):
        code, out, err = world.run("tap", "-c", os.path.join(root, "config", name), "--op", "isnert")
        assert code == 2 and name not in err, err
