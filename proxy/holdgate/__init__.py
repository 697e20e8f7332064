"""Holdgate: a fail-closed egress proxy for AI agents. Every action is held; only a PERMIT is forwarded."""

__all__ = ["__version__"]

__version__ = "0.1.0"
