"""How the package and its tests are laid out: what may import what, and how long files are."""

import ast
from functools import cache
from graphlib import TopologicalSorter

from paths import ROOT


PACKAGE = ROOT / "optimum_slicegpt"
MODULES = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in sorted(PACKAGE.rglob("*.py"))}
LEVELS = [
    {"linalg", "modeling", "validation", "configuration", "distributed", "progress"},
    {"planning", "data", "storage"},
    {"slicing", "record"},
    {"evaluation", "reports", "recovery", "export", "quantizer"},
    {"streaming", "registration"},
    {"commands", "__init__"},
]
"""Folders, and modules on top of the package, from low to high. Each imports its own level and those below."""
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def import_nodes(path):
    """Yields every import of a file, those in functions included, those for type checkers alone left out."""
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        else:
            nodes += ast.iter_child_nodes(node)


@cache
def imported_modules(module):
    """Returns the modules of the package that a module imports. Names in packages count as their modules."""
    found = set()
    for node in import_nodes(MODULES[module]):
        paths = [alias.name.split(".") for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            start = [PACKAGE.name, *module[: -node.level]] if node.level else []
            start += node.module.split(".") if node.module else []
            paths = [start + path for path in paths]
        for name, *parts in paths:
            if name == PACKAGE.name:
                parts = tuple(parts)
                candidates = (parts, (*parts, "__init__"), parts[:-1], (*parts[:-1], "__init__"))
                found.add(next(each for each in candidates if each in MODULES))
    return found - {module}


def test_imports_point_one_way():
    pairs = [(module, imported) for module in MODULES for imported in imported_modules(module)]
    assert not [pair for pair in pairs if LEVEL[pair[1][0]] > LEVEL[pair[0][0]]]


def test_no_imports_run_in_a_circle_and_chains_are_short():
    floors = {}
    for module in TopologicalSorter({module: imported_modules(module) for module in MODULES}).static_order():
        floors[module] = 1 + max((floors[imported] for imported in imported_modules(module)), default=0)
    assert max(floors.values()) <= 9


def test_files_are_short():
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert not {module for module, count in lines.items() if count > 300}
    assert lines["slicing", "compress"] < 125
    assert sum(len(module) == 1 for module in MODULES) <= 12


def test_tests_import_helpers_only():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in import_nodes(path):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(part.startswith("test_") for name in names for part in name.split(".")), path
