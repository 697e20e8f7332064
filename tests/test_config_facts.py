"""config_facts.py: providers of facts, and what an operator is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdgate.config_facts import FileSource, HttpSource, SqliteSource, read_facts
from holdgate.config_values import Address
from holdgate.errors import ConfigError
from holdgate.strictyaml import load

BASE = Path("/etc/holdgate")
GOOD = """\
ehr-panel: {file: {path: ./panel.csv, key: [agent, patient]}, max_age_s: 900}
accounts:
  http: {url: "https://directory.example/v1/bucket", address: "10.0.0.7:8443", key: [name]}
  deadline_ms: 200
  cache_s: 60
channels: {sql: {sqlite: c.db, query: "select shared from c where id = :id", key: [id]}}
"""


def test_kf1_providers_are_read() -> None:
    panel, accounts, channels = read_facts(load(GOOD), BASE)
    assert panel.source == FileSource(path=BASE / "panel.csv", key=("agent", "patient"))
    assert (panel.deadline_s, panel.max_age_s, panel.cache_s) == (0.5, 900, 0)
    assert accounts.source == HttpSource(
        url="https://directory.example/v1/bucket",
        host="directory.example",
        address=Address(host="10.0.0.7", port=8443),
        tls=True,
        key=("name",),
        ca_file=None,
        token_file=None,
    )
    assert (accounts.deadline_s, accounts.max_age_s, accounts.cache_s) == (0.2, 0, 60)
    assert isinstance(channels.source, SqliteSource) and channels.source.key == ("id",)
    assert read_facts(None, BASE) == ()


FILE = "file: {path: t.csv, key: [a]}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: {}", "exactly one of: file, http, sql"),
        (f"x: {{{FILE}, sql: {{}}}}", "exactly one of"),
        (f"x: {{{FILE}, retries: 3}}", "unknown key 'retries'"),
        (f"X: {{{FILE}}}", "lower-case letters"),
        ("x: {file: {path: t.csv, key: []}}", "1 to 8 parts"),
        ("x: {file: {path: t.csv, key: [a, a]}}", "each name once"),
        ("x: {file: {path: t.csv, key: ['a b']}}", "letters, digits and `_`"),
        ("x: {file: {path: t.xml, key: [a]}}", ".csv, .json, .yaml"),
        ("x: {file: {path: t.csv}}", "needs the key 'key'"),
        (f"x: {{{FILE}, cache_s: 5}}", "leave cache_s out"),
        (f"x: {{{FILE}, deadline_ms: 0}}", "between 1 and 10000"),
        (f"x: {{{FILE}, max_age_s: -1}}", "between 1 and"),
        ("x: {sql: {sqlite: d, query: 'DELETE FROM t WHERE a = :a', key: [a]}}", "must be one SELECT"),
        ("x: {sql: {sqlite: d, query: 'SELECT 1 WHERE :ab', key: [a]}}", "does not use :a"),
        ("x: {http: {url: 'https://x:99999/', key: [a]}}", "Port out of range"),
        ("x: {http: {url: 'https://[::1/', key: [a]}}", "Invalid IPv6 URL"),
        ("x: {sql: {postgres: d, query: 'SELECT :a', key: [a]}}", "unknown key 'postgres'"),
    ],
)
def test_kf1_what_is_not_one_provider_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_facts(load(text), BASE)
    assert said in str(raised.value) and raised.value.line == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://10.0.0.7/", "http is only for loopback"),
        ("http://directory.example/", "say where directory.example is"),
        ("https://directory.example/", "no name is looked up"),
        ("https://u:p@10.0.0.7/", "without user, query and fragment"),
        ("https://10.0.0.7/?a=1", "without user, query"),
        ("https://10.0.0.7/#a", "without user, query"),
        ("https://10.0.0.7/a%2e", "without user, query"),
        ("ftp://10.0.0.7/", "must be http(s)"),
        ("https:///x", "must be http(s)"),
        ("https://0x7f000001/", "say where"),
        ("https://127.1/", "write an IP address"),
        ("https://10.0.0.7:0/", "write an IP address"),
    ],
)
def test_kf2_whom_it_speaks_to_is_an_address_that_is_written_down(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_facts(load(f'x: {{http: {{url: "{url}", key: [a]}}}}'), BASE)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://10.0.0.7/x", Address(host="10.0.0.7", port=443)),
        ("https://[fd00::7]:8443/", Address(host="fd00::7", port=8443)),
        ("http://127.0.0.1:9000/a/b", Address(host="127.0.0.1", port=9000)),
    ],
)
def test_kf2_an_address_in_the_url_is_enough(url: str, address: Address) -> None:
    (provider,) = read_facts(load(f'x: {{http: {{url: "{url}", key: [a]}}}}'), BASE)
    assert isinstance(provider.source, HttpSource) and provider.source.address == address
    with pytest.raises(ConfigError, match="leave `address` out"):
        read_facts(load(f'x: {{http: {{url: "{url}", address: "127.0.0.1:1", key: [a]}}}}'), BASE)


@pytest.mark.parametrize("key", ["ca_file", "token_file"])
def test_kf2_a_file_that_is_named_exists(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: /etc/holdgate/none does not exist"):
        read_facts(load(f'x: {{http: {{url: "https://10.0.0.7/", key: [a], {key}: none}}}}'), BASE)
