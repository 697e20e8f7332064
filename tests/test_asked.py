"""surface/asked.py: a named action is recognised as strictly as a sent one."""

from __future__ import annotations

from typing import Any

import pytest

from holdgate.errors import InputError, Reason
from holdgate.files import packaged
from holdgate.surface.asked import recognise_asked
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from holdgate.surface.model import Effect, KeySource

FLEET = b"f" * 32
REFUND = ("payments.refund", "stripe.PostRefunds")
OBSERVATION = ("ehr.write", "fhir.r4.create")


@pytest.fixture(scope="module")
def index() -> SurfaceIndex:
    return SurfaceIndex.compile(load_maps([packaged("surfaces")]))


def ask(index: SurfaceIndex, where: tuple[str, str], params: dict[str, Any], key: str = "") -> Any:
    return recognise_asked(index, *where, params, key=key, fleet_key=FLEET)[0]


def test_a_named_refund_is_the_action_that_a_policy_sees(index: SurfaceIndex) -> None:
    found = ask(index, REFUND, {"amount": 500, "reference": "pi_1"}, key="k-1")
    (action,) = found.actions
    assert (action.surface, action.operation, action.effect) == (*REFUND, Effect.COMMIT)
    assert {param.name: param.value for param in action.params} == {"amount": 500, "reference": "pi_1"}
    (rule,) = found.keys
    assert (rule.source, rule.value, rule.provider) == (KeySource.NATIVE, "k-1", False)
    assert found.headers == () and found.conflict_keys == ()


WRONG: dict[str, tuple[tuple[str, str], dict[str, Any], Reason]] = {
    "an unknown surface": (("payments.gift", "stripe.PostRefunds"), {}, Reason.UNKNOWN_OPERATION),
    "an unknown operation": (("payments.refund", "stripe.GetRefunds"), {}, Reason.UNKNOWN_OPERATION),
    "an operation of another surface": (
        ("payments.charge", "stripe.PostRefunds"),
        {},
        Reason.UNKNOWN_OPERATION,
    ),
    "no operation where there are several": (("payments.charge", ""), {}, Reason.UNKNOWN_OPERATION),
    "an undeclared parameter": (REFUND, {"reference": "pi_1", "note": "x"}, Reason.UNKNOWN_PARAMETER),
    "a required one missing": (REFUND, {"amount": 5}, Reason.MISSING_PARAMETER),
    "an amount as text": (REFUND, {"amount": "5", "reference": "pi_1"}, Reason.PARAMETER_TYPE),
    "an amount as true": (REFUND, {"amount": True, "reference": "pi_1"}, Reason.PARAMETER_TYPE),
    "an amount beyond 64 bits": (REFUND, {"amount": 2**63, "reference": "pi_1"}, Reason.PARAMETER_TYPE),
    "an amount below its bound": (REFUND, {"amount": 0, "reference": "pi_1"}, Reason.PARAMETER_TYPE),
    "a null": (REFUND, {"amount": None, "reference": "pi_1"}, Reason.PARAMETER_TYPE),
}


@pytest.mark.parametrize(("where", "params", "reason"), WRONG.values(), ids=WRONG)
def test_sm33_what_the_map_does_not_declare_is_refused(
    index: SurfaceIndex, where: tuple[str, str], params: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(InputError) as caught:
        ask(index, where, params)
    assert caught.value.reason is reason


def test_sm34_the_digest_is_over_operation_and_parameters(index: SurfaceIndex) -> None:
    params = {"amount": 500, "reference": "pi_1"}
    digest = ask(index, REFUND, params).digest
    assert ask(index, REFUND, dict(reversed(params.items())), key="other").digest == digest
    others = [{**params, "amount": 501}, {**params, "account": "acct_1"}, {"reference": "pi_1"}]
    assert len({digest, *(ask(index, REFUND, each).digest for each in others)}) == 4
    assert ask(index, OBSERVATION, {"resource_type": "Observation"}).digest.startswith("hmac-sha256:")


def test_parameters_of_a_sensitive_operation_are_keyed(index: SurfaceIndex) -> None:
    found = ask(
        index, OBSERVATION, {"resource_type": "Observation", "patient": "Patient/mrn-1", "status": "Jane"}
    )
    public = {param.name: str(param.public) for param in found.actions[0].params}
    assert public["resource_type"] == "Observation"
    assert public["patient"].startswith("hmac-sha256:") and public["status"].startswith("hmac-sha256:")
    assert {param.name: param.value for param in found.actions[0].params}["patient"] == "Patient/mrn-1"
