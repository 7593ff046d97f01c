"""Every value of every type, through the bridge into a table of the same types, by stream and by snapshot (P79-P89).

Source and sink tables stand in one database, so that the proof is Postgres' own: a join with IS DISTINCT FROM, and a
comparison of the bytes of the values' text.
"""
import os

import pytest

from tests.support import scratch
from tests.support.world import World

# type: values, spelled as literals. Each table also has an array of the type, with a NULL in it.
VALUES = {
    "bool": ["t", "f"],
    "int2": ["-32768", "32767", "0"], "int4": ["-2147483648", "2147483647"],
    "int8": ["9007199254740991", "-9007199254740991", "9007199254740992", "-9007199254740993", "-9223372036854775808", "9223372036854775807"],
    "float4": ["1.1", "NaN", "-Infinity", "Infinity", "1e-45", "-0", "3.4028235e38", "16777217", "1e22"],
    "float8": ["0.1", "1e-320", "5e-324", "1.7976931348623157e308", "Infinity", "-Infinity", "NaN", "-0", "0", "1e20", "0.30000000000000004", "123456789012345678"],
    "numeric": ["NaN", "Infinity", "-Infinity", "1e1000", "-0.00000000000000000001", "12.50", "0.000", "1" * 100 + "." + "3" * 100, "1e131071", "1e-16383"],
    "numeric(10,2)": ["12345678.90", "-0.01", "NaN", "0"],
    "money": ["-12.34", "92233720368547758.07", "-92233720368547758.08", "0", "1234567.89"],
    "text": ["", " ", "quote \" back \\ slash ' \\' \\\\", "line\nfeed\ttab\rreturn\b\f\v", "\x01\x1f\x7f", "\u00e4\u00f6\u00fc \u20ac \U0001f600 \u2028 \ufeff \uffff e\u0301",
             '{"$bytes":"AA=="}', '{"$bytes": "AA=="}', "\\x00", "\\N", "\\.", "NULL", "null", "\\u0000", "{}", "{NULL}", "()", ",", "%s %d $1 :a ?", "--\n;DROP TABLE x;/*", "a" * 5000],
    "varchar(3)": ["abc", "", "  ", "\u00e4\u20ac\U0001f600"], "char(4)": ["ab", "", "abcd", " b"], '"char"': ["x", "", "\\200", "\\377", "\\\\"], "name": ["n", "a" * 63, '"'],
    "bytea": ["\\x", "\\x00", "\\x00ff5c220a09", "abc\\000", "\\x" + "00" * 3000, "\\x5c5c3030"],
    "date": ["infinity", "-infinity", "4713-01-01 BC", "0001-01-01 BC", "0001-01-01", "5874897-12-31", "1582-10-15", "10000-01-01", "2004-02-29"],
    "time": ["24:00:00", "00:00:00.000001", "23:59:60", "23:59:59.999999"], "time(0)": ["12:34:56.5"],
    "timetz": ["24:00:00+15:59", "00:00:00-15:59:59", "12:00:00.1+00"],
    "timestamp": ["-infinity", "infinity", "1970-01-01 00:00:00", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999", "2000-01-01 00:00:00.000001", "01-02-03 04:05:06"],
    "timestamp(3)": ["2026-11-21 09:14:03.1239"],
    "timestamptz": ["infinity", "-infinity", "294276-12-31 23:59:59.999999+00", "4714-11-24 00:00:00+00 BC", "2026-11-21 09:14:03.1+05:30", "1883-11-18 12:03:58-04:56:02", "10000-01-01 00:00:00+00"],
    "interval": ["1 year -2 mons +3 days -04:05:06.7", "0", "-178000000 years", "178000000 years 11 mons 2147483647 days 2562047788:00:54.775807", "-00:00:00.000001",
                 "1 mon -1 day 00:00:01", "-1 year 1 day", "1 year 1 day -1 sec", "00:00:60", "24:00:00"], "interval day to second(2)": ["1 day 2.345"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"],
    "json": ['{"a":1,"a":2}', '" \\u0000"', "3", "null", '"x"', ' { "sp" :\n [ 1 ,2.50 ] } ', "[]", "-0.0e-10", '{"":""}', "1" * 100],
    "jsonb": ['{"k": [1, 2.50, {"x": null}]}', "[]", "{}", "3", "null", '"text"', "true", "false", '""', '{"$bytes": "AA=="}', '[{"$bytes": "AA=="}]', '{"$bytes": 1, "b": 2}', '{"a":"\\"}"}',
              '{"n": ' + "7" * 100 + '}', "1" + "0" * 99 + ".5", '{"n": 1e400}', '[9007199254740993, -0.0, 1.10, 1e-20]', '{"\\u00e9\\n": "\\ud83d\\ude00 \\u2028 \\u001f"}', '{"": {"": ""}}', '"{}"', '"null"',
              "[" * 60 + "]" * 60, "[" * 600 + "]" * 600],
    "jsonpath": ["$.a[*] ? (@ > 1)", "strict $"],
    "xml": ["<a>1</a>", "text", "<a/><b/>", "<?xml version=\"1.0\"?><a>\u00e9</a>", "", "<!DOCTYPE a><a/>"],
    "bit(5)": ["10101", "00000"], "bit": ["1"], "varbit": ["", "1", "0" * 100], "varbit(9)": ["101"],
    "inet": ["10.0.0.1/8", "::1", "192.168.0.1", "::ffff:1.2.3.4/96", "0.0.0.0/0"], "cidr": ["10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0", "1.2.3.4/32"],
    "macaddr": ["08:00:2b:01:02:03"], "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "tsvector": ["'a':1 'b'", "'it''s':1A,2B,16383 'sp ace' '\\\\':3", ""], "tsquery": ["'a' & !'b' | 'c':*AB", "'x' <-> 'y' <3> 'z'", ""],
    "point": ["(1.5,NaN)", "(-0,1e-320)", "(Infinity,-Infinity)"], "line": ["{1,-1,0}"], "lseg": ["[(0,0),(1,1)]"], "box": ["(1,1),(0,0)"], "path": ["((0,0),(1,1))", "[(0,0),(1,1)]"],
    "polygon": ["((0,0),(1,1),(2,0.1))"], "circle": ["<(0,0),1.1>", "<(0.1,-0),0>"],
    "int4range": ["empty", "[1,5)", "(,)", "[,5]", "(1,]"], "int8range": ["[9007199254740993,)"], "numrange": ["(1.10,2.20]", "[NaN,NaN]", "(-Infinity,Infinity)"],
    "tsrange": ['["2020-01-01 00:00:00",infinity)', "(,infinity]"], "tstzrange": ['["0044-03-15 00:00:00+00 BC","2020-01-01 00:00:00+00"]'],
    "daterange": ["[2020-01-01,infinity]", "empty"], "textrange": ['["a b","c\\"d")', '[",","\\\\"]', '["",""]', "(,)"],
    "int4multirange": ["{}", "{[1,3),[5,7)}", "{(,)}"], "tstzmultirange": ["{[2020-01-01,2021-01-01)}", "{}"], "textmultirange": ['{["a","b}"),["c,","d"]}'],
    "int4[]": ["{1,NULL,3}", "{}", "{{1,2},{3,4}}", "[0:1]={7,8}", "[-2:-1][5:6]={{1,2},{3,NULL}}", "{NULL}"],
    "text[]": ['{a,"b,c","d\\"e",NULL,""}', '{"NULL","null",null}', '{"\\\\","{","}"," ","a b"," x "}', "{{a},{b}}", "[3:3]={x}"], "bytea[]": ['{"\\\\x00","\\\\x",NULL}'], "jsonb[]": ['{"null",NULL,"{\\"a\\": [1]}"}'],
    "point[]": ['{"(1,2)","(3,4)"}'], "box[]": ["{(1,1),(0,0);(2,2),(1,1)}"], "interval[]": ['{"1 day -1 sec",NULL}'], "money[]": ['{"$1.00","-$1,234.56"}'], "int4range[]": ['{empty,"[1,2)"}'],
    "oid": ["4294967295", "0"], "xid": ["4294967295"], "xid8": ["18446744073709551615"], "cid": ["7"], "tid": ["(4294967295,65535)", "(0,0)"], "pg_lsn": ["16/B374D848", "0/0"], "pg_snapshot": ["10:20:10,14,15"], "txid_snapshot": ["10:20:10"],
    "regclass": ["pg_class", "public.\"We.ird\"\"x\"", "-", "99999999"], "regtype": ["int4", "timestamptz", "public.mood", "-"], "regproc": ["now", "-"], "regprocedure": ["abs(int4)"], "regoper": ["0"], "regoperator": ["+(int4,int4)"],
    "regnamespace": ["pg_catalog", "public"], "regrole": ["postgres"], "regconfig": ["english"], "regdictionary": ["simple"], "regcollation": ['"C"'],
    "int2vector": ["1 2 3", ""], "oidvector": ["1 2 3", ""], "aclitem": ["postgres=arwdDxt/postgres"], "refcursor": ["c 1"],
    "mood": ["sad", "very happy", "it's, \"odd\" \\ {}()", "", "\u00e9\u20ac", "NULL"],
    "posint": ["5"], "evenint": ["8"], "longname": ["a b"], "jdom": ['{"a": 1}', "3"], "intarr": ["{1,NULL}", "{}"], "moodom": ["sad"], "pairdom": ['(1,"x y",)'],
    "pair": ['(1,"a b",)', '(,"","{1,NULL}")', '(-1,"q""u\\\\o,te(","{}")'], "pair[]": ['{"(1,\\"x,y\\",)",NULL,"(,,)"}'], "deep": ['("(1,""a """"b"""""",""{1,2}"")","{""(2,,)"",NULL}",sad,"[1,2)")', "(,,,)"],
    "nothing": ["()"],
}
CONTRIB = {
    "hstore": ("hstore", ['"a"=>"1", "b"=>NULL', "", '"q\\"\\\\"=>"NULL", "n\n"=>""']), "citext": ("citext", ["MiXed", "", "\u00c4"]), "ltree": ("ltree", ["a.b.c", ""]), "lquery": ("ltree", ["a.*{1,2}.b@|c*.!d"]),
    "ltxtquery": ("ltree", ["a & !b*"]), "cube": ("cube", ["(1,2),(3,4)", "(0)", "(1.1,-0)", "()"]), "isbn13": ("isn", ["978-0-393-04002-9"]), "isbn": ("isn", ["0-393-04002-X"]), "ean13": ("isn", ["978-0-393-04002-9"]),
    "issn": ("isn", ["1436-4522"]), "upc": ("isn", ["220356483481"]), "query_int": ("intarray", ["1&(2|3)&!4"]), "seg": ("seg", ["1.0 .. 2.0", "~ 1", "5(+-)0.3"]),
}
TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'very happy', 'it''s, "odd" \\ {}()', '', '\u00e9\u20ac', 'NULL');
CREATE DOMAIN posint AS int CHECK (value > 0); CREATE DOMAIN evenint AS posint CHECK (value % 2 = 0); CREATE DOMAIN longname AS varchar(40) DEFAULT 'none'; CREATE DOMAIN jdom AS jsonb;
CREATE DOMAIN intarr AS int[]; CREATE DOMAIN moodom AS mood; CREATE TYPE textrange AS RANGE (subtype = text, collation = "C", multirange_type_name = textmultirange);
CREATE TYPE pair AS (a int, b text, c int[]); CREATE DOMAIN pairdom AS pair; CREATE TYPE deep AS (p pair, ps pair[], m mood, r int4range); CREATE TYPE nothing AS ();
CREATE TABLE "We.ird""x" ();
"""
# Not every type can be a key (no order), and not all spellings of a value are different keys.
NO_KEYS = {"json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "point[]", "box[]", "cid", "xid", "aclitem", "jsonpath", "refcursor", "txid_snapshot", "pg_snapshot", "int2vector",
           "regoper", "regoperator", "lquery", "ltxtquery", "query_int", "nothing"}
DOMAINS = {"posint", "evenint", "longname", "jdom", "intarr", "moodom", "pairdom"}

# What people set for themselves, and what each of it would do to a value (P79, P82).
HOSTILE = {
    "datestyle": "SQL, DMY", "intervalstyle": "iso_8601", "extra_float_digits": "-15", "bytea_output": "escape", "timezone": "America/New_York", "lc_monetary": "C.UTF-8", "client_encoding": "LATIN1",
    "search_path": "nowhere, public", "statement_timeout": "1ms", "lock_timeout": "1ms", "idle_in_transaction_session_timeout": "1ms", "idle_session_timeout": "500ms", "xmlbinary": "hex", "xmloption": "document",
    "array_nulls": "off", "standard_conforming_strings": "off", "backslash_quote": "off", "escape_string_warning": "on", "transform_null_equals": "on", "quote_all_identifiers": "on", "row_security": "off",
    "default_transaction_isolation": "serializable", "default_transaction_deferrable": "on", "default_text_search_config": "pg_catalog.german", "lc_time": "C.UTF-8",
    "lc_numeric": "C.UTF-8", "client_min_messages": "debug1", "gin_fuzzy_search_limit": "1", "check_function_bodies": "off", "enable_bitmapscan": "off", "enable_nestloop": "off", "enable_sort": "off",
    "default_with_oids": "off", "exit_on_error": "on", "work_mem": "64kB", "temp_buffers": "800kB", "restrict_nonsystem_relation_kind": "view,foreign-table", "synchronous_commit": "off", "plan_cache_mode": "force_generic_plan",
}


def in_place(source):
    """A world whose target is the source's own database."""
    world = World(source, None)
    world.target = source
    return world


def finish(world):
    world.target = None  # one database, dropped once
    world.close()


def kinds_of(world):
    """{type: values}; types of extensions that the server lacks are left out, and the extensions named."""
    there = {row[0] for row in world.src("SELECT name::text FROM pg_available_extensions")}
    kinds = dict(VALUES)
    if world.source.version() < 150000:  # which reads fewer hours than it can hold
        kinds["interval"] = [value for value in kinds["interval"] if "2562047788:" not in value]
    for kind, (extension, values) in CONTRIB.items():
        if extension in there:
            world.src(f"CREATE EXTENSION IF NOT EXISTS {extension}")
            kinds[kind] = values
    return kinds, sorted({extension for extension, _ in CONTRIB.values()} - there)


def families(kinds):
    """Tables of twelve types each, v, and arrays of them, a; and with keys of four types each, k."""
    names, keys = list(kinds), [kind for kind in kinds if kind not in NO_KEYS]
    tables = {f"f{at // 12}": names[at:at + 12] for at in range(0, len(names), 12)}
    return tables, {f"g{at // 4}": keys[at:at + 4] for at in range(0, len(keys), 4)}


def make(cursor, tables, keyed):
    for table, kinds in tables.items():
        cursor.execute(f"CREATE TABLE {table} (id int PRIMARY KEY" + "".join(f", v{i} {kind}, a{i} {kind}[]" for i, kind in enumerate(kinds)) + ")")
    for table, kinds in keyed.items():
        cursor.execute(f"CREATE TABLE {table} (" + "".join(f"k{i} {kind}, " for i, kind in enumerate(kinds)) + "n int, big text, PRIMARY KEY (" + ", ".join(f"k{i}" for i in range(len(kinds))) + "));"
                       f"ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL")


def change(cursor, tables, keyed, values):
    """Each value is inserted, as it is and after another one; some rows go. Literals, which the type's own input reads: a cast of text
    is something else for some types."""
    for table, kinds in tables.items():
        count = max(len(values[kind]) for kind in kinds) + 1

        def row(n):
            given = [(values[kind] + [None])[n % (len(values[kind]) + 1)] for kind in kinds]
            cells = ", ".join(f"%s::{kind}, %s::{kind}" if kind.endswith("[]") else f"%s::{kind}, ARRAY[NULL, %s, %s]::{kind}[]" for kind in kinds)
            return cells, [value for kind, value in zip(kinds, given) for _ in range(2 if kind.endswith("[]") else 3)]

        for n in range(count):
            cells, given = row(n)
            cursor.execute(f"INSERT INTO {table} VALUES (%s, {cells}), (%s, {cells})", [n, *given, 1000 + n, *given])
            cells, given = row(n + 1)
            columns = ", ".join(f"v{i}, a{i}" for i in range(len(kinds)))
            cursor.execute(f"UPDATE {table} SET ({columns}) = ROW ({cells}) WHERE id = %s", [*given, n])
        cursor.execute(f"DELETE FROM {table} WHERE id = 1")
    for table, kinds in keyed.items():
        columns, cells = ", ".join(f"k{i}" for i in range(len(kinds))), ", ".join(f"%s::{kind}" for kind in kinds)
        for n in range(max(len(values[kind]) for kind in kinds)):
            given = [values[kind][n % len(values[kind])] for kind in kinds]
            cursor.execute(f"INSERT INTO {table} VALUES ({cells}, %s, repeat('x', 3000)) ON CONFLICT DO NOTHING", [*given, n])
        cursor.execute(f"UPDATE {table} SET n = -n")
        cursor.execute(f"DELETE FROM {table} WHERE n = -1 AND (SELECT count(*) FROM {table}) > 1")
        # The key moves to values that others have in part, and the large column stays where it is (P42).
        cursor.execute(f"UPDATE {table} SET ({columns}) = ROW ({cells}) WHERE n = (SELECT min(n) FROM {table})", [values[kind][(i + 1) % len(values[kind])] for i, kind in enumerate(kinds)])


def differences(world, schema, tables, keyed):
    """What is not the same, by the types' own equality and by the bytes of the text."""
    found = []
    with world.source.connect(world.db) as connection, connection.cursor() as cursor:
        for table, kinds in {**tables, **keyed}.items():
            key = "n" if table in keyed else "id"
            columns = [(f"k{i}", kind) for i, kind in enumerate(kinds)] + [("big", "text")] if table in keyed else [(name, kind) for i, kind in enumerate(kinds) for name, kind in ((f"v{i}", kind), (f"a{i}", kind))]
            cursor.execute(f"SELECT (SELECT count(*) FROM public.{table}), (SELECT count(*) FROM {schema}.{table})")
            here, there = cursor.fetchone()
            if here != there or here == 0:
                found.append((table, "rows", here, there))
            for column, kind in columns:
                # What Postgres prints: a cast of xml to text also has the declaration, which is never printed.
                shown = [f"format('%s', {side}.{column})" if kind == "xml" else f"{side}.{column}::text" for side in "xy"]
                test = f"{shown[0]} COLLATE \"C\" IS DISTINCT FROM {shown[1]} COLLATE \"C\""
                if kind not in DOMAINS:  # which stand as their base types in the sink
                    test += f" OR pg_typeof(x.{column}) <> pg_typeof(y.{column})"
                if kind not in NO_KEYS and kind != "moodom":  # (a domain over an enum has no operators)
                    test += f" OR x.{column} IS DISTINCT FROM y.{column}::{kind}{'[]' if column[0] == 'a' and kind[-1] != ']' else ''}"
                cursor.execute(f"SELECT {key}, {shown[0]}, {shown[1]} FROM public.{table} x FULL JOIN {schema}.{table} y USING ({key}) WHERE {test}")
                found += [(kind, table, column, *row) for row in cursor.fetchall()]
    return found


def wait_made(world, schema, sink):
    def look():
        if not sink.running():
            raise scratch.Failure(f"the sink ended with {sink.process.returncode}: {sink.tail()}")
        return world.src("SELECT to_regclass(%s) IS NOT NULL", [schema + ".done"])[0][0]

    scratch.until(look, lambda: "the sink has made its tables" + world.logs(), 60)


def wait_applied(world, schema, sink, seconds=60):
    """All that was committed before is applied: a last row is there, and so is whatever a snapshot brings."""
    wait_made(world, schema, sink)
    world.src("INSERT INTO done VALUES ((SELECT count(*) FROM done))")

    def look():
        if not sink.running():
            raise scratch.Failure(f"the sink ended with {sink.process.returncode}: {sink.tail()}")
        return world.tgt(f"SELECT (SELECT count(*) FROM {schema}.done), (SELECT bool_and(snapshotted) FROM {schema}.spate_table)")[0] == (count, True)

    count = world.src("SELECT count(*) FROM done")[0][0]
    scratch.until(look, lambda: "all is applied" + world.logs(), seconds, 0.1)


def test_every_value_by_stream_and_by_snapshot(source):
    """P79-P82, P89: source and target roles and the database set all that could change a value's text, and none does."""
    world = in_place(source)
    try:
        world.src(TYPES)
        values, lacking = kinds_of(world)
        tables, keyed = families(values)
        names = {name: {"from": f"public.{name}"} for name in [*tables, *keyed, "done"]}
        with source.connect(world.db, autocommit=False) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE done (n int PRIMARY KEY)")
            make(cursor, tables, keyed)
        hostile(world)
        url = {side: source.url(world.db, f"{side}_{world.db}") for side in ("here", "there")}
        world.config["source"]["postgres"]["url"] = url["here"]
        connector = world.connector()
        sink = world.sink(world.sink_file("team", names, url=url["there"]))
        wait_made(world, "team", sink)
        with source.connect(world.db, autocommit=False) as connection, connection.cursor() as cursor:
            cursor.execute("SET search_path = public; SET xmloption = content; SET lc_monetary = 'C'; SET default_transaction_read_only = off; SET timezone = 'UTC'; SET standard_conforming_strings = on; SET array_nulls = on;"
                           "SET datestyle = 'ISO, YMD'; SET intervalstyle = postgres; SET transaction_read_only = off; SET statement_timeout = 0")
            change(cursor, tables, keyed, values)
        wait_applied(world, "team", sink)
        found = differences(world, "team", tables, keyed)
        assert not found, found[:20]
        late = world.sink(world.sink_file("late", names, url=url["there"]), name="late")
        wait_applied(world, "late", late)
        found = differences(world, "late", tables, keyed)
        assert not found, found[:20]
        assert connector.running()
        world.check_bus()
        if lacking:
            print("not there:", lacking)
    finally:
        finish(world)


def hostile(world):
    """Two roles with all of HOSTILE that the server knows, and a database that has it as well."""
    known = {row[0].lower() for row in world.src("SELECT name FROM pg_settings")}
    for side in ("here", "there"):
        world.src(f"CREATE ROLE {side}_{world.db} LOGIN SUPERUSER")
    for name, value in HOSTILE.items():
        if name not in known or name == "role":
            continue
        for side in ("here", "there"):
            world.src(f"ALTER ROLE {side}_{world.db} SET {name} = %s" if name not in ("search_path", "datestyle") else f"ALTER ROLE {side}_{world.db} SET {name} = {value}", [value] if name not in ("search_path", "datestyle") else None)


NAMES = ["a.b", 'a"b', '"', "a'b", "new\nline", "tab\t", " ", "\u00e9" * 31 + "a", "\U0001f600" * 15 + "abc", "select", "user", "$1", "a\\b", "%s", "~op", "~~mask", "{}", "null", "*", "?", "a,b", "a: b", "#c", "-",
         "UPPER", "u", "t", "s", "o", "n", "k0", "n0", "m0", "v0", "c1", "excluded", "spate_rows", "spate_k", "op", "a/b", "..", "\x01", "$bytes", "spate", "true", "1", "\u2028", "a" * 63, "&x", "!x", "@", "`", "|", ">", "[", "yes"]


SECOND = "q\"\n\u00e9"


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def test_every_name(source):
    """P85: schemas, tables, columns and keys called what people call them, and what our own statements use."""
    world = in_place(source)
    try:
        tables = {}
        with source.connect(world.db, autocommit=False) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE done (n int PRIMARY KEY)")
            for schema in ("S.x", SECOND):
                cursor.execute(f"CREATE SCHEMA {quoted(schema)}")
            for n, name in enumerate(NAMES):
                place = f"{quoted('S.x' if n % 2 else SECOND)}.{quoted(name)}"
                key, other, large = (NAMES[(n + i) % len(NAMES)] for i in (0, 1, 2))
                cursor.execute(f"CREATE TABLE {place} ({quoted(key)} int, {quoted(other)} text, {quoted(large)} text, PRIMARY KEY ({quoted(key)}, {quoted(other)}));"
                               f"ALTER TABLE {place} ALTER {quoted(large)} SET STORAGE EXTERNAL")
                tables[name] = {"from": place}
            cursor.execute(f"CREATE TABLE \"S.x\".all_of_them ({', '.join(quoted(name) + ' int' for name in NAMES)}, PRIMARY KEY ({', '.join(quoted(name) for name in NAMES[:30])}))")
            tables["all_of_them"] = {"from": '"S.x".all_of_them'}
        def turn(number):
            """Rows of which some change, some get another key, some go."""
            with source.connect(world.db, autocommit=False) as connection, connection.cursor() as cursor:
                for n, (name, table) in enumerate(tables.items()):
                    place = table["from"]
                    if name == "all_of_them":
                        first, fourth, last = (quoted(NAMES[i]) for i in (0, 3, -1))
                        cursor.execute(f"INSERT INTO {place} SELECT {', '.join(f'g + {number}0' for _ in NAMES)} FROM generate_series(1, 5) g;"
                                       f"UPDATE {place} SET {last} = -1, {fourth} = 1000 WHERE {first} = {number}2; DELETE FROM {place} WHERE {first} = {number}4")
                        continue
                    key, other, large = (quoted(NAMES[(n + i) % len(NAMES)]) for i in (0, 1, 2))
                    cursor.execute(f"INSERT INTO {place} SELECT g, 'k{number}', repeat('x', 3000) FROM generate_series(1, 6) g;"
                                   f"UPDATE {place} SET {other} = 'moved {number}' WHERE {key} < 3 AND {other} LIKE 'k%'; UPDATE {place} SET {large} = NULL WHERE {key} = 2; DELETE FROM {place} WHERE {key} = 5")

        turn(1)
        schema = "team.\u00e9\""
        world.connector(file=world.connector_file(tables=['"S.x".*', '"q""\n\u00e9".*', "public.done"]))
        sink = world.sink(world.write("team.yaml", world.sink_config("team", {**tables, "done": {"from": "public.done"}}, schema=schema)))
        wait_applied(world, quoted(schema), sink)  # what was there, by a snapshot
        turn(2)
        wait_applied(world, quoted(schema), sink)
        for name, table in tables.items():
            pair = [table["from"], f"{quoted(schema)}.{quoted(name)}"]
            assert world.src(f"(TABLE {pair[0]} EXCEPT ALL TABLE {pair[1]}) UNION ALL (TABLE {pair[1]} EXCEPT ALL TABLE {pair[0]})") == [], name
            assert world.src(f"SELECT count(*) FROM {pair[1]}")[0][0] > 7
        world.check_bus()
    finally:
        finish(world)


def test_as_many_columns_as_a_table_may_have_and_none(source):
    """P86: the bus takes 1 600 columns; a sink takes what its staging table can hold, says how many that is, and does so at its start."""
    world = in_place(source)
    try:
        world.src(f"CREATE TABLE wide ({', '.join(f'c{i} int2' for i in range(1600))}, PRIMARY KEY (c0)); CREATE TABLE bare (); ALTER TABLE bare REPLICA IDENTITY FULL; CREATE TABLE done (n int PRIMARY KEY)")
        world.connector()
        refused = world.sink_file("many", {"wide": {"from": "public.wide"}})
        code, _out, log = world.run("sink", "-c", refused)
        assert code == 4 and "it uses 1600 columns of the source and at most 1597 can be staged" in log, log
        names = {f"c{i}": f"c{i}" for i in range(1597)}
        world.src(f"INSERT INTO wide SELECT {', '.join('g' for _ in range(1600))} FROM generate_series(1, 20) g")
        sink = world.sink(world.sink_file("team", {"wide": {"from": "public.wide", "columns": names}, "done": {"from": "public.done"}}))
        wait_applied(world, "team", sink)  # what was there, by a snapshot
        world.src(f"INSERT INTO wide SELECT {', '.join('g' for _ in range(1600))} FROM generate_series(21, 40) g")
        world.src("UPDATE wide SET c1 = -1, c1599 = NULL WHERE c0 % 7 = 0; DELETE FROM wide WHERE c0 = 9; UPDATE wide SET c0 = 1000 WHERE c0 = 10")
        world.src("INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES; DELETE FROM bare; INSERT INTO bare DEFAULT VALUES")
        wait_applied(world, "team", sink)
        columns = ", ".join(names)
        assert world.src(f"(SELECT {columns} FROM wide EXCEPT ALL TABLE team.wide) UNION ALL (TABLE team.wide EXCEPT ALL SELECT {columns} FROM wide)") == []
        assert world.src("SELECT count(*), count(c1) FROM team.wide") == [(39, 39)]
        bare = [m for m in world.messages() if m.get("table") == "bare"]
        assert [(m["op"], m["key"], m["before"], m["after"]) for m in bare] == [("insert", None, None, {})] * 2 + [("delete", None, {}, None)] * 2 + [("insert", None, None, {})]
        code, _out, said = world.run("snapshot", "-c", world.connector_file(), "--tables", "public.bare")
        assert code == 4 and "has no column that is published" in said
        world.check_bus()
    finally:
        finish(world)


def in_encoding(world, cluster, encoding):
    cluster.drop_database(world.db)
    cluster.sql(f"CREATE DATABASE \"{world.db}\" ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")


# What of an encoding's bytes means something in UTF-8 too, in hexadecimal.
BYTES = {"LATIN1": "".join(f"{b:02x}" for b in range(0x80, 0x100)), "KOI8R": "".join(f"{b:02x}" for b in range(0x80, 0x100)), "WIN1252": "8082838485868788898a8b8c8e9192939495969798999a9b9c9e9fa0e4ff",
         "EUC_JP": "c6fccbdcb8ec8eb18fb0a1a4a2"}


@pytest.mark.parametrize("encoding", list(BYTES))
def test_databases_in_other_encodings(source, target, encoding):
    """P84: the server converts to UTF-8, values and names alike, by stream and by snapshot."""
    world = World(source, target)
    try:
        in_encoding(world, source, encoding)
        word = bytes.fromhex(BYTES[encoding]).decode({"KOI8R": "koi8-r", "WIN1252": "cp1252"}.get(encoding, encoding.replace("_", "-")))
        name = [c for c in word if c.isalpha()][-1]
        world.src(f"CREATE TABLE t (id int PRIMARY KEY, \"{name}\" text, a text[], j jsonb)")
        fill = f"INSERT INTO t SELECT g, %s || g, ARRAY[%s, NULL], jsonb_build_object(%s, %s) FROM generate_series((SELECT count(*) FROM t) + 1, (SELECT count(*) FROM t) + 3) g; UPDATE t SET \"{name}\" = %s WHERE id = 2"
        shown = ", ".join(f"encode(convert_to({column}::text, 'UTF8'), 'hex')" for column in ("id", f'"{name}"', "a", "j"))
        world.connector()
        for schema in ("team", "late"):
            sink = world.sink(world.sink_file(schema, {"t": {"from": "public.t"}}), name=schema)
            world.src(fill, [word] * 5)
            world.wait_rows(f"SELECT {shown} FROM {schema}.t ORDER BY id", world.src(f"SELECT {shown} FROM t ORDER BY id"), sink=sink)
        assert world.tgt(f"SELECT \"{name}\", a[1], j FROM late.t WHERE id = 2") == [(word, word, {word: word})]
    finally:
        world.close()


def test_bytes_that_are_no_text(source, target):
    """P83, F48: an SQL_ASCII database has bytes. They arrive where bytes may be, and are refused where they may not: with table, key and remedy."""
    world = World(source, target)
    try:
        for cluster in (source, target):
            in_encoding(world, cluster, "SQL_ASCII")
        world.src("CREATE TABLE t (id int PRIMARY KEY, v text, a text[])")
        world.connector()
        bad = "SELECT %s, convert_from('\\xe920ff5c22c3a4'::bytea, 'SQL_ASCII'), ARRAY[convert_from('\\xff80'::bytea, 'SQL_ASCII')]"
        for n, schema in enumerate(("team", "late")):
            world.sink(world.sink_file(schema, {"t": {"from": "public.t"}}), name=schema)
            world.src("INSERT INTO t " + bad, [n])
            world.wait_rows(f"SELECT count(*) FROM {schema}.t", [(n + 1,)])
            assert world.tgt(f"SELECT DISTINCT encode(convert_to(v, 'SQL_ASCII'), 'hex'), encode(convert_to(a[1], 'SQL_ASCII'), 'hex') FROM {schema}.t") == [("e920ff5c22c3a4", "ff80")]
        world.stop_all()
        in_encoding(world, target, "UTF8")
        world.connector()
        for mode in ("auto", "manual"):
            code, _out, log = world.run("sink", "-c", world.sink_file(mode, {"t": {"from": "public.t"}}, snapshot=mode))
            words = f'table "{mode}"."t", column "v", key {{"id":0}}'.replace('"', '\\"')
            assert code == 4 and words in log and "22021" in log and "SQL_ASCII" in log, log
            assert world.tgt(f"SELECT count(*) FROM {mode}.t") == [(0,)]
    finally:
        world.close()


def test_characters_that_utf8_lacks(source, target):
    """P84: a byte that the database's encoding leaves undefined ends the stream for good: the connector stops, and says where and what to do."""
    world = World(source, target)
    try:
        in_encoding(world, source, "WIN1252")
        world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
        connector = world.connector()
        world.src("INSERT INTO t SELECT 1, convert_from('\\x4181'::bytea, 'WIN1252')")
        assert connector.wait_exit() == 4
        connector.wait_log(r'a row of \\"public\\".\\"t\\", changed at [0-9A-F]+/[0-9A-F]+, holds a character that has no counterpart in UTF8.*Repair the row')
    finally:
        world.close()


def test_json_that_jsonb_refuses(world):
    """P81, F49: a sink whose column is jsonb stops at \\u0000, names table, column and key, and goes on when the row is mended."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, fine text, doc json)")
    world.connector()
    file = world.sink_file("team", {"t": {"from": "public.t", "columns": {"id": "id", "fine": "fine", "doc": "doc::jsonb"}}})
    sink = world.sink(file)
    world.src("INSERT INTO t VALUES (1, 'x', '{\"a\": 1, \"a\": 2}')")
    world.wait_rows("SELECT id, doc::text FROM team.t", [(1, '{"a": 2}')])
    world.src("INSERT INTO t VALUES (7, 'x', '\"\\u0000\"')")
    assert sink.wait_exit() == 4
    sink.wait_log(r'table \\"team\\".\\"t\\", column \\"doc\\", key {\\"id\\":7}.*22P05.*keep the source')


@pytest.mark.skipif(not os.environ.get("SPATE_LONG"), reason="560 MB through a server take half a minute: `make test-versions` does it")
def test_a_value_that_the_server_cannot_send(world):
    """P87, F47: 560 MB of bytea have no text below a gigabyte. The connector stops and names position, table and remedy, and goes on with the next slot."""
    world.src("CREATE TABLE small (id int PRIMARY KEY, v text); CREATE TABLE \"Lar.ge\" (id int PRIMARY KEY, v bytea)")
    connector = world.connector()
    world.src("INSERT INTO small SELECT g, 'x' FROM generate_series(1, 50) g")
    world.src("INSERT INTO small VALUES (1000, 'y'); INSERT INTO \"Lar.ge\" VALUES (1, convert_to(repeat('x', 560000000), 'UTF8')); INSERT INTO small VALUES (1001, 'z')")
    assert connector.wait_exit(100) == 4
    found = connector.wait_log(r'a row of \\"public\\".\\"Lar.ge\\", changed at ([0-9A-F]+/[0-9A-F]+), is too large for the server to send.*(SELECT pg_drop_replication_slot\(\'\w+\'\))')
    world.src("DELETE FROM \"Lar.ge\"")
    world.src(found[2])
    again = world.connector("--new-epoch")
    world.sink(world.sink_file("team", {"small": {"from": "public.small"}, "Lar.ge": {"from": 'public."Lar.ge"'}}))
    world.wait_rows("SELECT count(*) FROM team.small", [(52,)])
    assert again.running()
