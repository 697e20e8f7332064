"""Compares a wheel and a source archive with what is meant to be in them.

usage: check_dist.py FILE...   (*.whl, *.tar.gz)

tests/data/wheel-content.txt has one pattern a line (fnmatch; `*` crosses folders). Every file in the wheel
must match one, every pattern must match a file, and every YAML file of surfaces/ and policies/ must be in the
wheel.
Nothing in either archive may look like a key, a certificate, a ledger or local configuration.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECRET = re.compile(r"(^|/)(certs|state|\.venv|\.git)/|\.(key|pem|p12|db)$|(^|/)holdgate\.yaml$|\.env$")
# Test material that is made up and meant to be there.
NOT_SECRET = re.compile(r"(^|/)tests/(vectors|data)/|(^|/)certs/README\.md$")


def secrets(names: list[str]) -> list[str]:
    bad = [name for name in names if SECRET.search(name) and not NOT_SECRET.search(name)]
    return [f"must not be shipped: {name}" for name in bad]


def check_wheel(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    lines = (ROOT / "tests" / "data" / "wheel-content.txt").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    problems = secrets(names)
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            problems.append(f"not in the list: {name}")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            problems.append(f"nothing matches: {pattern}")
    for folder in ("surfaces", "policies"):
        for source in sorted((ROOT / folder).rglob("*.yaml")):
            inside = f"holdgate/_data/{source.relative_to(ROOT).as_posix()}"
            if inside not in names:
                problems.append(f"missing: {inside}")
    return problems


def check_sdist(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return secrets([name.partition("/")[2] for name in archive.getnames()])


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    failed = False
    for argument in arguments:
        path = Path(argument)
        problems = check_wheel(path) if path.suffix == ".whl" else check_sdist(path)
        for problem in problems:
            print(f"{path.name}: {problem}")
        failed = failed or bool(problems)
        if not problems:
            print(f"{path.name}: content as listed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
