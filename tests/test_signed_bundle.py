"""signed_bundle.py: the table of attacks on what was read, each with a reason of its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from bundles import ALICE, BOB, CAROL, DAY_S, FILES, MALLORY, NOW_S, bundle, limit, manifest, roots
from holdgate.keys import b64url
from holdgate.manifest import (
    TYPE,
    BundleRejected,
    Refusal,
    Signature,
    encode_signatures,
    manifest_digest,
    pae,
    sign_manifest,
)
from holdgate.signed_bundle import Mark, RawBundle, check_signed
from holdgate.trust_roots import Roots

ROOTS = roots()
FIRST = bundle()
MARK = Mark(epoch=1, revision=5, digest="sha256:" + "ab" * 32)


def refused(raw: RawBundle, trust: Roots = ROOTS, mark: Mark | None = None) -> Refusal:
    with pytest.raises(BundleRejected) as caught:
        check_signed(raw, trust, now_s=NOW_S, mark=mark)
    return caught.value.reason


def test_sb1_a_bundle_that_enough_people_signed_is_taken() -> None:
    assert check_signed(FIRST, ROOTS, now_s=NOW_S, mark=None) == manifest()
    assert check_signed(bundle(keys=(ALICE, BOB, CAROL, MALLORY)), ROOTS, now_s=NOW_S, mark=None)


def without(path: str) -> dict[str, bytes]:
    return {name: data for name, data in FILES.items() if name != path}


def edited(text: str) -> bytes:
    return manifest().encode().replace(b'"name":"shop"', text.encode())


TWICE = edited('"name":"shop","name":"shop"')
DUPLICATE = RawBundle(
    name="b",
    manifest=TWICE,
    signatures=encode_signatures(sign_manifest(TWICE, key) for key in (ALICE, BOB)),
    files=FILES,
)
SAME_TWICE = (
    '{"signatures":['
    + ",".join(
        [
            json.dumps(
                {"key_id": ALICE.kid, "sig": b64url(sign_manifest(FIRST.manifest, ALICE).sig).decode()},
                separators=(",", ":"),
            )
        ]
        * 2
    )
    + '],"v":1}'
).encode()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(
            replace(FIRST, manifest=edited('"name":"shoq"')), "bad_signature", id="tampered manifest"
        ),
        pytest.param(replace(FIRST, files=limit(900)), "hash_mismatch", id="tampered file"),
        pytest.param(
            replace(FIRST, signatures=encode_signatures([Signature(key_id=ALICE.kid, sig=b"x" * 64)])),
            "bad_signature",
            id="tampered signature",
        ),
        pytest.param(
            replace(FIRST, signatures=encode_signatures([Signature(key_id=ALICE.kid, sig=b"x")])),
            "bad_signature",
            id="a short signature",
        ),
        pytest.param(replace(FIRST, signatures=None), "unsigned", id="no signature file"),
        pytest.param(replace(FIRST, signatures=encode_signatures([])), "unsigned", id="no signature in it"),
        pytest.param(replace(FIRST, signatures=b"{}"), "malformed_signatures", id="not signatures"),
        pytest.param(bundle(keys=(MALLORY,)), "unknown_key", id="wrong key"),
        pytest.param(bundle(keys=(ALICE,)), "below_threshold", id="below threshold"),
        pytest.param(bundle(keys=(ALICE, MALLORY)), "below_threshold", id="one of them a stranger"),
        pytest.param(replace(FIRST, signatures=SAME_TWICE), "below_threshold", id="same key twice"),
        pytest.param(
            bundle(not_before_s=NOW_S - 9, not_after_s=NOW_S), "expired", id="expired this very second"
        ),
        pytest.param(bundle(not_before_s=NOW_S + 1), "not_yet_valid", id="not yet valid"),
        pytest.param(bundle(epoch=2), "wrong_epoch", id="of a later epoch"),
        pytest.param(bundle(data=b"{}"), "malformed_manifest", id="signed nonsense"),
        pytest.param(DUPLICATE, "malformed_manifest", id="duplicate JSON key"),
        pytest.param(replace(FIRST, files={**FILES, "policies/x.yaml": b""}), "extra_file", id="extra file"),
        pytest.param(
            replace(FIRST, files=without("policies/orders.yaml")), "missing_file", id="missing file"
        ),
        pytest.param(bundle(profile="cel-strict/2"), "wrong_profile", id="wrong profile"),
        pytest.param(bundle({"../x": b""}), "unsafe_path", id="a path that leads out"),
        pytest.param(
            bundle({"policies/a.yaml": b"", "policies/A.yaml": b""}), "colliding_name", id="case-colliding"
        ),
    ],
)
def test_sb1_everything_else_is_refused_with_its_own_reason(raw: RawBundle, reason: str) -> None:
    assert refused(raw).value == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"revision": 4}, "revision_too_low", id="replayed older revision"),
        pytest.param({"revision": 5}, "revision_reused", id="same revision, other content"),
        pytest.param({"revision": 1}, "revision_too_low", id="the first one again"),
    ],
)
def test_sb2_what_was_superseded_stays_so(change: dict[str, int], reason: str) -> None:
    assert refused(bundle(**change), mark=MARK).value == reason
    assert check_signed(bundle(revision=6), ROOTS, now_s=NOW_S, mark=MARK)


def test_sb2_the_bundle_of_the_mark_itself_is_taken_again_whatever_the_time() -> None:
    mark = Mark(epoch=1, revision=1, digest=FIRST.digest)
    assert check_signed(FIRST, ROOTS, now_s=NOW_S, mark=mark)
    assert check_signed(FIRST, ROOTS, now_s=NOW_S + 99 * DAY_S, mark=mark), "its end is a matter of deciding"
    assert refused(replace(FIRST, signatures=None), mark=mark) is Refusal.UNSIGNED


def test_sb2_a_new_epoch_begins_its_revisions_anew() -> None:
    stolen = Mark(epoch=1, revision=2**53 - 1, digest="sha256:" + "cd" * 32)
    fixed = bundle(epoch=2, revision=1)
    later = roots(ALICE, BOB, version=2, epoch=2)
    assert check_signed(fixed, later, now_s=NOW_S, mark=stolen).revision == 1
    assert refused(bundle(revision=9), later, stolen) is Refusal.WRONG_EPOCH


def test_sb3_a_signature_is_needed_whatever_the_key_id_says() -> None:
    # The lesson of OPA's GHSA-g2pf-6v5v-qcc8: verification must not hang on a field of what is verified.
    for key_id in ("", "none", MALLORY.kid):
        raw = replace(FIRST, signatures=encode_signatures([Signature(key_id=key_id, sig=b"")]))
        assert refused(raw) is Refusal.UNKNOWN_KEY


def test_the_digest_and_the_signed_bytes_are_those_of_spec_md() -> None:
    data = FIRST.manifest
    assert FIRST.digest == "sha256:" + hashlib.sha256(b"holdgate-manifest-v1\n" + data).hexdigest()
    assert manifest_digest(data) == FIRST.digest
    assert pae(TYPE, data).startswith(b"DSSEv1 36 application/vnd.holdgate.bundle+json ")
