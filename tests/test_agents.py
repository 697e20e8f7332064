"""agents.py: who a connection is. Source and token, alone and together, and every way to be nobody."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate import agents
from holdgate.agents import Agent, AgentRule, identify
from holdgate.errors import InputError, Reason
from holdgate.message import Listener, Origin


def rule(
    name: str, *, source: tuple[str, ...] = (), token: str = "", users: tuple[int, ...] = ()
) -> AgentRule:
    return AgentRule(
        agent=Agent(id=name, groups=("g",), attrs=(("accounts", ("acct_1",)),)),
        sources=tuple(ip_network(text) for text in source),
        token_sha256=hashlib.sha256(token.encode()).digest() if token else b"",
        users=users,
    )


def origin(source: str = "127.0.0.1", *credentials: bytes, listener: Listener = Listener.EXPLICIT) -> Origin:
    return Origin(
        listener=listener,
        tls=True,
        source=source,
        source_port=40000,
        connect=("api.stripe.com", 443),
        sni="api.stripe.com",
        original_port=None,
        proxy_authorization=credentials,
    )


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


LOCAL = rule("local", source=("127.0.0.1/32", "::1/128"))
NET = rule("net", source=("10.1.0.0/16",))
TOKEN = rule("triage", token="s3cret")
BOTH = rule("both", source=("10.2.0.0/16",), token="other")
RULES = (LOCAL, NET, TOKEN, BOTH)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        pytest.param(origin("127.0.0.1"), "local", id="source address"),
        pytest.param(origin("::1"), "local", id="IPv6 source"),
        pytest.param(origin("10.1.2.3"), "net", id="source in a block"),
        pytest.param(origin("10.1.2.3", listener=Listener.TRANSPARENT), "net", id="transparent"),
        pytest.param(origin("192.0.2.1", basic("triage:s3cret")), "triage", id="basic token from anywhere"),
        pytest.param(
            origin("192.0.2.1", b"bEARER s3cret"), "triage", id="bearer token, any case of the scheme"
        ),
        pytest.param(origin("10.2.0.9", b"Bearer other"), "both", id="token and source"),
    ],
)
def test_a1_exactly_one_rule_gives_an_agent(where: Origin, expected: str) -> None:
    assert identify(where, RULES).id == expected


@pytest.mark.parametrize(
    ("where", "rules", "detail"),
    [
        pytest.param(origin(), (), "no agent matches", id="no rules at all"),
        pytest.param(origin("192.0.2.1"), (LOCAL, NET), "no agent matches", id="source in no block"),
        pytest.param(origin(), (LOCAL, rule("twin", source=("127.0.0.0/8",))), "several", id="two sources"),
        pytest.param(
            origin("127.0.0.1", b"Bearer s3cret"), RULES, "several", id="a good token and another's source"
        ),
        pytest.param(
            origin("192.0.2.1", b"Bearer x"),
            (rule("one", token="x"), rule("two", token="x")),
            "several",
            id="two owners of a token",
        ),
        pytest.param(origin("not an address"), RULES, "not an IP address", id="nonsense source"),
        pytest.param(origin("2001:db8::1"), RULES, "no Proxy-Authorization", id="IPv6 is not IPv4"),
    ],
)
def test_a1_none_or_several_rules_are_unknown(
    where: Origin, rules: tuple[AgentRule, ...], detail: str
) -> None:
    with pytest.raises(InputError, match=detail) as caught:
        identify(where, rules)
    assert caught.value.reason is Reason.UNKNOWN_AGENT


@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param((b"Bearer wrong",), id="wrong token"),
        pytest.param((basic("local:s3cret"),), id="another agent's id"),
        pytest.param((basic("triage"),), id="no colon"),
        pytest.param((basic("triage:"),), id="empty token"),
        pytest.param((b"Basic !!!",), id="not base64"),
        pytest.param((b"Basic dHJpYWdlOnMzY3JldA",), id="base64 without padding"),
        pytest.param((basic("triage:s3cret") + b"=",), id="base64 with padding too much"),
        pytest.param((b"Basic dHJpYWdlOnMzY3JldB==",), id="base64 with bits that nobody reads"),
        pytest.param((b"Basic " + base64.b64encode(b"triage:\xff"),), id="not UTF-8 inside"),
        pytest.param((b"Bearer \xff\xfe",), id="not UTF-8"),
        pytest.param((b"Digest s3cret",), id="another scheme"),
        pytest.param((b"s3cret",), id="no scheme"),
        pytest.param((b"",), id="empty header"),
        pytest.param((b"Bearer " + b"x" * 5000,), id="far too long"),
        pytest.param((b"Bearer s3cret", b"Bearer s3cret"), id="two headers"),
        pytest.param((b"Bearer other",), id="a good token from the wrong source"),
    ],
)
def test_a2_bad_credentials_never_fall_back_to_the_source(credentials: tuple[bytes, ...]) -> None:
    assert identify(origin(), RULES).id == "local"  # the same connection without credentials
    with pytest.raises(InputError) as caught:
        identify(origin("127.0.0.1", *credentials), RULES)
    assert (caught.value.reason, caught.value.status) == (Reason.UNKNOWN_AGENT, 403)


def test_a2_credentials_that_nobody_asked_for_are_not_ignored() -> None:
    with pytest.raises(InputError, match="matches no agent"):
        identify(origin("127.0.0.1", b"Bearer x"), (LOCAL,))


@pytest.mark.parametrize(
    ("where", "rules", "status"),
    [
        pytest.param(origin("192.0.2.1"), RULES, 407, id="token wanted and none came"),
        pytest.param(origin("192.0.2.1"), (LOCAL,), 403, id="no rule wants a token"),
        pytest.param(origin("192.0.2.1", b"Bearer x"), RULES, 403, id="a token came"),
        pytest.param(
            origin("192.0.2.1", listener=Listener.TRANSPARENT), RULES, 403, id="client sees no proxy"
        ),
        pytest.param(origin(), (LOCAL, *RULES), 403, id="several sources"),
    ],
)
def test_a3_407_only_where_credentials_would_help(
    where: Origin, rules: tuple[AgentRule, ...], status: int
) -> None:
    with pytest.raises(InputError) as caught:
        identify(where, rules)
    assert caught.value.status == status


def test_a4_an_ipv4_mapped_source_is_the_ipv4_source() -> None:
    assert identify(origin("::ffff:10.1.2.3"), RULES).id == "net"


def test_a5_every_token_rule_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    class Recorder:
        @staticmethod
        def compare_digest(left: bytes, right: bytes) -> bool:
            compared.append(left)
            return left == right

    monkeypatch.setattr(agents, "hmac", Recorder)
    rules = (TOKEN, BOTH, rule("third", token="third"))
    assert identify(origin("192.0.2.1", b"Bearer s3cret"), rules).id == "triage"
    assert compared == [each.token_sha256 for each in rules]


@given(st.binary(max_size=60), st.sampled_from([b"", b"Basic ", b"Bearer ", b"basic  "]))
def test_any_credential_is_an_agent_or_unknown_agent(rest: bytes, scheme: bytes) -> None:
    try:
        found = identify(origin("192.0.2.1", scheme + rest), RULES)
    except InputError as error:
        assert error.reason is Reason.UNKNOWN_AGENT
    else:
        assert found.id in {"triage", "both"}


def test_a_rule_that_looks_at_nothing_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="match everybody"):
        rule("everybody")
    with pytest.raises(ValueError, match="32 bytes"):
        dataclasses.replace(TOKEN, token_sha256=b"short")


def test_the_record_is_plain_json() -> None:
    record = identify(origin(), RULES).record()
    assert record == {"id": "local", "groups": ["g"], "attrs": {"accounts": ["acct_1"]}}


USER = rule("ci", users=(1000,))
USER_THERE = rule("ci-there", users=(1001,), source=("10.1.0.0/16",))


@pytest.mark.parametrize(
    ("where", "rules", "expected"),
    [
        pytest.param(
            dataclasses.replace(origin(), vouched="net"), RULES, "net", id="whatever its match says"
        ),
        pytest.param(
            dataclasses.replace(origin(), vouched="nobody"), RULES, None, id="an id that is not there"
        ),
        pytest.param(
            dataclasses.replace(origin("127.0.0.1", basic("triage:s3cret")), vouched="local"),
            RULES,
            None,
            id="somebody else's token does not change it",
        ),
        pytest.param(
            dataclasses.replace(origin("127.0.0.1", b"Bearer wrong"), vouched="local"),
            RULES,
            None,
            id="a wrong token is not ignored",
        ),
    ],
)
def test_a6_what_exec_vouches_for_is_that_agent_or_nobody(
    where: Origin, rules: tuple[AgentRule, ...], expected: str | None
) -> None:
    if expected is not None:
        assert identify(where, rules).id == expected
        return
    with pytest.raises(InputError) as caught:
        identify(where, rules)
    assert caught.value.reason is Reason.UNKNOWN_AGENT


@pytest.mark.parametrize(
    ("uid", "source", "expected"),
    [
        pytest.param(1000, "192.0.2.1", "ci", id="the owner of the socket"),
        pytest.param(1001, "10.1.2.3", "ci-there", id="owner and source"),
        pytest.param(1001, "192.0.2.1", None, id="the owner, from elsewhere"),
        pytest.param(1002, "10.1.2.3", None, id="another user"),
        pytest.param(None, "10.1.2.3", None, id="nobody could say"),
    ],
)
def test_a7_a_rule_with_users_needs_the_owner_of_the_socket(
    uid: int | None, source: str, expected: str | None
) -> None:
    where = dataclasses.replace(origin(source), uid=uid)
    if expected is not None:
        assert identify(where, (USER, USER_THERE)).id == expected
        return
    with pytest.raises(InputError):
        identify(where, (USER, USER_THERE))
