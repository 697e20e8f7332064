"""`holdgate receipts export`: the log in order, to a file, a terminal or the security team's systems."""

from __future__ import annotations

import argparse
import contextlib
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ..adapters.admin.shapes import decode_jws
from ..adapters.exporting import Cursor, FileSink, HttpSink, Sink, StdoutSink, SyslogSink, export
from ..adapters.open_reader import nodes, open_reader
from ..adapters.reader import Reader
from ..config import Config
from ..errors import ConfigError
from ..siem import FORMATS, Row
from .shared import Commands, add, add_node, config_of, first_index, whole_number

__all__ = ["register_export"]

_POLL_S = 1.0


def register_export(receipts: Commands) -> None:
    parser = add(
        receipts,
        "export",
        _export,
        does="print or send receipts in log order, one line each",
        example="holdgate receipts export --since 1000 --limit 500 > receipts.jsonl\n"
        "  holdgate receipts export --follow --cursor soc.cursor --format ocsf --syslog soc.example:6514",
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="jsonl", help="default: jsonl")
    parser.add_argument("--raw", action="store_true", help="the JWS alone, one per line")
    parser.add_argument("--since", default="0", metavar="INDEX|TIME", help="start here; a cursor goes first")
    parser.add_argument("--limit", type=whole_number, default=-1, metavar="N")
    parser.add_argument("--follow", action="store_true", help="go on when the log grows, until interrupted")
    parser.add_argument(
        "--cursor", type=Path, metavar="FILE", help="remember here what was sent; at least once, drop by id"
    )
    add_node(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, metavar="FILE", help="append to a file")
    where.add_argument("--syslog", metavar="HOST:PORT", help="send as syslog over TLS (RFC 5425)")
    where.add_argument("--http", metavar="URL", help="POST in batches; for OTLP the address ends in /v1/logs")
    parser.add_argument(
        "--rotate-mb", type=whole_number, default=0, metavar="N", help="rotate --output at this size"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token for --http")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="trust anchors for --syslog and --http")


def _export(args: argparse.Namespace) -> int:
    config = config_of(args)
    # A cursor is of one log, and so is what is followed: then it is this node's, unless another is named.
    one = args.node or (config.node if args.follow or args.cursor else "")
    for node in nodes(config, one):
        _export_log(config, node, args)
    return 0


def _export_log(config: Config, node: str, args: argparse.Namespace) -> None:
    sleeper = threading.Event()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open_reader(config, node))
        cursor = Cursor(path=args.cursor, origin=reader.origin) if args.cursor else None
        following = cursor.load(reader.size) if cursor else None
        start = first_index(reader, args.since) if following is None else following
        try:
            sink = _sink(args)
            stack.callback(sink.close)
            export(
                lambda index, most: _read(reader, index, most),
                sink,
                start=start,
                limit=args.limit,
                done=cursor.save if cursor else lambda _: None,
                wait=lambda: args.follow and not sleeper.wait(_POLL_S),
            )
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ConfigError(f"cannot send: {error}") from error


def _read(reader: Reader, index: int, most: int) -> Sequence[Row]:
    rows = []
    for at, stored in enumerate(reader.export(index, most), index):
        if stored.index != at:  # what follows would be sent under other numbers, or for ever
            raise ConfigError(f"receipt {at} is missing in the ledger: `holdgate log audit` says what else")
        rows.append(Row(index=at, jws=stored.jws, statement=decode_jws(stored.jws)))
    return rows


def _sink(args: argparse.Namespace) -> Sink:
    line = (lambda row: row.jws.decode("ascii")) if args.raw else FORMATS[args.format]
    if args.output:
        return FileSink(args.output, line, rotate_bytes=args.rotate_mb * 1_000_000)
    if args.syslog:
        host, _, port = args.syslog.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()):
            raise ConfigError(f"--syslog {args.syslog}: write HOST:PORT")
        return SyslogSink(host.strip("[]"), int(port), line, context=_context(args))
    return _http(args) if args.http else StdoutSink(line)


def _http(args: argparse.Namespace) -> HttpSink:
    try:
        url = urlsplit(args.http)
        _ = url.port
    except ValueError as error:
        raise ConfigError(f"--http {args.http}: {error}") from error
    local = url.hostname in ("127.0.0.1", "::1", "localhost")
    if not url.hostname or (url.scheme != "https" and not (url.scheme == "http" and local)):
        raise ConfigError(f"--http {args.http}: an https:// address is needed; http:// only to loopback")
    if args.raw:
        raise ConfigError("--raw is for files and terminals; --http sends --format")
    token = args.token_file.read_text(encoding="ascii").strip() if args.token_file else ""
    return HttpSink(args.http, args.format, token=token, context=_context(args))


def _context(args: argparse.Namespace) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(args.ca_file) if args.ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
