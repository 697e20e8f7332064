"""adapters/anchoring.py and timestamps.py: witnesses and a time-stamp authority, honest and otherwise.

The witness here is written from c2sp.org/tlog-witness and shares no code with the product; the authority is
`openssl ts`.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from evidence import KEYS, LOG_KEY, ORIGIN, RefundJudge, open_ledger
from holdgate.adapters import anchoring
from holdgate.adapters.anchoring import COSIGNED, STAMPS, Anchors, post
from holdgate.adapters.keyfiles import list_keys, load_keys
from holdgate.adapters.proofs import log_verifiers, prove
from holdgate.adapters.sequencer import CHECKPOINT
from holdgate.adapters.sqlite_reader import SqliteReader
from holdgate.adapters.timestamps import StampError, stamped_at
from holdgate.cli import main
from holdgate.config_log import Anchoring, TimeStamping, Witness
from holdgate.keyhistory import Purpose
from holdgate.note import cosigners, parse_vkey
from holdgate.tlogproof import parse_proof
from holdgate.verification import Trust, judge

type Reply = tuple[int, bytes]


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def consistent(first: int, old: bytes, second: int, new: bytes, path: list[bytes]) -> bool:
    """RFC 9162 2.1.4.2, as it is written."""
    if first == second:
        return not path and old == new
    if first & (first - 1) == 0:
        path = [old, *path]
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for each in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = _node(each, fr), _node(each, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = _node(sr, each)
        fn, sn = fn >> 1, sn >> 1
    return fr == old and sr == new and sn == 0


class PlainWitness:
    """c2sp.org/tlog-witness for one log."""

    def __init__(self, log_key: bytes, name: str = "w1.example") -> None:
        self._log, self._key, self.name = log_key, Ed25519PrivateKey.generate(), name
        self.seen: tuple[int, bytes] = (0, b"")
        self.asked = 0
        public = b"\x04" + self._key.public_key().public_bytes_raw()
        self._id = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
        self.vkey = f"{name}+{self._id.hex()}+{base64.b64encode(public).decode()}"

    def __call__(self, path: str, body: bytes) -> Reply:
        self.asked += 1
        head, _, note = body.partition(b"\n\n")
        first, *lines = head.decode().split("\n")
        old, hashes = int(first.removeprefix("old ")), [base64.b64decode(line) for line in lines]
        text, _, signatures = note.partition(b"\n\n")
        text += b"\n"
        _, size, root = text.decode().split("\n")[:3]
        for line in signatures.decode().splitlines():
            signature = base64.b64decode(line.split(" ")[2])[4:]
            try:
                Ed25519PublicKey.from_public_bytes(self._log).verify(signature, text)
                break
            except InvalidSignature:
                continue
        else:
            return 403, b""
        if old != self.seen[0]:
            return 409, f"{self.seen[0]}\n".encode()
        if old > int(size):
            return 400, b""
        if old and not consistent(old, self.seen[1], int(size), base64.b64decode(root), hashes):
            return 422, b""
        self.seen = int(size), base64.b64decode(root)
        return 200, self.line(text)

    def line(self, text: bytes) -> bytes:
        stamp = 1_790_000_000
        signed = self._key.sign(f"cosignature/v1\ntime {stamp}\n".encode() + text)
        encoded = base64.b64encode(self._id + stamp.to_bytes(8) + signed).decode()
        return f"\u2014 {self.name} {encoded}\n".encode()


@contextmanager
def serving(answer: Callable[[str, bytes], Reply]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:1/")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    (state / "keys").mkdir(parents=True)
    list_keys(state / "keys", Purpose.LOG, [LOG_KEY.public])
    return state


async def grow(state: Path, *names: str) -> None:
    ledger = open_ledger(state)
    for name in names:
        await ledger.record(RefundJudge(name))
    ledger.close()


def anchors(
    state: Path, *witnesses: Witness, timestamp: TimeStamping | None = None
) -> tuple[Anchors, list[str]]:
    failed: list[str] = []
    asked = Anchoring(witnesses=witnesses, interval_s=60, timestamp=timestamp)
    return Anchors(state, ORIGIN, asked, failed=failed.append), failed


async def test_an1_what_witnesses_cosign_verifies_with_a_quorum(state: Path) -> None:
    await grow(state, "a", "b", "c")
    raw = LOG_KEY.public.raw
    one, two = PlainWitness(raw), PlainWitness(raw, "w2.example")
    with serving(one) as first, serving(two) as second:
        asked = [Witness(url=url, verifier=parse_vkey(w.vkey)) for url, w in ((first, one), (second, two))]
        ours, failed = anchors(state, *asked)
        ours.round()
        ours.round()  # nothing new: nobody is asked again
        assert (failed, one.asked, two.asked) == ([], 1, 1)
        await grow(state, "d")
        ours.round()
        assert (failed, one.asked) == ([], 2)
        restarted, failed = anchors(state, *asked)
        await grow(state, "e")
        restarted.round()  # it does not know what they have seen: 409, then the right proof
        assert (failed, one.asked) == ([], 4)
    verifiers = tuple(each.verifier for each in asked)
    assert cosigners((state / COSIGNED).read_bytes(), verifiers) == {"w1.example", "w2.example"}
    with SqliteReader(state) as reader:
        stored = next(reader.export())
    proof = parse_proof(prove(state, stored.index, stored.jws, note=COSIGNED))
    trust = Trust(
        keys=KEYS,
        log=log_verifiers(state),
        witnesses=verifiers,
        quorum=2,
        require_permit=True,
    )
    assert judge(stored.jws, trust, proof).ok


async def test_an1_a_wrong_cosignature_is_not_kept(state: Path) -> None:
    await grow(state, "a")
    witness = PlainWitness(LOG_KEY.public.raw)
    other = PlainWitness(LOG_KEY.public.raw)  # the same name, another key
    note = (state / CHECKPOINT).read_bytes()
    text = note[: note.index(b"\n\n") + 1]
    for answer in (
        other.line(text),
        witness.line(text.replace(b"\n", b"\n1", 1)),
        witness.line(text)[:-1],
        b"",
        b"\xff\n",
        "\u2014 w1.example AAAA\n".encode(),
        witness.line(text) * 0 + b"hello\n",
    ):
        with serving(lambda path, body, answer=answer: (200, answer)) as url:
            ours, failed = anchors(state, Witness(url=url, verifier=parse_vkey(witness.vkey)))
            ours.round()
            assert failed == ["w1.example"] and not (state / COSIGNED).exists()


@pytest.mark.parametrize("reply", [(500, b""), (404, b""), (302, b""), (409, b"x"), (200, b"x" * 100_000)])
async def test_an2_a_witness_that_fails_is_counted_and_nothing_else(state: Path, reply: Reply) -> None:
    await grow(state, "a")
    witness = PlainWitness(LOG_KEY.public.raw)
    with serving(lambda path, body: reply) as url:
        ours, failed = anchors(state, Witness(url=url, verifier=parse_vkey(witness.vkey)))
        ours.round()
    ours.round()  # and now nobody listens
    assert failed == ["w1.example"] * 2
    await grow(state, "b")


async def test_an2_a_slow_witness_ends_at_the_deadline(state: Path) -> None:
    over = threading.Event()

    def slow(path: str, body: bytes) -> Reply:
        over.wait(10)
        return 200, b""

    with serving(slow) as url:
        with pytest.raises(TimeoutError):
            post(url, b"x", "text/plain", deadline_s=0.05)
        over.set()


async def test_an3_two_forks_of_a_restored_backup_are_told_apart(state: Path, tmp_path: Path) -> None:
    await grow(state, "a", "b")
    fork = tmp_path / "fork"
    shutil.copytree(state, fork)
    await grow(state, "c", "d")
    await grow(fork, "e", "f", "g", "h", "i")
    witness = PlainWitness(LOG_KEY.public.raw)
    with serving(witness) as url:
        asked = Witness(url=url, verifier=parse_vkey(witness.vkey))
        ours, failed = anchors(state, asked)
        theirs, found = anchors(fork, asked)
        ours.round()
        theirs.round()
        assert (failed, found) == ([], ["w1.example"])
        shorter, late = anchors(state, asked)
        witness.seen = (99, bytes(32))
        (state / COSIGNED).unlink()
        shorter.round()  # it knows more leaves than there are
        assert late == ["w1.example"]


def test_names_of_nobody_are_not_asked(state: Path) -> None:
    ours, failed = anchors(state)
    ours.round()  # no checkpoint yet
    ours.start()
    ours.stop()
    assert failed == [] and not ours._thread.is_alive()


# --- AN4 ---


def _openssl(*words: str, cwd: Path) -> None:
    try:
        subprocess.run(["openssl", *words], cwd=cwd, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl")


_TSA = """
[ca]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign
[tsa]
basicConstraints=CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=critical,timeStamping
[tsa_config]
dir=.
serial=serial
crypto_device=builtin
signer_cert=tsa.pem
signer_key=tsa.key
signer_digest=sha256
default_policy=1.2.3.4.1
digests=sha256
ess_cert_id_alg=sha256
"""


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    pytest.importorskip("rfc3161_client", reason="the extra `timestamp` is not installed")
    folder = tmp_path / "tsa"
    folder.mkdir()
    (folder / "tsa.cnf").write_text("[req]\ndistinguished_name=dn\n[dn]\n" + _TSA)
    (folder / "serial").write_text("01\n")
    new = ("req", "-new", "-newkey", "rsa:2048", "-nodes", "-config", "tsa.cnf")
    _openssl(*new, "-x509", "-days", "30", "-subj", "/CN=Root", "-extensions", "ca", "-keyout", "ca.key",
             "-out", "ca.pem", cwd=folder)  # fmt: skip
    _openssl(*new, "-subj", "/CN=TSA", "-keyout", "tsa.key", "-out", "tsa.csr", cwd=folder)
    _openssl("x509", "-req", "-in", "tsa.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "20",
             "-set_serial", "7", "-extfile", "tsa.cnf", "-extensions", "tsa", "-out", "tsa.pem",
             cwd=folder)  # fmt: skip
    return folder


def _stamping(folder: Path) -> Callable[[str, bytes], Reply]:
    def answer(path: str, body: bytes) -> Reply:
        (folder / "q.tsq").write_bytes(body)
        _openssl("ts", "-reply", "-queryfile", "q.tsq", "-config", "tsa.cnf", "-section", "tsa_config",
                 "-out", "q.tsr", cwd=folder)  # fmt: skip
        return 200, (folder / "q.tsr").read_bytes()

    return answer


async def test_an4_a_time_stamp_is_kept_when_it_verifies(state: Path, authority: Path) -> None:
    await grow(state, "a", "b")
    with serving(_stamping(authority)) as url:
        asked = TimeStamping(url=url, ca_file=authority / "ca.pem", interval_s=60)
        ours, failed = anchors(state, timestamp=asked)
        ours.round()
        assert failed == []
        place = next((state / STAMPS).glob("*.tsr"))
        kept = place.read_bytes()
        anchors(state, timestamp=asked)[0].round()
        assert place.read_bytes() == kept  # of this size there is one
    note = place.with_suffix(".checkpoint").read_bytes()
    assert note == (state / CHECKPOINT).read_bytes()
    assert stamped_at(kept, note, authority / "ca.pem").year >= 2026
    _openssl("ts", "-verify", "-data", str(place.with_suffix(".checkpoint")), "-in", str(place), "-CAfile",
             "ca.pem", cwd=authority)  # fmt: skip
    for wrong in (kept[:-1], kept[:40], b"", bytes([*kept[:-3], kept[-3] ^ 1, *kept[-2:]])):
        with pytest.raises(StampError):
            stamped_at(wrong, note, authority / "ca.pem")
    with pytest.raises(StampError):
        stamped_at(kept, note + b"\n", authority / "ca.pem")


async def test_an4_a_stamp_under_another_root_or_of_other_bytes_is_not_kept(
    state: Path, authority: Path, tmp_path: Path
) -> None:
    await grow(state, "a")
    (authority / "other.cnf").write_text("[req]\ndistinguished_name=dn\n[dn]\n" + _TSA)
    _openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-config", "other.cnf", "-x509", "-subj",
             "/CN=Root", "-extensions", "ca", "-keyout", "o.key", "-out", "o.pem", cwd=authority)  # fmt: skip
    honest = _stamping(authority)
    once: list[Reply] = []

    def replayed(path: str, body: bytes) -> Reply:
        once[:] = once or [honest(path, body)]
        return once[0]

    with serving(replayed) as url:
        asked = TimeStamping(url=url, ca_file=authority / "o.pem", interval_s=60)
        ours, failed = anchors(state, timestamp=asked)
        ours.round()
        await grow(state, "b")
        ours, again = anchors(state, timestamp=replace(asked, ca_file=authority / "ca.pem"))
        ours.round()  # the stamp of the first checkpoint is none of the second
    assert (failed, again) == (["timestamp"], ["timestamp"])
    assert not list((state / STAMPS).glob("*.tsr"))
    assert anchoring.STAMPING == "timestamp"


# --- the commands that an auditor types ---


class Node:
    """A state directory of `holdgate init`, and its commands."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], name: str = "edge-1") -> None:
        self.folder, self._capsys = folder, capsys
        folder.mkdir(exist_ok=True)
        self.run("init", folder, "--node", name)
        self.origin = f"holdgate.local/{name}"
        self.state = folder / "state"
        self.keys = load_keys(self.state)

    def run(self, *words: object) -> tuple[int, str]:
        """Exit code, and what was printed."""
        config = [] if words[0] == "init" else ["-c", self.folder / "holdgate.yaml"]
        code = main([str(word) for word in (*words, *config)])
        said = self._capsys.readouterr()
        return code, said.out + said.err

    async def grow(self, *names: str) -> list[str]:
        """More receipts; their ids."""
        keys = {"receipt_key": self.keys.receipt, "log_key": self.keys.log}
        ledger = open_ledger(self.state, origin=self.origin, **keys)
        judges = [RefundJudge(name, signer=self.keys.receipt) for name in names]
        ids = [(await ledger.record(judge)).entry.receipt_id for judge in judges]
        ledger.close()
        return ids

    def anchor(self, *witnesses: Witness, timestamp: TimeStamping | None = None) -> list[str]:
        asked = Anchoring(witnesses=witnesses, interval_s=60, timestamp=timestamp)
        failed: list[str] = []
        Anchors(self.state, self.origin, asked, failed=failed.append).round()
        return failed


@pytest.fixture
def node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Node:
    return Node(tmp_path / "node", capsys)


async def test_log_prove_witnessed_proves_under_what_was_cosigned(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdgate.cli.log._COVERED_S", 0.0)
    (first,) = await node.grow("a")
    code, said = node.run("log", "prove", "--witnessed", first)
    assert code == 2 and "checkpoint.cosigned" in said  # nobody cosigned yet
    witness, other = PlainWitness(node.keys.log.public.raw), PlainWitness(node.keys.log.public.raw, "w2.test")
    with serving(witness) as url:
        assert node.anchor(Witness(url=url, verifier=parse_vkey(witness.vkey))) == []
    (second,) = await node.grow("b")
    assert "takes up to a second" in node.run("log", "prove", "--witnessed", second)[1]  # not cosigned
    receipt = tmp_path / "r.jws"
    receipt.write_text(node.run("receipts", "show", "--raw", first)[1])
    for option, by, expected in (("--witnessed", witness, 0), ("--witnessed", other, 1), ("", witness, 1)):
        code, proof = node.run("log", "prove", first, *([option] if option else []))
        assert code == 0
        (tmp_path / "p").write_text(proof)
        words = ("verify", "--proof", tmp_path / "p", "--witness", by.vkey, "--quorum", "1", receipt)
        assert node.run(*words)[0] == expected, (option, by.name)
    # A cosigned checkpoint that was changed, and one of another log.
    place = node.state / COSIGNED
    good = place.read_bytes()
    stranger = Node(tmp_path / "stranger", capsys, "edge-2")
    await stranger.grow("a")
    for wrong in (good.replace(b"\n1\n", b"\n2\n", 1), (stranger.state / CHECKPOINT).read_bytes(), b""):
        place.write_bytes(wrong)
        code, said = node.run("log", "prove", "--witnessed", first)
        assert code == 2 and "BEGIN" not in said and "tlog-proof" not in said, said


async def test_log_audit_verifies_time_stamps_and_holds_the_log_to_them(
    node: Node, authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = authority / "ca.pem"
    audit = ("log", "audit", "--timestamps", roots)
    await node.grow("a", "b")
    code, said = node.run(*audit)
    assert code == 0 and "cannot be seen" in said  # none yet: that is said, and is no problem
    with serving(_stamping(authority)) as url:
        asked = TimeStamping(url=url, ca_file=roots, interval_s=60)
        assert node.anchor(timestamp=asked) == []
        stranger = Node(tmp_path / "stranger", capsys, "edge-2")
        await stranger.grow("a", "b")
        assert stranger.anchor(timestamp=asked) == []
    code, said = node.run(*audit)
    assert (code, "cannot be seen" in said) == (0, False), said
    await node.grow("c")
    assert node.run(*audit)[0] == 0  # the log went on from what was stamped

    (place,) = (node.state / STAMPS).glob("*.tsr")
    note, stamp = place.with_suffix(".checkpoint"), place.read_bytes()
    kept = note.read_bytes()
    wrong = {
        "a changed stamp": (place, bytes([*stamp[:-3], stamp[-3] ^ 1, *stamp[-2:]])),
        "a stamp of other bytes": (note, kept + b"\n"),
        "no stamp": (place, b""),
        "a checkpoint of another log": (
            note,
            next((stranger.state / STAMPS).glob("*.checkpoint")).read_bytes(),
        ),
    }
    for name, (path, data) in wrong.items():
        path.write_bytes(data)
        code, said = node.run(*audit)
        assert code == 1 and f"PROBLEM {place.name}: " in said, (name, said)
        place.write_bytes(stamp)
        note.write_bytes(kept)
    # Stamp and checkpoint of another log, both in order: of a log that this is not.
    (theirs,) = (stranger.state / STAMPS).glob("*.tsr")
    place.write_bytes(theirs.read_bytes())
    note.write_bytes(theirs.with_suffix(".checkpoint").read_bytes())
    code, said = node.run(*audit)
    assert code == 1 and "another log" in said
    place.write_bytes(stamp)
    note.write_bytes(kept)
    # Roots that did not issue it, a checkpoint that is gone, and no roots at all.
    (authority / "o.cnf").write_text("[req]\ndistinguished_name=dn\n[dn]\n" + _TSA)
    _openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-config", "o.cnf", "-x509", "-subj", "/CN=O",
             "-extensions", "ca", "-keyout", "o.key", "-out", "o.pem", cwd=authority)  # fmt: skip
    assert node.run("log", "audit", "--timestamps", authority / "o.pem")[0] == 1
    assert node.run("log", "audit", "--timestamps", authority / "missing.pem")[0] == 2
    note.unlink()
    assert node.run(*audit)[0] == 2
    note.write_bytes(kept)
    assert node.run(*audit)[0] == 0


async def test_log_audit_sees_a_roll_back_of_everything_by_a_time_stamp(
    node: Node, authority: Path, tmp_path: Path
) -> None:
    await node.grow("a")
    backup = copied(node, tmp_path / "backup")
    await node.grow("b", "c")
    with serving(_stamping(authority)) as url:
        asked = TimeStamping(url=url, ca_file=authority / "ca.pem", interval_s=60)
        assert node.anchor(timestamp=asked) == []
    stamps = node.state / STAMPS
    shutil.copytree(stamps, tmp_path / "stamps")
    shutil.rmtree(node.folder)
    shutil.copytree(backup, node.folder)
    shutil.copytree(tmp_path / "stamps", stamps)  # those who roll back do not have these
    assert node.run("log", "audit")[0] == 0
    code, said = node.run("log", "audit", "--timestamps", authority / "ca.pem")
    assert code == 1 and "the log ends at 1, but" in said
    await node.grow("d", "e", "f")  # it goes on from there, under the same keys: a fork
    code, said = node.run("log", "audit", "--timestamps", authority / "ca.pem")
    assert code == 1 and "leaves are not those that were signed" in said


def copied(node: Node, where: Path) -> Path:
    shutil.copytree(node.folder, where, symlinks=True)
    return where
