"""Methods as three short phases: offline, switch, online."""

import importlib
import pkgutil

from mbo2o.recipes.base import Recipe, RecipeConfig, make_recipe

# Importing a module registers its recipe: a new method is a new file, and nothing else changes.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Recipe", "RecipeConfig", "make_recipe"]
