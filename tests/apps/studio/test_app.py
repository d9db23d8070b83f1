"""What the page's server hands out, with which headers, and what it does not."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfumato
from sfumato import cloud
from sfumato.apps.studio import Pages, assets, collect
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.errors import BundleError, ServingError
from tiny import save_bundles

PACKAGE = Path(assets.__file__).parent
ROOT = Path(__file__).parents[3]
TOKEN = "s3cret"


@pytest.fixture(scope="module")
def url(stand_in: Path, tiny_bundles: tuple[Bundle, Bundle]) -> Iterator[str]:
    obfuscator, classifier = tiny_bundles
    pages = Pages(collect([obfuscator, obfuscator], classifier))
    with cloud.running([cloud.ServedModel(classifier.path)], token=TOKEN, pages=pages) as url:
        yield url


def ask(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    """One request, its path as it is given: nothing is tidied up on the way."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=5)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_the_page_and_everything_it_loads_are_there(url: str) -> None:
    status, page, headers = ask(url, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page == (PACKAGE / "page" / "index.html").read_bytes()
    linked = re.findall(r'(?:src|href)="(/[^"]+)"', page.decode())
    assert {"/page/studio.js", "/page/studio.css"} <= set(linked)
    scripts = [*(PACKAGE / "page").glob("*.js"), *(PACKAGE / "js").glob("*.js")]
    for file in scripts:
        imported = re.findall(r'(?:from |import\()"([./][^"]+)"', file.read_text(encoding="utf-8"))
        linked += [urllib.parse.urljoin(f"/{file.parent.name}/", name) for name in imported]
    for path in linked:
        assert ask(url, path)[0] == 200, path


def test_a_bundle_is_served_as_it_is_but_not_its_weights(url: str, obfuscator_bundle: Bundle) -> None:
    manifest = (obfuscator_bundle.path / "bundle.json").read_bytes()
    assert json.loads(ask(url, "/bundles/1/bundle.json")[1]) == json.loads(manifest)
    onnx_file = (obfuscator_bundle.path / "obfuscator.onnx").read_bytes()
    assert ask(url, "/bundles/1/obfuscator.onnx")[1] == onnx_file
    assert ask(url, "/bundles/0/obfuscator.safetensors")[0] == 404
    site = json.loads(ask(url, "/studio.json")[1])
    assert site["bundles"] == ["/bundles/0/", "/bundles/1/"]
    assert site["samples"]["labels"] == [sample.label for sample in shipped.samples()]
    assert ask(url, "/samples.png")[1] == shipped.SHEET.read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/page/../assets.py",
        "/page/../../errors.py",
        "/page/%2e%2e/assets.py",
        "/page/..%2fapp.py",
        "/page/..\\assets.py",
        "/bundles/0/../../../bundle.py",
        "/bundles/2/bundle.json",
        "/bundles/-1/bundle.json",
        "//etc/passwd",
        "/etc/passwd",
        "/page/",
        "/page",
        "/page/index.html%00.png",
        "/onnxruntime-web/version.json",
        "/assets.py",
    ],
)
def test_nothing_else_is_there(url: str, path: str) -> None:
    status, body, headers = ask(url, path)
    assert (status, body) == (404, b"there is no such page\n")
    assert headers["Content-Security-Policy"] == assets.POLICY


@pytest.mark.parametrize("path", ["/", "/js/sfumato.js", "/nothing", "/bundles/0/obfuscator.onnx"])
def test_the_browser_is_told_to_contact_no_other_origin(url: str, path: str) -> None:
    _, _, headers = ask(url, path)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    sources = {word for value in policy.values() for word in value.split()}
    assert sources == {"'none'", "'self'", "'wasm-unsafe-eval'"}
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "camera=(self)" in headers["Permissions-Policy"]


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate, br", "br"), ("gzip", "gzip"), ("br;q=0, gzip", "gzip"), ("identity", None), ("", None)],
)
def test_the_smallest_form_that_is_understood_is_sent(url: str, accepted: str, encoding: str | None) -> None:
    path = "/onnxruntime-web/ort-wasm-simd-threaded.wasm"
    status, body, headers = ask(url, path, Accept_Encoding=accepted)
    assert (status, headers["Content-Encoding"]) == (200, encoding)
    assert headers["Content-Type"] == "application/wasm"
    plain = b"content of ort-wasm-simd-threaded.wasm"
    opened = {"br": lambda: b"as if compressed by brotli", "gzip": lambda: gzip.decompress(body), None: lambda: body}
    assert opened[encoding]() == (body if encoding == "br" else plain)
    text = ask(url, "/js/sfumato.js", Accept_Encoding="gzip, br")
    assert text[2]["Content-Encoding"] == "gzip"
    assert gzip.decompress(text[1]) == (PACKAGE / "js" / "sfumato.js").read_bytes()


def test_what_the_browser_has_is_not_sent_again(url: str) -> None:
    _, body, headers = ask(url, "/page/studio.js")
    assert ask(url, "/page/studio.js", If_None_Match=headers["ETag"])[:2] == (304, b"")
    assert ask(url, "/page/studio.js", If_None_Match='"other"')[:2] == (200, body)


def test_methods(url: str) -> None:
    status, body, headers = ask(url, "/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000
    for method in ("POST", "PUT", "DELETE"):
        assert ask(url, "/", method, Content_Length="0")[0] == 405


def test_the_token_is_for_the_models_alone(url: str) -> None:
    assert ask(url, "/v2")[0] == 401
    assert ask(url, "/v2/models/tiny", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(url, "/v2/nothing", Authorization=f"Bearer {TOKEN}")[0] == 404
    assert ask(url, "/v2x")[0] == 401  # not handed to the pages


def test_without_onnx_runtime_web_the_error_says_what_to_do(
    tiny_bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(assets, "RUNTIME", tmp_path / "nothing")
    with pytest.raises(ServingError, match=r"lacks ONNX Runtime Web.*install npm.*pip install"):
        collect([tiny_bundles[0]], tiny_bundles[1])
    monkeypatch.setattr(assets, "RUNTIME", tmp_path)  # broken off before it was complete
    (tmp_path / "ort-wasm-simd-threaded.wasm.gz").write_bytes(b"")
    with pytest.raises(ServingError, match="lacks ONNX Runtime Web"):
        collect([tiny_bundles[0]], tiny_bundles[1])
    with pytest.raises(ServingError, match="at least one obfuscator"):
        collect([], tiny_bundles[1])


def test_a_deobfuscator_that_was_not_shipped_is_not_handed_to_browsers(stand_in: Path, tmp_path: Path) -> None:
    obfuscator, classifier = save_bundles(tmp_path)
    (obfuscator.path / "deobfuscator.onnx").write_bytes((obfuscator.path / "obfuscator.onnx").read_bytes())
    with pytest.raises(BundleError, match="sfumato export --device"):
        collect([obfuscator.save()], classifier)
    samples = [Bundle.load(path) for path in (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle())]
    table = collect(samples, Bundle.load(shipped.classifier_bundle()))
    assert {"/bundles/0/deobfuscator.onnx", "/bundles/1/deobfuscator.onnx"} <= table.keys()


def test_no_file_of_the_page_names_another_host() -> None:
    for file in (*(PACKAGE / "page").iterdir(), *(PACKAGE / "js").iterdir()):
        named = set(re.findall(r"(?:https?:)?//([a-z0-9-]+(?:\.[a-z0-9-]+)+)", file.read_text(encoding="utf-8")))
        assert named <= {"www.w3.org", "classify.example.org"}, file  # a namespace, and an example in a comment


def test_the_types_are_those_of_the_module() -> None:
    module, types = ((PACKAGE / "js" / name).read_text(encoding="utf-8") for name in ("sfumato.js", "sfumato.d.ts"))
    exported = set(re.findall(r"^export class (\w+)", module, re.M))
    for names in re.findall(r"^export \{([^}]+)\}", module, re.M):
        exported |= {name.strip() for name in names.split(",")}
    assert exported == set(re.findall(r"^export (?:class|function) (\w+)", types, re.M))
    described = json.loads((PACKAGE / "js" / "package.json").read_text(encoding="utf-8"))
    assert described["version"] == sfumato.__version__


def test_the_plot_shows_the_audits_that_were_run() -> None:
    from sfumato.lab.audit.points import collect as audited

    shown = json.loads(assets.FRONTIER.read_text(encoding="utf-8"))["points"]
    current = audited(ROOT / "results" / "audits")
    wanted = [{**point.as_json, "role": None} for point in current]
    assert [{**point, "role": None} for point in shown] == wanted, "run: make frontier"


def test_the_command_serves_and_stops(tmp_path: Path) -> None:
    if not (assets.RUNTIME / "version.json").is_file():
        pytest.skip("ONNX Runtime Web was not built in: npm was missing when sfumato was installed")
    command = [sys.executable, "-m", "sfumato", "studio", "--port", "0", "--json"]
    environment = {**os.environ, "SFUMATO_TOKEN": TOKEN}  # is for other servers of the user's; the page has no token
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert ask(told["url"], "/")[0] == 200
    assert ask(told["url"], f"/v2/models/{told['model']}")[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=15) == ("", "")
    assert process.returncode == 0
    done = subprocess.run([*command, "-o", str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} is not a bundle")


def test_a_rebound_name_reaches_neither_page_nor_model(url: str) -> None:
    for path in ("/", "/v2", "/js/sfumato.js"):
        assert ask(url, path, Host="evil.example")[0] == 421
        assert ask(url, path, Origin="http://evil.example")[0] == 403


def test_a_large_file_is_unpacked_once_for_all(url: str, stand_in: Path) -> None:
    asset = assets.Asset("text/plain", {"gzip": gzip.compress(b"a")}, "x")
    assert asset.body("identity")[1] is asset.body("")[1]
