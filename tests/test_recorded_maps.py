"""Recorded requests of real clients through the shipped maps: each is the operation that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdgate.canonical import canonicalise
from holdgate.errors import InputError
from holdgate.files import packaged
from holdgate.http1 import ServerReader
from holdgate.limits import Limits
from holdgate.message import Listener, Message, Origin
from holdgate.strictyaml import load_file
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from recordings import CLIENTS, RECORDED, content, name_of

EXPECTED: dict[str, Any] = {
    f"{client}/{call}": expected
    for client, calls in load_file(CLIENTS / "expected.yaml").plain().items()
    for call, expected in calls.items()
}
CHOSEN = [path for path in RECORDED if name_of(path) in EXPECTED]


@pytest.fixture(scope="module")
def index() -> SurfaceIndex:
    return SurfaceIndex.compile(load_maps([packaged("surfaces")]))


def operations(index: SurfaceIndex, raw: bytes) -> str | list[str]:
    """The operation, a list of a batch, or the reason of a refusal."""
    reader = ServerReader(Limits())
    reader.feed(raw)
    try:
        head = reader.head()
        assert head is not None
        reader.begin_body(64 << 20)
        body = reader.body()
        assert body is not None
        host = dict((name.lower(), value) for name, value in head.headers)[b"host"].decode()
        origin = Origin(
            listener=Listener.EXPLICIT,
            tls=True,
            source="127.0.0.1",
            source_port=50_000,
            connect=(host, 443),
            sni=host,
            original_port=None,
            proxy_authorization=(),
        )
        request = canonicalise(Message(origin=origin, head=head, body=body))
        found = index.recognise(request, fleet_key=b"k" * 32, body_bytes=8 << 20)
    except InputError as error:
        return str(error.reason)
    names = [action.operation for action in found.actions]
    return names[0] if len(names) == 1 else names


def test_every_expectation_is_of_a_recording_and_most_are_operations() -> None:
    assert {name_of(path) for path in CHOSEN} == EXPECTED.keys()
    recognised = [each for each in EXPECTED.values() if isinstance(each, list) or "." in each]
    assert len(recognised) > 100


@pytest.mark.parametrize("path", CHOSEN, ids=name_of)
def test_a_recorded_request_is_the_operation_that_it_is(index: SurfaceIndex, path: Path) -> None:
    assert operations(index, content(path)) == EXPECTED[name_of(path)]
