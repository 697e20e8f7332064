"""adapters/bundle_build.py and `holdgate bundle`: from folders to a bundle that a node takes, and back."""

from __future__ import annotations

import json
import os
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import DAY_S, FILES, HTTP, NOW_S, bundle, write
from holdgate.adapters.bundle_build import build, gather, make_policy_key, read_policy_key, write_folder
from holdgate.adapters.bundle_folder import read_folder
from holdgate.adapters.starter import make_state
from holdgate.cli import main
from holdgate.errors import ConfigError
from holdgate.gate import ENGINE
from holdgate.manifest import BundleRejected, parse_manifest

CONFIG = """\
version: 1
node: edge-1
state_dir: ./state
listen: {explicit: 127.0.0.1:0}
surfaces: [./surfaces]
policies: [./policies]
agents: []
bundle: {mode: signed, trust: trust.json, dir: bundles/}
"""
WINDOW: dict[str, Any] = {
    "name": "shop",
    "epoch": 1,
    "revision": 1,
    "profile": ENGINE,
    "not_before_s": NOW_S,
    "not_after_s": NOW_S + DAY_S,
    "previous": "",
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (tmp_path / "holdgate.yaml").write_text(CONFIG)
    return tmp_path


def gathered(sources: Path) -> dict[str, bytes]:
    return gather([sources / "surfaces"], [sources / "policies"])


def test_bb1_what_is_gathered_is_yaml_and_the_requests_of_tests(sources: Path) -> None:
    (sources / "surfaces/README.md").write_text("words")
    (sources / "surfaces/shop/examples/other.http").write_bytes(HTTP)
    assert gathered(sources) == dict(FILES)


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        pytest.param("policies/orders_test.yaml", "amount: 101", "amount: 99", "tests_failed", id="a test"),
        pytest.param("policies/orders.yaml", ".amount >=", ".sum >=", "does_not_load", id="a policy"),
    ],
)
def test_bb1_what_no_node_would_take_is_not_built(
    sources: Path, path: str, old: str, new: str, said: str
) -> None:
    text = (sources / path).read_text()
    assert old in text
    (sources / path).write_text(text.replace(old, new))
    with pytest.raises(BundleRejected, match=said):
        build(gathered(sources), **WINDOW)


def test_bb1_a_request_that_is_somewhere_else_is_refused(sources: Path) -> None:
    test = sources / "policies/orders_test.yaml"
    test.write_text(test.read_text().replace("../surfaces/shop/examples/buy.http", "/etc/passwd"))
    with pytest.raises(ConfigError, match="below none of the folders"):
        gathered(sources)


def test_bb1_a_name_that_no_bundle_may_have_is_refused(sources: Path) -> None:
    shutil.copy(sources / "policies/orders.yaml", sources / "policies/\u043erders.yaml")
    with pytest.raises(BundleRejected, match="unsafe_path"):
        gathered(sources)


def test_bb2_a_folder_that_exists_is_left_alone_and_no_half_one_is_left(sources: Path) -> None:
    write_folder(bundle(), sources / "out")
    with pytest.raises(ConfigError, match="exists already"):
        write_folder(bundle(), sources / "out")
    assert read_folder(sources / "out").files == FILES
    blocked = sources / "file/out"
    (sources / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        write_folder(bundle(), blocked)
    assert not [name for name in os.listdir(sources) if name.startswith(".")]


def test_bb3_the_same_sources_give_the_same_bytes(sources: Path) -> None:
    first, _ = build(gathered(sources), **WINDOW)
    second, _ = build(dict(reversed(gathered(sources).items())), **WINDOW)
    assert first.manifest == second.manifest


def test_a_policy_key_is_private_and_for_policies_only(tmp_path: Path) -> None:
    public = make_policy_key(tmp_path / "a.key")
    assert read_policy_key(tmp_path / "a.key").kid == public.kid
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError):
        make_policy_key(tmp_path / "a.key")
    make_state(tmp_path / "state", "edge-1")
    with pytest.raises(ConfigError, match="does not sign policies"):
        read_policy_key(tmp_path / "state/keys/receipt.key")
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        read_policy_key(tmp_path / "a.key")


@pytest.fixture
def run(
    sources: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`holdgate bundle ...` in the folder of the sources."""
    monkeypatch.chdir(sources)

    def go(*words: str) -> Any:
        code = main(["bundle", *words])
        said = capsys.readouterr()
        return types.SimpleNamespace(code=code, out=said.out, err=said.err)

    return go


def test_a_release_from_keys_to_a_folder_that_a_node_would_take(run: Any, sources: Path) -> None:
    for name in ("a", "b"):
        assert run("keygen", f"{name}.key").code == 0
    assert (
        run("trust", "trust.json", "--key", "a.key.pub", "--key", "b.key.pub", "--threshold", "2").code == 0
    )
    built = json.loads(run("build", "--out", "r1", "--json").out)
    assert (built["revision"], built["epoch"], built["files"], built["signed_by"]) == (1, 1, 4, [])
    said = run("verify", "r1", "--json")
    assert (said.code, json.loads(said.out)["reason"]) == (1, "unsigned")
    assert run("sign", "r1", "--key", "a.key").code == 0
    assert run("verify", "r1").out == "refused: below_threshold: 1 of 2 keys\n"
    assert run("sign", "r1", "--key", "b.key", "--key", "a.key").code == 0
    said = run("verify", "r1")
    assert (said.code, said.out.count("signed by")) == (0, 2)
    said = run("activate", "r1", "--json")
    assert (said.code, json.loads(said.out)["active"]) == (0, False), "nothing runs here"
    (placed,) = (sources / "bundles").iterdir()
    assert read_folder(placed).manifest == read_folder(sources / "r1").manifest
    (sources / "r1/policies/orders.yaml").write_text("")
    assert "hash_mismatch" in run("activate", "r1").out


def test_the_next_trust_roots_need_the_keys_before_them(run: Any, sources: Path) -> None:
    for name in ("a", "b", "c"):
        run("keygen", f"{name}.key")
    run("trust", "trust.json", "--key", "a.key.pub", "--key", "b.key.pub", "--threshold", "2")
    more = ("--key", "b.key.pub", "--key", "c.key.pub", "--threshold", "2", "--new-epoch", "--sign", "a.key")
    said = run("trust", "trust.json", *more)
    assert "not complete yet: version 2: 1 of 2 keys" in said.out
    said = run("trust", "trust.json", "--sign", "b.key", "--json")
    assert json.loads(said.out) | {"keys": 0, "digest": 0} == {
        "version": 2,
        "epoch": 2,
        "threshold": 2,
        "keys": 0,
        "digest": 0,
        "missing": "",
    }
    built = json.loads(run("build", "--out", "r1", "--json").out)
    assert built["epoch"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(("sign", "b", "--key", "nope.key"), "cannot read", id="no key"),
        pytest.param(("trust", "new.json"), "name its keys", id="no keys for new roots"),
        pytest.param(("verify", "gone", "--trust", "trust.json"), "trust_unreadable", id="no roots"),
        pytest.param(
            ("rollback", "--to", "sha256:" + "0" * 64, "--out", "x"), "was kept here", id="no such bundle"
        ),
        pytest.param(("build", "--out", "x", "--not-before", "soon"), "--not-before soon", id="no time"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(run: Any, sources: Path, words: tuple[str, ...], said: str) -> None:
    write(bundle(), sources / "b")
    done = run(*words)
    assert done.code in (1, 2)
    assert said in done.out + done.err


def test_lint_findings_stop_a_build_unless_they_are_only_to_warn(run: Any, sources: Path) -> None:
    policy = sources / "policies/orders.yaml"
    policy.write_text(policy.read_text().replace("  rules:", "  constants: {unused: 1}\n  rules:"))
    said = run("build", "--out", "r1")
    assert (said.code, "is not used" in said.out) == (1, True)
    assert run("build", "--out", "r1", "--warn").code == 0
    assert parse_manifest(read_folder(sources / "r1").manifest).revision == 1
