"""spate check: every finding is provoked, printed with what mends it, and gone once that has been done; nothing is written
anywhere; the role has what README's GRANT lines give and no more (HAZARDS 7, P9, P11, P47, P53, P55-P78, P84, P98)."""
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import threading

import psycopg2
import psycopg2.extras
import pytest

from tests.support import scratch, servers
from tests.support.cluster import Cluster
from tests.support.world import World, binary

CLEAN, WARNS, WRONG = 0, 1, 2
REFUSED = 4


@pytest.fixture(scope="module")
def server():
    cluster = Cluster("check").start()
    yield cluster
    cluster.destroy()


class Checked(World):
    """A world whose connector runs as a role with README's rights, on a publication that the owner made."""

    def __init__(self, source, target):
        super().__init__(source, target)
        self.role = f"low_{self.name}"
        self.src(f"""CREATE ROLE {self.role} LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO {self.role};
            CREATE TABLE orders (id int PRIMARY KEY, status text NOT NULL, amount_cents bigint);
            CREATE TABLE customers (id int PRIMARY KEY, name text);
            GRANT SELECT ON ALL TABLES IN SCHEMA public TO {self.role};
            CREATE PUBLICATION spate FOR TABLE orders, customers WITH (publish_via_partition_root = true)""")
        self.src("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot()])
        self.postgres = self.config["source"]["postgres"]
        self.postgres["url"] = source.url(self.db, self.role)
        self.postgres["create"] = False
        self.tgt(f"CREATE ROLE {self.role} LOGIN; CREATE SCHEMA team AUTHORIZATION {self.role}")
        self.tables = {"orders": {"from": "public.orders"}}

    def sink_of(self, name="team", tables=None, **more):
        return self.sink_file(name, tables or self.tables, schema="team", url=self.target.url(self.db, self.role), **more)

    def look(self, *files, code=None, user=None):
        """The findings by kind, with the exit code held against them."""
        argv = [binary(), "check", "--json", *(part for file in files or [self.connector_file()] for part in ("-c", file))]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, cwd=self.dir,
                              env={**os.environ, **self.env}, **({"user": user, "group": user, "extra_groups": []} if user else {}))
        try:
            report = json.loads(done.stdout)
        except ValueError:
            raise scratch.Failure(f"no JSON, exit {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        expected = WRONG if report["errors"] else WARNS if report["warnings"] else CLEAN
        assert done.returncode == expected, done.stdout
        assert code is None or code == done.returncode, done.stdout
        for finding in report["findings"]:
            assert finding["severity"] in ("error", "warning", "note") and finding["kind"] and finding["what"]
            if finding["severity"] != "note":
                assert finding["fix"] or finding["kind"] in NO_STATEMENT, f"nothing mends it: {finding}"
                assert finding["why"] or finding["kind"] in SAYS_IT_ALL, f"why? {finding}"
        return [f for f in report["findings"] if f["severity"] != "note"], report["findings"]

    def find(self, kind, *files):
        """The one finding of a kind."""
        found = [f for f in self.look(*files)[1] if f["kind"] == kind]
        assert found, f"no {kind}: {self.look(*files)[1]}"
        return found[0]

    def mend(self, finding):
        """Runs the statements of a fix, as somebody who may."""
        run = {"source": self.src, "target": self.tgt}[finding["where"]]
        for statement in statements(finding["fix"]):
            run(statement)

    def close(self):
        super().close()
        for cluster in (self.source, self.target):
            if cluster.running():
                cluster.sql(f"DROP ROLE IF EXISTS {self.role}")


# An error that some other function raised: its words hold everything.
SAYS_IT_ALL = {"projection", "connect", "connect-replication", "configuration", "bus", "bus-log", "topic", "brokers", "topic-partitions",
               "privacy", "stream"}
NO_STATEMENT = SAYS_IT_ALL | {"replicas=1", "topic-setting"}


def statements(fix):
    """Statements end with a semicolon; what stands behind -- is for people."""
    text = re.sub(r"\s--\s.*$", "", fix)
    return [part.strip() for part in re.findall(r"(?:[^;'\"]|'[^']*'|\"[^\"]*\")+", text) if part.strip()]


@pytest.fixture(scope="module")
def checked(server, target):
    new = Checked(server, target)
    yield new
    new.close()


def test_nothing_to_say_and_exit_0(checked):
    """The role has LOGIN, REPLICATION, USAGE and SELECT; the sink's owns its schema."""
    wrong, notes = checked.look(checked.connector_file(), checked.sink_of(), code=CLEAN)
    assert not wrong and {f["kind"] for f in notes} >= {"slot"}, notes


# kind -> (SQL on the source as superuser, what it takes to clean up); {role} and {slot} are filled in.
SOURCE = {
    "role-replication": ("ALTER ROLE {role} NOREPLICATION", "ALTER ROLE {role} REPLICATION"),
    "role-connections": ("ALTER ROLE {role} CONNECTION LIMIT 3", "ALTER ROLE {role} CONNECTION LIMIT -1"),
    "role-expires": ("ALTER ROLE {role} VALID UNTIL 'tomorrow'", ""),
    "slot-unlimited": ("ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf()", "RESET max_slot_wal_keep_size"),
    "slot-limit-small": ("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'; SELECT pg_reload_conf()", "RESET max_slot_wal_keep_size"),
    "wal-sender-timeout": ("ALTER SYSTEM SET wal_sender_timeout = 0; SELECT pg_reload_conf()", "RESET wal_sender_timeout"),
    "synchronous-commit": ("ALTER SYSTEM SET synchronous_commit = off; SELECT pg_reload_conf()", "RESET synchronous_commit"),
    "publication-operations": ("ALTER PUBLICATION spate SET (publish = 'insert')", ""),
    "publication-partitions": (
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (9);"
        "GRANT SELECT ON parts, parts_1 TO {role}; ALTER PUBLICATION spate ADD TABLE parts; ALTER PUBLICATION spate SET (publish_via_partition_root = false)",
        "DROP TABLE parts"),
    "table-identity": ("CREATE TABLE bare (id int); GRANT SELECT ON bare TO {role}; ALTER PUBLICATION spate ADD TABLE bare", "DROP TABLE bare"),
    "table-identity by an index": (
        "CREATE TABLE bare (id int NOT NULL UNIQUE); GRANT SELECT ON bare TO {role}; ALTER PUBLICATION spate ADD TABLE bare", "DROP TABLE bare"),
    "table-identity, a deferrable primary key": (
        "CREATE TABLE bare (id int PRIMARY KEY DEFERRABLE); GRANT SELECT ON bare TO {role}; ALTER PUBLICATION spate ADD TABLE bare", "DROP TABLE bare"),
    "table-identity of a partition": (
        "CREATE TABLE bare (id int) PARTITION BY RANGE (id); CREATE TABLE \"Odd; leaf\" PARTITION OF bare FOR VALUES FROM (0) TO (9);"
        "GRANT SELECT ON bare, \"Odd; leaf\" TO {role}; ALTER PUBLICATION spate ADD TABLE bare", "DROP TABLE bare"),
    "table-not-published": ("CREATE TABLE late (id int PRIMARY KEY); GRANT SELECT ON late TO {role}", "DROP TABLE late"),
    "table-left-out": ("CREATE TABLE late (id int); GRANT SELECT ON late TO {role}", "DROP TABLE late"),
    "table-unlogged": ("CREATE UNLOGGED TABLE late (id int PRIMARY KEY); GRANT SELECT ON late TO {role}", "DROP TABLE late"),
    "table-select": ("REVOKE SELECT ON orders FROM {role}", ""),
    "table-select in a schema": (
        'CREATE SCHEMA "Far"; CREATE TABLE "Far".t (id int PRIMARY KEY); ALTER PUBLICATION spate ADD TABLE "Far".t', 'DROP SCHEMA "Far" CASCADE'),
    "table-row-security": ("ALTER TABLE orders ENABLE ROW LEVEL SECURITY", "ALTER TABLE orders DISABLE ROW LEVEL SECURITY; ALTER ROLE {role} NOBYPASSRLS"),
    "slot-missing": ("SELECT pg_drop_replication_slot('{slot}')", ""),
    "slot-plugin": ("SELECT pg_drop_replication_slot('{slot}'); SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')",
                    "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
    "publication-missing": ("DROP PUBLICATION spate", ""),
    # From 15 on.
    "table-filter": ("CREATE TABLE late (id int PRIMARY KEY, v int); GRANT SELECT ON late TO {role}; ALTER PUBLICATION spate ADD TABLE late WHERE (v > 5)",
                     "DROP TABLE late"),
    "table-columns": ("CREATE TABLE late (id int PRIMARY KEY, v int); GRANT SELECT ON late TO {role}; ALTER PUBLICATION spate ADD TABLE late (v)",
                      "DROP TABLE late"),
    "table-unlogged though all tables are published": (
        "DROP PUBLICATION spate; CREATE PUBLICATION spate FOR ALL TABLES WITH (publish_via_partition_root = true);"
        "CREATE UNLOGGED TABLE late (id int PRIMARY KEY); GRANT SELECT ON late TO {role}",
        "DROP TABLE late; DROP PUBLICATION spate; CREATE PUBLICATION spate FOR TABLE orders, customers WITH (publish_via_partition_root = true)"),
}
ERRORS = {"role-replication", "slot-missing", "slot-plugin", "publication-missing"}


def settings(world, text):
    """RESET NAME stands for what the cluster's file said."""
    for part in filter(None, (p.strip() for p in text.format(role=world.role, slot=world.slot()).split(";"))):
        if part.startswith("RESET "):
            name = part.split()[1]
            value = world.source.settings.get(name)
            world.src(f"ALTER SYSTEM SET {name} = '{value}'" if value is not None else f"ALTER SYSTEM RESET {name}")
            world.src("SELECT pg_reload_conf()")
        else:
            world.src(part)


def run_sql(world, text):
    text = text.format(role=world.role, slot=world.slot())
    if "ALTER SYSTEM" in text or "replication_slot" in text:
        for part in text.split(";"):
            world.src(part)
    elif text:
        world.src(text)


def after_reload(world, kind, there):
    """A reload reaches new sessions within moments."""
    scratch.until(lambda: any(f["kind"] == kind for f in world.look()[1]) == there, f"{kind} is {'there' if there else 'gone'}", 10)


@pytest.mark.parametrize("name", SOURCE)
def test_finding_of_the_source_and_its_fix(checked, name):
    kind, (provoke, clean) = name.replace(",", " ").split()[0], SOURCE[name]
    if kind in ("table-filter", "table-columns") and checked.src("SHOW server_version_num")[0][0] < "150000":
        pytest.skip("publications have neither filters nor lists before 15")
    run_sql(checked, provoke)
    try:
        found = []
        scratch.until(lambda: found.clear() or found.extend(f for f in checked.look()[0] if f["kind"] == kind) or found, f"{kind} is found", 10)
        assert len(found) == 1 and found[0]["severity"] == ("error" if kind in ERRORS else "warning"), found
        assert found[0]["where"] == "source"
        checked.mend(found[0])
        if kind == "slot-plugin":  # it drops what is in the way; the slot itself is another finding
            checked.mend(checked.find("slot-missing"))
            clean = ""
        after_reload(checked, kind, False)
    finally:
        if kind == "publication-missing":
            checked.src("DROP PUBLICATION IF EXISTS spate; CREATE PUBLICATION spate FOR TABLE orders, customers WITH (publish_via_partition_root = true)")
        settings(checked, clean) if "RESET" in clean else run_sql(checked, clean)
    scratch.until(lambda: not checked.look()[0], lambda: f"clean again: {checked.look()[0]}", 10)


def test_synchronous_standby_names(checked):
    """P11; a commit would hang now, so the fix is the only thing that is run."""
    checked.src("ALTER SYSTEM SET synchronous_standby_names = '*'")
    checked.src("SELECT pg_reload_conf()")
    try:
        after_reload(checked, "synchronous-standby", True)
        checked.mend(checked.find("synchronous-standby"))
        after_reload(checked, "synchronous-standby", False)
    finally:
        checked.src("ALTER SYSTEM RESET synchronous_standby_names")
        checked.src("SELECT pg_reload_conf()")
        scratch.until(lambda: checked.src("SHOW synchronous_standby_names")[0][0] == "", "commits wait for nobody", 10)


def test_what_cannot_be_mended_by_a_statement(checked):
    """The file, another program, or a person has to do it."""
    checked.src(f"CREATE VIEW seen AS SELECT 1 AS x; CREATE TYPE mood AS ENUM ('a'); CREATE TABLE gen (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);"
                f"GRANT SELECT ON gen TO {checked.role}; ALTER PUBLICATION spate ADD TABLE gen; ALTER ROLE {checked.role} SET statement_timeout = '1s'")
    try:
        file = checked.connector_file(tables=["public.order", "public.seen", "public.orders", "pg_temp.x"])
        found = {f["kind"]: f for f in checked.look(file)[1]}
        assert "did you mean public.orders?" in [f["what"] for f in checked.look(file)[1] if "public.order " in f["what"] or "public.order;" in f["what"]][0]
        assert found["table-kind"]["severity"] == "warning" and "view" in found["table-kind"]["what"]
        assert found["table-generated"]["severity"] == "note" and "statement_timeout" in found["session-settings"]["what"]
        # With wildcards a view is nobody's mistake.
        assert [f["severity"] for f in checked.look()[1] if f["kind"] == "table-kind"] == ["note"]
    finally:
        checked.src(f"DROP VIEW seen; DROP TYPE mood; DROP TABLE gen; ALTER ROLE {checked.role} RESET ALL")


def test_slot_of_another_database_in_use_lost_and_behind(checked):
    """P60, P62, P66, P72."""
    elsewhere = checked.connector_file(source={"postgres": {**checked.postgres, "url": checked.source.url("postgres", checked.role)}})
    assert checked.find("slot-database", elsewhere)["severity"] == "error"
    # In use: by a program that is no connector of this name.
    receiver = subprocess.Popen([servers.client("pg_recvlogical"), "-d", checked.source.dsn(checked.db), "--slot", checked.slot(), "--start",
                                 "-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=spate"], stderr=subprocess.DEVNULL)
    try:
        scratch.until(lambda: checked.src("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [checked.slot()])[0][0], "the slot is in use", 20)
        found = checked.find("slot-active")
        assert found["severity"] == "warning" and found["where"] == "source" and "pg_recvlogical" in found["what"]
    finally:
        receiver.terminate()
        receiver.wait()
    scratch.until(lambda: not checked.src("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [checked.slot()])[0][0], "the slot is free", 20)
    # Behind: more than retained_warning.
    checked.src("CREATE TABLE wide (v text); INSERT INTO wide SELECT repeat(md5(g::text), 1000) FROM generate_series(1, 3000) g; DROP TABLE wide")
    checked.src("CREATE TABLE wal (v text); ALTER TABLE wal ALTER v SET STORAGE EXTERNAL; INSERT INTO wal SELECT repeat(md5(g::text), 1000) FROM generate_series(1, 200) g; DROP TABLE wal")
    small = checked.connector_file(source={"postgres": {**checked.postgres, "retained_warning": "1MiB"}})
    assert checked.find("slot-retains", small)["severity"] == "warning"
    # Lost: the server took it away.
    checked.src("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    checked.src("SELECT pg_reload_conf()")
    try:
        for _ in range(3):
            checked.src("SELECT pg_switch_wal()")
            checked.src("CREATE TABLE filler (i int); DROP TABLE filler")
        checked.src("CHECKPOINT")
        scratch.until(lambda: checked.src("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [checked.slot()])[0][0] == "lost", "the slot is lost", 20)
        found = checked.find("slot-lost")
        assert found["severity"] == "error"
        checked.mend(found)
        assert not [f for f in checked.look()[1] if f["kind"] == "slot-lost"]
    finally:
        settings(checked, "RESET max_slot_wal_keep_size")


def test_publication_that_is_to_be_made(checked):
    """create: true: by whom, of what; and a slot that is older than it will be (P55)."""
    checked.src("DROP PUBLICATION spate")
    making = {"source": {"postgres": {**checked.postgres, "create": True}}}
    try:
        # P55: the slot would be older.
        assert "P55" in checked.find("publication-missing", checked.connector_file(**making))["why"]
        checked.source.sql("SELECT pg_drop_replication_slot(%s)", [checked.slot()])
        # The role owns nothing: the whole statement is there for somebody who does.
        found = checked.find("publication-owner", checked.connector_file(**making))
        assert found["severity"] == "error" and "public.customers, public.orders" in found["fix"]
        assert checked.find("publication-missing", checked.connector_file(**making, tables=[]))["severity"] == "error"
        assert checked.find("publication-nothing", checked.connector_file(**making, tables=["nowhere.*"]))["severity"] == "error"
        assert checked.find("table-unknown", checked.connector_file(**making, tables=["public.nothing", "public.*"]))["severity"] == "error"
        # The connector refuses with the same words' remedy.
        process = checked.connector(ready=False, file=checked.connector_file(**making))
        assert process.wait_exit() == REFUSED and "public.customers, public.orders" in process.text()
        # One who may make it is only told of it.
        making["source"]["postgres"]["url"] = checked.source.url(checked.db)
        wrong, notes = checked.look(checked.connector_file(**making), code=CLEAN)
        assert {"publication-will-be-made", "slot-will-be-made"} <= {f["kind"] for f in notes}, notes
        assert "public.customers, public.orders" in [f for f in notes if f["kind"] == "publication-will-be-made"][0]["fix"]
        # And a sink is held against the tables that it will have.
        sink = checked.sink_of(tables={"orders": {"from": "public.orders"}, "x": {"from": "public.order"}})
        assert "did you mean public.orders?" in checked.find("source-table", checked.connector_file(**making), sink)["what"]
        checked.mend(found)
    finally:
        checked.src("DROP PUBLICATION IF EXISTS spate; CREATE PUBLICATION spate FOR TABLE orders, customers WITH (publish_via_partition_root = true)")
        checked.src("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [checked.slot()])
    assert not checked.look()[0]


def test_a_connector_refuses_at_an_error_and_logs_warnings(checked):
    checked.src(f"ALTER ROLE {checked.role} NOREPLICATION; CREATE TABLE late (id int PRIMARY KEY); GRANT SELECT ON late TO {checked.role}")
    try:
        process = checked.connector(ready=False)
        assert process.wait_exit() == REFUSED and f'ALTER ROLE \\"{checked.role}\\" REPLICATION;' in process.text(), process.tail()
        checked.src(f"ALTER ROLE {checked.role} REPLICATION")
        process = checked.connector(name="again", ready=False)
        process.wait_log(r"event=preflight kind=table-not-published .*ALTER PUBLICATION .*spate.* ADD TABLE public.late", 20)
        found = checked.find("slot-active")
        assert found["severity"] == "note" and "this connector" in found["what"]
        assert process.stop() == 0
    finally:
        checked.src(f"DROP TABLE late; ALTER ROLE {checked.role} REPLICATION")


def test_source_that_cannot_be_reached_or_refuses(checked):
    """No crash, a remedy, and what else can be checked still is."""
    port = scratch_port()
    gone = checked.connector_file(source={"postgres": {**checked.postgres, "url": f"postgres://x@127.0.0.1:{port}/x?sslmode=prefer"}})
    wrong, found = checked.look(gone, checked.sink_of(tables={"nope": {"from": "nope"}}), code=WRONG)
    assert {"connect", "configuration"} <= {f["kind"] for f in wrong}, wrong
    assert [f["severity"] for f in found if f["kind"] == "sslmode"] == ["note"]  # this machine alone
    # A pooler, in PgBouncer 1.18's own words (P69).
    listener = socket.create_server(("127.0.0.1", 0))

    def pooler():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                if client.recv(8)[4:] == b"\x04\xd2\x16\x2f":
                    client.sendall(b"N")
                client.recv(4096)
                fields = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
                client.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    threading.Thread(target=pooler, daemon=True).start()
    through = checked.connector_file(source={"postgres": {**checked.postgres, "url": f"postgres://x@127.0.0.1:{listener.getsockname()[1]}/x?sslmode=disable"}})
    assert "1.23" in checked.find("pooler", through)["why"]
    listener.close()


def scratch_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_pg_hba_password_file_and_tls(checked):
    hba = os.path.join(checked.source.data, "pg_hba.conf")
    with open(hba) as file:
        before = file.read()
    secret = checked.write("secret", "pass word\n")
    os.chmod(secret, 0o644)
    url = f"postgres://{checked.role}@127.0.0.1:{checked.source.port}/{checked.db}?sslmode=disable"
    file = checked.connector_file(source={"postgres": {**checked.postgres, "url": url, "password_file": secret}})
    try:
        with open(hba, "w") as out:
            out.write(f"host {checked.db} {checked.role} 127.0.0.1/32 reject\n" + before)
        checked.src("SELECT pg_reload_conf()")
        scratch.until(lambda: any(f["kind"] == "pg-hba" for f in checked.look(file)[1]), "refused by pg_hba.conf", 10)
        found = {f["kind"]: f for f in checked.look(file)[1]}
        assert checked.role in found["pg-hba"]["fix"] and found["password-file"]["where"] == "shell"
        subprocess.run(["sh", "-c", found["password-file"]["fix"]], check=True)
        assert not stat.S_IMODE(os.stat(secret).st_mode) & 0o077 and "password-file" not in {f["kind"] for f in checked.look(file)[1]}
        assert "pass word" not in json.dumps(checked.look(file)[1])
    finally:
        with open(hba, "w") as out:
            out.write(before)
        checked.src("SELECT pg_reload_conf()")
    inside = checked.connector_file(source={"postgres": {**checked.postgres, "url": url.replace("@", ":hidden@").replace("127.0.0.1", "db.example").replace("disable", "prefer")}})
    wrong, found = checked.look(inside, code=WRONG)
    assert [f["severity"] for f in found if f["kind"] == "sslmode"] == ["warning"] and "password-in-url" in {f["kind"] for f in found}
    assert "hidden" not in json.dumps(found)


def test_a_server_of_its_own_settings():
    """What only a restart changes: wal_level, room for slots and senders, an idle timeout of 18, a standby."""
    cluster = Cluster("poor", wal_level="replica", max_replication_slots=1, max_wal_senders=1, max_slot_wal_keep_size=-1).start()
    world = World(cluster, None)
    world.config["source"]["postgres"]["url"] = cluster.url(world.db)
    try:
        cluster.sql("SELECT pg_create_physical_replication_slot('other')")
        receiver = psycopg2.connect(cluster.dsn(), connection_factory=psycopg2.extras.PhysicalReplicationConnection)
        receiver.cursor().start_replication(start_lsn=cluster.one("SELECT pg_current_wal_flush_lsn()::text"))
        try:
            scratch.until(lambda: cluster.sql("SELECT 1 FROM pg_stat_replication"), "a sender is in use", 20)
            wrong, _ = Checked.look(world, code=WRONG)
            by = {f["kind"]: f for f in wrong}
            assert {"wal-level", "slots-used-up", "senders-used-up", "slot-unlimited"} <= set(by), by
        finally:
            receiver.close()
        for kind in ("wal-level", "slots-used-up", "senders-used-up"):
            for statement in statements(by[kind]["fix"]):
                if not statement.startswith("ALTER SYSTEM"):
                    raise scratch.Failure(statement)
                cluster.sql(statement)
        with open(os.path.join(cluster.data, "postgresql.auto.conf")) as conf:
            cluster.settings.update(dict(re.findall(r"^(\w+) = '(.*)'$", conf.read(), re.M)))
        cluster.restart()
        found = {f["kind"] for f in Checked.look(world)[1]}
        assert not found & {"wal-level", "slots-used-up", "senders-used-up"}, found
    finally:
        world.close()
        cluster.destroy()


# name -> (SQL on the target, the team's tables, kind, mended by its statement)
TARGET = {
    "temporary tables": ("REVOKE TEMPORARY ON DATABASE {db} FROM PUBLIC", None, "target-temporary", True),
    "schema that is missing": ("DROP SCHEMA team CASCADE", None, "target-schema", True),
    "schema of another": ("DROP SCHEMA team CASCADE; CREATE SCHEMA team", None, "target-schema", True),
    "schema without CREATE": ("DROP SCHEMA team CASCADE; CREATE SCHEMA team; GRANT USAGE ON SCHEMA team TO {role}", None, "target-schema", True),
    "read-only role": ("ALTER ROLE {role} SET default_transaction_read_only = on", None, "target-read-only", True),
    "rights on the table": ("CREATE TABLE team.orders (id int PRIMARY KEY, status text, amount_cents bigint)", None, "projection", True),
    "unlogged": ("CREATE UNLOGGED TABLE team.orders (id int PRIMARY KEY, status text, amount_cents bigint); ALTER TABLE team.orders OWNER TO {role}",
                 None, "projection", True),
    "column that is missing": ("CREATE TABLE team.orders (id int PRIMARY KEY, status text); ALTER TABLE team.orders OWNER TO {role}", None, "projection", True),
    "unique constraint beside the key": (
        "CREATE TABLE team.orders (id int PRIMARY KEY, status text UNIQUE, amount_cents bigint); ALTER TABLE team.orders OWNER TO {role}", None, "projection", False),
    "trigger": (
        "CREATE TABLE team.orders (id int PRIMARY KEY, status text, amount_cents bigint); ALTER TABLE team.orders OWNER TO {role};"
        "CREATE FUNCTION team.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER drop_all BEFORE INSERT ON team.orders FOR EACH ROW EXECUTE FUNCTION team.f()", None, "projection", True),
    "expression that is not immutable": ("", {"orders": {"from": "public.orders", "columns": {"id": "id", "t": "now()::text || status"}}}, "projection", False),
    "column that the source lacks": ("", {"orders": {"from": "public.orders", "columns": {"id": "id", "t": "statsu"}}}, "projection", False),
    "source table that is not published": ("", {"orders": {"from": "public.ordres"}}, "source-table", False),
    "another sink's table": (
        "CREATE TABLE team.spate_sink (sink text PRIMARY KEY, source text); CREATE TABLE team.spate_table (table_name text PRIMARY KEY, sink text);"
        "ALTER TABLE team.spate_sink OWNER TO {role}; ALTER TABLE team.spate_table OWNER TO {role}; INSERT INTO team.spate_table VALUES ('orders', 'other')",
        None, "table-owner", True),
    "another stream's sink": (
        "CREATE TABLE team.spate_sink (sink text PRIMARY KEY, source text); CREATE TABLE team.spate_table (table_name text PRIMARY KEY, sink text);"
        "ALTER TABLE team.spate_sink OWNER TO {role}; ALTER TABLE team.spate_table OWNER TO {role}; INSERT INTO team.spate_sink VALUES ('team', 'elsewhere')",
        None, "sink-source", False),
    "rights on the position": (
        "CREATE TABLE team.spate_sink (sink text PRIMARY KEY, source text); CREATE TABLE team.spate_table (table_name text PRIMARY KEY, sink text)",
        None, "target-position", True),
}


@pytest.mark.parametrize("name", TARGET)
def test_finding_of_the_target_and_its_fix(checked, name):
    provoke, tables, kind, mended = TARGET[name]
    fill = {"role": checked.role, "db": f'"{checked.db}"'}
    sink = checked.sink_of(tables=tables)
    if provoke:
        checked.tgt(provoke.format(**fill))
    try:
        found = [f for f in checked.look(checked.connector_file(), sink, code=WRONG)[0] if f["kind"] == kind]
        assert len(found) == 1 and found[0]["severity"] == "error", found
        if mended:
            for _ in range(4):  # a grant for each right, say
                assert found[0]["where"] == "target", found[0]
                checked.mend(found[0])
                found = [f for f in checked.look(checked.connector_file(), sink)[0] if f["kind"] == kind]
                if not found:
                    break
            assert not found
    finally:
        checked.tgt(f"DROP SCHEMA IF EXISTS team CASCADE; CREATE SCHEMA team AUTHORIZATION {checked.role}; GRANT TEMPORARY ON DATABASE {fill['db']} TO PUBLIC;"
                    f"ALTER ROLE {checked.role} RESET ALL; ALTER ROLE {checked.role} IN DATABASE {fill['db']} RESET ALL")


def test_both_files_together(checked):
    """Names, the bus, and who may ask for everything."""
    connector = checked.connector_file(snapshots={"allow": {"billing": "public.*"}})
    assert checked.find("snapshot-not-allowed", connector, checked.sink_of())["severity"] == "warning"
    other = checked.write("other.yaml", {**checked.sink_config("team", checked.tables, schema="team", url=checked.target.url(checked.db, checked.role)), "from": "shopp"})
    assert checked.find("sink-from", connector, other)["fix"] == "from: shop"
    far = checked.write("far.yaml", {**checked.sink_config("team", checked.tables, schema="team", url=checked.target.url(checked.db, checked.role)),
                                     "bus": {"local": {"path": "/nowhere"}}})
    assert checked.find("sink-bus", connector, far)["severity"] == "error"
    # Alone, a sink that hears nothing yet is no mistake.
    alone = checked.write("alone.yaml", {**checked.sink_config("team", checked.tables, schema="team", url=checked.target.url(checked.db, checked.role)), "from": "later"})
    assert {f["kind"] for f in checked.look(alone, code=CLEAN)[1]} >= {"stream-not-there"}


def test_encoding_that_cannot_be_converted(checked):
    """P84: the server itself refuses the connection."""
    name = f"mule_{checked.name}"
    checked.source.sql(f"CREATE DATABASE {name} ENCODING 'MULE_INTERNAL' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        file = checked.connector_file(source={"postgres": {**checked.postgres, "url": checked.source.url(name, checked.role)}})
        found = checked.find("server-encoding", file)
        assert found["severity"] == "error" and "MULE_INTERNAL" in found["what"] and "UTF8" in found["fix"]
    finally:
        checked.source.sql(f"DROP DATABASE {name}")


def test_files_that_are_wrong(checked):
    broken = checked.write("broken.yaml", "sink: x\nfrom: [\n")
    neither = checked.write("neither.yaml", "tables: {}\n")
    unknown = checked.connector_file(colour="red")
    for file in (broken, neither, unknown, "/nowhere.yaml"):
        wrong, _ = checked.look(file, code=WRONG)
        assert [f["kind"] for f in wrong] == ["configuration"] and file in wrong[0]["what"], wrong
    assert checked.run("check")[0] == WRONG and checked.run("check", "-c", broken, "--json", "--effective")[0] == WRONG


def test_effective_has_the_defaults_and_no_secret(checked):
    url = "postgres://someone:hidden@db.example/shop"
    file = checked.connector_file(source={"postgres": {"url": url}})
    code, out, _ = checked.run("check", "--effective", "-c", file, "-c", checked.sink_of())
    assert code == CLEAN and "hidden" not in out and "***" in out
    assert 'publication: "spate"' in out and 'heartbeat' in out and "# " + file in out and "\n---\n" in out
    assert "kafka" not in out and "status" not in out  # what was not chosen has no defaults
    # It reads as a file again, with the same meaning.
    parts = out.split("\n---\n")
    again = checked.write("again.yaml", parts[0].replace("***", "x"))
    assert checked.run("check", "--effective", "-c", again)[1].split("\n", 1)[1] == parts[0].replace("***", "***").split("\n", 1)[1] + "\n" * (not parts[0].endswith("\n"))


def test_rules_for_what_must_not_leave(checked):
    """A slip of the finger would leak; and a sink that uses what is excluded would never get it."""
    slip = checked.connector_file(exclude={"public.customers": ["naem"]})
    assert "naem" in checked.find("privacy", slip)["what"]
    covered = checked.connector_file(exclude={"public.customers": ["name"]})
    uses = checked.sink_of(tables={"c": {"from": "public.customers", "columns": {"id": "id", "n": "name"}}})
    assert "name" in checked.find("projection", covered, uses)["what"]
    assert checked.look(covered, checked.sink_of(tables={"c": {"from": "public.customers"}}), code=CLEAN)


def test_for_people(checked):
    checked.src(f"CREATE TABLE late (id int PRIMARY KEY); GRANT SELECT ON late TO {checked.role}")
    try:
        code, out, noise = checked.run("check", "-c", checked.connector_file())
        assert code == WARNS and not noise
        assert re.search(r"^warning \[table-not-published\] source: table public.late .*\n  why: .*\n  fix: ALTER PUBLICATION .*spate.* ADD TABLE public.late;$", out, re.M), out
        assert out.splitlines()[-1].startswith("0 errors, 1 warning, ")
    finally:
        checked.src("DROP TABLE late")


def everything(world):
    """What there is on source, target and bus."""
    if not os.path.exists(world.source.programs + "/pg_dump"):
        pytest.skip("needs PostgreSQL's pg_dump of the same version as the server")
    dump = [subprocess.run([cluster.programs + "/pg_dump", "-d", cluster.dsn(world.db), "--inserts"], stdout=subprocess.PIPE, check=True).stdout
            for cluster in (world.source, world.target)]
    dump = [re.sub(rb"(?m)^\\(un)?restrict .*$", b"", text) for text in dump]
    slots = world.source.sql("SELECT slot_name, restart_lsn, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", [world.slot()])
    oids = [cluster.sql("SELECT count(*), max(oid) FROM pg_class", db=world.db) for cluster in (world.source, world.target)]
    files = sorted((os.path.join(at, name), os.stat(os.path.join(at, name)).st_mtime_ns)
                   for root in (world.bus["local"]["path"], world.hot, world.dir) for at, _, names in os.walk(root) for name in names)
    return dump, slots, oids, files


@pytest.mark.parametrize("ran", [False, True], ids=["before the first start", "after it"])
def test_nothing_is_written(server, target, ran):
    world = Checked(server, target)
    try:
        files = [world.connector_file(), world.sink_of()]
        if ran:
            world.src("INSERT INTO orders VALUES (1, 'paid', 5)")
            connector, sink = world.connector(), world.sink(files[1])
            world.wait_rows("SELECT id FROM team.orders", [(1,)])
            assert connector.stop() == 0 and sink.stop() == 0
            world.tgt("ALTER TABLE team.orders DROP COLUMN amount_cents")  # something that it would have to mend
        before = everything(world)
        wrong, found = world.look(*files)
        assert everything(world) == before
        assert [f["kind"] for f in wrong] == (["projection"] if ran else []), wrong
        if ran:  # another slot of the name: what a start would stop for is said beforehand, and is not mended by looking
            world.source.sql("SELECT pg_drop_replication_slot(%s)", [world.slot()])
            world.src("INSERT INTO orders VALUES (2, 'lost', 5)")
            world.src("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [world.slot()])
            found = world.find("continuity")
            assert found["severity"] == "error" and "stands at" in found["what"] and "--new-epoch" in found["fix"]
            assert world.connector(name="fenced", ready=False).wait_exit() == 3
    finally:
        world.close()


def test_the_bus_of_an_unprivileged_user(checked):
    """Path, rights, another owner, room, another version."""
    user = scratch.unprivileged()[0]
    if os.geteuid() != 0:
        pytest.skip("needs to become another user")
    root = scratch.directory("spate-check-bus-")
    os.chmod(root, 0o755)
    os.chmod(checked.dir, 0o755)

    def look(path, **more):
        file = checked.connector_file(bus={"local": {"path": path, "hot": os.path.join(root, "hot"), **more}})
        os.chmod(file, 0o644)
        return {f["kind"]: f for f in checked.look(file, user=user)[1]}

    found = look(os.path.join(root, "missing"))
    assert found["bus-path"]["severity"] == "error"
    subprocess.run(["sh", "-c", found["bus-path"]["fix"]], check=True)
    assert "bus-path" not in look(os.path.join(root, "missing"))
    os.mkdir(os.path.join(root, "root's"), 0o755)
    found = look(os.path.join(root, "root's"))
    assert "uid 0" in found["bus-path"]["what"]
    with open(os.path.join(root, "file"), "w"):
        pass
    assert "not a directory" in look(os.path.join(root, "file"))["bus-path"]["what"]
    # Room: 1 GiB segments want more than a small file system has.
    small = os.statvfs("/dev/shm")
    if small.f_bavail * small.f_frsize < 4 << 30:
        big = checked.connector_file(bus={"local": {"path": "/dev/shm/spate-check-none", "segment_bytes": "1GiB"}})
        assert {"bus-shared-memory-room", "bus-room"} <= {f["kind"] for f in checked.look(big)[0]}
    # A log that is damaged, or another program's.
    os.makedirs(os.path.join(root, "old", "shop"))
    with open(os.path.join(root, "old", "shop", "manifest"), "w") as manifest:
        manifest.write("spate-local-topic 9\n")
    file = checked.connector_file(bus={"local": {"path": os.path.join(root, "old")}})
    assert "damaged" in checked.find("bus-log", file)["what"]
    shutil.rmtree(root)


def test_sink_whose_place_is_gone(server, target):
    world = Checked(server, target)
    try:
        sink_file = world.sink_of(snapshot="manual")
        connector, sink = world.connector(), world.sink(sink_file)
        world.src("INSERT INTO orders VALUES (1, 'paid', 5)")
        world.wait_rows("SELECT id FROM team.orders", [(1,)])
        running = {f["kind"]: f for f in world.look(sink_file)[1]}
        assert "sink-running" in running
        assert connector.stop() == 0 and sink.stop() == 0
        for path in (world.bus["local"]["path"], world.hot):
            shutil.rmtree(path)
        world.source.sql("SELECT pg_drop_replication_slot(%s)", [world.slot()])
        world.src("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [world.slot()])
        world.connector(name="anew").stop()
        assert world.find("sink-stale", sink_file)["severity"] == "error"
        assert world.find("sink-stale", world.sink_of())["severity"] == "warning"  # it asks for everything by itself
    finally:
        world.close()


def test_topics_of_kafka(server, target, kafka):
    """Nothing is made; then each setting that loses records, and the unwise ones."""
    world = World(server, target, kafka=kafka)
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    try:
        wrong, found = Checked.look(world, code=CLEAN)
        assert "topic-will-be-made" in {f["kind"] for f in found}
        assert not [t for t in kafka.wire.topics() if world.stream in t]
        absent = world.connector_file(bus={"kafka": {"brokers": kafka.brokers, "create": False}})
        wrong, found = Checked.look(world, absent, code=WRONG)
        assert "kafka-topics.sh" in [f for f in wrong if f["kind"] == "topic-missing"][0]["fix"]
        kafka.wire.create_topic(world.stream, **{"cleanup.policy": "compact", "retention.bytes": "1000000", "unclean.leader.election.enable": "true"})
        wrong, found = Checked.look(world, code=WRONG)
        what = " ".join(f["what"] + f["fix"] for f in found if f["kind"] == "topic-setting" and f["fix"])
        assert "cleanup.policy=delete" in what and "retention.bytes=-1" in what and "unclean.leader.election.enable=false" in what, found
        many = {"kafka": {"brokers": kafka.brokers}}
        kafka.wire.create_topic(world.stream + "_wide", partitions=3)
        wrong, found = Checked.look(world, world.connector_file(connector=world.stream + "_wide", bus=many), code=WRONG)
        assert "topic-partitions" in {f["kind"] for f in wrong}, found
        nobody = world.connector_file(bus={"kafka": {"brokers": f"127.0.0.1:{scratch_port()}"}})
        wrong, found = Checked.look(world, nobody, code=WRONG)
        assert "brokers" in {f["kind"] for f in wrong}
    finally:
        kafka.forget(world.stream + "_wide")
        world.close()


def test_drop_removes_what_is_ours_and_no_more(server, target):
    """The slot, and the publication only when this connector made it; twice is fine; never under a reader."""
    world = Checked(server, target)
    try:
        connector = world.connector()
        code, out, noise = world.run("connector", "-c", world.connector_file(), "--drop")
        assert code == REFUSED and "in use" in noise and "Nothing was dropped" in noise
        assert connector.stop() == 0
        code, out, noise = world.run("connector", "-c", world.connector_file(), "--drop", check=0)
        assert f'dropped replication slot "{world.slot()}"' in out and 'left publication "spate"' in out and 'DROP PUBLICATION "spate";' in out
        assert world.src("SELECT count(*) FROM pg_publication")[0][0] == 1 and not world.source.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [world.slot()])
        code, out, noise = world.run("connector", "-c", world.connector_file(), "--drop", check=0)
        assert "does not exist: nothing to drop" in out
        # One that it makes itself, says so, and goes.
        world.src("DROP PUBLICATION spate")
        for path in (world.bus["local"]["path"], world.hot):
            shutil.rmtree(path)
        mine = world.connector_file(source={"postgres": {**world.postgres, "url": world.source.url(world.db), "create": True}})
        world.connector(file=mine, name="mine").stop()
        assert world.src("SELECT obj_description(oid, 'pg_publication') FROM pg_publication") == [("made by spate connector shop",)]
        code, out, _ = world.run("connector", "-c", mine, "--drop", check=0)
        assert 'dropped publication "spate"' in out and not world.src("SELECT 1 FROM pg_publication")
        assert world.run("connector", "-c", mine, "--drop", check=0)[1].count("nothing to drop") == 2
        assert world.run("connector", "-c", mine, "--drop", "--new-epoch")[0] == WRONG
    finally:
        world.close()
