"""The page in a real browser: correct predictions, and an image that is not sent."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from apps.studio.browsing import drop, open_page, photo, png
from apps.studio.conftest import Tap
from recording import leaked
from sfumato import cloud
from sfumato.apps.studio import Pages, collect
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.records import RecipeRecord
from sfumato.device import Client, Obfuscator
from sfumato.device.image import fit

pytestmark = pytest.mark.browser

MOST_BYTES = 5_000_000


def choose(page: Any, bundle: Bundle) -> None:
    page.locator("#bundle").select_option(label=bundle.recipe.name)


def wait_until_shown(page: Any, name: str) -> None:
    """Waits until all that is shown belongs to the image of that name."""
    page.locator("#original-note", has_text=name).wait_for()
    page.locator("#flow[aria-busy=false]").wait_for()


def test_a_dropped_image_gets_the_correct_prediction_and_is_not_sent(
    browser: Any, tap: Tap, bundles: list[Bundle], server: str
) -> None:
    """The acceptance test: the prediction is Python's, and no byte of the image or its file is among those sent."""
    with Client(server, bundles[1]) as client:
        sample = next(s for s in shipped.samples() if client.classify(s.pixels).label == s.label)
        wide = photo()
        expected = {"sample.png": client.classify(sample.pixels), "wide.png": client.classify(wide)}
    page, asked = open_page(browser, tap.url)
    choose(page, bundles[1])
    wait_until_shown(page, "test-")
    for name, pixels in (("sample.png", sample.pixels), ("wide.png", wide)):
        posts = tap.requests(b"POST")
        drop(page, png(pixels), name)
        wait_until_shown(page, name)
        prediction = expected[name]
        assert page.locator("#cloud-prediction .label").inner_text() == prediction.label
        assert page.locator("#cloud-prediction b").first.inner_text() == f"{prediction.probability:.0%}".replace(
            "%", " %"
        )
        assert page.locator("#verdict").inner_text().startswith(f"{prediction.label}: predicted by the cloud")
        assert tap.requests(b"POST") == posts + 1
        shown = page.locator("#payload-facts dd").first.inner_text()
        sent = re.findall(rb"\ncontent-length: (\d+)", bytes(tap.recorded).lower())[-1]
        assert shown == f"{int(sent):,}"
        recorded, preprocessing = bytes(tap.recorded), bundles[1].preprocessing
        assert leaked(recorded, fit(pixels, 32, 32), preprocessing) == set()
        file = png(pixels)
        assert not [i for i in range(40, len(file) - 24, 24) if file[i : i + 24] in recorded]
        assert name.encode() not in recorded
    dump = page.locator("#inspector-body pre").nth(1).text_content()
    body = bytes.fromhex("".join(line[8:55] for line in dump.splitlines()))
    assert body in recorded, "the inspector shows the very bytes"
    assert len(body) == int(sent)
    assert {url.split("/")[2] for url in asked} == {tap.url.split("/")[2]}
    send = "(text) => fetch('/', { method: 'POST', body: Uint8Array.from(atob(text), (c) => c.charCodeAt(0)) })"
    page.evaluate(f"{send[:-1]}).then(() => 1)", base64.b64encode(fit(wide, 32, 32).tobytes()).decode())
    assert leaked(bytes(tap.recorded), fit(wide, 32, 32), preprocessing) == {"uint8 HWC"}, "this test can fail"
    page.context.close()


def test_what_the_device_is_sure_of_is_not_sent_unless_the_visitor_wants_it(
    browser: Any, tap: Tap, bundles: list[Bundle]
) -> None:
    decisions = Obfuscator(bundles[0]).decide_batch([sample.pixels for sample in shipped.samples()])
    place = next(i for i, decision in enumerate(decisions) if decision.obfuscated is None)
    probabilities = decisions[place].probabilities
    assert probabilities is not None
    label = bundles[0].labels[int(np.argmax(probabilities))]
    page, _ = open_page(browser, tap.url)
    wait_until_shown(page, "test-")
    before = len(tap.recorded)
    page.locator("#samples button").nth(place).click()
    page.locator("#sent", has_text="not sent").wait_for()
    page.locator("#verdict", has_text="Nothing was sent.").wait_for()
    assert page.locator("#verdict").inner_text().startswith(label)
    assert "nothing was sent" in page.locator("#inspector-sum").inner_text()
    assert len(tap.recorded) == before, "not even a request for metadata"
    page.get_by_role("button", name="Send it anyway").click()
    page.locator("#verdict", has_text="predicted by the cloud").wait_for()
    assert tap.requests(b"POST", b"v2/models/cifar10-resnet20/infer") >= 1
    assert leaked(bytes(tap.recorded), shipped.samples()[place].pixels, bundles[0].preprocessing) == set()
    page.context.close()


def test_the_first_load_is_small(browser: Any, server: str) -> None:
    """All that is transferred until the first obfuscated image is on its way."""
    finished: dict[str, int] = {}
    page, asked = open_page(browser, "about:blank", ready=False)
    page.on("requestfinished", lambda request: finished.setdefault(request.url, request.sizes()["responseBodySize"]))
    page.goto(server)
    page.locator("#status", has_text="also offline").wait_for()
    first = asked[: next(i for i, url in enumerate(asked) if url.endswith("/infer"))]
    assert any(url.endswith(".wasm") for url in first)
    assert not any("deobfuscator" in url for url in first), "an attacker comes after the prediction"
    assert 2_000_000 < sum(finished.get(url, 0) for url in first) < MOST_BYTES
    page.context.close()


def test_without_the_network_all_but_the_clouds_prediction_works(page: Any, bundles: list[Bundle]) -> None:
    page.context.set_offline(True)
    choose(page, bundles[1])
    page.locator("#samples button").nth(5).click()
    page.locator("#original-note", has_text="test-0005").wait_for()
    page.locator("#asked", has_text="no response").wait_for()
    assert "The cloud did not respond" in page.locator("#verdict").inner_text()
    assert "the network or the server is gone" in page.locator("#cloud-prediction").inner_text()
    assert "reconstruct, as an attacker" in page.locator("#steps").inner_text()
    assert "offline" in page.locator("#status").inner_text()
    page.locator("#plain").check()
    page.locator("#plain-prediction .bars").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.locator("#verdict", has_text="predicted by the cloud").wait_for()


def test_what_is_no_image_is_refused_and_nothing_is_left_of_the_last_one(browser: Any, tap: Tap) -> None:
    page, _ = open_page(browser, tap.url)
    for content in (b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50), png(photo())[:400]):
        before = len(tap.recorded)
        drop(page, content)
        page.locator("#problem", has_text="not an image that the browser can decode").wait_for()
        assert page.locator("#verdict").inner_text() == "Nothing was sent."
        assert page.locator("#cloud-prediction").inner_text() == ""
        assert page.evaluate("[...document.querySelectorAll('.flow canvas')].map((c) => c.width)") == [1, 1, 1]
        assert len(tap.recorded) == before
        page.locator("#samples button").first.click()
        wait_until_shown(page, "test-0000")
        assert page.locator("#problem").is_hidden()
    page.context.close()


def test_the_camera(page: Any) -> None:
    page.get_by_role("button", name="Use the camera").click()
    page.locator("#video").wait_for()
    page.locator("#shoot:enabled").click()  # once the camera has shown something
    wait_until_shown(page, "the camera's image")
    assert page.evaluate("document.getElementById('video').srcObject") is None, "the camera is let go"


def test_a_missing_camera_is_said(page: Any) -> None:
    for change, says in (
        ("() => { throw new DOMException('', 'NotFoundError'); }", "no camera was found"),
        ("() => { throw new DOMException('', 'NotAllowedError'); }", "the camera was not allowed"),
        ("undefined", "use https or localhost"),
    ):
        page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {change}; }}")
        page.get_by_role("button", name="Use the camera").click()
        page.locator("#problem", has_text=says).wait_for()


def test_missing_web_assembly_is_said(browser: Any, tap: Tap) -> None:
    page, _ = open_page(browser, tap.url, before="delete window.WebAssembly;", ready=False)
    page.locator("#problem", has_text="no WebAssembly").wait_for()
    assert tap.requests(b"POST") == 0
    page.context.close()


def test_the_browser_itself_refuses_other_hosts(bench: Any) -> None:
    code = """(ask) => new Promise((done) => {
      addEventListener("securitypolicyviolation", ({ effectiveDirective }) => done(effectiveDirective), { once: true });
      if (ask === "fetch") fetch("https://example.org/").catch(() => {});
      else new Image().src = "https://example.org/x.png";
    })"""
    assert bench.evaluate(code, "fetch") == "connect-src"
    assert bench.evaluate(code, "image") == "img-src"


def test_the_plot_is_worked_with_the_keyboard(page: Any, bundles: list[Bundle]) -> None:
    page.locator("#point h2").wait_for()
    chosen = page.locator("#plot [role=option][aria-selected=true]")
    assert bundles[0].recipe.name in chosen.get_attribute("aria-label")
    seen = [page.locator("#point h2").inner_text()]
    chosen.focus()
    for key in ("Home", "End", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
        seen.append(page.locator("#point h2").inner_text())
    assert len(set(seen)) >= 3
    points = page.locator("#plot [role=option]").count()
    page.locator("#zoom").check()
    assert 3 < page.locator("#plot [role=option]").count() < points


def test_everything_has_a_name_and_fits_a_phone(browser: Any, server: str) -> None:
    page, _ = open_page(browser, server, viewport={"width": 390, "height": 844})
    unnamed = """() => [...document.querySelectorAll("button, input, select, canvas[role], [role=option]")].filter(
      (e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.context.close()


def test_bundles_that_differ_by_their_dial_get_a_slider(browser: Any, tmp_path: Path) -> None:
    made = []
    for bits in (8, 2, 5):
        bundle, classifier = tiny.save_bundles(tmp_path / str(bits))
        recipe = RecipeRecord(kind="sketch", name=f"sketch-{bits}", code_bits=bits)
        made.append(replace(bundle, recipe=recipe).save())
    with cloud.running([cloud.ServedModel(classifier.path)], pages=Pages(collect(made, classifier))) as url:
        page, _ = open_page(browser, url)
        assert page.locator("#dial-value").inner_text() == "8"
        page.locator("#dial").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#dial-value").inner_text() == "5"
        assert page.locator("#bundle option:checked").inner_text() == "sketch-5"
        page.locator("#reconstructed-note", has_text="There is no deobfuscator").wait_for()
        page.context.close()
