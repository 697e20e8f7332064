"""deploy/: units, manifests, Compose, alert rules and dashboard, each by the validator of its own world.

A validator that is not installed is a reason to skip; in CI, where .ci/run installs them, it is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft201909Validator

from holdgate.adapters import handed
from holdgate.adapters.metrics import Metrics
from holdgate.adapters.starter import copy_starters, make_state
from holdgate.adapters.trust import trust_env
from holdgate.agents import AgentRule
from holdgate.bundle import load_bundle
from holdgate.cli import build_parser
from holdgate.config import Address, Config, load_config
from holdgate.network_rules import twin

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNITS = ("holdgate.service", "holdgate-network.service")
SOCKET = "holdgate-transparent.socket"
OVERLAYS = ("sidecar", "gateway")
API = "1.31.0"  # of Kubernetes
HOLDGATE_UID, AGENT_UID = 10001, 10002

pytestmark = [pytest.mark.checkout, pytest.mark.slow]


def tool(name: str) -> str:
    """The program, or skip; in CI a validator that is missing is a failure."""
    found = shutil.which(name)
    if found is None and os.environ.get("CI") == "true" and name != "kubectl":
        pytest.fail(f"{name} is not installed, and .ci/run should have installed it")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*words: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- systemd ---


@pytest.mark.parametrize(("unit", "most"), [(UNITS[0], 1.5), (UNITS[1], 1.8)])
def test_a_unit_leaves_little_open(unit: str, most: float) -> None:
    said = run(
        tool("systemd-analyze"),
        "security",
        "--offline=true",
        f"--threshold={int(most * 10)}",
        DEPLOY / "systemd" / unit,
    )
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", said)
    assert exposure is not None, said
    assert float(exposure[1]) <= most


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for unit in (*UNITS, SOCKET):  # it looks whether the program is there, so it gets one that is
        text = (DEPLOY / "systemd" / unit).read_text(encoding="utf-8")
        (tmp_path / unit).write_text(text.replace("/opt/holdgate/bin/holdgate", sys.executable))
    shutil.copy(DEPLOY / "systemd" / "agent-holdgate.conf", tmp_path / "agent.conf")
    agent = (tmp_path / "agent.conf").read_text() + f"ExecStart={sys.executable} agent.py\n"
    (tmp_path / "agent.service").write_text(agent)
    said = run(analyze, "verify", *(tmp_path / unit for unit in (*UNITS, SOCKET, "agent.service")))
    ours = [line for line in said.splitlines() if "holdgate" in line or "agent" in line]
    assert [line for line in ours if "User" not in line] == []  # the user is made by sysusers.d


def test_the_unit_runs_commands_that_exist_and_agents_wait_for_it() -> None:
    text = (DEPLOY / "systemd" / "holdgate.service").read_text(encoding="utf-8")
    rules = (DEPLOY / "systemd" / "holdgate-network.service").read_text(encoding="utf-8")
    for words in set(re.findall(r"^Exec\w+=/opt/holdgate/bin/holdgate (.+)$", text + rules, re.M)):
        if words.startswith("network ") and "network" not in build_parser().format_help():
            continue  # `holdgate network` is not in this version
        assert build_parser(words.split()[0]).parse_args(words.split())
    assert re.search(r"^CapabilityBoundingSet=$", text, re.M), "it needs no capability"
    assert "Type=notify" in text
    drop_in = (DEPLOY / "systemd" / "agent-holdgate.conf").read_text(encoding="utf-8")
    assert "BindsTo=holdgate-network.service" in drop_in
    assert re.search(r"^After=.*holdgate\.service", drop_in, re.M)


def test_the_socket_is_what_the_service_takes_and_needs_no_right_of_it() -> None:
    text = (DEPLOY / "systemd" / SOCKET).read_text(encoding="utf-8")
    settings = {tuple(line.split("=", 1)) for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)}
    wanted = Address(host="0.0.0.0", port=8443)
    assert {value for name, value in settings if name == "ListenStream"} == {str(wanted), str(twin(wanted))}
    assert {
        ("Transparent", "yes"),
        ("BindIPv6Only", "ipv6-only"),
        ("FileDescriptorName", handed.NAME),
        ("Service", "holdgate.service"),
    } <= settings


# --- configuration files: every one must start an instance ---

CONFIGS = ("compose/gate.yaml", "kubernetes/sidecar/gate.yaml", "kubernetes/gateway/gate.yaml")


def configured(name: str, folder: Path) -> Config:
    """The shipped configuration, with the paths of the image below `folder`."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    if "user:" in text and "users" not in {field.name for field in fields(AgentRule)}:
        pytest.skip("agents by user (`match: {user: ...}`) are not in this version")
    copy_starters(folder)
    text = text.replace("/var/lib/holdgate/state", str(folder / "state")).replace(
        "/etc/holdgate", str(folder)
    )
    (folder / "holdgate.yaml").write_text(text)
    return load_config(folder / "holdgate.yaml")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_loads_with_the_starters_of_the_image(name: str, tmp_path: Path) -> None:
    config = configured(name, tmp_path)
    bundle = load_bundle(config.surfaces, config.policies)
    assert config.ca.constrain
    make_state(config.state_dir, config.node, maps=config.surfaces)
    assert bundle.index.is_mapped("api.stripe.com", 443, "https")
    if config.admin.listen.ip.is_unspecified:
        assert config.admin.public_url, "an admin listener for others needs a name that it answers to"


# --- Compose ---


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text(encoding="utf-8"))
    return loaded


def test_the_compose_file_is_one(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text(encoding="utf-8"))
    errors = [
        f"{list(error.path)}: {error.message}" for error in Draft201909Validator(schema).iter_errors(compose)
    ]
    assert errors == []
    compose["services"]["holdgate"]["read_onyl"] = True  # a check that finds nothing shows nothing
    assert not Draft201909Validator(schema).is_valid(compose)
    del compose["services"]["holdgate"]["read_onyl"]


def test_agents_in_compose_have_no_way_but_holdgate(compose: dict[str, Any]) -> None:
    services = compose["services"]
    agents = {name: one for name, one in services.items() if name not in ("prepare", "holdgate")}
    assert agents
    assert compose["networks"]["agents"]["internal"] is True
    assert [name for name, one in services.items() if "egress" in one.get("networks", ())] == ["holdgate"]
    for one in agents.values():
        assert set(one["networks"]) == {"agents"}
        assert one["dns"] == ["192.0.2.1"]
        assert not {"ports", "privileged", "cap_add", "network_mode", "devices", "pid"} & set(one)
        assert "state" not in json.dumps(one["volumes"])
        assert one["user"].split(":")[0] not in ("0", str(HOLDGATE_UID))
    for one in services.values():
        assert one["cap_drop"] == ["ALL"] and one["read_only"] is True
        assert one["security_opt"] == ["no-new-privileges:true"]
    address = agents["refund-bot"]["networks"]["agents"]["ipv4_address"]
    assert f"{address}/32" in (DEPLOY / "compose/gate.yaml").read_text(encoding="utf-8")


# --- Kubernetes ---


@cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    text = run(tool("kubectl"), "kustomize", DEPLOY / "kubernetes" / overlay)
    return tuple(one for one in yaml.safe_load_all(text) if one)


def written(overlay: str) -> list[dict[str, Any]]:
    """The manifests as they stand in the folder, without kustomize."""
    names = yaml.safe_load((DEPLOY / "kubernetes" / overlay / "kustomization.yaml").read_text())["resources"]
    files = [DEPLOY / "kubernetes" / overlay / name for name in names]
    return [one for file in files for one in yaml.safe_load_all(file.read_text(encoding="utf-8")) if one]


def validate(manifests: list[dict[str, Any]] | tuple[dict[str, Any], ...], folder: Path) -> str:
    file = folder / "all.yaml"
    file.write_text(yaml.safe_dump_all(manifests))
    return run(tool("kubernetes-validate"), "--strict", "-k", API, file)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_is_what_the_api_takes_and_nothing_more(overlay: str, tmp_path: Path) -> None:
    manifests = written(overlay)
    assert validate(manifests, tmp_path).count("passed") == len(manifests)
    workload = next(one for one in manifests if one["kind"] == "StatefulSet")
    workload["spec"]["template"]["spec"]["hostNetwrok"] = False
    with pytest.raises(AssertionError, match="hostNetwrok"):
        validate(manifests, tmp_path)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_renders_is_valid_and_names_no_local_image(overlay: str, tmp_path: Path) -> None:
    manifests = rendered(overlay)
    assert validate(manifests, tmp_path).count("passed") == len(manifests) == len(written(overlay)) + 1
    for container in (one for manifest in manifests for one in containers(manifest)):
        assert container["image"].startswith("registry.example/")
    config = next(one for one in manifests if one["kind"] == "ConfigMap")
    assert config["data"]["holdgate.yaml"] == (DEPLOY / f"kubernetes/{overlay}/gate.yaml").read_text()
    used = re.findall(r'"configMap": \{"name": "(holdgate-config[^"]*)"', json.dumps(manifests))
    assert set(used) == {config["metadata"]["name"]}


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return found


def containers(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from pod(manifest).get("initContainers", ())
    yield from pod(manifest).get("containers", ())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_container_has_more_than_it_needs(overlay: str) -> None:
    seen = 0
    for manifest in written(overlay):
        shared = pod(manifest).get("securityContext", {})
        if pod(manifest):
            assert pod(manifest)["automountServiceAccountToken"] is False
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(manifest))
            assert "hostPath" not in json.dumps(pod(manifest)["volumes"])
            assert shared.get("fsGroupChangePolicy", "OnRootMismatch") == "OnRootMismatch", (
                "keys stay private"
            )
        for container in containers(manifest):
            own = {**shared, **container["securityContext"]}
            seen += 1
            assert own["readOnlyRootFilesystem"] is True and own["allowPrivilegeEscalation"] is False
            assert own["capabilities"]["drop"] == ["ALL"]
            if container["name"] == "network":
                assert own["capabilities"]["add"] == ["NET_ADMIN", "DAC_READ_SEARCH"]
                continue
            assert "add" not in own["capabilities"]
            assert own["runAsNonRoot"] is True
            assert own["runAsUser"] == (AGENT_UID if container["image"] == "agent" else HOLDGATE_UID)
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert container["image"] != "agent" or "state" not in mounts
    assert seen >= 3


def test_agents_behind_the_gateway_may_send_to_holdgate_s_port_only() -> None:
    policy = next(
        one for one in written("gateway")
        if one["kind"] == "NetworkPolicy" and one["metadata"]["namespace"] == "agents"
    )  # fmt: skip
    assert policy["spec"]["podSelector"] == {} and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policy["spec"]
    (rule,) = policy["spec"]["egress"]
    (peer,) = rule["to"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "holdgate"}
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "holdgate"}
    assert rule["ports"] == [{"protocol": "TCP", "port": 8080}]


def test_in_the_sidecar_the_rules_come_before_holdgate_and_holdgate_before_the_agent() -> None:
    agent = next(one for one in written("sidecar") if one["kind"] == "StatefulSet")
    before = pod(agent)["initContainers"]
    assert [one["name"] for one in before] == ["prepare", "network", "holdgate"]
    assert before[2]["restartPolicy"] == "Always" and before[2]["startupProbe"]
    gate = yaml.safe_load((DEPLOY / "kubernetes/sidecar/gate.yaml").read_text(encoding="utf-8"))
    assert gate["agents"][0]["match"] == {"user": [AGENT_UID]}


@pytest.mark.parametrize(
    "file", ["compose/compose.yaml", "kubernetes/sidecar/agent.yaml", "kubernetes/gateway/agent.yaml"]
)
def test_agents_get_variables_that_trust_really_names(file: str) -> None:
    known = trust_env(Path("/trust/bundle.pem"), Path("/trust/ca.pem"))
    pairs = re.findall(r"\b([A-Z_]+)(?:: |, value: )(/trust/[\w.]+)", (DEPLOY / file).read_text("utf-8"))
    assert len(pairs) >= 6
    assert {name: known.get(name) for name, _ in pairs} == dict(pairs)


# --- Prometheus and Grafana ---


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    folder, promtool = DEPLOY / "prometheus", tool("promtool")
    run(promtool, "check", "rules", "holdgate.rules.yaml", cwd=folder)
    run(promtool, "test", "rules", "holdgate.rules_test.yaml", cwd=folder)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/holdgate.rules.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_has_a_test_that_fires_and_one_that_keeps_quiet() -> None:
    cases = yaml.safe_load((DEPLOY / "prometheus/holdgate.rules_test.yaml").read_text(encoding="utf-8"))
    seen: dict[str, set[bool]] = {}
    for case in (one for test in cases["tests"] for one in test["alert_rule_test"]):
        seen.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert seen == {rule["alert"]: {True, False} for rule in alerts()}
    readme = (DEPLOY / "prometheus/README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(Holdgate\w+)` \| (\w+) \|", readme, re.M))
    assert listed == {rule["alert"]: rule["labels"]["severity"] for rule in alerts()}


def exposed() -> dict[str, set[str]]:
    """Every series that Prometheus sees of us, with its labels."""
    metrics = Metrics()
    metrics.decision("s", "PERMIT", "permit_rule")
    metrics.unmapped("h")
    metrics.shadow("s", "PERMIT", "DENY")
    metrics.anchors(["w.example"])
    found: dict[str, set[str]] = {}
    for family in metrics.families():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in alerts())
    board = json.loads((DEPLOY / "grafana/holdgate.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield board["templating"]["list"][1]["definition"]


def test_rules_and_dashboard_use_metrics_and_labels_that_exist() -> None:
    known, used = exposed(), set()
    for text in expressions():
        names = re.findall(r"\bholdgate_\w+", text)
        assert names or "up{" in text, text
        assert set(names) <= set(known), text
        used.update(names)
        allowed = {"instance", "job"}.union(*(known[name] for name in names))
        for inside in re.findall(r"\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)\s*[=!]~?", inside)) <= allowed, text
        for inside in re.findall(r"\bby \(([^)]*)\)", text):
            assert set(re.split(r",\s*", inside)) <= allowed, text
    shown = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in known}
    assert {re.sub(r"_bucket$", "", name) for name in used} == shown, "a metric that nobody would see"


def test_the_dashboard_is_whole() -> None:
    board = json.loads((DEPLOY / "grafana/holdgate.json").read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) >= 10
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places), "panels overlap"
    assert max(x for x, _ in places) < 24
    for panel in board["panels"]:
        assert panel["title"] and panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}", "the data source is the reader's"
