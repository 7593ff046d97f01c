"""What must not leave, does not: exclude and mask. Every byte that anybody else could read is searched for the secrets: the bus and
its archive, logs at debug, status pages, answers on the control topic, the target with all tables that a sink keeps there, and files
beside them. The same search finds all of them where the connector's file says nothing."""
import hashlib
import hmac
import json
import os
import urllib.request

import pytest

from tests.support import scratch
from tests.integration.test_survey import schemas
from tests.support.desk import Control, table
from tests.support.world import World

REFUSED, CONFIG = 4, 2
KEY = "a key of thirty-two bytes or more"

TABLES = """
CREATE TYPE pair AS (a text, b text);
CREATE TABLE people (id int PRIMARY KEY, ssn text, email text, phone text, name varchar(12) NOT NULL, bio text, tags text[], p pair,
    age int, "Odd ""name" text);
ALTER TABLE people ALTER bio SET STORAGE EXTERNAL;
CREATE TABLE accounts (iban text PRIMARY KEY, note text, balance int);
ALTER TABLE accounts ALTER note SET STORAGE EXTERNAL;
CREATE TABLE ledger (id int PRIMARY KEY, memo text, who text, amount numeric(10,2));
ALTER TABLE ledger REPLICA IDENTITY FULL;
CREATE TABLE parted (id int, region text, token text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu');
CREATE TABLE indexed (a int PRIMARY KEY, code text NOT NULL, hidden text);
CREATE UNIQUE INDEX indexed_code ON indexed (code);
ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_code;
"""

RULES = {
    "exclude": {"public.people": ["ssn", "bio", '"Odd ""name"', "tags"], "public.ledger": ["memo"],
                "public.par*": ["token"], "public.indexed": ["hidden"]},
    "mask": {"public.people": {"email": "hash", "phone": "null", "name": {"constant": "***"}, "p": "null", "age": {"constant": "007"}},
             "public.accounts": {"iban": "hash", "note": {"constant": "none"}},
             "public.ledger": {"who": "hash"}, "public.indexed": {"code": "hash"}},
}


def rows(first, last):
    """Rows whose values are secrets, one for each column that must not leave."""
    return f"""
INSERT INTO people SELECT g, 'sec-ssn-' || g, 'sec-email-' || g || '@x', 'sec-phone-' || g, 'sec-name-' || g, 'sec-bio-' || g || repeat('b', 3000),
    ARRAY['sec-tag-' || g, NULL], ROW(('sec-pair-' || g)::text, 'x'::text)::pair, 7000 + g, 'sec-odd-' || g FROM generate_series({first}, {last}) g;
INSERT INTO accounts SELECT 'sec-iban-' || g, 'sec-note-' || g || repeat('n', 3000), g FROM generate_series({first}, {last}) g;
INSERT INTO ledger SELECT g, 'sec-memo-' || g, 'sec-who-' || g, g FROM generate_series({first}, {last}) g;
INSERT INTO parted SELECT g, 'eu', 'sec-token-' || g FROM generate_series({first}, {last}) g;
INSERT INTO indexed SELECT g, 'sec-code-' || g, 'sec-hidden-' || g FROM generate_series({first}, {last}) g;
"""


CHANGES = """
UPDATE people SET ssn = 'sec-ssn-new', email = 'sec-email-new', phone = 'sec-phone-new', bio = 'sec-bio-new' WHERE id = 2;
UPDATE people SET age = age + 1 WHERE id = 3;
UPDATE people SET id = 1003 WHERE id = 3;
DELETE FROM people WHERE id = 4;
UPDATE accounts SET balance = balance + 100 WHERE iban = 'sec-iban-2';
UPDATE accounts SET iban = 'sec-iban-moved' WHERE iban = 'sec-iban-3';
DELETE FROM accounts WHERE iban = 'sec-iban-4';
UPDATE ledger SET amount = amount * 2, memo = 'sec-memo-new' WHERE id = 2;
UPDATE ledger SET who = 'sec-who-new' WHERE id = 3;
DELETE FROM ledger WHERE id = 4;
UPDATE parted SET token = 'sec-token-new' WHERE id = 2;
UPDATE indexed SET code = 'sec-code-new', hidden = 'sec-hidden-new' WHERE a = 2;
DELETE FROM indexed WHERE a = 4;
"""
SECRETS = ["ssn", "email", "phone", "name", "bio", "tag", "pair", "odd", "iban", "note", "memo", "who", "token", "code", "hidden"]


def digest(text):
    return hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def use_rules(world, **rules):
    with open(os.path.join(world.dir, "mask.key"), "w") as file:
        file.write(KEY + "\n")
    os.chmod(file.name, 0o600)
    world.config.update({"mask_key_file": file.name, **(rules or RULES)})


def target_tables(world, tables):
    """The team's own tables, as the covers are: what is excluded is not there, what is hashed is text."""
    world.tgt("CREATE SCHEMA team")
    for name, columns in tables.items():
        world.tgt(f"CREATE TABLE team.{name} ({columns})")


MASKED = {"people": 'id int PRIMARY KEY, email text, phone text, name varchar(12), p text, age int',
          "accounts": "iban text PRIMARY KEY, note text, balance int", "ledger": "id int PRIMARY KEY, who text, amount numeric(10,2)",
          "parted": "id int, region text, PRIMARY KEY (id, region)", "indexed": "a int, code text PRIMARY KEY"}


def pages(process):
    address = process.wait_log(r"event=status-listening .*?address=(\S+)").group(1)
    out = ""
    for page in ("status", "metrics", "health"):
        with urllib.request.urlopen(f"http://{address}/{page}", timeout=10) as answer:
            out += answer.read().decode()
    return out


def everything(world, *texts):
    """{where: bytes} of all that anybody else could read; what only the connector reads is left out."""
    found = {f"text {i}": text.encode() for i, text in enumerate(texts)}
    own = {os.path.join(world.dir, name) for name in ("connector.yaml", "mask.key")}
    for top in (world.dir, world.hot):
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                if path not in own:
                    with open(path, "rb") as file:
                        found[path] = file.read()
    for schema, name in world.tgt("SELECT schemaname, tablename FROM pg_tables WHERE schemaname <> 'information_schema' AND left(schemaname, 3) <> 'pg_'"):
        found[f"target {schema}.{name}"] = json.dumps(world.tgt(f'SELECT t::text FROM "{schema}"."{name}" t')).encode()
    if world.kafka:
        for node in world.kafka.nodes:
            for folder, _, names in os.walk(node.data):
                for name in names:
                    if name.endswith(".log") and world.stream in folder:
                        with open(os.path.join(folder, name), "rb") as file:
                            found[os.path.join(folder, name)] = file.read()
    return found


def leaks(found):
    return sorted({(secret, where) for secret in SECRETS for where, data in found.items() if b"sec-" + secret.encode() in data})


def run(world, tables):
    """Rows by a load, changes by the stream, rows once more by hand; and the pages of both processes."""
    world.src(TABLES)
    world.src(rows(1, 20))
    target_tables(world, tables)
    listen = {"status": {"listen": "127.0.0.1:0"}, "log_level": "debug"}
    world.config.update(listen)
    connector = world.connector()
    sink = world.sink(world.sink_file("team", {t: {"from": f"public.{t}"} for t in tables}, **listen))
    world.wait_rows("SELECT count(*) FROM team.people", [(20,)])
    world.wait_rows("SELECT count(*) FROM team.indexed", [(20,)])
    world.src(CHANGES)
    world.src(rows(21, 25))
    world.wait_rows("SELECT count(*), max(id) FROM team.people", [(24, 1003)])
    world.wait_rows("SELECT count(*) FROM team.indexed", [(24,)])
    world.wait_rows("SELECT count(*) FROM team.accounts", [(24,)])
    snapshot = world.snapshot("--tables", "public.*")
    assert snapshot.wait_exit() == 0, snapshot.tail()
    assert snapshot.text().count('"op":"read"') >= 24 * 5
    return connector, sink, pages(connector) + pages(sink)


def test_nothing_of_what_is_excluded_or_masked_leaves(world):
    use_rules(world)
    connector, sink, shown = run(world, MASKED)
    found = everything(world, shown)
    assert any(b'"op":"insert"' in data for data in found.values()) and len(found) > 8
    assert leaks(found) == []
    assert [where for where, data in found.items() if KEY.encode() in data] == []
    # ... and what took the values' place did.
    assert world.tgt("SELECT email, phone, name, p, age FROM team.people WHERE id = 2") == [(digest("sec-email-new"), None, "***", None, 7)]
    assert world.tgt("SELECT DISTINCT phone, name, p, age FROM team.people") == [(None, "***", None, 7)]
    ibans = sorted(digest(f"sec-iban-{g}") for g in range(1, 26) if g not in (3, 4)) + [digest("sec-iban-moved")]
    assert sorted(world.tgt("SELECT iban FROM team.accounts")) == sorted((each,) for each in ibans)
    assert world.tgt("SELECT balance, note FROM team.accounts WHERE iban = %s", [digest("sec-iban-2")]) == [(102, "none")]
    assert world.tgt("SELECT who, amount FROM team.ledger WHERE id IN (2, 3) ORDER BY id") == [(digest("sec-who-2"), 4), (digest("sec-who-new"), 3)]
    assert world.tgt("SELECT a FROM team.indexed WHERE code = %s", [digest("sec-code-new")]) == [(2,)]
    messages = world.messages()
    full = [m for m in messages if m.get("table") == "ledger" and m["op"] == "delete"]
    assert full[0]["before"] == {"id": 4, "who": digest("sec-who-4"), "amount": "4.00"}
    moved = [m for m in messages if m.get("table") == "accounts" and m["op"] == "update" and m["before"]]
    assert moved[0]["before"] == {"iban": digest("sec-iban-3")} and moved[0]["key"] == {"iban": digest("sec-iban-moved")}
    checked = world.check_bus(sample=1)
    assert checked["holes"] == 0 and checked["validated"]
    assert connector.running() and sink.running()


def test_the_search_finds_what_leaves(world):
    """The control: the same world without rules."""
    types = {"people": 'id int PRIMARY KEY, ssn text, email text, phone text, name varchar(12), bio text, tags text[], p text, age int, "Odd ""name" text',
             "accounts": MASKED["accounts"], "ledger": "id int PRIMARY KEY, memo text, who text, amount numeric(10,2)",
             "parted": "id int, region text, token text, PRIMARY KEY (id, region)", "indexed": "a int, code text PRIMARY KEY, hidden text"}
    run(world, types)
    found = leaks(everything(world))
    assert {secret for secret, _ in found} == set(SECRETS)
    assert {secret for secret, where in found if where.startswith(world.hot) or "/bus/" in where} == set(SECRETS)


def lists(world):
    """{table: columns} of the publication's column lists, which came with 15."""
    if world.source.version() < 150000:
        return {row[0]: None for row in world.src("SELECT prrelid::regclass::text FROM pg_publication_rel")}
    return dict(world.src("SELECT c.relname, (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND"
                          " a.attnum = ANY (r.prattrs)) FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid"))


def stops(world, code, *words, **rules):
    """Starts with these rules; the connector refuses, and says why."""
    use_rules(world, **rules)
    connector = world.connector(ready=False)
    assert connector.wait_exit() == code, connector.tail()
    for word in words:
        assert word in connector.text(), (word, connector.tail())
    for rule in rules:
        world.config.pop(rule)


def test_what_would_not_do_what_it_says_is_refused_at_start(world):
    world.src(TABLES + "CREATE TABLE numbers (id int PRIMARY KEY, n numeric(5,2), b boolean, v varchar(3), e text)")
    people = "public.people"
    stops(world, REFUSED, 'no table \\"public.peple\\"', "did you mean public.people?", exclude={"public.peple": ["ssn"]})
    stops(world, REFUSED, "ssm", "has a column of that name", exclude={people: ["ssm"]})
    stops(world, REFUSED, "no table that matches", exclude={"public.*": ["ssm"]})
    stops(world, REFUSED, "column id belongs to the key", "id: hash", exclude={people: ["id"]})
    stops(world, REFUSED, "column iban belongs to the key", mask={"public.*": {"iban": "null"}})
    stops(world, REFUSED, "column code belongs to the key", mask={"public.indexed": {"code": {"constant": "x"}}})
    stops(world, REFUSED, "say different things of column ssn", exclude={people: ["ssn"]}, mask={"public.*": {"ssn": "hash"}})
    for column, constant in (("n", "x"), ("b", "***"), ("v", "long"), ("n", "1000")):
        stops(world, REFUSED, f"is no value of column {column} of public.numbers", mask={"public.numbers": {column: {"constant": constant}}})
    assert world.src("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", [world.slot()]) == [(0,)]
    # A constant is what the source prints, not what somebody typed.
    use_rules(world, mask={"public.numbers": {"n": {"constant": "1.5"}, "b": {"constant": "yes"}, "e": {"constant": ""}}})
    connector = world.connector()
    world.src("INSERT INTO numbers VALUES (1, 99, false, 'abc', 'sec')")
    insert = [m for m in world.messages() if m["op"] == "insert"]
    assert insert[0]["after"] == {"id": 1, "n": "1.50", "b": True, "v": "abc", "e": ""}
    assert connector.stop() == 0


def after(world, table):
    return [m["after"] for m in world.messages() if m.get("table") == table and m["op"] == "insert"]


def renamed(world, process, *words):
    assert process.wait_exit() == REFUSED, process.tail()
    for word in words:
        assert word in process.text(), (word, process.tail())


def test_P34_a_renamed_column_or_table_does_not_leave_under_its_new_name(world):
    """A publication that somebody else made: the server sends everything."""
    world.src("CREATE TABLE people (id int PRIMARY KEY, ssn text); CREATE TABLE other (id int PRIMARY KEY, token text);"
              "CREATE PUBLICATION spate FOR TABLE people, other")
    use_rules(world, exclude={"public.people": ["ssn"], "public.*": ["token"]})
    connector = world.connector()
    world.src("INSERT INTO people VALUES (1, 'sec-ssn'); INSERT INTO other VALUES (1, 'sec-token')")
    assert after(world, "people") == [{"id": 1}]
    assert after(world, "other") == [{"id": 1}]
    world.src("ALTER TABLE people RENAME ssn TO social; INSERT INTO people VALUES (2, 'sec-ssn')")
    renamed(world, connector, 'ssn|NEW', "under its new name")
    stops(world, REFUSED, "ssn|NEW", exclude={"public.people": ["ssn"]})  # and it does not start like that
    use_rules(world, exclude={"public.people": ["ssn|social"], "public.*": ["token"]})
    connector = world.connector()
    assert after(world, "people") == [{"id": 1}, {"id": 2}]
    world.src("ALTER TABLE people DROP social; INSERT INTO people VALUES (3)")  # that is no secret, but who knows
    renamed(world, connector, "ssn|social|")
    use_rules(world, exclude={"public.people": ["ssn|social|"], "public.*": ["token"]})
    connector = world.connector()
    assert after(world, "people") == [{"id": 1}, {"id": 2}, {"id": 3}]
    # A glob has no table of its own to lose a column; one that this connector has seen with it has.
    world.src("ALTER TABLE other RENAME token TO t; INSERT INTO other VALUES (2, 'sec-token')")
    renamed(world, connector, "token|NEW")
    use_rules(world, exclude={"public.people": ["ssn|social|"], "public.other": ["token|t"]})
    connector = world.connector()
    assert after(world, "other") == [{"id": 1}, {"id": 2}]
    world.src("ALTER TABLE other RENAME TO another; INSERT INTO another VALUES (3, 'sec-token')")
    renamed(world, connector, "public.other|public.another")
    use_rules(world, exclude={"public.people": ["ssn|social|"], "public.other|public.another": ["token|t"]})
    connector = world.connector()
    assert after(world, "another") == [{"id": 3}]
    assert lists(world) == {"people": None, "another": None}
    assert connector.stop() == 0
    assert leaks({where: data for where, data in everything(world).items()}) == []


def test_rows_that_belong_to_another_table_as_well_are_covered_by_its_rules(world):
    """Partitions that are published under their own names, and children by inheritance; those that come later, too."""
    world.src("CREATE TABLE root (id int PRIMARY KEY, token text) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (10);"
              "CREATE TABLE parent (id int PRIMARY KEY, token text); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);"
              "CREATE PUBLICATION spate FOR ALL TABLES")
    use_rules(world, exclude={"public.root": ["token"]}, mask={"public.parent": {"token": "hash"}})
    world.connector()
    world.src("INSERT INTO root VALUES (1, 'sec-token'); INSERT INTO child VALUES (1, 'sec-token');"
              "CREATE TABLE leaf2 PARTITION OF root FOR VALUES FROM (10) TO (20); INSERT INTO root VALUES (11, 'sec-token')")
    assert after(world, "leaf") == [{"id": 1}]
    assert after(world, "leaf2") == [{"id": 11}]
    assert after(world, "child") == [{"id": 1, "token": digest("sec-token")}]
    snapshot = world.snapshot("--tables", "public.leaf*", "--tables", "public.child")
    assert snapshot.wait_exit() == 0, snapshot.tail()
    assert leaks(everything(world)) == []


def test_the_publications_own_list_leaves_out_what_is_excluded(world):
    """Where there is such a thing (15), and an application's UPDATE cannot fail by it (P47)."""
    if world.source.version() < 150000:
        pytest.skip("no column lists before 15")
    world.src(TABLES)
    use_rules(world)
    connector = world.connector()
    assert lists(world) == {"people": ["id", "email", "phone", "name", "p", "age"], "indexed": ["a", "code"], "accounts": None,
                            "ledger": None, "parted": None}
    world.src(rows(1, 3))
    world.src("UPDATE people SET ssn = 'x'; UPDATE ledger SET memo = 'x'; UPDATE parted SET token = 'x'; UPDATE indexed SET hidden = 'x';"
              "DELETE FROM indexed WHERE a = 1; ALTER TABLE people ADD fresh text DEFAULT 'f'")
    assert after(world, "people")[0]["id"] == 1
    assert connector.stop() == 0
    world.src("UPDATE people SET fresh = 'g' WHERE id = 1")
    connector = world.connector()  # a column that came later is added at the next start
    assert lists(world)["people"] == ["id", "email", "phone", "name", "p", "age", "fresh"]
    world.src("INSERT INTO people (id, name, fresh) VALUES (9, 'sec-name', 'h')")
    assert after(world, "people")[-1] == {"id": 9, "email": None, "phone": None, "name": "***", "p": None, "age": 7, "fresh": "h"}
    assert connector.stop() == 0
    # Under another replica identity the list would make UPDATE fail: it goes.
    world.config["source"]["postgres"]["catalog_every"] = "100ms"
    connector = world.connector()
    world.src("ALTER TABLE indexed REPLICA IDENTITY FULL")
    scratch.until(lambda: lists(world)["indexed"] is None, "the list is gone", 30)
    world.src("UPDATE indexed SET hidden = 'y'")
    assert leaks({"messages": json.dumps(world.messages()).encode()}) == []
    assert connector.stop() == 0
    # A rule that comes later brings its list; a list that somebody made by hand stays.
    world.config["exclude"]["public.accounts"] = ["note"]
    world.config["mask"]["public.accounts"].pop("note")
    world.src("ALTER PUBLICATION spate DROP TABLE people; ALTER PUBLICATION spate ADD TABLE people (id, email, name, p, age, fresh)")
    connector = world.connector()
    assert lists(world)["accounts"] == ["iban", "balance"]
    assert lists(world)["people"] == ["id", "email", "name", "p", "age", "fresh"]
    assert "event=column-list" in connector.text() and "made it by hand" in connector.text()


def test_requesters_hear_of_columns_only_what_messages_have(world):
    """Conditions, and rows by hashed keys, which only the connector can find again."""
    world.src(TABLES)
    world.src(rows(1, 50))
    use_rules(world)
    connector = world.connector()
    for where, words in (("ssn = 'sec-ssn-1'", "no column"), ("email = 'x'", "masked (mask: hash)"), ("phone is null", "masked (mask: null)")):
        refused = world.snapshot("--tables", "public.people", "--where", where)
        assert refused.wait_exit() != 0 and words in refused.text(), refused.tail()
    control = Control(world)
    request = control.ask(table("accounts"), sink="team")
    control.answer(request, "accepted")
    wanted = [digest("sec-iban-7"), digest("sec-iban-none"), digest("sec-iban-9")]
    control.about(request, "reread", schema="public", table="accounts", keys=[{"iban": iban} for iban in wanted], chunk=0)
    connector.wait_log("event=snapshot-keys-searched [^\n]*wanted=3 found=2 rows=50")

    def reread():
        found = [m for m in world.messages() if m["op"] == "read" or (m["op"] == "chunk" and "keys" in m)]
        by_keys = {m["no"] for m in found if m["op"] == "chunk"}
        return [m for m in found if m["op"] == "read" and m["no"] in by_keys]

    scratch.until(lambda: len(reread()) == 2, "the rows that were asked for by key", 20)
    assert [m["key"]["iban"] for m in reread()] == [digest("sec-iban-7"), digest("sec-iban-9")]
    assert [m["after"]["balance"] for m in reread()] == [7, 9]
    control.close()
    assert leaks({where: data for where, data in everything(world).items() if not where.endswith("snapshot.log")
                  and "_control" not in where and "/bus/" in where}) == []


def test_a_changed_mask_is_a_changed_table(world):
    world.src("CREATE TABLE people (id int PRIMARY KEY, name text)")
    seen = []
    for mask in ({"constant": "a"}, {"constant": "b"}, "null", "hash", {"constant": "a"}):
        use_rules(world, mask={"public.people": {"name": mask}})
        connector = world.connector()
        world.src("INSERT INTO people SELECT count(*), 'sec-name' FROM people")
        seen.append([m["v"] for m in world.messages() if m["op"] == "insert"][-1])
        assert connector.stop() == 0
    assert seen == [1, 2, 3, 4, 1]
    assert leaks(everything(world)) == []


def test_followers_take_a_table_anew_when_its_mask_changes(world):
    world.src("CREATE TABLE people (id int PRIMARY KEY, name text, phone text)")
    world.src("INSERT INTO people SELECT g, 'sec-name-' || g, 'sec-phone' FROM generate_series(1, 9) g")
    world.config["source"]["postgres"]["catalog_every"] = "100ms"
    connector = world.connector()
    # What is known of a table is written down first: from then on it is known what changed.
    scratch.until(lambda: any(m["op"] == "storage" and m["table"] == "" for m in schemas(world)), "the baseline is written", 30)
    world.sink(world.sink_file("team", {"people": {"from": "public.people"}}))
    world.wait_rows("SELECT count(*), max(name) FROM team.people", [(9, "sec-name-9")])
    for mask, rows in (({"name": "hash"}, [(9, digest("sec-name-9"), "sec-phone")]),
                       ({"name": {"constant": "***"}, "phone": "null"}, [(9, "***", None)]), ({"name": {"constant": "**"}}, [(9, "**", "sec-phone")])):
        assert connector.stop() == 0
        use_rules(world, mask={"public.people": mask})
        connector = world.connector()
        world.wait_rows("SELECT count(DISTINCT id), max(name) FILTER (WHERE id = 9), max(phone) FROM team.people", rows)
        assert len(world.tgt("SELECT DISTINCT name LIKE 'sec%' FROM team.people")) == 1


def test_the_key_is_looked_after(world):
    world.src("CREATE TABLE people (id int PRIMARY KEY, name text)")
    world.config["mask"] = {"public.people": {"name": "hash"}}
    connector = world.connector(ready=False)
    assert connector.wait_exit() == CONFIG and "mask_key_file" in connector.text()
    path = os.path.join(world.dir, "mask.key")
    world.config["mask_key_file"] = path
    for content, words in ((None, "No such file"), ("", "empty"), ("short", "shorter than 16 bytes")):
        if content is not None:
            with open(path, "w") as file:
                file.write(content)
        connector = world.connector(ready=False)
        assert connector.wait_exit() == CONFIG and words in connector.text(), connector.tail()
    with open(path, "w") as file:
        file.write(KEY)
    os.chmod(path, 0o644)
    connector = world.connector()
    assert "event=mask-key-readable" in connector.text() and KEY not in connector.text()


@pytest.fixture
def broker_world(source, target, own_kafka):
    new = World(source, target, kafka=own_kafka)
    yield new
    new.close()


def test_nothing_reaches_kafka_either(broker_world):
    """Every byte of the topics' directories on the disk of a broker of its own."""
    world = broker_world
    world.bus["kafka"]["properties"] = {"compression.codec": "none"}  # so that bytes can be searched
    use_rules(world)
    world.src(TABLES)
    world.src(rows(1, 5))
    world.connector()
    world.src(CHANGES)
    snapshot = world.snapshot("--tables", "public.*")
    assert snapshot.wait_exit(60) == 0, snapshot.tail()
    found = everything(world)
    stream = [data for where, data in found.items() if f"/{world.stream}-0/" in where]
    assert any(b'"op":"read"' in data and b'"op":"update"' in data and digest("sec-iban-2").encode() in data for data in stream)
    assert leaks(found) == []


def test_check_finds_it_beforehand_and_says_what_still_travels(world):
    world.src(TABLES + "CREATE PUBLICATION spate FOR TABLE people, ledger")

    def found(**rules):
        use_rules(world, **rules)
        code, out, words = world.run("check", "-c", world.connector_file(), "--json")
        for rule in rules:
            world.config.pop(rule)
        return code, {(f["kind"], f["severity"]): f for f in json.loads(out)["findings"] if f["kind"] in ("privacy", "excluded-sent")}

    for words, rules in (("did you mean public.people?", {"exclude": {"public.peple": ["ssn"]}}),
                         ("belongs to the key", {"exclude": {"public.people": ["id"]}}),
                         ("is no value of column age", {"mask": {"public.people": {"age": {"constant": "x"}}}})):
        code, findings = found(**rules)
        assert code == 2 and words in findings["privacy", "error"]["what"], findings
    code, findings = found(exclude={"public.ledger": ["memo"]})
    assert code != 2 and "memo travels" in findings["excluded-sent", "note"]["what"] and not findings["excluded-sent", "note"].get("fix")
    code, findings = found(exclude={"public.people": ["ssn"]})
    if world.source.version() < 150000:
        return
    assert "ssn travels" in findings["excluded-sent", "note"]["what"]
    world.src(findings["excluded-sent", "note"]["fix"])
    assert found(exclude={"public.people": ["ssn"]})[1] == {}
