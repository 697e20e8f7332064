"""What the running process knows of its boundary: the newest coverage receipt, and what `readyz` wants of it.

Invariants (tests/test_boundary.py has one test named after each):
  BD1  With `doctor.required`, the process is not ready until the newest coverage in the log settles every
       required row and is not older than `doctor.max_age_s`; a newer coverage that does not undoes it.
  BD2  Without it, coverage changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..config_doctor import Doctor
from ..coverage import gap
from ..ledger import AdminNote, Noted
from .admin.shapes import decode_jws
from .open_reader import open_reader

__all__ = ["COVERAGE", "Boundary"]

COVERAGE = "coverage"


@dataclass(slots=True, kw_only=True)
class Boundary:
    want: Doctor
    newest: tuple[int, Mapping[str, Any]] | None  # its time in microseconds, and its details

    @classmethod
    def read(cls, config: Config) -> Boundary:
        """From the log; the ledger is open, and has been audited. Raises ConfigError."""
        newest = None
        if config.doctor.required:
            with open_reader(config) as reader:
                stored = reader.newest_admin(COVERAGE)
            if stored is not None:
                newest = stored.iat_us, decode_jws(stored.jws)["details"]
        return cls(want=config.doctor, newest=newest)

    def noted(self, note: AdminNote, noted: Noted) -> None:
        """A receipt was written just now."""
        if note.action == COVERAGE:
            self.newest = noted.iat_us, note.details

    def gap(self, now_us: int) -> str:
        """Why no proof of a closed boundary is in the log; "" when there is one, or none is wanted."""
        return gap(self.newest, self.want.required, now_us=now_us, max_age_s=self.want.max_age_s)
