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

if TYPE_CHECKING:
    from plop_nb.block_plot import plot_block
    from plop_nb.covering import Coverage, CoverageWarning, coverage
    from plop_nb.explorer import explore
    from plop_nb.geometry import mean_split
    from plop_nb.maps import module_table
    from plop_nb.models import load_model
    from plop_nb.moves import fold_norms
    from plop_nb.placement import Placement, place
    from plop_nb.plots import plot_heatmap, plot_types
    from plop_nb.profiles import load_scores, save_scores
    from plop_nb.recording import record_norms
    from plop_nb.scoring import nfn_scores
    from plop_nb.stats import by_layer, by_module, by_type, mean_interval
    from plop_nb.text_files import read_texts
    from plop_nb.texts import data_file, load_texts

try:
    __version__ = version("plop_nb")
except PackageNotFoundError:  # run from a checkout
    __version__ = "unknown"


def _check_transformers() -> None:
    """Refuse what pip lets through with `--no-deps`: older ones read some tokenizers wrongly."""
    try:
        found = version("transformers")
    except PackageNotFoundError:  # which importing it says
        return
    if tuple(map(int, found.split(".")[:2])) < (5, 23):
        raise ImportError(
            f"plop_nb needs transformers 5.23 or newer and finds {found}: "
            "pip install 'transformers>=5.23'"
        )


_check_transformers()

# The public names, and where they are. Each is imported when it is asked for: torch takes seconds,
# and not everybody needs matplotlib and ipywidgets.
_WHERE = {
    "Coverage": "covering",
    "CoverageWarning": "covering",
    "Placement": "placement",
    "by_layer": "stats",
    "by_module": "stats",
    "by_type": "stats",
    "coverage": "covering",
    "data_file": "texts",
    "explore": "explorer",
    "fold_norms": "moves",
    "load_model": "models",
    "load_scores": "profiles",
    "load_texts": "texts",
    "mean_interval": "stats",
    "mean_split": "geometry",
    "module_table": "maps",
    "nfn_scores": "scoring",
    "place": "placement",
    "plot_block": "block_plot",
    "plot_heatmap": "plots",
    "plot_types": "plots",
    "read_texts": "text_files",
    "record_norms": "recording",
    "save_scores": "profiles",
}
__all__ = list(_WHERE)
_SUBMODULES = {module.name for module in pkgutil.iter_modules(__path__)}

sys.meta_path.append(OldModules())


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"plop_nb.{_WHERE[name]}"), name)
    if name in _SUBMODULES or name in OldModules.names:
        return importlib.import_module(f"plop_nb.{name}")
    raise AttributeError(f"module 'plop_nb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_SUBMODULES})
