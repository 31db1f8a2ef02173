"""PLoP in notebooks: where do the adapters go?

Scores every linear map of a pretrained model on a task's texts by its Normalized Feature Norm
and puts LoRA adapters on the lowest-scoring module types (Hayou, Ghosh, Yu, arXiv 2506.20629).

Shapes and units used in all docstrings:

- ``W``: weight of a linear map, (out_features, in_features); ``b``: its bias, not part of a score.
- ``z``: input of one token to a map, (in_features,); of a batch, (batch, length, in_features).
- NFN: ``||W z|| / (||z|| * baseline)``, dimensionless; 1 is what a random input gives.
- type: a module's name with its layer and other list indices starred, shortened where unambiguous.
- scores: a tidy DataFrame, one row per sample and module.
"""

import importlib
import pkgutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from plop_nb._moved import OldModules
from plop_nb.geometry import mean_split
from plop_nb.maps import module_table
from plop_nb.models import load_model
from plop_nb.moves import fold_norms
from plop_nb.placement import Placement, place
from plop_nb.recording import record_norms
from plop_nb.scoring import nfn_scores
from plop_nb.stats import by_layer, by_module, by_type, mean_interval
from plop_nb.texts import data_file, load_texts, read_texts

if TYPE_CHECKING:
    from plop_nb.block_plot import plot_block
    from plop_nb.explorer import explore
    from plop_nb.plots import plot_heatmap, plot_types

try:
    __version__ = version("plop_nb")
except PackageNotFoundError:  # run from a checkout
    __version__ = "unknown"

__all__ = [
    "Placement",
    "by_layer",
    "by_module",
    "by_type",
    "data_file",
    "explore",
    "fold_norms",
    "load_model",
    "load_texts",
    "mean_interval",
    "mean_split",
    "module_table",
    "nfn_scores",
    "place",
    "plot_block",
    "plot_heatmap",
    "plot_types",
    "read_texts",
    "record_norms",
]

# Imported when they are asked for: not everybody needs matplotlib, seaborn and ipywidgets.
_LATER = {
    "explore": "explorer",
    "plot_block": "block_plot",
    "plot_heatmap": "plots",
    "plot_types": "plots",
}
_SUBMODULES = {module.name for module in pkgutil.iter_modules(__path__)}

sys.meta_path.append(OldModules())


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"plop_nb.{_LATER[name]}"), name)
    if name in _SUBMODULES or name in OldModules.names:
        return importlib.import_module(f"plop_nb.{name}")
    raise AttributeError(f"module 'plop_nb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_SUBMODULES})
