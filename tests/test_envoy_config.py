"""envoy.py and deploy/envoy/generate.py: Envoy's configuration, from maps and settings. The real Envoy reads
it in integration/test_envoy.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from envoys import ROOT, TOKEN, gate_for_envoy, generate
from holdgate.adapters.ca import LeafMaker, load_ca
from holdgate.config_values import Address
from holdgate.demo.instance import Instance
from holdgate.envoy import bootstrap, leaf_secret
from holdgate.envoy_plan import EnvoyPlan, GateSide, Upstream
from holdgate.limits import Limits
from holdgate.relay import outcome_of

LOOPBACK = Address(host="127.0.0.1", port=9191)
FAR = Address(host="10.0.0.5", port=9191)
MUTUAL = {"name": "gate", "ca_file": Path("ca"), "cert_file": Path("cert"), "key_file": Path("key")}


def plan(**change: Any) -> EnvoyPlan:
    given: dict[str, Any] = {
        "listen": Address(host="0.0.0.0", port=8443),
        "redirected": True,
        "gate": GateSide(address=LOOPBACK, token=TOKEN),
        "upstreams": (
            Upstream(host="b.example.org", body_bytes=70_000, address=None),
            Upstream(
                host="a.example.org",
                body_bytes=2_000_000,
                address=Address(host="127.0.0.1", port=12111),
                tls=False,
            ),
            Upstream(host="c.example.org", body_bytes=1, address=FAR, ca_file=Path("/etc/private.pem")),
        ),
        "limits": Limits(),
        "secrets": Path("/etc/envoy/secrets"),
        "roots": Path("/etc/roots.pem"),
        "admin": None,
    }
    return EnvoyPlan(**(given | change))


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) below."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield key, below
            yield from walk(below)
    elif isinstance(value, list):
        for below in value:
            yield from walk(below)


def chains(made: dict[str, Any]) -> dict[str, Any]:
    (listener,) = made["static_resources"]["listeners"]
    return {each["name"]: each for each in listener["filter_chains"]}


def clusters(made: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each for each in made["static_resources"]["clusters"]}


def test_ey1_every_chain_asks_first_and_sends_to_its_own_host() -> None:
    for host, chain in chains(bootstrap(plan())).items():
        (manager,) = (each["typed_config"] for each in chain["filters"])
        names = [each["name"].rpartition(".")[2] for each in manager["http_filters"]]
        assert names == ["header_mutation", "ext_authz", "router"]
        ask = manager["http_filters"][1]["typed_config"]
        assert ask["failure_mode_allow"] is False and ask["clear_route_cache"] is False
        assert ask["with_request_body"]["allow_partial_message"] is False
        assert ask["encode_raw_headers"] is True
        (virtual,) = manager["route_config"]["virtual_hosts"]
        (route,) = virtual["routes"]
        assert route["route"]["cluster"] == route["route"]["host_rewrite_literal"] == host
        assert "retry_policy" not in dict(walk(manager)) and "redirect" not in dict(walk(manager))
        assert {key for key, value in walk(manager) if key == "upgrade_configs"} == set()


def test_ey1_the_path_and_the_headers_are_left_alone() -> None:
    for chain in chains(bootstrap(plan())).values():
        manager = chain["filters"][0]["typed_config"]
        assert (manager["codec_type"], manager["normalize_path"], manager["merge_slashes"]) == (
            "HTTP1",
            False,
            False,
        )
        assert manager["path_with_escaped_slashes_action"] == "KEEP_UNCHANGED"
        assert manager["generate_request_id"] is False and manager["skip_xff_append"] is True
        assert manager["use_remote_address"] is True
        common = manager["common_http_protocol_options"]
        assert common["headers_with_underscores_action"] == "REJECT_REQUEST"


def test_ey2_a_host_has_its_chain_and_no_other_has_one() -> None:
    made = bootstrap(plan())
    assert "default_filter_chain" not in dict(walk(made))
    for host, chain in chains(made).items():
        assert chain["filter_chain_match"] == {
            "server_names": [host],
            "transport_protocol": "tls",
            "destination_port": 443,
        }
    open_port = chains(bootstrap(plan(redirected=False)))
    assert all("destination_port" not in each["filter_chain_match"] for each in open_port.values())


def test_ey3_upstreams_are_verified_for_their_own_name() -> None:
    found = clusters(bootstrap(plan()))
    for host, roots in (("b.example.org", "/etc/roots.pem"), ("c.example.org", "/etc/private.pem")):
        tls = found[host]["transport_socket"]["typed_config"]
        checked = tls["common_tls_context"]["validation_context"]
        assert tls["sni"] == host and checked["trusted_ca"] == {"filename": roots}
        assert checked["match_typed_subject_alt_names"] == [{"san_type": "DNS", "matcher": {"exact": host}}]
    assert "transport_socket" not in found["a.example.org"]
    assert found["b.example.org"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"] == {
        "address": {"socket_address": {"address": "b.example.org", "port_value": 443}}
    }


def test_ey3_without_tls_only_to_loopback() -> None:
    for address in (None, FAR):
        with pytest.raises(ValueError, match="no TLS"):
            Upstream(host="a.example.org", body_bytes=1, address=address, tls=False)


def test_ey4_the_token_goes_to_the_gate_only() -> None:
    made = bootstrap(plan())
    holders = [value for key, value in walk(made) if key == "headers_to_add"]
    assert len(holders) == 3
    assert str(made).count(TOKEN) == sum(str(each).count(TOKEN) for each in holders) == 3
    uses = [service for key, service in walk(made) if key == "http_service"]
    assert [each["authorization_request"]["headers_to_add"] for each in uses] == holders
    assert {each["server_uri"]["cluster"] for each in uses} == {"holdgate-gate"}


@pytest.mark.parametrize(
    "token", ["", "short", "with space in the middle", "per%cent-0123456789", "l\nine" * 5]
)
def test_a_token_is_plain_text(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        GateSide(address=LOOPBACK, token=token)


def test_the_gate_over_a_network_needs_tls_on_both_sides() -> None:
    with pytest.raises(ValueError, match="TLS on both sides"):
        GateSide(address=FAR, token=TOKEN)
    with pytest.raises(ValueError, match="its name"):
        GateSide(address=FAR, token=TOKEN, ca_file=Path("ca"))
    gate = GateSide(address=FAR, token=TOKEN, **MUTUAL)  # type: ignore[arg-type]
    tls = clusters(bootstrap(plan(gate=gate)))["holdgate-gate"]["transport_socket"]["typed_config"]
    assert tls["sni"] == "gate" and "tls_certificates" in tls["common_tls_context"]


def test_limits_are_the_gates() -> None:
    limits = replace(Limits(), hold_s=7.0, header_bytes=10_000, headers=31)
    made = bootstrap(plan(limits=limits))
    bodies = {value["max_request_bytes"] for key, value in walk(made) if key == "with_request_body"}
    assert bodies == {70_000, 2_000_000, 1}
    (listener,) = made["static_resources"]["listeners"]
    assert listener["per_connection_buffer_limit_bytes"] == 2_000_000
    manager = chains(made)["a.example.org"]["filters"][0]["typed_config"]
    assert manager["max_request_headers_kb"] == 10
    assert manager["common_http_protocol_options"]["max_headers_count"] == 31
    service = manager["http_filters"][1]["typed_config"]["http_service"]
    assert service["server_uri"]["timeout"] == "12s"


def test_envoys_own_admin_listener_is_off_unless_asked_for() -> None:
    assert "admin" not in bootstrap(plan())
    assert bootstrap(plan(admin=LOOPBACK))["admin"]["address"]["socket_address"]["port_value"] == 9191


# --- the generator ---


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Instance:
    """Never started."""
    return gate_for_envoy(
        tmp_path_factory.mktemp("gate"), {"api.stripe.com:443": "127.0.0.1:12111"}, extra=""
    )


@pytest.mark.checkout
def test_the_generator_writes_private_files_and_says_what_it_left_out(gate: Instance, tmp_path: Path) -> None:
    said = generate(
        gate, tmp_path / "out", "--listen", "127.0.0.1:8443", "--host", "reports.s3.amazonaws.com"
    )
    assert "{bucket}.s3.amazonaws.com (name the hosts" in said
    made = yaml.safe_load((tmp_path / "out" / "envoy.yaml").read_text())
    assert {"api.stripe.com", "reports.s3.amazonaws.com"} < chains(made).keys()
    assert not any("{" in host for host in chains(made))
    files = [tmp_path / "out" / "envoy.yaml", *(tmp_path / "out" / "secrets").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.name for path in files[1:]} == {f"{host}.yaml" for host in chains(made)}
    assert "transport_socket" not in clusters(made)["api.stripe.com"]
    first = (tmp_path / "out" / "secrets" / "slack.com.yaml").read_bytes()
    generate(gate, tmp_path / "out", "--listen", "127.0.0.1:8443")
    assert (tmp_path / "out" / "secrets" / "slack.com.yaml").read_bytes() != first


def test_a_leaf_is_key_and_chain_of_one_name(gate: Instance) -> None:
    leaves = LeafMaker(load_ca(gate.state_dir))
    made = leaf_secret("api.stripe.com", leaves.pem("api.stripe.com"))
    (secret,) = made["resources"]
    certificate = secret["tls_certificate"]
    key, chain = (certificate[name]["inline_string"] for name in ("private_key", "certificate_chain"))
    assert (key + chain).encode() == leaves.pem("api.stripe.com")
    assert key.count("-----BEGIN") == 1 and "PRIVATE" not in chain and "BEGIN CERTIFICATE" in chain


WRONG = {
    "a host that no map has": (["--host", "evil.test"], "no map has this https host"),
    "no address to listen on": (["--listen", "8443"], "invalid"),
    "a gate over a network": (["--gate", "10.0.0.5:9191"], "TLS on both sides"),
    "a token that is not there": (["--token-file", "/nowhere"], "/nowhere"),
}


@pytest.mark.checkout
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(gate: Instance, tmp_path: Path, name: str) -> None:
    words, why = WRONG[name]
    command = [sys.executable, str(ROOT / "deploy" / "envoy" / "generate.py"), "-c", str(gate.config)]
    command += ["--token-file", str(gate.folder / "envoy.token"), "--listen", "127.0.0.1:8443"]
    command += ["--out", str(tmp_path / "out"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "envoy.yaml").exists()


@pytest.mark.checkout
def test_a_token_that_others_can_read_is_refused(gate: Instance, tmp_path: Path) -> None:
    loose = tmp_path / "token"
    loose.write_text(TOKEN)
    loose.chmod(0o644)
    command = [sys.executable, str(ROOT / "deploy" / "envoy" / "generate.py"), "-c", str(gate.config)]
    command += ["--token-file", str(loose), "--listen", "127.0.0.1:8443", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "chmod 600" in done.stderr


# --- the reporter ---


def _reporter() -> Any:
    source = ROOT / "deploy" / "envoy" / "report.py"
    loader = importlib.util.spec_from_file_location("report", source)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


PERMIT = 'PERMIT;id="rcpt_01M819S7RVYV944XPT338EM0Z4";reason=permit_rule'
LINES: dict[str, tuple[dict[str, Any], str | None]] = {
    "an answer": ({"status": 200, "details": "via_upstream", "upstream_bytes_sent": 300}, "executed"),
    "nothing changed": ({"status": 304, "details": "via_upstream", "upstream_bytes_sent": 300}, "executed"),
    "a refusal by the vendor": ({"status": 402, "details": "via_upstream"}, "failed"),
    "a redirect": ({"status": 302, "details": "via_upstream"}, "failed"),
    "a conflict": ({"status": 409, "details": "via_upstream"}, "unknown"),
    "a failure of the vendor": ({"status": 500, "details": "via_upstream"}, "unknown"),
    "another protocol": ({"status": 101, "details": "via_upstream"}, "unknown"),
    "nobody listens": (
        {"status": 503, "details": "upstream_reset_before_response_started{x}", "upstream_bytes_sent": 0},
        "not_sent",
    ),
    "a reset": (
        {"status": 503, "details": "upstream_reset_before_response_started{x}", "upstream_bytes_sent": 300},
        "unknown",
    ),
    "an answer that was cut": (
        {"status": 200, "details": "upstream_reset_after_response_started{x}", "upstream_bytes_sent": 300},
        "unknown",
    ),
    "bytes that nobody counted": ({"status": 503, "details": "x", "upstream_bytes_sent": None}, "unknown"),
    "a refusal of ours": ({"decision": 'DENY;id="rcpt_01M819S7RVYV944XPT338EM0Z4"', "status": 403}, None),
    "a refusal of Envoy's": ({"decision": None, "status": 413}, None),
    "an id that is none": ({"decision": 'PERMIT;id="x"', "status": 200, "details": "via_upstream"}, None),
}


@pytest.mark.checkout
@pytest.mark.parametrize("name", LINES)
def test_an_outcome_is_what_envoy_knows_of_it(name: str) -> None:
    row, status = LINES[name]
    said = _reporter().outcome_of({"decision": PERMIT, **row})
    assert (said and said["status"]) == status


@pytest.mark.checkout
def test_the_reporter_says_the_same_of_an_answer_as_the_proxy() -> None:
    report = _reporter()
    assert all(report._of_answer(code) == outcome_of(code).value for code in range(200, 600))


@pytest.mark.checkout
def test_a_token_file_that_is_not_there_ends_the_reporter_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report.py", "--admin", "http://127.0.0.1:1", "--token-file", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        _reporter().main()
    assert ended.value.code == 2 and "--token-file nowhere: No such file" in capsys.readouterr().err
