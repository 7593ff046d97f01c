"""The documents against the sources: figures, events, ids and links that they name are there, and none is missing."""
import glob
import os
import re

from tests.support import scratch

FOLDERS = ("core", "config", "schemas", "bus", "pg", "connector", "sinks", "cli")


def read(path):
    with open(os.path.join(scratch.ROOT, path), errors="replace") as file:
        return file.read()


def files(pattern, folders):
    return sorted(os.path.relpath(path, scratch.ROOT) for folder in folders
                  for path in glob.glob(os.path.join(scratch.ROOT, folder, "**", pattern), recursive=True))


DOCS = [os.path.relpath(path, scratch.ROOT) for path in glob.glob(os.path.join(scratch.ROOT, "docs/*.md"))] + ["README.md", "CHANGELOG.md"]


def test_every_event_of_the_log_is_explained():
    """Those above debug."""
    sources = "".join(read(path) for path in files("*.c", FOLDERS))
    said = re.findall(r'spate_log(?:_err)?\(\s*(?!SPATE_LOG_DEBUG)[^,"]+,\s*"([a-z-]+)"', sources)
    said += re.findall(r'say\(voice, SPATE_LOG_\w+, "([a-z-]+)"', sources)
    explained = set(re.findall(r"`([a-z-]+)`", read("docs/operating.md")))
    assert len(said) > 50
    assert sorted(set(said) - explained - {"failpoint"}) == []  # of a build that nobody operates


def test_every_figure_that_is_named_is_served():
    """In the documents and in the rules for alerts; config/REFERENCE.md is written from the tables themselves."""
    served = set(re.findall(r"`(spate_[a-z_]+)", read("config/REFERENCE.md")))
    assert len(served) > 60
    for path in DOCS + ["docs/examples/alerts.yaml"]:
        named = set(re.findall(r"\b(spate_(?:connector|sink)_[a-z_]+)", read(path)))
        assert sorted(name for name in named - served if not any(s.startswith(name + "_") for s in served)) == [], path


def test_every_hazard_that_is_cited_is_explained():
    """Ids such as K2 in comments and tests; what begins with one is no id (F12 of a keyboard would be)."""
    explained = set(re.findall(r"\b([PKTFBL][1-9][0-9]?)\b", read("docs/hazards.md") + read("docs/local-bus.md")))
    missing = {}
    for path in files("*.[ch]", FOLDERS + ("tests",)) + files("*.py", ("tests",)):
        for found in re.findall(r"(?<![\w/.\"'%\\#-])([PKTFBL][1-9][0-9]?)(?![\w%-])", read(path)):
            if found not in explained:
                missing.setdefault(found, path)
    assert missing == {}


def anchors(path):
    """GitHub's: lower case, blanks to dashes, the rest of the punctuation dropped."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", read(path), re.M)}


def test_every_link_leads_somewhere():
    for path in DOCS:
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", read(path), flags=re.S)):
            if "://" in link:
                continue
            target, _, anchor = link.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
            assert os.path.exists(os.path.join(scratch.ROOT, target)), (path, link)
            if anchor:
                assert anchor in anchors(target), (path, link)
