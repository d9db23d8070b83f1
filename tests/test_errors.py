"""Docstrings' "Raises": every error named there exists, and the function or something that it calls raises it.

Calls are followed by their bare names, so a wrong claim may go unnoticed; a claim that nothing backs does not.
"""

import ast
import builtins
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import sfumato
from sfumato import errors

SOURCE = Path(sfumato.__file__).parent
Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): ", re.MULTILINE)
SECTION = re.compile(r"^Raises:\n((?: .*\n?|\n)+)", re.MULTILINE)
BASES = {
    name: {base.__name__ for base in value.__mro__} for name, value in vars(errors).items() if isinstance(value, type)
}


@dataclass
class Read:
    """What the source holds, read once by the process that runs these tests."""

    definitions: list[tuple[str, Node]] = field(default_factory=list)
    imported: set[str] = field(default_factory=set)
    raised: dict[str, set[str]] = field(default_factory=dict)
    mentioned_by: dict[str, set[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def source() -> Read:
    read = Read()
    mentioned: dict[str, set[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                read.imported.update(alias.name for alias in node.names)
            if not isinstance(node, Node):
                continue
            read.definitions.append((f"{file.relative_to(SOURCE)}:{node.lineno} {node.name}", node))
            inside = list(ast.walk(node))
            raised = [part.exc for part in inside if isinstance(part, ast.Raise) and part.exc is not None]
            names = {last_name(error.func if isinstance(error, ast.Call) else error) for error in raised} - {""}
            uses = mentioned.setdefault(node.name, set())
            uses.update(last_name(part) for part in inside if isinstance(part, ast.Name | ast.Attribute))
            # An error that is handed on, such as `raise error(...)`, may be any that the function mentions or is given.
            known = {name if name in vars(errors) else "any" for name in names}
            read.raised.setdefault(node.name, set()).update(known)
    for user, names in mentioned.items():
        if "any" in read.raised[user]:
            read.raised[user] |= names & vars(errors).keys()
        for name in names:
            read.mentioned_by.setdefault(name, set()).add(user)
    return read


def claims(node: Node) -> list[str]:
    """Return the errors that a docstring's "Raises" names."""
    found = SECTION.search((ast.get_docstring(node) or "") + "\n")
    return [name for entry in ENTRY.findall(found[1]) for name in entry.split(", ")] if found else []


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def raising(error: str, source: Read) -> set[str]:
    """Return the names of all that raises an error or a subclass of it, or mentions something that does."""
    kinds = {name for name in vars(errors) if name == error or error in BASES.get(name, ())}
    found: set[str] = set()
    todo = [name for name, raised in source.raised.items() if kinds & raised]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += source.mentioned_by.get(name, ())
    return found


def test_claims_are_read_at_all(source):
    read = {name: claims(node) for name, node in source.definitions}
    (load,) = (found for name, found in read.items() if re.match(r"artifacts/bundle\.py:\d+ load$", name))
    assert load == ["BundleUntrusted", "BundleError"]
    assert sum(map(len, read.values())) > 300


def test_every_error_named_in_a_docstring_exists(source):
    own = {node.name for _, node in source.definitions if isinstance(node, ast.ClassDef)}
    known = {*vars(errors), *vars(builtins), *own, *source.imported}
    assert [
        (where, name) for where, node in source.definitions for name in claims(node) if name.split(".")[-1] not in known
    ] == []


def test_every_error_of_ours_named_in_a_docstring_is_raised_by_something_called(source):
    for error in BASES:
        backed = raising(error, source)
        unbacked = [where for where, node in source.definitions if error in claims(node) and node.name not in backed]
        assert unbacked == [], error
