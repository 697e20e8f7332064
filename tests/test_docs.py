"""What the READMEs say: tables as in the code, commands that exist and parse, links that lead somewhere."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import regenerate_invariants
from holdgate.adapters.admin.views import ACCESS
from holdgate.adapters.metrics import Metrics
from holdgate.cli import build_parser
from holdgate.config import load_config
from holdgate.errors import REASONS, Outcome, Reason
from holdgate.limits import Limits
from holdgate.statement import OUTCOME_OF
from holdgate.strictyaml import Node

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "proxy" / "README.md"
pytestmark = pytest.mark.checkout

# Written by people; README files of third parties and caches are not ours.
DOCS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "node_modules", ".pytest_cache", ".hypothesis"} & set(path.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Where a shell starts a command, with or without a path; its arguments end where the shell takes over.
COMMAND = re.compile(
    r"(?:^|[$#|;&(] *|sudo -u \w+ )(?:[\w./~]*/)?holdgate((?: +[^\s|&;()<>\"`#]+)+)", re.MULTILINE
)
IN_TEXT = re.compile(r"`holdgate ([a-z]+(?: [a-z]+)*)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def section(title: str) -> str:
    """One chapter of proxy/README.md."""
    return README.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the first table of a chapter, without its two head lines."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# --- tables ---


def test_the_table_of_invariants_is_that_of_the_docstrings() -> None:
    text = README.read_text(encoding="utf-8")
    stale = "run `python tests/regenerate_invariants.py`"
    assert regenerate_invariants.rewritten(text) == text, stale


def test_every_module_says_what_its_invariants_do_not_promise() -> None:
    kept = regenerate_invariants.limits(README.read_text(encoding="utf-8"))
    said = {module for (module, _), limit in kept.items() if limit}
    silent = {each.module for each in regenerate_invariants.invariants()} - said
    assert silent == set(), "write it into the last column of proxy/README.md"


@pytest.mark.slow
def test_regenerating_keeps_what_was_written_by_hand() -> None:
    first = regenerate_invariants.invariants()[0]
    written = regenerate_invariants.table({(first.module, first.id): "The moon."})
    page = f"{regenerate_invariants.BEGIN}{written}{regenerate_invariants.END}"
    assert regenerate_invariants.limits(page)[first.module, first.id] == "The moon."
    assert regenerate_invariants.rewritten(page) == page


def test_the_table_of_reasons_is_that_of_errors_py() -> None:
    expected = [
        [f"`{reason}`", str(OUTCOME_OF[reason]), str(row.status), row.text] for reason, row in REASONS.items()
    ]
    assert rows("Reason codes") == expected


def test_the_reasons_that_nothing_gives_are_named() -> None:
    sources = [path for path in (ROOT / "proxy/holdgate").rglob("*.py") if path.name != "errors.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources if path.name != "statement.py")
    unused = {reason.value for reason in Reason if f"Reason.{reason.name}" not in text}
    (line,) = (
        line for line in section("Reason codes").splitlines() if line.startswith("In this version nothing")
    )
    assert set(re.findall(r"`(\w+)`", line)) == unused


def test_the_table_of_metrics_is_what_is_exposed() -> None:
    metrics = Metrics()
    metrics.decision("payments.refund", Outcome.PERMIT, Reason.PERMIT_RULE)
    metrics.unmapped("example.org")
    metrics.shadow("payments.refund", Outcome.PERMIT, Outcome.DENY)
    metrics.anchors(["w.example"])
    exposed = []
    for family in metrics.families():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        exposed.append([f"`{name}`", family.type, shown, family.documentation])
    assert rows("Metrics") == exposed


def test_the_table_of_admin_paths_is_the_one_that_is_served() -> None:
    assert [row[0] for row in rows("Admin API")] == [f"`{path}`" for path in ACCESS]


# --- configuration ---


@pytest.fixture
def every_key(tmp_path: Path) -> Path:
    """The file under Configuration, in a folder that has what it names."""
    text = section("Configuration").partition("```yaml\n")[2].partition("```")[0]
    for name in ("surfaces", "policies"):
        (tmp_path / name).mkdir()
    for name in re.findall(r"\./([\w-]+\.(?:pem|key|jwks|token))", text):
        (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----\n")
    path = tmp_path / "holdgate.yaml"
    path.write_text(text)
    return path


def test_the_configuration_page_has_every_key_that_is_read(
    every_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, set[str]] = {}
    written: dict[str, set[str]] = {}
    mapping = Node.mapping

    def watched(node: Node, *, what: str, **keys: tuple[str, ...]) -> dict[str, Node]:
        block = re.sub(r"^(facts|admin\.tokens)\.\w+", r"\1.NAME", what)
        known.setdefault(block, set()).update(*keys.values())
        found = mapping(node, what=what, **keys)
        written.setdefault(block, set()).update(found)
        return found

    monkeypatch.setattr(Node, "mapping", watched)
    load_config(every_key)
    assert written == known


def test_the_configuration_page_shows_the_limits_that_count_when_none_are_written(every_key: Path) -> None:
    assert load_config(every_key).limits == Limits()
    named = {name for row in rows("Limits") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {field.name for field in dataclasses.fields(Limits)}


# --- modules ---


def test_the_map_of_modules_names_each_of_them_once() -> None:
    package = ROOT / "proxy/holdgate"
    built = [path.relative_to(package).with_suffix("") for path in package.rglob("*.py")]
    modules = [
        each.as_posix()
        for each in built
        if not each.name.startswith("__") and each.parts[0] not in ("cli", "demo")
    ]
    named = []
    for _, pure, around in rows("Where what is"):
        named += re.findall(r"`([\w/]+)`", pure)
        named += [f"adapters/{name}" for name in re.findall(r"`([\w/]+)`", around)]
    assert sorted(named) == sorted(modules), "write it into 'Where what is' of proxy/README.md"


# --- commands ---


@cache
def commands() -> dict[str, frozenset[str]]:
    """Every registered command with its subcommands."""
    found: dict[str, frozenset[str]] = {}
    for name, parser in choices(build_parser()).items():
        found[name] = frozenset(choices(parser))
    return found


def choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def fenced(path: Path) -> Iterator[str]:
    """The arguments of every `holdgate ...` in the shell blocks of one page."""
    for block in FENCE.findall(path.read_text(encoding="utf-8")):
        for line in block.splitlines():
            for words in COMMAND.findall(line.partition(" #")[0]):
                yield words.strip()


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_commands_in_shell_blocks_parse(path: Path) -> None:
    for words in fenced(path):
        try:
            build_parser().parse_args(shlex.split(words))
        except SystemExit as stop:
            assert stop.code == 0, f"holdgate {words}"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for below in choices(parser).values():
        yield from parsers(below)


def test_the_examples_that_help_shows_parse() -> None:
    pages = [(each.epilog or "").replace("\n  ", "\n") for each in parsers(build_parser())]
    shown = [words for page in pages for words in COMMAND.findall(page)]
    assert len(shown) > 40
    for words in shown:
        try:
            build_parser().parse_args(shlex.split(words))
        except SystemExit as stop:
            assert stop.code == 0, f"holdgate {words}"


def is_built(words: str) -> bool:
    name, _, rest = words.partition(" ")
    below = commands().get(name)
    return below is not None and (not below or not rest or rest.partition(" ")[0] in below)


def not_built() -> set[str]:
    """What proxy/README.md says is not there yet."""
    return set(IN_TEXT.findall(section("What is not built yet")))


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_commands_in_the_text_exist_or_are_listed_as_not_built(path: Path) -> None:
    named = set(IN_TEXT.findall(path.read_text(encoding="utf-8")))
    assert {words for words in named if not is_built(words)} <= not_built()


def test_what_is_listed_as_not_built_is_not_built() -> None:
    missing = {words for words in not_built() if not is_built(words)}
    assert {"holds"} <= missing
    assert not_built() - missing <= {"log audit"}


def test_readme_names_every_command_that_a_newcomer_needs() -> None:
    named = {words.split()[0] for words in fenced(ROOT / "README.md")}
    assert {"init", "run", "trust", "receipts", "verify", "explain", "log"} <= named


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z]+)", text))
    for block in FENCE.findall(text):
        named |= set(re.findall(r"^(?:\$ )?make ([a-z]+)", block, flags=re.MULTILINE))
    assert named <= targets


# --- links and names ---


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    targets = LINK.findall(path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not (path.parent / target).exists()] == []


def anchors(path: Path) -> set[str]:
    """What a heading is called in a link, as forges make it of its text."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_links_into_a_page_name_one_of_its_headings(path: Path) -> None:
    wrong = []
    for page, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
        target = path.parent / page if page else path
        if "://" not in page and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(f"{page}#{anchor}")
    assert wrong == []


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_tests_and_modules_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"`((?:tests|proxy/holdgate)/[\w/.*-]+)`", path.read_text(encoding="utf-8"))
    assert [name for name in named if not any(ROOT.glob(name.rstrip("/")))] == []
