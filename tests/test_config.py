"""config.py and config_values.py: a whole file loads, and every mistake names its line."""

from __future__ import annotations

import hashlib
import json
import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.agents import CertificateRule
from holdgate.config import Address, Config, ConnectTo, OpenDoor, ReceiptsHeader, load_config
from holdgate.config_bundle import Files, Signed
from holdgate.config_doctor import Doctor
from holdgate.config_log import Anchoring
from holdgate.config_retention import Retention
from holdgate.config_signer import SignerProcess
from holdgate.config_values import read_address, read_ca, read_networks
from holdgate.errors import ConfigError
from holdgate.escape import REQUIRED
from holdgate.keys import PublicKey
from holdgate.limits import Limits
from holdgate.note import vkey
from holdgate.strictyaml import Node
from holdgate.strictyaml import load as load_yaml
from holdgate.yamltext import Source

SHA = hashlib.sha256(b"token").hexdigest()
SHA2 = hashlib.sha256(b"token 2").hexdigest()

FULL = f"""\
version: 1
node: edge-1
state_dir: ./state
listen:
  explicit: 127.0.0.1:8080
  transparent: null
admin: {{listen: 127.0.0.1:9090, public_url: null, open: [metrics], tokens: {{ops: {{sha256: "{SHA}", roles: [operator]}}}}}}
surfaces: [./surfaces]
policies: [./policies]
bundle: {{mode: files}}
store: sqlite
gate: embedded
agents:
  - {{id: refund-bot, groups: [payments], attrs: {{accounts: [acct_1], level: 3, live: false}}, match: {{source: [127.0.0.1/32]}}}}
  - {{id: triage, groups: [clinical], match: {{token_sha256: "{SHA}"}}}}
limits: {{body_bytes: 2048, hold_s: 55, head_s: 0.5}}
receipts: {{header: reference}}
upstream:
  ca_file: null
  connect_to: {{"api.stripe.com:443": {{address: 127.0.0.1:12111, tls: false}}}}
  allow_private: [10.0.0.0/8]
"""  # noqa: E501

SMALLEST = """\
version: 1
node: edge-1
state_dir: state
listen: {explicit: 127.0.0.1:8080}
surfaces: [surfaces]
policies: [policies]
agents: []
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "surfaces").mkdir()
    (tmp_path / "policies").mkdir()
    return tmp_path


def _node(value):
    return Node(value, Source("f", ""), 0, 0, 0)


def load(folder: Path, text: str) -> Config:
    path = folder / "holdgate.yaml"
    path.write_text(text)
    return load_config(path)


def refused(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert caught.value.file.endswith("holdgate.yaml")
    assert caught.value.line > 0
    return caught.value


def test_k1_the_contract_s_file_loads(folder: Path) -> None:
    config = load(folder, FULL)
    assert (config.node, config.state_dir) == ("edge-1", folder / "state")
    assert config.listen.explicit == Address(host="127.0.0.1", port=8080)
    assert config.listen.transparent is None
    assert config.surfaces == (folder / "surfaces",)
    assert config.admin.open == {OpenDoor.METRICS}
    assert [(token.name, token.sha256.hex(), token.roles) for token in config.admin.tokens] == [
        ("ops", SHA, ("operator",))
    ]
    bot, triage = config.agents
    assert bot.agent.attrs == (("accounts", ("acct_1",)), ("level", 3), ("live", False))
    assert bot.sources == (ip_network("127.0.0.1/32"),)
    assert (triage.sources, triage.token_sha256.hex()) == ((), SHA)
    assert (config.limits.body_bytes, config.limits.hold_s, config.limits.head_s) == (2048, 55.0, 0.5)
    assert config.receipts_header is ReceiptsHeader.REFERENCE
    assert config.upstream.connect_to == (
        ConnectTo(
            name="api.stripe.com",
            port=443,
            address=Address(host="127.0.0.1", port=12111),
            tls=False,
            line=20,
        ),
    )
    assert config.upstream.allow_private == (ip_network("10.0.0.0/8"),)
    assert config.upstream.resolver == "system"


def test_kb1_signed_bundles_need_no_folders_and_files_need_both(folder: Path) -> None:
    assert load(folder, SMALLEST).bundle == Files()
    text = SMALLEST.replace("surfaces: [surfaces]\npolicies: [policies]\n", "")
    config = load(folder, text + "bundle: {mode: signed, trust: trust.json, dir: bundles/}\n")
    assert config.bundle == Signed(trust=folder / "trust.json", folder=folder / "bundles")
    assert (config.surfaces, config.policies, config.bundle.paths) == ((), (), ())
    with pytest.raises(ConfigError, match="needs the key 'surfaces'"):
        load(folder, text)


def test_k1_what_is_left_out_has_the_safe_value(folder: Path) -> None:
    config = load(folder, SMALLEST)
    assert config.limits == Limits()
    assert config.admin.listen == Address(host="127.0.0.1", port=9090)
    assert (config.admin.tokens, config.admin.open, config.admin.public_url) == ((), frozenset(), None)
    assert (config.agents, config.upstream.connect_to, config.upstream.allow_private) == ((), (), ())
    assert config.receipts_header is ReceiptsHeader.FULL


def test_k1_paths_are_relative_to_the_file_not_to_the_caller(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert load(folder, SMALLEST).surfaces == (folder / "surfaces",)


def test_k1_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holdgate init"):
        load_config(tmp_path / "holdgate.yaml")


# (text to replace in FULL, replacement, line of the mistake, part of the message)
MISTAKES = [
    pytest.param("version: 1", "version: 2", 1, "version: 1", id="another version"),
    pytest.param("version: 1", "version: '1'", 1, "must be an integer", id="version as text"),
    pytest.param("node: edge-1", "node: 1edge", 2, "a letter, then", id="node is no token"),
    pytest.param("node: edge-1", "node: 'a b'", 2, "a letter, then", id="node with a space"),
    pytest.param("state_dir: ./state", "state_dir: null", 3, "must be a string", id="no state directory"),
    pytest.param("explicit: 127.0.0.1:8080", "explicit: null", 5, "nothing to listen on", id="no listener"),
    pytest.param("explicit: 127.0.0.1:8080", "explicit: 8080", 5, "must be a string", id="a bare port"),
    pytest.param("explicit: 127.0.0.1:8080", "explicit: localhost:8080", 5, "an IP address", id="a name"),
    pytest.param("transparent: null", "transparent: 0.0.0.0:9090", 5, "share", id="listeners collide"),
    pytest.param("public_url: null", "public_url: 'https://x/?a'", 7, "without query", id="URL with a query"),
    pytest.param("open: [metrics]", "open: [receipts]", 7, "metrics, checkpoint", id="an unknown open door"),
    pytest.param("roles: [operator]", "roles: []", 7, "can do nothing", id="a token without roles"),
    pytest.param(f'sha256: "{SHA}"', "sha256: abcd", 7, "sha256sum", id="a short digest"),
    pytest.param(f'sha256: "{SHA}"', f'sha256: "{SHA.upper()}"', 7, "lower-case", id="an upper-case digest"),
    pytest.param("surfaces: [./surfaces]", "surfaces: []", 8, "nothing could ever", id="no surfaces"),
    pytest.param("surfaces: [./surfaces]", "surfaces: ./surfaces", 8, "must be a list", id="not a list"),
    pytest.param("policies: [./policies]", "policies: [./nope]", 9, "does not exist", id="a missing folder"),
    pytest.param("{mode: files}", "{mode: signed, trust: t}", 10, "needs", id="signed without a directory"),
    pytest.param("{mode: files}", "{mode: files, dir: b}", 10, "mode: signed", id="files with a directory"),
    pytest.param("{mode: files}", "{mode: auto}", 10, "one of: files, signed", id="a mode that depends"),
    pytest.param("{mode: files}", "{trust: t, dir: b}", 10, "'mode'", id="no mode"),
    pytest.param("store: sqlite", "store: mysql://u@h/db", 11, "store is `sqlite` or", id="another store"),
    pytest.param(
        "gate: embedded",
        "ext_authz: {listen: 10.0.0.5:9191}",
        12,
        "readable on the network",
        id="checks of Envoy over the network without TLS",
    ),
    pytest.param(
        "gate: embedded",
        "ext_authz: {listen: 127.0.0.1:9191}",
        12,
        "nobody may ask here",
        id="checks of Envoy that nobody may make",
    ),
    pytest.param(
        "gate: embedded",
        "ext_authz: {listen: 10.0.0.5:9191, tls: {cert_file: a, key_file: b, client_ca_file: c}}",
        12,
        "does not exist",
        id="checks of Envoy with a certificate that is not there",
    ),
    pytest.param(
        "gate: embedded",
        "ext_authz: {listen: 127.0.0.1:9191, token: x}",
        12,
        "token",
        id="a key of ext_authz that is not known",
    ),
    pytest.param(
        "gate: embedded",
        "gate: {url: https://gate:9443, protocol: opa}",
        12,
        "holdgate, authzen, trigguard",
        id="a remote gate of a protocol that is not spoken",
    ),
    pytest.param(
        "gate: embedded",
        "gate: {url: 'http://10.0.0.1:9443', protocol: authzen}",
        12,
        "only to a loopback",
        id="a remote gate without TLS",
    ),
    pytest.param(
        "gate: embedded",
        "gate: {url: https://gate:9443, protocol: holdgate}",
        12,
        "keys_file",
        id="a remote gate whose receipts nobody could verify",
    ),
    pytest.param(
        "gate: embedded",
        "gate: {url: https://gate:9443, protocol: authzen, client_cert: ./holdgate.yaml}",
        12,
        "go together",
        id="a client certificate without a key",
    ),
    pytest.param("gate: embedded", "gate: none", 12, "embedded", id="no gate at all"),
    pytest.param("roles: [operator]", "roles: [decider]", 7, "agents: [ID]", id="a decider for nobody"),
    pytest.param(
        "roles: [operator]",
        "roles: [decider], agents: [x]",
        7,
        "has the id 'x'",
        id="a decider for a stranger",
    ),
    pytest.param(
        "roles: [operator]", "roles: [operator], agents: [x]", 7, "role decider", id="agents of an operator"
    ),
    pytest.param("127.0.0.1/32]", "127.0.0.1/8]", 14, "not a CIDR block", id="host bits in a block"),
    pytest.param("127.0.0.1/32]", "'::ffff:127.0.0.1/128']", 14, "as IPv4", id="a mapped block"),
    pytest.param("level: 3", "level: [1, a]", 14, "a list of strings", id="a mixed list"),
    pytest.param("level: 3", "level: null", 14, "a string, an integer", id="an empty attribute"),
    pytest.param("level: 3", "Level: 3", 14, "lower-case", id="an attribute that no rule could name"),
    pytest.param("body_bytes: 2048", "body_bytes: 0", 16, "greater than zero", id="a zero limit"),
    pytest.param("body_bytes: 2048", "body_bytes: 99999999", 16, "body_bytes_max", id="above the cap"),
    pytest.param("body_bytes: 2048", "body_bytes: 1.5", 16, "must be an integer", id="half a byte"),
    pytest.param("hold_s: 55", "hold_s: 1e3", 16, "number of seconds", id="an exponent"),
    pytest.param("hold_s: 55", "hold_s: true", 16, "number of seconds", id="true seconds"),
    pytest.param("header: reference", "header: none", 17, "full, reference", id="an unknown header mode"),
    pytest.param("ca_file: null", "ca_file: ./nope.pem", 19, "No such file", id="a missing CA file"),
    pytest.param(
        "ca_file: null", "ca_file: ./holdgate.yaml", 19, "no PEM", id="a CA file without a certificate"
    ),
    pytest.param("api.stripe.com:443", "api.stripe.com", 20, "name and a port", id="no port"),
    pytest.param("api.stripe.com:443", "API.stripe.com:443", 20, "lower-case", id="an upper-case name"),
    pytest.param("api.stripe.com:443", "api.stripe.com:99999", 20, "name and a port", id="port too large"),
    pytest.param("api.stripe.com:443", "a*.stripe.com:443", 20, "name and a port", id="a star inside"),
    pytest.param("[10.0.0.0/8]", "[10/8]", 21, "not a CIDR block", id="half an address"),
    pytest.param("[10.0.0.0/8]", "[]\n  resolver: []", 22, "write `system`", id="no resolver at all"),
    pytest.param(
        "[10.0.0.0/8]", "[]\n  resolver: [10.0.0.53]", 22, "and a port", id="a resolver without port"
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_k1_every_mistake_names_its_line(folder: Path, old: str, new: str, line: int, message: str) -> None:
    assert FULL.count(old) >= 1
    error = refused(folder, FULL.replace(old, new, 1))
    assert message in str(error)
    assert error.line == line


@pytest.mark.parametrize("key", ["version", "node", "state_dir", "listen", "surfaces", "policies", "agents"])
def test_k1_a_key_that_is_needed_is_asked_for(folder: Path, key: str) -> None:
    text = re.sub(rf"^{key}: .*\n", "", SMALLEST, flags=re.MULTILINE)
    assert f"needs the key '{key}'" in str(refused(folder, text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("version: 1", "version: 1\nextra: 1", id="top"),
        pytest.param("  transparent: null", "  transparent: null\n  extra: x", id="listen"),
        pytest.param("public_url: null", "public_url: null, extra: 1", id="admin"),
        pytest.param("roles: [operator]", "roles: [operator], extra: 1", id="token"),
        pytest.param("{mode: files}", "{mode: files, extra: 1}", id="bundle"),
        pytest.param("{id: triage,", "{id: triage, extra: 1,", id="agent"),
        pytest.param("{source: [127.0.0.1/32]}", "{source: [127.0.0.1/32], interface: eth0}", id="match"),
        pytest.param("hold_s: 55", "holds: 55", id="limits"),
        pytest.param("{header: reference}", "{header: full, extra: 1}", id="receipts"),
        pytest.param("  ca_file: null", "  extra: null", id="upstream"),
        pytest.param("tls: false", "tls: false, extra: 1", id="connect_to"),
    ],
)
def test_k2_an_unknown_key_is_refused_at_every_depth(folder: Path, old: str, new: str) -> None:
    assert "unknown key" in str(refused(folder, FULL.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("node: edge-1", "node: edge-1\nnode: edge-2", id="top"),
        pytest.param("hold_s: 55", "hold_s: 55, hold_s: 5", id="limits"),
        pytest.param("{address:", "{tls: true, address:", id="connect_to"),
    ],
)
def test_k2_a_duplicate_key_is_refused(folder: Path, old: str, new: str) -> None:
    assert "duplicate key" in str(refused(folder, FULL.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        pytest.param("192.0.2.1:443", "only for loopback", id="plain text to the network"),
        pytest.param("127.0.0.1:9090", "own listener", id="the admin API"),
        pytest.param("127.0.0.1:8080", "own listener", id="the proxy itself"),
        pytest.param("0.0.0.0:9090", "only for loopback", id="unspecified address"),
        pytest.param("'[::ffff:127.0.0.1]:9090'", "as IPv4", id="the admin API in another spelling"),
        pytest.param("127.0.0.1:0", "and a port", id="port zero"),
    ],
)
def test_k3_connect_to_stays_off_the_network_and_off_ourselves(
    folder: Path, address: str, message: str
) -> None:
    assert message in str(refused(folder, FULL.replace("127.0.0.1:12111", address)))


def test_k3_a_wildcard_listener_counts_for_every_address(folder: Path) -> None:
    text = FULL.replace("listen: 127.0.0.1:9090", "listen: 0.0.0.0:9090")
    text = text.replace("{address: 127.0.0.1:12111, tls: false}", "{address: 192.0.2.7:9090}")
    assert "own listener 0.0.0.0:9090" in str(refused(folder, text))


def test_k3_tls_is_the_default(folder: Path) -> None:
    config = load(folder, FULL.replace("127.0.0.1:12111, tls: false", "192.0.2.1:443"))
    assert [entry.tls for entry in config.upstream.connect_to] == [True]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("{source: [127.0.0.1/32]}", "{}", "matches everybody", id="an empty match"),
        pytest.param("{source: [127.0.0.1/32]}", "{source: []}", "is empty", id="an empty source"),
        pytest.param("id: triage", "id: refund-bot", "there twice", id="two agents of one name"),
        pytest.param(
            "{source: [127.0.0.1/32]}", f'{{token_sha256: "{SHA}"}}', "same token", id="two agents, one token"
        ),
        pytest.param(
            f'ops: {{sha256: "{SHA}", roles: [operator]}}',
            f'ops: {{sha256: "{SHA}", roles: [operator]}}, b: {{sha256: "{SHA}", roles: [approver]}}',
            "same sha256",
            id="two admin tokens alike",
        ),
    ],
)
def test_k4_who_is_meant_is_never_ambiguous(folder: Path, old: str, new: str, message: str) -> None:
    assert message in str(refused(folder, FULL.replace(old, new, 1)))


@pytest.mark.parametrize(
    "text",
    ["", ":", "127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:65536", "127.0.0.1:+80", "127.0.0.1:8 0",
     "127.0.0.1:\u0668\u0660", "::1:80", "[::1]", "[127.0.0.1]:80", "127.1:80", "0x7f.0.0.1:80", "[::1]:80 "],
)  # fmt: skip
def test_v1_addresses_are_exact(text: str) -> None:
    with pytest.raises(ConfigError):
        read_address(_node(text), "x")


def test_v1_an_ipv6_address_is_printed_as_it_is_read() -> None:
    assert str(read_address(_node("[::1]:80"), "x")) == "[::1]:80"


@given(st.text(max_size=24))
def test_v1_any_text_is_a_value_or_a_configuration_error(text: str) -> None:
    for read in (
        lambda: str(read_address(_node(text), "x")),
        lambda: str(read_networks(_node([_node(text)]), "x")[0]),
    ):
        try:
            assert read()
        except ConfigError as error:
            assert error.line == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", (False, 168), id="nothing written"),
        pytest.param("ca: {constrain: true, overlap_h: 24}", (True, 24), id="both"),
        pytest.param("ca: {overlap_h: 0}", "ca.overlap_h", id="no overlap at all"),
        pytest.param("ca: {constrain: yes}", "ca.constrain", id="not a boolean"),
        pytest.param("ca: {constrained: true}", "constrained", id="an unknown key"),
    ],
)
def test_ca_says_how_the_ca_is_made_and_rotated(text: str, expected: tuple[bool, int] | str) -> None:
    node = load_yaml(f"x: 1\n{text}\n").open_mapping("test").get("ca")
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected) as refused:
            read_ca(node)
        assert refused.value.line == 2
    else:
        made = read_ca(node)
        assert (made.constrain, made.overlap_h) == expected


# --- retention ---


def test_rt1_inputs_are_kept_for_a_number_of_days_or_for_ever(folder: Path) -> None:
    assert load(folder, SMALLEST).retention == Retention(inputs_days=400)
    assert load(folder, SMALLEST + "retention: {inputs_days: 30}\n").retention.inputs_days == 30
    assert load(folder, SMALLEST + "retention: {inputs_days: null}\n").retention.inputs_days is None


@pytest.mark.parametrize(
    "text", ["{inputs_days: 0}", "{inputs_days: -1}", "{inputs_days: 1.5}", "{}", "30", "{days: 3}"]
)
def test_rt1_anything_else_is_refused(folder: Path, text: str) -> None:
    assert "retention" in str(refused(folder, SMALLEST + f"retention: {text}\n"))


# --- doctor ---


def test_kd1_required_rows_are_rows_of_the_matrix(folder: Path) -> None:
    assert load(folder, SMALLEST).doctor == Doctor(required=frozenset(), max_age_s=86_400)
    every = load(folder, SMALLEST + "doctor: {required: all, max_age_s: 600}\n")
    assert every.doctor == Doctor(required=REQUIRED, max_age_s=600)
    some = load(folder, SMALLEST + "doctor: {required: [tcp4.22, failure.killed]}\n")
    assert some.doctor.required == {"tcp4.22", "failure.killed"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{}", "required", id="nothing"),
        pytest.param("{required: []}", "is empty", id="no row"),
        pytest.param("{required: [tcp4.23]}", "doctor.required", id="a row that is not there"),
        pytest.param("{required: some}", "doctor.required", id="another word"),
        pytest.param("{required: all, max_age_s: 0}", "greater than zero", id="no age"),
        pytest.param("{required: all, witness: x}", "witness", id="an unknown key"),
    ],
)
def test_kd1_anything_else_is_refused(folder: Path, text: str, message: str) -> None:
    assert message in str(refused(folder, SMALLEST + f"doctor: {text}\n"))


# --- signer ---


def test_ks1_a_signer_is_a_socket_with_a_deadline(folder: Path) -> None:
    for text in ("", "signer: file\n"):
        assert load(folder, SMALLEST + text).signer is None
    found = load(folder, SMALLEST + "signer: {socket: run/s.sock, timeout_ms: 50}\n").signer
    assert found == SignerProcess(socket=folder / "run/s.sock", timeout_ms=50)
    found = load(folder, SMALLEST + "signer: {socket: /run/s.sock}\n").signer
    assert found == SignerProcess(socket=Path("/run/s.sock"), timeout_ms=500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("pkcs11", "signer: {socket", id="another word"),
        pytest.param("{}", "socket", id="no socket"),
        pytest.param("{socket: s, timeout_ms: 0}", "1 to 10000", id="no time"),
        pytest.param("{socket: s, timeout_ms: 10001}", "1 to 10000", id="too much time"),
        pytest.param("{socket: s, key: x}", "key", id="an unknown key"),
        pytest.param(f"{{socket: /{'s' * 120}}}", "107 bytes", id="a name that is too long"),
    ],
)
def test_ks1_any_other_signer_is_refused(folder: Path, text: str, message: str) -> None:
    assert message in str(refused(folder, SMALLEST + f"signer: {text}\n"))


# --- store ---


def test_sr1_a_store_is_sqlite_or_a_postgresql_url(folder: Path) -> None:
    for text in ("", "store: sqlite\n"):
        assert load(folder, SMALLEST + text).store is None
    found = load(folder, SMALLEST + "store: postgresql://gate:pw@127.0.0.1:5433/holdgate\n").store
    assert found is not None
    assert found.urls == ("postgresql://gate:pw@127.0.0.1:5433/holdgate?sslmode=disable",)
    assert (found.hosts, found.require_sync, found.deadline_ms) == (("127.0.0.1:5433",), False, 1000)
    assert "pw" not in repr(found)
    text = "store: {url: 'postgres://gate@/db?host=/run/pg', require_sync: true, deadline_ms: 250}\n"
    found = load(folder, SMALLEST + text).store
    assert found is not None
    assert found.urls == ("postgresql://gate@/db?sslmode=disable&host=%2Frun%2Fpg",)
    assert (found.hosts, found.require_sync, found.deadline_ms) == (("/run/pg",), True, 250)
    assert found.engine == "postgresql"
    found = load(folder, SMALLEST + "store: {url: 'postgresql://gate@h/db', engine: cockroachdb}\n").store
    assert found is not None and found.engine == "cockroachdb"


@pytest.mark.parametrize(
    ("hosts", "mode"),
    [
        pytest.param("db1.example.org,db2.example.org:6000", "verify-full", id="other machines"),
        pytest.param("[2001:db8::1]", "verify-full", id="an address"),
        pytest.param("localhost,[::1]:5433", "disable", id="this machine"),
    ],
)
def test_sr2_another_machine_must_show_its_certificate(folder: Path, hosts: str, mode: str) -> None:
    found = load(folder, SMALLEST + f"store: 'postgresql://gate@{hosts}/db'\n").store
    assert found is not None and len(found.urls) == len(hosts.split(","))
    assert all(url.endswith(f"/db?sslmode={mode}") for url in found.urls)
    asked = load(folder, SMALLEST + f"store: 'postgresql://gate@{hosts}/db?sslmode=require'\n").store
    assert asked is not None and all(url.endswith("sslmode=require") for url in asked.urls)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("redis", "store is `sqlite` or a URL", id="another word"),
        pytest.param("5", "postgresql://", id="a number"),
        pytest.param("'postgresql://secret@host'", "a URL such as", id="no database"),
        pytest.param("'postgresql://host/secret'", "names no user", id="no user"),
        pytest.param("'postgresql://secret@/db'", "?host=/run", id="no host"),
        pytest.param("'postgresql://secret@ho st/db'", "a host of the URL", id="a host with a space"),
        pytest.param("'postgresql://secret@h:99999/db'", "a host of the URL", id="a port beyond"),
        pytest.param("'postgresql://secret@h/db?sslmode=prefer'", "sslmode is one of", id="TLS perhaps"),
        pytest.param("'postgresql://secret@h/db?options=-c'", "'options' in the URL", id="an unknown word"),
        pytest.param("{url: 'postgresql://secret@h/db', deadline_ms: 5}", "deadline_ms", id="no time"),
        pytest.param("{url: 'postgresql://secret@h/db', pool: 3}", "pool", id="an unknown key"),
        pytest.param("{require_sync: true}", "url", id="no URL"),
        pytest.param(
            "{url: 'postgresql://secret@h/db', engine: yugabytedb}", "store.engine", id="another engine"
        ),
    ],
)
def test_sr1_any_other_store_is_refused_and_no_password_is_shown(
    folder: Path, text: str, message: str
) -> None:
    error = refused(folder, SMALLEST + f"store: {text}\n")
    assert message in str(error)
    assert "secret" not in str(error)


# --- log ---

WITNESS = "witness.example/w1+6aea23e9+BFGZjM/f/9g9lyRJCBjKIql6Aw0YuyqddGaPcrgcP6WI"


def witness(url: str, key: str = WITNESS) -> str:
    return f'witnesses: [{{url: "{url}", vkey: "{key}"}}]'


def test_kl1_witnesses_and_an_authority_are_named_in_full(folder: Path) -> None:
    assert load(folder, SMALLEST).anchoring == Anchoring(witnesses=(), interval_s=60, timestamp=None)
    (folder / "roots.pem").write_text("roots")
    text = f"""log:
  witnesses: [{{url: https://w.example/a/, vkey: "{WITNESS}"}}]
  timestamp: {{url: "http://127.0.0.1:318/tsr", ca_file: roots.pem, interval_s: 60}}
"""
    found = load(folder, SMALLEST + text).anchoring
    assert [(each.url, each.verifier.name) for each in found.witnesses] == [
        ("https://w.example/a", "witness.example/w1")
    ]
    assert found.timestamp is not None and found.timestamp.ca_file == folder / "roots.pem"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(witness("http://w.example"), "https", id="no https"),
        pytest.param(witness("http://127.0.0.1.w.example"), "https", id="no loopback"),
        pytest.param(witness("https://w.example/?x"), "https", id="a query"),
        pytest.param(witness("https://u@w.example/"), "https", id="a user"),
        pytest.param(witness("https://w.example:99999"), "Port out of range", id="no port"),
        pytest.param(witness("https://[::1/"), "Invalid IPv6 URL", id="half a bracket"),
        pytest.param(witness("https://w.example", "x"), "vkey", id="no key"),
        pytest.param(
            witness("https://w.example", vkey("l.example", PublicKey(raw=bytes(32)))),
            "not a witness key",
            id="a log's key",
        ),
        pytest.param(
            witness("https://a")[:-1] + ", " + witness("https://b")[12:], "two witnesses", id="twice"
        ),
        pytest.param("interval_s: 0", "1 to 86400", id="no interval"),
        pytest.param("timestamp: {url: https://tsa.example}", "ca_file", id="no roots"),
        pytest.param(
            "timestamp: {url: https://tsa.example, ca_file: none.pem}", "does not exist", id="lost roots"
        ),
        pytest.param("quorum: 1", "quorum", id="an unknown key"),
    ],
)
def test_kl1_any_other_place_is_refused(folder: Path, text: str, message: str) -> None:
    assert message in str(refused(folder, SMALLEST + f"log:\n  {text}\n"))


# --- client certificates ---

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def certified(san: str, ca_file: str = "agents.pem") -> str:
    match = f"{{client_cert: {{ca_file: {ca_file}, san: {json.dumps(san)}}}}}"
    return SMALLEST.replace("agents: []", f"agents: [{{id: a, match: {match}}}]")


@pytest.mark.parametrize(
    "san", ["spiffe://example.org/a", "spiffe://td-1.example_x/ns/a.b/sa/C_d-e", "bot.agents.internal", "a.b"]
)
def test_kc1_one_exact_name_is_read(folder: Path, san: str) -> None:
    (folder / "agents.pem").write_text(PEM)
    (rule,) = load(folder, certified(san)).agents
    assert rule.certificate == CertificateRule(ca_file=folder / "agents.pem", san=san)


@pytest.mark.parametrize(
    "san",
    [
        *("", "spiffe://example.org", "spiffe://example.org/", "spiffe:///a", "spiffe://example.org/a/"),
        *(
            "spiffe://example.org//a",
            "spiffe://example.org/../a",
            "spiffe://example.org/a/.",
            "SPIFFE://e.org/a",
        ),
        *("spiffe://Example.org/a", "spiffe://u@e.org/a", "spiffe://e.org:1/a", "spiffe://e.org/a?b", "a#b"),
        *("spiffe://e.org/%61", "spiffe://e.org/*", "https://e.org/a", "*.agents.internal", "Bot.internal"),
        *("bot", "bot.internal.", "10.0.0.1", "a..b", "-a.b", "spiffe://e.org/" + "a" * 2048),
    ],
)
def test_kc1_a_pattern_an_address_or_half_a_name_is_refused(folder: Path, san: str) -> None:
    (folder / "agents.pem").write_text(PEM)
    assert "client_cert.san" in str(refused(folder, certified(san)))


def test_kc1_a_file_without_a_certificate_is_refused(folder: Path) -> None:
    (folder / "empty.pem").write_text("")
    for name in ("empty.pem", "missing.pem"):
        assert "client_cert.ca_file" in str(refused(folder, certified("a.b", name)))


def test_k4_two_agents_of_one_certificate_are_refused(folder: Path) -> None:
    (folder / "agents.pem").write_text(PEM)
    one = "{id: %s, match: {client_cert: {ca_file: agents.pem, san: a.b}}}"
    text = SMALLEST.replace("agents: []", f"agents: [{one % 'a'}, {one % 'b'}]")
    assert "same certificate" in str(refused(folder, text))


def test_ext_authz_has_a_listener_of_its_own(tmp_path: Path) -> None:
    ops = f'ops: {{sha256: "{SHA}", roles: [operator]}}'
    decider = f'{ops}, envoy: {{sha256: "{SHA2}", roles: [decider], agents: [triage]}}'
    text = FULL.replace(ops, decider)
    (tmp_path / "surfaces").mkdir()
    (tmp_path / "policies").mkdir()
    path = tmp_path / "holdgate.yaml"
    path.write_text(text)
    assert load_config(path).ext_authz is None
    path.write_text(text + "ext_authz: {listen: 127.0.0.1:9191}\n")
    found = load_config(path).ext_authz
    assert found is not None and (str(found.listen), found.tls) == ("127.0.0.1:9191", None)
    path.write_text(text + "ext_authz: {listen: 127.0.0.1:9090}\n")
    with pytest.raises(ConfigError, match="two listeners share"):
        load_config(path)
    path.write_text(
        text.replace("127.0.0.1:12111", "127.0.0.1:9191") + "ext_authz: {listen: 127.0.0.1:9191}\n"
    )
    with pytest.raises(ConfigError, match="own listener"):
        load_config(path)
