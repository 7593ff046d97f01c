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
    for schema, name in world.tgt("SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"):
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
