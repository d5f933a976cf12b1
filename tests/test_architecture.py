"""The house rules: which way imports point, how large a room may grow, which words are not used."""

from __future__ import annotations

import ast
import configparser
import importlib
import io
import pkgutil
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("mmsearch_env", "agents", "training")
ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CODE = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.py")])

MAX_LINES = 350
MAX_FUNCTION_LINES = 50
MAX_MEDIAN_FUNCTION_LINES = 10
BANNED_FILES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "tantivy",
    "cv2",
    "pyarrow",
    "rich",
    "aiohttp",
    "babel",
    "PIL.ImageQt",
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code, the docstring not counted."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_import_contracts_hold() -> None:
    lint = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    checked = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Contracts: " in checked.stdout, checked.stderr
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_importing_the_environment_loads_nothing_heavy() -> None:
    """The time budget (half a second) is kept by what is not imported; a clock in a test would only flicker."""
    probe = f"import sys, mmsearch_env; print([name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_is_listed_in_order(package: str) -> None:
    modules = [package, *(info.name for info in pkgutil.walk_packages([str(ROOT / package)], f"{package}."))]
    for name in modules:
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None)
        if public is None:
            continue
        assert list(public) == sorted(set(public), key=ruff_order), f"{name}.__all__ is not sorted"
        for entry in public:
            assert hasattr(module, entry), f"{name}.__all__ promises {entry!r}, which does not exist"


def ruff_order(name: str) -> tuple[int, str]:
    """Constants, classes, the rest: the order the linter keeps."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_every_package_with_code_at_its_door_says_what_it_exports() -> None:
    for path in SOURCES:
        if path.name == "__init__.py" and any(
            isinstance(node, ast.ImportFrom) for node in ast.parse(path.read_text()).body
        ):
            imported = [alias.asname or alias.name for alias in imported_names(path)]
            if imported:
                assert "__all__" in path.read_text(), f"{name_of(path)} exports names without an __all__"


def imported_names(path: Path) -> Iterator[ast.alias]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
            yield from node.names


def test_every_package_is_listed_for_installation() -> None:
    listed = set(config()["options"]["packages"].split())
    assert {".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES if p.name == "__init__.py"} == listed
    for path in SOURCES:
        assert (path.parent / "__init__.py").exists(), f"{name_of(path.parent)} has code and no __init__.py"


def test_every_data_file_is_packaged() -> None:
    """A file beside the code that no pattern of setup.cfg names would be missing from what is installed."""
    patterns = config()["options.package_data"]
    packaged = {
        path
        for package, globs in patterns.items()
        for pattern in globs.split(",")
        for path in ROOT.joinpath(*package.split(".")).glob(pattern.strip())
    }
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
            if path.is_file() and not hidden and path.suffix not in (".py", ".pyc", ".md"):
                assert path in packaged, f"{name_of(path)} is not named in [options.package_data] of setup.cfg"


def test_constraints_pin_every_direct_dependency_and_torch_first() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "torch==2.13.0"
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line) for line in lines)
    pinned = {canonical(line.partition("==")[0]) for line in lines}
    options = config()
    extras = {name: text for name, text in options["options.extras_require"].items() if name != "vllm"}
    wanted = "\n".join([options["options"]["install_requires"], *extras.values()])
    direct = {canonical(re.split(r"[<>=\[;]", line)[0]) for line in wanted.split("\n") if line.strip()}
    assert direct - {"mmsearch-env"} <= pinned


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_fits_its_room(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines; cut it by meaning"
    assert path.stem not in BANNED_FILES, f"{name_of(path)}: name the meaning"
    if lines:
        assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} does not say what it is for"
        assert "from __future__ import annotations" in text or text.count("\n") < 8, name_of(path)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_are_short_and_named_after_their_result(path: Path) -> None:
    for function in functions(path):
        place = f"{name_of(path)}:{function.lineno} {function.name}"
        assert length(function) <= MAX_FUNCTION_LINES, f"{place} has {length(function)} lines"
        assert not function.name.lstrip("_").startswith("compute_"), place


def test_the_median_function_is_a_paragraph() -> None:
    for package in PACKAGES:
        lengths = sorted(length(f) for path in (ROOT / package).rglob("*.py") for f in functions(path))
        if lengths:
            assert lengths[len(lengths) // 2] <= MAX_MEDIAN_FUNCTION_LINES, package


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for path in CODE:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.COMMENT:
                assert not marks.search(token.string), f"{name_of(path)}:{token.start[0]} {token.string}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_unpickled_evaluated_or_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        place = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "print", "pickle.load", "pickle.loads", "torch.load"}, (
                f"{place} {called}"
            )
            assert not any(key.arg == "shell" for key in node.keywords), f"{place} shell="
        if isinstance(node, ast.ExceptHandler):
            assert not (node.type is None and all(isinstance(line, ast.Pass) for line in node.body)), place
