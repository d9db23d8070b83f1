"""How well out-of-distribution scores tell images unlike the training images from CIFAR-10's test images.

`python benchmarks/out_of_distribution.py --photos FOLDER` writes results/out-of-distribution.json in some minutes.

The photographs are a data set labelled with ImageNet's 1,000 classes; those of classes like CIFAR-10's are left out.
The figures in results/ are of the 1,000 images of the NIPS 2017 adversarial attack development set. Scores are computed
through the shipped bundles' ONNX files, from the logits of each place that a client could have them from.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.files import write_json
from sfumato.artifacts.onnx_file import ClassifierFunction, OnnxFunction
from sfumato.artifacts.out_of_distribution import energy_score
from sfumato.artifacts.provenance import provenance
from sfumato.device import prepare
from sfumato.device.predictions import softmax
from sfumato.lab.data import ImageSet, load_images
from sfumato.lab.evaluation.out_of_distribution import ENOUGH_IMAGES, FALSE_ALARM_RATE, on_device_logits

Array = NDArray[Any]

RESEMBLING = {
    *range(7, 25), *range(80, 101), *range(127, 147), *range(30, 33), *range(151, 269), *range(281, 286),  # animals
    339, 340, 351, 352, 353, 404, 895, 908, 403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914,
    407, 436, 468, 511, 609, 627, 656, 661, 751, 817, 555, 569, 675, 717, 734, 864, 867,
}  # fmt: skip
"""ImageNet's classes like CIFAR-10's: birds, frogs, dogs, cats, horses, deer, aeroplanes, ships, cars, trucks."""
COUNT = 500
CONFIDENT = 0.9
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seventeen", "letters", "wait")
PLACES = (
    "sketch, on the device",
    "sketch, in the cloud",
    "paper's obfuscator, in the cloud",
    "classifier, on the device",
)
SCORES = {
    "energy": energy_score,
    "largest logit": lambda logits: logits.max(axis=1),
    "largest probability": lambda logits: softmax(logits).max(axis=1),
}


def main(photos: str, out: Path, images: int | None) -> None:
    sketch, papers = (Bundle.load(place()) for place in (shipped.obfuscator_bundle, shipped.papers_obfuscator_bundle))
    served = Bundle.load(shipped.classifier_bundle())
    random = np.random.default_rng(0)
    test, _ = load_images("cifar10", "test").split(ENOUGH_IMAGES)  # without those that calibrated the shipped bundles
    test = test.subset(images)
    train = load_images("cifar10", "train").subset(images or 10_000)
    kinds = {"photographs": photographs(photos), "pages of text": pages(random, sketch)}
    kinds |= {
        "noise": pixels(random.integers(0, 256, (COUNT, 3, 32, 32))),
        "plain colours": pixels(np.broadcast_to(random.integers(0, 256, (COUNT, 3, 1, 1)), (COUNT, 3, 32, 32))),
    }
    places = {name: all_logits(found, sketch, papers, served) for name, found in {"test": test, **kinds}.items()}
    rows = [
        row(place, score, {kind: function(found[place]) for kind, found in places.items()})
        for place in places["test"]
        for score, function in SCORES.items()
    ]
    device = {kind: found["sketch, on the device"] for kind, found in places.items()}
    gaussian = class_gaussian(on_device_logits(sketch, train), train.labels.numpy())
    rows.append(row("sketch, on the device", "class-conditional Gaussian", {k: gaussian(v) for k, v in device.items()}))
    result = {
        "familiar_images": len(test),
        "false_alarm_rate": FALSE_ALARM_RATE,
        "unfamiliar_images": {kind: len(found) for kind, found in kinds.items()},
        "scores": rows,
        "shipped": {
            kind: as_shipped(sketch, found["sketch, on the device"], found["sketch, in the cloud"], test, kind)
            for kind, found in places.items()
        },
        "provenance": provenance(data=test.source, photographs=Path(photos).name, test_images=len(test)).to_json(),
    }
    write_json(out, result)


def photographs(source: str) -> ImageSet:
    found = load_images(source, "test", size=(32, 32))
    other = torch.tensor([int(found.names[label]) not in RESEMBLING for label in found.labels.tolist()])
    return replace(found, images=found.images[other], labels=found.labels[other])


def pages(random: np.random.Generator, bundle: Bundle) -> ImageSet:
    """Pages of text in sizes and margins that vary; one in five is white on black."""
    drawn = []
    for _ in range(COUNT):
        side, size = int(random.integers(256, 1024)), int(random.integers(10, 28))
        ink, paper = (20, 250) if random.random() < 0.8 else (250, 20)
        page = Image.new("L", (side, side), paper)
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
        for top in range(side // 16, side - side // 16, size * 7 // 5):
            line = " ".join(random.choice(WORDS, 40))[: int(1.7 * side / size)]
            draw.text((side // 16, top), line, fill=ink, font=font)
        drawn.append(prepare(np.asarray(page.convert("RGB")), bundle.preprocessing))
    return pixels(np.rint(np.stack(drawn) * 255))


def pixels(values: Array) -> ImageSet:
    images = torch.from_numpy(values.astype(np.uint8))
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), ("image",), "generated", "generated")


def all_logits(images: ImageSet, sketch: Bundle, papers: Bundle, served: Bundle) -> dict[str, Array]:
    """The logits (N, 10) of the images at each place, by its name."""
    ours, theirs = (OnnxFunction(bundle.file(OBFUSCATOR_ONNX)) for bundle in (sketch, papers))
    classify = ClassifierFunction(served)
    parts: list[Iterable[Array]] = []
    for batch, _ in images.scaled_batches():
        payload, own, _code = ours.all(batch)
        plain = classify(served.preprocessing.normalize(batch))
        parts.append((own, classify(payload), classify(theirs(batch)), plain))
    return {place: np.concatenate(found) for place, found in zip(PLACES, zip(*parts, strict=True), strict=True)}


def class_gaussian(logits: Array, labels: Array) -> Callable[[Array], Array]:
    """Minus the Mahalanobis distance to the nearest class, of Lee et al. 2018, on the logits."""
    means = np.stack([logits[labels == one].mean(axis=0) for one in range(10)]).astype(np.float64)
    precision = np.linalg.inv(np.cov((logits - means[labels]).T))

    def score(found: Array) -> Array:
        off = found[:, None] - means
        return -np.einsum("ncd,de,nce->nc", off, precision, off).min(axis=1)

    return score


def row(place: str, score: str, found: dict[str, Array]) -> dict[str, object]:
    threshold = np.quantile(found["test"], FALSE_ALARM_RATE)
    return {
        "logits": place,
        "score": score,
        "kinds": {
            kind: {"auroc": auroc(found["test"], scores), "caught": float((scores < threshold).mean())}
            for kind, scores in found.items()
            if kind != "test"
        },
    }


def auroc(higher: Array, lower: Array) -> float:
    """The probability that a familiar image has the higher score; ties count half."""
    order = np.sort(lower)
    below = (np.searchsorted(order, higher, "left") + np.searchsorted(order, higher, "right")) / 2
    return float(below.mean() / len(lower))


def as_shipped(sketch: Bundle, own: Array, cloud: Array, test: ImageSet, kind: str) -> dict[str, float]:
    """What a client of the shipped bundle reports: how many images, and how many of those of confident predictions."""
    assert sketch.gate is not None and sketch.ood_detector is not None
    device = softmax(own)
    predicted = np.where(sketch.gate.sends(device)[:, None], softmax(cloud), device)
    flagged, confident = sketch.ood_detector.detects(own), predicted.max(axis=1) >= CONFIDENT
    found = {
        "flagged": float(flagged.mean()),
        "confident": float(confident.mean()),
        "flagged_of_confident": float(flagged[confident].mean()),
    }
    if kind == "test":
        correct = predicted.argmax(axis=1) == test.labels.numpy()
        found |= {
            "accuracy_flagged": float(correct[flagged].mean()),
            "accuracy_others": float(correct[~flagged].mean()),
        }
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="folder or hub id of photographs with ImageNet's labels")
    parser.add_argument("--out", type=Path, default=Path("results/out-of-distribution.json"))
    parser.add_argument("--images", type=int, help="only the first N images of CIFAR-10")
    chosen = parser.parse_args()
    main(chosen.photos, chosen.out, chosen.images)
