"""The page and the module in a real browser: right answers, and a picture that stays where it is."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from recording import leaked
from sfumato import cloud, shipped, wire
from sfumato.bundle import Bundle
from sfumato.device import Client, Obfuscator, prepare
from sfumato.device.gating import softmax
from sfumato.device.picture import fit
from sfumato.studio import Pages, assets, collect
from studio.browsing import CHROMIUM, FLAGS, array, drop, module, open_page, png, rgb
from studio.conftest import Tap

if CHROMIUM is None:
    pytest.skip("no Chromium: install Debian's chromium", allow_module_level=True)
if not (assets.RUNTIME / "version.json").is_file():
    pytest.skip("ONNX Runtime Web is not built in: npm was missing at installation", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

TOLERANCE = 1e-5
PICTURES = 100
MOST_BYTES = 5_000_000
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def bundles() -> list[Bundle]:
    """The shipped obfuscators: the default, with a gate, and the paper's, without."""
    paths = (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle())
    return [Bundle.load(path, kind="obfuscator") for path in paths]


@pytest.fixture(scope="module")
def server(bundles: list[Bundle]) -> Iterator[str]:
    classifier = Bundle.load(shipped.classifier_bundle())
    with cloud.running([cloud.ServedModel(classifier.path)], pages=Pages(collect(bundles, classifier))) as url:
        yield url


@pytest.fixture
def tap(server: str) -> Iterator[Tap]:
    tap = Tap(server)
    yield tap
    tap.close()


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    page, _ = open_page(browser, server)
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def bench(browser: Any, server: str) -> Any:
    """A page that tests of the module share: they leave nothing behind."""
    return open_page(browser, server)[0]


@pytest.fixture(scope="module")
def pictures() -> Pixels:
    """The shipped pictures, the same mirrored, and upside down: (100, 32, 32, 3)."""
    real = np.stack([sample.pixels for sample in shipped.samples()])
    return np.concatenate([real, real[:, :, ::-1], real[:, ::-1]])[:PICTURES]


def photo(seed: int = 0, height: int = 150, width: int = 220) -> Pixels:
    """A picture in which no piece repeats: smooth shapes under grain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    shapes = [np.sin(rows / rng.uniform(9, 30)) * np.cos(columns / rng.uniform(9, 30)) for _ in range(3)]
    return (128 + 80 * np.stack(shapes, -1) + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)


def choose(page: Any, bundle: Bundle) -> None:
    page.locator("#bundle").select_option(label=bundle.recipe["name"])


def answered(page: Any, name: str) -> None:
    """Waits until all that is shown belongs to the picture of that name."""
    page.locator("#original-note", has_text=name).wait_for()
    page.locator("#flow[aria-busy=false]").wait_for()


# --- the module ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
def test_the_browser_computes_what_python_computes(
    bench: Any, bundles: list[Bundle], pictures: Pixels, place: int
) -> None:
    code = """
      const bundle = await sfumato.loadBundle(`/bundles/${given.place}/`, { ort });
      const outputs = [];
      for (const one of given.pictures) {
        const { probabilities, obfuscated } = await bundle.decide(picture(one), { gate: false });
        outputs.push([text(obfuscated.tensor), probabilities]);
      }
      return outputs;"""
    outputs = module(bench, code, {"place": place, "pictures": [rgb(pixels) for pixels in pictures]})
    expected, own = Obfuscator(bundles[place])._run(
        np.stack([prepare(p, bundles[place].preprocessing) for p in pictures])
    )
    got = np.stack([array(tensor, np.float32).reshape(3, 32, 32) for tensor, _ in outputs])
    # In float32, relative to values beyond 1: the paper's obfuscator makes some of 20 and more.
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
    if own is not None:
        assert np.abs(np.array([row for _, row in outputs]) - softmax(own)).max() <= TOLERANCE
        decided = [d.obfuscated is None for d in Obfuscator(bundles[place]).decide_batch(list(pictures))]
        code = code.replace("{ gate: false }", "{}").replace("text(obfuscated.tensor)", "obfuscated === null")
        told = module(bench, code, {"place": place, "pictures": [rgb(pixels) for pixels in pictures]})
        assert [stays for stays, _ in told] == decided


SIZES = [(150, 220), (97, 61), (1000, 33), (7, 9), (32, 32), (33, 32), (1, 1), (480, 641), (64, 64)]


@pytest.mark.parametrize("wanted", [(32, 32), (24, 40)])
def test_pictures_are_fitted_to_the_same_pixels(bench: Any, wanted: tuple[int, int]) -> None:
    """To the last bit, but for tall ones: there, Pillow 13 goes along columns first, and rounds otherwise."""
    pictures = [np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    code = "return given.pictures.map((one) => text(sfumato.fit(picture(one), ...given.wanted).data));"
    fitted = module(bench, code, {"pictures": [rgb(pixels) for pixels in pictures], "wanted": wanted})
    for pixels, got in zip(pictures, fitted, strict=True):
        difference = np.abs(array(got, np.uint8).reshape(*wanted, 3).astype(int) - fit(pixels, *wanted))
        tall = pixels.shape[0] * wanted[1] > pixels.shape[1] * wanted[0]
        assert difference.max() <= (1 if tall else 0), pixels.shape


def test_a_file_is_decoded_to_its_pixels(bench: Any) -> None:
    code = 'return text((await sfumato.loadPicture(new Blob([bytes(given)], { type: "image/png" }))).data);'
    pixels = photo(3)
    got = array(module(bench, code, base64.b64encode(png(pixels)).decode()), np.uint8)
    np.testing.assert_array_equal(got.reshape(pixels.shape), pixels)


def test_a_request_is_byte_for_byte_the_python_clients(bench: Any) -> None:
    values = np.random.default_rng(2).normal(size=(1, 3, 4, 4)).astype(np.float32)
    code = """
      const { encodeRequest } = await import("/js/wire.js");
      const values = new Float32Array(bytes(given.data).buffer);
      const { body, headers } = encodeRequest("input", [1, 3, 4, 4], values, given.output);
      return [text(body), headers];"""
    data = base64.b64encode(values.tobytes()).decode()
    for output in ("logits", "größe", None):
        body, headers = module(bench, code, {"data": data, "output": output})
        wanted = wire.encode_request(
            wire.InferRequest(
                inputs=(wire.Tensor("input", values),),
                outputs=() if output is None else (wire.RequestedOutput(output, binary=True),),
                parameters={"binary_data_output": True} if output is None else {},
            )
        )
        assert array(body, np.uint8).tobytes() == wanted.body
        assert headers == wanted.headers()


MALFORMED = [
    (b"", None),
    (b"junk", None),
    (b"[]", None),
    (b'{"outputs":[]}', None),
    (b'{"outputs":[{"name":"x","datatype":"INT64","shape":[1,1],"data":[1]}]}', None),
    (b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1]}]}', None),
    (b'{"outputs":[{"name":"x","datatype":"FP32","shape":[-1,2],"data":[1]}]}', None),
    (b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":["1"]}]}', None),
    (b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1,1],"parameters":{"binary_data_size":4}}]}', "94"),
    (b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1,1],"parameters":{"binary_data_size":-4}}]}', "95"),
    (b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1]}]}extra', "69"),
    (b"{}", "3"),
    (b"{}", "-1"),
    (b"{}", "x"),
    (b"{}", "1.5"),
]


def test_a_malformed_answer_is_an_error_of_ours(bench: Any) -> None:
    code = """
      const { decodeResponse } = await import("/js/wire.js");
      return Promise.all(given.map(([body, length]) => kind(() => decodeResponse(bytes(body), length))));"""
    said = module(bench, code, [[base64.b64encode(body).decode(), length] for body, length in MALFORMED])
    assert [line.split(":")[0] for line in said] == ["EndpointError"] * len(MALFORMED)


def test_only_what_an_obfuscator_made_can_be_sent(browser: Any, tap: Tap) -> None:
    page, _ = open_page(browser, tap.url)
    before = len(tap.recorded)
    code = """
      const bundle = await sfumato.loadBundle("/bundles/1/", { ort });
      const client = new sfumato.Client(location.origin, bundle);
      const real = await bundle.obfuscate(picture(given));
      const tensor = new Float32Array(3 * 32 * 32);
      const lookalike = Object.create(sfumato.ObfuscatedPicture.prototype);
      real.tensor.fill(0.5);  // a copy: what is sent cannot be changed from outside
      if (real.tensor.every((value) => value === 0.5)) return ["changed"];
      const things = [tensor, { tensor, shape: real.shape }, lookalike, picture(given), null, undefined, new Blob()];
      const said = [];
      for (const thing of things) said.push(await kind(() => client.send(thing)));
      said.push(await kind(() => new sfumato.ObfuscatedPicture(Symbol(), tensor, bundle.preprocessing)));
      said.push(await kind(() => new sfumato.Bundle(Symbol())));
      said.push(await kind(() => new sfumato.Client(location.origin, { decide: () => real })));
      return said;"""
    said = module(page, code, rgb(photo()))
    assert [line.split(":")[0] for line in said] == ["BundleError"] * 10
    assert b"/infer" not in tap.recorded[before:]


def test_an_obfuscator_that_does_not_hide_the_picture_is_refused(browser: Any, tmp_path: Path) -> None:
    kinds = ("identity", "normalised", "nan", "shape")
    made = [tiny.save_bundles(tmp_path / kind, kind)[0] for kind in kinds]
    made.append(tiny.save_bundles(tmp_path / "own", threshold=0.5, own="nan")[0])
    classifier = tiny.save_bundles(tmp_path / "good")[1]
    with cloud.running([cloud.ServedModel(classifier.path)], pages=Pages(collect(made, classifier))) as url:
        tap = Tap(url)
        page, _ = open_page(browser, tap.url, ready=False)
        page.locator("#problem", has_text="nothing was sent").wait_for()  # the page itself, with the first of them
        code = """
          const said = [];
          for (const place of given.places) {
            const bundle = await sfumato.loadBundle(`/bundles/${place}/`, { ort });
            said.push(await kind(() => new sfumato.Client(location.origin, bundle).classify(picture(given.pixels))));
          }
          return said;"""
        said = module(page, code, {"places": list(range(5)), "pixels": rgb(photo())})
        assert all(re.fullmatch(r"BundleError: .*nothing was sent", line) for line in said), said
        assert tap.requests(b"POST") == 0
        assert leaked(bytes(tap.recorded), photo()) == set()
        tap.close()


def test_a_damaged_or_foreign_bundle_is_refused(page: Any) -> None:
    code = "return kind(() => sfumato.loadBundle(given, { ort }));"
    assert (
        module(page, code, "/classifier/")
        == "BundleError: this bundle is of kind classifier; an obfuscator's is needed"
    )
    assert "cannot be loaded" in module(page, code, "/nothing/")
    page.route("**/bundles/1/obfuscator.onnx", lambda route: route.fulfill(body=b"changed"))
    assert "was changed or damaged" in module(page, code, "/bundles/1/")


WRONG_ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({"status": 500, "body": '{"error": "broken"}'}, "status 500: broken"),
    ({"status": 401, "body": "<html>"}, "status 401"),
    ({"status": 302, "headers": {"Location": "http://127.0.0.1:9/"}}, "no answer from"),
    ({"status": 200, "body": "<html>"}, "not valid JSON"),
    ({"status": 200, "body": '{"outputs":[{"name":"logits","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'}, "shape"),
    ({"status": 200, "body": '{"outputs":[{"name":"other","datatype":"FP32","shape":[1,1],"data":[1]}]}'}, "lacks"),
]


def fulfill(answer: dict[str, Any], route: Any) -> None:
    route.fulfill(**answer)


def test_what_an_endpoint_gets_wrong_is_said(bench: Any) -> None:
    code = """
      const bundle = await sfumato.loadBundle("/bundles/1/", { ort });
      return kind(() => new sfumato.Client(location.origin, bundle).classify(picture(given)));"""
    for answer, says in WRONG_ANSWERS:
        bench.route("**/infer", partial(fulfill, answer))
        said = module(bench, code, rgb(photo()))
        bench.unroute("**/infer")
        assert said.startswith("EndpointError: "), said
        assert says in said


def test_a_token_does_not_travel_readably(bench: Any) -> None:
    code = """
      const bundle = await sfumato.loadBundle("/bundles/1/", { ort });
      const say = (...given) => kind(() => new sfumato.Client(given[0], bundle, { token: given[1] }));
      return [await say("http://192.0.2.1", "t"), await say("https://192.0.2.1", "t"), await say("ftp://192.0.2.1")];"""
    readable, secret, foreign = module(bench, code)
    assert readable == "EndpointError: the token would travel readably to 192.0.2.1; use https"
    assert secret == "nothing"
    assert foreign.startswith("EndpointError: the server's address must look like")


# --- the page -----------------------------------------------------------------------------------------


def test_a_dropped_picture_gets_the_right_answer_and_stays_here(
    browser: Any, tap: Tap, bundles: list[Bundle], server: str
) -> None:
    """The acceptance test: the answer is Python's, and no byte of the picture or its file is among those sent."""
    with Client(server, bundles[1]) as client:
        sample = next(s for s in shipped.samples() if client.classify(s.pixels).label == s.label)
        wide = photo()
        expected = {"sample.png": client.classify(sample.pixels), "wide.png": client.classify(wide)}
    page, asked = open_page(browser, tap.url)
    choose(page, bundles[1])
    answered(page, "test-")
    for name, pixels in (("sample.png", sample.pixels), ("wide.png", wide)):
        posts = tap.requests(b"POST")
        drop(page, png(pixels), name)
        answered(page, name)
        answer = expected[name]
        assert page.locator("#cloud-answer .label").inner_text() == answer.label
        assert page.locator("#cloud-answer b").first.inner_text() == f"{answer.probability:.0%}".replace("%", " %")
        assert page.locator("#verdict").inner_text().startswith(f"{answer.label}: answered by the cloud")
        assert tap.requests(b"POST") == posts + 1
        shown = page.locator("#travels-facts dd").first.inner_text()
        assert shown == f"{answer.payload_bytes:,}"
        recorded, preprocessing = bytes(tap.recorded), bundles[1].preprocessing
        assert leaked(recorded, fit(pixels, 32, 32), preprocessing) == set()
        file = png(pixels)
        assert not [i for i in range(40, len(file) - 24, 24) if file[i : i + 24] in recorded]
        assert name.encode() not in recorded
    dump = page.locator("#inspector-body pre").nth(1).text_content()
    body = bytes.fromhex("".join(line[8:55] for line in dump.splitlines()))
    assert body in recorded, "the inspector shows the very bytes"
    assert len(body) == answer.payload_bytes
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
    answered(page, "test-")
    before = len(tap.recorded)
    page.locator("#samples button").nth(place).click()
    page.locator("#sent", has_text="not sent").wait_for()
    page.locator("#verdict", has_text="Nothing was sent.").wait_for()
    assert page.locator("#verdict").inner_text().startswith(label)
    assert "nothing was sent" in page.locator("#inspector-sum").inner_text()
    assert len(tap.recorded) == before, "not even a request for metadata"
    page.get_by_role("button", name="Send it anyway").click()
    page.locator("#verdict", has_text="answered by the cloud").wait_for()
    assert tap.requests(b"POST", b"v2/models/cifar10-resnet20/infer") >= 1
    assert leaked(bytes(tap.recorded), shipped.samples()[place].pixels, bundles[0].preprocessing) == set()
    page.context.close()


def test_the_first_load_is_small(browser: Any, server: str) -> None:
    """All that is transferred until the first obfuscated picture is on its way."""
    finished: dict[str, int] = {}
    page, asked = open_page(browser, "about:blank", ready=False)
    page.on("requestfinished", lambda request: finished.update({request.url: request.sizes()["responseBodySize"]}))
    page.goto(server)
    page.locator("#status", has_text="also offline").wait_for()
    first = asked[: next(i for i, url in enumerate(asked) if url.endswith("/infer"))]
    assert any(url.endswith(".wasm") for url in first)
    assert not any("deobfuscator" in url for url in first), "what an attacker has comes after the answer"
    assert 2_000_000 < sum(finished.get(url, 0) for url in first) < MOST_BYTES
    page.context.close()


def test_without_the_network_all_but_the_answer_works(page: Any, bundles: list[Bundle]) -> None:
    page.context.set_offline(True)
    choose(page, bundles[1])
    page.locator("#samples button").nth(5).click()
    page.locator("#original-note", has_text="test-0005").wait_for()
    page.locator("#asked", has_text="no answer").wait_for()
    assert "The cloud did not answer" in page.locator("#verdict").inner_text()
    assert "the network or the server is gone" in page.locator("#cloud-answer").inner_text()
    assert "restore, as an attacker" in page.locator("#steps").inner_text()
    assert "offline" in page.locator("#status").inner_text()
    page.locator("#plain").check()
    page.locator("#plain-answer .bars").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.locator("#verdict", has_text="answered by the cloud").wait_for()


def test_what_is_no_picture_is_refused_and_nothing_is_left_of_the_last_one(browser: Any, tap: Tap) -> None:
    page, _ = open_page(browser, tap.url)
    for content in (b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(50), png(photo())[:400]):
        before = len(tap.recorded)
        drop(page, content)
        page.locator("#problem", has_text="not a picture that the browser can decode").wait_for()
        assert page.locator("#verdict").inner_text() == "Nothing was sent."
        assert page.locator("#cloud-answer").inner_text() == ""
        assert page.evaluate("[...document.querySelectorAll('.flow canvas')].map((c) => c.width)") == [1, 1, 1]
        assert len(tap.recorded) == before
        page.locator("#samples button").first.click()
        answered(page, "test-0000")
        assert page.locator("#problem").is_hidden()
    page.context.close()


def test_the_camera(page: Any) -> None:
    page.get_by_role("button", name="Use the camera").click()
    page.locator("#video").wait_for()
    page.locator("#shoot:enabled").click()  # once the camera has shown something
    answered(page, "the camera's picture")
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
    assert bundles[0].recipe["name"] in chosen.get_attribute("aria-label")
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
        bundle.recipe.update({"kind": "sketch", "name": f"sketch-{bits}", "code_bits": bits})
        bundle.save()
        made.append(bundle)
    with cloud.running([cloud.ServedModel(classifier.path)], pages=Pages(collect(made, classifier))) as url:
        page, _ = open_page(browser, url)
        assert page.locator("#dial-value").inner_text() == "8"
        page.locator("#dial").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#dial-value").inner_text() == "5"
        assert page.locator("#bundle option:checked").inner_text() == "sketch-5"
        page.locator("#restored-note", has_text="There is no deobfuscator").wait_for()
        page.context.close()
