"""Models with random weights that SGLang and transformers can load, made on the spot and without a network.

Importing this package, or its `recipe` module, does not import torch.
"""

from sglang_layered.models.make import make_model
from sglang_layered.models.recipe import ModelRecipe, find_recipe

__all__ = ["ModelRecipe", "find_recipe", "make_model"]
