"""How the URL standard reads a path and a query: the other reader that canonical.py is compared with."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes


def whatwg_path(path: str) -> list[str]:
    """The path state of the URL standard for http and https, on input without `?` and `#`."""
    path = "".join(c for c in path.strip("".join(map(chr, range(0x21)))) if c not in "\t\n\r")
    result: list[str] = []
    pieces = path.removeprefix("/").replace("\\", "/").split("/")
    for position, piece in enumerate(pieces):
        last = position == len(pieces) - 1
        dots = piece.lower().replace("%2e", ".")
        if dots == "..":
            del result[-1:]
        if dots in (".", ".."):
            result += [""] if last else []
        else:
            encode = '"<>^`{}'
            result.append(
                "".join(
                    c if "!" <= c <= "~" and c not in encode else "".join(f"%{b:02X}" for b in c.encode())
                    for c in piece
                )
            )
    return result


def whatwg_query(query: str) -> list[tuple[str, str]]:
    """The application/x-www-form-urlencoded parser of the URL standard."""
    pairs = [piece.partition("=") for piece in query.split("&") if piece]
    decode = [(key.replace("+", " "), value.replace("+", " ")) for key, _, value in pairs]
    return [
        (unquote_to_bytes(key).decode("utf-8", "replace"), unquote_to_bytes(value).decode("utf-8", "replace"))
        for key, value in decode
    ]
