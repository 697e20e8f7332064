"""digest.py: what the wire digest binds, how parts are framed, and that secrets stay out."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from holdgate.digest import fingerprint, meaning_digest, raw_digest, wire_digest

HEADERS = ((b"Host", b"a.test"), (b"Authorization", b"Bearer s3cret"), (b"X", b"1"))


def base(**change: object) -> str:
    parts: dict[str, object] = {"method": "POST", "raw_target": b"/a?b", "headers": HEADERS, "body": b"body"}
    parts |= change
    method, target, headers, body = parts["method"], parts["raw_target"], parts["headers"], parts["body"]
    return wire_digest(method, target, headers, body)  # type: ignore[arg-type]


def test_w1_changing_any_part_changes_the_digest() -> None:
    changed = [
        base(method="PUT"),
        base(raw_target=b"/a?"),
        base(body=b"bodY"),
        base(headers=HEADERS[:2]),
        base(headers=(*HEADERS[:2], (b"x", b"1"))),
        base(headers=(HEADERS[2], *HEADERS[:2])),
        base(headers=(HEADERS[0], (b"Authorization", b"Bearer other"), HEADERS[2])),
        wire_digest("POST", b"/a?b", HEADERS, b"body", key=b"k" * 32),
    ]
    assert len({base(), *changed}) == len(changed) + 1


parts = st.lists(st.sampled_from([b"", b"a", b"aa", b"\x00", b"\x01"]), max_size=4)


@given(parts, parts)
def test_w2_two_part_lists_never_share_a_preimage(one: list[bytes], two: list[bytes]) -> None:
    assert (meaning_digest(one) == meaning_digest(two)) == (one == two)


def test_w3_a_credential_is_in_no_preimage_but_its_fingerprint_is() -> None:
    framed = [b"POST", b"/", b"Authorization", fingerprint(b"s3cret").encode(), b"body"]
    preimage = b"holdgate-wire-v1" + b"".join(len(p).to_bytes(8, "big") + p for p in framed)
    expected = "sha256:" + hashlib.sha256(preimage).hexdigest()
    assert wire_digest("POST", b"/", ((b"Authorization", b"s3cret"),), b"body") == expected


def test_a_map_can_name_further_secret_headers() -> None:
    headers = ((b"X-Token", b"t"),)
    named = wire_digest("GET", b"/", headers, b"", secret_headers=frozenset({"x-token"}))
    assert named != wire_digest("GET", b"/", headers, b"")


def test_keyed_digests_say_so() -> None:
    assert meaning_digest([b"a"], key=b"k").startswith("hmac-sha256:")
    assert raw_digest(b"GE", b"", key=b"k").startswith("hmac-sha256:")
