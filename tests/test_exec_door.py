"""adapters/exec_door.py: who may hand in sockets, as whom they are served, and for how long."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from holdgate.adapters.exec_door import DOOR, ExecDoor, door_address


@dataclass
class House:
    """A door, and what came through it."""

    folder: Path
    served: list[tuple[str, str]] = field(default_factory=list)
    udp: list[socket.socket] = field(default_factory=list)
    door: ExecDoor = field(init=False)

    def __post_init__(self) -> None:
        self.door = ExecDoor(
            state_dir=self.folder,
            agents=("ann", "bob"),
            explicit_port=8080,
            ports=lambda: (80, 443),
            serve=self._serve,
            dns_udp=self.udp.append,
            end_udp=lambda sock: sock.close(),
        )

    def _serve(self, kind: str, agent: str) -> Any:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.served.append((kind, agent))
            writer.write(f"{kind} {agent}".encode())
            writer.close()

        return answer


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    made.door.open()
    yield made
    await made.door.hang_up()


async def knock(house: House) -> socket.socket:
    directory = os.open(house.folder, os.O_PATH)
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(door_address(directory))
    os.close(directory)
    peer.setblocking(False)
    return peer


async def say(peer: socket.socket, packet: object, *sockets: socket.socket) -> dict[str, Any]:
    data = packet if isinstance(packet, bytes) else json.dumps(packet).encode()
    socket.send_fds(peer, [data], [sock.fileno() for sock in sockets])
    async with asyncio.timeout(60):
        return dict(json.loads(await asyncio.get_running_loop().sock_recv(peer, 9999) or b"{}"))


async def answer_of(sock: socket.socket) -> bytes:
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        said = await reader.read()
        writer.close()
    return said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.parametrize(
    ("become", "why"),
    [
        pytest.param("os.setuid(65534)", "neither root nor the user", id="another user"),
        pytest.param("os.unshare(os.CLONE_NEWUSER)", "another user namespace", id="an agent of exec"),
    ],
)
async def test_ed1_others_are_not_heard(house: House, become: str, why: str) -> None:
    for path in (house.folder / DOOR, (house.folder / DOOR).parent):  # even if the modes were wrong
        path.chmod(0o777)
    script = f"""
import os, socket, sys
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.chdir(sys.argv[1])
{become}
peer.connect("exec.sock")
try:
    peer.send(b'{{"agent": "ann"}}')
except BrokenPipeError:  # refused before it was heard
    pass
print(peer.recv(999).decode())
"""
    for folder in (house.folder, *house.folder.parents[:2]):
        folder.chmod(0o755)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str((house.folder / DOOR).parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert why in done.stdout, done.stdout + done.stderr


async def test_ed3_descriptors_that_nobody_asked_for_are_closed(house: House) -> None:
    peer = await knock(house)
    mine, theirs = os.pipe()
    data = json.dumps({"agent": "nobody"}).encode()
    socket.send_fds(peer, [data], [theirs])
    os.close(theirs)
    async with asyncio.timeout(60):
        assert b"error" in await asyncio.get_running_loop().sock_recv(peer, 9999)
        assert os.read(mine, 1) == b"", "no copy of the other end is open any more"
    os.close(mine)
    peer.close()


async def test_ed2_sockets_are_served_as_the_named_agent_while_the_lifeline_lasts(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer = await knock(house)
        assert await say(peer, {"agent": "bob"}) == {"agent": "bob", "ports": [80, 443], "explicit": 8080}
        kinds = {"sockets": ["transparent", "dns_tcp", "dns"]}
        assert await say(peer, kinds, one, two, udp) == {"serving": True}
        udp.close()
        assert await answer_of(one) == b"transparent bob" and await answer_of(two) == b"dns_tcp bob"
        peer.close()
        async with asyncio.timeout(60):
            while house.door.lifelines:
                await asyncio.sleep(0.01)
        assert house.udp[0].fileno() == -1
        one.setblocking(False)
        client = socket.create_connection(one.getsockname())
        accepted, _ = one.accept()  # nobody else takes it any more: it is ours again
        accepted.close()
        client.close()
    assert house.served == [("transparent", "bob"), ("dns_tcp", "bob")]


@pytest.mark.parametrize(
    ("packets", "said"),
    [
        pytest.param([{"agent": "eve"}], "no agent 'eve'", id="an agent that is not configured"),
        pytest.param([{"agent": None}], "several agents", id="which of several"),
        pytest.param([{"agent": ["ann"]}], "no agent", id="not a name"),
        pytest.param([b"{"], "not JSON", id="not JSON"),
        pytest.param([b"[]"], "not an object", id="not an object"),
        pytest.param([{"agent": "ann"}, {"sockets": ["transparent"]}], "do not agree", id="no descriptor"),
        pytest.param([{"agent": "ann"}, {"sockets": "dns"}], "do not agree", id="not a list"),
        pytest.param([b"x" * 20_000], "too long", id="too long"),
        pytest.param([b"[" * 16_000], "not JSON", id="too deep"),
        pytest.param([b'{"agent": ' + b"[" * 900 + b"]" * 900 + b"}"], "no agent", id="a deep agent"),
        pytest.param([{"agent": "ann"}, {"sockets": [{}]}], "do not agree", id="a kind that is no text"),
    ],
)
async def test_ed3_what_is_not_agreed_ends_that_lifeline_only(
    house: House, packets: list[object], said: str
) -> None:
    other = await knock(house)
    await say(other, {"agent": "ann"})
    peer = await knock(house)
    for packet in packets:
        answer = await say(peer, packet)
    assert said in answer["error"]
    async with asyncio.timeout(60):
        assert await asyncio.get_running_loop().sock_recv(peer, 99) == b""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert await say(other, {"sockets": ["explicit"]}, sock) == {"serving": True}
        assert await answer_of(sock) == b"explicit ann"
    peer.close()
    other.close()


@pytest.mark.parametrize("kind", ["admin", ["dns"], {}, None])
async def test_ed3_sockets_of_a_kind_that_is_not_there_are_refused(house: House, kind: object) -> None:
    peer = await knock(house)
    await say(peer, {"agent": "ann"})
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert "do not agree" in (await say(peer, {"sockets": [kind]}, sock))["error"]
    peer.close()


async def test_a_door_of_a_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / DOOR).parent.mkdir()
    (tmp_path / DOOR).write_text("left behind")
    made = House(tmp_path)
    made.door.open()
    assert (tmp_path / DOOR).stat().st_mode & 0o777 == 0o600
    await made.door.hang_up()
    assert not (tmp_path / DOOR).exists()
