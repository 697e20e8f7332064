"""Small signed bundles: two policies of a shop, three people who may sign, and a folder to spoil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdgate.gate import ENGINE
from holdgate.keys import SigningKey, key_set
from holdgate.manifest import (
    MANIFEST,
    SIGNATURES,
    FileEntry,
    Manifest,
    encode_signatures,
    sign_manifest,
)
from holdgate.signed_bundle import RawBundle
from holdgate.trust_roots import Link, Roots, encode_chain

ALICE, BOB, CAROL, MALLORY = (SigningKey(seed=name * 32) for name in (b"a", b"b", b"c", b"m"))
NOW_S = 1_790_000_000
DAY_S = 86_400

MAP = """\
apiVersion: holdgate/v1
kind: SurfaceMap
metadata: {name: shop, owner: shop@example.com}
spec:
  hosts: [shop.example]
  operations:
  - id: buy
    match: {method: POST, path: /orders}
    surface: payments.charge
    effect: commit
    body: {decode: json}
    params:
      amount: {from: body.amount, type: int, required: true, material: true}
"""
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: orders, owner: shop@example.com}
spec:
  surface: payments.charge
  rules:
  - id: small
    effect: permit
    when: params.amount >= 1 && params.amount <= 100
"""
TEST = """\
apiVersion: holdgate/v1
kind: PolicyTest
metadata: {name: orders}
spec:
  policy: orders
  cases:
  - {name: small, with: {params: {amount: 100}}, expect: {outcome: PERMIT}}
  - {name: large, with: {params: {amount: 101}}, expect: {outcome: SILENCE}}
  - name: as it is sent
    request_file: ../surfaces/shop/examples/buy.http
    expect: {outcome: PERMIT}
"""
HTTP = (
    b"POST /orders HTTP/1.1\r\nHost: shop.example\r\nContent-Type: application/json\r\n"
    b'Content-Length: 13\r\n\r\n{"amount": 1}'
)
FILES: Mapping[str, bytes] = {
    "surfaces/shop/shop.yaml": MAP.encode(),
    "surfaces/shop/examples/buy.http": HTTP,
    "policies/orders.yaml": POLICY.encode(),
    "policies/orders_test.yaml": TEST.encode(),
}


def limit(amount: int) -> dict[str, bytes]:
    """Other policies: they permit up to another amount."""
    return dict(FILES) | {
        "policies/orders.yaml": POLICY.replace("100", str(amount)).encode(),
        "policies/orders_test.yaml": TEST.replace("101", str(amount + 1))
        .replace("100}", f"{amount}}}")
        .encode(),
    }


def manifest(files: Mapping[str, bytes] = FILES, **change: Any) -> Manifest:
    made = Manifest(
        name="shop",
        epoch=1,
        revision=1,
        profile=ENGINE,
        not_before_s=NOW_S - DAY_S,
        not_after_s=NOW_S + 30 * DAY_S,
        previous="",
        files=tuple(sorted(FileEntry.of(path, data) for path, data in files.items())),
    )
    return replace(made, **change)


def bundle(
    files: Mapping[str, bytes] = FILES,
    keys: tuple[SigningKey, ...] = (ALICE, BOB),
    data: bytes | None = None,
    **change: Any,
) -> RawBundle:
    """`data`: manifest bytes that encode() would not make."""
    data = manifest(files, **change).encode() if data is None else data
    signed = encode_signatures(sign_manifest(data, key) for key in keys)
    return RawBundle(name="b", manifest=data, signatures=signed, files=dict(files))


def write(raw: RawBundle, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path, data in {**raw.files, MANIFEST: raw.manifest, SIGNATURES: raw.signatures}.items():
        if data is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return folder


def roots(*keys: SigningKey, threshold: int = 2, version: int = 1, epoch: int = 1) -> Roots:
    public = key_set(key.public for key in keys or (ALICE, BOB, CAROL))
    return Roots(version=version, epoch=epoch, threshold=threshold, keys=public)


def write_trust(path: Path, *links: Link) -> Path:
    path.write_bytes(encode_chain(links or (Link(roots=roots(), signatures=()),)))
    return path
