"""What operators write: CEL conditions, YAML, surface maps, policies and the configuration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from fuzz.asked import ARENA, arena_index
from fuzz.base import Target, must
from holdgate.cel.evaluate import EvalError, compile_program
from holdgate.cel.lexer import TokenKind, tokens
from holdgate.cel.model import BOOL, INT, STRING, CelError, Environment, Field, ListOf, MapOf, Record
from holdgate.cel.parse import parse
from holdgate.cel.unparse import unparse
from holdgate.config import Config, load_config
from holdgate.errors import ConfigError
from holdgate.files import packaged
from holdgate.policy import PolicySet, load_policies
from holdgate.policytest import TestReport, run_tests
from holdgate.strictyaml import Node, load
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_map
from policy_fakes import FakeIndex

try:  # Google's CEL, where its wheel is installed; without it the other properties are still checked
    from cel_expr_python import cel as google
except ImportError:  # pragma: no cover
    google = None

__all__ = ["TARGETS"]

TESTS: Final = Path(__file__).resolve().parents[1]


# --- CEL --------------------------------------------------------------------------------------

ENVIRONMENT: Final = Environment(
    roots={
        "i": INT,
        "j": INT,
        "s": STRING,
        "b": BOOL,
        "li": ListOf(INT),
        "ls": ListOf(STRING),
        "m": MapOf(INT),
        "p": Record({"n": Field(INT), "o": Field(INT, True), "w": Field(STRING, True)}),
    },
    constants={},
)
_VALUES: Final[tuple[dict[str, Any], ...]] = (
    {"i": 0, "j": -1, "s": "", "b": False, "li": [], "ls": [], "m": {}, "p": {"n": 5}},
    {"i": 2**63 - 1, "j": -(2**63), "s": "aé😀", "b": True, "li": [1, 2], "ls": ["a", ""], "m": {"k": 1}}
    | {"p": {"n": 1, "o": 0, "w": "a"}},
)
_TYPES: Final = {"bool": bool, "int": int, "string": str, "map<string,int>": dict}


def condition(data: bytes) -> bool:
    """Only CelError; a value of the checked type; the same value after unparsing; and Google's CEL agrees."""
    try:
        source = data.decode("utf-8")
        read = tokens(source)
        program = compile_program(source, ENVIRONMENT)
    except (UnicodeDecodeError, CelError):
        return False
    must(
        read[-1].kind is TokenKind.END and [t.start for t in read] == sorted(t.start for t in read),
        "tokens",
        read,
    )
    results = [program.evaluate(program.frame(values)) for values in _VALUES]
    for result in results:
        kind = _TYPES.get(str(program.type), list)
        must(
            isinstance(result, EvalError) or type(result) is kind,
            "another type",
            result,
            program.type,
            source,
        )
    normal = unparse(parse(source), ENVIRONMENT)
    again = compile_program(normal, ENVIRONMENT)
    for values, result in zip(_VALUES, results, strict=True):
        second = again.evaluate(again.frame(values))
        must(
            _plain(second) == _plain(result), "unparsed, it has another value", normal, source, second, result
        )
    if google is not None and program.type == BOOL:
        _check_google(source, results)
    return True


def _plain(value: object) -> object:
    return None if isinstance(value, EvalError) else (type(value), value)


@cache
def _google() -> tuple[Any, list[Any]]:
    kind = google.Type
    numbers = kind.Map(kind.STRING, kind.INT)
    env = google.NewEnv(
        variables={"i": kind.INT, "j": kind.INT, "s": kind.STRING, "b": kind.BOOL, "li": kind.List(kind.INT)}
        | {"ls": kind.List(kind.STRING), "m": numbers, "p": kind.Map(kind.STRING, kind.DYN)}
    )
    return env, [env.Activation(values) for values in _VALUES]


def _check_google(source: str, results: list[Any]) -> None:
    env, activations = _google()
    try:
        program = env.compile(source)
    except Exception as error:  # noqa: BLE001 - its errors have no common type
        must(False, "Google's CEL refuses it", error, source)
        return
    for activation, result in zip(activations, results, strict=True):
        value = program.eval(activation=activation)
        theirs = None if value.type() == google.Type.ERROR else (bool, value.value())
        must(theirs == _plain(result), "Google's CEL has another value", theirs, result, source)


def condition_seeds() -> Iterator[bytes]:
    yield b"i <= 1000 && s.startsWith('a') || !b"
    yield b"has(p.o) && p.o + i > 3 || size(ls) in [0, 1]"
    yield b"li.exists(x, x * 2 == i) ? m['k'] == 1 : ls.all(y, y != \"\xc3\xa9\")"
    yield b"(i / 0 > 1 && false) == ('k' in m && -j % 7 != 1)"
    yield b"!has(p.w) || p.w == '\\'\\n' || i - -9223372036854775808 < 0"
    yield b"s.contains(s) && (b ? i : j) >= p.n"
    yield b"i <= 0"
    yield b"i * j == i && ls == ['a', ''] && li != [1, 2]"
    yield b"always"
    yield b"i + 'a'"
    yield b'p.w == s || 0x1 < i || "\\u00e9" == s'


CEL_WORDS: Final = (
    b"&&", b"||", b"!", b"==", b" <= ", b" >= ", b" < ", b"p", b" in ", b"(", b")", b"[", b"]", b"?", b":",
    b"has(p.o)", b"p.o", b"p.w", b"m[s]", b".exists(x, ", b".all(y, ", b"size(", b"9223372036854775807",
    b"-9223372036854775808", b"'\\u0041'", b"\\x41", b"'''", b"r'a'", b"null", b"1.5", b"1u", b"//",
    b"true", b"\\U0010ffff", b"\\101", b"-", b"%", b"/", b"0",
)  # fmt: skip


# --- YAML -------------------------------------------------------------------------------------


def strict_yaml(data: bytes) -> bool:
    """What PyYAML's reader without types accepts too, it sees alike; typed scalars keep their spelling."""
    try:
        text = data.decode("utf-8")
        node = load(text)
    except (UnicodeDecodeError, ConfigError):
        return False
    try:
        theirs = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - strings only
    except yaml.YAMLError:  # it is older than libyaml and refuses more, tabs before a line end for one
        return True
    must(_alike(node, theirs), "another reading", node.plain(), theirs)
    return True


def _alike(ours: Node, theirs: Any) -> bool:
    value = ours.value
    if not 1 <= ours.line:
        return False
    if isinstance(value, dict):
        return isinstance(theirs, dict) and list(value) == list(theirs) and all(
            _alike(value[key], theirs[key]) for key in value
        )  # fmt: skip
    if isinstance(value, list):
        return isinstance(theirs, list) and len(value) == len(theirs) and all(map(_alike, value, theirs))
    spelled = {True: "true", False: "false"}.get(value, str(value)) if type(value) is bool else str(value)
    return theirs in ("null", "~", "") if value is None else spelled == theirs


def yaml_seeds() -> Iterator[bytes]:
    yield b"a: 1\nb: [x, 'y', \"z\", -5, 010, 1.5, true, null, ~]\nc: {d: |\n  text\n  , e: no}\n"
    yield b"a:\n- b: c\n  d: >-\n    folded\n    text\n- [1, [2]]\n"
    yield b"a: &x 1\nb: *x\n"
    yield b"a: 1\na: 2\n"
    yield b"a: !!python/object x\n<<: {b: c}\n"
    yield "é: \u2028\n? k\n: v\n".encode()


YAML_WORDS: Final = (
    b": ", b"- ", b"\n", b"  ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"!t ", b"<<: ", b"? ", b"|\n",
    b">-\n", b"'", b'"', b"---\n", b"...\n", b"#", b"\t", b"%YAML 1.1\n", b"true", b"No", b"0o17", b"1_0",
    b"12:30", b"\\x41", b"\xef\xbb\xbf", b"\xc2\x85", b"~", b"=", b",",
)  # fmt: skip


# --- maps -------------------------------------------------------------------------------------


def surface_map(data: bytes) -> bool:
    """Only ConfigError; and a map that compiles comes back from its lock."""
    try:
        made = load_map(load(data.decode("utf-8"), file="m.yaml"))
        index = SurfaceIndex.compile([made]) if made is not None else None
    except (UnicodeDecodeError, ConfigError):
        return False
    if index is None:
        return False
    lock = json.loads(json.dumps(index.to_lock()))
    must(SurfaceIndex.from_lock(lock).to_lock() == index.to_lock(), "the lock changes", lock)
    return True


def map_seeds() -> Iterator[bytes]:
    for path in [
        *sorted((ARENA / "surfaces").glob("*.yaml")),
        *sorted((TESTS / "data" / "maps").glob("*.yaml")),
    ]:
        yield path.read_bytes()
    yield _SMALL_MAP


_SMALL_MAP: Final = b"""apiVersion: holdgate/v1
kind: SurfaceMap
metadata: {name: m, owner: o}
spec:
  hosts: [a.test]
  operations:
  - id: o
    match: {method: POST, path: "/{x}"}
    surface: s.t
    effect: commit
    body: {decode: json, max: 1KiB}
    params: {x: {from: path.x, type: string, required: true, material: true}}
    conflict_key: [params.x]
"""
MAP_WORDS: Final = (
    *YAML_WORDS[:10], b"type: int", b"type: decimal(2)", b"type: list<string>", b"from: body.a[].b",
    b"from: query.x", b"from: header.x-y", b"min: 1", b"max: 5", b"values: [a]", b"effect: read",
    b"surface: a.b", b"match:", b"path: /{a}", b"path: /**", b"explode:", b"over: body.items", b"one_of:",
    b"idempotency: {from: body.k, ttl: 1h}", b"ignore: [x]", b"sensitive: true", b"redact: [x]",
    b"decode: form", b"syntax: brackets", b"dispatch: {header: x}", b"refusal: aws-xml",
    b"principal: {from: header.authorization, as: bearer}", b"*.a.test", b"{x}.a.test",
    b"deadlines: {total: 5s}",
)  # fmt: skip


# --- policies and configuration ---------------------------------------------------------------


@cache
def _folder() -> Path:
    """One folder of this process; only files that are rewritten at every input are in it."""
    folder = tempfile.TemporaryDirectory(prefix="holdgate-fuzz-")
    _KEPT.append(folder)
    path = Path(folder.name)
    for name in ("surfaces", "policies"):
        (path / name).mkdir()
    return path


_KEPT: Final[list[Any]] = []  # a TemporaryDirectory removes its folder when it is collected


def _from_file(data: bytes, name: str, read: Callable[[Path], Any]) -> Any:
    path = _folder() / name
    path.write_bytes(data)
    try:
        return read(path)
    except ConfigError as error:
        must(bool(str(error)), "an error that says nothing", data)
        return None


def policy(data: bytes) -> bool:
    """Only ConfigError; and every rule of a policy that loads is of type bool."""
    loaded: PolicySet | None = _from_file(data, "p.yaml", lambda path: load_policies([path], arena_index()))
    if loaded is None:
        return False
    must(all(rule.program.type == BOOL for rule in loaded.rules), "a rule that is no condition", data)
    return True


def policy_seeds() -> Iterator[bytes]:
    for path in sorted((ARENA / "policies").glob("*.yaml")):
        yield path.read_bytes()
    for name in ("stripe_refunds.yaml", "model_invoke.yaml"):
        yield (packaged("policies") / name).read_bytes()


POLICY_WORDS: Final = (
    *YAML_WORDS[:8], *CEL_WORDS[:16], b"params.amount", b"agent.id", b"agent.groups", b"action.host",
    b"clock.hour_utc", b"effect: permit", b"effect: deny, reason: x", b"effect: review", b"when: always",
    b"unsafe_allow_all: true", b"constants: {a: 1, b: [x]}", b"constants.a", b"surface: data.read",
    b"operations: [arena.item]", b"kind: Bundle",
)  # fmt: skip


def policy_test(data: bytes) -> bool:
    """Only ConfigError; and a case passes exactly when it got what it expects."""
    policies = _refunds()
    report: TestReport | None = _from_file(
        data, "p_test.yaml", lambda path: run_tests([path], policies, FakeIndex())
    )
    if report is None:
        return False
    names = [result.name for result in report.results]
    must(len(set(names)) == len(names), "two cases of one name", names)
    must(report.ok == (bool(names) and all(result.passed for result in report.results)), "ok", report)
    for result in report.results:
        outcome = result.got.split(" ")[0]
        must(
            not result.passed or result.expected.split(" ")[0] == outcome,
            "passed with another outcome",
            result,
        )
    return True


@cache
def _refunds() -> PolicySet:
    return load_policies([TESTS / "data" / "policies"], FakeIndex())


def policy_test_seeds() -> Iterator[bytes]:
    whole = (TESTS / "data" / "policies" / "refunds_test.yaml").read_bytes()
    head, mark, cases = whole.partition(b"    - name: ")
    yield whole
    for case in cases.split(mark):
        yield head + mark + case


TEST_WORDS: Final = (
    *YAML_WORDS[:12], b"matrix: {params.amount: [1, 2]}", b"expect: {outcome: PERMIT}",
    b"with: {params: {amount: 1}}", b"null", b"expect_each: [PERMIT, DENY]", b"clock: {now: x}",
    b"2026-03-02T23:00:00Z", b"approvals: [{}]", b"agent: {}", b"request_file: x", b"rules: [a]",
    b"reason: permit_rule", b"surface: payments.refund", b"action: {operation: x}",
)  # fmt: skip


def configuration(data: bytes) -> bool:
    """Only ConfigError, and what loads names what it must name."""
    loaded: Config | None = _from_file(data, "holdgate.yaml", load_config)
    if loaded is None:
        return False
    must(bool(loaded.surfaces and loaded.policies and loaded.node), "an empty setting", loaded)
    must(loaded.listen.explicit is not None or loaded.listen.transparent is not None, "no listener", loaded)
    must(loaded.limits.body_bytes > 0 and loaded.limits.hold_s > 0, "no limit", loaded.limits)
    return True


def configuration_seeds() -> Iterator[bytes]:
    yield _CONFIG
    yield _CONFIG.partition(b"admin:")[0]
    yield _CONFIG.replace(b"sqlite", b"postgres")


_CONFIG: Final = b"""version: 1
node: edge-1
state_dir: ./state
listen: {explicit: 127.0.0.1:8080, transparent: null}
surfaces: [./surfaces]
policies: [./policies]
agents:
- {id: bot, groups: [g], attrs: {a: [x], n: 3, l: false}, match: {source: [127.0.0.1/32, "::1"]}}
- {id: two, groups: [], match: {token_sha256: "%s"}}
admin:
  {listen: 127.0.0.1:9090, public_url: null, open: [ready], tokens: {o: {sha256: "%s", roles: [operator]}}}
bundle: {mode: files}
store: sqlite
gate: embedded
limits: {body_bytes: 2048, hold_s: 55, head_s: 0.5}
receipts: {header: reference}
upstream:
  ca_file: null
  connect_to: {"api.ok.test:443": {address: 127.0.0.1:12111, tls: false}}
  resolver: ["127.0.0.1:53"]
  allow_private: [10.0.0.0/8]
""" % (b"a" * 64, b"b" * 64)
CONFIG_WORDS: Final = (
    *YAML_WORDS[:12], b"0.0.0.0/0", b"::/0", b"[::1]:80", b"127.0.0.1:0", b"99999", b"1e9", b"inf", b"nan",
    b"-1", b"0x10", b"limits: {", b"header: full", b"https://a.test/", b"roles: [decider]", b"null",
    b"file:///", b"../", b"\\0", b"1e400", b"9" * 20, b".5", b"5.", b"*.ok.test:443",
)  # fmt: skip


TARGETS: Final = {
    "condition": Target(run=condition, seeds=condition_seeds, words=CEL_WORDS, runs=500),
    "strict_yaml": Target(run=strict_yaml, seeds=yaml_seeds, words=YAML_WORDS, runs=400),
    "surface_map": Target(run=surface_map, seeds=map_seeds, words=MAP_WORDS, runs=120),
    "policy": Target(run=policy, seeds=policy_seeds, words=POLICY_WORDS, runs=200),
    "policy_test": Target(run=policy_test, seeds=policy_test_seeds, words=TEST_WORDS, runs=150),
    "configuration": Target(run=configuration, seeds=configuration_seeds, words=CONFIG_WORDS, runs=200),
}
