"""Where adapters really land: what each entry of a configuration hits in a model."""

import os
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from peft import LoraConfig, PeftModel
from torch import nn

from plop_nb import adapter_files
from plop_nb.adapter_configs import adapter_folder, read_config
from plop_nb.checks import user_level
from plop_nb.empty_models import empty_model
from plop_nb.landing import Landing, land
from plop_nb.landing_problems import problems_of
from plop_nb.module_tree import tree
from plop_nb.ranges import ranges


class CoverageWarning(UserWarning):
    """Adapters are not where the configuration seems to say."""


@dataclass(frozen=True, repr=False, eq=False)
class Coverage:
    """What a configuration hits in a model. Shows itself as a tree of modules in a notebook.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per entry of the configuration and type of module: `argument` (such as
        `target_modules`), `entry`, `type`, `hit` (modules of this type that get adapters by this
        entry), `of` (modules of this type), `layers` (such as "0-29"), `trainable` (parameters
        of the adapters). An entry that hits nothing has one row, of `hit` 0 and without a type.
    types : pandas.DataFrame
        One row per type of module in the model: `type`, `path` (its full name, layers starred),
        `modules`, `hit`, `layers` (those with adapters), `trainable`, `status` (as in
        `module_table`).
    problems : list of str
        What is probably not meant, one line each. Each was also given as a `CoverageWarning`.
    notes : list of str
        What may be meant, and should be known.
    missed : list of str
        Entries that hit nothing.
    adapted : dict
        {what gets an adapter: its parameters}, as PEFT names it: a module, or a parameter.
    trained : pandas.DataFrame or None
        Of a trained adapter, one row for each of `adapted`: `target`, `loaded` (its tensors are
        there), `b_norm` (the Frobenius norm of B: 0 where nothing was trained, NaN where PEFT
        converts the tensors on loading). None without one.
    """

    model: str
    table: pd.DataFrame
    types: pd.DataFrame
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    adapted: dict[str, int] = field(default_factory=dict)
    trained: pd.DataFrame | None = None

    @property
    def headline(self) -> str:
        """How many adapters there are, in one line."""
        count = f"{len(self.adapted)} adapters" if len(self.adapted) != 1 else "1 adapter"
        return f"{count} in {self.model}, {sum(self.adapted.values()):,} trainable parameters"

    def __repr__(self) -> str:
        shown = self.table.astype({"type": object}).fillna({"type": "nothing"})
        problems = [f"PROBLEM: {line}" for line in self.problems]
        notes = [f"note: {line}" for line in self.notes]
        return "\n".join([self.headline, *problems, *notes, shown.to_string(index=False)])

    def _repr_html_(self) -> str:
        return tree(self.headline, self.types, problems=self.problems, notes=self.notes)


def coverage(model: nn.Module | str | os.PathLike, config: Any = None) -> Coverage:
    """What a LoRA configuration really hits in a model, and what is probably not meant.

    PEFT says nothing about a name in `target_modules` that matches no module as long as another
    one does. This injects the adapters into an empty copy of the model and compares.

    Parameters
    ----------
    model : torch.nn.Module, str or path
        A model, which is not changed; or a Hub id or folder, of which only `config.json` is read,
        so that a model of any size takes seconds.
    config : peft.LoraConfig, dict, peft.PeftModel, str, path or iterable of str, optional
        A configuration; the arguments of one; a wrapped model; an adapter's folder or its
        `adapter_config.json`; or `target_modules` alone: names, a regular expression, or
        "all-linear". May be left out where `model` is a `PeftModel`. Of a folder with a trained
        adapter, and of a `PeftModel`, also the tensors are looked at.

    Returns
    -------
    Coverage
        With `table`, `types`, `problems`, `notes`, `missed`, `adapted` and `trained`.

    Warns
    -----
    CoverageWarning
        Once for each problem. `warnings.simplefilter("error", plop_nb.CoverageWarning)` makes
        errors of them.

    Raises
    ------
    ValueError
        The configuration is not one of LoRA, or damaged, or PEFT refuses it for this model.
    FileNotFoundError, DownloadError
        There is no configuration of the adapter, or of the model.
    TypeError
        An argument is none of the above.
    """
    if config is None and isinstance(model, PeftModel):
        config = model
    read = read_config(config)
    described = model if isinstance(model, nn.Module) else empty_model(model)
    landing = land(described, read)
    problems, notes = problems_of(described, landing)
    held = _tensors(landing, read, config)
    if held is not None:
        problems += held.problems
    found = Coverage(
        model=landing.model,
        table=_table(landing),
        types=_types(landing),
        problems=problems,
        notes=notes,
        missed=landing.missed,
        adapted=landing.adapted,
        trained=None if held is None else held.table,
    )
    for problem in problems:
        warnings.warn(problem, CoverageWarning, stacklevel=user_level())
    return found


def _tensors(landing: Landing, read: LoraConfig, config: Any) -> adapter_files.Trained | None:
    """What the adapter's tensors say, where it has some."""
    if isinstance(config, PeftModel):
        return adapter_files.held(config)
    folder = adapter_folder(config)
    if folder is None or landing.peft_model is None:
        return None
    return adapter_files.trained(landing.peft_model, read, folder)


def _table(landing: Landing) -> pd.DataFrame:
    """One row per entry and type."""
    sizes = Counter(place.type for place in landing.places.values())
    rows = []
    for (argument, entry), targets in landing.hits.items():
        by_type = defaultdict(list)
        for target in targets:
            by_type[landing.places[target].type].append(target)
        for name, of_type in by_type.items():
            row = {"argument": argument, "entry": entry, "type": name, "hit": len(of_type)}
            row["of"] = sizes[name]
            row["layers"] = ranges(landing.places[t].layer for t in of_type)
            row["trainable"] = sum(landing.adapted.get(t, 0) for t in of_type)
            rows.append(row)
        if not targets:
            nothing = {"type": None, "hit": 0, "of": 0, "layers": "", "trainable": 0}
            rows.append({"argument": argument, "entry": entry, **nothing})
    columns = ["argument", "entry", "type", "hit", "of", "layers", "trainable"]
    return pd.DataFrame(rows, columns=columns)


def _types(landing: Landing) -> pd.DataFrame:
    """One row per type of the model."""
    rows: dict[str, dict] = {}
    layers = defaultdict(list)
    for target, place in landing.places.items():
        start = {"type": place.type, "path": place.path, "modules": 0, "hit": 0, "trainable": 0}
        row = rows.setdefault(place.type, {**start, "status": place.status})
        row["modules"] += 1
        if target in landing.adapted:
            row["hit"] += 1
            row["trainable"] += landing.adapted[target]
            layers[place.type].append(place.layer)
    table = pd.DataFrame(rows.values())
    table.insert(4, "layers", [ranges(layers[name]) for name in table["type"]])
    return table
