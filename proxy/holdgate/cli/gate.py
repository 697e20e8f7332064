"""`holdgate gate`: the decision service alone. It listens for askers on the admin address, for no agent."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace

from ..config import Config, Listen
from ..errors import ConfigError
from .run import announce, prepare
from .shared import Commands, add, config_of

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "gate",
        _run,
        does="run the gate and the admin API without a proxy: decisions for others (`gate:` in their file)",
        example="holdgate gate -c gate.yaml",
    )
    parser.add_argument("--verbose", action="store_true", help="log every refusal and what led to it")


def _run(args: argparse.Namespace) -> int:
    config = without_listeners(config_of(args))
    prepare(verbose=args.verbose)
    from ..adapters.server import serve

    asyncio.run(serve(config, ready=announce))
    return 0


def without_listeners(config: Config) -> Config:
    """The same instance, where no agent can reach it. Raises ConfigError when nobody may ask it either."""
    if not any(token.agents for token in config.admin.tokens):
        raise ConfigError(
            "nobody may ask this gate: give a token of admin.tokens the role decider and its agents",
            file=str(config.path),
        )
    return replace(config, listen=Listen(explicit=None, transparent=None))
