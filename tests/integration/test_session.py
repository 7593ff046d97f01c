"""P79: the text of a value depends on nobody's settings: not on the environment's, the role's or the database's."""
VALUES = ("SELECT 1 AS id, timestamptz '2026-03-01 12:00:00.5+05' AS at, interval '1 day 2 hours' AS span,"
          " 0.1::float8 + 0.2 AS number, '\\x00ff'::bytea AS bytes, 12.5::numeric::money AS price")
EXPECTED = {"id": 1, "at": "2026-03-01 07:00:00.5+00", "span": "1 day 02:00:00", "number": 0.30000000000000004,
            "bytes": "\\x00ff", "price": "$12.50"}
ODD = {"PGTZ": "America/New_York", "PGDATESTYLE": "German, DMY", "PGCLIENTENCODING": "LATIN1",
       "PGOPTIONS": "-c intervalstyle=sql_standard -c extra_float_digits=-4", "TZ": "Asia/Tokyo"}


def test_odd_settings_change_no_value(world):
    for name, value in (("timezone", "Asia/Kolkata"), ("datestyle", "SQL, DMY"), ("bytea_output", "escape")):
        world.src(f"ALTER DATABASE \"{world.db}\" SET {name} = '{value}'")
    world.src("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, span interval, number float8, bytes bytea, price money)")
    sink = world.sink_file("team", {"t": {"from": "public.t"}})
    world.connector(env=ODD)
    world.sink(sink, env=ODD)
    world.src("SET TimeZone = 'UTC'; INSERT INTO t " + VALUES)
    after = [m["after"] for m in world.messages() if m["op"] == "insert"]
    assert after == [EXPECTED]
    world.wait_equal([("SELECT * FROM public.t", "SELECT * FROM team.t")])
