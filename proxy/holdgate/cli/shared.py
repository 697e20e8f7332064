"""What the commands share: how a command is declared, where its configuration is, how data is printed."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..adapters.admin.shapes import parse_since
from ..config import Config, load_config
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..adapters.reader import Reader

__all__ = [
    "Commands",
    "Run",
    "add",
    "add_node",
    "config_of",
    "first_index",
    "group",
    "print_json",
    "print_json_list",
    "print_table",
    "printable",
    "read_bytes",
    "say",
    "time_us",
    "whole_number",
]

type Commands = argparse._SubParsersAction[argparse.ArgumentParser]
type Run = Callable[[argparse.Namespace], int]


def add(
    commands: Commands,
    name: str,
    run: Run,
    *,
    does: str,
    example: str,
    config: bool = True,
    data: bool = False,
) -> argparse.ArgumentParser:
    """Declare one command. `config`: it has -c. `data`: it prints data, so it has --json."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=does,
        description=does[0].upper() + does[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    if config:
        parser.add_argument(
            "-c",
            "--config",
            type=Path,
            default=Path("holdgate.yaml"),
            metavar="FILE",
            help="configuration (default: ./holdgate.yaml)",
        )
    if data:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def add_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--node", default="", metavar="NAME", help="one node of a fleet that shares a PostgreSQL store"
    )


def group(commands: Commands, name: str, *, does: str, example: str) -> Commands:
    """Declare a command that has sub-commands."""
    parser = commands.add_parser(
        name,
        help=does,
        description=does[0].upper() + does[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def config_of(args: argparse.Namespace) -> Config:
    return load_config(args.config)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True))


def print_json_list(rows: Iterable[Any]) -> None:
    """As print_json() prints a list, each row when it is there."""
    before = "["
    for row in rows:
        print(before, textwrap.indent(json.dumps(row, indent=2, ensure_ascii=True), "  "), sep="\n", end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    lines = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def say(text: object, *, keep: str = "", file: TextIO | None = None) -> None:
    """Print one line in which somebody else's words stand, see printable()."""
    print(printable(str(text), keep=keep), file=file, flush=True)


def printable(text: str, *, keep: str = "") -> str:
    """`text` with what moves a cursor, hides, turns round or begins a line written out, but for `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def whole_number(text: str) -> int:
    """An argument's type. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError("a whole number is needed")
    return int(text)


def first_index(reader: Reader, since: str) -> int:
    """The log index that `--since INDEX|TIME` means. Raises ConfigError."""
    if since.isascii() and since.isdigit():
        return int(since)
    return reader.index_since(time_us(since))


def time_us(since: str, option: str = "--since") -> int:
    """Microseconds since the epoch of `--since TIME`. Raises ConfigError."""
    try:
        return parse_since(since)
    except ValueError as error:
        raise ConfigError(f"{option} {since}: {error}") from None


def read_bytes(name: str) -> bytes:
    """The file `name`, or standard input for `-`. Raises OSError."""
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
