"""Imports follow the order in CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "densezoo"
# Each may import from those before it.
ORDER = ("ops", "blocks", "encoders", "heads", "decoders", "models", "zoo", "weights", "inspect")
# The vocabulary that all of them share, which imports none of them.
SHARED = ("types", "deprecation", "extras", "inputs", "messages", "naming", "blueprint", "lookup")


def imported(path):
    """Modules of densezoo that a file imports, with the imported names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "densezoo":
            for alias in node.names:
                yield [*node.module.split(".")[1:], alias.name]


def files(room):
    path = PACKAGE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("room", [*SHARED, *ORDER])
def test_imports_run_one_way_and_take_no_private_names(room):
    later = ORDER if room in SHARED else ORDER[ORDER.index(room) + 1 :]
    for path in files(room):
        for names in imported(path):
            assert names[0] not in later, f"{path} imports {'.'.join(names)}"
            private = names[0] != room and any(name.startswith("_") for name in names)
            assert not private, f"{path} imports {'.'.join(names)}"
