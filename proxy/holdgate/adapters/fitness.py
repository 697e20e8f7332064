"""Does a bundle fit this node: are the hosts that its configuration and its CA speak of those of the maps?
And for commands beside the running process: what it decides with.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from ..bundle import NO_BUNDLE, Bundle, load_bundle
from ..config import Config
from ..config_bundle import Signed
from ..errors import ConfigError
from ..subtrees import uncovered
from .activation import read_mark
from .bundle_store import keep_bundle, load_kept
from .ca import CertificateAuthority
from .open_reader import has_ledger, open_reader

__all__ = ["active_bundle", "bundle_of_files", "check_ca", "check_connect_to", "check_facts", "check_fits"]

log = logging.getLogger("holdgate")

CA_WARNING = timedelta(days=30)


def active_bundle(config: Config) -> Bundle:
    """What decides on this node, for commands beside the running process. Raises ConfigError."""
    if not isinstance(config.bundle, Signed):
        return load_bundle(config.surfaces, config.policies)
    if not has_ledger(config):
        return NO_BUNDLE
    with open_reader(config) as reader:
        mark = read_mark(reader)
    return NO_BUNDLE if mark is None else load_kept(config.state_dir, mark.digest)


def bundle_of_files(config: Config, authority: CertificateAuthority) -> Bundle:
    """The configured folders as a bundle that fits here, kept for later replays. Raises ConfigError."""
    bundle = load_bundle(config.surfaces, config.policies)
    check_fits(config, authority, bundle)
    keep_bundle(config.state_dir, bundle, surfaces=config.surfaces, policies=config.policies)
    return bundle


def check_fits(config: Config, authority: CertificateAuthority, bundle: Bundle) -> None:
    """Whether this node can serve under the bundle. Raises ConfigError."""
    check_connect_to(config, bundle)
    check_facts(config, bundle)
    check_ca(config, authority, bundle)


def check_ca(config: Config, authority: CertificateAuthority, bundle: Bundle) -> None:
    """What is asked of the CA, and how long it lasts. Raises ConfigError where it is not the CA asked for."""
    rotating = authority.path.with_name("next.key").exists()
    if config.ca.constrain and authority.permitted is None and not rotating:
        raise ConfigError(
            "`ca.constrain` is true, and the CA is not constrained: run `holdgate ca rotate`, and"
            " `holdgate ca switch` when agents have its root",
            file=str(config.path),
        )
    missing = uncovered(authority.permitted, bundle.index.hosts()) if authority.permitted is not None else ()
    if missing:
        log.error(
            "the CA is constrained and does not cover %s: agents cannot reach them until `holdgate ca rotate`"
            " and `holdgate ca switch`",
            ", ".join(missing),
        )
    left = authority.not_after - datetime.now(UTC)
    if left < CA_WARNING:
        log.warning("the CA ends in %d days, and all TLS with agents then: `holdgate ca rotate`", left.days)


def check_connect_to(config: Config, bundle: Bundle) -> None:
    """connect_to may name mapped hosts only: an unmapped one could never be reached, so it is a mistake."""
    for entry in config.upstream.connect_to:
        if entry.name.startswith("*."):
            continue
        if not (
            bundle.index.is_mapped(entry.name, entry.port, "https")
            or bundle.index.is_mapped(entry.name, entry.port, "http")
        ):
            message = f"connect_to {entry.name}:{entry.port}: no surface map names this host"
            raise ConfigError(message, file=str(config.path), line=entry.line)


def check_facts(config: Config, bundle: Bundle) -> None:
    """Every fact of the policies has a provider that takes its key. Raises ConfigError at the policy."""
    known = {provider.name: provider for provider in config.facts}
    for fact in bundle.policies.facts:
        provider = known.get(fact.provider)
        if provider is None:
            there = ", ".join(sorted(known)) or "none"
            message = f"{config.path.name} has no provider {fact.provider!r}; there are: {there}"
            raise ConfigError(f"facts.{fact.name}: {message}", file=fact.file, line=fact.line)
        names = provider.source.key
        if len(names) != len(fact.key):
            message = f"the key of {fact.provider} has {len(names)} parts ({', '.join(names)})"
            raise ConfigError(
                f"facts.{fact.name}: {message}, and this one {len(fact.key)}", file=fact.file, line=fact.line
            )
