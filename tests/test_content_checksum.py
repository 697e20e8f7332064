"""content/checksum.py: CK1, and what cannot be computed here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.content.checksum import confirms

HELLO = [
    ("content-md5", "XUFAKrxLKna5cZ2REBfFkg=="),
    ("x-amz-checksum-crc32", "NhCmhg=="),
    ("x-amz-checksum-sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ00="),
    ("x-amz-checksum-sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="),
]


@pytest.mark.parametrize(("name", "value"), HELLO)
def test_ck1_the_checksum_of_these_bytes_and_no_other_spelling(name: str, value: str) -> None:
    assert confirms(name, value, b"hello")
    for other in (value.rstrip("="), value.lower(), f" {value}", "", "NhCmhA=="):
        assert not confirms(name, other, b"hello"), other


@given(st.sampled_from(HELLO), st.binary(max_size=8))
def test_ck1_other_bytes_are_not_confirmed(case: tuple[str, str], body: bytes) -> None:
    assert confirms(*case, body) == (body == b"hello")


@pytest.mark.parametrize("name", ["x-amz-checksum-crc32c", "x-amz-checksum-crc64nvme", "x-amz-acl", "digest"])
def test_what_cannot_be_computed_is_a_header_like_any_other(name: str) -> None:
    assert not confirms(name, "AAAA", b"hello")
