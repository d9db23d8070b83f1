"""Trains a small network in float32 and in `precision = "auto"`, three seeds each: is the accuracy the same?

`python benchmarks/precision.py [RESULT]` writes results/precision.json, in about ten minutes on two cores.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import typer

from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.cli.memory import keep_freed_memory
from sfumato.lab.training import load_recipe, train

RECIPE, SEEDS, EPOCHS, IMAGES = Path("recipes/cifar10-resnet20.toml"), (0, 1, 2), 4, 10_000


def main(out: Path = Path("results/precision.json")) -> None:
    """Measure, and write the results file."""
    keep_freed_memory()
    rows = []
    for precision in ("32-true", "auto"):
        for seed in SEEDS:
            changes = [
                f"training.seed={seed}",
                f"training.epochs={EPOCHS}",
                f"training.validate_every={EPOCHS}",
                f"training.precision={precision}",
                f"data.train_images={IMAGES}",
            ]
            with tempfile.TemporaryDirectory() as folder:
                bundle = train(load_recipe(RECIPE, changes), Path(folder))
                rows.append(
                    {
                        "precision": precision,
                        "computed_in": bundle.provenance.precision,
                        "seed": seed,
                        "accuracy": bundle.figures.accuracy_plain,
                        "seconds": bundle.provenance.training_seconds,
                        "test_images": bundle.figures.test_images,
                    }
                )
            print(rows[-1])
    means = {}
    for precision in ("32-true", "auto"):
        found = [row["accuracy"] for row in rows if row["precision"] == precision]
        means[precision] = {"mean": statistics.mean(found), "std": statistics.stdev(found), "seeds": len(found)}
    write_json(
        out,
        {
            "what": f"{RECIPE.stem}, {EPOCHS} epochs of {IMAGES} images: a short run, to compare precisions",
            "accuracy": means,
            "difference": means["auto"]["mean"] - means["32-true"]["mean"],
            "rows": rows,
            "measured": provenance(epochs=EPOCHS, train_images=IMAGES).to_json(),
        },
    )


if __name__ == "__main__":
    typer.run(main)
