"""Writes tests/vectors/sealing/ again: commitments, salted input digests, sealed inputs and keyed parameters.

    python tests/vectors/regenerate_sealing.py

Bytes are hex; `target` and `inputs` are text. `sealed` opens with `key`, its first 24 bytes as nonce and the
receipt's id as associated data (XChaCha20-Poly1305, proxy/SPEC.md).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence import receipt_id
from holdgate.digest import param_digest
from holdgate.receipt import input_digest
from holdgate.sealing import Kept, commitment, seal

FOLDER = Path(__file__).resolve().parent / "sealing"
FLEET_KEY = bytes(range(32))
SALT = bytes(range(16, 32))
REQUESTS: dict[str, tuple[str, str, str, bytes, str]] = {
    "write": (
        "PUT",
        "fhir.example.org:443",
        "/fhir/R4/Patient/p1",
        b'{"resourceType":"Patient","id":"p1"}',
        '{"v":1}',
    ),
    "search": (
        "GET",
        "fhir.example.org:443",
        "/fhir/R4/Patient?family=D%C3%B6&_count=1",
        b"",
        '{"v":1,"x":"\u00f6"}',
    ),
    "refused before the gate": ("POST", "slack.com:443", "/api/chat.postMessage", b"text=hi", ""),
}
PARAMS = {
    "a text": ("fhir.r4", "patient", "Patient/p1"),
    "another map": ("fhir.two", "patient", "Patient/p1"),
    "another parameter": ("fhir.r4", "resource_id", "Patient/p1"),
    "a list, as canonical JSON": ("fhir.r4", "paths", '["/name/0","/\u00f6"]'),
}


def _draw(size: int) -> bytes:
    return bytes(range(100, 100 + size))


def _request(
    number: int, method: str, destination: str, target: str, body: bytes, inputs: str
) -> dict[str, Any]:
    kept = Kept(target=target.encode(), inputs=inputs.encode() or None)
    sealed = seal(receipt_id(number), kept, SALT, _draw)
    said = commitment(
        SALT,
        method=method,
        destination=destination,
        target=target.encode(),
        body_sha256=hashlib.sha256(body).digest(),
    )
    return {
        "receipt": receipt_id(number),
        "method": method,
        "destination": destination,
        "target": target,
        "body": body.hex(),
        "inputs": inputs,
        "salt": SALT.hex(),
        "key": sealed.key.hex(),
        "commitment": said,
        "input_digest": input_digest(inputs.encode(), SALT) if inputs else "",
        "sealed": sealed.data.hex(),
    }


def files() -> dict[str, str]:
    """Name -> content of every vector."""
    rows = {name: _request(number, *facts) for number, (name, facts) in enumerate(REQUESTS.items())}
    params = {
        name: {
            "map": where,
            "parameter": parameter,
            "value": value,
            "fleet_key": FLEET_KEY.hex(),
            "public": param_digest(where, parameter, value, key=FLEET_KEY),
        }
        for name, (where, parameter, value) in PARAMS.items()
    }
    return {
        "requests.json": json.dumps(rows, indent=2, ensure_ascii=True) + "\n",
        "params.json": json.dumps(params, indent=2, ensure_ascii=True) + "\n",
    }


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
