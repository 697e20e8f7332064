"""An instance whose CA is constrained to mapped hosts: what agents get, and a rotation while they work."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdgate.adapters.ca import create_ca
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

pytestmark = pytest.mark.slow

NAMES = ("api.stripe.com", "amazonaws.com", "fhir.example.org", "slack.com", "api.openai.com")


@pytest.fixture(scope="module")
def gate(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """api.anthropic.com is mapped, and the CA does not cover it: its map came after the CA."""
    instance = Instance(
        tmp_path_factory.mktemp("gate"), connect_to=vendors.connect_to(), extra="ca: {constrain: true}"
    )
    shutil.rmtree(instance.state_dir / "ca")
    create_ca(instance.state_dir, "demo", names=NAMES)
    with instance:
        yield instance


def connect(gate: Instance, name: str) -> tuple[int, str, dict[str, str]]:
    """What a CONNECT is answered: status, reason phrase, headers in lower case."""
    host, _, port = gate.proxy.rpartition(":")
    agent = http.client.HTTPConnection(host, int(port), timeout=60)
    agent.request("CONNECT", f"{name}:443", headers={"Host": f"{name}:443"})
    answer = agent.getresponse()
    found = answer.status, answer.reason, {name.lower(): value for name, value in answer.getheaders()}
    agent.close()
    return found


def refund(gate: Instance, roots: bytes) -> str:
    """The decision on one refund, by an agent that trusts only `roots`; or the name of its TLS error."""
    context = ssl.create_default_context(cadata=roots.decode())
    host, _, port = gate.proxy.rpartition(":")
    agent = http.client.HTTPSConnection(host, int(port), context=context, timeout=60)
    agent.set_tunnel("api.stripe.com", 443)
    try:
        agent.request(
            "POST",
            "/v1/refunds",
            body="payment_intent=pi_1&amount=99999999",
            headers={"Authorization": "Bearer sk_1", "Content-Type": "application/x-www-form-urlencoded"},
        )
        return str(agent.getresponse().headers["Holdgate-Decision"]).partition(";")[0]
    except ssl.SSLCertVerificationError:
        return "not believed"
    finally:
        agent.close()


@pytest.mark.parametrize(
    "name",
    ["example.com", "sqs.eu-west-1.amazonaws.com", "api.anthropic.com", "10.0.0.7", "API.stripe.com.evil"],
    ids=["unmapped", "unmapped, below a permitted name", "mapped after the CA was made", "an address",
         "a look-alike"],
)  # fmt: skip
def test_connect_to_a_name_that_agents_would_not_believe_is_refused_with_a_receipt(
    gate: Instance, vendors: StandIns, name: str
) -> None:
    before = {vendor: vendors.counts(vendor) for vendor in vendors.ports}
    status, phrase, headers = connect(gate, name)
    assert status == 403
    assert phrase.startswith("Holdgate SILENCE rcpt_")
    assert "reason=unknown_destination" in headers["holdgate-decision"]
    assert headers["holdgate-receipt"].count(".") == 2
    assert all((vendors.counts(vendor) - before[vendor]).nothing for vendor in vendors.ports)


@pytest.mark.parametrize("name", ["api.stripe.com", "API.Stripe.com", "b.s3.eu-west-1.amazonaws.com"])
def test_connect_to_a_mapped_name_is_answered_as_ever(gate: Instance, name: str) -> None:
    assert connect(gate, name)[0] == 200


def test_an_agent_that_asks_for_another_name_in_its_tls_gets_a_receipt_that_says_so(
    gate: Instance, vendors: StandIns
) -> None:
    """As redirected traffic does: no CONNECT could be refused, and no answer would be believed."""
    refused = _refusals(gate)
    before = {vendor: vendors.counts(vendor) for vendor in vendors.ports}
    host, _, port = gate.proxy.rpartition(":")
    context = ssl.create_default_context(cafile=str(gate.state_dir / "ca" / "ca.pem"))
    with socket.create_connection((host, int(port)), timeout=60) as plain:
        plain.sendall(b"CONNECT api.stripe.com:443 HTTP/1.1\r\nHost: api.stripe.com:443\r\n\r\n")
        assert plain.recv(4096).startswith(b"HTTP/1.1 200")
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
            context.wrap_socket(plain, server_hostname="evil.example")
    assert until(lambda: _refusals(gate) == refused + 1), gate.log
    with urllib.request.urlopen(f"http://{gate.admin}/metrics", timeout=60) as answer:
        assert b'holdgate_unmapped_total{host="evil.example"} 1.0' in answer.read()
    assert all((vendors.counts(vendor) - before[vendor]).nothing for vendor in vendors.ports)


def _refusals(gate: Instance) -> int:
    return _step(gate, "receipts", "list", "--limit", "1000", "--json").count('"unknown_destination"')


def until(holds: Callable[[], bool]) -> bool:
    """Whether it came true in time: what is waited for is in another process and has no event of its own."""
    deadline = time.monotonic() + 60
    while not (held := holds()) and time.monotonic() < deadline:
        pass
    return held


def test_a_map_that_came_after_the_ca_is_named_at_start(gate: Instance) -> None:
    assert "does not cover api.anthropic.com" in gate.log
    assert "holdgate ca rotate" in gate.log


def _step(gate: Instance, *words: str) -> str:
    done = subprocess.run(gate.command(*words), capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_sighup_takes_the_ca_that_the_operator_switched_to_and_agents_never_notice(
    gate: Instance, tmp_path: Path
) -> None:
    published = gate.state_dir / "ca" / "ca.pem"
    old = published.read_bytes()
    _step(gate, "ca", "rotate")
    both = published.read_bytes()
    assert [refund(gate, roots) for roots in (old, both)] == ["DENY", "DENY"]
    _step(gate, "ca", "switch", "--now")
    assert [refund(gate, roots) for roots in (old, both)] == ["DENY", "DENY"], "nobody told the instance yet"
    os.kill(gate.pid, signal.SIGHUP)
    deadline = time.monotonic() + 60  # the reload is in another process, and takes a second or more
    while refund(gate, old) != "not believed":
        assert refund(gate, both) == "DENY"
        assert time.monotonic() < deadline, gate.log
    assert refund(gate, both) == "DENY"
    _step(gate, "ca", "retire", "--now")
    new = published.read_bytes()
    assert [refund(gate, roots) for roots in (old, both, new)] == ["not believed", "DENY", "DENY"]
    # The new one was made for the maps as they are now.
    assert connect(gate, "api.anthropic.com")[0] == 200
    states = json.loads(_step(gate, "ca", "list", "--json"))
    assert [state["standing"] for state in states] == ["signing"]
    assert "api.anthropic.com" in states[0]["permitted"]
