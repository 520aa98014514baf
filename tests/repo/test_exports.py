"""`__all__` is what a module offers: sorted, importable, and complete, which is everything that other modules use of it."""

from __future__ import annotations

import ast
import re
from importlib import import_module

import idefics
from repo.repository import README, importable, modules

MODULES = modules()


def _exported(tree: ast.Module) -> list[str] | None:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["__all__"]:
            found: list[str] = ast.literal_eval(statement.value)
            return found
    return None


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order that ruff (RUF022) keeps."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def test_every_module_says_what_it_offers() -> None:
    silent = []
    for name, tree in MODULES.items():
        public = [
            statement.name
            for statement in tree.body
            if isinstance(statement, ast.ClassDef | ast.FunctionDef) and not statement.name.startswith("_")
        ]
        if public and _exported(tree) is None:
            silent.append(f"{name}: {', '.join(public)}")
    assert len(MODULES) > 50
    assert not silent


def test_all_is_sorted_and_has_no_name_twice() -> None:
    for name, tree in MODULES.items():
        exported = _exported(tree) or []
        assert exported == sorted(set(exported), key=_order), name


def test_every_exported_name_is_there() -> None:
    for name, tree in MODULES.items():
        if not importable(name):
            continue
        for exported in _exported(tree) or []:
            assert not exported.startswith("_"), f"{name} exports {exported}"
            assert hasattr(import_module(name), exported), f"{name} has no {exported}"


def test_what_other_modules_use_is_exported() -> None:
    missing = set()
    for user, tree in MODULES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module not in MODULES:
                continue
            offered = _exported(MODULES[node.module]) or []
            for alias in node.names:
                plain = f"{node.module}.{alias.name}" not in MODULES and not alias.name.startswith("__")
                if plain and alias.name not in offered:
                    missing.add(f"{node.module}.{alias.name} (used by {user})")
    assert not missing


def test_the_packages_names_are_those_it_loads() -> None:
    assert sorted(idefics._WHERE) == sorted(idefics.__all__)
    for name in idefics.__all__:
        assert getattr(idefics, name) is getattr(import_module(idefics._WHERE[name]), name)
    assert set(idefics.__all__) <= set(dir(idefics))


def test_the_readmes_table_of_names() -> None:
    """The table after `<!-- names -->` in the README, if there is one, has every name of the package in its first column."""
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    table = re.search(r"<!-- names -->\s*\n((?:\|.*\n)+)", text)
    if table is None:
        assert "<!-- names -->" not in text, "no table after <!-- names -->"
        return
    first_cells = [row.split("|")[1] for row in table[1].splitlines()[2:]]
    documented = [re.sub(r"\(.*", "", name) for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(documented) == sorted(idefics.__all__)
