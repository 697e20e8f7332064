"""trust_roots.py: a chain of roots that only its own keys can prolong."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from bundles import ALICE, BOB, CAROL, MALLORY, roots
from holdgate.manifest import BundleRejected, Refusal
from holdgate.trust_roots import (
    Link,
    Roots,
    current_roots,
    encode_chain,
    next_link,
    parse_chain,
    sign_link,
)

FIRST = Link(roots=roots(), signatures=())


def follow(keys: Sequence[object], *signers: object, threshold: int = 2, new_epoch: bool = False) -> Link:
    link = next_link([FIRST], [key.public for key in keys], threshold, new_epoch=new_epoch)  # type: ignore[attr-defined]
    for key in signers:
        link = sign_link(link, key)  # type: ignore[arg-type]
    return link


def refused(links: Sequence[Link], known: tuple[int, str] | None = None) -> Refusal:
    with pytest.raises(BundleRejected) as caught:
        current_roots(parse_chain(encode_chain(links)), known)
    return caught.value.reason


def test_tr1_a_version_signed_by_enough_keys_of_the_one_before_it_follows() -> None:
    second = follow([BOB, CAROL], ALICE, BOB)
    assert current_roots(parse_chain(encode_chain([FIRST, second])), None) == second.roots
    assert second.roots.version == 2


@pytest.mark.parametrize(
    ("signers", "reason"),
    [
        pytest.param((), Refusal.TRUST_NOT_SIGNED, id="nobody"),
        pytest.param((ALICE,), Refusal.TRUST_NOT_SIGNED, id="too few"),
        pytest.param((ALICE, ALICE), Refusal.TRUST_NOT_SIGNED, id="one twice"),
        pytest.param((ALICE, MALLORY), Refusal.TRUST_NOT_SIGNED, id="a stranger"),
    ],
)
def test_tr1_anything_less_does_not(signers: tuple[object, ...], reason: Refusal) -> None:
    assert refused([FIRST, follow([MALLORY, CAROL], *signers)]) is reason


def test_tr1_new_keys_cannot_bring_themselves_in() -> None:
    assert refused([FIRST, follow([MALLORY], MALLORY, threshold=1)]) is Refusal.TRUST_NOT_SIGNED


def test_tr1_a_signature_over_another_version_counts_not() -> None:
    right, other = follow([BOB, CAROL], ALICE, BOB), follow([MALLORY, CAROL])
    forged = Link(roots=other.roots, signatures=right.signatures)
    assert refused([FIRST, forged]) is Refusal.BAD_SIGNATURE


def test_tr2_versions_ascend_by_one_and_epochs_never_descend() -> None:
    skipped = Link(roots=roots(version=3), signatures=())
    assert refused([FIRST, skipped]) is Refusal.TRUST_MALFORMED
    newer = Link(roots=roots(epoch=2), signatures=())
    back = Link(roots=roots(version=2, epoch=1), signatures=())
    assert refused([newer, back]) is Refusal.TRUST_MALFORMED
    assert follow([ALICE, BOB], new_epoch=True).roots.epoch == 2


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda row: row["keys"].append(row["keys"][0]), id="a key twice"),
        pytest.param(lambda row: row.update(threshold=4), id="more than there are"),
        pytest.param(lambda row: row.update(threshold=0), id="nobody needs to sign"),
        pytest.param(lambda row: row.update(threshold=True), id="true"),
        pytest.param(lambda row: row.update(keys=[]), id="no keys"),
        pytest.param(lambda row: row.update(more=1), id="another field"),
        pytest.param(lambda row: row["keys"][0].update(kty="RSA"), id="another kind of key"),
        pytest.param(lambda row: row["keys"][0].update(x="AA"), id="a short key"),
    ],
)
def test_tr2_roots_that_cannot_be_right_are_refused(spoil: object) -> None:
    value = json.loads(encode_chain([FIRST]))
    spoil(value["chain"][0]["roots"])  # type: ignore[operator]
    with pytest.raises(BundleRejected) as caught:
        parse_chain(json.dumps(value).encode())
    assert caught.value.reason is Refusal.TRUST_MALFORMED


@pytest.mark.parametrize("data", [b"", b"[]", b'{"v":1,"chain":[]}', b'{"v":1,"v":1,"chain":[]}', b"\xff"])
def test_tr2_what_is_no_chain_is_refused(data: bytes) -> None:
    with pytest.raises(BundleRejected):
        parse_chain(data)


def test_tr3_a_node_goes_on_from_the_version_it_knows_and_never_back() -> None:
    second = follow([BOB, CAROL], ALICE, BOB)
    known = 2, second.roots.digest
    assert current_roots([FIRST, second], known) == second.roots
    assert current_roots([second], known) == second.roots
    assert refused([FIRST], known) is Refusal.TRUST_ROLLED_BACK
    other = Link(roots=Roots(version=2, epoch=1, threshold=1, keys=roots(MALLORY).keys), signatures=())
    assert refused([other], known) is Refusal.TRUST_NOT_SIGNED
    long = [Link(roots=roots(MALLORY, threshold=1, version=n), signatures=()) for n in (5,)]
    assert refused(long, known) is Refusal.TRUST_NOT_SIGNED
