"""`holdgate surfaces`: which operations the maps know, and the maps as one compiled lock."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..surface.index import SurfaceIndex
from ..surface.load import load_maps
from ..surface.spec import OperationSpec, SurfaceMap
from .shared import Commands, add, config_of, group, print_json, print_table

__all__ = ["register"]


def register(commands: Commands) -> None:
    surfaces = group(
        commands, "surfaces", does="list or compile surface maps", example="holdgate surfaces list"
    )
    listing = add(
        surfaces,
        "list",
        _list,
        does="list every operation with its surface, effect and parameters",
        example="holdgate surfaces list --surface payments.refund",
        data=True,
    )
    listing.add_argument("--surface", default="", metavar="NAME", help="only this surface")
    compiling = add(
        surfaces,
        "compile",
        _compile,
        does="check the maps and print them as one JSON lock",
        example="holdgate surfaces compile surfaces/ > surfaces.lock.json",
    )
    for parser in (listing, compiling):
        parser.add_argument(
            "paths", nargs="*", type=Path, metavar="PATH", help="default: those of the configuration"
        )


def _maps(args: argparse.Namespace) -> Sequence[SurfaceMap]:
    return load_maps(tuple(args.paths) or config_of(args).surfaces)


def _operations(args: argparse.Namespace) -> Iterator[tuple[SurfaceMap, OperationSpec]]:
    for each in sorted(_maps(args), key=lambda one: one.name):
        for operation in each.operations:
            if args.surface in ("", operation.surface):
                yield each, operation


def _list(args: argparse.Namespace) -> int:
    found = list(_operations(args))
    if args.json:
        print_json([_row(each, operation) for each, operation in found])
    else:
        head = ("OPERATION", "SURFACE", "EFFECT", "MATCH", "PARAMETERS")
        print_table(head, [_cells(each, operation) for each, operation in found])
    return 0


def _match(operation: OperationSpec) -> str:
    return f"{'|'.join(operation.methods)} {operation.target or operation.path}"


def _row(each: SurfaceMap, operation: OperationSpec) -> dict[str, Any]:
    return {
        "operation": f"{each.name}.{operation.id}",
        "surface": operation.surface,
        "effect": operation.effect,
        "match": _match(operation),
        "params": {param.name: param.type for param in operation.params},
        "hosts": [f"{host.scheme}://{host.host}:{host.port}" for host in each.hosts],
    }


def _cells(each: SurfaceMap, operation: OperationSpec) -> tuple[str, ...]:
    return (
        f"{each.name}.{operation.id}",
        operation.surface or "(unassigned)",
        operation.effect or "-",
        _match(operation),
        ", ".join(param.name for param in operation.params),
    )


def _compile(args: argparse.Namespace) -> int:
    print_json(SurfaceIndex.compile(_maps(args)).to_lock())
    return 0
