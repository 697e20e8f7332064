"""`holdgate check`: are configuration, maps and policies sound? `file:line: message` for whatever is not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..bundle import load_bundle
from ..cel.model import MAX_ITERATIONS, MAX_STEPS
from ..config import Config, load_config
from ..errors import ConfigError
from ..policy import Finding, PolicySet, lint, load_policies
from ..policy_document import envelope, policy_files
from ..policytest_case import read_suite
from ..strictyaml import load_file
from ..surface.index import SurfaceIndex
from ..surface.load import load_maps
from .shared import Commands, add, config_of, print_json, say
from .sources import sort_paths

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "check",
        _check,
        does="lint the configuration, surface maps and policies",
        example="holdgate check; holdgate check surfaces/ policies/refunds.yaml",
        data=True,
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="default: all of -c FILE")
    parser.add_argument(
        "--warn", action="store_true", help="show lint findings, but fail only for what cannot be loaded"
    )


def _check(args: argparse.Namespace) -> int:
    if args.paths:
        errors, findings, costs = _check_paths(args)
    else:
        errors, findings, costs = _check_config(config_of(args))
    if args.json:
        rows = [asdict(each) | {"severity": "error"} for each in errors]
        rows += [asdict(each) | {"severity": "warning" if args.warn else "error"} for each in findings]
        print_json(rows)
    else:
        for line in costs:
            say(line)
        for each in (*errors, *findings):
            say(each, keep="\n")
        if not errors and not findings:
            print("no findings")
    return 1 if errors or (findings and not args.warn) else 0


type _Result = tuple[list[Finding], tuple[Finding, ...], list[str]]  # what does not load, lint, costs


def _check_config(config: Config) -> _Result:
    # The proxy engine is imported only here: it takes longer than the rest of this command.
    from ..adapters.fitness import check_connect_to, check_facts

    if not config.surfaces or not config.policies:
        return [], (), []  # a node of signed bundles: their builder checked them
    try:
        bundle = load_bundle(config.surfaces, config.policies)
    except ConfigError as error:
        return [_finding(error)], (), []
    check_connect_to(config, bundle)
    check_facts(config, bundle)
    return _judged(bundle.policies, bundle.index, config.policies)


def _judged(policies: PolicySet, index: SurfaceIndex, tests: Sequence[Path]) -> _Result:
    """Policies that load: their tests must be readable, and then come findings and costs."""
    errors = []
    for path in policy_files(tests):
        root = load_file(path)
        if envelope(root)[0] == "PolicyTest":
            try:
                read_suite(root, policies, index)
            except ConfigError as error:
                errors.append(_finding(error))
    return errors, lint(policies, index), _costs(policies)


def _costs(policies: PolicySet) -> list[str]:
    """The dearest operation: what one action may take at most, of what is allowed."""
    (surface, operation), dearest = max(
        policies.table.items(), key=lambda item: (item[1].cost.worst, item[0])
    )
    turns = min(dearest.cost.iterations, MAX_ITERATIONS)
    return [
        f"worst case: {dearest.cost.worst} of {MAX_STEPS} steps, {turns} of {MAX_ITERATIONS} turns of "
        f"exists/all: {surface} {operation}, {len(dearest.rules)} rules"
    ]


def _check_paths(args: argparse.Namespace) -> _Result:
    try:
        given = sort_paths(args.paths)
    except ConfigError as error:
        return [_finding(error)], (), []
    for path in given.configs:
        load_config(path)
    errors: list[Finding] = []
    for path in given.maps:
        try:
            load_maps([path])
        except ConfigError as error:
            errors.append(_finding(error))
    if errors or not (given.maps or given.policies):
        return errors, (), []
    surfaces = given.maps or config_of(args).surfaces
    try:
        index = SurfaceIndex.compile(load_maps(surfaces))
        if not given.policies:
            return [], (), []
        return _judged(load_policies(given.policies, index), index, given.tests)
    except ConfigError as error:
        return [_finding(error)], (), []


def _finding(error: ConfigError) -> Finding:
    return Finding(
        file=error.file, line=error.line, column=error.column, message=error.message, excerpt=error.excerpt
    )
