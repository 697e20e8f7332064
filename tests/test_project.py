"""The project around the code: pure core, invariants with tests, packaging, pins, secrets kept out."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdgate

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(holdgate.__file__).resolve().parent
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts)

# Modules beside gate.py that are not the core: the two that join core and adapters, before and after release.
SHELL = {"pipeline.py", "relay.py"}
IMPURE = {"asyncio", "time", "os", "random", "socket", "uuid", "secrets", "threading", "subprocess", "ssl"}
IMPURE |= {"aiohttp", "mitmproxy", "sqlite3", "OpenSSL"}
CORE = [
    path
    for path in SOURCES
    if path.relative_to(PACKAGE).parts[0] not in {"adapters", "cli", "demo", *SHELL, "__main__.py"}
]
INVARIANT = re.compile(r"^ {2}([A-Z][A-Za-z]{0,2}[0-9]+) {2}\S", re.MULTILINE)
NAMED_TESTS = re.compile(r"tests/(?:[a-z_]+/)*test_[a-z0-9_]+\.py")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of every absolute import, wherever it stands, but for `if TYPE_CHECKING`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_is_pure(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert imported(tree) & IMPURE == set(), "time, randomness and I/O arrive as arguments"
    reached = {
        node.module.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level and node.module
    }
    assert reached & {"adapters", "cli", "pipeline"} == set(), "the core does not know its surroundings"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_check_is_an_assert(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert asserts == [], "python -O removes asserts: raise instead"


LONG_MODULE, LONG_FUNCTION = 400, 40  # lines; of a function without its docstring


def unexplained(path: Path) -> Iterator[str]:
    """What is long in a module, and whose docstring does not say "Long because"."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if len(text.splitlines()) > LONG_MODULE and "Long because" not in (ast.get_docstring(tree) or ""):
        yield name_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node)
            lines = length(node) - (length(node.body[0]) if said else 0)
            if lines > LONG_FUNCTION and "Long because" not in (said or ""):
                yield f"{name_of(path)} {node.name}"


def length(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_is_long_says_why(path: Path) -> None:
    assert list(unexplained(path)) == [], 'split it, or write "Long because ..." in its docstring'


@pytest.mark.checkout
@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_invariant_has_a_test_of_its_name(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""
    invariants = INVARIANT.findall(text)
    if not invariants:
        return
    files = [ROOT / name for name in NAMED_TESTS.findall(text)]
    assert files, "the docstring says where the tests of its invariants are: (tests/test_x.py)"
    tests = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    missing = [each for each in invariants if not re.search(rf"def test_{each.lower()}_", tests)]
    assert missing == [], f"no test named test_<invariant>_... in {[file.name for file in files]}"


@pytest.mark.checkout
def test_there_is_no_second_way_to_import_the_package() -> None:
    assert not (ROOT / "proxy" / "__init__.py").exists()


@pytest.mark.checkout
def test_the_version_is_a_release_number_and_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", holdgate.__version__)


def test_readme_lists_every_runtime_dependency_with_its_reason() -> None:
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not here")
    text = readme.read_text(encoding="utf-8").lower()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=\[; ]", line, maxsplit=1)[0] for line in project["dependencies"]]
    assert [name for name in names if name not in text] == []


@pytest.mark.checkout
def test_every_pin_has_a_hash_and_no_address() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = re.split(r"\n(?=\S)", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    assert len(pins) > 50
    assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []
    assert re.search(r"://|--(extra-)?index-url|--find-links|file:", text) is None


@pytest.mark.checkout
def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    for extra in project["project"].get("optional-dependencies", {}).values():
        wanted += extra
    pinned = re.findall(r"^([a-z0-9.-]+)==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    names = {re.split(r"[<>=\[; ]", line, maxsplit=1)[0] for line in wanted}
    assert names - set(pinned) == set()


@pytest.mark.checkout
def test_the_wheel_holds_what_is_listed_and_the_data(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns(".venv", ".git", "__pycache__", "node_modules", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=skip)
    (tree / "README.md").touch()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    check = [sys.executable, str(tree / ".ci" / "check_dist.py"), str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == (f"{wheel.name}: content as listed\n", 0)
    # The checker itself: a key that slipped in is noticed.
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("holdgate/_data/surfaces/stripe/private.key", "x")
    done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "must not be shipped: holdgate/_data/surfaces/stripe/private.key" in done.stdout


@pytest.mark.checkout
def test_make_help_names_every_target() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = re.findall(r"^ {2}make ([a-z]+)\t\S", done.stdout, flags=re.MULTILINE)
    assert {"demo", "test", "lint", "bench", "fuzz", "lock"} <= set(named)


def interpreter(folder: Path, name: str, *, usable: bool) -> None:
    """A stand-in Python: answers the version question, and prints where it is."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$2" in *executable*) echo {path};; esac\nexit {0 if usable else 1}\n')
    path.chmod(0o755)


@pytest.mark.checkout
@pytest.mark.parametrize(
    ("on_path", "in_pyenv", "arguments", "expected"),
    [
        pytest.param({"python3.12": True}, {}, (), "bin/python3.12", id="on PATH"),
        pytest.param({"python3.13": True, "python3.12": True}, {}, (), "bin/python3.12", id="3.12 first"),
        pytest.param(
            {"python3.13": True, "python3.12": True}, {}, ("3.13",), "bin/python3.13", id="as asked"
        ),
        pytest.param({"python3": False, "python": True}, {}, (), "bin/python", id="python, python3 too old"),
        pytest.param(
            {"python3": False}, {"3.12.1": True}, (), "pyenv/versions/3.12.1/bin/python", id="pyenv's version"
        ),
        pytest.param({"python3": False}, {"3.11.7": False}, (), "", id="none"),
        pytest.param({"python3.12": False}, {"3.12.0": False}, (), "", id="there, but without venv"),
    ],
)
def test_make_finds_a_python_or_says_what_to_install(
    tmp_path: Path,
    on_path: dict[str, bool],
    in_pyenv: dict[str, bool],
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    (tmp_path / "bin").mkdir()
    for name, usable in on_path.items():
        interpreter(tmp_path / "bin", name, usable=usable)
    for name, usable in in_pyenv.items():
        interpreter(tmp_path / "pyenv" / "versions" / name / "bin", "python", usable=usable)
    (tmp_path / "bin" / "cat").symlink_to(shutil.which("cat") or "/bin/cat")
    shell = shutil.which("sh") or "/bin/sh"
    done = subprocess.run(
        [shell, str(ROOT / ".ci" / "find-python"), *arguments],
        env={"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if expected:
        assert (done.stdout.strip(), done.returncode) == (str(tmp_path / expected), 0)
    else:
        assert (done.stdout, done.returncode) == ("", 1)
        assert "Python 3.12 or newer" in done.stderr


@pytest.mark.checkout
@pytest.mark.parametrize(
    "path",
    [
        "certs/ca.pem",
        "certs/sub/x.key",
        "state/ca/ca.key",
        "x/receipt.key",
        "holdgate.yaml",
        ".venv/x",
        "a.db",
    ],
)
def test_nothing_secret_can_be_committed_by_accident(path: str) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.mark.checkout
def test_the_explanation_in_certs_is_committed() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for path in ("certs/README.md", "certs/.gitignore"):
        done = subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False)
        assert done.returncode == 1


@pytest.mark.checkout
@pytest.mark.parametrize("name", ["run", "lock", "find-python"])
def test_ci_scripts_parse_and_can_be_run(name: str) -> None:
    script = ROOT / ".ci" / name
    assert os.access(script, os.X_OK)
    shell = script.read_text().splitlines()[0].split()[-1].rpartition("/")[2]
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert subprocess.run([shell, "-n", str(script)], check=False).returncode == 0
