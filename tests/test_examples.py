"""The examples that run until Ctrl-C, and the parts of those that users copy; `test_docs.py` runs the others."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.staticfiles import StaticFiles

from apps.studio.test_npm_package import node_version
from recording import Exchange, client, expected_probabilities, leaked, recording, respond_well
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud import ServedModel, running
from sfumato.device import Client, Obfuscator, load_image
from tiny import LABELS, SIZE, image, logits, save_split_bundles

FOLDER = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    """A script, loaded but not run."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def jpeg(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image(seed)).save(content, "JPEG")
    return content.getvalue()


def down(exchange: Exchange) -> None:
    exchange.reply(503)


class Stopped(Exception):
    """The end of the test's script."""


def stop() -> None:
    raise Stopped


def while_it_sleeps(*steps: Callable[[], object]) -> SimpleNamespace:
    """In place of `time`: each sleep takes no time, and does the next step."""
    rest: Iterator[Callable[[], object]] = iter([*steps, stop])
    return SimpleNamespace(sleep=lambda seconds: next(rest)())


def test_a_watched_folder_survives_half_files_a_server_that_is_down_and_a_restart(
    tmp_path: Path, obfuscator_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    script, camera, out = example("watched_folder"), tmp_path / "camera", tmp_path / "results.jsonl"
    camera.mkdir()
    first, second = camera / "a.jpg", camera / "b.jpeg"
    first.write_bytes(jpeg(0)[:200])

    def run(*steps: Callable[[], object]) -> None:
        script.time = while_it_sleeps(*steps)
        with client(server, obfuscator_bundle) as device, pytest.raises(Stopped):
            script.watch(device, camera, out)

    with recording(infer=down) as server:
        run(
            lambda: first.write_bytes(jpeg(0)),
            lambda: None,
            lambda: server.behaviours.update(infer=down),  # the retry fails, too
            lambda: server.behaviours.update(infer=respond_well),
            lambda: None,
        )
        assert len(out.read_text().splitlines()) == 1
        with out.open("a") as stream:
            stream.write('{"file": "b.j')
        second.write_bytes(jpeg(1))
        run(lambda: None, lambda: None)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["file"] for line in found] == ["a.jpg", "b.jpeg"]
    for line, file in zip(found, (first, second), strict=True):
        pixels = np.asarray(load_image(file))
        expected = expected_probabilities(pixels)
        assert line["label"] == LABELS[expected.argmax()]
        assert line["probability"] == pytest.approx(expected.max(), abs=1e-3)
        assert leaked(server.recorded, pixels) == set()
    assert "next try in 1 s" in (said := capsys.readouterr().err) and "next try in 2 s" in said


def upload(app: Any, body: bytes) -> tuple[int, dict[str, Any]]:
    """What the app responds to an image, without a server."""
    sent: list[dict[str, Any]] = []
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    scope |= {"path": "/classify", "raw_path": b"/classify", "query_string": b"", "root_path": "", "headers": []}
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(parts, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def whole() -> None:
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(whole())
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_a_service_labels_what_is_uploaded_and_sends_no_image(
    obfuscator_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("aiohttp")
    service = example("fastapi_service")
    monkeypatch.setenv("SFUMATO_BUNDLE", str(obfuscator_bundle.path))
    with recording() as server:
        monkeypatch.setenv("SFUMATO_SERVER", server.url)
        status, found = upload(service.app, jpeg(0))
        assert upload(service.app, b"no image")[0] == 422
        monkeypatch.setattr(service, "MAX_IMAGE_BYTES", 10)
        assert upload(service.app, jpeg(0))[0] == 413
    assert server.paths.count("/v2/models/tiny/infer") == 1
    pixels = np.asarray(load_image(jpeg(0)))
    assert (status, found["label"]) == (200, LABELS[expected_probabilities(pixels).argmax()])
    assert found["predicted_by"] == "cloud" and found["payload_bytes"] > 0
    assert leaked(server.recorded, pixels) == set()


def test_a_lorawan_bridge_turns_uplinks_of_one_byte_into_predictions(tmp_path: Path) -> None:
    script = example("lorawan_bridge")
    obfuscator, classifier = save_split_bundles(tmp_path)
    device = Obfuscator(obfuscator, split=True)
    with (
        running([ServedModel(classifier.path, name="tiny-split", decoder=obfuscator.path)]) as url,
        Client(url, obfuscator, split=True) as known,
    ):
        for seed in range(3):
            payload = script.payload_of(device, image(seed))
            assert len(payload) == 1
            text = base64.b64encode(payload).decode()
            for uplink in ({"uplink_message": {"frm_payload": text}}, {"data": text, "fPort": 1}):
                label, probability = script.classify(uplink, url, obfuscator)
                expected = known.classify(image(seed))
                assert (label, probability) == (expected.label, pytest.approx(expected.probability, abs=1e-5))
        with pytest.raises(ValueError, match="got 2 bytes; the model takes UINT8 of"):
            script.classify({"data": base64.b64encode(b"ab").decode()}, url, obfuscator)
        with pytest.raises(ValueError, match="no payload"):
            script.classify({"deviceInfo": {}}, url, obfuscator)


RUNTIME = """
export const env = { wasm: {} };
export class Tensor {
  constructor(type, data, dims) { Object.assign(this, { type, data, dims }); }
}
const noise = (values) => Float32Array.from(values, (_, i) => Math.sin(12.9898 * i * i));
const run = async (feed) => ({ out: { data: noise(feed.image.data) } });
export const InferenceSession = { create: async () => ({ inputNames: ["image"], outputNames: ["out"], run }) };
"""
"""In place of ONNX Runtime Web: an obfuscator that makes the same noise of every image."""
BROWSER = """
const [page, pixels] = process.argv.slice(2);
const elements = { file: { disabled: true }, result: {} };
globalThis.location = { href: page };
globalThis.document = { baseURI: page, getElementById: (id) => elements[id] };
await import("./script.mjs");
const said = [elements.result.textContent, elements.file.disabled];
for (const image of [{ width: 8, height: 8, data: Uint8Array.from(Buffer.from(pixels, "base64")) }, "no image"]) {
  elements.file.files = [image];
  await elements.file.onchange();
  said.push(elements.result.textContent);
}
console.log(JSON.stringify(said));
"""
"""In place of a browser, which `apps/studio` has: a page of two elements."""


@pytest.mark.skipif(node_version() < 20, reason="needs Node 20")
def test_the_script_of_the_web_page_labels_an_image(
    obfuscator_bundle: Bundle, classifier_bundle: Bundle, tmp_path: Path
) -> None:
    page = (FOLDER / "web_page" / "index.html").read_text(encoding="utf-8")
    found, script = (re.search(rf'type="{kind}">(.*?)</script>', page, re.DOTALL) for kind in ("importmap", "module"))
    assert found is not None and script is not None
    imports, text = json.loads(found[1])["imports"], script[1]
    for name, place in imports.items():
        text = text.replace(f'from "{name}"', f'from "{place}"')
    shutil.copytree(FOLDER.parent / "src" / "sfumato" / "apps" / "studio" / "js", tmp_path / "sfumato")
    shutil.copytree(obfuscator_bundle.path, tmp_path / "bundle")
    (tmp_path / "onnxruntime-web").mkdir()
    (tmp_path / imports["onnxruntime-web/wasm"]).write_text(RUNTIME)
    (tmp_path / "script.mjs").write_text(text)
    (tmp_path / "browser.mjs").write_text(BROWSER)
    with running([ServedModel(classifier_bundle.path)], pages=StaticFiles(directory=tmp_path)) as url:
        pixels = base64.b64encode(image().tobytes()).decode()
        command = ["node", str(tmp_path / "browser.mjs"), f"{url}/index.html", pixels]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    before, disabled, labelled, refused = json.loads(done.stdout)
    assert (before, disabled) == ("Choose an image.", False)
    noise = np.sin(12.9898 * np.arange(3 * SIZE * SIZE) ** 2).astype(np.float32).reshape(1, 3, SIZE, SIZE)
    assert re.fullmatch(rf"{LABELS[logits(noise).argmax()]} \(\d+ %\); \d+ bytes sent", labelled), labelled
    assert refused.startswith("an image must be"), refused
