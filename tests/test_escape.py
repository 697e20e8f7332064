"""escape.py: the matrix and the plan of one run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdgate.adapters.doctor.probe import PROBES
from holdgate.adapters.doctor.witness import TOKEN
from holdgate.escape import CELLS, MATRIX, NETWORK, REQUIRED, Judge, Targets, plan, row_of, token_of

RUN = "0123456789abcdef" * 2
TARGETS = Targets(
    witness4="203.0.113.9",
    witness6="2001:db8:9::1",
    proxy="10.0.0.1:8080",
    admin="10.0.0.1:9090",
    transparent=True,
    files=("/state/ca/ca.key",),
    sockets=("/state/run/control.sock",),
    pid=4711,
)


def test_em1_every_row_has_a_token_of_its_own_and_the_token_names_it() -> None:
    tokens = [token_of(RUN, name) for name in MATRIX]
    assert len(set(tokens)) == len(set(MATRIX)) == len(MATRIX)
    assert [row_of(token) for token in tokens] == list(MATRIX)
    assert {len(token) for token in tokens} == {38}
    assert row_of("hgp" + RUN + "999") == ""


@pytest.mark.parametrize("probe", plan(RUN, TARGETS), ids=lambda probe: probe.id)
def test_em2_what_is_sent_names_its_row(probe: object) -> None:
    cell = CELLS[probe.id]  # type: ignore[attr-defined]
    sent = "".join((*probe.send, *probe.args))  # type: ignore[attr-defined]
    if cell.judge in (Judge.WITNESS, Judge.CONTROL):
        assert token_of(RUN, probe.id) in sent  # type: ignore[attr-defined]
    assert probe.kind in PROBES  # type: ignore[attr-defined]
    assert "{" not in sent
    assert max(map(ord, sent), default=0) < 256


@pytest.mark.parametrize("before", [b"", b"4", b"\x004", b"abc123"])
def test_em2_the_witness_reads_a_token_whatever_stands_before_it(before: bytes) -> None:
    token = token_of(RUN, "direct.tls")
    assert TOKEN.findall(before + token.encode() + b"9.holdgate") == [token.encode()]


def test_the_matrix_covers_what_it_promises() -> None:
    ports = {22, 25, 53, 80, 443, 853, 8080, 8443, 40001}
    for version in (4, 6):
        assert {f"tcp{version}.{port}" for port in ports} <= REQUIRED
        assert {f"udp{version}.{port}" for port in (53, 443, 40001)} <= REQUIRED
        assert {f"icmp{version}", f"sctp{version}"} <= REQUIRED
    assert {"metadata.v4", "metadata.v6", "proxy.nested_connect", "proxy.admin", "admin.direct"} <= REQUIRED
    assert set(NETWORK) < REQUIRED


def test_a_row_whose_target_is_not_given_has_no_probe() -> None:
    planned = {probe.id for probe in plan(RUN, replace(TARGETS, proxy="", witness6=""))}
    assert not [name for name in planned if name.startswith("proxy.") or "6" in name.partition(".")[0]]
    assert "control.explicit" not in planned and "tcp4.22" in planned
    literal = {probe.id: probe for probe in plan(RUN, replace(TARGETS, proxy="[2001:db8::8]:8080"))}
    assert (literal["proxy.self"].host, literal["proxy.self"].port) == ("2001:db8::8", 8080)
