"""Train an obfuscator for a classifier on a folder of images, and audit what it leaks.

Tiny: it shows the steps, not good figures.

    python examples/train_and_audit.py                        # synthetic images of four colours
    python examples/train_and_audit.py photos/ --epochs 20    # one folder per class

Needs `pip install 'sfumato[train]'`; about ten seconds without arguments.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.lab.training import train
from sfumato.lab.training.recipe import parse_recipe

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", nargs="?", type=Path, help="Folder with one folder per class.")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("-o", "--out", type=Path, default=None, help="Default: a temporary folder.")
arguments = parser.parse_args()


COLOURS = {"red": (200, 60, 60), "green": (60, 160, 60), "blue": (60, 60, 200), "grey": (120, 120, 120)}


def coloured(folder: Path) -> Path:
    """Write 80 images in four classes, each with a colour of its own."""
    random = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for index in range(20):
            pixels = np.array(colour) + random.integers(-50, 51, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / label / f"{index:02d}.png")
    return folder


with tempfile.TemporaryDirectory() as scratch:
    out = arguments.out or Path(scratch) / "run"
    images = arguments.images or coloured(Path(scratch) / "images")
    common = {
        "data": {"source": str(images), "size": [32, 32]},
        "training": {"epochs": arguments.epochs, "batch_size": 16, "schedule": "constant"},
    }
    recipe = {"kind": "classifier", "name": "tiny", "architecture": "resnet-local", **common}
    classifier = train(parse_recipe(recipe), out / "classifier")

    recipe = {"kind": "sketch", "name": "tiny-sketch", "classifier": str(classifier.path), **common}
    obfuscator = train(parse_recipe({**recipe, "held_out_images": 8}), out / "obfuscator")
    figures = obfuscator.figures
    print(
        f"accuracy: plain {figures['accuracy_plain']:.0%}, obfuscated {figures['accuracy_obfuscated']:.0%}", flush=True
    )

    # Only a full budget such as "standard" counts; this one, shortened, shows that the command works.
    audit = ["audit", obfuscator.path, "--classifier", classifier.path, "--data", images, "-o", out / "audit"]
    budget = ["--budget", "attributes", "--budget-scale", "0.05"]
    subprocess.run([sys.executable, "-m", "sfumato", *map(str, audit), *budget], check=True)
