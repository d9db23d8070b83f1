"""Measures the page of `sfumato studio` in a headless Chromium: first load, speed, and agreement with Python.

`python benchmarks/studio.py` writes results/studio.json
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import typer
from playwright.sync_api import sync_playwright

from sfumato import cloud
from sfumato.apps.studio import Pages, assets, collect
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.device import Obfuscator, prepare

ROUNDS = 5
IMAGES = 100
OBFUSCATE = """async ({ place, images, rounds }) => {
  const { loadBundle } = await import("/js/sfumato.js");
  const { ort } = await import("/page/models.js");
  const bundle = await loadBundle(`/bundles/${place}/`, { ort });
  const times = [];
  let outputs = [];
  for (let round = -1; round < rounds; round++) {  // the first round warms up
    outputs = [];
    for (const text of images) {
      const data = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      const decision = await bundle.decide({ width: 32, height: 32, data }, { gate: false });
      if (round >= 0) times.push(decision.milliseconds);
      outputs.push([...decision.obfuscated.tensor]);
    }
  }
  return { times, outputs };
}"""


def main(out: Path = Path("results/studio.json")) -> None:
    """Measure, and write the results file."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium was found: install Debian's chromium")
    bundles = [Bundle.load(path) for path in (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle())]
    classifier = Bundle.load(shipped.classifier_bundle())
    pages = Pages(collect(bundles, classifier))
    with (
        cloud.running([cloud.ServedModel(classifier.path)], pages=pages) as url,
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=chromium) as browser,
    ):
        page = browser.new_page()
        first_load = _first_load(page, url)
        measured = {b.recipe.name: _obfuscator(page, place, b) for place, b in enumerate(bundles)}
        version = browser.version
    write_json(
        out,
        {
            "what": "the page of `sfumato studio`; one 3x32x32 image at a time, ONNX Runtime Web, wasm, one thread",
            "first_load": first_load,
            "obfuscators": measured,
            "images": IMAGES,
            "rounds": ROUNDS,
            "load_average": os.getloadavg()[0],
            "browser": f"Chromium {version}",
            "runtime": json.loads((assets.RUNTIME / "version.json").read_text(encoding="utf-8")),
            "measured": provenance().to_json(),
        },
    )
    for name, figures in measured.items():
        print(f"{name}: {figures['obfuscate_ms']['median']:.2f} ms, differs by {figures['largest_difference']:.1e}")
    print(f"first load {first_load['bytes'] / 1e6:.2f} MB -> {out}")


def _first_load(page: Any, url: str) -> dict[str, Any]:
    """Return the bytes of all responses, as transferred, until the first obfuscated image is sent."""
    asked: list[str] = []
    sizes: dict[str, int] = {}
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfinished", lambda request: sizes.setdefault(request.url, _transferred(request)))
    page.goto(url)
    page.locator("#status", has_text="also offline").wait_for()
    place = next(place for place, address in enumerate(asked) if address.endswith("/infer"))
    before = {address.removeprefix(url): sizes.get(address, 0) for address in asked[:place]}
    return {"bytes": sum(before.values()), "by_file": before, "bytes_until_offline": sum(sizes.values())}


def _transferred(request: Any) -> int:
    """Return the bytes of a response's body as transferred, compressed."""
    size: int = request.sizes()["responseBodySize"]
    return size


def _obfuscator(page: Any, place: int, bundle: Bundle) -> dict[str, Any]:
    real = np.stack([sample.pixels for sample in shipped.samples()])
    pixels = np.concatenate([real, real[:, :, ::-1], real[:, ::-1]])[:IMAGES]  # as they are, mirrored, upside down
    texts = [base64.b64encode(np.ascontiguousarray(image).tobytes()).decode() for image in pixels]
    found = page.evaluate(OBFUSCATE, {"place": place, "images": texts, "rounds": ROUNDS})
    here = Obfuscator(bundle)(np.stack([prepare(image, bundle.preprocessing) for image in pixels]))
    there = np.array(found["outputs"], np.float32).reshape(here.shape)
    times = found["times"]
    return {
        "obfuscate_ms": {
            "median": statistics.median(times),
            "percentile_95": statistics.quantiles(times, n=20)[-1],
            "smallest": min(times),
        },
        "largest_difference": float(np.abs(there - here).max()),
        "largest_difference_relative": float((np.abs(there - here) / np.maximum(1, np.abs(here))).max()),
        "largest_value": float(np.abs(here).max()),
    }


if __name__ == "__main__":
    typer.run(main)
