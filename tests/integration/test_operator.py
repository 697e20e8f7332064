"""What an operator sees of a live instance: metrics, receipts, keys, log, also after it was killed."""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request

import pytest

requests = pytest.importorskip("requests")


@pytest.fixture(scope="module")
def traffic(vendors, gate):
    """One PERMIT, one DENY, one unknown operation, one unknown host: the four answers."""
    env = gate.client_env()
    session = requests.Session()
    session.trust_env = False
    session.proxies = {"https": f"http://{gate.proxy}"}
    session.verify = env["REQUESTS_CA_BUNDLE"]
    session.headers["Authorization"] = "Bearer sk_test_1"
    intent = vendors.stripe.charged(5000)
    url = "https://api.stripe.com/v1"
    return [
        session.post(f"{url}/refunds", data={"payment_intent": intent, "amount": 100}, timeout=60),
        session.post(f"{url}/refunds", data={"payment_intent": intent, "amount": 900_000}, timeout=60),
        session.post(f"{url}/nonsense", data={"a": 1}, timeout=60),
        session.get("https://nowhere.example.net/", timeout=60),
    ]


def holdgate(gate, *words):
    return subprocess.run(gate.command(*words), capture_output=True, text=True, timeout=60)


def fetch(gate, path):
    with urllib.request.urlopen(f"http://{gate.admin}{path}", timeout=60) as answer:
        return answer.read().decode()


def ids(traffic):
    return [answer.headers["Holdgate-Decision"].split('id="')[1].split('"')[0] for answer in traffic]


def test_the_four_answers(traffic, vendors):
    assert [answer.headers["Holdgate-Decision"].split(";")[0] for answer in traffic] == [
        "PERMIT", "DENY", "SILENCE", "SILENCE",
    ]  # fmt: skip
    assert [answer.status_code for answer in traffic] == [200, 403, 403, 403]
    assert len(vendors.stripe.of_kind("refund")) == 1


def test_metrics_count_them(gate, traffic):
    text = fetch(gate, "/metrics")
    for line in (
        'holdgate_decisions_total{outcome="PERMIT",reason="permit_rule",surface="payments.refund"} 1.0',
        'holdgate_decisions_total{outcome="DENY",reason="deny_rule",surface="payments.refund"} 1.0',
        'holdgate_decisions_total{outcome="SILENCE",reason="unknown_destination",surface=""} 1.0',
        'holdgate_outcomes_total{status="executed"} 1.0',
        'holdgate_unmapped_total{host="nowhere.example.net"} 1.0',
        'holdgate_barrier_trips_total{barrier="server_connect"} 0.0',
        "holdgate_in_flight 0.0",
    ):
        assert line in text.splitlines(), line
    assert "holdgate_hold_seconds_count 0.0" not in text
    assert "holdgate_upstream_seconds_count 1.0" in text


def test_receipts_are_readable_while_it_runs(gate, traffic):
    rows = json.loads(holdgate(gate, "receipts", "list", "--json").stdout)["receipts"]
    assert set(ids(traffic)) <= {row["receipt"]["id"] for row in rows}
    silent = json.loads(holdgate(gate, "receipts", "list", "--json", "--outcome", "SILENCE").stdout)[
        "receipts"
    ]
    assert {row["receipt"]["reason"] for row in silent} == {"unknown_operation", "unknown_destination"}


def test_the_receipt_header_verifies_against_the_published_keys(gate, traffic):
    keys = f"http://{gate.admin}/.well-known/jwks.json"
    receipt = traffic[0].headers["Holdgate-Receipt"]
    assert holdgate(gate, "verify", "--require-permit", "--keys", keys, receipt).returncode == 0
    refusal = traffic[1].headers["Holdgate-Receipt"]
    assert holdgate(gate, "verify", "--keys", keys, refusal).returncode == 0
    assert holdgate(gate, "verify", "--require-permit", "--keys", keys, refusal).returncode == 1


def test_receipts_over_http_need_a_token_that_this_instance_does_not_have(gate, traffic):
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(gate, "/receipts")
    assert refused.value.code == 401


def test_the_admin_api_cannot_be_reached_through_the_proxy(gate, traffic, nothing_seen):
    with nothing_seen():
        answer = requests.get(
            f"http://{gate.admin}/metrics", proxies={"http": f"http://{gate.proxy}"}, timeout=20
        )
    assert answer.status_code in (400, 403)
    assert answer.headers["Holdgate-Decision"].startswith("SILENCE")
    assert "holdgate_in_flight" not in answer.text


def test_explain_says_what_the_proxy_decided(gate, traffic, tmp_path):
    body = b"payment_intent=pi_1&amount=900000"
    raw = (
        b"POST /v1/refunds HTTP/1.1\r\nHost: api.stripe.com\r\nAuthorization: Bearer sk_test_1\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    (tmp_path / "refund.http").write_bytes(raw)
    said = json.loads(holdgate(gate, "explain", "--json", str(tmp_path / "refund.http")).stdout)
    assert said["decision"] == {
        "outcome": "DENY",
        "reason": "deny_rule",
        "rules": ["stripe-refunds/too-large"],
    }


def replay(gate, *words):
    done = holdgate(gate, "replay", "--json", *words)
    return done.returncode, json.loads(done.stdout)


def test_every_decision_comes_out_the_same_again_also_after_the_policies_changed(gate, traffic):
    permitted, denied, *_ = ids(traffic)
    code, told = replay(gate)
    assert code == 0 and told["counts"]["identical"] == 2 and told["counts"]["not_asked"] >= 2
    assert told["counts"]["different"] == told["counts"]["no_bundle"] == 0
    policy = gate.folder / "policies" / "stripe_refunds.yaml"
    before = policy.read_text()
    log_at = len(gate.log)
    try:
        policy.write_text(before + "\n# another bundle\n")
        os.kill(gate.pid, signal.SIGHUP)
        deadline = time.monotonic() + 60
        while "is active" not in gate.log[log_at:]:
            assert time.monotonic() < deadline
        code, told = replay(gate, permitted, denied)
        assert code == 0 and [row["verdict"] for row in told["receipts"]] == ["identical"] * 2
        assert json.loads(told["receipts"][1]["now"])["rules"] == ["stripe-refunds/too-large"]
    finally:
        policy.write_text(before)
    kept = sorted((gate.state_dir / "bundles").iterdir())
    assert len(kept) == 2, "the bundle of before and the one that is active"
    moved = [file.rename(file.with_suffix(".away")) for file in kept]
    code, told = replay(gate, permitted)
    assert code == 1 and told["receipts"][0]["verdict"] == "no_bundle"
    for file, away in zip(kept, moved, strict=True):
        away.rename(file)


def test_replay_says_what_it_does_not_know(gate, traffic):
    assert holdgate(gate, "replay", "rcpt_01M80HMX543YPQ1BFVNAM3GQFR").returncode == 2
    silent = ids(traffic)[3]
    done = holdgate(gate, "replay", silent)
    assert done.returncode == 0 and f"{silent} not_asked" in done.stdout


def test_killed_and_started_again_the_log_is_clean_and_goes_on(gate, traffic):
    before = holdgate(gate, "log", "audit", "--json")
    assert json.loads(before.stdout)["clean"] is True
    gate.kill()
    assert json.loads(holdgate(gate, "log", "audit", "--json").stdout)["clean"] is True
    gate.start()
    after = json.loads(holdgate(gate, "log", "audit", "--json").stdout)
    assert after["clean"] is True and after["size"] >= json.loads(before.stdout)["size"]
    assert json.loads(fetch(gate, "/readyz")) == {"ready": True}
