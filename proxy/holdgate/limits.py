"""Every bound on what one request, one agent or the whole process may use.

Units are in the names (`_s` seconds, `_ms` milliseconds, `_bytes` bytes; plain nouns count).
Bounds are checked before memory is allocated for what they bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The `limits:` block of holdgate.yaml, with its defaults (proxy/README.md, Limits)."""

    body_bytes: int = 1_048_576
    body_bytes_max: int = 67_108_864
    header_bytes: int = 65_536
    headers: int = 100
    hold_s: float = 55.0
    decide_ms: int = 1000
    in_flight: int = 512
    held_bytes: int = 268_435_456
    connections_per_source: int = 1024
    refusals_per_agent_s: int = 50
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 60.0
    connect_s: float = 5.0
    first_byte_s: float = 60.0
    upstream_total_s: float = 600.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"limits.{name} must be greater than zero")
        if self.body_bytes > self.body_bytes_max:
            raise ValueError("limits.body_bytes must not exceed limits.body_bytes_max")

    def divided(self, processes: int) -> Limits:
        """What each of several processes may use, so that all together use no more. Raises ValueError where
        one of them could not hold the largest body."""
        if self.held_bytes // processes < self.body_bytes_max:
            raise ValueError(
                f"limits.held_bytes is divided among {processes} workers, and each must be able to hold one"
                f" body of limits.body_bytes_max: write at least {self.body_bytes_max * processes}"
            )
        return replace(
            self,
            held_bytes=self.held_bytes // processes,
            in_flight=max(1, self.in_flight // processes),
            connections_per_source=max(1, self.connections_per_source // processes),
            refusals_per_agent_s=max(1, self.refusals_per_agent_s // processes),
        )
