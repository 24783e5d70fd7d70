"""Models with random weights that SGLang and transformers can load, made on the spot and without a network.

Importing this package, or its `recipe` module, does not import torch.
"""

from sglang_layered_lab.models.catalogue import find_recipe
from sglang_layered_lab.models.make import make_model
from sglang_layered_lab.models.recipe import Recipe

__all__ = ["Recipe", "find_recipe", "make_model"]
