"""PLoP in notebooks: where do the adapters go?

Scores every linear map of a pretrained model on a task's texts by its Normalized Feature Norm
and puts LoRA adapters on the lowest-scoring module types (Hayou, Ghosh, Yu, arXiv 2506.20629).

Shapes and units used in all docstrings:

- ``W``: weight of a linear map, (out_features, in_features); ``b``: its bias, not part of a score.
- ``z``: input of one token to a map, (in_features,); inputs of a batch are (batch, length, in_features).
- NFN: ``||W z|| / (||z|| * baseline)``, dimensionless; 1 is what a random input gives.
- type: a module's name with its layer and other list indices starred, shortened where unambiguous.
- scores: a tidy DataFrame, one row per sample and module.
"""

from plop_nb.directions import mean_split
from plop_nb.explore import explore
from plop_nb.hooks import record_norms
from plop_nb.models import load_model
from plop_nb.modules import module_table
from plop_nb.nfn import nfn_scores
from plop_nb.placement import Placement, place
from plop_nb.plots import plot_heatmap, plot_types
from plop_nb.stats import by_layer, by_module, by_type
from plop_nb.texts import load_texts

__all__ = [
    "Placement",
    "by_layer",
    "by_module",
    "by_type",
    "explore",
    "load_model",
    "load_texts",
    "mean_split",
    "module_table",
    "nfn_scores",
    "place",
    "plot_heatmap",
    "plot_types",
    "record_norms",
]
