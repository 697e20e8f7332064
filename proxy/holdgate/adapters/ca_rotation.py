"""Another CA without a moment in which an agent is refused: publish it, wait, sign with it, wait, forget.

    rotate   makes next.key; ca.pem holds both roots         leaves: old
    switch   next.key becomes ca.key, ca.key previous.key    leaves: new      (--back: the other way round)
    retire   previous.key is deleted; ca.pem holds one root  leaves: new

An agent that fetched the roots before `rotate` trusts the old one, one that did between `rotate` and `retire`
both, a later one the new one. So `switch` waits until every agent has fetched after `rotate`, and `retire`
until every instance has been told (SIGHUP): `overlap` each, unless the operator says that it is done.

Each step is one rename or one link that decides, and what follows from it is repeated when the step is run
again. ca.pem is written before a key may sign, and after a key no longer does.

Invariants (tests/test_ca_rotation.py has one test named after each):
  RO1  Roots that a client fetched at any moment keep every leaf acceptable to it until the `switch` of a
       rotation that began after it fetched them.
  RO2  A crash between any two writes leaves a CA that loads, and running the step again completes it.
  RO3  No step is taken before its overlap is over, unless it is said to be; no key is lost before `retire`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ConfigError
from .ca import key_pair, load_ca
from .ca_certificate import BACKDATE, make_ca, permitted_names
from .durable import replace_file, sync_folder
from .private_file import read_private, write_new
from .trust import write_roots

__all__ = ["Standing", "State", "list_cas", "retire", "rotate", "switch"]


class Standing(StrEnum):
    """What a root in ca.pem is there for."""

    NEXT = "next"  # published, not signing yet
    SIGNING = "signing"
    PREVIOUS = "previous"  # signed before; a running instance may not have been told


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One root that agents are to trust."""

    standing: Standing
    since: datetime  # of this standing; for SIGNING, when it was made
    not_after: datetime
    permitted: tuple[str, ...] | None
    fingerprint: str  # SHA-256 of the DER, hex


_FILES = {Standing.NEXT: "next.key", Standing.SIGNING: "ca.key", Standing.PREVIOUS: "previous.key"}


def rotate(state_dir: Path, node: str, names: Sequence[str] | None, *, now: datetime | None = None) -> None:
    """Make the next CA and publish its root beside the one that signs. Raises ConfigError."""
    with _locked(state_dir) as folder:
        if (folder / "previous.key").exists():
            raise ConfigError("a rotation is not finished: run `holdgate ca retire` first", file=str(folder))
        waiting = folder / "next.key"
        if waiting.exists():
            if _root_of(folder, Standing.NEXT) is not None:
                write_roots(folder, (folder / "ca.pem").read_bytes())  # a crash may have left out the bundles
                raise ConfigError("the next CA is published: run `holdgate ca switch`", file=str(folder))
            waiting.unlink()  # its root was never written, so nobody can trust it
        made = make_ca(node, names, now or datetime.now(UTC))
        write_new(waiting, made.key_pem, 0o600)
        write_roots(folder, (folder / "ca.pem").read_bytes() + made.root_pem)


def switch(
    state_dir: Path,
    overlap: timedelta,
    *,
    back: bool = False,
    at_once: bool = False,
    now: datetime | None = None,
) -> None:
    """Sign with the next CA from the next start or SIGHUP on; `back`: with the previous one again."""
    moment = now or datetime.now(UTC)
    coming, going = (Standing.PREVIOUS, Standing.NEXT) if back else (Standing.NEXT, Standing.PREVIOUS)
    with _locked(state_dir) as folder:
        arriving, leaving, signing = (folder / _FILES[one] for one in (coming, going, Standing.SIGNING))
        root = _root_of(folder, coming)
        if root is None:
            raise ConfigError(
                "there is no previous CA to go back to"
                if back
                else "no next CA is published: run `holdgate ca rotate` first",
                file=str(folder),
            )
        if not back and not at_once:
            _wait("published", root.not_valid_before_utc + BACKDATE, overlap, moment, folder)
        if leaving.exists():
            raise ConfigError("a rotation is not finished: run `holdgate ca retire` first", file=str(folder))
        os.link(signing, leaving)
        os.utime(leaving, (moment.timestamp(), moment.timestamp()))
        sync_folder(folder)
        arriving.rename(signing)  # the one step that switches: key and issuer together
        sync_folder(folder)
    load_ca(state_dir, now=moment)


def retire(
    state_dir: Path, overlap: timedelta, *, at_once: bool = False, now: datetime | None = None
) -> None:
    """Stop trusting the previous CA, and forget its key. Raises ConfigError."""
    with _locked(state_dir) as folder:
        old = folder / "previous.key"
        if not old.exists():
            raise ConfigError("there is no previous CA to retire", file=str(folder))
        if not at_once:
            switched = datetime.fromtimestamp(old.stat().st_mtime, UTC)
            _wait("switched", switched, overlap, now or datetime.now(UTC), folder)
        gone = _root_of(folder, Standing.PREVIOUS)
        kept = [root for root in _roots(folder / "ca.pem") if root != gone]
        if gone is not None:
            # Kept by name, so that `trust --install` can take it out of the stores that it is in.
            retired = dict.fromkeys([*_roots(folder / "retired.pem"), gone])
            replace_file(folder / "retired.pem", _pem(retired))
        write_roots(folder, _pem(kept))
        old.unlink()
        sync_folder(folder)


def list_cas(state_dir: Path) -> tuple[State, ...]:
    """Every CA that agents are to trust now, in the order of a rotation. Raises ConfigError."""
    load_ca(state_dir)
    folder, found = state_dir / "ca", []
    for standing in Standing:
        root = _root_of(folder, standing)
        if root is None:
            continue
        since = root.not_valid_before_utc + BACKDATE
        if standing is Standing.PREVIOUS:
            since = datetime.fromtimestamp((folder / _FILES[standing]).stat().st_mtime, UTC)
        found.append(
            State(
                standing=standing,
                since=since,
                not_after=root.not_valid_after_utc,
                permitted=permitted_names(root),
                fingerprint=root.fingerprint(hashes.SHA256()).hex(),
            )
        )
    return tuple(found)


def _wait(what: str, since: datetime, overlap: timedelta, now: datetime, folder: Path) -> None:
    ready = since + overlap
    if now < ready:
        raise ConfigError(
            f"it was {what} at {since:%Y-%m-%d %H:%M} UTC; agents have until {ready:%Y-%m-%d %H:%M} UTC"
            " (`ca.overlap_h`). With --now it is not waited for",
            file=str(folder),
        )


def _roots(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(path.read_bytes()) if path.exists() else []


def _pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def _root_of(folder: Path, standing: Standing) -> x509.Certificate | None:
    """The root in ca.pem that vouches for a key file; None where there is none, or it is not published."""
    path = folder / _FILES[standing]
    if not path.exists() or _is_leftover(path):
        return None
    pair = key_pair(read_private(path, "the CA key"), (folder / "ca.pem").read_bytes(), folder)
    return None if pair is None else pair[2]


def _is_leftover(path: Path) -> bool:
    """A second name of the signing key, which a crash in switch() left."""
    signing = path.with_name("ca.key")
    return path != signing and path.samefile(signing)


@contextmanager
def _locked(state_dir: Path) -> Iterator[Path]:
    """The CA's folder, for one process at a time; a foreign error becomes a ConfigError."""
    load_ca(state_dir)  # a folder that is not in order is not rotated
    folder = state_dir / "ca"
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in ("next.key", "previous.key"):
            if (folder / name).exists() and _is_leftover(folder / name):
                (folder / name).unlink()
        yield folder
    except BlockingIOError as error:
        raise ConfigError("another `holdgate ca` is at work", file=str(folder)) from error
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(error.filename or folder)) from error
    finally:
        os.close(descriptor)
