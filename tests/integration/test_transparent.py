"""Redirected traffic: nftables REDIRECT in a network namespace, agents without any proxy setting.

One namespace, same host by uid: what `nobody` sends to port 443 or 80 reaches the transparent listener.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME = f"hg{os.getpid() % 100_000}"
TOOLS = ("ip", "nft", "curl", "setpriv")
CAN = os.geteuid() == 0 and all(map(shutil.which, TOOLS))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAN, reason=f"needs root and {', '.join(TOOLS)}"),
]

RULES = """
table inet holdgate {
  chain out {
    type nat hook output priority -100; policy accept;
    meta skuid 65534 tcp dport { 80, 443 } redirect to :18443
  }
  chain filter {
    type filter hook output priority 0; policy accept;
    meta skuid 65534 ct status dnat accept
    meta skuid 65534 ct state established accept
    meta skuid 65534 counter reject
  }
}
"""
SERVER = """
import re
import sys
from pathlib import Path
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns

folder = Path(sys.argv[1])
with StandIns() as vendors:
    gate = Instance(folder, connect_to=vendors.connect_to(), transparent=True)
    text = re.sub("transparent: [0-9.:]+", "transparent: 0.0.0.0:18443", gate.config.read_text())
    gate.config.write_text(text.replace("127.0.0.1/32", "0.0.0.0/0"))
    intent = vendors.stripe.charged(100000)
    with gate:
        print(intent, flush=True)
        for line in sys.stdin:
            counts = vendors.counts("stripe")
            print(counts.connections, counts.requests, counts.received_bytes, flush=True)
"""


class Namespace:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = "/tmp/" + NAME + ".pem"
        inside = ["ip", "netns", "exec", NAME]
        self.server = subprocess.Popen(
            [*inside, sys.executable, "-c", SERVER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.server.stdout is not None
        self.intent = self.server.stdout.readline().strip()
        shutil.copy(folder / "state" / "ca" / "ca.pem", self.ca)
        Path(self.ca).chmod(0o644)
        self.agent = [*inside, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def seen(self) -> list[str]:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        return self.server.stdout.readline().split()

    def run(self, *words: str, env: dict[str, str]) -> str:
        """An agent that knows nothing of a proxy."""
        done = subprocess.run(
            [*self.agent, "env", "-i", "PATH=/usr/bin:/bin", *(f"{k}={v}" for k, v in env.items()), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    def curl(self, *words: str, host: str = "api.stripe.com", to: str = "198.51.100.7") -> str:
        resolve = [item for port in (80, 443, 8443) for item in ("--resolve", f"{host}:{port}:{to}")]
        done = subprocess.run(
            [*self.agent, "curl", "-sS", "-i", "-m", "20", "--cacert", self.ca, *resolve, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", NAME)
    made = None
    names = Path("/etc/netns") / NAME  # what `ip netns exec` puts over /etc inside
    names.mkdir(parents=True)
    (names / "hosts").write_text("127.0.0.1 localhost\n198.51.100.7 api.stripe.com\n")
    try:
        ip("-n", NAME, "link", "set", "lo", "up")
        # A way out that leads nowhere: without a route the kernel refuses before the rules see a packet.
        ip("-n", NAME, "link", "add", "out0", "type", "veth", "peer", "name", "out1")
        ip("-n", NAME, "addr", "add", "10.99.0.1/24", "dev", "out0")
        ip("-n", NAME, "link", "set", "out0", "up")
        ip("-n", NAME, "link", "set", "out1", "up")
        ip("-n", NAME, "route", "add", "default", "via", "10.99.0.2")
        subprocess.run(["ip", "netns", "exec", NAME, "nft", "-f", "-"], input=RULES, text=True, check=True)
        made = Namespace(tmp_path_factory.mktemp("transparent"))
        yield made
    finally:
        if made is not None:
            if made.server.stdin is not None:
                made.server.stdin.close()
            made.server.wait(timeout=30)
            Path(made.ca).unlink(missing_ok=True)
        subprocess.run(["ip", "netns", "del", NAME], check=False)
        shutil.rmtree(names)


def refund(namespace: Namespace, amount: int) -> list[str]:
    form = ["-d", f"payment_intent={namespace.intent}", "-d", f"amount={amount}"]
    return ["https://api.stripe.com/v1/refunds", "-H", "Authorization: Bearer sk_test_demo", *form]


def test_redirected_requests_are_held_and_decided(namespace: Namespace) -> None:
    permitted = namespace.curl(*refund(namespace, 100))
    assert "HTTP/1.1 200 " in permitted and "Holdgate-Decision: PERMIT;" in permitted, permitted
    before = namespace.seen()
    denied = namespace.curl(*refund(namespace, 900_000))
    assert "HTTP/1.1 403 Holdgate DENY rcpt_" in denied, denied
    assert namespace.seen() == before


@pytest.mark.parametrize(
    ("words", "host", "expected"),
    [
        pytest.param(["https://evil.test/"], "evil.test", "reason=unknown_destination", id="unknown name"),
        pytest.param(
            ["https://api.stripe.com/v1/refunds", "-H", "Host: evil.test", "-d", "amount=1"],
            "api.stripe.com",
            "reason=identity_mismatch",
            id="Host differs from SNI",
        ),
        pytest.param(
            ["http://api.stripe.com/v1/refunds"], "api.stripe.com", "reason=unknown_destination", id="http"
        ),
        pytest.param(
            ["https://api.stripe.com:8443/"], "api.stripe.com", "Failed to connect", id="another port"
        ),
        pytest.param(
            ["-k", "--http2-prior-knowledge", "http://api.stripe.com/"],
            "api.stripe.com",
            "",
            id="h2 prior knowledge",
        ),
    ],
)
def test_what_is_not_mapped_leaves_nothing_upstream(
    namespace: Namespace, words: list[str], host: str, expected: str
) -> None:
    before = namespace.seen()
    assert expected in namespace.curl(*words, host=host)
    assert namespace.seen() == before


def test_the_address_that_the_agent_chose_is_never_dialled(namespace: Namespace) -> None:
    # A spoofed destination with a mapped name goes to our address of that name, or nowhere.
    answer = namespace.curl(*refund(namespace, 101), to="169.254.169.254")
    assert "HTTP/1.1 200 " in answer and "Holdgate-Decision: PERMIT;" in answer


FETCH = """
const [intent, amount] = process.argv.slice(1);
const body = new URLSearchParams({payment_intent: intent, amount});
const headers = {Authorization: "Bearer sk_test_demo"};
fetch("https://api.stripe.com/v1/refunds", {method: "POST", body, headers})
  .then(async (r) => console.log(r.status, r.headers.get("holdgate-decision"), await r.text()))
  .catch((e) => console.log(String(e), e.cause));
"""


@pytest.mark.skipif(not Path("/usr/bin/node").exists(), reason="needs node in /usr/bin")
def test_node_fetch_which_knows_no_proxy_is_held_too(namespace: Namespace) -> None:
    def fetch(amount: int) -> str:
        env = {"NODE_EXTRA_CA_CERTS": namespace.ca}
        return namespace.run("node", "-e", FETCH, namespace.intent, str(amount), env=env)

    assert fetch(103).startswith("200 PERMIT;")
    before = namespace.seen()
    assert fetch(900_000).startswith("403 DENY;")
    assert namespace.seen() == before


STRIPE = """
import stripe, sys
stripe.api_key = "sk_test_demo"
try:
    print("OK", stripe.Refund.create(payment_intent=sys.argv[1], amount=int(sys.argv[2])).id)
except stripe.StripeError as error:
    print(type(error).__name__, error)
"""


def test_stripe_python_without_any_proxy_setting_is_held_too(namespace: Namespace) -> None:
    """The system's Python, because `nobody` cannot read ours; the libraries are pure Python, so copies do."""
    stripe = pytest.importorskip("stripe")
    if not Path("/usr/bin/python3").exists():
        pytest.skip("needs a Python that other users may run")
    packages = Path(stripe.__file__).parents[1]
    home = Path(namespace.ca).with_suffix(".site")
    wanted = (
        "stripe",
        "requests",
        "urllib3",
        "certifi",
        "idna",
        "charset_normalizer",
        "typing_extensions.py",
    )
    for name in wanted:
        source, target = packages / name, home / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, home)
    try:
        bundle = home / "stripe" / "data" / "ca-certificates.crt"
        bundle.write_text(bundle.read_text() + "\n" + Path(namespace.ca).read_text())

        def refund(amount: int) -> str:
            env = {"PYTHONPATH": str(home)}
            words = ("/usr/bin/python3", "-c", STRIPE, namespace.intent, str(amount))
            return namespace.run(*words, env=env)

        assert refund(104).startswith("OK re_")
        before = namespace.seen()
        assert "PermissionError" in (said := refund(900_000)) and "(deny_rule)" in said
        assert namespace.seen() == before
    finally:
        shutil.rmtree(home)
