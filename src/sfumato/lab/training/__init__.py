"""Training: recipes, objectives, the loop, and the way from weights to a bundle."""

from sfumato.lab.training.recipe import ClassifierRecipe, ObfuscatorRecipe, load_recipe
from sfumato.lab.training.run import train
from sfumato.lab.training.setup import Run

__all__ = ["ClassifierRecipe", "ObfuscatorRecipe", "Run", "load_recipe", "train"]
