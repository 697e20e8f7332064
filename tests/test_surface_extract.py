"""surface/read.py, extract.py: parameters, undeclared fields, credentials, what receipts may show."""

from __future__ import annotations

import base64
import hashlib

import pytest

from holdgate.canonical import CanonicalRequest
from holdgate.digest import fingerprint
from holdgate.errors import ConfigError, InputError, Reason
from holdgate.message import Headers
from holdgate.surface.model import Recognised
from surface_requests import FORM, JSON, index_of, params, recognise, request, shared_index

INDEX = shared_index()


def reason_of(canonical: CanonicalRequest) -> Reason | None:
    try:
        recognise(INDEX, canonical)
    except InputError as error:
        return error.reason
    return None


def refund(body: bytes = b"charge=ch_1", target: str = "/v1/refunds", **headers: str) -> CanonicalRequest:
    fields = {**FORM, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return request(target, headers=fields, body=body)


def test_parameters_are_typed_and_sorted() -> None:
    found = recognise(
        INDEX, refund(b"payment=pi_1&amount=100&metadata[a]=b&expand[]=x&note=n", Pay_Account="acct")
    )
    (action,) = found.actions
    assert [param.name for param in action.params] == ["account", "amount", "note", "reference"]
    assert params(found) == {"account": "acct", "amount": 100, "note": "n", "reference": "pi_1"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"amount=1", Reason.MISSING_PARAMETER, id="none of two sources"),
        pytest.param(b"charge=a&payment=b", Reason.DUPLICATE_PARAMETER, id="two sources at once"),
        pytest.param(b"charge=a&amount=1&amount=2", Reason.DUPLICATE_PARAMETER, id="one key twice"),
        pytest.param(b"charge=a&amount=0", Reason.PARAMETER_TYPE, id="below min"),
        pytest.param(b"charge=a&amount=1.0", Reason.PARAMETER_TYPE, id="not an integer"),
        pytest.param(b"charge=a&amount[]=1", Reason.PARAMETER_TYPE, id="a list in place of a number"),
        pytest.param(b"charge[id]=a", Reason.PARAMETER_TYPE, id="a record in place of a text"),
        pytest.param(b"charge=a&note=12345678901", Reason.PARAMETER_TYPE, id="too long"),
        pytest.param(b"charge=a&color=blue", Reason.PARAMETER_TYPE, id="not one of the values"),
        pytest.param(b"charge=a&color=red", None, id="one of the values"),
    ],
)
def test_sm17_a_parameter_has_one_value_of_its_type(body: bytes, expected: Reason | None) -> None:
    assert reason_of(refund(body)) == expected


@pytest.mark.parametrize(
    ("target", "body", "expected"),
    [
        pytest.param("/api/chat.post", b'{"channel":"C"}', None, id="in the body"),
        pytest.param("/api/chat.post?channel=C", b"{}", None, id="in the query"),
        pytest.param(
            "/api/chat.post?channel=C", b'{"channel":"C"}', Reason.DUPLICATE_PARAMETER, id="in both"
        ),
        pytest.param(
            "/api/chat.post?channel=C&channel=D", b"{}", Reason.DUPLICATE_PARAMETER, id="twice in the query"
        ),
        pytest.param(
            "/api/chat.post?mrkdwn=1&channel=C",
            b'{"mrkdwn":true}',
            Reason.DUPLICATE_PARAMETER,
            id="ignored in both",
        ),
        pytest.param(
            "/api/chat.post?channel=C&x=1", b"{}", Reason.UNKNOWN_PARAMETER, id="unknown in the query"
        ),
        pytest.param("/api/chat.post", b'{"channel":1}', Reason.PARAMETER_TYPE, id="a number in JSON"),
        pytest.param("/api/chat.post", b'{"channel":null}', Reason.PARAMETER_TYPE, id="null in JSON"),
        pytest.param("/api/chat.post", b'["channel"]', Reason.UNKNOWN_PARAMETER, id="a list as the body"),
        pytest.param(
            "/api/chat.post",
            b'{"channel":"C","unfurl":"true"}',
            Reason.PARAMETER_TYPE,
            id="JSON text is no boolean",
        ),
        pytest.param("/api/chat.post?channel=C&unfurl=true", b"{}", None, id="a boolean in a query"),
        pytest.param(
            "/api/chat.post?unfurl=true",
            b'{"channel":"C"}',
            Reason.DUPLICATE_PARAMETER,
            id="some in the query, some in JSON",
        ),
    ],
)
def test_sm17_an_argument_comes_from_query_or_body(target: str, body: bytes, expected: Reason | None) -> None:
    assert reason_of(request(target, host="chat.test", headers=JSON, body=body)) == expected


@pytest.mark.parametrize(
    ("target", "body", "expected"),
    [
        pytest.param(
            "/api/chat.post?unfurl=true", b"channel=C", None, id="some in the query, some in a form"
        ),
        pytest.param("/api/chat.post?mrkdwn=1", b"channel=C&mrkdwn=1", None, id="ignored in both"),
        pytest.param("/api/chat.post?channel=C", b"channel=C", Reason.DUPLICATE_PARAMETER, id="in both"),
    ],
)
def test_sm17_a_query_and_a_form_are_read_as_one(target: str, body: bytes, expected: Reason | None) -> None:
    assert reason_of(request(target, host="chat.test", headers=FORM, body=body)) == expected


def test_items_of_a_list_and_constants() -> None:
    body = b'{"channel":"C","users":[{"id":"a"},{"id":"b"}]}'
    found = recognise(INDEX, request("/api/chat.post", host="chat.test", headers=JSON, body=body))
    assert params(found)["users"] == ("a", "b")
    assert params(recognise(INDEX, request("/api/const", host="chat.test"))) == {"mode": "fixed"}


SEARCH = """\
hosts: [a.test]
operations:
  - id: A
    match: {method: POST, path: /a}
    surface: data.write
    effect: commit
    body: {decode: json}
    params: {urls: {from: body.said.**.url, type: origins}}
    ignore: [body.said.text]
"""


def test_sm18_a_search_declares_nothing() -> None:
    index = index_of(SEARCH)
    ask = request("/a", host="a.test", headers=JSON, body=b'{"said":{"text":"x"}}')
    assert params(recognise(index, ask)) == {}
    with pytest.raises(InputError) as caught:
        recognise(
            index, request("/a", host="a.test", headers=JSON, body=b'{"said":{"url":"https://b.test"}}')
        )
    assert caught.value.reason is Reason.UNKNOWN_PARAMETER
    free = index_of(SEARCH + "    unknown_params: pass_body\n")
    body = b'{"said":[{"url":"https://b.test/x"},{"in":{"url":{"url":"data:,"}}}],"url":"https://c.test"}'
    found = recognise(free, request("/a", host="a.test", headers=JSON, body=body))
    # The inner record is found too, as a URL by itself.
    assert params(found) == {"urls": ("https://b.test", "data:")}


def test_queries_are_read_as_keys() -> None:
    found = recognise(
        INDEX,
        request("/v1/refunds?limit=3&created[gte]=5&status=a&status=b&expand[]=x&expand[]=y", method="GET"),
    )
    assert params(found) == {"created": 5, "limit": 3, "status": ("a", "b")}


@pytest.mark.parametrize(
    ("canonical", "expected"),
    [
        pytest.param(refund(b"charge=a&fee=1"), Reason.UNKNOWN_PARAMETER, id="body field"),
        pytest.param(refund(b"charge=a&reason[x]=1"), Reason.UNKNOWN_PARAMETER, id="below an ignored scalar"),
        pytest.param(refund(b"charge=a&metadata[x][y]=1"), None, id="below a star"),
        pytest.param(refund(target="/v1/refunds?amount=5"), Reason.UNKNOWN_PARAMETER, id="query key"),
        pytest.param(refund(target="/v1/refunds?"), None, id="empty query"),
        pytest.param(refund(Pay_Other="x"), Reason.UNKNOWN_PARAMETER, id="header"),
        pytest.param(refund(Cookie="a=b"), Reason.UNKNOWN_PARAMETER, id="cookie"),
        pytest.param(
            refund(X_Api_Key="k"), Reason.UNKNOWN_PARAMETER, id="a credential that the map does not name"
        ),
        pytest.param(refund(Pay_Secret="k"), None, id="the credential slot"),
        pytest.param(refund(Authorization="Bearer k"), None, id="authorization"),
        pytest.param(
            refund(Pay_Version="1", User_Agent="x", Accept="*/*", Traceparent="y"),
            None,
            id="listed and inert",
        ),
        pytest.param(refund(Pay_Attempt="3", Idempotency_Key="k"), None, id="volatile and key"),
        pytest.param(refund(If_Match="x"), Reason.UNKNOWN_PARAMETER, id="a condition"),
        pytest.param(
            request("/v1/refunds?cursor=1", method="GET"), Reason.UNKNOWN_PARAMETER, id="query key of a read"
        ),
        pytest.param(
            request("/?list-type=2&prefix=a&x=y", method="GET", host="b.store.test"), None, id="any query key"
        ),
        pytest.param(
            request("/v1/charges", headers={**FORM, "Pay-Other": "x"}, body=b"amount=1"),
            Reason.UNKNOWN_PARAMETER,
            id="a prepare is as strict",
        ),
    ],
)
def test_sm18_undeclared_is_unknown(canonical: CanonicalRequest, expected: Reason | None) -> None:
    assert reason_of(canonical) == expected


def repeated(name: bytes) -> Headers:
    return ((b"Content-Type", b"application/x-www-form-urlencoded"), (name, b"1"), (name, b"1"))


def test_sm18_a_header_that_counts_occurs_once() -> None:
    assert (
        reason_of(request("/v1/refunds", headers=repeated(b"Pay-Account"), body=b"charge=a"))
        == Reason.DUPLICATE_PARAMETER
    )
    assert reason_of(request("/v1/refunds", headers=repeated(b"Accept"), body=b"charge=a")) is None


def test_sm18_a_listed_cookie_is_let_through_and_is_no_part_of_the_digest() -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n  - {id: A, match: {method: POST, path: /a},"
        " surface: data.write, effect: commit, headers: [cookie]}"
    )
    one, two = (
        recognise(index, request("/a", host="a.test", headers={"Cookie": value})) for value in ("a=1", "a=2")
    )
    assert one.digest == two.digest and "cookie" in one.secret_headers


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"Range": "bytes=0-1"}, None, id="range"),
        pytest.param({"If-None-Match": "x"}, None, id="condition"),
        pytest.param({"X-Anything": "x"}, None, id="unknown header"),
    ],
)
def test_sm19_a_read_forwards_headers_and_digests_them(
    headers: dict[str, str], expected: Reason | None
) -> None:
    target = request("/v1/refunds", method="GET", headers=headers)
    assert reason_of(target) == expected
    assert recognise(INDEX, target).digest != recognise(INDEX, request("/v1/refunds", method="GET")).digest


def test_sm19_no_header_can_change_the_method() -> None:
    with pytest.raises(InputError) as caught:
        recognise(INDEX, request("/v1/refunds", method="GET", headers={"X-HTTP-Method-Override": "POST"}))
    assert caught.value.reason in (Reason.UNKNOWN_PARAMETER, Reason.MALFORMED_REQUEST)


@pytest.mark.parametrize("name", ["X-Amz-Target", "SOAPAction", "X-Amz-Target-Extra"])
def test_sm19_no_undeclared_header_can_name_the_operation(name: str) -> None:
    headers = {name: "Service.Delete"}
    assert reason_of(request("/v1/refunds", method="GET", headers=headers)) == Reason.UNKNOWN_PARAMETER


@pytest.mark.parametrize(
    "name", ["Cookie", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "X-Amz-Security-Token", "X-Auth-Token"]
)
def test_sm40_no_credential_beside_the_one_that_the_map_names(name: str) -> None:
    assert reason_of(request("/v1/refunds", method="GET", headers={name: "x"})) == Reason.UNKNOWN_PARAMETER
    assert reason_of(refund(**{name: "x"})) == Reason.UNKNOWN_PARAMETER


@pytest.mark.parametrize("effect", ["read", "commit"])
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        pytest.param("", None, id="a map that names none"),
        pytest.param(
            "principal: {from: header.x-api-key, as: raw}\n", Reason.UNKNOWN_PARAMETER, id="another"
        ),
        pytest.param("principal: {from: header.authorization, as: raw}\n", None, id="this one"),
        pytest.param(
            "principal: {from: header.x-api-key, as: raw}\ndefaults: {headers: [authorization]}\n",
            None,
            id="another, and this one listed",
        ),
    ],
)
def test_sm40_authorization_beside_another_credential(
    effect: str, more: str, expected: Reason | None
) -> None:
    index = index_of(
        f"hosts: [a.test]\n{more}operations:\n  - {{id: A, match: {{method: POST, path: /a}},"
        f" surface: data.write, effect: {effect}}}"
    )
    ask = request("/a", host="a.test", headers={"Authorization": "Bearer t"})
    if expected is None:
        assert recognise(index, ask).actions
        return
    with pytest.raises(InputError) as caught:
        recognise(index, ask)
    assert caught.value.reason is expected


@pytest.mark.parametrize("name", ["access_token", "Key", "api_key", "token[]", "_method", "_METHOD"])
def test_sm40_a_credential_in_a_query_or_form_has_to_be_named(name: str) -> None:
    spec = (
        "hosts: [a.test]\noperations:\n"
        "  - {id: A, match: {method: GET, path: /a}, surface: data.read, effect: read, ignore: [query.*]}\n"
        "  - {id: B, match: {method: POST, path: /b}, surface: data.read, effect: read, ignore: [body.*],"
        " body: {decode: form}}\n"
        f"  - {{id: C, match: {{method: GET, path: /c}}, surface: data.read, effect: read,"
        f" ignore: [query.*, 'query.{name.removesuffix('[]')}.*']}}\n"
        "  - {id: D, match: {method: POST, path: /d}, surface: data.read, effect: read,"
        " body: {decode: json}, unknown_params: pass_body}\n"
    )
    index = index_of(spec)

    def asked(path: str, headers: dict[str, str], body: bytes = b"") -> Recognised:
        method = "POST" if body else "GET"
        return recognise(index, request(path, method=method, host="a.test", headers=headers, body=body))

    for path, headers, body in ((f"/a?{name}=x", {}, b""), ("/b", FORM, f"{name}=x".encode())):
        with pytest.raises(InputError) as caught:
            asked(path, headers, body)
        assert caught.value.reason is Reason.UNKNOWN_PARAMETER
    assert asked("/a?other=x", {}).actions
    assert asked(f"/c?{name}=x", {}).actions
    assert asked("/d", JSON, f'{{"{name}":"x"}}'.encode()).actions  # a field of a record, as any other


def public_of(canonical: CanonicalRequest) -> dict[str, object]:
    return {param.name: param.public for param in recognise(INDEX, canonical).actions[0].params}


def test_sm20_a_receipt_shows_material_parameters_exactly() -> None:
    found = public_of(refund(b"charge=ch&note=n&hidden=h&color=red&big=9007199254740993"))
    assert found == {
        "big": "9007199254740993",
        "color": None,
        "hidden": None,
        "note": "sha256:" + hashlib.sha256(b"n").hexdigest(),
        "reference": "ch",
    }
    assert public_of(refund(b"charge=ch&big=9007199254740991"))["big"] == 9007199254740991
    body = b'{"channel":"C","users":[{"id":"a"}]}'
    assert public_of(request("/api/chat.post", host="chat.test", headers=JSON, body=body))["users"] == ("a",)


def test_sm20_a_redacted_parameter_is_in_no_receipt() -> None:
    found = recognise(INDEX, request("/v1/secrets", headers=FORM, body=b"card[last4]=4242&card[number]=1"))
    assert [(param.name, param.public) for param in found.actions[0].params] == [("last4", None)]


def test_sm20_what_is_absent_is_said() -> None:
    (action,) = recognise(INDEX, refund(b"charge=ch")).actions
    assert action.absent == (("amount", "FULL"),)


BASIC = "Basic " + base64.b64encode(b"user:secret").decode()
SIGV4 = "AWS4-HMAC-SHA256 Credential=AKID/20261121/eu/svc/aws4_request, SignedHeaders=host, Signature=ab"


@pytest.mark.parametrize(
    ("host", "value", "secret"),
    [
        pytest.param("api.pay.test", "Bearer sk_1", b"sk_1", id="bearer"),
        pytest.param("api.pay.test", "bearer sk_1", b"sk_1", id="scheme without case"),
        pytest.param("ehr.test", BASIC, b"user", id="user of basic, one of two forms"),
        pytest.param("rpc.eu.cloud.test", SIGV4, b"AKID", id="access key"),
        pytest.param("api.pay.test", None, None, id="none"),
    ],
)
def test_the_principal_is_a_fingerprint(host: str, value: str | None, secret: bytes | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    if host == "rpc.eu.cloud.test":
        headers |= {"X-Amz-Target": "T.Get", "Content-Type": "application/x-amz-json-1.0"}
        canonical = request("/", host=host, headers=headers, body=b'{"Table":"t"}')
    else:
        target = "/v1/refunds" if host == "api.pay.test" else "/fhir/R4/metadata"
        canonical = request(target, method="GET", host=host, headers=headers)
    found = recognise(INDEX, canonical)
    assert found.principal == (None if secret is None else fingerprint(secret))
    assert "authorization" in found.secret_headers


@pytest.mark.parametrize(
    ("host", "value"),
    [
        pytest.param("api.pay.test", BASIC, id="another scheme"),
        pytest.param("api.pay.test", "Bearer", id="no token"),
        pytest.param("api.pay.test", "Bearer a b", id="two tokens"),
        pytest.param("ehr.test", "Basic !!!", id="not base64"),
        pytest.param("ehr.test", "Basic " + base64.b64encode(b"ab:").decode() + "==", id="padding twice"),
        pytest.param("ehr.test", "Basic " + base64.b64encode(b":p").decode(), id="no user"),
    ],
)
def test_a_credential_of_another_form_is_refused(host: str, value: str) -> None:
    target = "/v1/refunds" if host == "api.pay.test" else "/fhir/R4/metadata"
    canonical = request(target, method="GET", host=host, headers={"Authorization": value})
    assert reason_of(canonical) == Reason.PARAMETER_TYPE


@pytest.mark.parametrize("again", ["Credential=EVIL/x", "credential=EVIL/x"])
def test_an_access_key_that_is_named_twice_is_refused(again: str) -> None:
    headers = {"Authorization": f"{SIGV4}, {again}", "X-Amz-Target": "T.Get"}
    headers |= {"Content-Type": "application/x-amz-json-1.0"}
    canonical = request("/", host="rpc.eu.cloud.test", headers=headers, body=b'{"Table":"t"}')
    assert reason_of(canonical) is Reason.PARAMETER_TYPE


def test_a_token_may_be_in_the_body_but_not_in_two_places() -> None:
    body = b'{"channel":"C","token":"xoxb"}'
    inside = recognise(INDEX, request("/api/chat.post", host="chat.test", headers=JSON, body=body))
    headers = {**JSON, "Authorization": "Bearer xoxb"}
    outside = recognise(
        INDEX, request("/api/chat.post", host="chat.test", headers=headers, body=b'{"channel":"C"}')
    )
    assert inside.principal == outside.principal == fingerprint(b"xoxb")
    assert inside.digest == outside.digest
    both = request("/api/chat.post", host="chat.test", headers=headers, body=body)
    assert reason_of(both) == Reason.DUPLICATE_PARAMETER


def test_a_presigned_url_is_refused() -> None:
    index = index_of(
        "hosts: [a.test]\nprincipal: {from: header.authorization, as: sigv4-access-key}\noperations:\n"
        "  - {id: A, match: {method: GET, path: /a}, surface: data.read, effect: read, ignore: ['query.*']}"
    )
    assert recognise(index, request("/a?x=1", method="GET", host="a.test")).actions
    with pytest.raises(InputError) as caught:
        recognise(index, request("/a?X-Amz-Signature=ab", method="GET", host="a.test"))
    assert caught.value.reason is Reason.UNKNOWN_PARAMETER


SPELLINGS = """
hosts: [a.test]
operations:
- {id: A, match: {method: GET, path: /a, query: {kind: absent}}, surface: data.read, effect: read,
   params: {with: {from: [query.with, "query.with:all"], type: string},
            since: {from: "query.at[gte]", type: string}},
   ignore: ["query.*", "query.at.*"]}
- {id: B, match: {method: POST, path: /b}, surface: data.write, effect: prepare,
   body: {decode: json}, unknown_params: pass_body, params: {model: {from: body.model.id, type: string}}}
- {id: C, match: {method: POST, path: /c}, surface: data.write, effect: prepare,
   body: {decode: form, syntax: flat}, params: {to: {from: body.to, type: string}}, ignore: ["body.*"]}
- {id: D, match: {method: GET, path: /d}, surface: data.read, effect: read,
   params: {expand: {from: "query.expand.*", type: list<string>, repeat: true}}, ignore: ["query.*"]}
"""


@pytest.mark.parametrize(
    ("target", "headers", "body", "refused"),
    [
        pytest.param("/a?with:all=x&at[gte]=1&at[lt]=2&other[]=y", {}, b"", False, id="what is named"),
        pytest.param("/a?With=x", {}, b"", True, id="other letters"),
        pytest.param("/a?with[]=x", {}, b"", True, id="an index"),
        pytest.param("/a?with:some=x", {}, b"", True, id="a modifier"),
        pytest.param("/a?WITH:ALL=x", {}, b"", True, id="other letters and a modifier"),
        pytest.param("/a?Kind=x", {}, b"", True, id="what tells operations apart"),
        pytest.param("/b", JSON, b'{"model":{"id":"m"},"models":1}', False, id="a JSON field like none"),
        pytest.param("/b", JSON, b'{"Model":{"id":"m"}}', True, id="a JSON field in other letters"),
        pytest.param("/c", FORM, b"to=a&more=b", False, id="a form field like none"),
        pytest.param("/c", FORM, b"to=a&TO=b", True, id="a form field in other letters"),
        pytest.param("/c", FORM, b"to=a&to[]=b", True, id="a form field with an index"),
        pytest.param("/d?Expand[0]=x", {}, b"", True, id="other letters of a family"),
    ],
)
def test_another_spelling_of_a_name_that_is_read_is_not_ignored(
    target: str, headers: Headers, body: bytes, refused: bool
) -> None:
    method = "POST" if body else "GET"
    canonical = request(target, method=method, host="a.test", headers=headers, body=body)
    index = index_of(SPELLINGS)
    if not refused:
        assert recognise(index, canonical).actions
        return
    with pytest.raises(InputError) as caught:
        recognise(index, canonical)
    assert caught.value.reason is Reason.UNKNOWN_PARAMETER


def test_all_keys_of_a_name_are_one_list() -> None:
    index = index_of(SPELLINGS)
    target = "/d?expand[1]=b&limit=3&expand[0]=a&expand[]=c&expand[]=d&expand=e&expand.x=f&expanded=no"
    found = recognise(index, request(target, method="GET", host="a.test"))
    assert params(found) == {"expand": tuple("bacdef")}
    assert params(recognise(index, request("/d?limit=3", method="GET", host="a.test"))) == {}
    single = SPELLINGS.replace("list<string>, repeat: true", "string")
    with pytest.raises(ConfigError, match="several keys"):
        index_of(single)


def test_an_escaped_slash_needs_the_maps_word() -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n"
        "  - {id: A, match: {method: GET, path: '/a/{x}'}, surface: data.read, effect: read,"
        " params: {x: {from: path.x, type: string, encoded_slash: true}}}\n"
        "  - {id: B, match: {method: GET, path: '/b/{x}'}, surface: data.read, effect: read,"
        " params: {x: {from: path.x, type: string}}}\n"
        "  - {id: C, match: {method: GET, path: '/c/{x}'}, surface: data.read, effect: read,"
        " ignore: [path.x]}"
    )
    assert params(recognise(index, request("/a/b%2Fc", method="GET", host="a.test"))) == {"x": "b/c"}
    for target in ("/b/b%2Fc", "/c/b%2Fc"):
        with pytest.raises(InputError) as caught:
            recognise(index, request(target, method="GET", host="a.test"))
        assert caught.value.reason is Reason.NON_CANONICAL_PATH


def test_unknown_fields_may_pass_where_the_map_says_so_and_are_digested() -> None:
    one = recognise(INDEX, request("/v1/model", headers=JSON, body=b'{"anything":[1.5,{"x":null}]}'))
    two = recognise(INDEX, request("/v1/model", headers=JSON, body=b'{"anything":[1.5,{"x":0}]}'))
    assert one.actions[0].surface == "model.invoke" and one.digest != two.digest


@pytest.mark.parametrize(
    ("canonical", "expected"),
    [
        pytest.param(request("/", host="other.test", method="GET"), Reason.UNKNOWN_DESTINATION, id="host"),
        pytest.param(request("/v1/refunds", method="GET", port=8443), Reason.UNKNOWN_DESTINATION, id="port"),
        pytest.param(request("/v1/nothing"), Reason.UNKNOWN_OPERATION, id="path"),
        pytest.param(request("/v1/refunds", method="PUT"), Reason.UNKNOWN_OPERATION, id="method"),
        pytest.param(request("/v1/payouts"), Reason.UNASSIGNED_OPERATION, id="nobody gave it a surface"),
    ],
)
def test_what_is_not_in_a_map_is_refused(canonical: CanonicalRequest, expected: Reason) -> None:
    assert reason_of(canonical) == expected


def test_a_family_of_headers_is_declared_by_its_prefix_and_counts_in_the_digest() -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n  - {id: A, match: {method: POST, path: /a},"
        " surface: data.write, effect: commit, headers: [x-meta-*]}"
    )

    def put(**headers: str) -> str:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return recognise(index, request("/a", host="a.test", headers=fields)).digest

    assert put(X_Meta_A="1") != put(X_Meta_A="2") != put(X_Meta_B="2")
    with pytest.raises(InputError):
        put(X_Metadata="1")


@pytest.mark.parametrize("name", ["X-Api-Key", "X-Api-Sign"])
def test_sm18_a_credential_in_a_declared_family_is_no_part_of_the_digest(name: str) -> None:
    index = index_of(
        "hosts: [a.test]\noperations:\n  - {id: A, match: {method: POST, path: /a}, surface: data.write,"
        " effect: commit, headers: [x-api-*], volatile: [header.x-api-sign]}"
    )
    one, two, other = (
        recognise(index, request("/a", host="a.test", headers={head: value})).digest
        for head, value in ((name, "1"), (name, "2"), ("X-Api-Mode", "2"))
    )
    assert one == two != other
