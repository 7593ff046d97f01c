"""Which Postgres server the tests run on: Debian's, or one of another major version.

SPATE_TEST_POSTGRES=14   servers of that major version: Debian's when it has it, else binaries that Maven's central
                         repository holds, fetched once into build/postgres/VERSION
SPATE_PG_BIN=DIR         the programs in that directory, whatever version they are

The fetched ones have initdb and postgres, contrib modules and no client programs.
"""
import fcntl
import functools
import glob
import io
import lzma
import os
import platform
import re
import shutil
import tarfile
import tempfile
import zipfile

from tests.support import scratch

VERSIONS = {14: "14.24.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}
OLDEST, NEWEST = min(VERSIONS), max(VERSIONS)
POM = os.path.join(scratch.ROOT, "tests/postgres/pom.xml")
MACHINES = {"x86_64": "amd64", "aarch64": "arm64v8"}


class Missing(scratch.Failure):
    """A server that this machine lacks and cannot fetch."""


def installed():
    """Debian's servers: {major: directory of programs}."""
    found = [d for d in glob.glob("/usr/lib/postgresql/*/bin") if os.path.exists(d + "/initdb")]
    return {int(float(re.search(r"postgresql/([\d.]+)/", d).group(1))): d for d in found}


def debian_major():
    """The newest that is installed, or None."""
    return max(installed(), default=None)


def major():
    """The major version that this run is about."""
    if os.environ.get("SPATE_PG_BIN"):
        return int(re.search(r"\) (\d+)", scratch.run([os.environ["SPATE_PG_BIN"] + "/postgres", "--version"]).stdout).group(1))
    return int(os.environ.get("SPATE_TEST_POSTGRES") or debian_major() or 0)


def bin_dir(major=None):
    """Where initdb and postgres of that major version are; None: of the one this run is about."""
    if major is None and os.environ.get("SPATE_PG_BIN"):
        return os.environ["SPATE_PG_BIN"]
    major = int(major or os.environ.get("SPATE_TEST_POSTGRES") or debian_major() or 0)
    if major in installed():
        return installed()[major]
    if not major:
        raise Missing("no Postgres server under /usr/lib/postgresql/*/bin: run docker/setup.sh, or set SPATE_PG_BIN")
    return os.path.join(fetched(major), "bin")


def client(name):
    """The path of a client program (psql, pg_basebackup), or None where only fetched servers are at hand."""
    for folder in (bin_dir(), *(installed()[major] for major in sorted(installed(), reverse=True))):
        if os.path.exists(os.path.join(folder, name)):
            return os.path.join(folder, name)
    return None


@functools.lru_cache(None)
def fetched(major):
    """The unpacked server of that major version; fetched once into build/postgres/VERSION."""
    if major not in VERSIONS:
        raise Missing(f"tests/support/servers.py knows no Postgres {major}: it knows {', '.join(map(str, VERSIONS))}")
    folder = os.path.join(os.environ.get("SPATE_POSTGRES_SERVERS") or os.path.join(scratch.ROOT, "build/postgres"), VERSIONS[major])
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with open(folder + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(os.path.join(folder, "complete")):
            _fetch(major, folder)
    return folder if scratch.others_may_enter(folder) else _elsewhere(folder)


def _elsewhere(folder):
    """Servers run as a user who may not enter this checkout (below /root, for instance): a copy that he may."""
    path = os.path.join(scratch.directory("spate-pgbin-"), "server")
    shutil.copytree(folder, path, symlinks=True)
    return path


def _fetch(major, folder):
    if not shutil.which("mvn"):
        raise Missing(f"no mvn to fetch Postgres {VERSIONS[major]} with (docker/setup.sh --tests installs it)")
    machine = MACHINES.get(platform.machine(), platform.machine())
    with tempfile.TemporaryDirectory() as jars:
        done = scratch.run(["mvn", "-q", "-B", "-f", POM, "dependency:copy-dependencies", f"-DoutputDirectory={jars}",
                            f"-Dpostgres.version={VERSIONS[major]}", f"-Dpostgres.machine={machine}"], timeout=600, check=False)
        found = glob.glob(f"{jars}/*.jar")
        if done.returncode or not found:
            raise Missing(f"mvn could not fetch Postgres {VERSIONS[major]} (it comes from Maven's central repository; it must be "
                          f"reachable once): {scratch.maven_error(done.stdout)}")
        shutil.rmtree(folder, ignore_errors=True)
        with zipfile.ZipFile(found[0]) as jar:
            name = next(name for name in jar.namelist() if name.endswith(".txz"))
            with tarfile.open(fileobj=lzma.open(io.BytesIO(jar.read(name)))) as archive:
                archive.extractall(folder, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))
    scratch.run(["chmod", "-R", "a+rX", folder])
    with open(os.path.join(folder, "complete"), "w"):
        pass
