"""A line on a terminal that says how far a long command is. Nowhere else: files and pipes stay clean."""

from __future__ import annotations

import sys
import time
from typing import Self, TextIO

__all__ = ["Progress"]

_EVERY_S = 0.2
_WIDTH = 30


class Progress:
    """Use it as a context manager, and call show() as often as you like."""

    def __init__(self, what: str, total: int, unit: str, *, stream: TextIO | None = None) -> None:
        self._what, self._total, self._unit = what, max(total, 1), unit
        self._stream = sys.stderr if stream is None else stream
        self._is_on = self._stream.isatty()
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_on:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if not self._is_on or now - self._shown < _EVERY_S:
            return
        self._shown = now
        share = min(1.0, done / self._total)
        rate = done / (now - self._started)
        left_s = (self._total - done) / rate if rate and done < self._total else 0.0
        bar = "#" * int(share * _WIDTH)
        head = f"{self._what} [{bar:<{_WIDTH}}] {share:4.0%} {done} {self._unit}"
        self._stream.write(f"\r{head}, {rate:.0f}/s, {left_s:.0f} s left\x1b[K")
        self._stream.flush()
