"""Who may import whom: a folder is a process, and `wire` is all they share."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jupyter_tinker

PACKAGE = Path(jupyter_tinker.__file__).parent
ROOMS = {"server", "engine", "notebook"}
HEAVY = {"torch", "transformers", "peft"}


def _imports(file: Path) -> set[str]:
    """Absolute names of everything a module imports, wherever in its text."""
    package = ["jupyter_tinker", *file.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def _modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(ROOMS | {"wire"}))
def test_rooms_do_not_import_one_another(room: str) -> None:
    forbidden = {f"jupyter_tinker.{other}" for other in ROOMS - {room}}
    for file in _modules(room):
        met = {n for n in _imports(file) if any(f"{n}.".startswith(f"{f}.") for f in forbidden)}
        assert not met, f"{file.relative_to(PACKAGE)} imports {met}"


@pytest.mark.parametrize("room", sorted({"server", "notebook", "wire"}))
def test_only_the_engine_imports_torch(room: str) -> None:
    heavy = HEAVY if room != "wire" else HEAVY | {"tornado"}
    for file in _modules(room):
        met = {name.split(".")[0] for name in _imports(file)} & heavy
        assert not met, f"{file.relative_to(PACKAGE)} imports {met}"


def test_loading_the_extension_imports_nothing_heavy() -> None:
    code = (
        "import sys, jupyter_tinker, jupyter_tinker.cli;"
        "jupyter_tinker._jupyter_server_extension_points();"
        "print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "jupyter_tinker" in loaded
    assert not loaded & (HEAVY | {"tinker", "numpy"})
