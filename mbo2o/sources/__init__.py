"""Where the batches of an online phase come from: one file for each source, chosen by `recipe.source=NAME`."""

import importlib
import pkgutil

from mbo2o.sources.base import BaseSource, SourceConfig, make_source

# Importing a module of this package registers its source: a new source is a new file, and nothing else changes.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["BaseSource", "SourceConfig", "make_source"]
