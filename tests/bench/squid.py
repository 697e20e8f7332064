"""Squid that bumps TLS and asks an ICAP server about every request: what a network team would build.

Needs a Squid with OpenSSL and security_file_certgen (Debian: squid-openssl). Its decision is one rule, with
no claim, no receipt and nothing durable: it shows what interception and a body decision cost there.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from subjects import HERE, SUBJECT_CORE, BenchError, Running, Stage, printed_port, wait_for

from ports import free_port

CERTGEN = (Path("/usr/lib/squid/security_file_certgen"), Path("/usr/lib64/squid/security_file_certgen"))
CONFIG = """\
http_port 127.0.0.1:{port} ssl-bump tls-cert={ca} dynamic_cert_mem_cache_size=4MB
sslcrtd_program {certgen} -s {folder}/db -M 4MB
sslcrtd_children 2 startup=1
ssl_bump bump all
sslproxy_cert_error allow all
tls_outgoing_options flags=DONT_VERIFY_PEER
icap_enable on
icap_service gate reqmod_precache icap://127.0.0.1:{gate}/decide bypass=off
acl tunnel method CONNECT
adaptation_access gate deny tunnel
adaptation_access gate allow all
http_access allow all
cache deny all
memory_cache_shared off
shared_transient_entries_limit 0
collapsed_forwarding off
cache_effective_user {user}
access_log none
cache_log {folder}/cache.log
pid_filename {folder}/squid.pid
coredump_dir {folder}
shutdown_lifetime 0 seconds
"""


def found() -> tuple[str, Path] | None:
    """squid and its certificate generator; None where either is missing."""
    squid = shutil.which("squid", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    certgen = next((path for path in CERTGEN if path.exists()), None)
    return (squid, certgen) if squid and certgen else None


def squid(stage: Stage) -> Running:
    tools = found()
    if tools is None:
        raise BenchError("no Squid with OpenSSL here (Debian: apt-get install squid-openssl)")
    program, certgen = tools
    folder, user = _folder(stage)
    gate = stage.spawn("gate", [sys.executable, str(HERE / "icap_gate.py")], SUBJECT_CORE)
    ca, port = folder / "ca.pem", free_port()
    _run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bench"),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-keyout", str(ca), "-out", f"{ca}.crt"),
    )
    ca.write_text(ca.read_text() + Path(f"{ca}.crt").read_text())
    _run(str(certgen), "-c", "-s", str(folder / "db"), "-M", "4MB")
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, user)
    text = CONFIG.format(port=port, ca=ca, certgen=certgen, gate=printed_port(gate), folder=folder, user=user)
    config = folder / "squid.conf"
    config.write_text(text)
    process = stage.spawn(
        "squid", [program, "-N", "-n", f"bench{os.getpid()}", "-f", str(config)], SUBJECT_CORE
    )
    wait_for(port, process, folder / "cache.log")
    return Running(port, f"localhost:{stage.upstream_port}", [process, gate])


def _folder(stage: Stage) -> tuple[Path, str]:
    """Where Squid keeps its files, and whose it is: as root it insists on being somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="squid-", dir=stage.work))  # each repetition has its own
    if os.getuid():
        return folder, pwd.getpwuid(os.getuid()).pw_name
    stage.work.chmod(0o711)
    return folder, "nobody"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchError(f"{command[0]}: {done.stderr.strip()}")
