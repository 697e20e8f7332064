"""adapters/exec_trust.py: which bundles are shown otherwise, and which variables a command gets."""

from __future__ import annotations

from pathlib import Path

from holdgate.adapters.ca import create_ca
from holdgate.adapters.exec_trust import bundles_of, client_environment, overlays, public_files
from holdgate.adapters.trust import write_bundle


def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    made = create_ca(folder, "test")
    write_bundle(folder / "ca" / "bundle.pem", made.pem)
    return folder


def test_xt1_only_bundles_are_shown_otherwise_with_their_own_roots(tmp_path: Path) -> None:
    ca = public_files(state(tmp_path))["ca/ca.pem"]
    other = create_ca(tmp_path / "other", "other").pem if (tmp_path / "other").mkdir() is None else b""
    bundle, text, link = tmp_path / "cacert.pem", tmp_path / "notes.pem", tmp_path / "link.pem"
    bundle.write_bytes(other)
    text.write_text("no certificate")
    link.symlink_to(bundle)
    shown = overlays([bundle, text, link, tmp_path / "absent.pem", tmp_path], ca)
    assert list(shown) == [bundle]
    assert shown[bundle].startswith(other) and ca.strip() in shown[bundle]
    assert bundle.read_bytes() == other, "nothing is changed outside"
    assert overlays([bundle], other)[bundle].count(b"BEGIN CERTIFICATE") == 2, "marked by us, so added once"


def test_xt2_proxies_are_left_out_and_trust_leads_into_the_namespace(tmp_path: Path) -> None:
    folder = state(tmp_path)
    files = public_files(folder)
    assert set(files) == {"ca/ca.pem", "ca/bundle.pem", "ca/bundle.p12"}
    outer = {"PATH": "/bin", "JAVA_TOOL_OPTIONS": "-Xmx1g"}
    outer |= dict.fromkeys(
        ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "no_proxy", "Http_Proxy"), "http://x:1"
    )
    env = client_environment(outer, folder, Path("/run/holdgate"))
    assert not [name for name in env if name.lower().endswith("_proxy")]
    assert env["SSL_CERT_FILE"] == "/run/holdgate/ca/bundle.pem"
    assert env["NODE_EXTRA_CA_CERTS"] == "/run/holdgate/ca/ca.pem"
    assert env["JAVA_TOOL_OPTIONS"].startswith(
        "-Xmx1g -Djavax.net.ssl.trustStore=/run/holdgate/ca/bundle.p12 "
    )
    assert env["PATH"] == "/bin"


def test_the_bundles_of_a_commands_python_are_found(tmp_path: Path) -> None:
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    elsewhere = tmp_path / "elsewhere"
    wanted = [
        site / "certifi" / "cacert.pem",
        site / "stripe" / "data" / "ca-certificates.crt",
        site / "pip" / "_vendor" / "certifi" / "cacert.pem",
        elsewhere / "botocore" / "cacert.pem",
    ]
    tool = tmp_path / "venv" / "bin" / "agent"
    for path in (*wanted, tool):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    (site / "other.pth").write_text(f"import nothing\n{elsewhere}\n")
    found = set(bundles_of(str(tool), {"PATH": "/nowhere"}))
    assert found >= set(wanted)
    assert set(wanted).isdisjoint(bundles_of("no-such-command", {"PATH": "/nowhere"}))
