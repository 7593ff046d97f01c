"""Who asks, for what, and what is answered: requests written by hand onto `_control`, and the desk that reads them.
Every refusal says why and how to mend it; where that is a statement, the statement is run and the request sent again."""
import json
import os
import re
import shutil
import subprocess
import threading
import time
import types

import psycopg2
import pytest

from tests.support import scratch
from tests.support.desk import Control, Desk, condition, table, tool
from tests.support.world import World

SETUP = """
CREATE TABLE orders (id int PRIMARY KEY, total numeric(10,2), made timestamptz, doc json, state text, code varchar(3), "Odd Name" int);
INSERT INTO orders SELECT g, g, now(), '{}', 'new', 'abc', 1 FROM generate_series(1, 1000) g; ANALYZE orders;
CREATE TABLE pairs (b int, a text, v text, PRIMARY KEY (a, b));
CREATE TABLE unpublished (id int PRIMARY KEY);
CREATE TABLE ungranted (id int PRIMARY KEY);
CREATE TABLE secured (id int PRIMARY KEY, who text); ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
CREATE VIEW a_view AS SELECT * FROM orders; CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM orders;
CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE abroad (id int) SERVER elsewhere;
CREATE TABLE keyless (v text); INSERT INTO keyless VALUES ('x');
CREATE TABLE keyless_large (v text); INSERT INTO keyless_large SELECT repeat('x', 1600) FROM generate_series(1, 13000);
CREATE TABLE parted (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100); CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
INSERT INTO parted SELECT g, 'v' FROM generate_series(1, 150) g;
CREATE TABLE parted_empty (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE half_abroad (id int) PARTITION BY RANGE (id); ALTER TABLE half_abroad REPLICA IDENTITY FULL;
CREATE FOREIGN TABLE half_abroad_1 PARTITION OF half_abroad FOR VALUES FROM (0) TO (100) SERVER elsewhere;
CREATE SCHEMA closed; CREATE TABLE closed.t (id int PRIMARY KEY);
CREATE TABLE filtered (id int PRIMARY KEY, v text, masked text);
CREATE PUBLICATION spate FOR TABLE orders, pairs, ungranted, secured, keyless, keyless_large, parted, parted_empty, half_abroad, closed.t
    WITH (publish_via_partition_root = true);
"""


@pytest.fixture(scope="module")
def world(source):
    new = World(source, None, heartbeat="10s")
    role = f"reader_{new.name}"
    new.role = role
    new.src(SETUP)
    new.src(f"CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}; GRANT SELECT ON closed.t TO {role};"
            f"REVOKE SELECT ON ungranted FROM {role}")
    new.config["source"]["postgres"].update(url=source.url(new.db, role), create=False)
    new.config["snapshots"] = {"allow": {"team*": "*.*", "other*": "public.orders", "snapshot-*": "*"}}
    yield new
    new.src(f"DROP OWNED BY {role}")
    new.close()
    source.sql(f"DROP ROLE {role}")


@pytest.fixture(scope="module")
def control(world):
    new = Control(world)
    yield new
    assert new.close() == 0


@pytest.fixture(scope="module")
def desk(world, control):
    new = Desk(world)
    new.order("before")
    yield new
    assert new.close() == 0


@pytest.fixture
def own_desk(world):
    """Of a connector of its own, whose topic is empty at the beginning."""
    made = []

    def make(name, **more):
        config = world.config
        stream = world.stream
        world.stream = f"shop_{name}"
        world.config = {**config, "connector": world.stream}
        made.append(Control(world))
        made.append(Desk(world, **more))
        world.config, world.stream = config, stream
        return made[-2:]

    yield make
    for lines in reversed(made):
        lines.close()


def refused(control, desk, request, reason, remedy):
    """The answer, to the asker alone; nothing is handed to the data plane."""
    said = control.answer(request, "refused", "accepted")
    assert said["op"] == "refused" and said["to"] == "team", said
    assert re.search(reason, said["reason"]), said
    assert re.search(remedy, said["remedy"]), said
    assert not desk.orders(request)
    return said


def admitted(control, desk, *tables, **more):
    """The plan's tables."""
    request = control.ask(*tables, **more)
    def look():
        answers = [said for said in control.answers(request) if said["op"] == "refused"]
        if answers:
            raise scratch.Failure(f"refused: {answers}")
        return desk.orders(request)
    order = scratch.until(look, f"an order for {request}", 10)[0]
    assert order["kind"] == "request"
    desk.tell(f"forget\t{request}")
    return order["plan"]


def statements(said):
    """The statements of a remedy."""
    return re.findall(r"(?:ALTER|GRANT)[^;]*;", said["remedy"])


NOT_THERE = [
    ("no_such_thing", {}, r'there is no table "public"."no_such_thing"', "pg_publication_tables"),
    ("ordesr", {}, r'there is no table "public"."ordesr"', r"did you mean public\.orders\?"),
    ("orders", {"schema": "pubic"}, r'there is no table "pubic"."orders"', r"did you mean public\.orders\?"),
    ("x'; DROP TABLE orders; --", {}, r"there is no table", "."),
    ("a_view", {}, "is a view", "the tables that it is made of"),
    ("a_matview", {}, "is a materialized view", "the tables that it is made of"),
    ("abroad", {}, "is a foreign table", "beside that server"),
    ("fleeting", {}, "is unlogged", r'ALTER TABLE "public"."fleeting" SET LOGGED;'),
    ("orders_pkey", {}, "is no table", "ask for a table"),
    ("pg_class", {"schema": "pg_catalog"}, r"is not in publication \"spate\"", "ADD TABLE"),
    ("parted_1", {}, r"published as those of public\.parted", r"ask for public\.parted"),
    ("half_abroad", {}, "partition .*half_abroad_1.* is a foreign table", "DETACH PARTITION"),
    ("keyless", {}, "have no key", "ADD PRIMARY KEY.*append"),
]


@pytest.mark.parametrize("name,more,reason,remedy", NOT_THERE, ids=[case[0].split()[0] for case in NOT_THERE])
def test_what_cannot_be_read_is_refused(control, desk, name, more, reason, remedy):
    refused(control, desk, control.ask(table(name, **more)), reason, remedy)


def test_a_statement_that_mends_it_is_given(world, control, desk):
    """Run as it stands, by the source's owner; then the same is admitted."""
    for asked, reason in ((table("unpublished"), "not in publication"), (table("ungranted"), "may not read"),
                          (table("t", "closed"), "may not read"), (table("secured"), "row-level security")):
        said = refused(control, desk, control.ask(asked), reason, ".")
        assert statements(said), said
        for statement in statements(said):
            world.src(statement)
        assert [t["table"] for t in admitted(control, desk, asked)] == [asked["table"]]
    world.src(f"ALTER ROLE {world.role} NOBYPASSRLS; GRANT SELECT ON parted TO {world.role}; REVOKE SELECT ON parted_2 FROM {world.role}")
    said = refused(control, desk, control.ask(table("parted")), 'may not read "public"."parted_2"', "GRANT SELECT")
    world.src(statements(said)[0])
    admitted(control, desk, table("parted"))


def test_partitions_that_are_published_each_by_itself(world, control, desk):
    world.src("ALTER PUBLICATION spate SET (publish_via_partition_root = false)")
    try:
        refused(control, desk, control.ask(table("parted")), "publishes the partitions of .* each as a table of its own",
                r"public\.parted_1.*publish_via_partition_root = true")
        plan = admitted(control, desk, table("parted_1"), table("parted_2"))
        assert [[leaf["name"] for leaf in t["leaves"]] for t in plan] == [['"public"."parted_1"'], ['"public"."parted_2"']]
    finally:
        world.src("ALTER PUBLICATION spate SET (publish_via_partition_root = true)")
    plan = admitted(control, desk, table("parted"), table("parted_empty"))
    assert sorted(leaf["name"] for leaf in plan[0]["leaves"]) == ['"public"."parted_1"', '"public"."parted_2"']
    assert plan[1]["leaves"] == []


PUBLICATIONS = {
    "all_root": "FOR ALL TABLES WITH (publish_via_partition_root = true)", "all_leaves": "FOR ALL TABLES",
    "listed_root": "FOR TABLE p.top, p.plain WITH (publish_via_partition_root = true)", "listed_leaves": "FOR TABLE p.top, p.plain",
    "below": "FOR TABLE p.mid WITH (publish_via_partition_root = true)", "below_leaves": "FOR TABLE p.mid",
    "several": "FOR TABLE p.top, p.mid, p2.leaf WITH (publish_via_partition_root = true)", "one_leaf": "FOR TABLE p.leaf WITH (publish_via_partition_root = true)",
    "nothing": "",
}
FROM_15_ON = {
    "schema_root": "FOR TABLES IN SCHEMA p2 WITH (publish_via_partition_root = true)", "schema_leaves": "FOR TABLES IN SCHEMA p2",
    "schema_of_root": "FOR TABLES IN SCHEMA p WITH (publish_via_partition_root = true)",
    "filtered_all": "FOR TABLE p.plain (id, v) WHERE (id < 5), p.top WHERE (id > 3) WITH (publish_via_partition_root = true)",
    "filtered_schema": "FOR TABLE p2.other WHERE (id < 5), TABLES IN SCHEMA p2",
}


def test_what_is_published_is_what_the_server_says(world, control, own_desk):
    """Each kind of publication, over partitions of partitions in two schemas: admitted is what pg_publication_tables has."""
    world.src("""CREATE SCHEMA p; CREATE SCHEMA p2; CREATE TABLE p.plain (id int PRIMARY KEY, v text, w text); CREATE TABLE p2.other (id int PRIMARY KEY);
        CREATE TABLE p.top (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE p.leaf PARTITION OF p.top FOR VALUES FROM (0) TO (10);
        CREATE TABLE p.mid PARTITION OF p.top FOR VALUES FROM (10) TO (30) PARTITION BY RANGE (id);
        CREATE TABLE p.low PARTITION OF p.mid FOR VALUES FROM (10) TO (20); CREATE TABLE p2.leaf PARTITION OF p.mid FOR VALUES FROM (20) TO (30);
        CREATE UNLOGGED TABLE p.fleeting (id int PRIMARY KEY)""")
    world.src(f"GRANT USAGE ON SCHEMA p, p2 TO {world.role}; GRANT SELECT ON ALL TABLES IN SCHEMA p, p2 TO {world.role}")
    names = [("p", n) for n in ("plain", "top", "leaf", "mid", "low", "fleeting")] + [("p2", n) for n in ("other", "leaf")]
    new = world.source.one("SHOW server_version_num") >= "150000"
    kept = world.config["source"]["postgres"]["publication"]
    try:
        for name, what in {**PUBLICATIONS, **(FROM_15_ON if new else {})}.items():
            world.src(f"CREATE PUBLICATION {name} {what}")
            world.config["source"]["postgres"]["publication"] = name
            _, desk = lines = own_desk("p_" + name)
            said = {row[:2]: row[2:] for row in world.src("SELECT schemaname, tablename" + (", attnames, rowfilter" if new else "")
                                                          + " FROM pg_publication_tables WHERE pubname = %s", [name]) if row[:2] in names}
            found = {}
            for schema, t in names:
                request = lines[0].ask(table(t, schema), sink="team_1")
                scratch.until(lambda: desk.orders(request) or [a for a in lines[0].answers(request) if a["op"] == "refused"], "an answer", 10)
                for order in desk.orders(request):
                    plan = order["plan"][0]
                    found[schema, t] = (plan["asked"], plan["leaves"][0]["filter"]) if new else ()
            assert found == {key: (list(value[0]), value[1]) if new else () for key, value in said.items()}, name
            world.src(f"DROP PUBLICATION {name}")
    finally:
        world.config["source"]["postgres"]["publication"] = kept


COLUMNS = [
    ({"columns": ["id", "totl"]}, 'has no column "totl"', 'did you mean "total"'),
    ({"columns": ["nonsense"]}, 'has no column "nonsense"', "id, total, made"),
    ({"where": [condition("stat", "=", "new")]}, 'has no column "stat"', 'did you mean "state"'),
    ({"where": [condition("odd name", "=", "1")]}, 'has no column "odd name"', 'did you mean "Odd Name"'),
    ({"where": [condition("made", ">=", "yesterdayish")]}, 'on column "made" .* does not fit its type timestamp with time zone', "YYYY-MM-DD"),
    ({"where": [condition("id", "=", "12x")]}, 'on column "id" .* does not fit its type integer', "as Postgres prints"),
    ({"where": [condition("id", "=", "99999999999")]}, 'does not fit its type integer .numeric_value_out_of_range', "as Postgres prints"),
    ({"where": [condition("id", "=", "1; DROP TABLE orders")]}, "does not fit", "."),
    ({"where": [condition("doc", "=", "{}")]}, 'type json has no operator =', "another column"),
    ({"where": [condition("id", "<", "9"), condition("doc", "<", "{}")]}, 'type json has no operator <', "another column"),
]


@pytest.mark.parametrize("more,reason,remedy", COLUMNS, ids=range(len(COLUMNS)))
def test_columns_and_values_are_checked_against_the_table(control, desk, more, reason, remedy):
    said = refused(control, desk, control.ask(table("orders", **more)), reason, remedy)
    for bad in more.get("where", []):
        assert bad["value"] not in said["reason"] + said["remedy"] or len(bad["value"]) < 4


@pytest.mark.parametrize("op", ["like", "LIKE", "=>", "", "= 1 OR 1", "is", "~"])
def test_an_operator_that_is_none(control, desk, op):
    refused(control, desk, control.ask(table("orders", where=[condition("id", op, "1")])), r"\bop\b|operator", ".")


def test_what_is_read(world, control, desk):
    """The plan: the key's columns always, conditions as they were given, a look-up where the key is given."""
    t = admitted(control, desk, table("orders", columns=["state"], where=[condition("made", ">=", "2026-01-01"), condition("state", "is not", None)]))[0]
    assert t["asked"] == ["id", "state"] and not t["all"] and not t["by_key"]
    assert [(c["column"], c["op"], c["value"]) for c in t["where"]] == [("made", ">=", "2026-01-01"), ("state", "is not", None)]
    assert len(t["leaves"]) == 1 and t["leaves"][0]["rows"] == 1000 and t["leaves"][0]["pages"] >= 5 and t["leaves"][0]["filter"] is None
    assert admitted(control, desk, table("orders"))[0]["all"]
    assert admitted(control, desk, table("orders", where=[condition("id", "=", "7")]))[0]["by_key"]
    assert not admitted(control, desk, table("orders", where=[condition("id", "=", "7"), condition("state", "=", "new")]))[0]["by_key"]
    both = [condition("b", "=", "7"), condition("a", "=", "it's; --")]
    assert admitted(control, desk, table("pairs", where=both))[0]["by_key"]
    assert not admitted(control, desk, table("pairs", where=both[:1]))[0]["by_key"]
    assert admitted(control, desk, table("orders", where=[condition("code", "=", "longer than the column is")]))  # holds for no row
    t = admitted(control, desk, table("orders", resume="1:abc", chunk=7), again=True)[0]
    assert t["resume"] == "1:abc" and t["chunk"] == 7


def test_what_the_publication_leaves_out_is_left_out(world, control, desk):
    """Its column list and its row filter (P48, P49); from Postgres 15 on."""
    if world.source.one("SHOW server_version_num") < "150000":
        pytest.skip("no column lists before Postgres 15")
    world.src(f"ALTER PUBLICATION spate ADD TABLE filtered (id, v) WHERE (id < 100); GRANT SELECT ON filtered TO {world.role}")
    t = admitted(control, desk, table("filtered"))[0]
    assert t["asked"] == ["id", "v"] and t["leaves"][0]["filter"] == "(id < 100)"
    refused(control, desk, control.ask(table("filtered", where=[condition("masked", "=", "x")])), 'no column "masked"', "id, v")
    stamp = t["leaves"][0]["stamp"]
    world.src("ALTER PUBLICATION spate SET TABLE " + ", ".join(
        f"{row[0]}.{row[1]}" for row in world.src("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = 'spate' AND tablename <> 'filtered'"))
        + ", filtered (id, v) WHERE (id < 200)")
    t = admitted(control, desk, table("filtered"))[0]
    assert t["leaves"][0]["filter"] == "(id < 200)" and t["leaves"][0]["stamp"] != stamp


def test_without_a_key_only_whole_and_appended(control, desk):
    assert admitted(control, desk, table("keyless"), append=True)[0]["leaves"][0]["pages"] == 1
    refused(control, desk, control.ask(table("keyless_large"), append=True), r"in one piece, and \d+ MiB are more than the 16 MiB", "ADD PRIMARY KEY")


def test_who_may_ask(control, desk):
    said = control.answer(control.ask(table("orders"), sink="stranger"), "refused")
    assert said["to"] == "stranger" and "does not name this requester" in said["reason"] and 'allow: {"stranger": "public.orders"}' in said["remedy"]
    said = control.answer(control.ask(table("pairs"), sink="other_1"), "refused")
    assert said["to"] == "other_1" and "allows it other tables" in said["reason"]
    assert admitted(control, desk, table("orders"), sink="other_1")
    # Nobody learns of what he may not have.
    said = control.answer(control.ask(table("no_such_thing"), sink="other_1"), "refused")
    assert "allows it other tables" in said["reason"]


def test_one_bad_table_refuses_the_whole_request(control, desk):
    refused(control, desk, control.ask(table("orders"), table("a_view")), "is a view", ".")
    refused(control, desk, control.ask(table("orders"), table("pairs"), table("orders")), "twice", "name a table once")
    refused(control, desk, control.ask(), "table", ".")


def test_a_pattern_asks_for_what_can_be_asked(control, desk):
    """`some`: what cannot be read is left out, unless nothing is left."""
    plan = admitted(control, desk, table("parted_1"), table("orders"), table("a_view"), table("parted"), table("half_abroad"), some=True)
    assert [t["table"] for t in plan] == ["orders", "parted"]
    plan = admitted(control, desk, table("unheard_of"), table("orders"), sink="other_1", some=True)
    assert [t["table"] for t in plan] == ["orders"]
    refused(control, desk, control.ask(table("parted_1"), table("a_view"), some=True), "is a view", ".")
    said = control.answer(control.ask(table("pairs"), table("parted"), sink="other_1", some=True), "refused")
    assert "allows it other tables" in said["reason"]


MALFORMED = [
    ({"tables": "orders"}, "tables"),
    ({"tables": [{"schema": "public"}]}, "table"),
    ({"tables": [{"schema": "public", "table": 7}]}, "table"),
    ({"tables": [table("orders", columns="id")]}, "columns"),
    ({"tables": [table("orders", where=[{"column": "id", "op": "="}])]}, "value"),
    ({"tables": [table("orders", where={"id": 1})]}, "where"),
    ({}, "tables"),
]


@pytest.mark.parametrize("fields,word", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_request_is_answered(control, desk, fields, word):
    request = f"malformed-{MALFORMED.index((fields, word))}"
    control.tell(json.dumps({"spate": 1, "op": "request", "request": request, "sink": "team", **fields}))
    refused(control, desk, request, word, "message-format")


def test_a_later_version_is_refused_and_what_nobody_can_read_is_passed_by(control, desk):
    control.tell(json.dumps({"spate": 2, "op": "request", "request": "of-tomorrow", "sink": "team", "tables": [table("orders")]}))
    refused(control, desk, "of-tomorrow", "2", "update the connector")
    before = len(control.said)
    for line in (b"no json", b"\xff\xfe", b"{", b'{"spate":1}', b'{"spate":1,"op":"request"}', b'{"spate":1,"op":"dance","request":"d","sink":"team"}',
                 b"[" * 5000, b'{"spate":1,"op":"request","to":"billing","request":"for-the-sink"}', b'{"spate":1,"op":"finished","request":"nobody","sink":"team"}'):
        control.tell(line)
    assert admitted(control, desk, table("orders"))
    assert [said["op"] for said in control.said[before:] if "to" in said and said.get("op") != "request"] == []


def test_the_same_request_twice_starts_nothing(control, desk):
    request = control.ask(table("orders"))
    desk.order("request", request)
    accepted = {"spate": 1, "op": "accepted", "to": "team", "request": request, "tables": [{**table("orders"), "rows": 1000, "pages": 8}]}
    desk.tell("say\t" + json.dumps(accepted, separators=(",", ":")))
    control.answer(request, "accepted")
    control.ask(table("orders"), request=request)
    control.ask(table("orders", resume="1:x", chunk=3), request=request)  # it was sent again after 30 s, or after a restart
    scratch.until(lambda: len(control.answers(request)) == 3, lambda: f"accepted once more for each: {control.answers(request)}")
    assert len(desk.orders(request)) == 1
    control.ask(table("orders"), request=request, sink="other_2")
    said = control.wait(lambda s: s.get("to") == "other_2" and s["op"] == "refused" and s["request"] == request, "refused to the other")
    assert "another requester uses this id" in said["reason"]
    # A chunk was lost: it goes on from its token.
    control.ask(table("orders", resume="1:x", chunk=3), request=request, again=True)
    scratch.until(lambda: len(desk.orders(request)) == 2, "a second order")
    assert desk.orders(request)[1]["again"] and desk.orders(request)[1]["plan"][0]["chunk"] == 3
    control.about(request, "reread", schema="public", table="orders", keys=[{"id": 1}, {"id": 2}], chunk=5)
    order = desk.order("reread", request)
    assert (order["schema"], order["table"], json.loads(order["keys"]), order["chunk"]) == ("public", "orders", [{"id": 1}, {"id": 2}], 5)
    control.about(request, "finished")
    desk.order("finished", request)
    desk.tell("say\t" + json.dumps({"spate": 1, "op": "progress", "to": "team", "request": request, "state": "finished", "tables": []}))
    desk.tell(f"forget\t{request}")
    control.answer(request, "progress", state="finished")
    control.ask(table("orders"), request=request)  # the bus brought it twice, or somebody's script did
    scratch.until(lambda: len([a for a in control.answers(request) if a.get("state") == "finished"]) == 2, "finished, once more")
    assert [o["kind"] for o in desk.orders(request)] == ["request", "request", "reread", "finished"]
    control.ask(table("orders", resume="1:x", chunk=3), request=request)  # a requester that lost its end
    scratch.until(lambda: len(desk.orders(request)) == 5, "it goes on")
    desk.tell(f"forget\t{request}")


def test_a_cancelled_request(control, desk):
    control.about("never-heard-of", "cancel")
    refused(control, desk, "never-heard-of", "no request with this id", "--list")
    request = control.ask(table("orders"))
    desk.order("request", request)
    control.about(request, "cancel")
    desk.order("cancel", request)
    desk.tell(f"forget\t{request}")


def test_a_requester_has_one_request_at_a_time(world, control, desk):
    """One that was restarted before it was answered asks with another id."""
    holder = world.source.connect(world.db, autocommit=False)
    holder.cursor().execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
    first = control.ask(table("orders"), sink="team_1")
    control.answer(first, "progress", state="waiting")
    second, beside = control.ask(table("orders"), sink="team_1"), control.ask(table("orders"), sink="team_2")
    assert "another request" in control.answer(first, "progress", state="cancelled")["why"]
    holder.rollback()
    holder.close()
    for request in (second, beside):
        desk.order("request", request)
        desk.tell(f"forget\t{request}")
    assert not desk.orders(first)


def test_a_lock_in_the_way_is_waited_for(world, control, desk):
    holder = world.source.connect(world.db, autocommit=False)
    holder.cursor().execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
    request = control.ask(table("orders"))
    told = control.answer(request, "progress", state="waiting")
    assert str(holder.info.backend_pid) in told["why"] and "orders" in told["why"], told
    # Another one is not held up by it, nor is what it cannot have.
    begin = time.monotonic()
    assert admitted(control, desk, table("pairs"), sink="team_2")
    assert time.monotonic() - begin < 3
    assert not desk.orders(request)
    holder.rollback()
    desk.order("request", request)
    desk.tell(f"forget\t{request}")
    # Cancelled while it waits.
    holder.cursor().execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
    request = control.ask(table("orders"))
    control.answer(request, "progress", state="waiting")
    control.about(request, "cancel")
    control.answer(request, "progress", state="cancelled")
    holder.rollback()
    holder.close()
    assert admitted(control, desk, table("orders"))
    assert not desk.orders(request)


def test_a_broken_connection_is_made_anew(world, control, desk):
    assert admitted(control, desk, table("orders"))
    for _ in range(3):
        world.src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%%_desk'")
        assert admitted(control, desk, table("orders"))
    # It waits for nobody's answer for ever, and holds nothing.
    assert world.src("SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.application_name LIKE '%%_desk'"
                     " AND l.locktype = 'relation'")[0][0] == 0


def test_a_table_is_planned_anew(world, control, desk):
    world.src(f"CREATE TABLE shifting (id int PRIMARY KEY, v text); GRANT SELECT ON shifting TO {world.role}; ALTER PUBLICATION spate ADD TABLE shifting")
    request = control.ask(table("orders"), table("shifting", resume="1:old", chunk=4))
    first = desk.order("request", request)["plan"][1]
    world.src("ALTER TABLE shifting ADD COLUMN w int")
    desk.tell(f"replan\t{request}\tpublic\tshifting")
    order = desk.order("replan", request)
    assert (order["schema"], order["table"]) == ("public", "shifting") and len(order["plan"]) == 1
    assert order["plan"][0]["asked"] == ["id", "v", "w"] and order["plan"][0]["resume"] == ""
    assert order["plan"][0]["leaves"][0]["stamp"] != first["leaves"][0]["stamp"]
    # Whoever rewrites it may take his time; then it is gone.
    holder = world.source.connect(world.db, autocommit=False)
    holder.cursor().execute("DROP TABLE shifting")
    at = len(desk.said)
    desk.tell(f"replan\t{request}\tpublic\tshifting")
    control.answer(request, "progress", state="waiting")
    holder.commit()
    holder.close()
    order = desk.order("replan", request, after=at)
    assert order["plan"] is None and "there is no table" in order["why"]
    assert "there is no table" in control.answer(request, "refused")["reason"]
    assert admitted(control, desk, table("orders"))


def test_more_than_64_at_once(own_desk):
    control, desk = own_desk("many")
    ids = [control.ask(table("orders"), sink=f"team_{i}") for i in range(66)]
    for request in ids[64:]:
        said = control.answer(request, "refused", seconds=20)
        assert "64 requests" in said["reason"] and "--list" in said["remedy"]
    for request in ids[:64]:
        desk.order("request", request, seconds=20)
    desk.tell(f"forget\t{ids[0]}")
    desk.order("request", control.ask(table("orders")))


def test_what_was_asked_while_nobody_listened(own_desk):
    """Before the connector has the stream it says nothing: another one may have it. Then it takes up what nobody answered."""
    control, desk = own_desk("later", session=None)
    now = int(time.time() * 1e6)
    asked = control.ask(table("orders"), sink="team_1", at_us=now - 600 * 10**6)
    old = control.ask(table("orders"), sink="team_2", at_us=now - 3700 * 10**6)
    answered, over, gone = (control.ask(table("orders"), sink=f"team_{i}") for i in (3, 4, 5))
    control.tell(json.dumps({"spate": 1, "op": "accepted", "to": "team", "request": answered, "tables": []}))
    control.about(over, "cancel")
    control.about(gone, "finished")
    bad = control.ask(table("a_view"))
    scratch.until(lambda: len(control.said) >= 9, "all of it stands in the topic")
    desk.session(5, 3)
    desk.order("before")
    assert control.wait(lambda said: said.get("op") == "started", "started")["epoch"] == 3
    desk.order("request", asked)
    control.answer(bad, "refused")
    last = control.ask(table("pairs"))
    desk.order("request", last)
    assert [o["request"] for o in desk.said if o["kind"] == "request"] == [asked, last]
    assert not control.answers(old) and not control.answers(over) and not control.answers(gone)
    # The session is over, and another one begins: what it had is forgotten, what comes between is taken up.
    desk.tell("leave")
    between, to_another = control.ask(table("orders"), sink="team_6"), control.ask(table("orders"))
    control.tell(json.dumps({"spate": 1, "op": "refused", "to": "team", "request": to_another, "reason": "another connector said so", "remedy": "-"}))
    scratch.until(lambda: any(s.get("reason") == "another connector said so" for s in control.said), "it was said")
    at = len(desk.said)
    desk.session(6, 3)
    desk.order("before", after=at)
    assert desk.order("request", between)["session"] == 6
    control.ask(table("orders", resume="1:y", chunk=1), request=asked, sink="team_1")  # its requester saw `started`
    order = desk.order("request", asked, after=at)
    assert order["plan"][0]["resume"] == "1:y"
    assert not desk.orders(to_another)


def test_a_topic_that_was_removed_is_made_anew(world, own_desk):
    """Whatever happens to it, nothing but requests is held up, and those only as long as it lasts."""
    control, desk = own_desk("gone")
    desk.order("request", control.ask(table("orders"), sink="team_1"))
    for root in (world.bus["local"]["path"], world.bus["local"]["hot"]):
        for folder, _, _ in os.walk(root):
            if os.path.basename(folder) == "shop_gone._control":
                shutil.rmtree(folder)
                break
    def asked_again():
        try:
            again = Control(types.SimpleNamespace(kafka=None, bus=world.bus, stream="shop_gone"))
            request = again.ask(table("pairs"), sink="team_2")
            scratch.until(lambda: desk.orders(request), "an order", 2)
            return True
        except (scratch.Failure, OSError):
            return False
        finally:
            again.process.kill()
    scratch.until(asked_again, "it is read again", 20)


def test_the_lock_is_not_held_after_the_answer(world, control, desk):
    """Nothing of the source is held between requests: DDL does not wait for the desk."""
    admitted(control, desk, table("orders"))
    begin = time.monotonic()
    connection = world.source.connect(world.db)
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '2s'; ALTER TABLE orders ADD COLUMN later int; ALTER TABLE orders DROP COLUMN later")
    connection.close()
    assert time.monotonic() - begin < 2


def test_a_flood_of_nonsense_disturbs_nobody(world, control, desk):
    """What others ask meanwhile is answered all the same."""
    stop, others = threading.Event(), Control(world)
    nope = json.dumps({"spate": 1, "op": "request", "request": "flood", "sink": "team_9", "tables": [table("nope")]})

    def flood():
        while not stop.wait(0.02):
            others.tell(nope)
            others.tell(b"garbage" * 50)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        control.answer("flood", "refused")
        for _ in range(10):
            begin = time.monotonic()
            assert admitted(control, desk, table("orders"))
            assert time.monotonic() - begin < 5
    finally:
        stop.set()
        thread.join()
        others.process.kill()
    assert len(control.answers("flood")) > 1


# With the whole connector, on both buses.


@pytest.fixture
def asked(each_world):
    made = []

    def start(**snapshots):
        each_world.config["snapshots"] = {"chunk_bytes": "64KiB", **snapshots}
        each_world.connector()
        made.append(Control(each_world))
        return made[0]

    yield start
    for control in made:
        control.close()


def begun(control, request):
    control.wait(lambda said: said.get("request") == request and said.get("op") == "progress" and said["state"] == "reading" and said["rows"] > 0,
                 f"{request} is being read", 20)


def test_a_request_by_hand_to_its_end(each_world, asked):
    """As a person writes it; what is refused beside it disturbs neither it nor the stream."""
    world = each_world
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE empty (id int PRIMARY KEY); CREATE VIEW w AS TABLE t;"
              "INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 500) g; ANALYZE t")
    control = asked()
    assert control.wait(lambda said: said.get("op") == "started", "started")["epoch"] == 1
    control.tell('{"spate": 1, "sink": "me", "tables": [{"table": "t", "schema": "public", "where": [{"column": "id", "op": "<=", "value": "100"}]},'
                 ' {"schema": "public", "table": "empty"}], "op": "request", "request": "by hand"}')
    control.tell('{"spate": 1, "sink": "me", "tables": [{"table": "w", "schema": "public"}], "op": "request", "request": "wrong"}')
    control.tell("{}")
    accepted = control.answer("by hand", "accepted")
    assert accepted["to"] == "me" and [t["table"] for t in accepted["tables"]] == ["t", "empty"] and accepted["tables"][0]["rows"] == 500
    assert "is a view" in control.answer("wrong", "refused")["reason"]
    world.src("INSERT INTO t VALUES (1000, 'meanwhile')")
    control.answer("by hand", "progress", state="sent", seconds=20)
    control.about("by hand", "finished")
    control.answer("by hand", "progress", state="finished")
    stream = world.messages()
    mine = [m for m in stream if m.get("request") == "by hand"]
    assert [m["op"] for m in mine if m["op"] != "read"] == ["snapshot-begin"] + ["chunk", "chunk-end"] * (len([m for m in mine if m["op"] == "chunk"])) + ["ranges-end"]
    assert sorted(m["key"]["id"] for m in mine if m["op"] == "read") == list(range(1, 101)) and {m["to"] for m in mine} == {"me"}
    assert not [m for m in stream if m.get("request") == "wrong"] and [m["key"]["id"] for m in stream if m["op"] == "insert"] == [1000]


def test_a_table_that_goes_away_while_it_is_read(each_world, asked):
    """Dropped, taken out of the publication, or no longer granted: its requester is told; another request goes on."""
    world = each_world
    role = f"reader_{world.name}"
    names = ("dropped", "unpublished", "revoked", "stays")
    try:
        world.src("".join(f"CREATE TABLE {name} (id int PRIMARY KEY, v text); INSERT INTO {name} SELECT g, repeat('x', 500) FROM generate_series(1, {1500 if name == 'stays' else 6000}) g;"
                          for name in names))
        world.src("CREATE PUBLICATION spate FOR TABLE " + ", ".join(names) +
                  f"; CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        world.src(f"SELECT pg_create_logical_replication_slot('{world.slot()}', 'pgoutput')")
        world.config["source"]["postgres"].update(url=world.source.url(world.db, role), create=False)
        control = asked(rows_per_second=1500)
        ids = {name: control.ask(table(name), sink=name) for name in names}
        for name in names:
            begun(control, ids[name])
        world.src(f"DROP TABLE dropped; ALTER PUBLICATION spate DROP TABLE unpublished; REVOKE SELECT ON revoked FROM {role}")
        for name, reason in (("dropped", "there is no table|dropped"), ("unpublished", "not in publication"), ("revoked", "may not read|permission")):
            said = control.answer(ids[name], "refused", seconds=30)
            assert said["to"] == name and re.search(reason, said["reason"]) and said["remedy"], said
        control.answer(ids["stays"], "progress", state="sent", seconds=30)
        control.about(ids["stays"], "finished")
        control.answer(ids["stays"], "progress", state="finished")
        assert world.connector_process.running()
        assert len([m for m in world.messages("--op", "read,message") if m.get("request") == ids["stays"]]) == 1500
    finally:
        world.stop_all()
        if world.source.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]):
            world.src(f"DROP OWNED BY {role}")
            world.source.sql(f"DROP ROLE {role}")


def test_another_user_of_the_same_group_may_ask(world):
    """On the local bus the topic of requests is the group's (docs/local-bus.md), whoever of it made a file there; the stream is not."""
    uid, gid, _ = scratch.unprivileged()
    if os.geteuid() != 0 or uid == 0:
        pytest.skip("needs a second user")
    own = World(world.source, None, heartbeat="10s")
    own.bus["local"]["segment_bytes"] = "1MiB"
    try:
        own.src("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        own.connector()
        first = Control(own)
        first.answer(first.ask(table("t")), "accepted")
        local = own.bus["local"]
        subprocess.run(["chgrp", "-R", str(gid), local["path"], local["hot"]], check=True)
        os.chmod(own.dir, 0o755)
        os.chmod(local["hot"], 0o750)
        theirs = Control(own, uid, gid)
        for number in range(7):  # beyond a segment: they make files, too
            theirs.tell("x" * 200000)
        request = theirs.ask(table("t"), sink="theirs")
        theirs.answer(request, "accepted", seconds=20)
        for number in range(4):
            first.tell("x" * 200000)
        theirs.answer(theirs.ask(table("t"), sink="theirs"), "accepted", seconds=20)
        made = {os.stat(os.path.join(folder, name)).st_uid for root in (local["path"], local["hot"])
                for folder, _, names in os.walk(root) if folder.endswith("._control") for name in names}
        assert made == {0, uid}, made
        stranger = subprocess.run([tool("bus_talk"), local["path"], local["hot"], own.stream], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                  text=True, preexec_fn=scratch.child_setup(uid, gid), cwd="/", timeout=20)
        assert stranger.returncode == 1 and "writers.lck: Permission denied" in stranger.stderr
        theirs.close()
        first.close()
    finally:
        own.close()


def test_cancelled_while_it_is_read(each_world, asked):
    world = each_world
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g")
    control = asked(rows_per_second=1000)
    first, second = control.ask(table("t")), control.ask(table("t"), sink="another")
    begun(control, first)
    begun(control, second)
    control.about(first, "cancel")
    control.answer(first, "progress", state="cancelled")
    at = len(control.said)
    control.wait(lambda said: said.get("request") == second and said.get("state") == "reading", "the other goes on", 20, at)
    assert not [said for said in control.said[at:] if said.get("request") == first and "to" in said]
