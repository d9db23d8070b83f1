"""Training: recipes, objectives, the loop, and the way from weights to a bundle."""

from sfumato.training.preparing import Run
from sfumato.training.recipe import ClassifierRecipe, ObfuscatorRecipe, load_recipe
from sfumato.training.run import train

__all__ = ["ClassifierRecipe", "ObfuscatorRecipe", "Run", "load_recipe", "train"]
