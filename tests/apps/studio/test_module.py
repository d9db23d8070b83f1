"""`sfumato.js` in a real browser: it computes what Python computes, and sends nothing else."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

import tiny
from apps.studio.browsing import array, module, open_page, photo, rgb
from apps.studio.conftest import Tap
from recording import leaked
from sfumato import cloud, wire
from sfumato.apps.studio import Pages, collect
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.class_map import ClassMap
from sfumato.device import Obfuscator, load_image, prepare
from sfumato.device.image import fit
from sfumato.device.predictions import softmax
from sfumato.device.recognisable import explained

pytestmark = pytest.mark.browser

TOLERANCE = 1e-5
IMAGES = 100
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> Pixels:
    """The shipped images, the same mirrored, and upside down: (100, 32, 32, 3)."""
    real = np.stack([sample.pixels for sample in shipped.samples()])
    return np.concatenate([real, real[:, :, ::-1], real[:, ::-1]])[:IMAGES]


@pytest.mark.parametrize("place", [0, 1])
def test_the_browser_computes_what_python_computes(
    bench: Any, bundles: list[Bundle], images: Pixels, place: int
) -> None:
    code = """
      const bundle = await sfumato.loadBundle(`/bundles/${given.place}/`, { ort });
      const outputs = [];
      for (const one of given.images) {
        const { probabilities, obfuscated } = await bundle.decide(image(one), { gate: false });
        outputs.push([text(obfuscated.tensor), probabilities]);
      }
      return outputs;"""
    outputs = module(bench, code, {"place": place, "images": [rgb(pixels) for pixels in images]})
    expected, own = Obfuscator(bundles[place])._run(
        np.stack([prepare(p, bundles[place].preprocessing) for p in images])
    )
    got = np.stack([array(tensor, np.float32).reshape(3, 32, 32) for tensor, _ in outputs])
    # In float32, relative to values beyond 1: the paper's obfuscator makes some of 20 and more.
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
    if own is not None:
        assert np.abs(np.array([row for _, row in outputs]) - softmax(own)).max() <= TOLERANCE
        decided = [d.obfuscated is None for d in Obfuscator(bundles[place]).decide_batch(list(images))]
        code = code.replace("{ gate: false }", "{}").replace("text(obfuscated.tensor)", "obfuscated === null")
        told = module(bench, code, {"place": place, "images": [rgb(pixels) for pixels in images]})
        assert [stays for stays, _ in told] == decided


SIZES = [(150, 220), (97, 61), (1000, 33), (7, 9), (32, 32), (33, 32), (1, 1), (480, 641), (64, 64)]


@pytest.mark.parametrize("wanted", [(32, 32), (24, 40)])
def test_images_are_fitted_to_the_same_pixels(bench: Any, wanted: tuple[int, int]) -> None:
    """To the last bit, but for tall ones: there, Pillow 13 goes along columns first, and rounds otherwise."""
    images = [np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    code = "return given.images.map((one) => text(sfumato.fit(image(one), ...given.wanted).data));"
    fitted = module(bench, code, {"images": [rgb(pixels) for pixels in images], "wanted": wanted})
    for pixels, got in zip(images, fitted, strict=True):
        difference = np.abs(array(got, np.uint8).reshape(*wanted, 3).astype(int) - fit(pixels, *wanted))
        tall = pixels.shape[0] * wanted[1] > pixels.shape[1] * wanted[0]
        assert difference.max() <= (1 if tall else 0), pixels.shape


def files() -> dict[str, bytes]:
    """Images as files of several kinds."""
    image = Image.fromarray(photo(3))
    turned = image.getexif()
    turned[ExifTags.Base.Orientation] = 6
    translucent = image.copy()
    translucent.putalpha(Image.fromarray(photo(4)[..., 0]))
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (image, "PNG", {}),
        "grey png": (image.convert("L"), "PNG", {}),
        "half-transparent png": (translucent, "PNG", {}),
        "jpeg": (image, "JPEG", {"quality": 80}),
        "turned jpeg": (image, "JPEG", {"quality": 95, "subsampling": 0, "exif": turned}),
    }
    made = {}
    for name, (one, form, options) in kinds.items():
        stream = io.BytesIO()
        one.save(stream, form, **options)
        made[name] = stream.getvalue()
    return made


def test_files_are_decoded_to_the_same_pixels(bench: Any) -> None:
    code = """
      const { width, height, data } = await sfumato.loadImage(new Blob([bytes(given)]));
      return [height, width, text(data)];"""
    for name, file in files().items():
        height, width, data = module(bench, code, base64.b64encode(file).decode())
        np.testing.assert_array_equal(array(data, np.uint8).reshape(height, width, 3), load_image(file), name)


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


def test_a_malformed_response_is_an_error_of_ours(bench: Any) -> None:
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
      const real = await bundle.obfuscate(image(given));
      const tensor = new Float32Array(3 * 32 * 32);
      const lookalike = Object.create(sfumato.ObfuscatedImage.prototype);
      real.tensor.fill(0.5);  // a copy: what is sent cannot be changed from outside
      if (real.tensor.every((value) => value === 0.5)) return ["changed"];
      const things = [tensor, { tensor, shape: real.shape }, lookalike, image(given), null, undefined, new Blob()];
      const said = [];
      for (const thing of things) said.push(await kind(() => client.send(thing)));
      said.push(await kind(() => new sfumato.ObfuscatedImage(Symbol(), tensor, bundle.preprocessing)));
      said.push(await kind(() => new sfumato.Bundle(Symbol())));
      said.push(await kind(() => new sfumato.Client(location.origin, { decide: () => real })));
      return said;"""
    said = module(page, code, rgb(photo()))
    assert [line.split(":")[0] for line in said] == ["BundleError"] * 10
    assert b"/infer" not in tap.recorded[before:]


def test_an_obfuscator_that_does_not_hide_the_image_is_refused(browser: Any, tmp_path: Path) -> None:
    kinds = ("identity", "normalised", "nan", "shape", "lurking")
    made = [tiny.save_bundles(tmp_path / kind, kind)[0] for kind in kinds]
    made += [tiny.save_copy(tmp_path / op, op, value) for op, value in (("Mul", -0.5), ("Add", 2.0))]
    made.append(tiny.save_bundles(tmp_path / "own", threshold=0.5, own="nan")[0])
    classifier = tiny.save_bundles(tmp_path / "good")[1]
    with cloud.running([cloud.ServedModel(classifier.path)], pages=Pages(collect(made, classifier))) as url:
        tap = Tap(url)
        page, _ = open_page(browser, tap.url, ready=False)
        page.locator("#problem", has_text="nothing was sent").wait_for()  # the page itself, with the first of them
        code = """
          const said = [];
          for (const place of given.places) {
            said.push(await kind(async () => {
              const bundle = await sfumato.loadBundle(`/bundles/${place}/`, { ort });
              await new sfumato.Client(location.origin, bundle).classify(image(given.pixels));
            }));
          }
          return said;"""
        said = module(page, code, {"places": list(range(len(made))), "pixels": rgb(tiny.sure_image())})
        assert all(re.fullmatch(r"BundleError: .*nothing was sent", line) for line in said), said
        assert sum("shows the image" in line for line in said) == 5
        assert tap.requests(b"POST") == 0
        assert leaked(bytes(tap.recorded), tiny.sure_image()) == set()
        tap.close()


def test_a_baseline_may_show_the_image_if_that_is_asked_for(browser: Any, tmp_path: Path) -> None:
    made = [
        tiny.save_copy(tmp_path / "b", "Mul", 0.5, recipe_kind="baseline"),
        tiny.save_copy(tmp_path / "o", "Mul", 0.5),
    ]
    classifier = tiny.save_bundles(tmp_path / "good")[1]
    with cloud.running([cloud.ServedModel(classifier.path)], pages=Pages(collect(made, classifier))) as url:
        page, _ = open_page(browser, url, ready=False)
        code = """
          const load = (place, allowRecognisable) =>
            sfumato.loadBundle(`/bundles/${place}/`, { ort, allowRecognisable });
          const said = [await kind(() => load(0, false)), await kind(() => load(1, true))];
          const client = new sfumato.Client(location.origin, await load(0, true));
          return [...said, (await client.classify(image(given))).predictedBy];"""
        refused, no_baseline, predicted_by = module(page, code, rgb(photo()))
        assert "shows the image" in refused and "not declare itself a baseline" in no_baseline
        assert predicted_by == "cloud"


def test_how_much_an_image_explains_is_what_python_computes(bench: Any) -> None:
    random = np.random.default_rng(2)
    images = random.random((4, 3, 16, 16)).astype(np.float32)
    payloads = (0.7 * images[:, ::-1] + random.normal(0, 0.1, images.shape)).astype(np.float32)
    images[2] = images[2, :1]  # in grey
    images[3] = 0.5  # flat
    code = """
      const { explained } = await import("/js/recognisable.js");
      const pairs = Array.from({ length: 256 }, (_, i) => [i, i]);
      const floats = (one) => new Float32Array(bytes(one).buffer);
      return given.map(([image, payload]) => explained(floats(image), floats(payload), 256, pairs));"""
    given = [[base64.b64encode(one.tobytes()).decode() for one in both] for both in zip(images, payloads, strict=True)]
    np.testing.assert_allclose(module(bench, code, given), explained(images, payloads), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (24, 40)])
def test_copies_of_probes_are_seen_and_other_payloads_are_not(bench: Any, size: tuple[int, int]) -> None:
    code = """
      const { probeImages, showsProbes } = await import("/js/recognisable.js");
      const [height, width] = given;
      const probes = probeImages(height, width);
      const area = height * width;
      const from = (place) => probes.map((probe) => probe.map((_, i) => {
        const [c, y, x] = [Math.floor(i / area), Math.floor((i % area) / width), i % width];
        return place(probe, c, y, x);
      }));
      const at = (probe, c, y, x) => probe[(c * height + Math.max(0, y)) * width + x];
      const shown = [
        from((probe, c, y, x) => 3 - 2 * at(probe, c, y, x)),
        from((probe, c, y, x) => at(probe, c, y, width - 1 - x)),
        from((probe, c, y, x) => at(probe, c, height - 1 - y, x)),
        from((probe, c, y, x) => at(probe, 0, y, x) + at(probe, 1, y, x)),
      ];
      if (height > 8) shown.push(from((probe, c, y, x) => at(probe, (c + 1) % 3, y - 1, x)));
      if (height === width) shown.push(from((probe, c, y, x) => at(probe, c, x, y)));
      const order = Array.from({ length: area }, (_, i) => (i * 37) % area);
      const hidden = [
        probes.map((probe) => probe.map(() => 0)),
        probes.map(() => probes[4]),
        from((probe, c, y, x) => probe[c * area + order[y * width + x]]),
      ];
      return [shown, hidden].map((kinds) => kinds.map((payloads) => showsProbes(probes, payloads, height, width)));"""
    shown, hidden = module(bench, code, size)
    assert all(shown) and not any(hidden)


def test_a_damaged_or_foreign_bundle_is_refused(page: Any) -> None:
    code = "return kind(() => sfumato.loadBundle(given, { ort }));"
    assert (
        module(page, code, "/classifier/")
        == "BundleError: this bundle is of kind classifier; an obfuscator's is needed"
    )
    assert "cannot be loaded" in module(page, code, "/nothing/")
    page.route("**/bundles/1/obfuscator.onnx", lambda route: route.fulfill(body=b"changed"))
    assert "was changed or damaged" in module(page, code, "/bundles/1/")


def test_a_bundle_of_the_first_version_is_read(page: Any, bundles: list[Bundle]) -> None:
    old = bundles[0].to_json() | {"schema": "sfumato.bundle/1"}
    old["gate"]["pictures"] = old["gate"].pop("images")
    page.route("**/bundles/0/bundle.json", lambda route: route.fulfill(json=old))
    gate = module(page, 'return (await sfumato.loadBundle("/bundles/0/", { ort })).gate;')
    assert gate == bundles[0].to_json()["gate"]


def test_a_multi_label_bundle_is_refused(page: Any, bundles: list[Bundle]) -> None:
    manifest = bundles[0].to_json() | {"labelling": "multi-label"}
    page.route("**/bundles/0/bundle.json", lambda route: route.fulfill(json=manifest))
    said = module(page, 'return kind(() => sfumato.loadBundle("/bundles/0/", { ort }));')
    assert said.startswith("BundleError: this bundle is multi-label")


def test_a_class_map_merges_the_servers_outputs(browser: Any, tmp_path: Path) -> None:
    """As in Python, at the server and where the page runs the classifier itself; the oracle sums probabilities."""
    class_map, labels = ClassMap.of({"vehicle": [2, 3], "cat": 0}, 4), ("vehicle", "cat")
    made = [replace(bundle, labels=labels, class_map=class_map).save() for bundle in tiny.save_bundles(tmp_path)]
    with cloud.running([cloud.ServedModel(made[1].path)], pages=Pages(collect(made[:1], made[1]))) as url:
        page, _ = open_page(browser, url, ready=False)
        code = """
          const { loadClassifier } = await import("/page/models.js");
          const bundle = await sfumato.loadBundle("/bundles/0/", { ort });
          const { label, probabilities } = await new sfumato.Client(location.origin, bundle).classify(image(given));
          const plain = await (await loadClassifier("/classifier/"))(await bundle.prepare(image(given)));
          return [label, probabilities, plain.probabilities];"""
        label, *found = module(page, code, rgb(tiny.image(5)))
        unit = prepare(tiny.image(5), tiny.PREPROCESSING)[None]
        for got, inputs in zip(found, (tiny.obfuscate(unit), tiny.PREPROCESSING.normalize(unit)), strict=True):
            p = softmax(tiny.logits(inputs))[0]
            wanted = np.array([p[2] + p[3], p[0]]) / (p[0] + p[2] + p[3])
            np.testing.assert_allclose(got, wanted, atol=TOLERANCE)
        assert label == labels[int(np.argmax(found[0]))]
        refused = {
            "groups": [[[0], [4]], [[0], [0]], [[0], []], [[0]], [[0], ["1"]], "x", None],
            "outputs": [None, "4", 1, 2.5],
        }
        for key, values in refused.items():
            for value in values:
                manifest = made[0].to_json() | {"class_map": {"outputs": 4, "groups": [[0], [1]], key: value}}
                page.route("**/bundles/0/bundle.json", partial(fulfill, {"json": manifest}))
                said = module(page, 'return kind(() => sfumato.loadBundle("/bundles/0/", { ort }));')
                page.unroute("**/bundles/0/bundle.json")
                assert said.startswith("BundleError: the class map"), (key, value, said)


def answer(*more: str, model: str = "cifar10-resnet20") -> str:
    outputs = '"outputs":[{"name":"logits","datatype":"FP32","shape":[1,2],"data":[1,2]}]'
    return "{" + ",".join([f'"model_name":"{model}"', *more, outputs]) + "}"


INVALID_RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({"status": 500, "body": '{"error": "broken"}'}, "status 500: broken"),
    ({"status": 401, "body": "<html>"}, "status 401"),
    ({"status": 302, "headers": {"Location": "http://127.0.0.1:9/"}}, "no (prediction|response) from"),  # by browser
    ({"status": 200, "body": "<html>"}, "not valid JSON"),
    ({"status": 200, "body": answer('"id":"0123456789abcdef"')}, "id of another request"),
    ({"status": 200, "body": answer('"id":7')}, "id of another request"),
    ({"status": 200, "body": answer(model="other")}, "not of the model"),
    ({"status": 200, "body": answer()}, "shape"),
    ({"status": 200, "body": answer().replace("logits", "others")}, "lacks"),
]


def fulfill(response: dict[str, Any], route: Any) -> None:
    route.fulfill(**response)


def test_what_an_endpoint_gets_wrong_is_said(bench: Any) -> None:
    code = """
      const bundle = await sfumato.loadBundle("/bundles/1/", { ort });
      return kind(() => new sfumato.Client(location.origin, bundle).classify(image(given)));"""
    for response, says in INVALID_RESPONSES:
        bench.route("**/infer", partial(fulfill, response))
        said = module(bench, code, rgb(photo()))
        bench.unroute("**/infer")
        assert said.startswith("EndpointError: "), said
        assert re.search(says, said), said


def test_a_token_is_not_sent_in_the_clear(bench: Any) -> None:
    code = """
      const bundle = await sfumato.loadBundle("/bundles/1/", { ort });
      const say = (...given) => kind(() => new sfumato.Client(given[0], bundle, { token: given[1] }));
      return [await say("http://192.0.2.1", "t"), await say("https://192.0.2.1", "t"), await say("ftp://192.0.2.1")];"""
    readable, secret, foreign = module(bench, code)
    assert readable == "EndpointError: the token would be sent in the clear to 192.0.2.1; use https"
    assert secret == "nothing"
    assert foreign.startswith("EndpointError: the server's address must look like")
