"""shapes.py and statement.py: the invariants in its docstring; and an audit does each thing once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import NODE, ORIGIN, RECEIPT_KEY, T0, coverage_statement, permit_statement, receipt_id
from holdgate.adapters import verifying
from holdgate.audit import verified_here
from holdgate.audit_rows import LogRecord
from holdgate.errors import Outcome, Reason
from holdgate.jcs import JcsError, dumps, loads_sorted, loads_strict
from holdgate.keys import key_set
from holdgate.ledger import OutcomeStatus
from holdgate.receipt import outcome_statement, sign, verify_each
from holdgate.shapes import PLANS, Record, Text, _are_names
from holdgate.statement import _TYPES, StatementError, _broken_rule, check_statement
from holdgate.surface.model import Action, Effect

REFUSAL: dict[str, Any] = permit_statement(
    outcome=Outcome.SILENCE,
    reason=Reason.NO_RULE_MATCHED,
    exp_us=0,
    approval="",
    budget=(),
    via="",
    replay_of="",
    supersedes="",
    idempotency=None,
)
MANY = permit_statement(
    actions=(Action(surface="s", operation="o", effect=Effect.READ, params=()),) * 40, replay_of=""
)
RECONCILED = outcome_statement(
    receipt_id=receipt_id(2),
    issuer=ORIGIN,
    iat_us=T0,
    node=NODE,
    of=receipt_id(1),
    status=OutcomeStatus.RECONCILED,
    http_status=200,
) | {"found": "executed", "by": "alice", "note": "looked"}
STATEMENTS = [permit_statement(), REFUSAL, MANY, RECONCILED, coverage_statement()]

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.sampled_from([0, 1, -1, 200, 2**53 - 1, 2**53, -(2**53), 2**63 - 1, 2**64 - 1, 1.0, 3.0]),
    st.sampled_from(["", "x", "a\0b:80", "\0", "x\n", "é", "PERMIT", receipt_id(5), "sha256:" + "0" * 64]),
)
_NAMES = st.sampled_from(["a", "B", "", "amount", "digest", "a-b", "é"])
_BOXED = st.one_of(
    st.lists(_ODD, max_size=2),
    st.dictionaries(_NAMES, _ODD, max_size=2),
    st.lists(st.lists(_ODD), max_size=1),
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _with(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    copy = value.copy()
    copy[path[0]] = _with(copy[path[0]], path[1:], other)
    return copy


@st.composite
def _nearly(draw: st.DrawFn) -> Any:
    """A statement with something else in up to two places, or one name more."""
    statement = draw(st.sampled_from(STATEMENTS))
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(list(_paths(statement))))
        statement = _with(statement, path, draw(_ODD | _BOXED))
    if draw(st.booleans()):
        path = draw(st.sampled_from([(), ("request",), ("actions", 0, "params"), ("details",)]))
        try:
            place = statement
            for step in path:
                place = place[step]
            statement = _with(statement, path, place | {draw(_NAMES): draw(_ODD | _BOXED)})
        except (KeyError, TypeError, IndexError):
            pass  # another kind of statement
    return statement


def _accepts(statement: Any) -> bool:
    try:
        check_statement(statement)
    except StatementError:
        return False
    return True


@given(_nearly())
def test_sh1_what_is_accepted_has_a_canonical_form(statement: Any) -> None:
    if _accepts(statement):
        data = dumps(statement)
        assert loads_sorted(data) == loads_strict(data) == statement


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("request", "bytes"), 2**53, id="a count that doubles do not hold"),
        pytest.param(("request", "bytes"), 3.0, id="a count that is a float"),
        pytest.param(("policy", "revision"), True, id="a count that is a bool"),
        pytest.param(("v",), 1.0, id="a version that is a float"),
        pytest.param(("actions", 0, "params"), {"Amount": 1}, id="a name in capitals"),
        pytest.param(("actions", 0, "params"), {"amount": 0.5}, id="a parameter that is a float"),
        pytest.param(("actions", 0, "params"), {"amount": [2**53]}, id="a large integer in a list"),
        pytest.param(("actions", 0, "params"), {"amount": None}, id="null"),
        pytest.param(("actions", 0, "params"), {"amount": [[1]]}, id="a list in a list"),
    ],
)
def test_sh1_what_has_no_canonical_form_is_refused(path: tuple[Any, ...], value: Any) -> None:
    assert _accepts(permit_statement())
    assert not _accepts(_with(permit_statement(), path, value))


def test_sh2_no_pattern_takes_the_character_that_joins_texts() -> None:
    """Else a text could reach into the next: "a:1", "2:3<NUL>x" would pass as "a:1<NUL>2:3", "x"."""
    import holdgate.statement as module

    texts = [value for value in vars(module).values() if isinstance(value, Text)]
    for name in ("_COMMON", "_DECISION", "_DECISION_OPTIONAL", "_OUTCOME", "_OUTCOME_OPTIONAL", "_REQUEST"):
        texts += [value for value in getattr(module, name).values() if isinstance(value, Text)]
    assert len(texts) > 15
    for text in texts:
        for value in ("\0", "x\0", "\0:80", "x\0:80", "sha256:\0", "a" * 42 + "\0"):
            assert not text(value), text.pattern


@given(st.lists(st.text(alphabet="a1:\0.", max_size=6), min_size=3, max_size=3))
def test_sh2_texts_in_one_match_are_texts_one_by_one(values: list[str]) -> None:
    shapes = {"a": Text("[^\0]{1,4}"), "b": Text("[^\0/]{1,9}:[0-9]{1,2}"), "c": Text("a*|[a.]{2}")}
    given_ = dict(zip(shapes, values, strict=True))
    each = all(shape(given_[name]) for name, shape in shapes.items())
    assert Record(shapes)(given_) == each


def test_sh2_what_is_remembered_is_bounded_and_does_not_carry_over() -> None:
    good = permit_statement()
    for number in range(3000):
        assert not _accepts(good | {f"x{number}": 1})
        assert not _accepts(_with(good, ("request",), good["request"] | {f"x{number}": 1}))
        params = {f"p{number}": 1}
        assert _accepts(_with(good, ("actions", 0, "params"), params))
    assert _accepts(good)
    for cached in (_TYPES["decision"].plan, _are_names, _broken_rule):
        assert cached.cache_info().currsize <= PLANS


# --- an audit does each thing once ---


def _records(count: int) -> list[LogRecord]:
    return [
        LogRecord(
            index=number, id="", type="", outcome="", reason="", agent="", surface="", iat_us=0,
            jws=sign(permit_statement(receipt_id=receipt_id(number + 10)), RECEIPT_KEY),
            inputs=None, sealed=None, permit=None,
        )
        for number in range(count)
    ]  # fmt: skip


def test_each_receipt_is_decoded_parsed_spelled_verified_and_checked_exactly_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The audit's rate, guarded without a clock: bench/audits.py measures it."""
    from holdgate import jcs, receipt
    from holdgate.keys import PublicKey

    records = _records(300)  # more than a batch
    list(verified_here(records[:1], key_set([RECEIPT_KEY.public])))  # the one header is remembered
    counts: dict[str, int] = {}

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    class Orjson:
        OPT_SORT_KEYS, JSONEncodeError, JSONDecodeError = (
            jcs.orjson.OPT_SORT_KEYS,
            jcs.orjson.JSONEncodeError,
            jcs.orjson.JSONDecodeError,
        )
        loads, dumps = staticmethod(jcs.orjson.loads), staticmethod(jcs.orjson.dumps)

    monkeypatch.setattr(jcs, "orjson", Orjson)
    counted(Orjson, "loads")
    counted(Orjson, "dumps")
    counted(receipt, "unb64url")
    counted(receipt, "check_statement")
    counted(jcs, "_check")
    counted(PublicKey, "verifies")
    list(verified_here(records, key_set([RECEIPT_KEY.public])))
    each = len(records)
    # Payload and signature are decoded; _check, the walk over every value, is what the shapes make needless.
    assert counts == {
        "loads": each, "dumps": each, "unb64url": 2 * each, "check_statement": each, "verifies": each,
    }  # fmt: skip


def test_a_batch_says_what_each_alone_says() -> None:
    keys = key_set([RECEIPT_KEY.public])
    good = [record.jws for record in _records(3)]
    batch = [good[0], good[1][:-3] + b"AAA", b"x.y", good[2], b"a" * 9000, good[1]]
    alone = [verify_each([jws], keys)[0] for jws in batch]
    assert [str(one) for one in verify_each(batch, keys)] == [str(one) for one in alone]
    assert [hasattr(one, "statement") for one in alone] == [True, False, False, True, False, True]
    assert verifying.verified_here is verified_here
    with pytest.raises(JcsError):
        loads_strict(b'{"a":1.0}')
