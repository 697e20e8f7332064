"""`holdgate test`: policy tests, and which rules they never exercise."""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..adapters.keyfiles import load_fleet_key
from ..config import load_config
from ..errors import ConfigError
from ..explain import recognised_input
from ..limits import Limits
from ..policy import load_policies
from ..policytest import TestReport, run_tests
from ..policytest_report import to_json, to_junit, to_text
from ..surface.index import SurfaceIndex
from ..surface.load import load_maps
from .shared import Commands, add, config_of, printable, say
from .sources import sort_paths

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "test",
        _test,
        does="run *_test.yaml policy tests and show rules without coverage",
        example="holdgate test; holdgate test policies/refunds_test.yaml --output junit > report.xml",
        data=True,
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="default: `policies` of -c FILE")
    parser.add_argument("--output", choices=("text", "json", "junit"), default="text")
    parser.add_argument(
        "--filter",
        metavar="TEXT",
        help="only cases whose policy/case[value] contains TEXT, or matches it with *",
    )
    for name, what in (("coverage", "rules reached, true and false each"), ("boundaries", "boundary values")):
        parser.add_argument(
            f"--min-{name}", type=percent, default=0, metavar="PERCENT", help=f"fail below: {what}"
        )


def _test(args: argparse.Namespace) -> int:
    surfaces, policies, tests = _sources(args)
    try:
        index = SurfaceIndex.compile(load_maps(surfaces))
        rules = load_policies(policies, index)
        report = run_tests(
            tests,
            rules,
            index,
            partial(_recognise, index, Limits(), _fleet_key(args.config)),
            chosen=partial(_chosen, args.filter),
            every_policy=not args.paths and not args.filter,
        )
    except ConfigError as error:  # a bad map, policy or test: the check failed, the call was right
        say(error, keep="\n", file=sys.stderr)
        return 1
    print(printable(_text(report, "json" if args.json else args.output), keep="\n\t"), end="")
    enough = _enough(report, args)
    return 0 if report.ok and enough else 1


def percent(text: str) -> int:
    number = int(text.removesuffix("%"))
    if not 0 <= number <= 100:
        raise ValueError
    return number


def _chosen(wanted: str | None, name: str) -> bool:
    if wanted is None or wanted in name:
        return True
    return "*" in wanted and re.fullmatch(".*".join(map(re.escape, wanted.split("*"))), name) is not None


def _enough(report: TestReport, args: argparse.Namespace) -> bool:
    """Says on stderr what is missing, so that machine formats stay what they are."""
    if not report.results:
        print(f"no case matches {args.filter!r}" if args.filter else "no test was found", file=sys.stderr)
    short = [
        f"{what} {found} % is below {wanted} %"
        for what, found, wanted in (
            ("rule coverage", report.rule_percent, args.min_coverage),
            ("boundary coverage", report.boundary_percent, args.min_boundaries),
        )
        if found < wanted
    ]
    for line in short:
        print(line, file=sys.stderr)
    return not short


def _text(report: TestReport, form: str) -> str:
    match form:
        case "json":
            return to_json(report)
        case "junit":
            return to_junit(report)
        case _:
            return to_text(report)


def _sources(args: argparse.Namespace) -> tuple[tuple[Path, ...], tuple[Path, ...], tuple[Path, ...]]:
    """Maps, policies and tests: from the paths that were given, and else from the configuration."""
    if not args.paths:
        config = config_of(args)
        if not config.policies:
            raise ConfigError("no `policies` here: name the paths to test", file=str(config.path))
        return config.surfaces, config.policies, config.policies
    given = sort_paths(args.paths)
    if not given.tests:
        raise ConfigError("no file of `kind: PolicyTest` here", file=", ".join(str(p) for p in args.paths))
    surfaces = given.maps or config_of(args).surfaces
    return surfaces, given.policies or config_of(args).policies, given.tests


def _recognise(index: SurfaceIndex, limits: Limits, fleet_key: bytes, path: Path) -> dict[str, Any]:
    return recognised_input(path.read_bytes(), index, limits, fleet_key=fleet_key)


def _fleet_key(config: Path) -> bytes:
    # Tests compare decisions, not digests, so they run where there is no state (CI) as well.
    try:
        return load_fleet_key(load_config(config).state_dir)
    except ConfigError:
        return bytes(32)
