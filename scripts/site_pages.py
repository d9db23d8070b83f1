"""Pages of the documentation that are generated when the site is built; a hook of MkDocs, see mkdocs.yml.

- the command line, from the Typer application;
- schemas of the JSON files that sfumato writes, from docs/schemas;
- recipes, from the pydantic models, read without importing them, so that no torch is needed;
- the Python API: a page for each package, which mkdocstrings fills from the docstrings;
- CHANGELOG.md, CONTRIBUTING.md and SECURITY.md, as pages of the site;
- the notebooks in examples/notebooks, with what their cells print and show;
- files outside of docs/ that a page links to, such as results/*.json: copied into the site.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import textwrap
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
    "gate": "sfumato.artifacts.gate",
    "preprocessing": "sfumato.artifacts.preprocessing",
    "wire": "sfumato.wire",
    "cloud": "sfumato.cloud",
    "training": "sfumato.lab.training",
    "objectives": "sfumato.lab.training.objectives",
    "measures": "sfumato.lab.evaluation.measures",
}
"""Page -> module of the Python reference."""
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "reporting.md": "SECURITY.md"}
NOTEBOOKS = ROOT / "examples" / "notebooks"
_OUTPUT_COLUMNS = 110
"""Longer lines of what a cell prints are wrapped, as Jupyter does it."""
RECIPES = "sfumato.lab.training.recipe"
"""The module of the recipes: the models with a `kind`, and those that they hold."""
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the files that pages link to."""
    generated = {
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
        "reference/schemas.md": schemas_page(),
    }
    for name, module in MODULES.items():
        generated[f"reference/python/{name}.md"] = f"# {module}\n\n::: {module}\n"
    for page, source in PAGES.items():
        generated[page] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    images: dict[str, bytes] = {}
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        generated[f"notebooks/{file.stem}.md"], shown = notebook_page(file)
        images |= {f"notebooks/{name}": image for name, image in shown.items()}
    for path, content in [*generated.items(), *images.items()]:
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


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook that was run, as Markdown, and its PNG images by their names beside the page.

    Links into docs/ and to other notebooks lead to pages of the site.
    """
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"(\]\([\w-]+)\.ipynb\)", r"\1.md)", source.replace("](../../docs/", "](../")))
            continue
        parts.append(_fenced("sh" if source.startswith("!") else "python", source))
        for output in cell["outputs"]:
            if text := "".join(output.get("text", [])).strip("\n"):
                lines = [part for line in text.splitlines() for part in textwrap.wrap(line, _OUTPUT_COLUMNS) or [""]]
                parts.append(_fenced("text", "\n".join(lines)))
            elif "image/png" in output.get("data", {}):
                name = f"{path.stem}-{len(images) + 1}.png"
                images[name] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![{output['metadata']['image/png']['alt']}]({name})")
    title, *rest = parts
    download = f"[Download the notebook](../../{path.relative_to(ROOT).as_posix()}) to run it yourself."
    return "\n\n".join([title, download, *rest]) + "\n", images


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def commands_page() -> str:
    """Return the reference of the command line."""
    import typer

    from sfumato.cli import app as module
    from sfumato.cli import commands  # noqa: F401  (registers them)

    group: Any = typer.main.get_command(module.app)
    panels = getattr(module, "PANELS", {"Commands": tuple(group.commands)})
    lines = ["# Commands", "", "Look up what each command does and which options it takes; `sfumato COMMAND --help`"]
    lines += ["prints the same. Exit codes: 0 success, 1 an error (one line on standard error), 2 incorrect usage, 130"]
    lines += ["interrupted. Every command that reports figures takes `--json`. In a terminal, the Tab key"]
    lines += ["[completes them](../how-to/index.md#complete-commands-with-the-tab-key).", ""]
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


def schemas_page() -> str:
    """Return the list of JSON schemas."""
    lines = ["# Schemas", "", "Check or parse the JSON files that sfumato writes: each kind has a JSON Schema.", ""]
    lines += ["| schema | describes |", "|---|---|"]
    for file in sorted((ROOT / "docs" / "schemas").glob("*.json")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        said = (schema.get("description") or schema.get("title") or "").partition("\n\n")[0]
        lines.append(f"| [{file.name}](../schemas/{file.name}) | {' '.join(said.split())} |")
    return "\n".join(lines) + "\n"


def recipes_page() -> str:
    """Return the reference of the recipes' keys."""
    module = griffe.load(RECIPES, search_paths=[str(ROOT / "src")], docstring_parser="google")
    sections = {f"kind = {_values(keys['kind'])}": model for model, keys in _models(module) if "kind" in keys}
    for model in list(sections.values()):
        for key, value in _keys(model).items():
            table = _target(value)
            if isinstance(table, griffe.Class):
                sections.setdefault(f"[{key}]", table)
    lines = [
        "# Recipes",
        "",
        "Look up every key that a recipe may have. A recipe is a TOML file; `kind` chooses the table of its top level,",
        "and `--set key=value` overrides any key. Unknown keys are refused. [Train](../how-to/train.md) shows how they",
        "are used; [recipes](../../recipes) holds those that come with sfumato.",
    ]
    for title, model in sections.items():
        lines += ["", f"## `{title}`", "", *_model(model)]
    return "\n".join(lines) + "\n"


def _models(module: Any) -> list[tuple[griffe.Class, dict[str, griffe.Attribute]]]:
    return [(each, _keys(each)) for each in module.members.values() if not each.is_alias and each.is_class]


def _keys(model: griffe.Class) -> dict[str, griffe.Attribute]:
    """The keys of a model: `kind` and `name`, its own, then those of its bases."""
    found: dict[str, griffe.Attribute] = {}
    for each in [model, *model.mro()]:
        for key, value in each.attributes.items():
            if value.annotation is not None and "property" not in value.labels:
                found.setdefault(key, value)
    return dict(sorted(found.items(), key=lambda item: item[0] not in ("kind", "name")))


def _target(value: griffe.Attribute) -> griffe.Object | None:
    """What an annotation names, if it lies in the package: a model, or an alias of a type."""
    path = getattr(value.annotation, "canonical_path", "")
    try:
        found = value.modules_collection[path] if path.startswith("sfumato.") else None
    except KeyError:
        return None
    return found.final_target if isinstance(found, griffe.Alias) else found


def _model(model: griffe.Class) -> list[str]:
    texts, meanings = [], {"kind": "what the recipe makes", "name": "of the bundle: letters, digits, `.`, `_` and `-`"}
    for each in [*reversed(model.mro()), model]:
        for section in each.docstring.parsed if each.docstring else []:
            if section.kind is griffe.DocstringSectionKind.text and each is model:
                texts.append(str(section.value))
            elif section.kind is griffe.DocstringSectionKind.attributes:
                meanings |= {one.name: " ".join(one.description.split()) for one in section.value}
    lines = [*texts, "", "| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value in _keys(model).items():
        if isinstance(_target(value), griffe.Class):
            lines.append(f"| `{key}` | table | | [see there](#{key}) |")
        else:
            meaning = meanings.get(key, "").replace("|", "\\|")
            lines.append(f"| `{key}` | {_type(value)} | {_default(value)} | {meaning} |")
    return lines


def _values(value: griffe.Attribute) -> str:
    """The values that an annotation names: `Literal["a", "b"]` -> `"a", "b"`."""
    return ", ".join(f'"{each}"' for each in re.findall(r"['\"]([^'\"]+)['\"]", str(value.annotation)))


def _type(value: griffe.Attribute) -> str:
    alias = _target(value)
    annotation = str(alias.value if isinstance(alias, griffe.Attribute) else value.annotation)
    annotation = re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", annotation)
    annotation = re.sub(r"Literal\[(.*?)\]", lambda match: match.group(1).replace("'", '"'), annotation)
    annotation = annotation.replace(" | None", "").replace(" | ", " or ")
    return "`" + " ".join(annotation.split()).rstrip(",") + "`"


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
