"""Third-party tools verify what a ledger produced after a mixed load with kill -9s.

The load is that of killed_writer.py: permits, refusals, replays, outcomes, killed three times. Each tool
reads the log's folder or the receipts and none of our code. Go, npm's `jose` and aics-tlog are skipped, with
the reason, where they are not installed: `apt-get install golang-golang-x-mod-dev`; `npm install jose` and
its folder in HOLDGATE_JOSE; `pip install --no-deps --require-hashes --target DIR -r
tests/interop/requirements.txt` and
DIR in HOLDGATE_AICS (aics-tlog asks for another `cryptography` than mitmproxy, and runs with ours).
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws as joserfc_jws
from joserfc.jwk import KeySet as JoserfcKeys

from evidence import KEYS, LOG_KEY, ORIGIN, open_ledger
from holdgate.adapters.proofs import prove
from holdgate.adapters.sqlite_reader import SqliteReader, StoredReceipt
from holdgate.keys import jwks
from holdgate.note import sign_checkpoint
from holdgate.tlog import Tree
from holdgate.tlogproof import parse_proof

HERE = Path(__file__).resolve().parent
JOSE = os.environ.get("HOLDGATE_JOSE", "")
KILLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    state: Path
    receipts: tuple[StoredReceipt, ...]
    keys: Path  # JWK Set
    earlier: Path  # the checkpoint after the first kill

    @property
    def log(self) -> Path:
        return self.state / "log"

    def proofs(self, *, by: str) -> str:
        """Some proofs as JSON, by receipt id or by index."""
        some = random.Random(1).sample(self.receipts, 40)
        return json.dumps(
            {str(getattr(row, by)): prove(self.state, row.index, row.jws).decode() for row in some}
        )


@pytest.fixture(scope="module")
def produced(tmp_path_factory: pytest.TempPathFactory) -> Produced:
    folder = tmp_path_factory.mktemp("produced")
    state, earlier = folder / "state", folder / "earlier"
    state.mkdir()
    for number in range(KILLS):
        size = _run_and_kill(state, folder / "dispatched", number)
        assert size
        open_ledger(state).close()  # recovers, publishes
        if number == 0:
            shutil.copy(state / "log" / "checkpoint", earlier)
    keys = folder / "keys.json"
    keys.write_text(json.dumps(jwks(KEYS.values())))
    with SqliteReader(state) as reader:
        receipts = tuple(reader.export())
    return Produced(state=state, receipts=receipts, keys=keys, earlier=earlier)


def _run_and_kill(state: Path, dispatched: Path, number: int) -> int:
    """Let the writer get some hundred receipts further, then kill it; how many it had."""
    start = _size(state)
    words = [sys.executable, str(HERE.parent / "killed_writer.py"), str(state), str(dispatched), str(number)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=HERE.parent) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        until = time.monotonic() + 60
        size = start
        while size < start + 400 and time.monotonic() < until:
            time.sleep(0.02)
            size = _size(state)
        writer.kill()
    return size - start


def _size(state: Path) -> int:
    if not (state / "ledger.db").exists():
        return 0
    with SqliteReader(state) as reader:
        return reader.size


def _run(words: list[str], given: str = "", **changes: Any) -> dict[str, Any]:
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=180, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- Node ---


def _node(produced: Produced, log: Path, jose: str = "") -> subprocess.CompletedProcess[str]:
    words = ["node", str(HERE / "verify.mjs"), str(log), str(produced.keys), *([jose] if jose else [])]
    return subprocess.run(words, input=produced.proofs(by="id"), capture_output=True, text=True, timeout=180)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("library", ["node:crypto", "jose"])
def test_an_independent_verifier_in_javascript_accepts_everything(produced: Produced, library: str) -> None:
    if library == "jose" and not JOSE:
        pytest.skip("HOLDGATE_JOSE does not name the folder of npm's jose")
    done = _node(produced, produced.log, JOSE if library == "jose" else "")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["size"], counts["proofs"], counts["jose"]) == (
        len(produced.receipts),
        40,
        library == "jose",
    )
    for kind in ("decision", "outcome"):
        assert counts[kind] == sum(row.type == kind for row in produced.receipts) > 0


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("tile/0/000", 40),
        ("tile/entries/000", 900),
        ("checkpoint", 30),
        ("tile/1/000.p/*", 3),
        ("key.vkey", -9),
    ],
)
def test_and_refuses_a_changed_byte(produced: Produced, tmp_path: Path, name: str, position: int) -> None:
    log = Path(shutil.copytree(produced.log, tmp_path / "log"))
    for path in log.glob(name):
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)
    assert _node(produced, log).returncode == 1


# --- Go ---


@pytest.mark.slow
def test_gos_sumdb_packages_accept_checkpoints_tiles_proofs_and_growth(produced: Produced, go: Path) -> None:
    found = _run([str(go), str(produced.log), str(produced.earlier)], produced.proofs(by="index"))
    assert (found["size"], found["proofs"]) == (len(produced.receipts), 40)
    assert 0 < found["earlier"] < found["size"]


@pytest.mark.slow
def test_gos_sumdb_packages_refuse_a_forked_log(produced: Produced, go: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    fork.write_bytes(sign_checkpoint(ORIGIN, Tree(size=8, hashes=(bytes(32),)), LOG_KEY))
    done = subprocess.run([str(go), str(produced.log), str(fork)], input="{}", capture_output=True, text=True)
    assert done.returncode == 1 and "consistency" in done.stderr


# --- Python and openssl ---


def test_pyjwt_and_joserfc_accept_every_receipt(produced: Produced) -> None:
    document = json.loads(produced.keys.read_text())
    jwt = pytest.importorskip("jwt", reason="PyJWT is not installed")
    key = jwt.PyJWK(document["keys"][0])
    keys = JoserfcKeys.import_key_set(document)
    plain = jwt.PyJWS()
    for row in produced.receipts:
        token = row.jws.decode()
        assert json.loads(plain.decode(token, key, algorithms=["EdDSA"]))["id"] == row.id
        assert (
            joserfc_jws.deserialize_compact(token, keys, algorithms=["EdDSA"]).headers()["kid"] == key.key_id
        )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_a_receipt_and_refuses_a_changed_one(produced: Produced, tmp_path: Path) -> None:
    signed, _, signature = produced.receipts[0].jws.rpartition(b".")
    (key,) = KEYS.values()
    (tmp_path / "key.pem").write_text(key.pem)
    (tmp_path / "signature").write_bytes(base64.urlsafe_b64decode(signature + b"=="))
    for text, expected in ((signed, 0), (signed[:-1] + b"A", 1)):
        (tmp_path / "signed").write_bytes(text)
        words = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "signed"]
        done = subprocess.run([*words, "-sigfile", "signature"], cwd=tmp_path, capture_output=True)
        assert done.returncode == expected


def test_aics_tlog_accepts_the_log_and_its_proofs(
    produced: Produced, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder := os.environ.get("HOLDGATE_AICS"):
        monkeypatch.syspath_prepend(folder)
    aics = pytest.importorskip("aics_tlog", reason="HOLDGATE_AICS does not name the folder of aics-tlog")
    key = aics.parse_vkey((produced.log / "key.vkey").read_text().strip())
    note = aics.parse_note((produced.log / "checkpoint").read_text())
    result = aics.verify_checkpoint(note, key, expected_origin=ORIGIN)
    assert result.ok, result
    size, root = result.size, result.root
    reader = aics.FileSystemTileReader(produced.log)
    aics.audit_tiles(reader, size, root)  # every tile and every bundle; raises
    for row in produced.receipts[:: len(produced.receipts) // 20]:
        path = parse_proof(prove(produced.state, row.index, row.jws)).path
        assert path == tuple(aics.inclusion_proof_from_tiles(reader, row.index, size))
        assert aics.verify_leaf_inclusion(row.jws, row.index, size, path, root)
    earlier = aics.parse_note(produced.earlier.read_text())
    old = aics.verify_checkpoint(earlier, key, expected_origin=ORIGIN)
    growth = aics.consistency_proof_from_tiles(reader, old.size, size)
    assert aics.verify_consistency(old.size, size, old.root, root, growth)
