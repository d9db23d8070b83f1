"""Estimate what ImageNet's recipe costs on this machine, from a few steps on substitute images and classifier.

`python benchmarks/imagenet_estimate.py` writes results/imagenet-estimate.json

The images are generated JPEGs of 224 pixels in parquet files; ImageNet's own are larger and take longer to decode. The
classifier has microsoft/resnet-18's architecture and random weights. Neither changes what a step computes.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import typer
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

from sfumato.artifacts.files import write_json
from sfumato.lab.runs.estimate import estimate
from sfumato.lab.training import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "imagenet224-resnet18-sketch.toml"
CLASSES = tuple(f"class {index}" for index in range(1000))
SIDE, SHARDS, ROWS = 224, 4, 100


def main(out: Path = Path("results/imagenet-estimate.json"), batch_size: int = 32, steps: int = 24) -> None:
    """Measure, and write the results file."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        save_images(folder / "images", batch_size * (steps + 8))
        save_classifier(folder / "resnet-18")
        changes = {
            "data.source": f'"{folder / "images"}"',
            "data.test_images": 200,
            "held_out_images": 100,
            "classifier": f'"{folder / "resnet-18"}"',
            "training.batch_size": batch_size,
        }
        found = asdict(estimate(load_recipe(RECIPE, [f"{key}={value}" for key, value in changes.items()]), steps=steps))
    found["substitutes"] = {
        "images": f"generated JPEGs of {SIDE} x {SIDE} pixels in parquet files, in place of ILSVRC/imagenet-1k",
        "classifier": "random weights, the architecture of microsoft/resnet-18, 1000 classes",
        "test_images": "200 and 100 held out, in place of 5,000 each: in the hours, testing is that of 200",
        "batch_size": f"{batch_size} in place of the recipe's 256",
    }
    found["recipe"]["data"]["source"] = found["measured"]["data"] = "substitute images"
    found["recipe"]["classifier"] = "substitute classifier"
    write_json(out, found)
    print(f"{found['step_s']} s a step, {found['extrapolated']['hours']} hours in all, extrapolated -> {out}")


def save_images(folder: Path, train: int) -> None:
    """Save coloured noise at several scales; as JPEG files it takes about as many bytes as photographs."""
    folder.mkdir()
    source = np.random.default_rng(0)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES))})
    for split, count in (("train", train), ("validation", 300)):
        for shard in range(SHARDS):
            places = range(shard, count, SHARDS)
            rows = {
                "image": [{"bytes": jpeg(source), "path": None} for _ in places],
                "label": [place % len(CLASSES) for place in places],
            }
            file = folder / f"{split}-{shard:05d}-of-{SHARDS:05d}.parquet"
            Dataset.from_dict(rows, features=features).to_parquet(str(file), batch_size=ROWS)


def jpeg(source: np.random.Generator) -> bytes:
    image = np.zeros((SIDE, SIDE, 3))
    for cells in (2, 7, 28, 112):
        coarse = source.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        image += np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 4
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def save_classifier(folder: Path) -> None:
    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    ResNetForImageClassification(config).eval().save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.875, resample=3).save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
