"""manifest.py: one spelling, plain paths, and signatures that count people."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import ALICE, BOB, FILES, MALLORY, manifest
from holdgate.keys import key_set
from holdgate.manifest import (
    TYPE,
    BundleRejected,
    Refusal,
    check_path,
    check_paths,
    count_signers,
    encode_signatures,
    parse_manifest,
    parse_signatures,
    sign_manifest,
)

DATA = manifest().encode()
KEYS = key_set([ALICE.public, BOB.public])


def refused(data: bytes) -> Refusal:
    with pytest.raises(BundleRejected) as caught:
        parse_manifest(data)
    return caught.value.reason


def changed(**change: object) -> bytes:
    return json.dumps(json.loads(DATA) | change, sort_keys=True, separators=(",", ":")).encode()


def test_mf1_what_is_encoded_is_parsed() -> None:
    assert parse_manifest(DATA) == manifest()
    later = manifest(previous="sha256:" + "ab" * 32)
    assert parse_manifest(later.encode()) == later


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(DATA + b"\n", id="a byte more"),
        pytest.param(b" " + DATA, id="white space"),
        pytest.param(DATA.replace(b'"v":1', b'"v":1,"v":1'), id="a key twice"),
        pytest.param(DATA.replace(b'"epoch":1', b'"epoch":2,"epoch":1'), id="a key twice, unlike"),
        pytest.param(json.dumps(json.loads(DATA)).encode(), id="other white space"),
        pytest.param(changed(v=2), id="another version"),
        pytest.param(changed(v=True), id="true for 1"),
        pytest.param(changed(more=1), id="a key more"),
        pytest.param(changed(revision=0), id="revision 0"),
        pytest.param(changed(revision=2**53), id="a revision that others read differently"),
        pytest.param(changed(revision="1"), id="a revision in quotes"),
        pytest.param(changed(revision=1.0), id="a float"),
        pytest.param(changed(profile="cel"), id="no profile"),
        pytest.param(changed(previous="sha256:1"), id="no digest"),
        pytest.param(changed(not_after_s=1), id="ends before it begins"),
        pytest.param(changed(files=[]), id="no file"),
        pytest.param(changed(files=[{"path": "policies/a.yaml", "size": 1}]), id="a file without hash"),
        pytest.param(changed(files=json.loads(DATA)["files"][::-1]), id="files in another order"),
        pytest.param(
            changed(files=[{"path": "policies/a.yaml", "size": 2**40, "sha256": "0" * 64}]), id="too large"
        ),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"\xff", id="no text"),
    ],
)
def test_mf1_any_other_spelling_is_refused(data: bytes) -> None:
    assert refused(data) is Refusal.MALFORMED_MANIFEST


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../policies/a.yaml", id="up"),
        pytest.param("policies/../../etc/passwd", id="up inside"),
        pytest.param("/policies/a.yaml", id="absolute"),
        pytest.param("policies//a.yaml", id="an empty segment"),
        pytest.param("policies/./a.yaml", id="a dot"),
        pytest.param("policies/a.yaml.", id="a dot at the end"),
        pytest.param("policies/a./b.yaml", id="a folder with a dot at the end"),
        pytest.param("policies/.a.yaml", id="hidden"),
        pytest.param("policies/a.yaml/", id="a slash at the end"),
        pytest.param("policies/a b.yaml", id="a space"),
        pytest.param("policies/a.yaml ", id="a space at the end"),
        pytest.param("policies/a\\b.yaml", id="a backslash"),
        pytest.param("policies/a.yaml\0", id="NUL"),
        pytest.param("policies/a\n.yaml", id="a line end"),
        pytest.param("policies/\u0430.yaml", id="a Cyrillic letter that looks like a"),
        pytest.param("policies/\uff41.yaml", id="a full-width a"),
        pytest.param("policies/e\u0301.yaml", id="a combining accent"),
        pytest.param("policies/a\u200b.yaml", id="zero width"),
        pytest.param("C:/policies/a.yaml", id="a drive"),
        pytest.param("policies/a:b", id="a stream"),
        pytest.param("other/a.yaml", id="below neither folder"),
        pytest.param("policies", id="the folder itself"),
        pytest.param("policies/" + "a" * 300, id="too long"),
        pytest.param("", id="nothing"),
    ],
)
def test_mf2_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    files = [{"path": path, "size": 1, "sha256": "0" * 64}]
    value = json.dumps(
        json.loads(DATA) | {"files": files}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert refused(value.encode()) is Refusal.UNSAFE_PATH


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(("policies/a.yaml", "policies/A.yaml"), id="files"),
        pytest.param(("policies/a/x.yaml", "policies/A/y.yaml"), id="folders"),
        pytest.param(("policies/a.yaml", "policies/a.yaml"), id="twice"),
    ],
)
def test_mf2_names_that_could_be_one_file_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(BundleRejected) as caught:
        check_paths(pair)
    assert caught.value.reason is Refusal.COLLIDING_NAME


@given(st.text(alphabet="ab.-_/\\ A\u0430\0~", max_size=12).map("policies/".__add__))
def test_mf2_what_passes_stays_below_its_folder(path: str) -> None:
    try:
        check_path(path)
    except BundleRejected:
        return
    assert path.isascii() and ".." not in path.split("/") and not path.endswith((".", "/", " "))
    assert all(part and not part.startswith(".") for part in path.split("/"))


def test_mf3_a_key_counts_once_and_unknown_keys_count_not() -> None:
    mine, other = sign_manifest(DATA, ALICE), sign_manifest(DATA, MALLORY)
    assert count_signers(TYPE, DATA, [mine, mine, other], KEYS) == {ALICE.kid}
    assert parse_signatures(encode_signatures([mine, mine])) == (mine,)


def test_mf3_a_key_id_proves_nothing() -> None:
    forged = sign_manifest(DATA, MALLORY)
    stolen = type(forged)(key_id=ALICE.kid, sig=forged.sig)
    with pytest.raises(BundleRejected) as caught:
        count_signers(TYPE, DATA, [stolen], KEYS)
    assert caught.value.reason is Refusal.BAD_SIGNATURE


def test_mf3_a_signature_over_something_else_of_the_same_bytes_is_none() -> None:
    other_kind = ALICE.sign(b"DSSEv1 1 x %d %s" % (len(DATA), DATA))
    with pytest.raises(BundleRejected):
        count_signers(TYPE, DATA, [type(sign_manifest(DATA, ALICE))(key_id=ALICE.kid, sig=other_kind)], KEYS)


def test_mf4_one_wrong_signature_of_a_trusted_key_refuses_all() -> None:
    good, bad = sign_manifest(DATA, ALICE), sign_manifest(DATA + b" ", BOB)
    with pytest.raises(BundleRejected) as caught:
        count_signers(TYPE, DATA, [good, bad], KEYS)
    assert caught.value.reason is Refusal.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b'{"signatures":[],"v":1}', Refusal.UNSIGNED, id="an empty list"),
        pytest.param(
            b'{"signatures":[],"signatures":[],"v":1}', Refusal.MALFORMED_SIGNATURES, id="a key twice"
        ),
        pytest.param(b'{"signatures":{},"v":1}', Refusal.MALFORMED_SIGNATURES, id="no list"),
        pytest.param(b'{"signatures":[{"key_id":"k"}],"v":1}', Refusal.MALFORMED_SIGNATURES, id="no sig"),
        pytest.param(
            b'{"signatures":[{"key_id":"k","sig":"!"}],"v":1}', Refusal.MALFORMED_SIGNATURES, id="!"
        ),
        pytest.param(b"", Refusal.MALFORMED_SIGNATURES, id="nothing"),
    ],
)
def test_mf4_a_signature_file_is_strict(data: bytes, reason: Refusal) -> None:
    with pytest.raises(BundleRejected) as caught:
        parse_signatures(data)
    assert caught.value.reason is reason


def test_the_files_of_the_test_bundle_are_named() -> None:
    assert {entry.path for entry in manifest().files} == set(FILES)
