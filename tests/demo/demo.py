#!/usr/bin/env python3
"""make demo: a shop's database, a connector, two teams with schemas of their own, and the proof that nothing is missing.

Two private Postgres servers in a scratch directory; nothing of the machine's own servers is touched. Ends with EQUAL,
or with a non-zero exit status. KEEP=1 leaves everything running and says what to type next.
"""
import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.dont_write_bytecode = True
from tests.support import scratch  # noqa: E402
from tests.support.cluster import Cluster, bin_dir  # noqa: E402
from tests.support.world import CHECKER, binary, private_kb  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
SECONDS = int(os.environ.get("DEMO_SECONDS", "10"))
KEEP = os.environ.get("KEEP", "") not in ("", "0")
COLOUR = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb")

# What each team's table must equal, said in the source's own words.
PAIRS = {
    "billing.invoices": "SELECT id, customer_id, (amount_cents / 100.0)::numeric(12,2), round(amount_cents * 0.19 / 100, 2), "
                        "(placed_at AT TIME ZONE 'UTC')::date FROM orders WHERE status = 'paid'",
    "billing.invoice_lines": "SELECT order_id, line, article, quantity * price_cents FROM order_lines",
    "search.people": "SELECT id, upper(name), lower(email), split_part(lower(email), '@', 2), note FROM customers",
    "search.purchases": "SELECT id, customer_id, status, (delivery->>'express')::boolean, placed_at FROM orders",
}
COLUMNS = {
    "billing.invoices": "invoice, customer, net, vat, day", "billing.invoice_lines": "invoice, line, article, cents",
    "search.people": "person, name, mail, provider, memo", "search.purchases": "purchase, person, state, express, placed",
}


def paint(code, text):
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def step(text):
    print(paint("1", "\n== " + text), flush=True)


def say(text):
    print("   " + text, flush=True)


class Demo:
    def __init__(self):
        self.begin = time.monotonic()
        self.dir = scratch.directory("spate-demo-")
        self.hot = scratch.hot_directory()
        self.processes = []
        self.source = self.target = None
        scratch.at_end(self.stop)

    def file(self, name):
        with open(os.path.join(HERE, name)) as file:
            return file.read()

    def configure(self, name):
        text = string.Template(self.file(name)).substitute(
            SOURCE_URL=self.source.url("shop", "spate"), BUS=os.path.join(self.dir, "bus"), HOT=self.hot,
            BILLING_URL=self.target.url("teams", "billing"), SEARCH_URL=self.target.url("teams", "search"))
        path = os.path.join(self.dir, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def start(self, name, *arguments):
        log = open(os.path.join(self.dir, name + ".log"), "wb")
        process = subprocess.Popen([binary(), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                   preexec_fn=scratch.child_setup())
        log.close()
        self.processes.append((name, process))
        return process

    def alive(self):
        for name, process in self.processes:
            if process.poll() is not None:
                raise scratch.Failure(f"the {name} ended with exit code {process.returncode}; its last words:\n{self.tail(name)}")
        return True

    def tail(self, name):
        with open(os.path.join(self.dir, name + ".log"), errors="replace") as log:
            return "".join("   " + line for line in log.readlines()[-6:])

    def stop(self):
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for name, process in self.processes:
            try:
                process.wait(12)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def keep_logs(self):
        """All that may tell why; everything else is removed."""
        kept = tempfile.mkdtemp(prefix="spate-demo-failed-")
        for folder in (self.dir, self.source.dir if self.source else None, self.target.dir if self.target else None):
            for name in os.listdir(folder) if folder else ():
                if name.endswith((".log", ".yaml")):
                    shutil.copy(os.path.join(folder, name), os.path.join(kept, os.path.basename(folder) + "-" + name))
        return kept

    def until(self, condition, what, seconds=60, every=0.02):
        return scratch.until(lambda: self.alive() and condition(), what, seconds, every)

    # The story, one act after the other.
    def servers(self):
        step("two private Postgres servers: the shop's, and the warehouse where the teams have their schemas")
        self.source, self.target = Cluster("shop"), Cluster("warehouse")
        self.source.start()
        self.target.start()
        version = self.source.one("SHOW server_version").split()[0]
        say(f"Postgres {version}, running as user {self.source.user[2]} below {os.path.dirname(self.source.dir)}, each on a free port")
        self.source.create_database("shop")
        self.target.create_database("teams")
        self.pgbench("-i", "-I", "dtp", "-q")
        self.source.sql(self.file("source.sql"), db="shop")
        self.source.sql(self.file("load.sql"), db="shop")
        self.pgbench("-i", "-I", "g", "-q")
        self.target.sql("CREATE ROLE billing LOGIN; CREATE ROLE search LOGIN;"
                        "CREATE SCHEMA billing AUTHORIZATION billing; CREATE SCHEMA search AUTHORIZATION search", db="teams")
        counts = ", ".join(f"{self.source.one('SELECT count(*) FROM ' + table, db='shop'):,} {name}" for table, name in
                           (("customers", "customers"), ("orders", "orders"), ("order_lines", "order lines"), ("pgbench_accounts", "accounts of pgbench's")))
        say(f"the shop has been open for a while: {counts}")

    def pgbench(self, *arguments):
        return scratch.run([bin_dir() + "/pgbench", "-h", self.source.dir, "-p", str(self.source.port), "-U", "postgres", *arguments, "shop"],
                           timeout=120).stdout

    def daemons(self):
        step("one connector beside the shop's database, one sink process with two teams")
        self.connector_file = self.configure("connector.yaml")
        sinks = [self.configure("billing.yaml"), self.configure("search.yaml")]
        self.start("connector", "connector", "-c", self.connector_file)
        self.until(lambda: self.source.sql("SELECT 1 FROM pg_stat_replication WHERE state IN ('catchup', 'streaming')"),
                   "the connector streams from the shop's database")
        self.asked = time.monotonic()
        self.start("sink", "sink", "-c", sinks[0], "-c", sinks[1])
        say("spate connector -c connector.yaml")
        say("spate sink -c billing.yaml -c search.yaml")
        for team, schema in (("billing", "paid orders as invoices, amounts computed"), ("search", "customers and orders in its own words")):
            say(f"  {team + ':':9}{schema}")

    def marker(self, text):
        """A logical message in the source's WAL: all that was committed before stands before it in the stream."""
        self.source.sql("SELECT pg_logical_emit_message(true, 'demo', %s)", [text], db="shop")

    def visible(self, table="search.people", seconds=120):
        """Writes a customer and waits until every team that takes customers or orders has got that far."""
        row = self.source.sql("INSERT INTO customers (name, email, country) VALUES ('Mark', 'mark@x.org', 'DE') RETURNING id", db="shop")[0][0]
        order = self.source.sql("INSERT INTO orders (customer_id, status) VALUES (%s, 'paid') RETURNING id", [row], db="shop")[0][0]
        for query, value in (("SELECT 1 FROM billing.invoices WHERE invoice = %s", order), ("SELECT 1 FROM search.purchases WHERE purchase = %s", order)):
            self.until(lambda: self.seen(query, value), f"{query % value} finds the row that was just written", seconds, 0.01)
        return row

    def seen(self, query, value):
        import psycopg2
        try:
            return self.target.sql(query, [value], db="teams")
        except psycopg2.errors.UndefinedTable:
            return None

    def snapshot(self, *arguments):
        done = scratch.run([binary(), "snapshot", "-c", self.connector_file, *arguments], check=False)
        if done.returncode:
            raise scratch.Failure(f"spate snapshot {' '.join(arguments)} ended with exit code {done.returncode}: {done.stdout}")
        return done.stdout.splitlines()

    def before(self):
        step("what was there before: a new team asks for everything, and gets it while the stream goes on")
        self.until(lambda: sum("finished" in line for line in self.snapshot("--list", "--all")) == 2, "both teams have all that was there", 60, 0.1)
        seconds = time.monotonic() - self.asked
        for line in self.snapshot("--list", "--all"):
            say(line)
        rows = sum(self.target.one(f"SELECT count(*) FROM {table}", db="teams") for table in COLUMNS)
        say(paint("1;32", f"{rows:,} rows in both teams' tables {seconds:.1f} s after they were started") + ", nothing was stopped for it")
        say("anyone may ask, with `spate snapshot`:")
        say("spate snapshot --tables public.orders --where \"id <= 3\" --columns status,amount_cents --rows")
        for line in self.snapshot("--tables", "public.orders", "--where", "id <= 3", "--columns", "status,amount_cents", "--rows"):
            say("  " + line)

    def load(self):
        step(f"load: pgbench for {SECONDS} s, its own script and the shop's")
        self.marker("begin")
        begin = time.monotonic()
        out = self.pgbench("-n", "-c", "4", "-j", "1", "-T", str(SECONDS), "-b", "tpcb-like@1", "-f", os.path.join(HERE, "shop.sql") + "@9")
        tps = re.search(r"tps = ([\d.]+)", out)
        ended = time.monotonic()
        self.marker("end")
        self.visible()
        caught = time.monotonic()
        marks = self.marks()
        changes = marks["end"] - marks["begin"] - 1
        say(f"{float(tps.group(1)) if tps else 0:,.0f} transactions/s at the source")
        say(paint("1;32", f"{changes:,} changes, {changes / (caught - begin):,.0f} changes/s through to both teams")
            + f" (they were done {1000 * (caught - ended):,.0f} ms after the last one)")

    def tap(self, *arguments, until=None):
        """spate tap: up to the first line for which until() is true, or to its own end (-n)."""
        process = subprocess.Popen([binary(), "tap", "-c", self.connector_file, *arguments], stdout=subprocess.PIPE, text=True,
                                   stderr=subprocess.PIPE, preexec_fn=scratch.child_setup())
        lines = []
        timer = scratch.threading.Timer(20, process.kill)
        timer.start()
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if until and until(line):
                break
        timer.cancel()
        process.kill()
        error = process.stderr.read()
        process.wait()
        if not lines:
            raise scratch.Failure(f"spate tap {' '.join(arguments)} printed nothing: {error}")
        return lines

    def marks(self):
        found = {}
        for line in self.tap("--from", "oldest", "--op", "message", until=lambda line: '"content":"end"' in line):
            message = json.loads(line)
            found[message["content"]] = message["n"]
        return found

    def latency(self):
        step("latency: from COMMIT at the source to visible in the team's table")
        here, there = self.source.connect("shop"), self.target.connect("teams")
        write, read = here.cursor(), there.cursor()
        read.execute("PREPARE look AS SELECT 1 FROM search.people WHERE person = $1")
        times = []
        for _ in range(50):
            write.execute("INSERT INTO customers (name, email, country) VALUES ('Late', 'late@x.org', 'SE') RETURNING id")
            begin, row = time.perf_counter(), write.fetchone()[0]
            read.execute("EXECUTE look (%s)", [row])
            while not read.fetchone():
                if time.perf_counter() > begin + 10:
                    raise scratch.Failure(f"customer {row} is not visible to search after 10 s:\n{self.tail('sink')}")
                read.execute("EXECUTE look (%s)", [row])
            times.append(1000 * (time.perf_counter() - begin))
        here.close()
        there.close()
        times.sort()
        say(paint("1;32", f"p50 {times[25]:.1f} ms") + f", p90 {times[45]:.1f} ms, slowest {times[-1]:.1f} ms (50 rows, one after the other)")

    def look(self):
        step("messages: what anyone may hear with `spate tap`")
        width = max(100, shutil.get_terminal_size((160, 24)).columns) - 4
        shown = self.tap("public.orders", "--from", "oldest", "--op", "read", "-n", "1")
        shown += self.tap("public.orders", "--from", "oldest", "--op", "insert", "-n", "1")
        shown += self.tap("public.orders", "--from", "oldest", "--op", "update", "-n", "1")
        wanted = self.tap("public.customers", "--from", "oldest", "--op", "update", until=lambda line: '"unchanged":["note"]' in line)
        shown += [line for line in wanted if '"unchanged":["note"]' in line][:1]
        shown += self.tap("public.orders", "--from", "oldest", "--op", "delete", "-n", "1")
        for line in shown:
            for at in range(0, min(len(line), 3 * width), width):
                say(line[at:at + width] + (" ..." if at + width < len(line) and at == 2 * width else ""))
            print()

        step("tables: what the teams have")
        for table, columns in COLUMNS.items():
            names = [name.strip() for name in columns.split(",")]
            rows = self.target.sql(f"SELECT {columns} FROM {table} ORDER BY 1 LIMIT 3 OFFSET 9", db="teams")
            count = self.target.one(f"SELECT count(*) FROM {table}", db="teams")
            cells = [[str(value)[:34].split(".")[0] if name == "placed" else str(value)[:34] for name, value in zip(names, row)] for row in rows]
            widths = [max(len(c) for c in column) for column in zip(names, *cells)]
            say(paint("1", table) + f", {count:,} rows")
            for line in [names, *cells]:
                say("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())

    def compare(self):
        step("the proof: each team's table beside the same SELECT at the source")
        self.visible()
        argv = [sys.executable, CHECKER, "tables", "--source", self.source.dsn("shop"), "--target", self.target.dsn("teams")]
        for table, query in PAIRS.items():
            argv += ["--pair", query, f"SELECT {COLUMNS[table]} FROM {table}"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            print(done.stdout)
            raise scratch.Failure("source and targets differ, see above")
        for table, line in zip(PAIRS, done.stdout.splitlines()):
            say(f"{table:<24}{line.split(':')[0]}")
        memory = []
        for name, process in self.processes:
            memory.append(f"{name} {private_kb(process.pid) / 1024:.0f} MB")
        say("private memory: " + ", ".join(memory))
        self.alive()
        print(paint("1;32", f"\nEQUAL") + f"   ({time.monotonic() - self.begin:.0f} s)", flush=True)

    def keep(self):
        pids = [process.pid for _, process in self.processes]
        stop = os.path.join(self.dir, "stop")
        folders = [self.dir, self.hot, self.source.dir, self.target.dir, os.path.dirname(list(_templates())[0])]
        with open(stop, "w") as file:
            file.write("#!/bin/sh\n# Ends what make demo KEEP=1 left running, also what was started again since, and removes its files.\n"
                       "end() { kill -$1 $2 2>/dev/null; while kill -0 $2 2>/dev/null; do sleep 0.1; done; }\n"
                       "for p in /proc/[0-9]*; do\n"
                       f"    {{ tr '\\0' ' ' <$p/cmdline; }} 2>/dev/null | grep -q 'spate .*-c {self.dir}/' && end TERM ${{p#/proc/}}\ndone\n"
                       f"end INT {self.source.process.pid}\nend INT {self.target.process.pid}\n"
                       f"rm -rf {' '.join(folders)}\n")
        os.chmod(stop, 0o755)
        spate, psql = binary(), bin_dir() + "/psql"
        step("left running; try this next")
        say("watch all changes of the shop's tables:")
        say(f"    {spate} tap -c {self.connector_file} 'public.*'")
        say("change something, in another terminal:")
        say(f"    {psql} '{self.source.dsn('shop')}' -c \"UPDATE orders SET status = 'paid' WHERE status = 'open'\"")
        say("see it arrive at billing:")
        say(f"    {psql} '{self.target.dsn('teams')}' -c 'SELECT count(*), sum(net) FROM billing.invoices'")
        say("ask for rows, or have a team's tables brought up to the source:")
        say(f"    {spate} snapshot -c {self.connector_file} --tables public.orders --where \"status = 'open'\" --rows")
        say(f"    {spate} snapshot -c {os.path.join(self.dir, 'billing.yaml')} --sink billing --follow")
        say("more load:")
        say(f"    {bin_dir()}/pgbench -h {self.source.dir} -p {self.source.port} -U postgres -n -c 4 -T 30 -f {HERE}/shop.sql shop")
        say(f"kill the connector or the sink as hard as you like, and start it again (logs and files are in {self.dir}):")
        say(f"    kill -9 {pids[0]}; {spate} connector -c {self.connector_file}")
        say("end it all:")
        say(f"    {stop}")
        scratch.abandon()


def _templates():
    from tests.support import cluster
    return cluster._template.values()


def main():
    scratch.leave_running = KEEP
    scratch.install_handlers()
    demo = Demo()
    try:
        demo.servers()
        demo.daemons()
        demo.before()
        demo.load()
        demo.latency()
        demo.look()
        demo.compare()
        if KEEP:
            demo.keep()
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; cleaning up")
        return 130
    except (scratch.Failure, subprocess.SubprocessError) as failure:
        print(paint("1;31", "\nFAILED: ") + f"{failure}\n   logs and configuration: {demo.keep_logs()}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    # A second Ctrl-C while cleaning up must not leave servers behind.
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    scratch.clean_up()
    sys.exit(code)
