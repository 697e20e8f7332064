"""adapters/activation.py: what is put into the folder of bundles, and which of it decides afterwards."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundles import (
    ALICE,
    BOB,
    CAROL,
    DAY_S,
    MALLORY,
    NOW_S,
    bundle,
    limit,
    roots,
    write,
    write_trust,
)
from evidence import LOG_KEY, NODE, ORIGIN, RECEIPT_KEY
from holdgate.adapters.activation import Activator
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.metrics import Metrics
from holdgate.adapters.sqlite import SqliteLedger, SqliteReader
from holdgate.bundle import NO_BUNDLE, Bundle
from holdgate.config_bundle import Signed
from holdgate.errors import BackendError, ConfigError, Reason
from holdgate.keys import SigningKey
from holdgate.manifest import SIGNATURES, Refusal
from holdgate.signed_bundle import RawBundle
from holdgate.trust_roots import Link, next_link, sign_link


class Node:
    """One node over its restarts: a state directory, a folder of bundles, trust roots, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.state, self.bundles, self.trust = folder / "state", folder / "bundles", folder / "trust.json"
        self.state.mkdir()
        self.bundles.mkdir()
        write_trust(self.trust)
        self.now_us = NOW_S * 1_000_000
        self.active: list[str] = []
        self.metrics = Metrics()
        self.fits: Callable[[Bundle], None] = lambda _: None

    @contextmanager
    def run(self) -> Iterator[Activator]:
        with self.ledger() as ledger:
            yield Activator(
                Signed(trust=self.trust, folder=self.bundles),
                self.state,
                read=lambda: SqliteReader(self.state),
                ledger=ledger,
                meter=self.metrics,
                clock_us=lambda: self.now_us,
                fits=lambda loaded: self.fits(loaded),
                activate=lambda loaded: self.active.append(loaded.digest),
            )

    @contextmanager
    def ledger(self) -> Iterator[SqliteLedger]:
        ledger = SqliteLedger.open(
            self.state,
            receipt_key=RECEIPT_KEY,
            log_key=LOG_KEY,
            origin=ORIGIN,
            node=NODE,
            clock_us=lambda: self.now_us,
            nonce16=lambda: bytes(16),
        )
        try:
            yield ledger
        finally:
            ledger.close()

    def put(self, raw: RawBundle, name: str = "") -> Path:
        return write(raw, self.bundles / (name or f"r{len(list(self.bundles.iterdir()))}"))

    @property
    def notes(self) -> list[tuple[str, Any]]:
        """Admin receipts in log order: action, and reason or revision."""
        with SqliteReader(self.state) as reader:
            said = [decode_jws(stored.jws) for stored in reader.export()]
        details = [(each["action"], each["details"]) for each in said if each["type"] == "admin"]
        return [
            (action, row.get("reason", row.get("revision", row.get("version")))) for action, row in details
        ]

    def count(self, reason: str) -> int:
        (line,) = [
            line
            for line in self.metrics.render().decode().splitlines()
            if line.startswith(f'holdgate_bundle_rejected_total{{reason="{reason}"}}')
        ]
        return int(float(line.split()[-1]))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


FIRST, SECOND = bundle(), bundle(limit(900), revision=2)


async def test_ac2_a_bundle_becomes_active_with_a_receipt_and_stays_so_over_restarts(node: Node) -> None:
    node.put(FIRST)
    with node.run() as activator:
        loaded = await activator.start()
    assert (loaded.digest, loaded.revision, loaded.signed) == (FIRST.digest, 1, True)
    assert node.notes == [("trust_adopted", 1), ("policy_activated", 1)]
    shutil.rmtree(node.bundles)
    with node.run() as activator:
        assert (await activator.start()).digest == FIRST.digest, "kept in the state directory"
    assert len(node.notes) == 2, "a restart is no activation"


async def test_ac2_nothing_is_active_before_its_receipt_is_durable(node: Node) -> None:
    with node.run() as activator:
        await activator.start()

        async def broken(note: Any) -> Any:
            raise BackendError(Reason.STORE_UNAVAILABLE, "broken by the test")

        activator._ledger = type("Broken", (), {"note": staticmethod(broken), "fence": print})()
        node.put(FIRST)
        with pytest.raises(BackendError):
            await activator.refresh()
        assert (activator.bundle, node.active) == (NO_BUNDLE, [])


async def test_ac2_of_several_the_highest_revision_is_taken_and_the_others_are_not_looked_at(
    node: Node,
) -> None:
    for raw in (FIRST, bundle(limit(7), revision=3), SECOND, bundle(limit(8), revision=2)):
        node.put(raw)
    with node.run() as activator:
        assert (await activator.start()).revision == 3
        assert await activator.refresh(again=True) == ()
    assert node.notes == [("trust_adopted", 1), ("policy_activated", 3)]


def tampered(node: Node) -> None:
    folder = node.put(SECOND)
    (folder / "policies/orders.yaml").write_bytes(FIRST.files["policies/orders.yaml"])


def linked(node: Node) -> None:
    folder = node.put(SECOND)
    shutil.move(folder / "policies/orders.yaml", node.state / "elsewhere.yaml")
    (folder / "policies/orders.yaml").symlink_to(node.state / "elsewhere.yaml")


def with_a_failing_test(node: Node) -> None:
    files = limit(900) | {"policies/orders_test.yaml": FIRST.files["policies/orders_test.yaml"]}
    node.put(bundle(files, revision=2))


def renumbered(node: Node) -> None:
    # The whole of an older bundle, its number raised by somebody without keys.
    folder = node.put(FIRST, "again")
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"revision":1', b'"revision":9'))


ATTACKS = [
    pytest.param(tampered, "hash_mismatch", id="tampered file"),
    pytest.param(renumbered, "bad_signature", id="tampered manifest"),
    pytest.param(linked, "link", id="symlink"),
    pytest.param(with_a_failing_test, "tests_failed", id="test failing inside"),
    pytest.param(lambda n: n.put(bundle(limit(1), revision=1)), "revision_reused", id="same revision"),
    pytest.param(lambda n: n.put(replace(SECOND, signatures=None)), "unsigned", id="unsigned"),
    pytest.param(
        lambda n: n.put(bundle(limit(900), (ALICE,), revision=2)), "below_threshold", id="below threshold"
    ),
    pytest.param(lambda n: n.put(bundle(limit(900), (MALLORY,), revision=2)), "unknown_key", id="wrong key"),
    pytest.param(lambda n: n.put(bundle(limit(900), revision=2, not_after_s=NOW_S)), "expired", id="expired"),
    pytest.param(
        lambda n: n.put(bundle(limit(900), revision=2, not_before_s=NOW_S + 9)), "not_yet_valid", id="early"
    ),
    pytest.param(
        lambda n: n.put(bundle(limit(900), revision=2, profile="cel-strict/9")), "wrong_profile", id="profile"
    ),
    pytest.param(lambda n: (n.bundles / "empty").mkdir(), "no_manifest", id="empty folder"),
    pytest.param(lambda n: (n.bundles / "l").symlink_to("/etc"), "unreadable", id="a link to a folder"),
]


@pytest.mark.parametrize(("attack", "reason"), ATTACKS)
async def test_ac1_what_is_refused_leaves_a_receipt_and_a_count_and_the_last_good_decides(
    node: Node, caplog: pytest.LogCaptureFixture, attack: Callable[[Node], object], reason: str
) -> None:
    node.put(FIRST)
    with node.run() as activator:
        await activator.start()
        shutil.rmtree(node.bundles / "r0")
        attack(node)
        for _ in range(3):  # looked at twice before it is tried, and refused once
            await activator.look()
        assert activator.bundle.digest == FIRST.digest
    assert node.active == [FIRST.digest]
    assert node.notes[2:] == [("policy_rejected", reason)]
    assert node.count(reason) == 1
    assert f"{reason}" in caplog.text and f"{FIRST.digest} stays active" in caplog.text


@pytest.mark.parametrize(("attack", "reason"), ATTACKS)
async def test_ac1_at_start_the_kept_bundle_decides_where_the_newest_is_refused(
    node: Node, attack: Callable[[Node], object], reason: str
) -> None:
    node.put(FIRST)
    with node.run() as activator:
        await activator.start()
    shutil.rmtree(node.bundles / "r0")
    attack(node)
    with node.run() as activator:
        assert (await activator.start()).digest == FIRST.digest
        assert activator.bundle.gap(node.now_us) is None
    assert node.notes[2:] == [("policy_rejected", reason)]


async def test_ac1_what_was_active_before_an_upgrade_decides_after_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that reads more strictly: what it refuses in new bundles was decided with already."""
    files = limit(200)
    files = files | {"policies/orders.yaml": files["policies/orders.yaml"] + "# a\u200bb\n".encode()}
    active = bundle(files, revision=2)
    node.put(active)
    with monkeypatch.context() as before, node.run() as activator:
        before.setattr("holdgate.strictyaml.check_text", lambda _: None)
        await activator.start()
    shutil.rmtree(node.bundles)
    node.bundles.mkdir()
    node.put(bundle(files, revision=3))
    with node.run() as activator:
        assert (await activator.start()).digest == active.digest
    assert node.notes[2:] == [("policy_rejected", "does_not_load")]


async def test_ac4_a_kept_bundle_whose_keys_were_revoked_while_nothing_ran_decides_nothing(
    node: Node,
) -> None:
    node.put(FIRST)
    with node.run() as activator:
        await activator.start()
    write_trust(node.trust, *renewed((ALICE, CAROL), (ALICE, BOB, CAROL), new_epoch=True))
    with node.run() as activator:
        assert await activator.start() is NO_BUNDLE
        assert activator.bundle.gap(node.now_us) is Reason.POLICY_UNAVAILABLE
    assert node.notes[2] == ("trust_adopted", 2)
    assert {what for _, what in node.notes[3:]} <= {"below_threshold", "unknown_key", "wrong_epoch"}


async def test_ac1_a_bundle_that_does_not_fit_this_node_is_refused(node: Node) -> None:
    def fits(_: Bundle) -> None:
        raise ConfigError("connect_to names a host that is not mapped")

    node.fits = fits
    node.put(FIRST)
    with node.run() as activator:
        assert await activator.start() is NO_BUNDLE
    assert node.notes[1:] == [("policy_rejected", "does_not_fit")]


async def test_ac1_a_refused_one_does_not_hide_a_good_one_below_it(node: Node) -> None:
    renumbered(node)
    node.put(SECOND)
    with node.run() as activator:
        assert (await activator.start()).digest == SECOND.digest
    assert [what for _, what in node.notes] == [1, "bad_signature", 2]


async def test_ac1_a_folder_that_is_being_written_is_left_alone(node: Node) -> None:
    with node.run() as activator:
        await activator.start()
        write(FIRST, node.bundles / ".r1.part")
        await activator.look()
        await activator.look()
        assert activator.bundle is NO_BUNDLE
        folder = node.put(replace(FIRST, signatures=None), "r1")
        await activator.look()  # seen once: still being copied
        (folder / SIGNATURES).write_bytes(FIRST.signatures or b"")
        await activator.look()
        await activator.look()
        assert activator.bundle.digest == FIRST.digest
    assert [action for action, _ in node.notes] == ["trust_adopted", "policy_activated"]


async def test_ac1_a_bundle_for_later_is_taken_when_its_time_comes(node: Node) -> None:
    node.put(bundle(not_before_s=NOW_S + 60))
    with node.run() as activator:
        assert await activator.start() is NO_BUNDLE
        await activator.look()
        node.now_us += 59_000_000
        await activator.look()
        assert activator.bundle is NO_BUNDLE
        node.now_us += 1_000_000
        await activator.look()
        assert activator.bundle.revision == 1
    assert [what for _, what in node.notes] == [1, "not_yet_valid", 1]


async def test_ac3_an_older_revision_is_refused_whatever_is_deleted_beside_the_ledger(node: Node) -> None:
    node.put(SECOND)
    with node.run() as activator:
        await activator.start()
    shutil.rmtree(node.bundles)
    shutil.rmtree(node.state / "bundles")
    node.bundles.mkdir()
    node.put(FIRST)
    with node.run() as activator:
        assert await activator.start() is NO_BUNDLE
        assert [what for _, what in node.notes][2:] == ["unreadable", "revision_too_low"]
        node.put(SECOND)
        await activator.refresh()
        assert activator.bundle.digest == SECOND.digest, "the bundle of the mark itself is no step back"
    assert [what for _, what in node.notes][4:] == [], "and was activated before"


async def test_ac3_a_log_that_was_rolled_back_does_not_open(node: Node) -> None:
    node.put(FIRST)
    with node.run() as activator:
        await activator.start()
    shutil.copytree(node.state, node.state.parent / "backup")
    node.put(SECOND)
    with node.run() as activator:
        assert (await activator.start()).revision == 2
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (node.state / name).unlink(missing_ok=True)
    shutil.copy(node.state.parent / "backup/ledger.db", node.state / "ledger.db")
    with pytest.raises(ConfigError, match="restored from a backup"), node.ledger():
        pass


async def test_ac3_a_kept_bundle_that_was_edited_decides_nothing(node: Node) -> None:
    node.put(FIRST)
    with node.run() as activator:
        await activator.start()
    shutil.rmtree(node.bundles)
    (kept,) = (node.state / "bundles").iterdir()
    kept.write_text(kept.read_text().replace("<= 100", "<= 999"))
    with node.run() as activator:
        assert await activator.start() is NO_BUNDLE
    assert node.notes[-1] == ("policy_rejected", "unreadable")


async def test_ac3_an_ended_bundle_stays_the_active_one_and_decides_nothing(node: Node) -> None:
    node.put(bundle(not_after_s=NOW_S + 60))
    with node.run() as activator:
        loaded = await activator.start()
    assert loaded.gap(node.now_us) is None
    node.now_us += 60_000_000
    assert loaded.gap(node.now_us) is Reason.POLICY_EXPIRED
    with node.run() as activator:
        assert (await activator.start()).gap(node.now_us) is Reason.POLICY_EXPIRED
        node.put(SECOND)
        await activator.refresh()
        assert activator.bundle.gap(node.now_us) is None
    assert NO_BUNDLE.gap(0) is Reason.POLICY_UNAVAILABLE


def renewed(keys: tuple[SigningKey, ...], signers: tuple[SigningKey, ...], *, new_epoch: bool) -> list[Link]:
    first = Link(roots=roots(), signatures=())
    link = next_link([first], [key.public for key in keys], 2, new_epoch=new_epoch)
    for key in signers:
        link = sign_link(link, key)
    return [first, link]


async def test_ac4_new_roots_keep_what_their_keys_signed(node: Node) -> None:
    node.put(FIRST)
    with node.run() as activator:
        await activator.start()
        write_trust(node.trust, *renewed((ALICE, BOB), (BOB, CAROL), new_epoch=True))
        assert await activator.refresh() == ()
        assert activator.bundle.digest == FIRST.digest
    assert node.notes[2:] == [("trust_adopted", 2)]
    with node.run() as activator:
        assert (await activator.start()).digest == FIRST.digest


async def test_ac4_a_leaked_key_s_highest_revision_does_not_lock_the_fix_out(node: Node) -> None:
    node.put(bundle(limit(10**6), revision=2**53 - 1))  # by two leaked keys
    with node.run() as activator:
        await activator.start()
        assert activator.bundle.revision == 2**53 - 1
        write_trust(node.trust, *renewed((CAROL, MALLORY), (ALICE, CAROL), new_epoch=True))
        await activator.refresh()
        assert activator.bundle is NO_BUNDLE, "what the lost keys signed decides nothing any more"
        node.put(bundle(keys=(CAROL, MALLORY), epoch=2, revision=1))
        await activator.refresh()
        assert activator.bundle.revision == 1
    assert [what for _, what in node.notes][2:] == [2, "unknown_key", "unknown_key", 1]


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        pytest.param(
            [Link(roots=roots(MALLORY, threshold=1, version=2), signatures=())],
            "trust_not_signed",
            id="others",
        ),
        pytest.param(renewed((MALLORY, BOB), (ALICE,), new_epoch=False), "trust_not_signed", id="too few"),
        pytest.param([], "trust_malformed", id="nonsense"),
    ],
)
async def test_ac4_roots_that_nobody_signed_change_nothing(
    node: Node, links: list[Link], reason: str
) -> None:
    node.put(FIRST)
    with node.run() as activator:
        await activator.start()
        if links:
            write_trust(node.trust, *links)
        else:
            node.trust.write_text("{}")
        (refused,) = await activator.refresh()
        assert refused.reason is Refusal(reason)
        assert activator.bundle.digest == FIRST.digest
    assert node.notes[2:] == [("policy_rejected", reason)]
    with node.run() as activator, pytest.raises(ConfigError, match="trust roots"):
        await activator.start()


async def test_ac4_roots_do_not_go_back(node: Node) -> None:
    write_trust(node.trust, *renewed((ALICE, BOB), (ALICE, BOB), new_epoch=False))
    with node.run() as activator:
        await activator.start()
        write_trust(node.trust)
        (refused,) = await activator.refresh()
    assert refused.reason is Refusal.TRUST_ROLLED_BACK


async def test_ac4_the_end_is_announced(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.put(FIRST)
    with node.run() as activator, caplog.at_level(logging.WARNING):
        await activator.start()
        await activator.look()
        assert "ends in" not in caplog.text
        node.now_us += 25 * DAY_S * 1_000_000
        await activator.look()
        await activator.look()
    assert caplog.text.count("the active bundle ends in 120 hours") == 1
