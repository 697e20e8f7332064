"""`holdgate doctor --prove` in a laboratory of three namespaces: agent, gate, the internet with the witness.

With the rules, everything is closed. Then one hole at a time: its row is open, and exit code, readiness and
receipt say so. A doctor that cannot find a hole that is there has no say about those that are not.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdgate.adapters.control import ask
from holdgate.demo.instance import Instance
from holdgate.escape import REQUIRED

PID = os.getpid() % 100_000
AGENT, GATE, INET = f"hda{PID}", f"hdg{PID}", f"hdi{PID}"
TOOLS = ("ip", "nft", "setpriv", "sysctl", "curl")
PYTHON = "/usr/bin/python3"
CAN = os.geteuid() == 0 and all(map(shutil.which, TOOLS)) and Path(PYTHON).exists()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAN, reason=f"needs root, {PYTHON} and {', '.join(TOOLS)}"),
]

RULES = """
flush ruleset
table inet holdgate {{
  chain pre {{
    type nat hook prerouting priority dstnat; policy accept;
    {before}
    iifname "a1" ip daddr 10.77.1.1 tcp dport 18080 accept
    iifname "a1" meta nfproto ipv4 meta l4proto tcp redirect to :18443
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    iifname "i1" accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
    {input}
    ct state established,related accept
    iifname "a1" tcp dport 18443 ct status dnat accept
    iifname "a1" tcp dport 18080 accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    {forward}
    iifname "i1" ct state established,related accept
  }}
}}
"""
LISTEN = "listen: {explicit: 10.77.1.1:18080, transparent: 0.0.0.0:18443}"
ADMIN = "admin: {listen: 10.77.1.1:19090, open: [metrics, checkpoint]}"


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, **options)  # type: ignore[call-overload,no-any-return]


@dataclass
class Lab:
    gate: Instance
    process: subprocess.Popen[str] | None = None

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", GATE, *self.gate.command(*words)]

    def start(self) -> None:
        self.process = subprocess.Popen(self.command("run"), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert "ready" in [line.strip() for line in iter(self.process.stdout.readline, "ready\n")] + ["ready"]

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=60)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def rules(self, *, before: str = "", input: str = "", forward: str = "") -> None:
        text = RULES.format(before=before, input=input, forward=forward)
        subprocess.run(["ip", "netns", "exec", GATE, "nft", "-f", "-"], input=text, text=True, check=True)

    def prove(self, *words: str) -> tuple[int, dict[str, dict[str, str]], str]:
        agent = f"ip netns exec {AGENT} setpriv --reuid=65534 --regid=65534 --clear-groups {PYTHON} -"
        done = run(
            *self.command("doctor", "--prove", "--json", "--timeout", "1", "--probe-at", agent),
            *("--witness", "10.77.2.2,fd77:2::2", "--witness-at", f"ip netns exec {INET} {PYTHON} -"),
            *words,
        )
        assert done.stdout, done.stderr
        return done.returncode, {row["id"]: row for row in json.loads(done.stdout)}, done.stderr

    def ready(self) -> tuple[int, str]:
        url = "http://10.77.1.1:19090/readyz"
        done = run("ip", "netns", "exec", GATE, "curl", "-s", "-w", " %{http_code}", "-m", "5", url)
        body, _, code = done.stdout.rpartition(" ")
        return int(code), body

    def receipt(self) -> dict[str, object]:
        listed = run(*self.command("receipts", "list", "--limit", "1", "--json"))
        (row,) = json.loads(listed.stdout)["receipts"]
        verified = run(*self.command("verify", "-"), input=row["jws"])
        assert verified.stdout.startswith("ok rcpt_") and " admin coverage" in verified.stdout
        return dict(row["receipt"])


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def wire(one: str, in_one: str, other: str, in_other: str, number: int) -> None:
    ip("link", "add", one, "netns", in_one, "type", "veth", "peer", "name", other, "netns", in_other)
    for place, name, host in ((in_one, one, 2), (in_other, other, 1)):
        ip("-n", place, "addr", "add", f"10.77.{number}.{host}/24", "dev", name)
        ip("-n", place, "addr", "add", f"fd77:{number}::{host}/64", "dev", name, "nodad")
        ip("-n", place, "link", "set", name, "up")
    ip("-n", in_one, "route", "add", "default", "via", f"10.77.{number}.1")
    ip("-n", in_one, "-6", "route", "add", "default", "via", f"fd77:{number}::1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    places = (AGENT, GATE, INET)
    names = Path("/etc/netns") / AGENT
    made: Lab | None = None
    try:
        for place in places:
            ip("netns", "add", place)
            ip("-n", place, "link", "set", "lo", "up")
        names.mkdir(parents=True)
        (names / "resolv.conf").write_text("nameserver 10.77.1.1\n")
        wire("a0", AGENT, "a1", GATE, 1)
        wire("i0", INET, "i1", GATE, 2)
        ping = "net.ipv4.ping_group_range=0 2147483647"  # else the kernel refuses, and ICMP is never sent
        run("ip", "netns", "exec", AGENT, "sysctl", "-qw", ping).check_returncode()
        on = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        run("ip", "netns", "exec", GATE, "sysctl", "-qw", *on).check_returncode()
        agents = "  - {id: lab-agent, match: {source: [10.77.1.2/32]}}"
        gate = Instance(
            tmp_path_factory.mktemp("lab"), connect_to={}, agents=agents, extra="doctor: {required: all}"
        )
        text = re.sub("(?m)^listen: .*$", LISTEN, gate.config.read_text())
        text = re.sub("(?m)^upstream:\n  connect_to:\n\n", "", re.sub("(?m)^admin: .*$", ADMIN, text))
        gate.config.write_text(text)
        made = Lab(gate)
        made.rules()
        made.start()
        yield made
    finally:
        if made is not None:
            made.stop()
        for place in places:
            subprocess.run(["ip", "netns", "del", place], check=False)
        shutil.rmtree(names, ignore_errors=True)


def states(rows: dict[str, dict[str, str]], state: str) -> set[str]:
    return {name for name, row in rows.items() if row["state"] == state}


def said_by(receipt: dict[str, object]) -> dict[str, object]:
    details = receipt["details"]
    assert isinstance(details, dict)
    return details


def closed(lab: Lab) -> None:
    code, rows, said = lab.prove()
    unsettled = {name: rows[name] for name in REQUIRED if rows[name]["state"] not in SETTLED}
    assert (code, unsettled) == (0, {}), said


SETTLED = ("closed", "not_applicable")


def test_with_the_rules_everything_is_closed_signed_and_ready(lab: Lab) -> None:
    assert lab.ready()[0] == 503
    code, rows, said = lab.prove()
    unsettled = {name: rows[name] for name in REQUIRED if rows[name]["state"] not in SETTLED}
    assert (code, unsettled) == (0, {}), said
    # Nothing of it rests on silence alone, but for what has no witness: a metadata service, a resolver.
    weak = {name for name, row in rows.items() if row["evidence"] == "no_answer"}
    assert weak <= {"metadata.v6", "dns.resolver"}
    assert {rows[name]["evidence"] for name in ("tcp4.443", "udp6.53", "icmp4", "proxy.connect")} == {
        "witness"
    }
    assert lab.ready() == (200, '{"ready": true}\n')
    details = said_by(lab.receipt())
    assert (details["closed"], details["agent"], details["uid"]) == (True, "lab-agent", 65534)
    assert details["netns"] and str(details["rules"]).startswith("sha256:")
    audit = run(*lab.command("log", "audit"))
    assert audit.returncode == 0 and " 1 admin" in audit.stdout, audit.stdout


HOLES = {
    "one port": (
        'iifname "a1" tcp dport 22 accept', "", 'iifname "a1" ip version 4 tcp dport 22 accept', {"tcp4.22"}
    ),
    "IPv6 forgotten": (
        "", "", "meta nfproto ipv6 accept", {"tcp6.22", "tcp6.443", "udp6.53", "udp6.443", "icmp6"}
    ),
    "DNS let through": ("", "", 'iifname "a1" udp dport 53 accept', {"udp4.53", "udp6.53"}),
    "QUIC let through": ("", "", 'iifname "a1" udp dport 443 accept', {"udp4.443", "udp6.443"}),
    "ICMP let through": ("", "", 'iifname "a1" icmp type echo-request accept', {"icmp4"}),
    "HTTPS not redirected": (
        'iifname "a1" tcp dport 443 accept', "", 'iifname "a1" ip version 4 tcp dport 443 accept',
        {"tcp4.443", "direct.tls"},
    ),
    "admin reachable": (
        'iifname "a1" tcp dport 19090 accept', 'iifname "a1" tcp dport 19090 accept', "", {"admin.direct"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("hole", HOLES)
def test_one_hole_is_found_and_nothing_else_is_called_open(lab: Lab, hole: str) -> None:
    before, accepted, forward, expected = HOLES[hole]
    lab.rules(before=before, input=accepted, forward=forward)
    try:
        code, rows, said = lab.prove()
        found = states(rows, "open")
        assert code == 1, said
        if hole == "IPv6 forgotten":
            assert expected <= found and all("6" in name for name in found)
        else:
            assert found == expected
        status, body = lab.ready()
        assert status == 503 and "the boundary is not closed" in body
        details = said_by(lab.receipt())
        assert details["closed"] is False and set(details["rows"]["open"]) == found  # type: ignore[index]
    finally:
        lab.rules()


def test_flushed_rules_are_found(lab: Lab) -> None:
    subprocess.run(["ip", "netns", "exec", GATE, "nft", "flush", "ruleset"], check=True)
    try:
        code, rows, said = lab.prove()
        assert code == 1, said
        found = states(rows, "open")
        assert {"tcp4.22", "tcp4.443", "tcp6.443", "udp4.53", "udp4.443", "icmp4"} <= found
        assert {"direct.http", "direct.tls", "admin.direct", "control.redirect"} <= found
    finally:
        lab.rules()


def test_an_agent_with_root_is_found(lab: Lab) -> None:
    root = f"ip netns exec {AGENT} {PYTHON} -"
    code, rows, said = lab.prove("--probe-at", root)
    assert code == 1, said
    local = {"local.raw_socket", "local.packet_socket", "local.capabilities", "local.change_network"}
    local |= {"local.secrets", "local.ptrace", "local.unix_sockets", "gate.secrets"}
    assert states(rows, "open") == local
    assert rows["sctp4"]["evidence"] == "witness"  # it could send one, and the rules stopped it


def test_a_place_without_the_gate_proves_nothing(lab: Lab) -> None:
    alone = f"unshare -n setpriv --reuid=65534 --regid=65534 --clear-groups {PYTHON} -"
    code, rows, _ = lab.prove("--probe-at", alone)
    assert code == 1 and states(rows, "open") == set()
    assert {rows[name]["state"] for name in ("tcp4.443", "udp4.53", "metadata.v4")} == {"unproven"}
    code, rows, _ = lab.prove("--probe-at", "false")
    assert code == 1 and states(rows, "closed") <= {name for name in rows if name.startswith("gate.")}


def test_a_witness_at_a_wrong_address_proves_nothing(lab: Lab) -> None:
    code, rows, _ = lab.prove("--witness", "10.77.2.99,fd77:2::99")
    assert code == 1
    assert {rows[name]["state"] for name in ("tcp4.443", "udp4.53", "tcp6.22", "proxy.connect")} == {
        "unproven"
    }


def test_fr1_killed_and_started_again_nothing_gets_out_and_the_proof_is_signed(lab: Lab) -> None:
    code, rows, said = lab.prove("--with-restarts", shlex.join(lab.command("run")))
    try:
        assert code == 0, (said, {name: row for name, row in rows.items() if row["state"] not in SETTLED})
        assert rows["failure.killed"]["state"] == rows["failure.restart"]["state"] == "closed"
        details = said_by(lab.receipt())
        assert {"failure.killed", "failure.restart"} <= set(details["rows"]["closed"])  # type: ignore[index]
        assert lab.ready()[0] == 200
    finally:
        status = ask(lab.gate.state_dir, {"ask": "status"})
        if status is not None:
            os.kill(status["pid"], signal.SIGKILL)
        lab.stop()
    # Without a running process the doctor writes the ledger itself; it has seen no request in the log.
    code, rows, said = lab.prove()
    assert code == 1 and rows["control.redirect"]["state"] == "unproven", said
    assert said_by(lab.receipt())["closed"] is False
    lab.start()
    assert lab.ready()[0] == 503
    closed(lab)
    assert lab.ready()[0] == 200
