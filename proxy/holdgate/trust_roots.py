"""Who may sign bundles: a chain of trust roots, each signed by the ones before it.

`trust.json` holds the whole chain, oldest first. The first roots are believed because the configuration names
the file; every later version is believed because enough keys of the version before it signed it. So a node
that knew version 1 finds its way to version 7, and nobody without the keys of version 1 can send it
elsewhere.

A leaked key could sign the highest revision there is, and lock every fix out. Therefore roots have an epoch:
a bundle names the epoch that it is for, and a new epoch begins its revisions anew.

Invariants (tests/test_trust_roots.py):
  TR1  Version n + 1 needs `threshold` signatures by different keys of version n; the configured first, none.
  TR2  Versions ascend by one, epochs never descend, and no key is there twice.
  TR3  A node that knows a version takes only a chain that has exactly that version in it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .jcs import JcsError, dumps
from .keys import KeyDocumentError, KeySet, PublicKey, SigningKey, b64url, key_set, unb64url
from .manifest import BundleRejected, Refusal, Signature, count_signers, pae, signature_rows

__all__ = ["Link", "Roots", "current_roots", "encode_chain", "next_link", "parse_chain", "sign_link"]

TYPE: Final = "application/vnd.holdgate.trust+json"
_DOMAIN: Final = b"holdgate-trust-v1\n"
_MAX_KEYS: Final = 64
_MAX_LINKS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """One version: these keys, this many of them."""

    version: int
    epoch: int
    threshold: int
    keys: KeySet

    def encode(self) -> bytes:
        rows = [
            {"kty": "OKP", "crv": "Ed25519", "x": b64url(key.raw).decode()}
            for _, key in sorted(self.keys.items())
        ]
        return dumps(
            {
                "v": 1,
                "version": self.version,
                "epoch": self.epoch,
                "threshold": self.threshold,
                "keys": rows,
            }
        )

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(_DOMAIN + self.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    roots: Roots
    signatures: tuple[Signature, ...]  # by keys of the version before it


def parse_chain(data: bytes) -> tuple[Link, ...]:
    """The links of a trust file, oldest first; their signatures are not looked at. Raises BundleRejected."""
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates)
        if value.keys() != {"v", "chain"} or value["v"] != 1 or not 1 <= len(value["chain"]) <= _MAX_LINKS:
            raise ValueError("its fields are v: 1 and a chain of roots")
        links = tuple(_link(row) for row in value["chain"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, JcsError) as error:
        raise BundleRejected(Refusal.TRUST_MALFORMED, str(error)) from None
    except KeyDocumentError as error:
        raise BundleRejected(Refusal.TRUST_MALFORMED, str(error)) from None
    return links


def current_roots(links: Sequence[Link], known: tuple[int, str] | None) -> Roots:
    """The newest roots of a chain that holds. `known`: version and digest that this node took before.
    Raises BundleRejected."""
    for before, link in itertools.pairwise(links):
        old, new = before.roots, link.roots
        if new.version != old.version + 1 or new.epoch < old.epoch:
            raise BundleRejected(
                Refusal.TRUST_MALFORMED, f"version {new.version} cannot follow {old.version}"
            )
        signers = count_signers(TYPE, new.encode(), link.signatures, old.keys)
        if len(signers) < old.threshold:
            detail = f"version {new.version}: {len(signers)} of {old.threshold} keys of the version before it"
            raise BundleRejected(Refusal.TRUST_NOT_SIGNED, detail)
    newest = links[-1].roots
    if known is not None:
        version, digest = known
        if newest.version < version:
            detail = f"version {newest.version}; this node has taken {version}"
            raise BundleRejected(Refusal.TRUST_ROLLED_BACK, detail)
        if not any((link.roots.version, link.roots.digest) == known for link in links):
            detail = f"the chain does not have the version {version} ({digest}) that this node has taken"
            raise BundleRejected(Refusal.TRUST_NOT_SIGNED, detail)
    return newest


def encode_chain(links: Sequence[Link]) -> bytes:
    rows = [
        {
            "roots": json.loads(link.roots.encode()),
            "signatures": [
                {"key_id": each.key_id, "sig": b64url(each.sig).decode()} for each in link.signatures
            ],
        }
        for link in links
    ]
    return json.dumps({"v": 1, "chain": rows}, indent=1).encode() + b"\n"


def next_link(links: Sequence[Link], keys: Sequence[PublicKey], threshold: int, *, new_epoch: bool) -> Link:
    """The link that would follow, unsigned. Raises BundleRejected."""
    last = links[-1].roots if links else None
    roots = Roots(
        version=last.version + 1 if last else 1,
        epoch=(last.epoch if last else 0) + (1 if new_epoch or last is None else 0),
        threshold=threshold,
        keys=key_set(keys),
    )
    _check(roots, len(keys))
    return Link(roots=roots, signatures=())


def sign_link(link: Link, key: SigningKey) -> Link:
    mine = Signature(key_id=key.kid, sig=key.sign(pae(TYPE, link.roots.encode())))
    others = tuple(each for each in link.signatures if each.key_id != key.kid)
    return Link(roots=link.roots, signatures=(*others, mine))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _link(row: dict[str, Any]) -> Link:
    if row.keys() != {"roots", "signatures"}:
        raise ValueError("a link has roots and signatures")
    value = row["roots"]
    if value.keys() != {"v", "version", "epoch", "threshold", "keys"} or value["v"] != 1:
        raise ValueError("its roots are not of version 1")
    keys = [_key(each) for each in value["keys"]]
    roots = Roots(
        version=value["version"], epoch=value["epoch"], threshold=value["threshold"], keys=key_set(keys)
    )
    _check(roots, len(keys))
    return Link(roots=roots, signatures=signature_rows(row["signatures"]))


def _key(row: dict[str, Any]) -> PublicKey:
    if row.keys() != {"kty", "crv", "x"} or (row["kty"], row["crv"]) != ("OKP", "Ed25519"):
        raise ValueError("a key is an Ed25519 key: kty, crv and x")
    return PublicKey(raw=unb64url(row["x"].encode("ascii")))


def _check(roots: Roots, listed: int) -> None:
    for name in ("version", "epoch", "threshold"):
        number = getattr(roots, name)
        if type(number) is not int or not 1 <= number < 2**53:
            raise BundleRejected(Refusal.TRUST_MALFORMED, f"{name} is a whole number from 1")
    if len(roots.keys) != listed:
        raise BundleRejected(Refusal.TRUST_MALFORMED, "a key is there twice")
    if not roots.threshold <= listed <= _MAX_KEYS:
        raise BundleRejected(Refusal.TRUST_MALFORMED, f"{roots.threshold} of {listed} keys can never sign")
