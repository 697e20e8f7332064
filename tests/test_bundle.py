"""bundle.py: one digest over everything that decides, and no bundle that is only half of one."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import MAP, POLICY
from fakes import FakeClient, FakeMeter, FakeUpstream, MemoryLedger
from holdgate.adjudicate import Evidence
from holdgate.agents import Agent
from holdgate.bundle import NO_BUNDLE, Bundle, load_bundle
from holdgate.errors import ConfigError, Outcome, Reason
from holdgate.headers import Verdicts
from holdgate.keys import SigningKey
from holdgate.limits import Limits
from holdgate.message import Listener, Message, Origin, RequestHead
from holdgate.pipeline import Pipeline

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
    with pytest.raises(dataclasses.FrozenInstanceError):
        bundle.digest = "sha256:other"  # type: ignore[misc]
    # Files that change later are another bundle: the one that was loaded does not read them again.
    (folder / "policies" / "orders.yaml").unlink()
    assert bundle.index.is_mapped("shop.example", 443, "https")
    assert (
        bundle.policies.rules_for("payments.charge", "shop.buy")
        if hasattr(bundle.policies, "rules_for")
        else True
    )


def test_b3_no_bundle_and_one_that_ended_have_a_reason_and_files_never_end(folder: Path) -> None:
    loaded = load(folder)
    assert loaded.gap(2**62) is None
    assert dataclasses.replace(loaded, ends_us=7).gap(7) is Reason.POLICY_EXPIRED
    assert (NO_BUNDLE.gap(0), NO_BUNDLE.statement) == (Reason.POLICY_UNAVAILABLE, {})


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def add(path: Path) -> None:
    path.write_text(POLICY.replace("name: orders", "name: more"))


class Reloading:
    """A surface index that recognises one request, and is replaced right after."""

    def __init__(self, bundle: Bundle, swap: Callable[[], None]) -> None:
        self._index, self._swap = bundle.index, swap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def recognise(self, *args: Any, **named: Any) -> Any:
        found = self._index.recognise(*args, **named)
        self._swap()
        return found


async def test_b2_a_request_is_recognised_and_decided_under_one_bundle(folder: Path) -> None:
    first = load(folder)
    replace(folder / "policies/orders.yaml", "<= 100", "<= 1")
    second = load(folder)
    upstream, ledger = FakeUpstream(), MemoryLedger()
    pipeline = Pipeline(
        bundle=first,
        identify=lambda origin: Agent(id="bot", groups=(), attrs=()),
        ledger=ledger,
        dispatcher=upstream,
        evidence=Evidence(
            signer=SigningKey(seed=b"s" * 32),
            issuer="test/log",
            node="n1",
            fleet_key=b"f" * 32,
            draw=secrets.token_bytes,
        ),
        show=Verdicts(node="n1", full=True, public_url=None),
        limits=Limits(),
        meter=FakeMeter(),
        clock=lambda: 0.0,
    )

    def reload() -> None:
        pipeline.bundle = second

    pipeline.bundle = dataclasses.replace(first, index=Reloading(first, reload))  # type: ignore[arg-type]
    await pipeline.handle(order(50), FakeClient())
    assert ledger.last.policy == first.digest, "the maps of one bundle, the policies of another"
    assert (ledger.last.outcome, len(upstream.seen)) == (Outcome.PERMIT, 1)
    await pipeline.handle(order(50), FakeClient())
    assert ledger.last.policy == second.digest
    assert (ledger.last.outcome, len(upstream.seen)) == (Outcome.SILENCE, 1)


def order(amount: int) -> Message:
    body = b'{"amount":%d}' % amount
    return Message(
        origin=Origin(
            listener=Listener.EXPLICIT,
            tls=True,
            source="127.0.0.1",
            source_port=40000,
            connect=("shop.example", 443),
            sni="shop.example",
            original_port=None,
            proxy_authorization=(),
        ),
        head=RequestHead(
            method=b"POST",
            target=b"/orders",
            headers=(
                (b"Host", b"shop.example"),
                (b"Content-Type", b"application/json"),
                (b"Content-Length", b"%d" % len(body)),
            ),
        ),
        body=body,
    )
