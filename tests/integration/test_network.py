"""`holdgate network` in a lab of namespaces: what an agent behind an interface tries, counted upstream.

The agent is root in its own namespace. `escaped` is the number of packets that arrived in the internet.
"""

from __future__ import annotations

import resource
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


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def gate(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    made = Gate(
        lab.gate_ns,
        tmp_path_factory.mktemp("gate"),
        listen=LISTEN,
        agent='{source: [10.77.1.2/32, "fd77:1::2/128"]}',
        more="network: {interfaces: [a1]}",
    )
    shutil.copy(made.ca, lab.ca)
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
    assert gate.holdgate("network", "status").returncode == 1


def test_nw1_the_whole_rules_or_the_ones_before_or_no_network(lab: Lab, gate: Gate, tmp_path: Path) -> None:
    """`nft` breaks in every way that it can while the rules are loaded."""
    gate.network("down", "--open")
    real = shutil.which("nft")
    broken = tmp_path / "nft"

    def up() -> subprocess.CompletedProcess[str]:
        return gate.holdgate("network", "up", env={"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"})

    # The second script does not load: at a first start that leaves agents without network.
    script = f'#!/bin/sh\nif [ "$1" != -f ]; then exec {real} "$@"; fi\nx=$(cat)\n'
    script += f'case "$x" in *redirect?to*) echo "Error: no" >&2; exit 1;; esac\necho "$x" | {real} -f -\n'
    broken.write_text(script)
    broken.chmod(0o755)
    failed = up()
    assert failed.returncode == 2 and "agents have no network" in failed.stderr
    before = lab.escaped()
    assert (
        lab.agent("print(udp(sys.argv[1], 9), tcp(sys.argv[1], 443))", FOREIGN["4"])
        == "TimeoutError TimeoutError"
    )
    assert lab.escaped() == before
    broken.unlink()
    assert up().returncode == 0
    # The same at a reload: what was loaded stays in force, whole.
    broken.write_text(script)
    broken.chmod(0o755)
    failed = up()
    assert failed.returncode == 2 and "were there before are in force" in failed.stderr
    broken.unlink()
    assert gate.network("status").startswith("up:")
    assert "reason=unknown_destination" in lab.curl(
        "--resolve", "evil.test:443:203.0.113.9", "https://evil.test/"
    )
    assert lab.escaped() == before


def test_nw2_a_table_that_somebody_touched_is_not_up(lab: Lab, up: Gate) -> None:
    assert up.network("status").startswith("up:")
    lab.run(up.netns, "nft", "insert", "rule", "inet", "holdgate", "filter_passing", "accept")
    status = up.holdgate("network", "status", "--json")
    assert status.returncode == 1 and '"state": "differs"' in status.stdout
    up.network("up")
    assert up.network("status").startswith("up:")


def test_nw3_down_cuts_off_and_only_open_opens(lab: Lab, up: Gate) -> None:
    before = lab.escaped()
    assert up.network("down").startswith("closed:")
    assert "curl: (28)" in lab.curl(
        "-m", "1", "--resolve", "api.stripe.com:443:203.0.113.9", "https://api.stripe.com/"
    )
    assert up.holdgate("network", "status").returncode == 1
    assert lab.escaped() == before
    up.network("up")


# --- the matrix ---


@pytest.mark.parametrize("row", ROWS)
def test_no_packet_of_an_agent_arrives_in_the_internet(lab: Lab, up: Gate, row: str) -> None:
    before = lab.escaped()
    said = lab.agent(f"print({ROWS[row]})")
    assert lab.escaped() == before, said


def test_tcp_to_any_port_is_redirected_and_ends_with_a_receipt(lab: Lab, up: Gate) -> None:
    for host in FOREIGN.values():
        assert lab.agent("print(tcp(sys.argv[1], 22))", host) == "answered b''", "closed, by us"
    listed = up.holdgate("receipts", "list", "--json").stdout
    assert listed.count("unsupported_protocol") >= 2


@pytest.mark.parametrize("host", FOREIGN.values(), ids=["IPv4", "IPv6"])
def test_quic_is_refused_at_once(lab: Lab, up: Gate, host: str) -> None:
    script = "t = time.monotonic(); print(udp(sys.argv[1], 443), time.monotonic() - t < 0.5)"
    assert lab.agent(script, host) == "ConnectionRefusedError True"


def test_the_gates_own_ports_are_not_there_for_agents(lab: Lab, up: Gate) -> None:
    """The admin API least of all: whatever the port, the answer is the transparent listener's, or none."""
    admin = up.tell("admin")[0].rpartition(":")[2]
    for port in (admin, "18080", "18443", "15353", "22"):
        for host in ("10.77.1.1", "fd77:1::1"):
            said = lab.agent(GET, host, port)
            assert said.startswith(("answered b'HTTP/1.1 4", "Connection", "TimeoutError")), (port, said)


def test_the_stub_answers_mapped_names_only(lab: Lab, up: Gate) -> None:
    before = lab.escaped()
    for name in ("api.stripe.com", "bucket.s3.eu-west-1.amazonaws.com"):
        assert lab.agent(ASK, name) == "['198.51.100.1', '2001:db8::1']"
    assert "not known" in lab.agent(ASK, "c2VjcmV0.evil.test", check=False)
    assert lab.escaped() == before
    assert "unknown_destination" in up.holdgate("receipts", "list", "--json").stdout


@pytest.mark.parametrize("version", ["-4", "-6"])
def test_a_client_without_any_setting_is_held_and_served(lab: Lab, up: Gate, version: str) -> None:
    a_client_is_held_and_served(lab, up, version)


# --- while things break ---


def test_a_connection_from_before_the_rules_is_cut_by_them(lab: Lab, gate: Gate) -> None:
    assert packets_after_rules(lab, gate) == 0


def test_no_packet_slips_through_while_rules_are_replaced(lab: Lab, up: Gate, tmp_path: Path) -> None:
    """Hundreds of reloads under a flood: a packet meets the old rules or the new ones."""
    assert packets_past_reloads(lab, up, tmp_path, lambda: None) == 0


def test_a_gate_that_was_killed_leaves_agents_without_network(lab: Lab, up: Gate) -> None:
    before = lab.escaped()
    up.tell("kill")
    try:
        assert lab.agent(
            "print(tcp('203.0.113.9', 443), udp('203.0.113.53', 53, question('api.stripe.com')))"
        ) in (
            "ConnectionRefusedError ConnectionRefusedError",
            "ConnectionRefusedError TimeoutError",
        )
        lab.agent("print(udp('203.0.113.9', 9, wait=.2))")
        assert lab.escaped() == before
    finally:
        up.tell("start")
    assert "HTTP/1.1 200 " in lab.curl(*refund(up, 108)), "and the proxy, when it is back"
    assert lab.escaped() == before


def test_a_full_disk_is_silence_and_no_packet(lab: Lab, up: Gate) -> None:
    pid = int(up.tell("pid")[0])
    before, seen = lab.escaped(), up.tell()
    # No file may grow: for the ledger the same as no space left, and nobody else's disk is filled.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        answer = lab.curl(*refund(up, 109))
        assert "Holdgate-Decision: SILENCE;reason=store_unavailable" in answer, answer
        lab.agent("udp('203.0.113.9', 9, wait=.2), tcp('203.0.113.9', 22)")
        assert up.tell() == seen and lab.escaped() == before
    finally:
        up.tell("kill")
        up.tell("start")
    assert "HTTP/1.1 200 " in lab.curl(*refund(up, 110))
