"""Train an obfuscator for a classifier on a folder of images, and audit what it leaks. Tiny: it shows the steps, not good figures.

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


def coloured(folder: Path) -> Path:
    """Write 80 images in four classes, each with a colour of its own."""
    random = np.random.default_rng(0)
    for label, colour in {"red": (200, 60, 60), "green": (60, 160, 60), "blue": (60, 60, 200), "grey": (120, 120, 120)}.items():
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
    classifier = train(
        parse_recipe({"kind": "classifier", "name": "tiny", "architecture": "resnet-local", **common}), out / "classifier"
    )
    obfuscator = train(
        parse_recipe({"kind": "sketch", "name": "tiny-sketch", "classifier": str(classifier.path), "held_out_images": 8, **common}),
        out / "obfuscator",
    )
    print(f"accuracy on plain images {obfuscator.figures['accuracy_plain']:.0%}, obfuscated {obfuscator.figures['accuracy_obfuscated']:.0%}")
    # The budget "standard" is what counts; this one, shortened, shows that the command works.
    audit = ["audit", obfuscator.path, "--classifier", classifier.path, "--data", images, "--budget", "attributes"]
    subprocess.run(
        [sys.executable, "-m", "sfumato", *map(str, audit), "--budget-scale", "0.05", "-o", str(out / "audit")], check=True
    )
