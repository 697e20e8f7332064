"""`network: {mode: tproxy}` in the lab of test_network.py: packets keep their destination, the rest is equal.

The listener is opened by root and handed over; the process that serves has no capability. Users of the
gate's own machine are redirected to the same listener.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import (
    ASK,
    FOREIGN,
    GET,
    ROWS,
    Gate,
    Lab,
    a_client_is_held_and_served,
    an_agent_sends_what_is_counted,
    needs_lab,
    packets_after_rules,
    packets_past_reloads,
    refund,
)

pytestmark = [pytest.mark.slow, needs_lab]

LISTEN = "{explicit: 127.0.0.1:18080, transparent: 0.0.0.0:18443, dns: 0.0.0.0:15353}"
AGENTS = """{source: [10.77.1.2/32, "fd77:1::2/128"]}}
  - {id: local-agent, groups: [demo], match: {user: [nobody]}"""
LOCAL = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        made.start()
        # As wg-quick and some container networks set it: marks count when the kernel checks where from.
        for name in ("rp_filter", "src_valid_mark"):
            made.run(made.gate_ns, "sh", "-c", f"echo 1 >/proc/sys/net/ipv4/conf/all/{name}")
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def gate(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    made = Gate(
        lab.gate_ns,
        tmp_path_factory.mktemp("gate"),
        listen=LISTEN,
        agent=AGENTS,
        more="network: {interfaces: [a1], mode: tproxy}",
    )
    shutil.copy(made.ca, lab.ca)
    lab.ca.chmod(0o644)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def up(gate: Gate) -> Gate:
    gate.network("up")
    return gate


def test_without_rules_the_recorder_sees_what_an_agent_sends(lab: Lab, gate: Gate) -> None:
    an_agent_sends_what_is_counted(lab, gate)


@pytest.mark.parametrize("version", ["-4", "-6"])
def test_a_client_without_any_setting_is_held_and_served(lab: Lab, up: Gate, version: str) -> None:
    a_client_is_held_and_served(lab, up, version)


def test_what_serves_has_no_capability_and_can_gain_none(up: Gate) -> None:
    status = Path(f"/proc/{up.tell('pid')[0]}/status").read_text()
    held = dict(re.findall(r"^(Cap\w+|NoNewPrivs):\s*(\w+)$", status, re.MULTILINE))
    assert held.pop("NoNewPrivs") == "1"
    assert {int(value, 16) for value in held.values()} == {0} and len(held) == 5


def test_packets_are_not_translated(lab: Lab, up: Gate) -> None:
    """What the mode is for: connection tracking knows of no redirect, and the gate of the destination."""
    kept = lab.agent("print(tcp('203.0.113.77', 4711))")
    assert kept == "answered b''", "closed, by us"
    counted = lab.run(up.netns, "nft", "list", "chain", "inet", "holdgate", "redirect_arriving")
    assert "to_stub" in counted and "to_listeners" not in counted
    assert up.holdgate("receipts", "list", "--json").stdout.count("unsupported_protocol") >= 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["https://evil.test/"], "reason=unknown_destination", id="unknown name"),
        pytest.param(
            ["https://api.stripe.com/v1/refunds", "-H", "Host: evil.test", "-d", "amount=1"],
            "reason=identity_mismatch",
            id="Host differs from SNI",
        ),
        pytest.param(
            ["--connect-to", "api.stripe.com:443:203.0.113.7:8443", "https://api.stripe.com/v1/refunds"],
            "Holdgate SILENCE",
            id="Host differs from the port",
        ),
        pytest.param(["http://api.stripe.com/v1/refunds"], "reason=unknown_destination", id="http"),
        pytest.param(["http://10.77.1.1:18443/"], "reason=", id="the listener itself"),
        pytest.param(["-g", "http://[fd77:1::1]:18443/"], "reason=", id="the listener itself, IPv6"),
        pytest.param(["-p", "-x", "http://10.77.1.1:18443", "http://x.test"], "400", id="as a proxy"),
    ],
)
def test_what_is_not_mapped_leaves_nothing_upstream(
    lab: Lab, up: Gate, words: list[str], expected: str
) -> None:
    seen, before = up.tell(), lab.escaped()
    names = [f"{name}:{port}:203.0.113.7" for name in ("evil.test", "api.stripe.com") for port in (80, 443)]
    said = lab.curl(*(word for name in names for word in ("--resolve", name)), *words)
    assert expected in said, said
    assert up.tell() == seen and lab.escaped() == before


def test_the_address_that_the_agent_chose_is_never_dialled(lab: Lab, up: Gate) -> None:
    before = lab.escaped()
    answer = lab.curl("--resolve", "api.stripe.com:443:169.254.169.254", *refund(up, 101))
    assert "HTTP/1.1 200 " in answer and "Holdgate-Decision: PERMIT;" in answer
    assert lab.escaped() == before


def test_no_packet_of_an_agent_arrives_in_the_internet(lab: Lab, up: Gate) -> None:
    before = lab.escaped()
    for row, tried in ROWS.items():
        said = lab.agent(f"print({tried})")
        assert lab.escaped() == before, (row, said)
    for host in FOREIGN.values():
        script = "t = time.monotonic(); print(udp(sys.argv[1], 443), time.monotonic() - t < 0.5)"
        assert lab.agent(script, host) == "ConnectionRefusedError True", "QUIC"


def test_the_gates_own_ports_are_not_there_for_agents(lab: Lab, up: Gate) -> None:
    admin = up.tell("admin")[0].rpartition(":")[2]
    for port in (admin, "18080", "15353", "22"):
        for host in ("10.77.1.1", "fd77:1::1", "10.77.2.1"):
            said = lab.agent(GET, host, port)
            assert said.startswith(("answered b'HTTP/1.1 4", "Connection", "TimeoutError")), (port, said)


def test_the_stub_answers_mapped_names_only(lab: Lab, up: Gate) -> None:
    before = lab.escaped()
    assert lab.agent(ASK, "api.stripe.com") == "['198.51.100.1', '2001:db8::1']"
    assert "not known" in lab.agent(ASK, "c2VjcmV0.evil.test", check=False)
    assert lab.escaped() == before


def test_users_of_this_machine_are_redirected_to_the_same_listener(lab: Lab, up: Gate) -> None:
    before = lab.escaped()

    def curl(*words: str) -> str:
        resolve = ("--resolve", "api.stripe.com:443:203.0.113.7", "--resolve", "evil.test:443:203.0.113.7")
        options = ("-sS", "-i", "-m", "10", "--cacert", str(lab.ca), *resolve)
        return lab.run(up.netns, *LOCAL, "curl", *options, *words, check=False)

    assert "Holdgate-Decision: PERMIT" in curl("https://api.stripe.com/v1/charges")
    assert "reason=unknown_destination" in curl("https://evil.test/")
    assert '"local-agent"' in up.holdgate("receipts", "list", "--json").stdout
    assert lab.escaped() == before
    probe = "tcp('203.0.113.9', 22), udp('203.0.113.9', 9, wait=.1)"
    assert lab.python(up.netns, probe, *LOCAL) == "answered b'' PermissionError"
    assert lab.escaped() == before
    lab.python(up.netns, "tcp('203.0.113.9', 22), udp('203.0.113.9', 9, wait=.1)")
    assert lab.escaped() >= before + 2, "the control: what nobody forces is not diverted, and goes out"


# --- while things break ---


def test_nw1_without_its_route_or_its_rules_there_is_no_network(lab: Lab, gate: Gate, tmp_path: Path) -> None:
    gate.network("down", "--open")
    real = shutil.which("nft")
    broken = tmp_path / "nft"
    script = f'#!/bin/sh\nif [ "$1" != -f ]; then exec {real} "$@"; fi\nx=$(cat)\n'
    script += f'case "$x" in *tproxy*) echo "Error: no" >&2; exit 1;; esac\necho "$x" | {real} -f -\n'
    broken.write_text(script)
    broken.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    failed = gate.holdgate("network", "up", env=path)
    assert failed.returncode == 2 and "agents have no network" in failed.stderr
    before = lab.escaped()
    assert lab.agent("print(tcp(sys.argv[1], 443))", FOREIGN["4"]) == "TimeoutError"
    assert lab.escaped() == before
    gate.network("up")
    failed = gate.holdgate("network", "up", env=path)
    assert failed.returncode == 2 and "were there before are in force" in failed.stderr
    assert gate.network("status").startswith("up:")
    assert "reason=unknown_destination" in lab.curl(
        "--resolve", "evil.test:443:203.0.113.9", "https://evil.test/"
    )
    assert lab.escaped() == before


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param("-4 rule del preference 18503", id="the rule, IPv4"),
        pytest.param("-6 route flush table 18503", id="the route, IPv6"),
    ],
)
def test_nw2_without_the_route_it_is_not_up_and_nothing_passes(lab: Lab, up: Gate, gone: str) -> None:
    lab.run(up.netns, "ip", *gone.split())
    status = up.holdgate("network", "status", "--json")
    assert status.returncode == 1 and '"state": "unrouted"' in status.stdout
    before = lab.escaped()
    assert lab.agent("print(tcp(sys.argv[1], 443))", FOREIGN[gone[1]]) == "TimeoutError"
    assert lab.escaped() == before
    up.network("up")
    assert up.network("status").startswith("up:")


def test_nw3_down_cuts_off_and_open_leaves_nothing_behind(lab: Lab, up: Gate) -> None:
    before = lab.escaped()
    assert up.network("down").startswith("closed:")
    assert lab.agent("print(tcp(sys.argv[1], 443))", FOREIGN["4"]) == "TimeoutError"
    assert lab.escaped() == before
    up.network("down", "--open")
    for family in ("-4", "-6"):
        assert "18503" not in lab.run(up.netns, "ip", family, "rule")
    up.network("up")


def test_a_connection_from_before_the_rules_is_cut_by_them(lab: Lab, gate: Gate) -> None:
    assert packets_after_rules(lab, gate) == 0


def test_no_packet_slips_through_while_rules_are_replaced(lab: Lab, up: Gate, tmp_path: Path) -> None:
    """Hundreds of reloads under a flood: a packet meets the old rules or the new ones."""

    def served() -> None:
        assert "HTTP/1.1 200 " in lab.curl(*refund(up, 117)), "and who is served is not disturbed"

    assert packets_past_reloads(lab, up, tmp_path, served) == 0


def test_a_gate_that_was_killed_leaves_agents_without_network(lab: Lab, up: Gate) -> None:
    before = lab.escaped()
    up.tell("kill")
    try:
        for host in FOREIGN.values():
            assert lab.agent("print(tcp(sys.argv[1], 443))", host) == "ConnectionRefusedError"
        lab.agent("udp('203.0.113.9', 9, wait=.2), udp('203.0.113.53', 53, question('api.stripe.com'))")
        assert lab.escaped() == before
    finally:
        up.tell("start")
    assert "HTTP/1.1 200 " in lab.curl(*refund(up, 108)), "and the proxy, when it is back"
    assert lab.escaped() == before


def test_a_process_that_could_change_the_rules_does_not_serve(up: Gate) -> None:
    refused = up.holdgate("run")
    assert refused.returncode == 2 and "hand 0.0.0.0:18443 over" in refused.stderr
    words = ["ip", "netns", "exec", up.netns, "sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh"]
    command = [*words, *up.command("run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "CAP_NET_ADMIN" in done.stderr
