"""Least privilege: all of it runs with roles that have what README.md gives them, and nothing more."""
import json
import os
import re

import pytest

from tests.support import scratch

SLOTS = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"


def readme_sql():
    """README's statements for the source, one a line: those of the connector's role, and what is left to the owner."""
    with open(os.path.join(scratch.ROOT, "README.md")) as file:
        block = re.search(r"The connector needs a role.*?```sql\n(.*?)```", file.read(), re.S).group(1)
    lines = [line.split(" --")[0].rstrip(" ;") for line in block.splitlines() if line and not line.startswith("--")]
    rights = [line for line in lines if line.startswith(("CREATE ROLE", "GRANT"))]
    owners = [line for line in lines if line not in rights and line.startswith(("CREATE PUBLICATION", "ALTER TABLE"))]
    assert len(rights) >= 3 and owners
    return rights, owners


def sink_sql():
    """The statements of docs/operating.md for a sink's role."""
    with open(os.path.join(scratch.ROOT, "docs/operating.md")) as file:
        block = re.search(r"## Rights\n.*?```sql\n(.*?)```", file.read(), re.S).group(1)
    return [line.split(" --")[0].rstrip(" ;") for line in block.splitlines() if line]


@pytest.fixture
def roles(world):
    """A database of which nobody but its owner may do anything that was not granted. Names are README's, with the world's
    number behind them."""
    number = re.sub(r"\W", "", world.name)
    names = {"spate": f"spate_{number}", "owner": f"owner_{number}", "billing": f"billing_{number}"}
    world.source.sql(f"CREATE ROLE {names['owner']} LOGIN; ALTER DATABASE \"{world.db}\" OWNER TO {names['owner']}")
    world.src("REVOKE ALL ON SCHEMA public FROM PUBLIC; ALTER SCHEMA public OWNER TO " + names["owner"])
    world.target.sql(f'REVOKE ALL ON DATABASE "{world.db}" FROM PUBLIC')
    world.tgt("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    for statement in sink_sql():
        statement = re.sub(r"\bbilling\b(?! AUTH)", names["billing"], statement).replace("PASSWORD '...'", "")
        world.tgt(statement.replace("DATABASE dw", f'DATABASE "{world.db}"'))
    world.config["source"]["postgres"]["url"] = world.source.url(world.db, names["spate"])
    yield names
    for process in world.processes:
        process.kill()
    for cluster, mine in ((world.source, ("spate", "owner")), (world.target, ("billing",))):
        cluster.drop_database(world.db)
        for name in mine:
            cluster.sql(f"DROP ROLE IF EXISTS {names[name]}")


def as_owner(world, roles, text):
    return world.source.sql(text, None, world.db, roles["owner"])


def named(roles, statement):
    statement = re.sub(r"\bspate\b(?= (LOGIN|FOR))|(?<=TO )spate\b", roles["spate"], statement)
    return statement.replace(f"CREATE PUBLICATION {roles['spate']}", "CREATE PUBLICATION spate").replace("PASSWORD '...'", "")


def test_everything_with_what_readme_grants(world, roles):
    rights, owners = readme_sql()
    as_owner(world, roles, "CREATE TABLE customers (id int PRIMARY KEY, name text); CREATE TABLE orders (id int PRIMARY KEY, v text)")
    as_owner(world, roles, "INSERT INTO customers SELECT g, 'c' || g FROM generate_series(1, 300) g; INSERT INTO orders VALUES (1, 'a')")
    for statement in rights:
        world.src(named(roles, statement))
    for statement in owners:
        as_owner(world, roles, named(roles, statement))
    assert world.source.one("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [roles["spate"]]) is False
    world.config["source"]["postgres"]["catalog_every"] = "1s"
    world.config["tables"] = ["public.customers", "public.orders"]
    tables = {"customers": {"from": "public.customers"},
              "orders": {"from": "public.orders", "where": "v <> 'z'", "columns": {"id": "id", "v": "v"}, "key": ["id"]}}
    billing = world.sink_file("billing", tables, url=world.target.url(world.db, roles["billing"]))

    # Before the start, then the stream, what was there before, and what no message carries.
    code, out, noise = world.run("check", "-c", world.connector_file(), "-c", billing, "--json")
    assert code in (0, 1), out + noise
    connector = world.connector()
    sink = world.sink(billing)
    pairs = [("SELECT * FROM customers", "SELECT * FROM billing.customers"), ("SELECT * FROM orders", "SELECT * FROM billing.orders")]
    world.wait_equal(pairs)
    as_owner(world, roles, "INSERT INTO orders VALUES (2, 'b'); UPDATE customers SET name = 'x' WHERE id = 7; DELETE FROM customers WHERE id = 8")
    as_owner(world, roles, "ALTER TABLE customers ADD COLUMN since date DEFAULT '2026-01-01'")
    as_owner(world, roles, "UPDATE customers SET name = 'y' WHERE id = 9")
    world.wait_equal(pairs, 90)

    # By hand.
    code, out, noise = world.run("snapshot", "-c", world.connector_file(), "--tables", "public.orders")
    assert code == 0 and len([line for line in out.splitlines() if json.loads(line).get("op") == "read"]) == 2, out + noise
    assert world.run("snapshot", "-c", world.connector_file(), "--list")[0] == 0
    assert len(world.messages("public.orders", "--op", "insert", count=1)) == 1
    code, out, noise = world.run("check", "-c", world.connector_file(), "-c", billing)
    assert code in (0, 1), out + noise
    for process in (connector, sink):
        assert process.running() and "42501" not in process.text(whole=True), process.tail()
    sink.stop()
    connector.stop()

    # And gone again: the slot is its own, the publication the owner's.
    world.run("connector", "-c", world.connector_file(), "--drop", check=0)
    assert world.src(SLOTS, [world.slot()]) == [(0,)] and world.src("SELECT count(*) FROM pg_publication") == [(1,)]


def test_a_role_that_owns_the_tables_makes_the_publication(world, roles):
    """create: true with CREATE on the database and tables of its own; a table that comes later is taken in."""
    rights, _ = readme_sql()
    for statement in rights:
        world.src(named(roles, statement))
    as_owner(world, roles, f'GRANT CREATE ON DATABASE "{world.db}" TO {roles["spate"]}; GRANT CREATE ON SCHEMA public TO {roles["spate"]}')
    spate = lambda text: world.source.sql(text, None, world.db, roles["spate"])  # noqa: E731
    spate("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    world.config["source"]["postgres"]["catalog_every"] = "1s"
    connector = world.connector()
    sink = world.sink(world.sink_file("billing", {"t": {"from": "public.t"}, "u": {"from": "public.u"}}, url=world.target.url(world.db, roles["billing"])))
    spate("CREATE TABLE u (id int PRIMARY KEY)")
    scratch.until(lambda: world.src("SELECT 1 FROM pg_publication_tables WHERE tablename = 'u'"), lambda: "u is published" + world.logs(), 60)
    spate("INSERT INTO u VALUES (1); INSERT INTO t VALUES (2, 'b')")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM billing.t"), ("SELECT * FROM u", "SELECT * FROM billing.u")])
    sink.stop()
    connector.stop()
    world.run("connector", "-c", world.connector_file(), "--drop", check=0)
    assert world.src(SLOTS, [world.slot()]) == [(0,)] and world.src("SELECT count(*) FROM pg_publication") == [(0,)]
