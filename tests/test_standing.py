"""standing.py, and what it does in the pipeline and the store: a denial that sticks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import KEYS, NODE, ORIGIN, RECEIPT_KEY, open_ledger
from fakes import NO_POLICIES
from holdgate.adapters import sqlite_batch
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.adjudicate import Adjudication, Case, Evidence
from holdgate.agents import Agent
from holdgate.bundle import NEVER_US, Bundle
from holdgate.errors import Outcome, Reason
from holdgate.gate import Decision
from holdgate.ledger import Entry, Recorded
from holdgate.receipt import verify
from holdgate.remote_gate import ENGINES
from holdgate.standing import KEYLESS_S, Denial, repeats
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.model import KeyRule, KeySource
from shop import Said, Shop
from surface_requests import index_of
from test_pipeline import NATIVE, REQUEST, recognised
