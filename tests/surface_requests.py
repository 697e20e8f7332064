"""Requests and small maps for the tests of surface/: canonical values from a few words."""

from __future__ import annotations

import textwrap
from pathlib import Path

from holdgate.canonical import CanonicalRequest, canonicalise
from holdgate.message import Headers, Listener, Message, Origin, RequestHead
from holdgate.strictyaml import load
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_map, load_maps
from holdgate.surface.model import Recognised, Value
from holdgate.surface.spec import SurfaceMap

MAPS = Path(__file__).parent / "data" / "maps"
FLEET_KEY = b"fleet key of the tests, 32 bytes"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
ENVELOPE = "apiVersion: holdgate/v1\nkind: SurfaceMap\nmetadata: {name: own}\nspec:\n"


def request(
    target: str,
    *,
    method: str = "POST",
    host: str = "api.pay.test",
    headers: dict[str, str] | Headers | None = None,
    body: bytes = b"",
    scheme: str = "https",
    port: int = 443,
) -> CanonicalRequest:
    """What canonicalise() makes of such a request inside a CONNECT tunnel."""
    own: Headers = ()
    if isinstance(headers, dict):
        own = tuple((name.encode(), value.encode()) for name, value in headers.items())
    elif headers is not None:
        own = headers
    default = 443 if scheme == "https" else 80
    authority = host if port == default else f"{host}:{port}"
    origin = Origin(
        listener=Listener.EXPLICIT,
        tls=scheme == "https",
        source="127.0.0.1",
        source_port=50_000,
        connect=(host, port),
        sni=host if scheme == "https" else None,
        original_port=None,
        proxy_authorization=(),
    )
    head = RequestHead(
        method=method.encode(), target=target.encode(), headers=((b"Host", authority.encode()), *own)
    )
    return canonicalise(Message(origin=origin, head=head, body=body))


def map_of(spec: str, *, name: str = "own") -> SurfaceMap:
    """A map from the YAML of its `spec`."""
    text = ENVELOPE.replace("name: own", f"name: {name}") + textwrap.indent(textwrap.dedent(spec), "  ")
    loaded = load_map(load(text, file="own.yaml"))
    if loaded is None:
        raise ValueError("not a map")
    return loaded


def index_of(*specs: str) -> SurfaceIndex:
    return SurfaceIndex.compile([map_of(spec, name=f"m{number}") for number, spec in enumerate(specs)])


def shared_index() -> SurfaceIndex:
    """All maps of tests/data/maps."""
    return SurfaceIndex.compile(load_maps([MAPS]))


def recognise(index: SurfaceIndex, canonical: CanonicalRequest) -> Recognised:
    return index.recognise(canonical, fleet_key=FLEET_KEY)


def params(recognised: Recognised, number: int = 0) -> dict[str, Value]:
    return {param.name: param.value for param in recognised.actions[number].params}
