"""The calls that `capture.py` records, made with the unmodified client libraries.

Each function takes the certificate file and returns the named calls of one surface map folder.
Constants keep a second run close to the first; dates, signatures and generated keys still differ.
The functions are tables of calls, so they are longer than functions otherwise are here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

__all__ = ["CALLS"]

type Calls = dict[str, Callable[[], object]]


def stripe_calls(pem: str) -> Calls:
    import stripe

    stripe.ca_bundle_path = pem
    client = stripe.StripeClient(
        "sk_test_capture",
        http_client=stripe.RequestsClient(proxy=os.environ["HTTPS_PROXY"], verify_ssl_certs=True),
    )
    v1 = client.v1
    key = {"idempotency_key": "order-1042"}
    connected: Any = {"stripe_account": "acct_other"}
    charge: Any = {"amount": 1999, "currency": "eur", "customer": "cus_1", "payment_method": "pm_1"}
    card: Any = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2030, "cvc": "123"}
    address = {"line1": "Street 1", "city": "Graz", "country": "AT"}
    customer: Any = {"name": "Ada", "email": "ada@example.com", "metadata": {"crm": "7"}, "address": address}
    intents, methods = v1.payment_intents, v1.payment_methods
    return {
        "payment_intent_create": lambda: intents.create({**charge, "metadata": {"order": "1042"}}, key),
        "payment_intent_confirmed": lambda: intents.create(
            {**charge, "confirm": True, "off_session": True, "expand": ["latest_charge"]}, key
        ),
        "payment_intent_confirm_false": lambda: intents.create({**charge, "confirm": False}),
        "payment_intent_connected_account": lambda: intents.create({**charge, "confirm": True}, connected),
        "payment_intent_confirm": lambda: intents.confirm("pi_1", {"payment_method": "pm_1"}),
        "payment_intent_update": lambda: intents.update("pi_1", {"amount": 2500, "description": "changed"}),
        "payment_intent_capture": lambda: intents.capture("pi_1", {"amount_to_capture": 500}),
        "payment_intent_capture_full": lambda: intents.capture("pi_1"),
        "payment_intent_cancel": lambda: intents.cancel("pi_1", {"cancellation_reason": "duplicate"}),
        "refund_full": lambda: v1.refunds.create({"charge": "ch_1", "reason": "requested_by_customer"}),
        "refund_partial": lambda: v1.refunds.create(
            {"payment_intent": "pi_1", "amount": 4200, "metadata": {"ticket": "A 7"}, "expand": ["charge"]},
            key,
        ),
        "charge_create": lambda: v1.charges.create({"amount": 700, "currency": "usd", "source": "tok_visa"}),
        "charge_capture": lambda: v1.charges.capture("ch_1", {"amount": 300}),
        "transfer_create": lambda: v1.transfers.create(
            {"amount": 5000, "currency": "eur", "destination": "acct_1", "transfer_group": "ORDER_9"}
        ),
        "payout_create": lambda: v1.payouts.create(
            {"amount": 90000, "currency": "eur", "method": "standard"}
        ),
        "payout_cancel": lambda: v1.payouts.cancel("po_1"),
        "customer_create": lambda: v1.customers.create(customer),
        "customer_update": lambda: v1.customers.update("cus_1", {"phone": "+431234"}),
        "customer_delete": lambda: v1.customers.delete("cus_1"),
        "payment_method_create": lambda: methods.create(
            {"type": "card", "card": card, "billing_details": {"name": "Ada"}}
        ),
        "payment_method_attach": lambda: methods.attach("pm_1", {"customer": "cus_1"}),
        "payment_method_detach": lambda: methods.detach("pm_1"),
        "setup_intent_create": lambda: v1.setup_intents.create(
            {"customer": "cus_1", "usage": "off_session", "automatic_payment_methods": {"enabled": True}}
        ),
        "product_create": lambda: v1.products.create({"name": "Tea", "metadata": {"sku": "t1"}}),
        "price_create": lambda: v1.prices.create(
            {"currency": "eur", "unit_amount": 450, "product": "prod_1", "recurring": {"interval": "month"}}
        ),
        "invoice_create": lambda: v1.invoices.create(
            {
                "customer": "cus_1",
                "collection_method": "send_invoice",
                "days_until_due": 14,
                "auto_advance": False,
            }
        ),
        "invoice_item_create": lambda: v1.invoice_items.create(
            {"customer": "cus_1", "amount": 900, "currency": "eur", "description": "work", "invoice": "in_1"}
        ),
        "invoice_pay": lambda: v1.invoices.pay("in_1"),
        "invoice_finalize": lambda: v1.invoices.finalize_invoice("in_1"),
        "customer_retrieve": lambda: v1.customers.retrieve("cus_1", {"expand": ["default_source", "tax"]}),
        "charges_list": lambda: v1.charges.list({"limit": 3, "created": {"gte": 1700000000}}),
        "charges_search": lambda: v1.charges.search({"query": "amount>999 AND metadata['order']:'1042'"}),
        "balance": lambda: v1.balance.retrieve(),
        "events_list": lambda: v1.events.list({"types": ["charge.refunded", "payout.paid"]}),
        "refund_retrieve": lambda: v1.refunds.retrieve("re_1"),
        "customer_payment_methods": lambda: v1.customers.payment_methods.list("cus_1", {"type": "card"}),
    }


def aws_calls(pem: str) -> Calls:
    import boto3
    from botocore.config import Config

    session = boto3.Session(
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="capture",
        region_name="us-east-1",
    )
    temporary = boto3.Session(
        aws_access_key_id="ASIDEXAMPLE",
        aws_secret_access_key="capture",
        aws_session_token="token-of-a-role",
        region_name="eu-central-1",
    )
    config = Config(retries={"total_max_attempts": 1})
    return (
        _s3_calls(session, temporary, config, Config(s3={"addressing_style": "path"}))
        | _dynamodb_calls(session.client("dynamodb", config=config))
        | _identity_calls(session.client("sts", config=config), session.client("iam", config=config))
        | _secret_calls(session.client("secretsmanager", config=config))
        | _ec2_calls(session.client("ec2", config=config))
    )


def _s3_calls(session: Any, temporary: Any, config: Any, path_config: Any) -> Calls:
    s3, role, path = (
        session.client("s3"),
        temporary.client("s3", config=config),
        session.client("s3", config=path_config),
    )
    put = partial(s3.put_object, Bucket="acme-internal", Body=b"hello")
    place: Any = {"Bucket": "acme-internal", "Key": "big"}
    grants: Any = {
        "Grants": [{"Grantee": {"Type": "CanonicalUser", "ID": "x"}, "Permission": "READ"}],
        "Owner": {"ID": "o"},
    }
    return {
        "s3_put": lambda: put(Key="reports/2026 q1+q2.txt"),
        "s3_put_acl": lambda: put(Key="a.txt", ACL="public-read", ContentType="text/plain"),
        "s3_put_sse": lambda: put(
            Key="a.txt",
            ServerSideEncryption="aws:kms",
            SSEKMSKeyId="key-1",
            StorageClass="STANDARD_IA",
            IfNoneMatch="*",
        ),
        "s3_put_role": lambda: role.put_object(Bucket="acme-internal", Key="a.txt", Body=b"hello"),
        "s3_put_path_style": lambda: path.put_object(Bucket="acme.internal", Key="d/a.txt", Body=b"hello"),
        "s3_get": lambda: s3.get_object(Bucket="acme-internal", Key="d/a.txt", Range="bytes=0-9"),
        "s3_get_version": lambda: s3.get_object(Bucket="acme-internal", Key="a.txt", VersionId="v1"),
        "s3_head": lambda: s3.head_object(Bucket="acme-internal", Key="a.txt"),
        "s3_copy": lambda: s3.copy_object(Bucket="acme-internal", Key="b", CopySource="partner/d/a b+c.txt"),
        "s3_delete": lambda: s3.delete_object(Bucket="acme-internal", Key="d/a.txt"),
        "s3_delete_objects": lambda: s3.delete_objects(
            Bucket="acme-internal",
            Delete={"Objects": [{"Key": "a"}, {"Key": "d/b c", "VersionId": "v2"}], "Quiet": True},
        ),
        "s3_list": lambda: s3.list_objects_v2(Bucket="acme-internal", Prefix="d/", Delimiter="/", MaxKeys=5),
        "s3_list_old": lambda: s3.list_objects(Bucket="acme-internal", Prefix="d/"),
        "s3_list_buckets": lambda: s3.list_buckets(),
        "s3_create_bucket": lambda: role.create_bucket(
            Bucket="acme-new", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        ),
        "s3_delete_bucket": lambda: s3.delete_bucket(Bucket="acme-new"),
        "s3_object_acl": lambda: s3.put_object_acl(Bucket="acme-internal", Key="a.txt", ACL="public-read"),
        "s3_object_acl_grants": lambda: s3.put_object_acl(
            Bucket="acme-internal", Key="a.txt", AccessControlPolicy=grants
        ),
        "s3_bucket_policy": lambda: s3.put_bucket_policy(
            Bucket="acme-internal", Policy='{"Version":"2012-10-17"}'
        ),
        "s3_multipart_create": lambda: s3.create_multipart_upload(**place),
        "s3_multipart_part": lambda: s3.upload_part(**place, UploadId="upl1", PartNumber=1, Body=b"part one"),
        "s3_multipart_part_copy": lambda: s3.upload_part_copy(
            **place,
            UploadId="upl1",
            PartNumber=2,
            CopySource="acme-internal/other",
            CopySourceRange="bytes=0-99",
        ),
        "s3_multipart_complete": lambda: s3.complete_multipart_upload(
            **place, UploadId="upl1", MultipartUpload={"Parts": [{"ETag": '"e"', "PartNumber": 1}]}
        ),
        "s3_multipart_abort": lambda: s3.abort_multipart_upload(**place, UploadId="upl1"),
        "s3_presigned_get": lambda: _fetch(s3.generate_presigned_url("get_object", Params={**place})),
    }


def _fetch(url: str) -> object:
    import requests

    return requests.get(url, timeout=10)


def _dynamodb_calls(db: Any) -> Calls:
    item: Any = {"id": {"S": "1"}, "total": {"N": "5"}}
    key: Any = {"id": {"S": "1"}}
    return {
        "dynamodb_put": lambda: db.put_item(TableName="orders", Item=item),
        "dynamodb_put_condition": lambda: db.put_item(
            TableName="orders", Item=item, ConditionExpression="attribute_not_exists(id)", ReturnValues="NONE"
        ),
        "dynamodb_get": lambda: db.get_item(TableName="orders", Key=key, ConsistentRead=True),
        "dynamodb_update": lambda: db.update_item(
            TableName="orders",
            Key=key,
            UpdateExpression="SET #t = :t",
            ExpressionAttributeNames={"#t": "total"},
            ExpressionAttributeValues={":t": {"N": "6"}},
        ),
        "dynamodb_delete": lambda: db.delete_item(TableName="orders", Key=key),
        "dynamodb_query": lambda: db.query(
            TableName="orders",
            IndexName="by-day",
            KeyConditionExpression="id = :i",
            ExpressionAttributeValues={":i": {"S": "1"}},
            Limit=5,
        ),
        "dynamodb_scan": lambda: db.scan(TableName="orders", Limit=5),
        "dynamodb_batch_get": lambda: db.batch_get_item(RequestItems={"orders": {"Keys": [key]}}),
        "dynamodb_batch_write": lambda: db.batch_write_item(
            RequestItems={"orders": [{"PutRequest": {"Item": item}}, {"DeleteRequest": {"Key": key}}]}
        ),
        "dynamodb_transact_write": lambda: db.transact_write_items(
            TransactItems=[
                {"Put": {"TableName": "orders", "Item": item}},
                {
                    "Update": {
                        "TableName": "stock",
                        "Key": key,
                        "UpdateExpression": "SET n = n - :one",
                        "ExpressionAttributeValues": {":one": {"N": "1"}},
                    }
                },
                {"Delete": {"TableName": "carts", "Key": key}},
                {
                    "ConditionCheck": {
                        "TableName": "users",
                        "Key": key,
                        "ConditionExpression": "attribute_exists(id)",
                    }
                },
            ],
            ClientRequestToken="order-1042",
        ),
        "dynamodb_transact_get": lambda: db.transact_get_items(
            TransactItems=[{"Get": {"TableName": "orders", "Key": key}}]
        ),
        "dynamodb_list_tables": lambda: db.list_tables(Limit=10),
        "dynamodb_describe_table": lambda: db.describe_table(TableName="orders"),
        "dynamodb_delete_table": lambda: db.delete_table(TableName="orders"),
        "dynamodb_execute_statement": lambda: db.execute_statement(
            Statement="DELETE FROM orders WHERE id='1'"
        ),
    }


def _identity_calls(sts: Any, iam: Any) -> Calls:
    role = "arn:aws:iam::111122223333:role/report"
    admin = "arn:aws:iam::aws:policy/AdministratorAccess"
    document = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
    return {
        "sts_identity": lambda: sts.get_caller_identity(),
        "sts_assume_role": lambda: sts.assume_role(
            RoleArn=role, RoleSessionName="agent", DurationSeconds=900
        ),
        "sts_session_token": lambda: sts.get_session_token(DurationSeconds=900),
        "iam_attach_role_policy": lambda: iam.attach_role_policy(RoleName="report", PolicyArn=admin),
        "iam_put_user_policy": lambda: iam.put_user_policy(
            UserName="ada", PolicyName="all", PolicyDocument=document
        ),
        "iam_create_role": lambda: iam.create_role(
            RoleName="report", AssumeRolePolicyDocument=document, Tags=[{"Key": "team", "Value": "bi"}]
        ),
        "iam_create_access_key": lambda: iam.create_access_key(UserName="ada"),
        "iam_delete_role": lambda: iam.delete_role(RoleName="report"),
        "iam_get_role": lambda: iam.get_role(RoleName="report"),
        "iam_list_users": lambda: iam.list_users(MaxItems=10),
    }


def _secret_calls(secrets: Any) -> Calls:
    return {
        "secret_get": lambda: secrets.get_secret_value(SecretId="prod/db"),
        "secret_batch_get": lambda: secrets.batch_get_secret_value(SecretIdList=["prod/db", "prod/api"]),
        "secret_create": lambda: secrets.create_secret(Name="prod/new", SecretString="s3cr3t"),
        "secret_put": lambda: secrets.put_secret_value(
            SecretId="prod/db",
            SecretString="s3cr3t",
            ClientRequestToken="0123456789abcdef0123456789abcdef",
        ),
        "secret_delete": lambda: secrets.delete_secret(SecretId="prod/db", ForceDeleteWithoutRecovery=True),
        "secret_describe": lambda: secrets.describe_secret(SecretId="prod/db"),
        "secret_list": lambda: secrets.list_secrets(MaxResults=5),
        "secret_resource_policy": lambda: secrets.put_resource_policy(
            SecretId="prod/db", ResourcePolicy='{"Statement":[]}', BlockPublicPolicy=True
        ),
    }


def _ec2_calls(ec2: Any) -> Calls:
    ids = ["i-1", "i-2"]
    return {
        "ec2_run": lambda: ec2.run_instances(
            ImageId="ami-1",
            InstanceType="t3.micro",
            MinCount=1,
            MaxCount=2,
            SubnetId="subnet-1",
            SecurityGroupIds=["sg-1", "sg-2"],
            ClientToken="order-1042",
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "team", "Value": "bi"}]}],
        ),
        "ec2_run_user_data": lambda: ec2.run_instances(
            ImageId="ami-1",
            MinCount=1,
            MaxCount=1,
            UserData="#!/bin/sh\nid\n",
            IamInstanceProfile={"Name": "admin"},
            ClientToken="order-1043",
        ),
        "ec2_start": lambda: ec2.start_instances(InstanceIds=ids),
        "ec2_stop": lambda: ec2.stop_instances(InstanceIds=ids, Force=True),
        "ec2_reboot": lambda: ec2.reboot_instances(InstanceIds=["i-1"]),
        "ec2_terminate": lambda: ec2.terminate_instances(InstanceIds=ids),
        "ec2_terminate_dry_run": lambda: ec2.terminate_instances(InstanceIds=["i-1"], DryRun=True),
        "ec2_describe": lambda: ec2.describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["running", "stopped"]}], MaxResults=50
        ),
        "ec2_open_port": lambda: ec2.authorize_security_group_ingress(
            GroupId="sg-1", IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
        ),
        "ec2_create_tags": lambda: ec2.create_tags(Resources=["i-1"], Tags=[{"Key": "team", "Value": "bi"}]),
    }


def fhir_calls(_pem: str) -> Calls:
    import requests
    from fhirclient import server
    from fhirclient.models import observation, patient

    base = "https://fhir.example.org/fhir/R4"
    minimal, once = {"Prefer": "return=minimal"}, {"If-None-Exist": "identifier=urn:x|7"}
    json_patch, merge_patch = (
        {"Content-Type": f"application/{kind}-patch+json"} for kind in ("json", "merge")
    )
    changes = '[{"op": "replace", "path": "/active", "value": false}, {"op": "remove", "path": "/telecom/0"}]'
    heart_rates = observation.Observation.where({"patient": "p1", "code": "8867-4"})
    fhir = server.FHIRServer(None, base)
    http = requests.Session()
    kinds = {
        "Content-Type": "application/fhir+json",
        "Accept": "application/fhir+json",
        "Authorization": "Bearer t",
    }
    http.headers.update(kinds)
    subject = {"reference": "Patient/p1"}
    seen = {"resourceType": "Observation", "status": "final", "code": {"text": "hr"}, "subject": subject}
    order = {"resourceType": "MedicationRequest", "status": "active", "intent": "order", "subject": subject}
    voided = {**seen, "id": "o1", "status": "entered-in-error"}
    allergy = {
        "resourceType": "AllergyIntolerance",
        "patient": subject,
        "verificationStatus": {"coding": [{"code": "entered-in-error"}]},
    }
    born = "urn:uuid:3fdc72f4-a11d-4a9d-9260-a9f745779e1d"
    return {
        "patient_create": lambda: patient.Patient({"name": [{"family": "Zd"}]}).create(fhir),
        "patient_read": lambda: patient.Patient.read("p1", fhir),
        "observation_search": lambda: heart_rates.perform(fhir),
        "observation_create": lambda: http.post(f"{base}/Observation", json=seen, headers=minimal),
        "observation_create_once": lambda: http.post(
            f"{base}/Observation", json=seen, headers=once
        ),
        "allergy_create": lambda: http.post(f"{base}/AllergyIntolerance", json=allergy),
        "observation_update": lambda: http.put(
            f"{base}/Observation/o1", json=voided, headers={"If-Match": 'W/"3"'}
        ),
        "patient_patch": lambda: http.patch(
            f"{base}/Patient/p1",
            data=changes,
            headers=json_patch,
        ),
        "patient_merge_patch": lambda: http.patch(
            f"{base}/Patient/p1", data='{"active": false}', headers=merge_patch
        ),
        "observation_delete": lambda: http.delete(f"{base}/Observation/o1"),
        "observation_vread": lambda: http.get(f"{base}/Observation/o1/_history/2"),
        "observation_history": lambda: http.get(f"{base}/Observation/o1/_history?_count=5"),
        "search_include": lambda: http.get(
            f"{base}/MedicationRequest?subject=Patient/p1&_include=MedicationRequest:requester&_include=*"
        ),
        "search_post": lambda: http.post(
            f"{base}/Observation/_search",
            data={"patient": "Patient/p1", "code": "8867-4"},
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        ),
        "capabilities": lambda: http.get(f"{base}/metadata"),
        "everything": lambda: http.get(f"{base}/Patient/p1/$everything"),
        "type_operation": lambda: http.get(f"{base}/Patient/$export"),
        "conditional_delete": lambda: http.delete(f"{base}/Observation?patient=p1"),
        "transaction": lambda: http.post(base, json=_bundle("transaction", [
            ("POST", "Patient", {"resourceType": "Patient", "active": True}, born),
            ("POST", "Observation", {**seen, "subject": {"reference": born}}, None),
            ("PUT", "Observation/o1", {**seen, "id": "o1"}, None),
        ])),
        "batch_with_slash": lambda: http.post(f"{base}/", json=_bundle("batch", [
            ("GET", "Patient/p1", None, None),
            ("DELETE", "Observation/o1", None, None),
            ("POST", "MedicationRequest", order, None),
        ])),
    }  # fmt: skip


def _bundle(
    kind: str, entries: list[tuple[str, str, Mapping[str, object] | None, str | None]]
) -> dict[str, object]:
    made = []
    for method, url, resource, full_url in entries:
        entry: dict[str, object] = {"request": {"method": method, "url": url}}
        if resource is not None:
            entry["resource"] = resource
        if full_url is not None:
            entry["fullUrl"] = full_url
        made.append(entry)
    return {"resourceType": "Bundle", "type": kind, "entry": made}


def slack_calls(_pem: str) -> Calls:
    import requests
    from slack_sdk import WebClient

    client = WebClient("xoxb-capture", proxy=os.environ["HTTPS_PROXY"])
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": "*hi* & bye"}}]
    form = {"channel": "C1", "text": "hi", "blocks": '[{"type":"divider"}]', "token": "xoxb-capture"}
    return {
        "post": lambda: client.chat_postMessage(channel="C1", text="hello"),
        "post_blocks": lambda: client.chat_postMessage(
            channel="C1", text="hi", blocks=blocks, unfurl_links=False
        ),
        "post_thread": lambda: client.chat_postMessage(
            channel="C1", text="hi", thread_ts="1700000000.000100"
        ),
        "post_broadcast": lambda: client.chat_postMessage(channel="C1", text="<!channel> deploy"),
        "post_username": lambda: client.chat_postMessage(channel="C1", text="hi", username="the boss"),
        "post_form": lambda: requests.post("https://slack.com/api/chat.postMessage", data=form, timeout=10),
        "update": lambda: client.chat_update(channel="C1", ts="1700000000.000100", text="hello 2"),
        "delete": lambda: client.chat_delete(channel="C1", ts="1700000000.000100"),
        "ephemeral": lambda: client.chat_postEphemeral(channel="C1", user="U1", text="psst"),
        "schedule": lambda: client.chat_scheduleMessage(channel="C1", post_at=1800000000, text="later"),
        "permalink": lambda: client.chat_getPermalink(channel="C1", message_ts="1700000000.000100"),
        "conversations_list": lambda: client.conversations_list(limit=50, types="public_channel"),
        "conversations_history": lambda: client.conversations_history(channel="C1", limit=5),
        "conversations_open": lambda: client.conversations_open(users=["U1", "U2"]),
        "conversations_invite": lambda: client.conversations_invite(channel="C1", users=["U1", "U2"]),
        "conversations_create": lambda: client.conversations_create(name="war-room", is_private=True),
        "users_list": lambda: client.users_list(limit=5),
        "user_by_email": lambda: client.users_lookupByEmail(email="ada@example.com"),
        "auth_test": lambda: client.auth_test(),
        "api_test": lambda: client.api_test(),
        "reaction_add": lambda: client.reactions_add(
            channel="C1", name="eyes", timestamp="1700000000.000100"
        ),
        "files_upload": lambda: client.files_upload_v2(
            channel="C1", content="a,b\n1,2\n", filename="a.csv", initial_comment="the data"
        ),
        "admin_invite": lambda: client.admin_users_invite(
            team_id="T1", email="x@example.com", channel_ids="C1"
        ),
    }


def openai_calls(_pem: str) -> Calls:
    import openai

    client = openai.OpenAI(api_key="sk-capture", max_retries=0)
    chat: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hi"}]}
    weather: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    return {
        "chat": lambda: client.chat.completions.create(**chat, max_completion_tokens=50),
        "chat_stream": lambda: client.chat.completions.create(
            **chat, stream=True, tools=[weather], temperature=0.2
        ),
        "responses": lambda: client.responses.create(model="gpt-5", input="hi", max_output_tokens=100),
        "responses_hosted_tools": lambda: client.responses.create(
            model="gpt-5",
            input="hi",
            tools=[
                {"type": "web_search"},
                {
                    "type": "mcp",
                    "server_label": "x",
                    "server_url": "https://mcp.example.net",
                    "require_approval": "never",
                },
            ],
        ),
        "embeddings": lambda: client.embeddings.create(model="text-embedding-3-small", input=["a", "b"]),
        "models": lambda: list(client.models.list()),
        "model": lambda: client.models.retrieve("gpt-5"),
        "moderations": lambda: client.moderations.create(input="hi"),
        "files_list": lambda: list(client.files.list(purpose="batch")),
        "file_upload": lambda: client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch"),
    }


def anthropic_calls(_pem: str) -> Calls:
    import anthropic

    client = anthropic.Anthropic(api_key="sk-ant-capture", max_retries=0)
    chat: Any = {
        "model": "claude-sonnet-4-5",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "hi"}],
    }
    weather: Any = {"name": "weather", "input_schema": {"type": "object"}}
    counted = {name: chat[name] for name in ("model", "messages")}
    return {
        "messages": lambda: client.messages.create(**chat),
        "messages_stream": lambda: client.messages.create(**chat, stream=True, system="be brief"),
        "messages_tools": lambda: client.messages.create(
            **chat, tools=[weather, {"type": "web_search_20250305", "name": "web_search"}]
        ),
        "beta_mcp": lambda: client.beta.messages.create(
            **chat,
            mcp_servers=[{"type": "url", "url": "https://mcp.example.net", "name": "x"}],
            betas=["mcp-client-2025-04-04"],
        ),
        "count_tokens": lambda: client.messages.count_tokens(**counted),
        "models": lambda: list(client.models.list(limit=5)),
        "batch_create": lambda: client.messages.batches.create(requests=[{"custom_id": "1", "params": chat}]),
    }


CALLS: Final[dict[str, Callable[[str], Calls]]] = {
    "stripe": stripe_calls,
    "aws": aws_calls,
    "fhir-r4": fhir_calls,
    "slack": slack_calls,
    "openai": openai_calls,
    "anthropic": anthropic_calls,
}
