"""What `verify` is given, read line by line: an export of any length is never in memory as a whole.

    file, folder, `-`, header line or JWS -> (words that name it, JWS), one at a time

A file has one JWS, one in each line, the JSON lines of `receipts export`, or the headers of HTTP answers:
where a `Holdgate-Receipt` line stands in the first MiB, only such lines count.

Invariants (tests/test_receipt_lines.py has one test named after each):
  RL1  No more than a MiB and a line is read ahead of what was given out.
  RL2  Every line that is not empty is given out, or every Holdgate-Receipt line is; one that is too long for
       a receipt is given out cut short, and is none.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import ConfigError

__all__ = ["jws_of", "receipts_behind", "receipts_in"]

_AHEAD: Final = 1_048_576  # bytes
_MOST: Final = 262_144  # bytes of a line: a receipt has 8 KiB at most, in an export three times
# No file is meant: the header of every JWS begins with these letters, and it is longer than a file's name.
_JWS: Final = re.compile(r"eyJ[\w-]{60,}\.[\w-]+\.[\w-]+", re.ASCII)
_HEADER: Final = re.compile(rb"(?:< )?holdgate-receipt:[ \t]*([^ \t]*)[ \t]*\Z", re.IGNORECASE)
_PROOF_SUFFIX: Final = ".tlog-proof"


def receipts_behind(name: str) -> Iterator[tuple[str, bytes]]:
    """Every receipt behind one argument, with the words that name it. Raises ConfigError."""
    header = _HEADER.match(name.encode("utf-8", "surrogateescape"))
    if header or _JWS.fullmatch(name):
        yield "argument", header[1] if header else name.encode()
    elif _is_folder(name):
        yield from _in_folder(Path(name))
    else:
        yield from _in_file(name)


def _is_folder(name: str) -> bool:
    try:
        return name != "-" and Path(name).is_dir()
    except OSError as error:  # a JWS that was cut is longer than a name may be
        raise ConfigError(f"neither a file nor a receipt: {error.strerror}", file=f"{name:.80}") from error


def _unseen(error: OSError) -> None:
    raise ConfigError(f"{error.strerror}: what is in it cannot be verified", file=str(error.filename))


def _in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    # Not Path.rglob(): it passes over what may not be read.
    paths = (Path(at, name) for at, _, names in os.walk(folder, onerror=_unseen) for name in names)
    files = sorted(path for path in paths if path.is_file() and path.suffix != _PROOF_SUFFIX)
    if not files:
        raise ConfigError("no receipt in it", file=str(folder))
    for path in files:
        yield from _in_file(str(path))


def _in_file(name: str) -> Iterator[tuple[str, bytes]]:
    if name == "-":
        yield from _named(name, sys.stdin.buffer)
        return
    try:
        with Path(name).open("rb") as file:
            yield from _named(name, file)
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=name) from error


def _named(name: str, file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """By the number of its line, where the file has more than one."""
    found = receipts_in(file)
    begin = list(islice(found, 2))
    if not begin:
        raise ConfigError("no receipt in it", file=name)
    if len(begin) == 1:
        yield name, begin[0][1]
        return
    for number, jws in chain(begin, found):
        yield f"{name}:{number}", jws


def receipts_in(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number of the line, JWS) of each receipt."""
    lines = _filled(file)
    ahead: list[tuple[int, bytes]] = []
    left = _AHEAD
    for number, line in lines:
        if _HEADER.match(line):
            for at, each in chain([(number, line)], lines):
                if header := _HEADER.match(each):
                    yield at, header[1]
            return
        ahead.append((number, line))
        left -= len(line)
        if left < 0:
            break
    for number, line in chain(ahead, lines):
        yield number, jws_of(line)


def _filled(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(_MOST):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(_MOST)):
            pass  # too long to be one: what came first is enough to say so
        if line := line.strip():
            yield number, line


def jws_of(line: bytes) -> bytes:
    """The JWS of one line of an export; any other line is taken as a JWS and fails as one."""
    if not line.startswith(b"{"):
        return line
    try:
        jws = json.loads(line)["jws"]
        return jws.encode("ascii") if isinstance(jws, str) else line
    except (ValueError, KeyError, RecursionError):
        return line
