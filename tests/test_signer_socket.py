"""adapters/signer_socket.py and signer_server.py: keys in another process, and what it can do to us."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from evidence import NODE, ORIGIN, OTHER_KEY, RECEIPT_KEY, RefundJudge, nonces, ticking
from holdgate.adapters.keyfiles import create_keys, load_keys, load_log_keys, load_public_keys
from holdgate.adapters.keyring import Rotation
from holdgate.adapters.signer_server import SignerServer
from holdgate.adapters.signer_socket import SignerSocket
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.audit import audit
from holdgate.errors import BackendError, ConfigError, Reason
from holdgate.keyhistory import Purpose
from holdgate.keys import b64url, unb64url
from holdgate.ledger import OutcomeStatus

type Answer = Callable[[dict[str, Any]], bytes]


def _json(**members: str) -> bytes:
    return json.dumps(members).encode() + b"\n"


def honest(asked: dict[str, Any]) -> bytes:
    if asked["ask"] == "public":
        return _json(x=b64url(RECEIPT_KEY.public.raw).decode())
    return _json(signature=b64url(RECEIPT_KEY.sign(unb64url(asked["message"].encode()))).decode())


@contextmanager
def signing(path: Path, answer: Answer) -> Iterator[list[dict[str, Any]]]:
    """A signer that answers as it is told; yields what it was asked."""
    asked: list[dict[str, Any]] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    over = threading.Event()

    def serve(sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file:
            for line in file:
                asked.append(json.loads(line))
                try:
                    sock.sendall(answer(asked[-1]))
                except OSError:
                    return

    def accept() -> None:
        while not over.is_set():
            try:
                sock, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield asked
    finally:
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        path.unlink()


def test_ss1_an_honest_signer_signs(tmp_path: Path) -> None:
    with signing(tmp_path / "s", honest) as asked:
        device = SignerSocket(tmp_path / "s", 5)
        key = device.signer("slot-1", None)
        assert key.public == RECEIPT_KEY.public
        assert key.sign(b"abc") == RECEIPT_KEY.sign(b"abc")
        assert [each["ask"] for each in asked] == ["public", "sign"]
        assert (device.failures, device.failing) == (0, False)


_LIES: dict[str, Answer] = {
    "another key's signature": lambda asked: _json(signature=b64url(OTHER_KEY.sign(b"abc")).decode()),
    "over other bytes": lambda asked: _json(signature=b64url(RECEIPT_KEY.sign(b"abd")).decode()),
    "no signature": lambda asked: _json(signature=""),
    "nothing": lambda asked: b"\n",
    "no JSON": lambda asked: b"\xff\n",
    "a list": lambda asked: b"[]\n",
    "not base64": lambda asked: _json(signature="*"),
    "a refusal": lambda asked: _json(error="not today"),
    "a refusal beside a signature": lambda asked: honest(asked)[:-2] + b', "error": "no"}\n',
    "no end": lambda asked: b"x" * 100_000,
}


@pytest.mark.parametrize("answer", _LIES.values(), ids=_LIES)
def test_ss1_what_is_no_signature_of_these_bytes_is_refused(tmp_path: Path, answer: Answer) -> None:
    with signing(tmp_path / "s", answer):
        device = SignerSocket(tmp_path / "s", 5)
        key = device.signer("slot-1", RECEIPT_KEY.public)
        with pytest.raises(BackendError) as raised:
            key.sign(b"abc")
        assert raised.value.reason is Reason.STORE_UNAVAILABLE
        assert (device.failures, device.failing) == (1, True)


def test_ss2_a_slow_signer_costs_one_deadline_and_then_nothing(tmp_path: Path) -> None:
    over = threading.Event()

    def slow(asked: dict[str, Any]) -> bytes:
        over.wait(10)
        return honest(asked)

    with signing(tmp_path / "s", slow) as asked:
        key = SignerSocket(tmp_path / "s", 0.05).signer("slot-1", RECEIPT_KEY.public)
        started = time.monotonic()
        for _ in range(50):
            with pytest.raises(BackendError):
                key.sign(b"abc")
        assert time.monotonic() - started < 1.0
        assert len(asked) == 1
        over.set()


def test_ss3_a_late_answer_is_nobodys(tmp_path: Path) -> None:
    now = [0.0]
    late = threading.Event()

    def first_late(asked: dict[str, Any]) -> bytes:
        if asked["message"] == b64url(b"one").decode():
            late.wait(10)
        return honest(asked)

    with signing(tmp_path / "s", first_late):
        device = SignerSocket(tmp_path / "s", 0.05, clock=lambda: now[0])
        key = device.signer("slot-1", RECEIPT_KEY.public)
        with pytest.raises(BackendError):
            key.sign(b"one")
        late.set()
        with pytest.raises(BackendError, match="a moment ago"):
            key.sign(b"two")
        now[0] = 2.0
        assert device.failing
        assert key.sign(b"two") == RECEIPT_KEY.sign(b"two")
        assert not device.failing


def test_a_signer_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="FileNotFoundError"):
        SignerSocket(tmp_path / "s", 5).signer("slot-1", None)


# --- a ledger over it ---


@contextmanager
def serving(path: Path, folder: Path, users: frozenset[int] = frozenset()) -> Iterator[SignerServer]:
    with SignerServer(path, folder, users) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


def slot(folder: Path, name: str) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{name}.pem"
    path.touch(0o600)
    path.write_bytes(pem)


def opened(state: Path, device: SignerSocket | None) -> SqliteLedger:
    keys = load_keys(state, device)
    return SqliteLedger.open(
        state,
        receipt_key=keys.receipt,
        log_key=keys.log,
        origin=ORIGIN,
        node=NODE,
        clock_us=ticking(),
        nonce16=nonces(),
        linger_s=0.0,
        headroom_bytes=0,
        device=device,
    )


async def test_a_ledger_moves_its_keys_to_a_signer_and_back(tmp_path: Path) -> None:
    state, folder, path = tmp_path / "state", tmp_path / "hsm", tmp_path / "s"
    create_keys(state)
    slot(folder, "r1"), slot(folder, "l1")
    with serving(path, folder):
        device = SignerSocket(path, 5)
        ledger = opened(state, device)
        await ledger.record(RefundJudge("a", signer=ledger.signer))
        with pytest.raises(BackendError, match="No such file"):
            await ledger.change_key(Rotation(purpose=Purpose.RECEIPT, key_id="r9", by="local"))
        device._failed_at = float("-inf")
        await ledger.change_key(Rotation(purpose=Purpose.RECEIPT, key_id="r1", by="local"))
        await ledger.change_key(Rotation(purpose=Purpose.LOG, key_id="l1", by="local"))
        await ledger.record(RefundJudge("b", signer=ledger.signer))
        ledger.close()
        held = json.loads((state / "keys/receipt.key").read_text())
        assert (held["key_id"], "d" in held) == ("r1", False)
        with pytest.raises(ConfigError, match="held by a signer process"):
            opened(state, None)
        ledger = opened(state, device)
        await ledger.record(RefundJudge("c", signer=ledger.signer))
        await ledger.change_key(Rotation(purpose=Purpose.RECEIPT, key_id="", by="local"))
        await ledger.record(RefundJudge("d", signer=ledger.signer))
        ledger.close()
    with SqliteReader(state) as reader:
        report = audit(
            reader.audit_input(),
            origin=ORIGIN,
            receipt_keys=load_public_keys(state),
            log_keys=load_log_keys(state),
        )
    assert report.problems == ()


async def test_a_dead_signer_records_nothing_and_a_returned_one_goes_on(tmp_path: Path) -> None:
    state, folder, path = tmp_path / "state", tmp_path / "hsm", tmp_path / "s"
    create_keys(state)
    slot(folder, "r1")
    device = SignerSocket(path, 5)
    with serving(path, folder):
        ledger = opened(state, device)
        await ledger.change_key(Rotation(purpose=Purpose.RECEIPT, key_id="r1", by="local"))
        permit = await ledger.record(RefundJudge("a", signer=ledger.signer))
        kept = (folder / "r1.pem").read_bytes()
        (folder / "r1.pem").unlink()
        slot(folder, "r1")  # another key under the same name: its signatures are not the log's
        ledger.record_outcome(permit.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
        for _ in range(3):
            device._failed_at = float("-inf")
            with pytest.raises(BackendError, match="signer") as raised:
                await ledger.record(RefundJudge("b", signer=ledger.signer))
            assert raised.value.reason is Reason.STORE_UNAVAILABLE
        assert (ledger.size, ledger.healthy) == (2, False)
        (folder / "r1.pem").write_bytes(kept)
        device._failed_at = float("-inf")
        assert ledger.healthy
        again = await ledger.record(RefundJudge("c", signer=ledger.signer))
        assert (again.index, ledger.size) == (3, 4)  # the outcome that had waited came first
        (folder / "r1.pem").unlink()
        ledger.record_outcome(again.entry.receipt_id, OutcomeStatus.EXECUTED, 200, delivered=True)
        ledger.close()  # the outcome is not signed: nobody may take the permit for executed or not sent
        device._failed_at = float("-inf")
        with pytest.raises(BackendError):
            opened(state, device)
        (folder / "r1.pem").touch(0o600)
        (folder / "r1.pem").write_bytes(kept)
        device._failed_at = float("-inf")
        ledger = opened(state, device)
        ledger.close()
    with SqliteReader(state) as reader:
        assert [row.reason for row in reader.export()][-1] == "unknown"


# --- the server ---


def test_sg1_strangers_get_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slot(tmp_path / "hsm", "r1")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with serving(tmp_path / "s", tmp_path / "hsm") as server:
        server.users = frozenset({4242})
        with pytest.raises(BackendError, match="the signer at"):
            SignerSocket(tmp_path / "s", 5).signer("r1", None)
        server.users = frozenset({4242, os.getuid()})
        monkeypatch.undo()
        assert SignerSocket(tmp_path / "s", 5).signer("r1", None).sign(b"abc")


@pytest.mark.parametrize("name", ["../hsm/r1", "r1/../r1", ".r1", "", "a" * 65, "r1\x00"])
def test_sg2_a_name_that_is_no_name_signs_nothing(tmp_path: Path, name: str) -> None:
    slot(tmp_path / "hsm", "r1")
    with serving(tmp_path / "s", tmp_path / "hsm"), pytest.raises(BackendError):
        SignerSocket(tmp_path / "s", 5).signer(name, None)


@pytest.mark.parametrize(
    "line",
    [b"[" * 60_000, b"[]", b"1", b'{"ask": [], "key_id": {}}', b"\xff"],
    ids=lambda line: str(line[:9]),
)
def test_what_is_no_question_is_an_error_and_the_next_one_is_answered(tmp_path: Path, line: bytes) -> None:
    slot(tmp_path / "hsm", "r1")
    with serving(tmp_path / "s", tmp_path / "hsm"), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(tmp_path / "s"))
        sock.sendall(line + b"\n" + b'{"ask": "public", "key_id": "r1"}\n')
        with sock.makefile("rb") as file:
            assert b"error" in file.readline() and b'"x"' in file.readline()


def test_who_hangs_up_leaves_no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slot(tmp_path / "hsm", "r1")
    with serving(tmp_path / "s", tmp_path / "hsm") as server:
        ours, theirs = socket.socketpair()
        ours.sendall(b"{}\n" * 9)
        ours.close()
        server.process_request_thread(theirs, "")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["hsm/r1.pem", "hsm", "busy"])
def test_sg3_what_is_no_socket_that_nobody_serves_is_left_there(tmp_path: Path, name: str) -> None:
    slot(tmp_path / "hsm", "r1")
    key = (tmp_path / "hsm/r1.pem").read_bytes()
    with serving(tmp_path / "busy", tmp_path / "hsm"):
        with pytest.raises(ConfigError, match=name):
            SignerServer(tmp_path / name, tmp_path / "hsm", frozenset())
        assert SignerSocket(tmp_path / "busy", 60).signer("r1", None).sign(b"abc")
    assert (tmp_path / "hsm/r1.pem").read_bytes() == key
    with serving(tmp_path / "busy", tmp_path / "hsm"):  # left behind, and nobody's
        assert SignerSocket(tmp_path / "busy", 60).signer("r1", None).sign(b"abc")


def test_a_signer_without_its_folder_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hms: no such folder"):
        SignerServer(tmp_path / "s", tmp_path / "hms", frozenset())
    assert not (tmp_path / "s").exists()


def test_sg2_a_key_that_others_may_read_signs_nothing(tmp_path: Path) -> None:
    slot(tmp_path / "hsm", "r1")
    (tmp_path / "hsm/r1.pem").chmod(0o644)
    with serving(tmp_path / "s", tmp_path / "hsm"), pytest.raises(BackendError, match="others can read"):
        SignerSocket(tmp_path / "s", 5).signer("r1", None)


def test_the_command_signs_with_keys_that_openssl_made(tmp_path: Path) -> None:
    folder, path = tmp_path / "hsm", tmp_path / "s"
    folder.mkdir(mode=0o700)
    made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(folder / "r1.pem")]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl")
    (folder / "r1.pem").chmod(0o600)
    import sys

    run = [sys.executable, "-m", "holdgate", "signer", str(folder), "--listen", str(path)]
    with subprocess.Popen(run, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert SignerSocket(path, 10).signer("r1", None).sign(b"abc")
        process.kill()
