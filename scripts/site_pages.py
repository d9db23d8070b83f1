"""Pages of the documentation that are generated when the site is built; a hook of MkDocs, see mkdocs.yml.

- the command line, from the Typer application;
- recipes, from the pydantic models, read without importing them, so that no torch is needed;
- the Python API: a page for each package, which mkdocstrings fills from the docstrings;
- CHANGELOG.md, CONTRIBUTING.md and SECURITY.md, as pages of the site;
- files outside of docs/ that a page links to, such as results/*.json: copied into the site.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "sfumato": "sfumato",
    "device": "sfumato.device",
    "errors": "sfumato.errors",
    "bundle": "sfumato.artifacts.bundle",
    "wire": "sfumato.wire",
    "cloud": "sfumato.cloud",
    "training": "sfumato.lab.training",
    "objectives": "sfumato.lab.training.objectives",
    "measures": "sfumato.lab.evaluation.measures",
}
"""Page -> module of the Python reference."""
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
RECIPES = ("sfumato.lab.training.recipe", "_Strict")
"""The module of the recipes, and the base class of its models."""
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the files that pages link to."""
    generated = {"reference/commands.md": commands_page(), "reference/recipes.md": recipes_page()}
    for name, module in MODULES.items():
        generated[f"reference/python/{name}.md"] = f"# {module}\n\n::: {module}\n"
    for page, source in PAGES.items():
        generated[page] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    for path, content in generated.items():
        files.append(File.generated(config, path, content=content))
    for file in list(files):
        if file.src_uri.endswith(".md"):
            for target in _outside(file.content_string, file.src_uri).values():
                _add(files, config, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ at the copies in the site."""
    uri = page.file.src_uri
    targets = _outside(markdown, uri)

    def moved(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if link not in targets:
            return match.group()
        return before + relpath(_place(targets[link]), str(Path(uri).parent)) + after

    return _LINK.sub(moved, markdown)


def _outside(markdown: str, uri: str) -> dict[str, str]:
    """The links of a page that leave docs/: as they stand there -> path in the repository."""
    found = {}
    for link in {link for _, link, _ in _LINK.findall(markdown) if ":" not in link}:
        if uri in PAGES:  # stands in the root, and its links into docs/ lead to pages already
            path = normpath(link)
            outside = (ROOT / path).exists()
        else:
            path = normpath(f"docs/{Path(uri).parent}/{link}")
            outside = not path.startswith("docs/")
        if outside:
            found[link] = path
    return found


def _place(path: str) -> str:
    """Where a file of the repository lies in the site."""
    for page, source in PAGES.items():
        if path == source:
            return page
    return f"repository/{path}/index.md" if (ROOT / path).is_dir() else f"repository/{path}"


def _add(files: Files, config: MkDocsConfig, path: str) -> None:
    place, source = _place(path), ROOT / path
    if files.get_file_from_path(place) is not None:
        return
    if not source.exists():
        raise PluginError(f"a page links to {path}, which is not in the repository")
    if source.is_file():
        files.append(File.generated(config, place, abs_src_path=str(source)))
        return
    inside = sorted(file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
    inside = [name for name in inside if "__pycache__" not in name]
    listing = "\n".join(f"- [{name}]({name})" for name in inside)
    files.append(File.generated(config, place, content=f"# {path}\n\n{listing}\n"))
    for name in inside:
        _add(files, config, f"{path}/{name}")


def commands_page() -> str:
    """Return the reference of the command line."""
    import typer

    from sfumato.cli import app as module
    from sfumato.cli import commands  # noqa: F401  (registers them)

    group: Any = typer.main.get_command(module.app)
    panels = getattr(module, "PANELS", {"Commands": tuple(group.commands)})
    lines = ["# Commands", "", "Look up what each command does and which options it takes; `sfumato COMMAND --help`"]
    lines += ["prints the same. Exit codes: 0 success, 1 an error (one line on standard error), 2 wrong usage, 130"]
    lines += ["interrupted. Every command that reports figures takes `--json`.", ""]
    for panel, names in panels.items():
        lines += [f"- **{panel}**: " + ", ".join(f"[{name}](#{name})" for name in names)]
    for name in (name for names in panels.values() for name in names):
        lines += ["", f"## {name}", "", *_command(name, group.commands[name])]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> list[str]:
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    arguments = [param for param in shown if param.param_type_name == "argument"]
    options = [param for param in shown if param.param_type_name == "option"]
    words = [_argument(param) for param in arguments]
    lines = ["```text", " ".join(["sfumato", name, *words, "[OPTIONS]"]), "```", "", (command.help or "").strip(), ""]
    rows = [(f"`{_argument(param)}`", param) for param in arguments]
    rows += [(", ".join(f"`{opt}`" for opt in [*param.opts, *param.secondary_opts]), param) for param in options]
    lines += ["| argument or option | meaning |", "|---|---|"]
    return lines + [f"| {first} | {_meaning(param)} |" for first, param in rows]


def _argument(param: Any) -> str:
    word = (param.metavar or param.name).upper().strip("[]").removesuffix("...")
    word += "..." if param.nargs == -1 else ""
    return word if param.required else f"[{word}]"


def _meaning(param: Any) -> str:
    said = " ".join((param.help or "").split()).replace("|", "\\|")
    default = getattr(param.default, "value", param.default)
    if param.required and param.param_type_name == "option":
        return f"{said} Required."
    plain = isinstance(default, str | int | float) and default is not False and "default" not in said.lower()
    return f"{said} Default: `{default}`." if plain and param.show_default else said


def recipes_page() -> str:
    """Return the reference of the recipes' keys."""
    name, base = RECIPES
    module = griffe.load(name, search_paths=[str(ROOT / "src")], docstring_parser="google")
    models = [each for each in module.classes.values() if base in [str(given) for given in each.bases]]
    models.sort(key=lambda each: "kind" not in each.attributes)
    lines = [
        "# Recipes",
        "",
        "Look up every key that a recipe may have. A recipe is a TOML file; `kind` chooses the table of its top level,",
        "and `--set key=value` overrides any key. Unknown keys are refused. [Train](../how-to/train.md) shows how they",
        "are used; [recipes](../../recipes) holds those that come with sfumato.",
    ]
    sections = {
        str(value.annotation): key
        for model in models
        for key, value in model.attributes.items()
        if str(value.annotation) in module.classes
    }
    for model in models:
        kind = model.attributes.get("kind")
        title = f"kind = {_literal(kind)}" if kind else f"[{sections.get(model.name, model.name)}]"
        lines += ["", f"## `{title}`", "", *_model(model, module)]
    return "\n".join(lines) + "\n"


def _model(model: griffe.Class, module: griffe.Module) -> list[str]:
    texts, meanings = [], {}
    for section in model.docstring.parsed if model.docstring else []:
        if section.kind is griffe.DocstringSectionKind.text:
            texts.append(str(section.value))
        elif section.kind is griffe.DocstringSectionKind.attributes:
            meanings = {each.name: " ".join(each.description.split()) for each in section.value}
    rows = [
        f"| `{key}` | {_type(str(value.annotation), module)} | {_default(value)} | "
        f"{_described(key, str(value.annotation), meanings, module)} |"
        for key, value in model.attributes.items()
        if value.annotation is not None
    ]
    return [*texts, "", "| key | value | default | meaning |", "|---|---|---|---|", *rows]


def _described(key: str, annotation: str, meanings: dict[str, str], module: griffe.Module) -> str:
    if annotation in module.classes:
        return f"[see there](#{key.replace('_', '_')})"
    known = {"kind": "what the recipe makes", "name": "of the bundle: letters, digits, `.`, `_` and `-`"}
    return meanings.get(key, known.get(key, "")).replace("|", "\\|")


def _literal(value: griffe.Attribute | None) -> str:
    found = re.search(r"['\"](\w+)['\"]", str(value.annotation)) if value else None
    return f'"{found.group(1)}"' if found else ""


def _type(annotation: str, module: griffe.Module) -> str:
    if annotation in module.classes:
        return "table"
    if annotation in module.attributes and module.attributes[annotation].value is not None:
        annotation = str(module.attributes[annotation].value)
    annotation = re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", annotation)
    annotation = re.sub(r"Literal\[(.*?)\]", lambda match: match.group(1).replace("'", '"'), annotation)
    return "`" + " ".join(annotation.replace(" | None", "").split()).rstrip(",") + "`"


def _default(value: griffe.Attribute) -> str:
    """The default and the bounds, from `Field(default=1, ge=0)`."""
    if value.value is None:
        return "required"
    text = str(value.value)
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call):
        return f"`{text}`"
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if "pattern" in given:
        return "required"
    if not given:
        return ""
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [f"{sign} {given[key]}" for key, sign in signs.items() if key in given]
    return f"`{given.get('default', 'required')}`" + (f" ({', '.join(bounds)})" if bounds else "")
