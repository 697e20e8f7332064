"""Writes the table of invariants in proxy/README.md again from the docstrings of the modules.

    python tests/regenerate_invariants.py

The last column ("does not promise") is written by hand in proxy/README.md and kept for every invariant that
is still there. tests/test_project.py fails when the table differs from what this script would write.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "proxy" / "holdgate"
README = ROOT / "proxy" / "README.md"
BEGIN, END = "<!-- invariants: tests/regenerate_invariants.py -->\n", "<!-- end of invariants -->\n"
HEAD = "| id | module | it says | test | it does not promise |\n| --- | --- | --- | --- | --- |\n"

# An indented id, two spaces, one sentence; its further lines are indented deeper.
_ENTRY = re.compile(r"^ {2}([A-Z][A-Za-z]{0,2}[0-9]+) {2}(\S.*(?:\n {6,}\S.*)*)", re.MULTILINE)
_TESTS = re.compile(r"tests/(?:[a-z_]+/)*test_[a-z0-9_]+\.py")
_ROW = re.compile(r"^\| (\w+) \| \[[^]]*\]\(holdgate/([^)]*)\) \| .* \| [^|]* \| ([^|]*)\|$", re.MULTILINE)

type Key = tuple[str, str]  # module, id


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """One line of a module's docstring, and the file that has the test of its name."""

    module: str
    id: str
    text: str
    test: str


@cache
def invariants() -> tuple[Invariant, ...]:
    """Every invariant: the core first, then folder by folder."""
    return tuple(_invariants())


def _invariants() -> Iterator[Invariant]:
    sources = (path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts)
    names = (path.relative_to(PACKAGE) for path in sources)
    for name in sorted(names, key=lambda each: (len(each.parts) > 1, each.as_posix())):
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        text = ast.get_docstring(tree, clean=False) or ""
        files = sorted(set(_TESTS.findall(text)))
        for found in _ENTRY.finditer(text):
            yield Invariant(
                module=name.as_posix(),
                id=found[1],
                text=" ".join(found[2].split()),
                test=_test_of(found[1], files),
            )


def _test_of(name: str, files: list[str]) -> str:
    for file in files:
        path = ROOT / file
        if path.is_file() and f"def test_{name.lower()}_" in path.read_text(encoding="utf-8"):
            return file
    return ""


def limits(readme: str) -> dict[Key, str]:
    """The hand-written last column, by module and id."""
    return {(found[2], found[1]): found[3].strip() for found in _ROW.finditer(_between(readme))}


def table(kept: Mapping[Key, str]) -> str:
    rows = [_row(each, kept.get((each.module, each.id), "")) for each in invariants()]
    return HEAD + "".join(rows)


def _row(each: Invariant, limit: str) -> str:
    module = f"[{each.module}](holdgate/{each.module})"
    test = f"[{each.test.removeprefix('tests/')}](../{each.test})" if each.test else "none"
    text = each.text.replace("|", "\\|")
    return f"| {each.id} | {module} | {text} | {test} | {limit + ' ' if limit else ''}|\n"


def rewritten(readme: str) -> str:
    """The README with a fresh table."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"proxy/README.md has no {BEGIN.strip()} ... {END.strip()}")
    return before + BEGIN + table(limits(readme)) + END + after


def _between(readme: str) -> str:
    return readme.partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    old = README.read_text(encoding="utf-8")
    new = rewritten(old)
    lost = limits(old).keys() - {(each.module, each.id) for each in invariants()}
    for module, name in sorted(lost):
        print(f"gone, with what it did not promise: {module} {name}")
    README.write_text(new, encoding="utf-8")
    print("unchanged" if new == old else "written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
