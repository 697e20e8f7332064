"""What every file of a policies folder has: apiVersion, kind, metadata, names; and which files there are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from . import policy_words
from .errors import ConfigError
from .strictyaml import Node
from .yamlfiles import yaml_files
from .yamltext import foreign_letter

__all__ = ["API_VERSION", "KINDS", "check_identifier", "envelope", "known", "name", "policy_files"]

API_VERSION: Final = "holdgate/v1"
KINDS: Final = ("Policy", "PolicyTest", "Bundle")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")


def policy_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The YAML files under `paths`, sorted, each once. Raises ConfigError for a path that is missing."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found |= dict.fromkeys(yaml_files(path))
        elif path.is_file():
            found[path] = None
        else:
            raise ConfigError("no such file or folder", file=str(path))
    return tuple(sorted(found))


def envelope(root: Node) -> tuple[str, dict[str, Node], Node]:
    """(kind, metadata, spec) of one document of ours. Raises ConfigError."""
    top = root.mapping(
        required=("apiVersion", "kind", "metadata", "spec"), what="the document", hints=policy_words.DOCUMENT
    )
    if top["apiVersion"].text("apiVersion") != API_VERSION:
        raise top["apiVersion"].fail(f"apiVersion must be {API_VERSION}")
    kind = top["kind"].choice(KINDS, "kind (in a policies folder)", policy_words.KINDS)
    metadata = top["metadata"].mapping(
        required=("name",), optional=("owner",), what="metadata", hints=policy_words.METADATA
    )
    name(metadata["name"], "metadata.name")
    return kind, metadata, top["spec"]


def name(node: Node, what: str) -> str:
    """A name that can stand in a header and a receipt. Raises ConfigError."""
    text = node.text(what)
    if not _NAME.match(text):
        raise node.fail(
            f"{what} must be 1-64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return text


def check_identifier(key: str, node: Node, what: str) -> None:
    """A key that conditions name. Raises ConfigError at the key of `node`."""
    if not _IDENTIFIER.match(key):
        names = "letters, digits and _, not beginning with a digit"
        raise node.fail_key(f"{what}: {key!r} is not a name that a condition can use: {names}")


def known(node: Node, names: frozenset[str], says: str) -> str:
    """The text, which must be one of `names`. Raises ConfigError: `says`, the text, what is close to it."""
    text = node.text("a name")
    if text not in names:
        close = get_close_matches(text, sorted(names), n=1)
        advice = (
            f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(names)) or 'none'}"
        )
        raise node.fail(f"{says} {text!r}; {advice}{foreign_letter(text)}")
    return text
