"""adapters/control.py and adapters/boundary.py's writer: the door for commands on the gate's own host."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evidence import RefundJudge, coverage_details, open_ledger
from holdgate.adapters import control
from holdgate.adapters.control import ControlServer, ask
from holdgate.adapters.forgetting import Forgetter
from holdgate.adapters.keyfiles import load_log_keys, load_public_keys
from holdgate.adapters.sqlite import SqliteReader
from holdgate.errors import BackendError, ConfigError
from holdgate.ledger import AdminNote, Finding, Noted, OutcomeStatus, ReconcileError

NOTE = {"ask": "note", "action": "coverage", "details": coverage_details()}
LIE = NOTE | {"details": coverage_details(closed=False)}


@asynccontextmanager
async def serving(
    folder: Path, ledger: Any, reconciled: Callable[[], None] = lambda: None, **more: Any
) -> AsyncIterator[list[tuple[AdminNote, Noted]]]:
    noted: list[tuple[AdminNote, Noted]] = []
    server = ControlServer(
        folder,
        ledger=ledger,
        status=lambda: {"admin": "127.0.0.1:1"},
        noted=lambda *pair: noted.append(pair),
        reconciled=reconciled,
        forget=partial(Forgetter(lambda: SqliteReader(folder), ledger).forget, by="local"),
        **more,
    )
    await server.start()
    try:
        yield noted
    finally:
        await server.stop()
        ledger.close()


async def asked(folder: Path, question: Any) -> Any:
    return await asyncio.to_thread(ask, folder, question)


async def raw(folder: Path, data: bytes) -> Any:
    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock, control._short(folder / "run" / "control.sock") as name:
            sock.settimeout(60)
            sock.connect(name)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return sock.makefile("rb").read()

    return json.loads(await asyncio.to_thread(talk) or b"null")


async def test_ct3_a_note_is_answered_when_its_receipt_is_durable(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)  # longer than the name of a socket may be
    deep.mkdir()
    ledger = open_ledger(deep)
    async with serving(deep, ledger) as noted:
        answer = await asked(deep, NOTE)
        assert (answer["index"], ledger.size, answer["id"]) == (0, 1, noted[0][1].receipt_id)
        assert noted[0][0].details == coverage_details()
        status = await asked(deep, {"ask": "status"})
        assert status == {"pid": os.getpid(), "admin": "127.0.0.1:1"}
        mode = (deep / "run" / "control.sock").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
    assert ask(deep, NOTE) is None  # nobody listens any more


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\n", id="an empty line"),
        pytest.param(b"[]\n", id="a list"),
        pytest.param(b'"ask"\n', id="a text"),
        pytest.param(b"{}\n", id="no question"),
        pytest.param(b'{"ask": "shutdown"}\n', id="an unknown question"),
        pytest.param(b'{"ask": "note"}\n', id="a note without content"),
        pytest.param(b'{"ask": "note", "action": [], "details": {}}\n', id="an action of another type"),
        pytest.param(b'{"ask": "note", "action": "coverage", "details": []}\n', id="details of another type"),
        pytest.param(b'{"ask": "note", "action": "keys.rotate", "details": {}}\n', id="an unknown action"),
        pytest.param(
            json.dumps(NOTE | {"details": coverage_details(closed=False)}).encode() + b"\n", id="a lie"
        ),
        pytest.param(b"[" * 100_000 + b"\n", id="too large"),
        pytest.param(b"[" * 60_000 + b"\n", id="too deep"),
    ],
)
async def test_ct2_what_is_no_question_writes_nothing(tmp_path: Path, data: bytes) -> None:
    ledger = open_ledger(tmp_path)
    async with serving(tmp_path, ledger) as noted:
        assert "error" in await raw(tmp_path, data)
        assert (ledger.size, noted) == (0, [])
        assert (await asked(tmp_path, NOTE))["index"] == 0


async def test_ct2_a_caller_that_says_nothing_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_DEADLINE_S", 0.05)
    async with serving(tmp_path, open_ledger(tmp_path)):
        with socket.socket(socket.AF_UNIX) as sock, control._short(tmp_path / "run" / "control.sock") as name:
            sock.settimeout(60)
            await asyncio.to_thread(sock.connect, name)
            assert await asyncio.to_thread(sock.recv, 10) == b""


async def test_ct1_another_user_is_refused_whatever_the_file_modes_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path)
    async with serving(tmp_path, ledger) as noted:
        monkeypatch.setattr(control, "_may_ask", lambda uid: uid == os.geteuid() + 1)
        with pytest.raises(BackendError, match=r"^the running process refused: not yours$"):
            await asked(tmp_path, NOTE)
        assert (ledger.size, noted) == (0, [])
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [uid for uid in (0, 999, 1000, 65534, 2**32 - 1) if control._may_ask(uid)] == [0, 1000]


async def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "run" / "control.sock"))
    assert ask(tmp_path, NOTE) is None
    async with serving(tmp_path, open_ledger(tmp_path)):
        assert (await asked(tmp_path, NOTE))["index"] == 0


async def test_a_socket_that_cannot_be_made_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the directory should be")
    ledger = open_ledger(tmp_path)
    with pytest.raises(ConfigError, match="control socket"):
        async with serving(tmp_path, ledger):
            pass
    ledger.close()


async def test_an_order_to_forget_is_carried_out_and_answered(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    async with serving(tmp_path, ledger) as noted:
        recorded = await ledger.record(RefundJudge("a", sealed=True))
        order = {"ask": "forget", "ids": [recorded.entry.receipt_id]}
        first = await asked(tmp_path, order)
        again = await asked(tmp_path, order)
        assert (first["count"], first["out_of_files"], again["count"]) == (1, True, 0)
        assert noted == []
        with SqliteReader(tmp_path) as reader:
            stored = reader.stored(recorded.entry.receipt_id)
        assert stored is not None and not stored.has_salt


@pytest.mark.parametrize(
    "question",
    [
        pytest.param({"ask": "forget"}, id="everything"),
        pytest.param({"ask": "forget", "ids": "rcpt"}, id="ids are no list"),
        pytest.param({"ask": "forget", "ids": [1]}, id="ids are no texts"),
        pytest.param({"ask": "forget", "agent": "a", "before_us": "x"}, id="no time"),
        pytest.param(
            {"ask": "note", "action": "shred", "details": {"count": 1, "agent": "a"}}, id="a claim of it"
        ),
        pytest.param({"ask": "note", "action": "retention", "details": {}}, id="a claim of retention"),
    ],
)
async def test_ct2_an_order_that_is_none_destroys_nothing(tmp_path: Path, question: dict[str, Any]) -> None:
    ledger = open_ledger(tmp_path)
    async with serving(tmp_path, ledger):
        await ledger.record(RefundJudge("a", sealed=True))
        with pytest.raises(BackendError):
            await asked(tmp_path, question)
        assert ledger.size == 1


async def test_ct3_a_finding_is_answered_when_its_receipt_is_durable(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    permit = (await ledger.record(RefundJudge("a"))).entry.receipt_id
    ledger.record_outcome(permit, OutcomeStatus.UNKNOWN, 0, delivered=False)
    finding = {"ask": "reconcile", "of": permit, "found": "not_sent", "note": ""}
    counted: list[int] = []
    async with serving(tmp_path, ledger, lambda: counted.append(ledger.size)):
        with pytest.raises(BackendError, match="not a question"):
            await asked(tmp_path, finding | {"found": "gone"})
        answer = await asked(tmp_path, finding)
        assert (answer["index"], ledger.size) == (2, 3)
        with pytest.raises(BackendError, match="is not_sent, not unknown"):
            await asked(tmp_path, finding)
        assert (ledger.size, counted) == (3, [3])


async def test_a_finding_that_cannot_be_true_yet_is_refused(tmp_path: Path) -> None:
    def check(finding: Finding) -> None:
        raise ReconcileError(f"worker-1 still has {finding.of}")

    ledger = open_ledger(tmp_path)
    permit = (await ledger.record(RefundJudge("a"))).entry.receipt_id
    ledger.record_outcome(permit, OutcomeStatus.UNKNOWN, 0, delivered=False)
    await ledger.record(RefundJudge("b"))  # the outcome is in its commit, or before it
    finding = {"ask": "reconcile", "of": permit, "found": "not_sent", "note": ""}
    async with serving(tmp_path, ledger, check=check):
        with pytest.raises(BackendError, match=f"worker-1 still has {permit}"):
            await asked(tmp_path, finding)
        assert ledger.unknown == 1


@pytest.mark.parametrize("purpose", ["receipt", "log"])
async def test_ct3_a_change_of_keys_is_answered_when_it_has_been_made(tmp_path: Path, purpose: str) -> None:
    ledger = open_ledger(tmp_path)
    before = ledger.signer.kid
    async with serving(tmp_path, ledger) as noted:
        answer = await asked(tmp_path, {"ask": "rotate", "purpose": purpose, "key_id": ""})
        assert (answer["index"], ledger.size, noted) == (0, 1, [])
        assert (ledger.signer.kid != before) == (purpose == "receipt")
        listed = load_public_keys(tmp_path) if purpose == "receipt" else load_log_keys(tmp_path)
        old = next(key.kid for key in listed.values() if key.end_index == 1)
        assert len(listed) == 2
        revoked = await asked(tmp_path, {"ask": "revoke", "kid": old, "from_index": None})
        assert revoked["index"] == 1
        for wrong in (
            {"ask": "rotate", "purpose": "fleet", "key_id": ""},
            {"ask": "rotate", "purpose": purpose, "key_id": 7},
            {"ask": "revoke", "kid": old, "from_index": -1},
            {"ask": "revoke", "kid": old},
        ):
            with pytest.raises(BackendError, match="not a question"):
                await asked(tmp_path, wrong)
        with pytest.raises(BackendError, match="no signer process"):
            await asked(tmp_path, {"ask": "rotate", "purpose": purpose, "key_id": "slot-1"})
        assert ledger.size == 2 and ledger.healthy
