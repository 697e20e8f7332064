"""Users of this machine as agents: `holdgate network up` with `match: {user: [nobody]}`, in a namespace.

What `nobody` sends goes to the transparent listener or nowhere; what others send is not touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdgate.adapters.trust import write_java_store
from netlab import PROBES, Gate, counted, ip, needs_lab, recorder
from programs import build

NAME = f"hu{os.getpid() % 100_000}"
pytestmark = [pytest.mark.slow, needs_lab]

LISTEN = "{explicit: 127.0.0.1:18080, transparent: 127.0.0.1:18443, dns: 127.0.0.1:15353}"


class Namespace:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = f"/tmp/{NAME}.pem"
        self.gate = Gate(NAME, folder, listen=LISTEN, agent="{user: [nobody]}")
        self.intent = self.gate.intent
        shutil.copy(self.gate.ca, self.ca)
        Path(self.ca).chmod(0o644)
        self.inside = ["ip", "netns", "exec", NAME]
        self.agent = [*self.inside, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        self.gate.network("up")

    def seen(self) -> list[str]:
        return self.gate.tell()

    def escaped(self) -> int:
        """Packets that went out of the only device that leads anywhere."""
        return counted(NAME)

    def run(self, *words: str, env: dict[str, str]) -> str:
        """An agent that knows nothing of a proxy."""
        return self._said(
            [*self.agent, "env", "-i", "PATH=/usr/bin:/bin", *(f"{k}={v}" for k, v in env.items()), *words]
        )

    def curl(self, *words: str, host: str = "api.stripe.com", to: str = "203.0.113.7") -> str:
        resolve = [item for port in (80, 443, 8443) for item in ("--resolve", f"{host}:{port}:{to}")]
        return self._said(
            [*self.agent, "curl", "-sS", "-i", "-m", "20", "--cacert", self.ca, *resolve, *words]
        )

    def probe(self, script: str, *, agent: bool = True) -> str:
        return self._said(
            [*(self.agent if agent else self.inside), "/usr/bin/python3", "-c", PROBES + script]
        )

    @staticmethod
    def _said(words: list[str]) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    ip("netns", "add", NAME)
    made = None
    etc = Path("/etc/netns") / NAME  # what `ip netns exec` puts over /etc inside
    etc.mkdir(parents=True)
    (etc / "resolv.conf").write_text("nameserver 203.0.113.53\noptions timeout:1 attempts:1\n")
    try:
        ip("-n", NAME, "link", "set", "lo", "up")
        # A way out that leads nowhere: without a route the kernel refuses before the rules see a packet.
        ip("-n", NAME, "link", "add", "out0", "type", "veth", "peer", "name", "out1")
        ip("-n", NAME, "addr", "add", "10.99.0.1/24", "dev", "out0")
        ip("-n", NAME, "addr", "add", "fd99::1/64", "dev", "out0", "nodad")
        for device in ("out0", "out1"):
            ip("-n", NAME, "link", "set", device, "up")
        ip("-n", NAME, "neigh", "add", "10.99.0.2", "lladdr", "02:00:00:00:00:02", "dev", "out0")
        ip("-n", NAME, "neigh", "add", "fd99::2", "lladdr", "02:00:00:00:00:02", "dev", "out0")
        ip("-n", NAME, "route", "add", "default", "via", "10.99.0.2")
        ip("-n", NAME, "-6", "route", "add", "default", "via", "fd99::2")
        rules = recorder("postrouting", "oifname", "out0")
        subprocess.run(["ip", "netns", "exec", NAME, "nft", "-f", "-"], input=rules, text=True, check=True)
        made = Namespace(tmp_path_factory.mktemp("transparent"))
        yield made
    finally:
        if made is not None:
            made.gate.stop()
            Path(made.ca).unlink(missing_ok=True)
        subprocess.run(["ip", "netns", "del", NAME], check=False)
        shutil.rmtree(etc)


def test_an_agents_packets_stay_inside_and_other_users_are_not_touched(namespace: Namespace) -> None:
    attempts = """
for host in ("203.0.113.9", "2001:db8:9::9"):
    print([udp(host, port, wait=.1) for port in (9, 53, 443, 853)], tcp(host, 22), tcp(host, 9999))
print(tcp("127.0.0.1", 9090), tcp("127.0.0.1", 18443), tcp("10.99.0.1", 18443))
"""
    before = namespace.escaped()
    said = namespace.probe(attempts)
    assert namespace.escaped() == before, said
    assert "b'HTTP" not in said, said
    namespace.probe("udp('203.0.113.9', 9, wait=.1), udp('2001:db8:9::9', 9, wait=.1)", agent=False)
    assert namespace.escaped() == before + 2, "the control: the same packets of another user go out"


def test_an_agent_is_known_by_its_user(namespace: Namespace) -> None:
    namespace.curl("https://api.stripe.com/v1/charges")
    listed = namespace.gate.holdgate("receipts", "list", "--json").stdout
    assert '"demo-agent"' in listed
    words = ["curl", "-sS", "-i", "-m", "20", "-x", "http://127.0.0.1:18080", "http://api.stripe.com/"]
    done = subprocess.run(
        [*namespace.inside, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert "reason=unknown_agent" in done.stdout, "root is nobody's agent, though it has the same address"


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
            ["https://api.stripe.com:8443/"], "api.stripe.com", "Holdgate SILENCE", id="another port"
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


@contextmanager
def libraries(*names: str) -> Iterator[Path]:
    """Copies for the system's Python, because `nobody` cannot read ours; they are pure Python."""
    first = names[0]
    packages = Path(pytest.importorskip(first).__file__).parents[1]
    if not Path("/usr/bin/python3").exists():
        pytest.skip("needs a Python that other users may run")
    home = Path(tempfile.mkdtemp(prefix=NAME))
    home.chmod(0o755)
    try:
        for name in names:
            source = packages / name
            shutil.copytree(source, home / name) if source.is_dir() else shutil.copy(source, home)
        yield home
    finally:
        shutil.rmtree(home)


STRIPE = """
import stripe, sys
stripe.api_key = "sk_test_demo"
try:
    print("OK", stripe.Refund.create(payment_intent=sys.argv[1], amount=int(sys.argv[2])).id)
except stripe.StripeError as error:
    print(type(error).__name__, error)
"""


def test_stripe_python_without_any_proxy_setting_is_held_too(namespace: Namespace) -> None:
    with libraries(
        "stripe", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "typing_extensions.py"
    ) as home:
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


@pytest.mark.parametrize("language", ["java", "go"])
def test_compiled_clients_are_held_too(namespace: Namespace, language: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix=NAME))
    try:
        command = build(language, folder)
        store = folder / "bundle.p12"
        write_java_store(store, Path(namespace.ca).read_bytes())
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        trust = f"-Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStorePassword=changeit"
        env = {"JAVA_TOOL_OPTIONS": trust, "SSL_CERT_FILE": namespace.ca}

        def ask(amount: int) -> str:
            return namespace.run(*command, namespace.intent, str(amount), env=env)

        assert "200 PERMIT" in ask(105)
        before = namespace.seen()
        assert "403 DENY;i" in ask(900_000)
        assert namespace.seen() == before
    finally:
        shutil.rmtree(folder)


BOTO = """
import boto3, sys
from botocore.exceptions import ClientError
keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "x"}
s3 = boto3.client("s3", region_name="eu-central-1", **keys)
try:
    answer = s3.put_object(Bucket=sys.argv[1], Key="a/b.txt", Body=b"hello" * 1000)
    print("OK", answer["ResponseMetadata"]["HTTPStatusCode"])
except ClientError as error:
    print("ClientError", error)
"""


def test_boto3_without_any_proxy_setting_is_held_too(namespace: Namespace) -> None:
    with libraries("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py", "urllib3") as home:
        env = {"PYTHONPATH": str(home), "AWS_CA_BUNDLE": namespace.ca}

        def put(bucket: str) -> str:
            return namespace.run("/usr/bin/python3", "-c", BOTO, bucket, env=env)

        assert put("acme-reports") == "OK 200\n"
        before = namespace.seen()
        assert "ClientError" in (said := put("attacker")) and "(no_rule_matched)" in said, said
        assert namespace.seen() == before
