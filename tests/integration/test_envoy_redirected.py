"""Envoy as agents meet it: their TCP is redirected to it (nft), they know of no proxy; curl, unmodified."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from attack.arena import OUTSIDE
from attack.network import CAN, network_of_its_own, redirect
from envoys import Envoy, gate_for_envoy, generate, program
from holdgate.demo.instance import Instance
from ports import free_port
from rawserver import RawServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.checkout,
    pytest.mark.skipif(not CAN and "CI" not in os.environ, reason="needs root, ip and nft"),
]


@dataclass
class Lab:
    gate: Instance
    vendor: RawServer

    def curl(self, port: int, amount: int, charge: str) -> subprocess.CompletedProcess[str]:
        url = (
            f"https://api.stripe.com:{port}/v1/refunds"
            if port != 443
            else "https://api.stripe.com/v1/refunds"
        )
        command = ["curl", "-sS", "-i", "--http1.1", "--noproxy", "*", "--max-time", "20"]
        command += ["--cacert", str(self.gate.state_dir / "ca" / "ca.pem")]
        command += ["--resolve", f"api.stripe.com:{port}:{OUTSIDE}", "-u", "sk_test_1:"]
        command += ["-d", f"amount={amount}&payment_intent={charge}", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if program() is None:
        pytest.skip("envoy is not installed")  # test_envoy.py says whether that is a failure
    folder: Path = tmp_path_factory.mktemp("redirected")
    with network_of_its_own(), RawServer() as vendor:
        gate = gate_for_envoy(folder / "gate", {"api.stripe.com:443": vendor.address})
        text = gate.config.read_text()
        gate.config.write_text(text.replace("[127.0.0.1/32]", f"[127.0.0.1/32, {OUTSIDE}/32]"))
        port = free_port()
        with gate:
            generate(gate, folder / "out", "--listen", f"0.0.0.0:{port}", "--redirected")
            redirect(f"127.0.0.1:{port}")
            with Envoy(folder / "out" / "envoy.yaml", port) as envoy:
                assert envoy.address[1] == port
                yield Lab(gate, vendor)


def test_a_client_that_knows_of_no_proxy_is_held(lab: Lab) -> None:
    done = lab.curl(443, 500, "pi_1")
    assert "HTTP/1.1 200 OK" in done.stdout and "PERMIT;id=" in done.stdout, done.stdout + done.stderr
    assert [each.body for each in lab.vendor.requests] == [b"amount=500&payment_intent=pi_1"]
    refused = lab.curl(443, 200_000, "pi_2")
    assert "HTTP/1.1 403 " in refused.stdout and "deny_rule" in refused.stdout
    assert len(lab.vendor.requests) == 1


def test_another_port_than_443_is_closed(lab: Lab) -> None:
    before = len(lab.vendor.requests), lab.vendor.connections
    assert lab.curl(8443, 500, "pi_3").returncode != 0
    with socket.create_connection((OUTSIDE, 80), timeout=60) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\nHost: api.stripe.com\r\n\r\n")
        try:
            assert stream.recv(100) == b""
        except ConnectionError:
            pass
    assert (len(lab.vendor.requests), lab.vendor.connections) == before
