"""Docstrings' "Raises": every error named there exists, and the function or something that it calls raises it.

Calls are followed by their bare names, so a wrong claim may go unnoticed; a claim that nothing backs does not.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import sfumato
from sfumato import errors

SOURCE = Path(sfumato.__file__).parent
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(SOURCE.rglob("*.py"))}
Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): ", re.MULTILINE)
SECTION = re.compile(r"^Raises:\n((?: .*\n?|\n)+)", re.MULTILINE)


def definitions() -> Iterator[tuple[str, Node]]:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, Node):
                yield f"{file.relative_to(SOURCE)}:{node.lineno} {node.name}", node


def claims(node: Node) -> list[str]:
    """Return the errors that a docstring's "Raises" names."""
    found = SECTION.search((ast.get_docstring(node) or "") + "\n")
    return [name for entry in ENTRY.findall(found[1]) for name in entry.split(", ")] if found else []


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


DEFINITIONS = list(definitions())
OWN = {node.name for _, node in DEFINITIONS if isinstance(node, ast.ClassDef)}
IMPORTED = {
    alias.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
RAISED: dict[str, set[str]] = {}
MENTIONED: dict[str, set[str]] = {}
for _, node in DEFINITIONS:
    inside = list(ast.walk(node))
    raised = [part.exc for part in inside if isinstance(part, ast.Raise) and part.exc is not None]
    names = {last_name(error.func if isinstance(error, ast.Call) else error) for error in raised}
    # An error that is handed on, such as `raise error(...)`, may be any that the function mentions or is given.
    RAISED.setdefault(node.name, set()).update(name if name in vars(errors) else "any" for name in names if name)
    MENTIONED.setdefault(node.name, set()).update(
        last_name(part) for part in inside if isinstance(part, ast.Name | ast.Attribute)
    )


BASES = {
    name: {base.__name__ for base in value.__mro__} for name, value in vars(errors).items() if isinstance(value, type)
}
MENTIONED_BY: dict[str, set[str]] = {}
for user, names in MENTIONED.items():
    for name in names:
        MENTIONED_BY.setdefault(name, set()).add(user)


def raising(error: str) -> set[str]:
    """Return the names of all that raises an error or a subclass of it, or mentions something that does."""
    kinds = {name for name in vars(errors) if name == error or error in BASES.get(name, ())}
    found: set[str] = set()
    todo = [name for name in RAISED if kinds & RAISED[name] or ("any" in RAISED[name] and kinds & MENTIONED[name])]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += MENTIONED_BY.get(name, ())
    return found


def test_claims_are_read_at_all():
    read = {name: claims(node) for name, node in DEFINITIONS}
    (load,) = (found for name, found in read.items() if re.match(r"artifacts/bundle\.py:\d+ load$", name))
    assert load == ["BundleError"]
    assert sum(map(len, read.values())) > 300


def test_every_error_named_in_a_docstring_exists():
    known = {*vars(errors), *vars(builtins), *OWN, *IMPORTED}
    assert [
        (where, name) for where, node in DEFINITIONS for name in claims(node) if name.split(".")[-1] not in known
    ] == []


def test_every_error_of_ours_named_in_a_docstring_is_raised_by_something_called():
    for error in BASES:
        backed = raising(error)
        assert [where for where, node in DEFINITIONS if error in claims(node) and node.name not in backed] == [], error
