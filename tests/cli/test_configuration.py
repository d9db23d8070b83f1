"""Settings from the command line, the environment and files: which one wins, and what is refused."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from commands import sfumato
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.cli.configuration import CONFIGURED, name_of, variable_of
from sfumato.cloud import ServedModel, running
from synthetic import png

VALUES = {"--port": 1, "SFUMATO_SERVE_PORT": 2, "file": 3, "default": 8080}


def written(folder: Path, text: str, name: str = "sfumato.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def settings(*arguments: object, **environment: str) -> tuple[Mapping[str, object], dict[str, str]]:
    """What `--show-config` prints, as values and as origins."""
    text = sfumato(*arguments, "--show-config", **environment).stdout
    (table,) = tomllib.loads(text).values()
    origins = dict(line.split(" =", 1) for line in text.splitlines()[1:])
    return table, {name.removeprefix("# "): rest.rpartition("  # ")[2] for name, rest in origins.items()}


@pytest.mark.parametrize("level", range(4))
def test_the_first_that_is_given_wins(tmp_path, level):
    given = dict(list(VALUES.items())[level:])
    file = written(tmp_path, f"[serve]\nport = {VALUES['file']}\n")
    arguments = [
        "serve",
        *(["--port", 1] if "--port" in given else []),
        *(["--config", file] if "file" in given else []),
    ]
    environment = {name: str(value) for name, value in given.items() if name.startswith("SFUMATO")}
    table, origins = settings(*arguments, **environment)
    assert table["port"] == next(iter(given.values()))
    assert origins["port"] == ["command line", "environment, SFUMATO_SERVE_PORT", f"file, {file}", "default"][level]


def test_what_is_shown_is_a_file_that_gives_the_same(tmp_path):
    how = ["--threads", 2, "--provider", "cpu", "--access-log", "--max-rate", 1.5, "--allowed-host", 'a"b\\é', "x", "y"]
    table, _ = settings("serve", *how)
    again, origins = settings("serve", "--config", written(tmp_path, sfumato("serve", *how, "--show-config").stdout))
    assert again == table and table["model"] == ["x", "y"] and table["access_log"] is True
    assert {origin for name, origin in origins.items() if name in table} == {f"file, {tmp_path / 'sfumato.toml'}"}


def test_lists_and_flags_come_from_the_environment_too(tmp_path):
    table, _ = settings(
        "serve", SFUMATO_SERVE_MODEL="a b", SFUMATO_SERVE_ALLOWED_HOST="x.org y.org", SFUMATO_SERVE_ACCESS_LOG="true"
    )
    assert (table["model"], table["allowed_host"], table["access_log"]) == (["a", "b"], ["x.org", "y.org"], True)
    file = written(tmp_path, "[classify]\nserver = 'http://x'\ntop = 2\n")
    table, _ = settings("classify", SFUMATO_CLASSIFY_CONFIG=str(file), SFUMATO_CLASSIFY_TIMEOUT="2.5")
    assert (table["top"], table["timeout"]) == (2, 2.5)


def test_every_option_has_a_variable_and_a_name_of_its_own():
    for name in CONFIGURED:
        params = get_command(app).commands[name].params  # type: ignore[attr-defined]
        names = [name_of(param) for param in params]
        assert len(names) == len(set(names)) > 5
        assert variable_of(name, params[-1]) == f"SFUMATO_{name.upper()}_SHOW_CONFIG"


def test_a_file_that_lies_there_is_not_read_unless_it_is_named(tmp_path):
    written(tmp_path, "[serve]\nport = 3\n")
    assert "port = 8080" in sfumato("serve", "--show-config", cwd=tmp_path).stdout


def test_settings_that_are_used_by_a_command(tmp_path, tiny_bundles):
    """Required options, and those of a group, too; other commands' tables are for other commands."""
    obfuscator, classifier = tiny_bundles
    with running([ServedModel(classifier.path)], token="top-secret") as url:
        text = f"[classify]\nserver = '{url}'\nbundle = '{obfuscator.path}'\ntoken_file = 'token'\n[serve]\nport = 1\n"
        written(tmp_path, "top-secret", "token")
        done = sfumato("doctor", obfuscator.path, "--json", cwd=tmp_path, code=1, SFUMATO_DOCTOR_SERVER=url)
        assert "401" in done.stdout and "--token-file" in done.stdout
        environment = {"SFUMATO_DOCTOR_SERVER": url, "SFUMATO_TOKEN": "top-secret"}
        assert json.loads(sfumato("doctor", obfuscator.path, "--json", **environment).stdout)["ok"]
        (tmp_path / "a.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
        file = written(tmp_path, text)
        done = sfumato("classify", "a.png", "--config", file, "--json", cwd=tmp_path)
        assert len(json.loads(done.stdout)["predictions"]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serve]\nprot = 1\n", "[serve] has no setting 'prot'; did you mean port?"),
        ("[serve]\ntoken = 'top-secret'\n", "[serve] has no setting 'token'; did you mean token_file?"),
        ("[serve]\nconfig = ['x']\n", "[serve] has no setting 'config'"),
        ("[serv]\nport = 1\n", "'serv' is no table of settings; known are serve, studio, classify, doctor"),
        ("port = 1\n", "'port' is no table of settings"),
        ("[classify]\ntop = 'x'\n", "top in [classify] has to be a whole number, got a string"),
        ("[serve]\nport = true\n", "port in [serve] has to be a whole number, got true or false"),
        ("[serve]\nport = 80.5\n", "port in [serve] has to be a whole number, got a number"),
        ("[serve]\nmax_rate = '5'\n", "max_rate in [serve] has to be a number, got a string"),
        ("[serve]\naccess_log = 'no'\n", "access_log in [serve] has to be true or false, got a string"),
        ("[serve]\ntoken_file = ['top-secret']\n", "token_file in [serve] has to be a string, got a list"),
        ("[serve]\nprovider = 'cpu'\n", "provider in [serve] has to be a list, each a string, got a string"),
        ("[serve]\nprovider = [1]\n", "provider in [serve] has to be a list, each a string, got a list"),
        ("[serve\n", "is not TOML"),
    ],
)
def test_files_that_are_refused(tmp_path, text, said):
    done = sfumato("serve", "--config", written(tmp_path, text), code=1)
    assert said in done.stderr and "sfumato.toml" in done.stderr and "top-secret" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "code", "said"),
    [
        ("SFUMATO_SERVE_TOKENFILE", "top-secret", 1, "SFUMATO_SERVE_TOKENFILE is no setting of sfumato; did you mean"),
        ("SFUMATO_SERVE_PORT", "http", 2, "SFUMATO_SERVE_PORT)"),
        ("SFUMATO_SERVE_PORT", "70000", 2, "SFUMATO_SERVE_PORT)"),
        ("SFUMATO_SERVE_ENGINE", "rya", 2, "SFUMATO_SERVE_ENGINE)"),
        ("SFUMATO_SERVE_CONFIG", "absent.toml", 1, "cannot read settings from absent.toml: No such file"),
    ],
)
def test_variables_that_are_refused(variable, value, code, said):
    done = sfumato("serve", code=code, **{variable: value})
    assert said in " ".join(done.stderr.split()) and "top-secret" not in done.stderr


def test_a_value_out_of_range_is_said_to_come_from_the_file(tmp_path):
    done = sfumato("serve", "--config", written(tmp_path, "[serve]\nport = 70000\n"), code=2)
    assert "sfumato.toml" in done.stderr and "--port" in done.stderr


def test_two_files_are_joined_unless_they_disagree(tmp_path):
    one = written(tmp_path, "[serve]\nport = 1\nthreads = 2\n", "one.toml")
    two = written(tmp_path, "[serve]\nport = 1\nmax_batch = 3\n", "two.toml")
    table, origins = settings("serve", "--config", one, "--config", two)
    assert (table["port"], table["threads"], table["max_batch"]) == (1, 2, 3)
    assert origins["threads"] == f"file, {one}" and origins["max_batch"] == f"file, {two}"
    written(tmp_path, "[serve]\nport = 2\n", "two.toml")
    done = sfumato("serve", "--config", one, "--config", two, code=1)
    assert f"{one} and {two} disagree about port" in done.stderr


def test_secrets_are_not_shown():
    text = sfumato(
        *(
            "classify",
            "--server",
            "https://user:top-secret@x.org/v?key=top-secret",
            "--template",
            '{"key": "top-secret"}',
        ),
        *("--proxy", "http://top-secret@proxy:1", "--show-config"),
        SFUMATO_TOKEN="top-secret",
    ).stdout
    assert "top-secret" not in text
    assert 'server = "https://***@x.org/v?***"' in text and '# token = "***"' in text and "SFUMATO_TOKEN" in text


def test_other_commands_have_neither_files_nor_variables():
    assert "--config" not in sfumato("protect", "--help").stdout
    sfumato("frontier", "absent", code=1, SFUMATO_FRONTIER_ANYTHING="1")
