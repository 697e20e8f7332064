"""`holdgate signer`: hold keys in a process of its own, for instances that must not have them."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from ..adapters.signer_server import SignerServer
from .shared import Commands, add, whole_number

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "signer",
        _signer,
        does="sign over a Unix socket with keys that `holdgate run` does not see (`signer:` there)",
        example="openssl genpkey -algorithm ed25519 -out keys/slot-1.pem\n"
        "  holdgate signer keys --listen /run/holdgate-signer.sock --serve-uid 990",
        config=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="one Ed25519 key per file, ID.pem")
    parser.add_argument("--listen", type=Path, required=True, metavar="SOCKET")
    parser.add_argument(
        "--serve-uid", type=whole_number, action="append", default=[], metavar="UID", help="who may ask too"
    )


def _signer(args: argparse.Namespace) -> int:
    with SignerServer(args.listen, args.folder, frozenset(args.serve_uid)) as server:
        print("ready", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
