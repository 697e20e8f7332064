"""adapters/ca_rotation.py: a client that fetched the roots in time is never refused, whatever crashes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from holdgate.adapters.ca import LeafMaker, create_ca, load_ca
from holdgate.adapters.ca_rotation import Standing, list_cas, retire, rotate, switch
from holdgate.errors import ConfigError

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
OVERLAP = timedelta(hours=10)
HOST = "api.ok.test"
NAMES = [pytest.param(None, id="any name"), pytest.param(("ok.test",), id="constrained")]


class Clock:
    def __init__(self) -> None:
        self.now = START

    def later(self, **delta: float) -> datetime:
        self.now += timedelta(**delta)
        return self.now


def believes(roots: bytes, state_dir: Path, now: datetime) -> bool:
    """Would a client with these roots take the leaf that an instance started now gives it?"""
    leaf = LeafMaker(load_ca(state_dir, now=now), now=lambda: now).leaf(HOST)
    store = Store(x509.load_pem_x509_certificates(roots))
    verifier = PolicyBuilder().store(store).time(now.replace(tzinfo=None))
    try:
        verifier.build_server_verifier(x509.DNSName(HOST)).verify(leaf.certificate, list(leaf.chain))
    except VerificationError:
        return False
    return True


def roots(state_dir: Path) -> bytes:
    return (state_dir / "ca" / "ca.pem").read_bytes()


def standings(state_dir: Path) -> list[Standing]:
    return [state.standing for state in list_cas(state_dir)]


@pytest.mark.parametrize("names", NAMES)
def test_ro1_roots_fetched_in_time_are_enough_until_the_switch_of_a_later_rotation(
    tmp_path: Path, names: tuple[str, ...] | None
) -> None:
    clock = Clock()
    create_ca(tmp_path, "n", names=names, now=START)
    fetched = [roots(tmp_path)]  # before the first rotation
    for _ in range(2):
        rotate(tmp_path, "n", names, now=clock.later(hours=1))
        fetched.append(roots(tmp_path))
        assert all(believes(one, tmp_path, clock.now) for one in fetched[-2:])
        switch(tmp_path, OVERLAP, now=clock.later(hours=10))
        assert [believes(one, tmp_path, clock.now) for one in fetched[-2:]] == [False, True]
        fetched.append(roots(tmp_path))
        retire(tmp_path, OVERLAP, now=clock.later(hours=10))
        assert all(believes(one, tmp_path, clock.now) for one in fetched[-2:])
        fetched.append(roots(tmp_path))
        assert all(believes(one, tmp_path, clock.now) for one in fetched[-3:])
    assert roots(tmp_path).count(b"BEGIN") == 1


def test_ro1_an_instance_that_was_not_told_of_the_switch_is_believed_until_retire(tmp_path: Path) -> None:
    clock = Clock()
    create_ca(tmp_path, "n", now=START)
    before = LeafMaker(load_ca(tmp_path, now=START), now=lambda: clock.now)
    rotate(tmp_path, "n", None, now=clock.later(hours=1))
    switch(tmp_path, OVERLAP, now=clock.later(hours=10))
    verifier = PolicyBuilder().store(Store(x509.load_pem_x509_certificates(roots(tmp_path))))
    verifier = verifier.time(clock.now.replace(tzinfo=None))
    verifier.build_server_verifier(x509.DNSName(HOST)).verify(before.leaf(HOST).certificate, [])


def test_ro1_there_is_a_way_back(tmp_path: Path) -> None:
    clock = Clock()
    create_ca(tmp_path, "n", now=START)
    old = roots(tmp_path)
    rotate(tmp_path, "n", None, now=clock.later(hours=1))
    switch(tmp_path, OVERLAP, at_once=True, now=clock.later(hours=1))
    assert not believes(old, tmp_path, clock.now)
    switch(tmp_path, OVERLAP, back=True, now=clock.later(hours=1))
    assert believes(old, tmp_path, clock.now)
    assert standings(tmp_path) == [Standing.NEXT, Standing.SIGNING]
    switch(tmp_path, OVERLAP, now=clock.later(hours=10))
    assert standings(tmp_path) == [Standing.SIGNING, Standing.PREVIOUS]


class Crash(BaseException):
    """The process ends here: nothing after it runs, not even what was meant to tidy up."""


WRITES = ("link", "rename", "replace", "unlink", "fsync", "utime")


def crash_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the `number`th change of a file or name, and every later one, not happen."""
    seen: list[str] = []

    def stopping(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def act(*given: object, **named: object) -> object:
            seen.append(name)
            if len(seen) > number:
                raise Crash(name)
            return real(*given, **named)

        return act

    for name in WRITES:  # pathlib's methods end in these
        monkeypatch.setattr(os, name, stopping(name, getattr(os, name)))
    return seen


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("step", ["rotate", "switch", "back", "retire"])
def test_ro2_a_crash_anywhere_leaves_a_ca_and_the_step_can_be_run_again(
    tmp_path: Path, step: str, names: tuple[str, ...] | None
) -> None:
    steps: dict[str, Callable[[Path], None]] = {
        "rotate": lambda state: rotate(state, "n", names, now=START),
        "switch": lambda state: switch(state, OVERLAP, at_once=True, now=START),
        "back": lambda state: switch(state, OVERLAP, back=True, at_once=True, now=START),
        "retire": lambda state: retire(state, OVERLAP, at_once=True, now=START),
    }
    before = tmp_path / "before"
    create_ca(before, "n", names=names, now=START)
    for earlier in {"rotate": (), "switch": ("rotate",)}.get(step, ("rotate", "switch")):
        steps[earlier](before)
    done = tmp_path / "done"
    shutil.copytree(before, done)
    steps[step](done)
    expected = standings(done)
    number = 0
    while True:
        state = tmp_path / str(number)
        shutil.copytree(before, state)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(number, patch)
            try:
                steps[step](state)
            except Crash:
                crashed = True
            else:
                crashed = False
        assert believes(roots(state), state, START), f"after a crash at change {number}"
        if not crashed:
            break
        with contextlib.suppress(ConfigError):  # it says so when the step was taken before the crash
            steps[step](state)
        assert standings(state) == expected
        assert believes(roots(state), state, START)
        for root in x509.load_pem_x509_certificates(roots(state)):
            assert root.public_bytes(Encoding.PEM) in (state / "ca" / "bundle.pem").read_bytes()
        number += 1
    assert number > 4, "the crashes were not injected"


def test_ro3_a_step_waits_for_its_overlap(tmp_path: Path) -> None:
    clock = Clock()
    create_ca(tmp_path, "n", now=START)
    with pytest.raises(ConfigError, match="holdgate ca rotate"):
        switch(tmp_path, OVERLAP, now=START)
    with pytest.raises(ConfigError, match="no previous CA"):
        retire(tmp_path, OVERLAP, now=START)
    with pytest.raises(ConfigError, match="no previous CA"):
        switch(tmp_path, OVERLAP, back=True, now=START)
    rotate(tmp_path, "n", None, now=START)
    with pytest.raises(ConfigError, match="holdgate ca switch"):
        rotate(tmp_path, "n", None, now=START)
    with pytest.raises(ConfigError, match="agents have until 2026-11-21 22:00"):
        switch(tmp_path, OVERLAP, now=clock.later(hours=9, minutes=59))
    switch(tmp_path, OVERLAP, now=clock.later(minutes=1))
    with pytest.raises(ConfigError, match="holdgate ca retire"):
        rotate(tmp_path, "n", None, now=clock.now)
    with pytest.raises(ConfigError, match="agents have until 2026-11-22 08:00"):
        retire(tmp_path, OVERLAP, now=clock.later(hours=9, minutes=59))
    keys = {path.name for path in (tmp_path / "ca").glob("*.key")}
    assert keys == {"ca.key", "previous.key"}
    retire(tmp_path, OVERLAP, now=clock.later(minutes=1))
    assert {path.name for path in (tmp_path / "ca").glob("*.key")} == {"ca.key"}


def test_ro3_two_at_once_are_one(tmp_path: Path) -> None:
    create_ca(tmp_path, "n", now=START)
    other = os.open(tmp_path / "ca", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigError, match="at work"):
            rotate(tmp_path, "n", None, now=START)
    finally:
        os.close(other)
    rotate(tmp_path, "n", None, now=START)


def test_every_key_of_a_rotation_is_private_and_the_retired_root_is_kept_by_name(tmp_path: Path) -> None:
    create_ca(tmp_path, "n", now=START)
    old = roots(tmp_path)
    rotate(tmp_path, "n", None, now=START)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "ca").glob("*.key")} == {0o600}
    bundle = (tmp_path / "ca" / "bundle.pem").read_bytes()
    assert all(one in bundle for one in roots(tmp_path).split(b"-----END CERTIFICATE-----\n")[:2])
    switch(tmp_path, OVERLAP, at_once=True, now=START)
    retire(tmp_path, OVERLAP, at_once=True, now=START)
    assert (tmp_path / "ca" / "retired.pem").read_bytes() == old
    assert old not in (tmp_path / "ca" / "bundle.pem").read_bytes()
