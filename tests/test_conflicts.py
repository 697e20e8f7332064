"""Conflict keys of the shipped maps: one open request per thing, whoever asks; and what they leave alone."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdgate.answer import DispatchError
from holdgate.files import packaged
from holdgate.ledger import OutcomeStatus
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from shop import FORM, Said, Shop, permit_all

STRIPE, IAM, STACKS = "api.stripe.com", "iam.amazonaws.com", "cloudformation.eu-west-1.amazonaws.com"
EC2, DYNAMO = "ec2.eu-west-1.amazonaws.com", "dynamodb.eu-west-1.amazonaws.com"
SIGV4 = (
    "AWS4-HMAC-SHA256 Credential=AKIA{who}/20260301/eu-west-1/x/aws4_request,"
    " SignedHeaders=host, Signature=00"
)
RECEIPT = re.compile(rb"rcpt_[0-9A-Z]{26}")
SET = "arn:aws:cloudformation:eu-west-1:1:changeSet/c/9f"
SURFACES = [
    *("payments.charge", "payments.refund", "payments.cancel", "payments.payout", "payments.instrument"),
    *("payments.invoice", "identity.role_grant", "identity.role_revoke", "infra.apply", "infra.plan"),
    "data.delete",
]


@pytest.fixture(scope="module")
def index() -> SurfaceIndex:
    return SurfaceIndex.compile(load_maps([packaged("surfaces")]))


@pytest.fixture
def shop(index: SurfaceIndex, tmp_path: Path) -> Shop:
    return Shop(index, permit_all(index, tmp_path, SURFACES))


@dataclass(frozen=True)
class Ask:
    host: str
    target: str
    body: str = ""
    dynamo: str = ""

    async def of(self, shop: Shop, who: str) -> Said:
        headers = {"Content-Type": FORM, "Authorization": SIGV4.format(who=who)}
        if self.host == STRIPE:
            headers["Authorization"] = f"Bearer sk_test_{who}"  # another key of the same account
        if self.dynamo:
            headers |= {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": self.dynamo}
        return await shop.ask(
            self.target, self.body.encode(), host=self.host, agent=f"10.0.0.{len(who)}", headers=headers
        )


def stripe(path: str, body: str = "") -> Ask:
    return Ask(STRIPE, "/v1" + path, body)


def aws(host: str, action: str, **fields: str) -> Ask:
    return Ask(host, "/", "&".join([f"Action={action}", *(f"{k}={v}" for k, v in fields.items())]))


TRANSFER = "amount=100&currency=eur&destination=acct_9"
TOGETHER = [
    pytest.param(stripe("/refunds", "charge=ch_1&amount=1"), stripe("/refunds", "charge=ch_1"), id="refunds"),
    pytest.param(
        stripe("/payment_intents/pi_1/confirm"),
        stripe("/payment_intents/pi_1/cancel"),
        id="confirm and cancel",
    ),
    pytest.param(
        stripe("/payment_intents/pi_1", "amount=5"),
        stripe("/payment_intents/pi_1/confirm"),
        id="update, confirm",
    ),
    pytest.param(
        stripe("/payment_intents/pi_1/capture"),
        stripe("/payment_intents/pi_1/cancel"),
        id="capture and cancel",
    ),
    pytest.param(
        stripe("/setup_intents/seti_1/confirm"), stripe("/setup_intents/seti_1/cancel"), id="setup intents"
    ),
    pytest.param(stripe("/charges/ch_1/capture", "amount=1"), stripe("/charges/ch_1/capture"), id="captures"),
    pytest.param(stripe("/invoices/in_1/pay"), stripe("/invoices/in_1/void"), id="pay and void"),
    pytest.param(
        stripe("/transfers", TRANSFER + "&source_transaction=ch_1"),
        stripe("/transfers", "amount=7&currency=eur&destination=acct_8&source_transaction=ch_1"),
        id="transfers out of one charge",
    ),
    pytest.param(
        aws(IAM, "AttachRolePolicy", RoleName="r", PolicyArn="arn:aws:iam::1:policy/a"),
        aws(IAM, "PutRolePolicy", RoleName="r", PolicyName="b", PolicyDocument="{}"),
        id="grants to one role",
    ),
    pytest.param(
        aws(STACKS, "ExecuteChangeSet", ChangeSetName="one", StackName="web"),
        aws(STACKS, "ExecuteChangeSet", ChangeSetName="two", StackName="web"),
        id="plans of one stack",
    ),
    pytest.param(
        aws(STACKS, "ExecuteChangeSet", ChangeSetName=SET),
        aws(STACKS, "ExecuteChangeSet", ChangeSetName=SET, StackName="web"),
        id="one plan",
    ),
    pytest.param(
        aws(EC2, "StopInstances", **{"InstanceId.1": "i-1", "InstanceId.2": "i-2"}),
        aws(EC2, "TerminateInstances", **{"InstanceId.1": "i-2"}),
        id="one instance of two",
    ),
    pytest.param(
        Ask(DYNAMO, "/", '{"TableName":"t"}', "DynamoDB_20120810.DeleteTable"),
        Ask(
            DYNAMO,
            "/",
            '{"TableName":"t","AttributeDefinitions":[],"KeySchema":[],"BillingMode":"PAY_PER_REQUEST"}',
            "DynamoDB_20120810.CreateTable",
        ),
        id="one table",
    ),
]
APART = [
    pytest.param(stripe("/refunds", "charge=ch_1"), stripe("/refunds", "charge=ch_2"), id="two charges"),
    pytest.param(
        stripe("/refunds", "payment_intent=pi_1"),
        stripe("/payment_intents/pi_1/cancel"),
        id="refund and cancel",
    ),
    pytest.param(
        stripe("/transfers", TRANSFER), stripe("/transfers", TRANSFER + "&source_type=card"), id="transfers"
    ),
    pytest.param(
        aws(IAM, "AttachRolePolicy", RoleName="x", PolicyArn="arn:aws:iam::1:policy/a"),
        aws(IAM, "AttachUserPolicy", UserName="x", PolicyArn="arn:aws:iam::1:policy/a"),
        id="a role and a user of one name",
    ),
    pytest.param(
        aws(IAM, "AttachRolePolicy", RoleName="x", PolicyArn="arn:aws:iam::1:policy/a"),
        aws(IAM, "DetachRolePolicy", RoleName="x", PolicyArn="arn:aws:iam::1:policy/a"),
        id="taking a right away waits for nobody",
    ),
]


MADE = [  # what the requests above act on, and how the vendor names it
    (stripe("/payment_intents", "amount=100&currency=eur"), b'{"id":"pi_1"}'),
    (stripe("/setup_intents"), b'{"id":"seti_1"}'),
    (stripe("/charges", "amount=100&currency=eur&source=card_1&capture=false"), b'{"id":"ch_1"}'),
    *(
        (
            aws(STACKS, "CreateChangeSet", ChangeSetName="c", StackName="web", UsePreviousTemplate="true"),
            b"<CreateChangeSetResponse><CreateChangeSetResult><Id>" + identity + b"</Id>"
            b"</CreateChangeSetResult></CreateChangeSetResponse>",
        )
        for identity in (b"one", b"two", SET.encode())
    ),
]


async def made(shop: Shop, who: str) -> None:
    """Two-step commits need their first step, by the same agent with the same credential."""
    for ask, answer in MADE:
        shop.upstream.body = answer
        kind = b"text/xml" if answer.startswith(b"<") else b"application/json"
        shop.upstream.headers = ((b"Content-Type", kind),)
        assert (await ask.of(shop, who)).outcome == "PERMIT"


@pytest.mark.parametrize(("one", "two"), TOGETHER)
async def test_of_two_requests_about_one_thing_one_is_open(shop: Shop, one: Ask, two: Ask) -> None:
    await made(shop, "A")
    shop.upstream.body, shop.upstream.headers = b'{"id":"pi_1"}', ((b"Content-Type", b"application/json"),)
    before = len(shop.upstream.seen)
    shop.upstream.gate = asyncio.Event()
    first = asyncio.create_task(one.of(shop, "A"))
    while len(shop.upstream.seen) == before:
        await asyncio.sleep(0)
    second = await two.of(shop, "BB")
    assert (second.status, second.outcome, second.reason) == (409, "SILENCE", "conflict")
    assert set(RECEIPT.findall(second.body)) == {second.receipt.encode()}  # and not that of the other agent
    assert len(shop.upstream.seen) == before + 1
    shop.upstream.gate.set()
    assert (await first).outcome == "PERMIT"
    after = await two.of(shop, "BB")
    if after.reason == "input_unavailable":  # it acts on what A made, and that is A's alone
        after = await two.of(shop, "A")
    if two.body.startswith(f"Action=ExecuteChangeSet&ChangeSetName={SET}"):
        assert (after.reason, len(shop.upstream.seen)) == ("already_executed", before + 1)
    else:
        assert (after.outcome, len(shop.upstream.seen)) == ("PERMIT", before + 2)


@pytest.mark.parametrize(("one", "two"), APART)
async def test_of_two_requests_about_two_things_both_may_be_open(shop: Shop, one: Ask, two: Ask) -> None:
    shop.upstream.gate = asyncio.Event()
    tasks = [asyncio.create_task(one.of(shop, "A")), asyncio.create_task(two.of(shop, "BB"))]
    while len(shop.upstream.seen) < 2:
        await asyncio.sleep(0)
    shop.upstream.gate.set()
    assert [(await task).outcome for task in tasks] == ["PERMIT", "PERMIT"]


@pytest.mark.parametrize(
    ("found", "then"),
    [
        pytest.param(OutcomeStatus.EXECUTED, "PERMIT", id="found executed"),
        pytest.param(OutcomeStatus.NOT_SENT, "PERMIT", id="found not sent"),
        pytest.param(None, "SILENCE", id="nobody looked"),
    ],
)
async def test_a_thing_whose_outcome_is_unknown_is_held_until_somebody_looked(
    shop: Shop, found: OutcomeStatus | None, then: str
) -> None:
    first, second = stripe("/refunds", "charge=ch_1&amount=1"), stripe("/refunds", "charge=ch_1&amount=2")
    shop.upstream.error = DispatchError(OutcomeStatus.UNKNOWN, 502, "reset by the test")
    lost = await first.of(shop, "A")
    assert lost.status == 502
    shop.upstream.error = None
    held = await second.of(shop, "BB")
    assert (held.reason, len(shop.upstream.seen)) == ("conflict", 1)
    if found is not None:
        shop.ledger.reconcile(lost.receipt, found)
    assert (await second.of(shop, "BB")).outcome == then
    assert len(shop.upstream.seen) == (2 if then == "PERMIT" else 1)
