"""Train an obfuscator for a classifier on a folder of images, and audit what it leaks.

Tiny: it shows the steps, not good figures.

    python examples/train_and_audit.py                                    # the shipped classifier and test images
    python examples/train_and_audit.py photos/ --classifier bundles/mine  # one folder per class

Needs `pip install 'sfumato[train]'`; about ten seconds without arguments.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

from sfumato.artifacts import shipped
from sfumato.lab.training import train
from sfumato.lab.training.recipe import parse_recipe

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", nargs="?", type=Path, help="Folder with one folder per class. Default: shipped images.")
parser.add_argument("--classifier", type=Path, default=shipped.classifier_bundle(), help="Bundle. Default: ResNet20.")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("-o", "--out", type=Path, help="Default: a temporary folder.")
arguments = parser.parse_args()


def shipped_images(folder: Path) -> Path:
    """Write the 40 shipped CIFAR-10 test images into one folder per class, each in four versions."""
    for index, sample in enumerate(shipped.samples()):
        image = Image.fromarray(sample.pixels)
        versions = [image, ImageOps.mirror(image), ImageOps.autocontrast(image), ImageOps.posterize(image, 4)]
        for number, version in enumerate(versions):
            file = folder / sample.label / f"{index}-{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            version.save(file)
    return folder


with tempfile.TemporaryDirectory() as scratch:
    out = arguments.out or Path(scratch) / "run"
    images = arguments.images or shipped_images(Path(scratch) / "images")
    recipe = {
        "kind": "sketch",
        "name": "tiny-sketch",
        "classifier": str(arguments.classifier),
        "held_out_images": 8,
        "data": {"source": str(images), "size": [32, 32]},
        "training": {"epochs": arguments.epochs, "batch_size": 32},
    }
    obfuscator = train(parse_recipe(recipe), out / "obfuscator")
    figures = obfuscator.figures
    print(f"accuracy: plain {figures.accuracy_plain:.0%}, obfuscated {figures.accuracy_obfuscated:.0%}", flush=True)

    # Only a full budget such as "standard" counts; this one, shortened, shows that the command works.
    audit = ["audit", obfuscator.path, "--classifier", arguments.classifier, "--data", images, "-o", out / "audit"]
    budget = ["--budget", "attributes", "--budget-scale", "0.05"]
    subprocess.run([sys.executable, "-m", "sfumato", *map(str, audit), *budget], check=True)
