"""bundle.py: one digest over everything that decides, and no bundle that is only half of one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from holdgate.bundle import Bundle, load_bundle
from holdgate.errors import ConfigError

MAP = """\
apiVersion: holdgate/v1
kind: SurfaceMap
metadata: {name: shop, owner: shop@example.com}
spec:
  hosts: [shop.example]
  operations:
  - id: buy
    match: {method: POST, path: /orders}
    surface: payments.charge
    effect: commit
    body: {decode: json}
    params:
      amount: {from: body.amount, type: int, required: true, material: true}
"""
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: orders, owner: shop@example.com}
spec:
  surface: payments.charge
  rules:
  - id: small
    effect: permit
    when: params.amount >= 1 && params.amount <= 100
"""
POLICY_TEST = (
    "apiVersion: holdgate/v1\nkind: PolicyTest\nmetadata: {name: t}\nspec: {policy: orders, cases: []}\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"surfaces/shop/shop.yaml": MAP, "policies/orders.yaml": POLICY}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def load(folder: Path) -> Bundle:
    return load_bundle([folder / "surfaces"], [folder / "policies"])


def test_b1_the_digest_is_the_one_that_spec_md_describes(folder: Path) -> None:
    lines = []
    for kind, name, text in (("surfaces", "shop/shop.yaml", MAP), ("policies", "orders.yaml", POLICY)):
        data = text.encode()
        lines.append(f"{kind}/{name} {len(data)} {hashlib.sha256(data).hexdigest()}\n")
    preimage = "holdgate-bundle-v1\ncel-strict/1\n" + "".join(sorted(lines))
    assert load(folder).digest == "sha256:" + hashlib.sha256(preimage.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: append(root / "surfaces/shop/shop.yaml", "\n"), id="one byte of a map"),
        pytest.param(lambda root: append(root / "policies/orders.yaml", "# x\n"), id="a comment in a policy"),
        pytest.param(lambda root: replace(root / "policies/orders.yaml", "100", "999"), id="same length"),
        pytest.param(
            lambda root: (root / "policies/orders.yaml").rename(root / "policies/o.yaml"), id="a file's name"
        ),
        pytest.param(lambda root: add(root / "policies/more.yaml"), id="a new policy"),
    ],
)
def test_b1_every_byte_and_name_of_a_map_or_policy_counts(
    folder: Path, change: Callable[[Path], object]
) -> None:
    before = load(folder).digest
    change(folder)
    assert load(folder).digest != before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: (root / "policies/orders_test.yaml").write_text(POLICY_TEST), id="a test"),
        pytest.param(lambda root: (root / "surfaces/shop/README.md").write_text("words"), id="a README"),
        pytest.param(lambda root: (root / "policies/orders.yaml").chmod(0o600), id="a file's mode"),
    ],
)
def test_b1_nothing_else_counts(folder: Path, change: Callable[[Path], object]) -> None:
    before = load(folder).digest
    change(folder)
    assert load(folder).digest == before


def test_b1_the_digest_does_not_depend_on_where_the_folder_is(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "somewhere" / "else"
    shutil.copytree(folder / "surfaces", moved / "surfaces")
    shutil.copytree(folder / "policies", moved / "policies")
    assert load(moved).digest == load(folder).digest


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        pytest.param("surfaces/shop/shop.yaml", MAP.replace("int,", "integer,"), "shop.yaml:13", id="type"),
        pytest.param("surfaces/shop/shop.yaml", MAP + "    extra: 1\n", "shop.yaml:14", id="unknown key"),
        pytest.param("policies/orders.yaml", POLICY.replace("<=", "=<"), "orders.yaml:9", id="syntax of CEL"),
        pytest.param(
            "policies/orders.yaml", POLICY.replace("<= 100", '<= "x"'), "orders.yaml:9", id="type in CEL"
        ),
        pytest.param(
            "policies/orders.yaml", POLICY.replace("params.amount", "params.sum"), "orders.yaml:9", id="param"
        ),
        pytest.param("policies/orders.yaml", POLICY.replace(".charge", ".x"), "orders.yaml:5", id="surface"),
    ],
)
def test_b2_a_mistake_in_any_file_means_that_there_is_no_bundle(
    folder: Path, file: str, text: str, message: str
) -> None:
    (folder / file).write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(folder)
    assert message in str(refused.value)


@pytest.mark.parametrize("missing", ["surfaces", "policies"])
def test_b2_an_empty_or_missing_folder_is_refused(folder: Path, missing: str) -> None:
    shutil.rmtree(folder / missing)
    with pytest.raises(ConfigError):
        load(folder)
    (folder / missing).mkdir()
    with pytest.raises(ConfigError):
        load(folder)


def test_b2_a_bundle_cannot_be_changed_afterwards(folder: Path) -> None:
    bundle = load(folder)
    assert (bundle.revision, bundle.signed) == (0, False)
    with pytest.raises(FrozenInstanceError):
        bundle.digest = "sha256:other"  # type: ignore[misc]
    # Files that change later are another bundle: the one that was loaded does not read them again.
    (folder / "policies" / "orders.yaml").unlink()
    assert bundle.index.is_mapped("shop.example", 443, "https")
    assert (
        bundle.policies.rules_for("payments.charge", "shop.buy")
        if hasattr(bundle.policies, "rules_for")
        else True
    )


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def add(path: Path) -> None:
    path.write_text(POLICY.replace("name: orders", "name: more"))
