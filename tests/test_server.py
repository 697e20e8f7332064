"""adapters/server.py: a bad start refuses before anything listens; SIGTERM drains; SIGHUP swaps or keeps."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdgate.adapters import server as server_module
from holdgate.adapters.ca import create_ca, load_ca
from holdgate.adapters.ca_rotation import rotate
from holdgate.adapters.fitness import check_ca
from holdgate.adapters.instance import Server
from holdgate.adapters.keyfiles import load_keys
from holdgate.adapters.server import serve
from holdgate.bundle import load_bundle
from holdgate.config import Address, Config, load_config
from holdgate.demo.instance import Instance
from holdgate.errors import ConfigError
from holdgate.note import sign_checkpoint
from holdgate.tlog import EMPTY, leaf_hash
from ports import free_port

STRIPE = "api.stripe.com:443"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `holdgate run` starts from. Made once: every test that breaks something has a copy."""
    folder = tmp_path_factory.mktemp("complete")
    Instance(folder, connect_to={STRIPE: "127.0.0.1:9"})
    return folder


@pytest.fixture
def folder(complete: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete, tmp_path / "gate"))


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """serve() narrows the umask of its process, which here is that of all tests."""
    before = os.umask(0o077)
    os.umask(before)
    yield
    os.umask(before)


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "holdgate", *words, "-c", str(folder / "holdgate.yaml")]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# --- SV1: start ---


def break_a_map(folder: Path) -> None:
    edit(folder / "surfaces/stripe/stripe.yaml", "surface: payments.refund", "surfaces: payments.refund")


def break_a_policy(folder: Path) -> None:
    policy = next((folder / "policies").glob("stripe_refunds.yaml"))
    edit(policy, "params.amount", "params.amuont")


def share_the_receipt_key(folder: Path) -> None:
    (folder / "state/keys/receipt.key").chmod(0o644)


def share_the_ca_key(folder: Path) -> None:
    (folder / "state/ca/ca.key").chmod(0o644)


def lose_the_keys(folder: Path) -> None:
    shutil.rmtree(folder / "state/keys")


def restore_an_old_ledger(folder: Path) -> None:
    # A checkpoint over one receipt, and a ledger that has none.
    tree = EMPTY.append(leaf_hash(b"a receipt"))
    note = sign_checkpoint("holdgate.local/demo", tree, load_keys(folder / "state").log)
    (folder / "state/log").mkdir(exist_ok=True)
    (folder / "state/log/checkpoint").write_bytes(note)


def name_an_unmapped_host(folder: Path) -> None:
    edit(folder / "holdgate.yaml", STRIPE, "api.nowhere.example:443")


def name_a_ca_file_that_is_none(folder: Path) -> None:
    (folder / "roots.pem").write_text("no certificate\n")
    edit(folder / "holdgate.yaml", "upstream:\n", "upstream:\n  ca_file: ./roots.pem\n")


def ask_for_constraints(folder: Path) -> None:
    (folder / "holdgate.yaml").open("a").write("ca: {constrain: true}\n")


def give_away_the_next_ca_key(folder: Path) -> None:
    rotate(folder / "state", "demo", None)
    (folder / "state/ca/next.key").chmod(0o640)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(break_a_map, "stripe.yaml:", id="a map with a mistake"),
        pytest.param(break_a_policy, "stripe_refunds.yaml:", id="a policy with a mistake"),
        pytest.param(share_the_receipt_key, "others can read this key", id="a receipt key for everybody"),
        pytest.param(share_the_ca_key, "ca.key", id="a CA key for everybody"),
        pytest.param(give_away_the_next_ca_key, "next.key", id="the next CA key for everybody"),
        pytest.param(ask_for_constraints, "holdgate ca rotate", id="a CA that is not the one asked for"),
        pytest.param(lose_the_keys, "holdgate init", id="no keys"),
        pytest.param(restore_an_old_ledger, "restored from a backup", id="a ledger behind its checkpoint"),
        pytest.param(name_an_unmapped_host, "holdgate.yaml:", id="connect_to names an unmapped host"),
        pytest.param(name_a_ca_file_that_is_none, "roots.pem", id="no certificates in ca_file"),
    ],
)
def test_sv1_what_is_wrong_at_start_is_a_config_error_and_nothing_ever_listens(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    listening = spy_on_listen(monkeypatch)
    with pytest.raises(ConfigError) as refused:
        asyncio.run(serve(load_config(folder / "holdgate.yaml")))
    assert message in str(refused.value)
    assert listening == []


def spy_on_listen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    addresses: list[Any] = []
    really = socket.socket.listen

    def listen(self: socket.socket, *backlog: int) -> None:
        addresses.append(self.getsockname())
        really(self, *backlog)

    monkeypatch.setattr(socket.socket, "listen", listen)
    return addresses


def test_sv1_a_taken_admin_port_refuses_and_agents_find_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        edit(folder / "holdgate.yaml", "admin: {listen: 127.0.0.1:0", f"admin: {{listen: 127.0.0.1:{port}")
        listening = spy_on_listen(monkeypatch)
        with pytest.raises(ConfigError, match=r"admin\.listen"):
            asyncio.run(serve(load_config(folder / "holdgate.yaml")))
        assert listening == []
    # Nothing was left locked: the same folder starts once the port is free again.
    assert asyncio.run(starts(folder)) is not None


def test_sv1_two_processes_never_share_a_state_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def both() -> None:
        config = load_config(folder / "holdgate.yaml")
        server, work = await start(config)
        listening = spy_on_listen(monkeypatch)
        with pytest.raises(ConfigError, match="another process"):
            await serve(config)
        assert listening == []
        await server.drain()
        await work

    asyncio.run(both())


def test_sv1_a_taken_agent_port_ends_the_process_before_it_is_ready(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        edit(folder / "holdgate.yaml", "explicit: 127.0.0.1:0", f"explicit: 127.0.0.1:{port}")
        done = subprocess.run(command(folder, "run"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "ready" not in done.stdout
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_sv1_the_process_says_file_and_line_and_ends_with_2(folder: Path) -> None:
    break_a_map(folder)
    done = subprocess.run(command(folder, "run"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "stripe.yaml:" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


async def start(config: Config) -> tuple[Server, asyncio.Task[None]]:
    """A server that is ready, and its work. Raises what serve() raised when it never became ready."""
    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    work = asyncio.create_task(serve(config, ready=ready.set_result))
    both: set[asyncio.Future[Any]] = {ready, work}
    await asyncio.wait(both, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        work.cancel()
        await work
    return ready.result(), work


async def starts(folder: Path) -> Address | None:
    """Start, and stop when it is ready; where agents could have reached it."""
    server, work = await start(load_config(folder / "holdgate.yaml"))
    address = server.explicit
    await server.drain()
    await work
    return address


# --- SV2: SIGTERM ---


def test_sv2_a_sigterm_that_comes_during_the_start_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = server_module._open

    async def told_to_stop(server: Server, *more: Any) -> None:
        await opened(server, *more)
        await server.drain()
        await asyncio.sleep(0)  # in which the engine hears it

    async def run() -> None:
        await asyncio.wait_for(serve(load_config(folder / "holdgate.yaml"), ready=ready.append), 60)

    ready: list[Server] = []
    monkeypatch.setattr(server_module, "_open", told_to_stop)
    asyncio.run(run())
    assert ready == []


class Vendor:
    """An upstream that shows when a request has arrived, and answers when it is told to."""

    def __init__(self) -> None:
        vendor, self.arrived, self.go = self, threading.Event(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                vendor.arrived.set()
                vendor.go.wait(20)
                body = b'{"id": "re_1", "object": "refund"}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Vendor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()


def refund(gate: Instance, amount: int = 100) -> tuple[int, str]:
    """One refund by an agent: HTTP status, and the decision header."""
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca/ca.pem"))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"https": f"http://{gate.proxy}"}),
        urllib.request.HTTPSHandler(context=context),
    )
    request = urllib.request.Request(
        "https://api.stripe.com/v1/refunds",
        data=f"payment_intent=pi_1&amount={amount}".encode(),
        headers={"Authorization": "Bearer sk_test_1"},
    )
    try:
        with opener.open(request, timeout=60) as answer:
            return int(answer.status), str(answer.headers["Holdgate-Decision"])
    except urllib.error.HTTPError as error:
        return error.code, str(error.headers["Holdgate-Decision"])


def is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
    except OSError:  # refused, or reset while the listener closes
        return False
    return True


def until(holds: Callable[[], bool]) -> bool:
    """Whether it came true in time: what is waited for is in another process and has no event of its own."""
    deadline = time.monotonic() + 60
    while not (held := holds()) and time.monotonic() < deadline:
        pass
    return held


@pytest.mark.slow
def test_sv2_sigterm_closes_the_listener_first_and_a_held_request_completes(tmp_path: Path) -> None:
    with Vendor() as vendor, ThreadPoolExecutor(2) as pool:
        gate = Instance(tmp_path, connect_to={STRIPE: vendor.address})
        gate.start()
        answer: Future[tuple[int, str]] = pool.submit(refund, gate)
        assert vendor.arrived.wait(20)
        stopped = pool.submit(gate.stop)
        assert until(lambda: not is_open(gate.proxy)), "no new agent is let in"
        assert not stopped.done(), "the process waits for what it holds"
        vendor.go.set()
        status, decision = answer.result(20)
        assert (status, decision.partition(";")[0]) == (200, "PERMIT")
        assert stopped.result(20) == 0
    audit = subprocess.run(gate.command("log", "audit", "--json"), capture_output=True, text=True, timeout=60)
    assert json.loads(audit.stdout)["clean"] is True, audit.stdout
    exported = subprocess.run(gate.command("receipts", "export"), capture_output=True, text=True, timeout=60)
    receipts = [json.loads(line)["receipt"] for line in exported.stdout.splitlines()]
    assert [receipt.get("status") for receipt in receipts if receipt["type"] == "outcome"] == ["executed"]


@pytest.fixture
def idle() -> Any:
    """A Server around stand-ins that hold one request for ever."""
    said: list[str] = []

    async def hang_up() -> None:
        said.append("no namespace is served any more")

    engine = SimpleNamespace(
        options=SimpleNamespace(update=lambda **to: said.append(f"update {to}")),
        shutdown=lambda: said.append("shutdown"),
    )
    parts: dict[str, Any] = {
        "config": SimpleNamespace(limits=SimpleNamespace(hold_s=-5.0)),
        "pipeline": SimpleNamespace(in_flight=1),
        "addon": SimpleNamespace(busy=False),
        "engine": engine,
        "door": SimpleNamespace(hang_up=hang_up),
        "handed": (),
        "serving": [SimpleNamespace(close=lambda: said.append("no socket of others' is accepted on"))],
        **dict.fromkeys(("ledger", "metrics", "proxy", "admin", "agent_tls", "boundary", "stub", "facts")),
    }
    made: Any = Server(**parts)
    made.said = said
    return made


async def test_sv2_draining_ends_with_the_hold_deadline_whatever_is_held(idle: Any) -> None:
    await idle.drain()
    first, *rest = idle.said
    assert first == "update {'server': False}"
    assert rest == [
        "no socket of others' is accepted on",
        "no namespace is served any more",
        "shutdown",
    ]


async def test_sv2_a_second_signal_changes_nothing(idle: Any) -> None:
    await idle.drain()
    await idle.drain()
    assert idle.said.count("shutdown") == 1


# --- the CA at start ---


def test_a_ca_about_to_end_and_a_map_it_does_not_cover_are_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(folder / "holdgate.yaml")
    bundle = load_bundle(config.surfaces, config.policies)
    shutil.rmtree(folder / "state/ca")
    soon = datetime.now(UTC) - timedelta(days=3650 - 20)
    authority = create_ca(folder / "state", "demo", names=("api.stripe.com", "slack.com"), now=soon)
    check_ca(config, authority, bundle)
    assert "the CA ends in 19 days" in caplog.text
    assert "does not cover api.anthropic.com, api.openai.com" in caplog.text
    assert "stripe" not in caplog.text


def test_while_a_rotation_to_a_constrained_ca_lasts_the_old_one_may_sign(folder: Path) -> None:
    ask_for_constraints(folder)
    config = load_config(folder / "holdgate.yaml")
    bundle = load_bundle(config.surfaces, config.policies)
    with pytest.raises(ConfigError, match="not constrained"):
        check_ca(config, load_ca(config.state_dir), bundle)
    rotate(config.state_dir, "demo", ("api.stripe.com",))
    check_ca(config, load_ca(config.state_dir), bundle)


# --- SV3: SIGHUP ---


@pytest.mark.slow
def test_sv3_sighup_swaps_the_bundle_or_keeps_it(tmp_path: Path) -> None:
    with Vendor() as vendor:
        vendor.go.set()
        with Instance(tmp_path, connect_to={STRIPE: vendor.address}) as gate:
            first = policy_of(refund(gate))
            policy = tmp_path / "policies/stripe_refunds.yaml"
            sound = policy.read_text()
            policy.write_text(sound + "  nonsense: 1\n")
            os.kill(gate.pid, signal.SIGHUP)
            assert until(lambda: is_open(gate.admin) and "reload refused" in gate.log)
            assert f"{first} stays active" in gate.log
            assert policy_of(refund(gate, 101)) == first, "a bundle that does not load changes nothing"
            policy.write_text(sound.replace("small: 10000", "small: 10"))
            os.kill(gate.pid, signal.SIGHUP)
            amounts = iter(range(200, 9000))
            assert until(lambda: refund(gate, next(amounts))[1].startswith("SILENCE"))
            assert policy_of(refund(gate, 102)) != first
            # The CA is part of it: a new map does not become active when the CA cannot be read.
            second = policy_of(refund(gate, 103))
            (tmp_path / "state/ca/ca.key").chmod(0o644)
            policy.write_text(sound)
            refusals = gate.log.count("reload refused")
            os.kill(gate.pid, signal.SIGHUP)
            assert until(lambda: gate.log.count("reload refused") > refusals)
            assert policy_of(refund(gate, 104)) == second


def policy_of(answer: tuple[int, str]) -> str:
    return answer[1].partition('policy="')[2].partition('"')[0]


# --- listeners ---


async def test_sv3_what_was_read_first_never_becomes_active_last(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two signals in a row: the first load takes longer than the second."""
    active: list[str] = []
    turns = iter(("first", "second"))

    async def load(self: Server, authority: object) -> None:
        mine = next(turns)
        for _ in range(10 if mine == "first" else 1):
            await asyncio.sleep(0)
        active.append(mine)

    monkeypatch.setattr("holdgate.adapters.instance.load_ca", lambda state_dir: None)
    monkeypatch.setattr(Server, "_reload_files", load)
    monkeypatch.setattr(Server, "_vouch", lambda self, authority: None)
    idle.config.state_dir, idle.pipeline.bundle = None, SimpleNamespace(digest="", revision=0)
    await asyncio.gather(idle.reload(), idle.reload())
    assert active == ["first", "second"]


def test_listeners_may_be_ipv6_and_redirect_targets_have_both_versions(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = free_port()
    gate = Instance(tmp_path, connect_to={}, transparent=True)
    gate.config.write_text(
        gate.config.read_text().replace("explicit: 127.0.0.1:0", f'explicit: "[::1]:{port}"')
    )
    with gate:
        redirected = int(gate.addresses["transparent"].rpartition(":")[2])
        for host, there in (("::1", port), ("127.0.0.1", redirected), ("::1", redirected)):
            socket.create_connection((host, there), timeout=60).close()
