"""Published trainings as data: the crops, augmentations and loader settings of papers, read from YAML."""

from torchslip.recipes._load import load, names
from torchslip.recipes._recipe import Evaluation, Recipe

__all__ = ["Evaluation", "Recipe", "load", "names"]
