#!/usr/bin/env python3
"""Tells the gate what became of what it permitted: Envoy's access log in, one report for each PERMIT out.

    envoy -c envoy/envoy.yaml | python report.py --admin http://127.0.0.1:9090 --token-file envoy.token

Needs nothing but Python. Every line goes on to standard output. What cannot be told (the gate is down, or it
does not wait for this permit any more) is one line on standard error, and stays `unknown` there.

A status is reported only as far as Envoy knows it: `executed` or `failed` when the upstream answered and that
answer says so, `not_sent` when no byte of the request was written to an upstream, else `unknown`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PERMIT = re.compile(r'PERMIT;id="(rcpt_[0-9A-Z]{26})"')
TRIES = 3


def outcome_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to report about one line of the log; None: nothing was permitted."""
    found = PERMIT.match(str(row.get("decision") or ""))
    if found is None:
        return None
    said: dict[str, Any] = {"id": found[1], "status": "unknown"}
    if row.get("details") == "via_upstream":
        said["http_status"] = status = int(row["status"])
        said["status"] = _of_answer(status)
    elif row.get("upstream_bytes_sent") in (0, "0"):
        said["status"] = "not_sent"
    return said


def _of_answer(status: int) -> str:
    if 200 <= status < 300 or status == 304:
        return "executed"
    # These say that it may have happened, or that it may happen yet; 1xx is no answer at all.
    doubtful = status < 200 or status in (408, 409, 425) or status >= 500
    return "unknown" if doubtful else "failed"


class Gate:
    def __init__(self, admin: str, token: str) -> None:
        self._parts, self._token = urlsplit(admin), token
        self._connection: http.client.HTTPConnection | None = None

    def tell(self, said: Mapping[str, Any]) -> str:
        """What went wrong, or ""."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        trouble = ""
        for _ in range(TRIES):
            try:
                connection = self._connection or self._connect()
                path = f"{self._parts.path.rstrip('/')}/v1/outcome"
                connection.request("POST", path, json.dumps(said), headers)
                answer = connection.getresponse()
                text = answer.read().decode("utf-8", "replace")
                return "" if answer.status == 200 else f"{answer.status} {text.strip()}"
            except (OSError, http.client.HTTPException) as error:
                trouble, self._connection = repr(error), None
        return trouble

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(self._parts.netloc, timeout=10)
        return self._connection


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--admin", required=True, metavar="URL", help="the gate's admin API")
    parser.add_argument("--token-file", type=Path, required=True, metavar="FILE", help="as for generate.py")
    args = parser.parse_args()
    try:
        gate = Gate(args.admin, args.token_file.read_text().strip())
    except OSError as error:
        parser.error(f"--token-file {args.token_file}: {error.strerror}")
    for line in sys.stdin:
        sys.stdout.write(line)
        sys.stdout.flush()
        try:
            row = json.loads(line)
            said = outcome_of(row) if isinstance(row, dict) else None
        except (ValueError, KeyError):
            continue  # not a line of the access log
        if said is not None and (trouble := gate.tell(said)):
            print(f"not recorded: {said}: {trouble}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
