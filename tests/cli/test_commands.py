"""The commands, their help, the names of the version before, and shell completion."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import FIRST_OPTIONS, PANELS, app
from sfumato.cli.output import print_table
from sfumato.cli.renamed import in_todays_words

COMMANDS = [name for names in PANELS.values() for name in names]
WORDS_TO_AVOID = (
    r"pictures?|travels?|travelled|stays? at home|at home|keeps|answers?|answered|drawings?|drawn|draws|restor\w+|"
    r"is told|tells|hides?|worth|nobody|came afterwards|scene|effort|notebook|look|looks|stand-in|stated|beside|"
    r"stood|goes on|go on|begins?|anew|his|he|him|right|wrong"
)


def help_of(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    return done.stdout


def panels(text: str) -> dict[str, str]:
    """The panels of a help page: title -> text."""
    found = re.findall(r"╭─ ([^─]+) ─+╮\n(.*?)\n╰", text, re.DOTALL)
    return {title.strip(): body for title, body in found}


def test_every_command_stands_in_a_panel():
    assert sorted(COMMANDS) == sorted(info.name for info in app.registered_commands)
    assert len(COMMANDS) <= 15
    shown = panels(help_of())
    for panel, names in PANELS.items():
        rows = [line.split()[1] for line in shown[panel].splitlines() if not line.startswith("│  ")]
        assert rows == list(names)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(name: str):
    text = help_of(name)
    assert max(map(len, text.splitlines())) <= 100
    assert f"sfumato {name}" in text.split("─ Options ─")[0].split("Usage:")[1].split("\n", 1)[1], "an example"
    shown = panels(text)
    options = re.findall(r"^│ \*?\s*(--[\w-]+)", shown["Options"], re.MULTILINE)
    assert len(options) <= FIRST_OPTIONS + 1 and ("Advanced" in shown or "--help" in options)
    assert "<bool>" not in text and not re.search(r"<[a-z0-9|]*\s", text), "a type is shown broken"
    assert not re.findall(rf"\b({WORDS_TO_AVOID})\b", text, re.IGNORECASE)


def test_no_word_to_avoid_in_the_first_help():
    assert not re.findall(rf"\b({WORDS_TO_AVOID})\b", help_of(), re.IGNORECASE)


@pytest.mark.parametrize(
    ("old", "new", "hints"),
    [
        ("adopt net.onnx -o net", "import net.onnx -o net", 1),
        ("quantize mine -o new", "export --to int8 mine -o new", 1),
        ("transfer a b --to c --to=d", "evaluate --transfer a b --classifier c --classifier=d", 3),
        ("cost resnet18 --height 64 --width=48", "evaluate --cost resnet18 --size 64x48", 1),
        ("cost --json", "evaluate --cost --json --size 32x32", 1),
        ("controls --budget full", "audit --check-attacks --budget full", 1),
        ("references -o a.json", "audit --references -o a.json", 1),
        ("hides --into page.md folder", "audit --attributes-table --into page.md folder", 1),
        ("audit x --share 2 --other faces --beside d", "audit x --budget-scale 2 --other-data faces --compare d", 3),
        ("frontier r.toml --dial a=1,2 --beside d", "frontier r.toml --sweep a=1,2 --compare d", 2),
        ("frontier d --this x", "frontier d --highlight x", 1),
        ("protect d -o o --force --share 1/2", "protect d -o o --overwrite --shard 1/2", 2),
        ("export x --force", "export x --overwrite", 1),
        ("classify a --answer b --answer-keys c,d", "classify a --response-path b --response-keys c,d", 2),
        ("doctor --answer b", "doctor --response-path b", 1),
        ("evaluate --pictures 3 --round", "evaluate --images 3 --round", 1),
        ("audit --budget quick --share=0.5", "audit --budget quick --budget-scale=0.5", 1),
        ("train recipe.toml --set a=b", "train recipe.toml --set a=b", 0),
    ],
)
def test_names_of_the_version_before(old: str, new: str, hints: int):
    words, said = in_todays_words(old.split())
    assert words == new.split() and len(said) == hints
    name = words[0]
    known = {option for param in CLICK[name].params for option in param.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


@pytest.fixture(autouse=True, scope="module")
def _click():
    from typer.main import get_command

    CLICK.update(get_command(app).commands)


CLICK: dict = {}


def test_an_old_command_runs_with_one_line_of_advice():
    done = CliRunner().invoke(app, ["cost", "alexnet"])
    assert done.stderr == "hint: sfumato cost is now sfumato evaluate --cost; the old name will be removed in 0.3\n"
    assert "unknown classifier 'alexnet'" in str(done.exception)


def test_reproduce_is_elsewhere():
    done = CliRunner().invoke(app, ["reproduce", "all"])
    assert done.exit_code == 2 and "python -m reproduction" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluate", "--cost", "--data", "faces"], "--data: not with --cost"),
        (["evaluate", "--classes", "3"], "--classes: only with --cost"),
        (["evaluate", "--audits", "somewhere"], "--audits is for several bundles"),
        (["audit", "--references", "--budget", "full"], "--budget: not with --references"),
        (["audit", "--attributes-table"], "sfumato audit --attributes-table DIR"),
        (["audit", "--into", "page.md"], "--into: not of an audit"),
        (["export", "-o", "x.pte", "--calibrate-on", "5"], "--calibrate-on: only with --to int8"),
    ],
)
def test_options_of_another_mode_are_refused(words: list[str], says: str):
    assert says in str(CliRunner().invoke(app, words).exception)


COMPLETE = """
sfumato --install-completion >/dev/null && . ~/.bashrc || exit
while read -r -a COMP_WORDS; do
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _sfumato_completion sfumato
    echo "${COMPREPLY[@]}"
done <<< "$TYPED"
"""
"""Installs the completion as a person does in bash, then prints what it offers for each line that was typed."""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_values(tmp_path: Path):
    command = tmp_path / "bin" / "sfumato"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom sfumato.cli.main import main\n\nmain()\n", encoding="utf-8")
    command.chmod(0o755)
    typed = {
        "sfumato ex": "export",
        "sfumato audit --check": "--check-attacks",
        "sfumato export --to int": "int8",
    }
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "TYPED": "\n".join(typed),
    }
    done = subprocess.run(["bash", "-c", COMPLETE], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.splitlines() == list(typed.values()), done.stderr
    assert "--show-completion" in help_of()
    assert "-o default" in (tmp_path / ".bash_completions" / "sfumato.sh").read_text(encoding="utf-8"), "else files"


def test_a_row_of_a_table_is_one_line_unless_a_width_is_set(monkeypatch, capsys):
    file = "photos/" + 40 * "long/" + "001.jpg"
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(("file", "label"), [(file, "apple")])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["file", "label"], [file, "apple"]]
    monkeypatch.setenv("COLUMNS", "60")
    print_table(("file", "label"), [(file, "apple")])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60
