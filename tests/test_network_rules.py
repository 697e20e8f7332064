"""network_rules.py: the nftables script as text. tests/integration/test_network.py loads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.config import Address, NetworkMode, load_config
from holdgate.errors import ConfigError
from holdgate.network_rules import MARK, Boundary, boundary_of, render, render_closed, routing, twin

RULE = re.compile(r"^    (?!type )(.*)$", re.MULTILINE)
CHAIN = re.compile(r"^  chain (\w+) \{\n(?:    (type [^\n]*)\n)?", re.MULTILINE)
ANY = Address(host="0.0.0.0", port=8443)
DNS = Address(host="0.0.0.0", port=5353)
PROXY = Address(host="127.0.0.1", port=8080)


def boundary(**changes: object) -> Boundary:
    known: dict[str, object] = {"users": ((1000, 1000),), "interfaces": ("agents0",)}
    known |= {"transparent": ANY, "dns": DNS, "explicit": PROXY, "mode": NetworkMode.REDIRECT}
    return Boundary(**(known | changes))  # type: ignore[arg-type]


uids = st.tuples(st.integers(1, 9), st.integers(0, 3)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def some_boundaries(draw: st.DrawFn) -> Boundary:
    users = tuple(draw(st.lists(uids, max_size=3)))
    least = 0 if users else 1
    names = st.sampled_from(["agents0", "veth*", "cali*"])
    hosts = st.sampled_from(["0.0.0.0", "127.0.0.1", "::1", "10.0.0.1"])
    return boundary(
        users=users,
        interfaces=tuple(draw(st.lists(names, min_size=least, max_size=2, unique=True))),
        dns=draw(st.sampled_from([None, DNS])),
        mode=draw(st.sampled_from(NetworkMode)),
        explicit=draw(st.none() | hosts.map(lambda host: Address(host=host, port=8080))),
    )


def rules(script: str) -> list[str]:
    return RULE.findall(script)


def chains(script: str) -> dict[str, tuple[str, list[str]]]:
    """name -> (what makes it a base chain, or "", its rules)."""
    found: dict[str, tuple[str, list[str]]] = {}
    for part in re.split(r"^  \}$", script, flags=re.MULTILINE):
        head = CHAIN.search(part)
        if head is not None:
            found[head[1]] = head[2] or "", rules(part)
    return found


OURS = re.compile(
    r"(ip daddr 127\.0\.0\.1 |ip6 daddr ::1 )?ct status dnat (tcp dport 8443|(tcp|udp) dport 5353) accept"
    r"|(ip daddr [0-9.]+|ip6 daddr ::1|fib daddr type local) tcp dport 8080 accept"
    rf"|meta mark {MARK:#x} socket transparent 1 meta l4proto tcp accept"
    rf"|meta nfproto ipv(?:4 meta l4proto tcp tproxy ip|6 meta l4proto tcp tproxy ip6) to :8443"
    rf" meta mark set {MARK:#x} accept"
    r"|icmpv6 type \{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit \} accept"
)


@given(some_boundaries())
def test_n1_whatever_is_let_through_goes_to_a_listener_of_ours(around: Boundary) -> None:
    script = render(around)
    for rule in rules(script):
        if rule.endswith("accept"):
            assert OURS.fullmatch(rule), rule
    found = chains(script)
    for name in ("from_local", "from_interface"):
        assert found[name][1][-1] == "counter drop", "what no rule names ends here"
    for name in around.interfaces:
        assert f'iifname "{name}" counter drop' in found["filter_passing"][1]
        assert f'oifname "{name}" counter drop' in found["filter_passing"][1]


@given(some_boundaries())
def test_n2_nothing_is_let_through_for_being_established(around: Boundary) -> None:
    assert "established" not in render(around) + render_closed(around)


@given(some_boundaries(), some_boundaries())
def test_n3_scripts_share_their_chains_and_replace_all_rules_in_place(one: Boundary, two: Boundary) -> None:
    scripts = [render(one), render(two), render_closed(one)]
    for script in scripts:
        assert script.startswith(
            "add table inet holdgate\nflush table inet holdgate\ntable inet holdgate {\n"
        )
        assert "delete" not in script
    heads = [{name: head for name, (head, _) in chains(script).items()} for script in scripts]
    assert heads[0] == heads[1] == heads[2]
    assert sum(bool(head) for head in heads[0].values()) == 6


@given(some_boundaries())
def test_n4_rules_of_base_chains_name_agents(around: Boundary) -> None:
    for script in (render(around), render_closed(around)):
        for head, each in chains(script).values():
            assert not head or "policy accept;" in head
            if head:
                assert all(re.match(r"(meta skuid \{ |[io]ifname \")", rule) for rule in each)


@given(some_boundaries())
def test_n5_the_closed_script_only_drops(around: Boundary) -> None:
    said = [rule for _, each in chains(render_closed(around)).values() for rule in each]
    assert said and all(
        re.fullmatch(r"(meta skuid \{ [0-9, -]+ \}|[io]ifname \"[a-z0-9*]+\") drop", r) for r in said
    )
    assert sum("skuid" in rule for rule in said) == bool(around.users)
    assert len(said) == bool(around.users) + 3 * len(around.interfaces)


@given(some_boundaries())
def test_n6_only_what_arrives_from_agents_is_diverted_and_only_to_our_socket(around: Boundary) -> None:
    found = chains(render(around))
    diverting = [name for name, (_, each) in found.items() if any("tproxy" in rule for rule in each)]
    jumping = [name for name, (_, each) in found.items() if any("jump to_socket" in rule for rule in each)]
    marked = [name for name, (_, each) in found.items() if any("meta mark 0x" in rule for rule in each)]
    if not around.diverts:
        assert (diverting, jumping, marked) == ([], [], [])
        return
    assert (diverting, jumping, marked) == (["to_socket"], ["divert_arriving"], ["from_interface"])
    assert found["divert_arriving"][0].startswith("type filter hook prerouting ")
    assert found["divert_arriving"][1] == [f'iifname "{name}" jump to_socket' for name in around.interfaces]
    assert "tproxy" not in render_closed(around)
    assert not any("tcp redirect" in rule for rule in found["to_stub"][1]), "but for questions"
    # What users of this machine meet is the same in both modes.
    plain = chains(render(replace(around, mode=NetworkMode.REDIRECT)))
    for name in ("redirect_local", "to_listeners", "filter_local", "from_local"):
        assert found[name] == plain[name]


def test_n6_the_route_takes_marked_packets_and_no_other() -> None:
    assert routing(family=6) == (
        "-6 route replace local default dev lo table 18503",
        "-6 rule add preference 18502 iif lo fwmark 0x48474154 lookup main",
        "-6 rule add preference 18503 fwmark 0x48474154 lookup 18503",
    )


def test_a_whole_script_reads_like_this() -> None:
    script = render(boundary(users=((1000, 1000), (100000, 165535)), interfaces=(), explicit=None))
    found = chains(script)
    assert found["redirect_local"][1] == ["meta skuid { 1000, 100000-165535 } jump to_listeners"]
    assert found["to_listeners"][1] == [
        "udp dport 53 redirect to :5353",
        "tcp dport 53 redirect to :5353",
        "meta l4proto tcp redirect to :8443",
    ]
    assert found["filter_passing"][1] == []


def test_quic_is_refused_at_once_and_not_just_dropped() -> None:
    for name in ("from_local", "from_interface"):
        each = chains(render(boundary()))[name][1]
        assert each.index("udp dport 443 counter reject") == each.index("counter drop") - 1


def test_without_a_stub_resolver_questions_are_dropped() -> None:
    assert "dport 53" not in render(boundary(dns=None))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"users": (), "interfaces": ()}, id="nobody"),
        pytest.param({"users": ((0, 5),)}, id="root in a range"),
        pytest.param({"users": ((7, 6),)}, id="an empty range"),
        pytest.param({"interfaces": ('a"; accept; #',)}, id="a name that is a script"),
    ],
)
def test_a_boundary_that_could_not_hold_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        boundary(**changes)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("0.0.0.0:1", "[::]:1"), ("127.0.0.1:1", "[::1]:1"), ("10.0.0.1:1", "None"), ("127.0.0.1:0", "None")],
)
def test_redirect_targets_have_an_ipv6_twin(address: str, expected: str) -> None:
    host, _, port = address.partition(":")
    assert str(twin(Address(host=host, port=int(port)))) == expected


# --- from a configuration ---

CONFIG = """\
version: 1
node: edge-1
state_dir: ./state
listen: {listen}
surfaces: [./surfaces]
policies: [./policies]
agents: [{agent}]
{more}
"""


type Write = Callable[..., Boundary]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    for name in ("surfaces", "policies"):
        (tmp_path / name).mkdir()

    def write(
        listen: str = "{transparent: '0.0.0.0:8443'}", agent: str = "{user: [1234]}", more: str = ""
    ) -> Boundary:
        path = tmp_path / "holdgate.yaml"
        path.write_text(CONFIG.format(listen=listen, agent=f"{{id: a, match: {agent}}}", more=more))
        return boundary_of(
            load_config(path), proxy_uid=4321, subordinate={1234: ((5000, 5009), (1235, 1236))}
        )

    return write


def test_agents_are_forced_under_every_uid_that_they_can_take_on(written: Write) -> None:
    assert written().users == ((1234, 1236), (5000, 5009))
    assert written(agent="{user: [7]}").users == ((7, 7),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"agent": "{source: [10.0.0.0/8]}"}, "no agent to force", id="nobody to force"),
        pytest.param({"agent": "{user: [4321]}"}, "Holdgate runs as it", id="the proxy's own user"),
        pytest.param({"agent": "{user: [0]}"}, "uid 0 cannot be an agent", id="root"),
        pytest.param({"agent": "{user: [no-such-user]}"}, "this machine has no user", id="unknown user"),
        pytest.param({"agent": "{user: []}"}, "user of a is empty", id="no user"),
        pytest.param(
            {"listen": "{explicit: '127.0.0.1:8080'}"}, "listen.transparent is off", id="no listener"
        ),
        pytest.param({"listen": "{transparent: '10.0.0.1:8443'}"}, "write 127.0.0.1:8443", id="one address"),
        pytest.param(
            {"listen": "{transparent: '127.0.0.1:8443'}", "more": "network: {interfaces: [a0]}"},
            "write 0.0.0.0:8443",
            id="loopback for others",
        ),
        pytest.param(
            {"listen": "{transparent: '0.0.0.0:8443', dns: '10.0.0.1:53'}"}, "listen.dns", id="stub elsewhere"
        ),
        pytest.param(
            {"more": "network: {interfaces: [lo]}"},
            "name the interface of the agents",
            id="loopback",
        ),
        pytest.param(
            {"listen": "{explicit: '127.0.0.1:1'}", "more": "network: {interfaces: [a0], mode: tproxy}"},
            "write `transparent: 0.0.0.0:8443`",
            id="nothing to divert to",
        ),
        pytest.param(
            {"more": "network: {interfaces: [a0], mode: mirror}"},
            "redirect, tproxy",
            id="unknown mode",
        ),
        pytest.param({"more": "network: {mode: tproxy}"}, "interfaces", id="a mode for nobody"),
        pytest.param({"more": "network: {interfaces: [a b]}"}, "the name of an interface", id="not a name"),
        pytest.param({"more": "network: {ports: [1]}"}, "unknown key", id="unknown key"),
    ],
)
def test_a_configuration_that_would_leave_a_hole_is_refused(
    written: Write, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        written(**changes)
    assert said in str(caught.value)
