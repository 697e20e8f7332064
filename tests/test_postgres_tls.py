"""TLS to PostgreSQL: the certificate is that of the CA and the name in the URL, or nothing starts."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

import pgserver
from client_pki import NOW, Issued, dns, issue, make_ca
from evidence import RefundJudge
from holdgate.config_store import PostgresStore
from holdgate.errors import ConfigError, Outcome
from pgserver import open_ledger

pytestmark = pytest.mark.slow

SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
CA, OTHER_CA = make_ca("Database CA"), make_ca("Another CA")
NAMED = issue(CA, [dns("localhost")], usages=SERVER, common_name="localhost")
ELSEWHERE = issue(CA, [dns("db.example.org")], usages=SERVER, common_name="db.example.org")
ENDED = issue(
    CA, [dns("localhost")], usages=SERVER, start=NOW - timedelta(days=9), end=NOW - timedelta(days=1)
)


@dataclass(frozen=True)
class Guarded:
    """A server that speaks TLS only, and what clients need."""

    server: pgserver.Server
    folder: Path

    def certificate(self, issued: Issued) -> None:
        """What it shows from now on."""
        for path in issued.files(self.folder, "server"):
            self._give(path)
        self._reload()

    def rules(self, *lines: str) -> None:
        path = self.server.data / "pg_hba.conf"
        path.write_text("\n".join(("local all all trust", *lines)) + "\n")
        self._reload()

    def _reload(self) -> None:
        if self.server.process is None:
            return
        loaded = "SELECT pg_conf_load_time()"  # as whoever connects now inherits it
        before, end = self.server.sql(loaded), time.monotonic() + 60
        self.server.sql("SELECT pg_reload_conf()")
        while self.server.sql(loaded) == before:
            assert time.monotonic() < end, "the server did not read its files again"

    def _give(self, path: Path) -> None:
        path.chmod(0o600)
        if os.geteuid() == 0:
            info = self.folder.stat()
            os.chown(path, info.st_uid, info.st_gid)

    def settings(self, host: str = "localhost", **words: object) -> PostgresStore:
        made = self.server.database()
        database = made.urls[0].rpartition("/")[2].partition("?")[0]
        where = f"{host}:{self.server.port}"
        url = f"postgresql://holdgate@{where}/{database}?{urlencode(words)}"
        return PostgresStore(urls=(url,), hosts=(where,), require_sync=False, deadline_ms=5000)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    pgserver.need_postgres()
    with pgserver.folder() as place:
        server = pgserver.make(place)
        made = Guarded(server, place)
        made.certificate(NAMED)
        (ca, _), (other, _) = CA.files(place, "ca"), OTHER_CA.files(place, "other")
        made._give(ca)
        made.rules("hostssl all all 127.0.0.1/32 trust")
        shutil.copy(other, place / "stranger.pem")
        try:
            server.start(
                {
                    "ssl": "on",
                    "ssl_cert_file": str(place / "server.pem"),
                    "ssl_key_file": str(place / "server.key"),
                    "ssl_ca_file": str(ca),
                }
            )
            yield made
        finally:
            server.kill()


@contextlib.contextmanager
def shows(guarded: Guarded, issued: Issued) -> Iterator[None]:
    guarded.certificate(issued)
    try:
        yield
    finally:
        guarded.certificate(NAMED)


def full(guarded: Guarded, **more: Any) -> dict[str, Any]:
    return {"sslmode": "verify-full", "sslrootcert": guarded.folder / "ca.pem"} | more


async def test_every_connection_of_a_node_is_tls_to_the_named_server(
    guarded: Guarded, tmp_path: Path
) -> None:
    ledger = open_ledger(tmp_path, guarded.settings(**full(guarded)))
    try:
        assert (await ledger.record(RefundJudge("a"))).entry.outcome is Outcome.PERMIT
        sql = (
            "SELECT count(*), bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)"
            " WHERE a.application_name LIKE 'holdgate%'"
        )
        count, _, encrypted = guarded.server.sql(sql).partition("|")
        assert (int(count) > 0, encrypted) == (True, "t")
    finally:
        ledger.close()


@pytest.mark.parametrize(
    ("issued", "host", "words", "why"),
    [
        pytest.param(
            NAMED, "localhost", {"sslrootcert": "other.pem"}, "CERTIFICATE_VERIFY_FAILED", id="a CA"
        ),
        pytest.param(ELSEWHERE, "localhost", {}, "Hostname mismatch", id="a name"),
        pytest.param(NAMED, "127.0.0.1", {}, "IP address mismatch", id="an address"),
        pytest.param(ENDED, "localhost", {}, "certificate has expired", id="a time"),
        pytest.param(NAMED, "localhost", {"sslrootcert": "absent.pem"}, "No such file", id="a file"),
    ],
)
def test_a_certificate_that_is_wrong_by(
    guarded: Guarded, tmp_path: Path, issued: Issued, host: str, words: dict[str, str], why: str
) -> None:
    given = full(guarded, **{name: guarded.folder / file for name, file in words.items()})
    with shows(guarded, issued), pytest.raises(ConfigError, match=why) as refused:
        open_ledger(tmp_path, guarded.settings(host, **given))
    assert "PostgreSQL" in str(refused.value)
    assert "holdgate@" not in str(refused.value), "the URL is not shown"


def test_verify_ca_accepts_another_name_and_no_other_ca(guarded: Guarded, tmp_path: Path) -> None:
    given = full(guarded, sslmode="verify-ca")
    with shows(guarded, ELSEWHERE):
        open_ledger(tmp_path, guarded.settings(**given)).close()
    with pytest.raises(ConfigError, match="CERTIFICATE_VERIFY_FAILED"):
        open_ledger(tmp_path, guarded.settings(**(given | {"sslrootcert": guarded.folder / "stranger.pem"})))


def test_it_never_falls_back_to_a_connection_without_tls(guarded: Guarded, tmp_path: Path) -> None:
    # What the server says to who asks in the clear; before version 14 in other words.
    with pytest.raises(ConfigError, match=r"no encryption|SSL off"):
        open_ledger(tmp_path, guarded.settings(sslmode="disable"))
    with pgserver.server() as plain:
        clear = Guarded(plain, guarded.folder)
        with pytest.raises(ConfigError, match="SSL"):
            open_ledger(tmp_path, clear.settings(**full(guarded)))


def test_a_client_certificate_names_the_user(guarded: Guarded, tmp_path: Path) -> None:
    usages = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    own, key = issue(CA, common_name="holdgate", usages=usages).files(guarded.folder, "client")
    stranger, theirs = issue(CA, common_name="somebody", usages=usages).files(guarded.folder, "somebody")
    guarded.rules("hostssl all all 127.0.0.1/32 cert")
    try:
        open_ledger(tmp_path, guarded.settings(**full(guarded, sslcert=own, sslkey=key))).close()
        for words in ({}, {"sslcert": stranger, "sslkey": theirs}):
            with pytest.raises(ConfigError, match="certificate"):
                open_ledger(tmp_path, guarded.settings(**full(guarded, **words)))
    finally:
        guarded.rules("hostssl all all 127.0.0.1/32 trust")


def test_a_certificate_for_the_address_is_as_good_as_one_for_the_name(
    guarded: Guarded, tmp_path: Path
) -> None:
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    with shows(guarded, issue(CA, [address], usages=SERVER)):
        open_ledger(tmp_path, guarded.settings("127.0.0.1", **full(guarded))).close()
