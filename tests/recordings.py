"""The recorded requests of tests/data/clients."""

from __future__ import annotations

import lzma
from pathlib import Path

__all__ = ["CLIENTS", "RECORDED", "content", "name_of"]

CLIENTS = Path(__file__).parent / "data" / "clients"
RECORDED = sorted([*CLIENTS.glob("*/*.http"), *CLIENTS.glob("*/*.http.xz")])


def name_of(path: Path) -> str:
    """`client/call` of a recording."""
    return f"{path.parent.name}/{path.name.removesuffix('.xz').removesuffix('.http')}"


def content(path: Path) -> bytes:
    """The bytes of the request, byte for byte as the client sent them."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
