"""adapters/bundle_load.py: a bundle is loaded and its tests hold, or it is none."""

from __future__ import annotations

import pytest

from bundles import FILES, MAP, POLICY, TEST, bundle, limit, manifest
from holdgate.adapters.bundle_load import load_signed
from holdgate.manifest import BundleRejected, Refusal


def load(files: dict[str, bytes], *, tested: bool = False) -> object:
    return load_signed(bundle(files), manifest(files), tested=tested)


def changed(path: str, old: str, new: str) -> dict[str, bytes]:
    text = FILES[path].decode()
    assert old in text
    return dict(FILES) | {path: text.replace(old, new).encode()}


def test_bl1_a_bundle_whose_tests_hold_is_loaded() -> None:
    loaded = load_signed(bundle(revision=7), manifest(revision=7), tested=False)
    assert (loaded.signed, loaded.revision, loaded.digest) == (True, 7, bundle(revision=7).digest)
    assert loaded.ends_us == manifest().not_after_s * 1_000_000
    assert load(limit(900))


@pytest.mark.parametrize(
    ("files", "reason", "said"),
    [
        pytest.param(
            changed("policies/orders.yaml", "100", "1000"), "tests_failed", "orders/large", id="a test fails"
        ),
        pytest.param(
            {path: data for path, data in FILES.items() if "_test" not in path},
            "tests_failed",
            "no test",
            id="no tests",
        ),
        pytest.param(
            changed("policies/orders_test.yaml", "examples/buy.http", "examples/gone.http"),
            "does_not_load",
            "no such file",
            id="a test of a request that is not there",
        ),
        pytest.param(
            changed("policies/orders_test.yaml", "../surfaces/shop/examples/buy.http", "/etc/passwd"),
            "does_not_load",
            "not in the bundle",
            id="a test of somebody else's file",
        ),
        pytest.param(
            changed("policies/orders.yaml", "params.amount >= 1", "params.amuont >= 1"),
            "does_not_load",
            "policies/orders.yaml:9",
            id="a policy that does not type-check",
        ),
        pytest.param(
            changed("surfaces/shop/shop.yaml", "type: int", "type: integer"),
            "does_not_load",
            "surfaces/shop/shop.yaml:13",
            id="a map with a mistake",
        ),
        pytest.param({"policies/orders.yaml": POLICY.encode()}, "does_not_load", "", id="no map"),
        pytest.param({"surfaces/a.yaml": MAP.encode()}, "does_not_load", "", id="no policy"),
    ],
)
def test_bl1_what_does_not_load_or_hold_is_refused(files: dict[str, bytes], reason: str, said: str) -> None:
    with pytest.raises(BundleRejected) as caught:
        load(files)
    assert caught.value.reason.value == reason
    assert said in caught.value.detail
    assert "/tmp" not in caught.value.detail, "places in the bundle, not in our scratch folder"


def test_bl1_what_was_tested_before_is_not_tested_again() -> None:
    broken = changed("policies/orders.yaml", "100", "1000")
    assert load(broken, tested=True)


def test_bl2_a_test_cannot_read_beyond_the_bundle() -> None:
    files = dict(FILES) | {
        "policies/orders_test.yaml": TEST.replace("../surfaces", "../../surfaces").encode()
    }
    with pytest.raises(BundleRejected) as caught:
        load(files)
    assert caught.value.reason is Refusal.DOES_NOT_LOAD
