"""Asks the providers of facts: all questions of a request at once, each under its provider's deadline.

    Lookup (provider, key) -> source (file, http, sql) -> Found, or nothing

Keys come from agents' requests. They are compared, bound or percent-encoded, and never part of a path, a
statement or an address; whom is asked is in holdgate.yaml alone. Agents reach no provider through Holdgate.

Invariants (tests/test_facts_adapter.py has one test named after each):
  FP1  fetch() never raises, and ends with the longest deadline: what is late, wrong or down is not in it.
  FP2  A key changes nothing but its own value: no other row, path, parameter or statement.
  FP3  Nothing is cached that was not found, and nothing for longer than declared.
  FP4  At most CONCURRENT questions are with one provider at once; others wait, within their deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from cachetools import TTLCache

from ..config_facts import FileSource, HttpSource, Provider, SqliteSource
from ..facts import Found, Lookup
from .fact_sources import HttpAnswers, SourceError, SqliteRows, TableFile

__all__ = ["Facts", "build_facts"]

log = logging.getLogger("holdgate.facts")

CONCURRENT: Final = 8
_CACHED: Final = 10_000


class Source(Protocol):
    """One place where facts are."""

    async def read(self, key: tuple[str, ...], *, deadline_s: float) -> Found:
        """The one answer for this key. Raises SourceError, OSError or TimeoutError."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Asked:
    provider: Provider
    source: Source
    slots: asyncio.Semaphore
    cache: TTLCache[tuple[str, ...], Found] | None
    failing: bool = False

    async def ask(self, key: tuple[str, ...]) -> Found | None:
        if self.cache is not None and (kept := self.cache.get(key)) is not None:
            return kept
        try:
            async with asyncio.timeout(self.provider.deadline_s), self.slots:
                found = await self.source.read(key, deadline_s=self.provider.deadline_s)
        except TimeoutError:
            self._failed("no answer within deadline_ms")
        except SourceError as error:
            if error.of_the_key:  # no row, two rows: the provider is well
                log.info("facts.%s: %s", self.provider.name, error)
            else:
                self._failed(str(error))
        except OSError as error:
            self._failed(error.strerror or type(error).__name__)
        except Exception as error:
            log.exception("facts.%s", self.provider.name)
            self._failed(type(error).__name__)
        else:
            self.failing = False
            if self.cache is not None:
                self.cache[key] = found
            return found
        return None

    def _failed(self, why: str) -> None:
        """Said once, until it works again: every request is refused meanwhile, with its own receipt."""
        if not self.failing:
            log.error("facts.%s is unavailable: %s", self.provider.name, why)
        self.failing = True


@dataclass(slots=True)
class Facts:
    """The providers of one configuration."""

    asked: Mapping[str, _Asked] = field(default_factory=dict)

    async def fetch(self, lookups: Iterable[Lookup]) -> Mapping[Lookup, Found]:
        known = [lookup for lookup in lookups if lookup.provider in self.asked]
        answers = await asyncio.gather(*(self.asked[each.provider].ask(each.key) for each in known))
        return {each: found for each, found in zip(known, answers, strict=True) if found is not None}

    async def close(self) -> None:
        for each in self.asked.values():
            await each.source.close()


def build_facts(
    providers: Iterable[Provider],
    *,
    now_s: Callable[[], int] = lambda: int(time.time()),
    clock: Callable[[], float] = time.monotonic,
) -> Facts:
    """Raises ConfigError for a source that cannot be opened."""
    asked = {}
    for provider in providers:
        cache = (
            TTLCache[tuple[str, ...], Found](_CACHED, provider.cache_s, clock) if provider.cache_s else None
        )
        asked[provider.name] = _Asked(
            provider, _source(provider, now_s), asyncio.Semaphore(CONCURRENT), cache
        )
    return Facts(asked)


def _source(provider: Provider, now_s: Callable[[], int]) -> Source:
    match provider.source:
        case FileSource() as source:
            return TableFile(source, provider.max_age_s)
        case SqliteSource() as source:
            return SqliteRows(source, provider.max_age_s, now_s)
        case HttpSource() as source:
            return HttpAnswers(source, provider.max_age_s, now_s)
