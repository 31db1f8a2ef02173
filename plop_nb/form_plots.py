"""A picture of what NFN owes to the form that a function is stored in."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from plop_nb.checks import positive_integer
from plop_nb.forms import FORMS, check_form
from plop_nb.palette import DARK, spread_out, styled, type_color
from plop_nb.plots import NFN

# What the same role is called in other architectures: one name for all.
ROLES = {
    "value": "v",
    "query": "q",
    "key": "k",
    "attention.output.dense": "o",
    "intermediate.dense": "up",
    "layer.*.output.dense": "down",
}
FONT = 10  # points, of the labels
PANEL = (2.9, 5.6)  # inches


@styled()
def plot_forms(scores: pd.DataFrame, k: int = 3) -> np.ndarray:
    """Scores of each type in every form of each model; the lowest of each form as large dots.

    One panel per model, one line per type, each on a logarithmic axis of its own. Titles
    say which of the lowest types change from form to form.

    Parameters
    ----------
    scores : pandas.DataFrame
        Columns `form` (of `forms.FORMS`, two at least), `type`, `nfn`, and, for several models,
        `model`: frames of `nfn_scores` or `by_type` with the form assigned, one below the other. A
        type's score is the mean over all of its rows.
    k : int
        How many of the lowest types to mark (of fewer, all).

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per model, in the order of the rows, of a new figure.

    Raises
    ------
    ValueError
        `scores` lacks a column, holds no two forms, or an unknown one, or lacks a type in one of
        a model's forms; a score is not positive; `k` is below 1.

    Examples
    --------
    >>> scores = pd.DataFrame({"form": ["stored", "folded"] * 2, "type": ["up", "up", "v", "v"],
    ...     "nfn": [0.9, 0.6, 0.6, 0.7]})
    >>> axes = plot_forms(scores, k=1)
    >>> axes[0].get_title(loc="left")
    'folded: up instead of v'
    """
    tables = _tables(scores)
    k = positive_integer("k", k)
    axes = _panels(len(tables))
    changes = []
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        chosen = {form: table[form].nsmallest(k).index.tolist() for form in table}
        _set_scale(ax, table)
        _draw(ax, table, chosen)
        changes.append(_changes(chosen))
        _set_title(ax, name, changes[-1])
    figure = axes[0].figure
    domains = scores["domain"].unique() if "domain" in scores else []
    texts = f" (texts: {', '.join(domains)})" if len(domains) else ""
    figure.supxlabel(
        f"large dots: the {k} lowest types of a form{texts}; scales differ", fontsize=FONT
    )
    if len(tables) > 1:
        of_all = f"{sum(map(bool, changes))} of {len(tables)} models"
        title = f"The same function in another form: other types are lowest, in {of_all}"
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return axes


def role_of(type_name: str) -> str:
    """A short name that architectures share, such as "v"; a type that has none keeps its own."""
    last = type_name.rpartition(".")[2]
    own = last.removesuffix("_proj") if last.endswith("_proj") else type_name
    return ROLES.get(type_name, own)


def _tables(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{model: mean NFN, types down and forms across}."""
    missing = {"form", "type", "nfn"} - set(getattr(scores, "columns", ()))
    if missing:
        raise ValueError(
            f"scores lacks the columns {sorted(missing)}: pass frames of nfn_scores with "
            "assign(form=...), one below the other"
        )
    scores = scores if "model" in scores else scores.assign(model="")
    tables = {}
    for name, rows in scores.groupby("model", sort=False):
        table = rows.groupby(["type", "form"], observed=True)["nfn"].mean().unstack("form")
        found = [check_form(form) for form in table]
        if len(found) < 2:
            raise ValueError(f"scores holds the form {found} of {name!r} only: pass two at least")
        if table.isna().any(axis=None) or not (table > 0).all(axis=None):
            wrong = table[table.isna().any(axis=1) | ~(table > 0).all(axis=1)].index[0]
            raise ValueError(
                f"type {wrong!r} of {name!r} lacks a positive score in one of the forms: score "
                "all forms of a model on the same texts"
            )
        tables[name] = table[[form for form in FORMS if form in found]]
    if not tables:
        raise ValueError("scores is an empty frame: there is nothing to draw")
    return tables


def _panels(count: int) -> np.ndarray:
    """Axes side by side, each with a scale of its own."""
    width, height = PANEL
    size = (width * count + 0.5, height)
    figure, axes = plt.subplots(1, count, figsize=size, squeeze=False, layout="constrained")
    axes[0, 0].set_ylabel(NFN)
    sns.despine(fig=figure)
    return axes[0]


def _changes(chosen):
    """What each form has among its lowest that the one before it has not, in words."""
    said = []
    forms = list(chosen)
    for before, form in pairwise(forms):
        new = [name for name in chosen[form] if name not in chosen[before]]
        old = [name for name in chosen[before] if name not in chosen[form]]
        if new:
            said.append(f"{form}: {_short(new)} instead of {_short(old)}")
    return said


def _set_title(ax, name, changes):
    """The model and what changes in it."""
    lines = [name, *(changes or ["the same in every form"])]
    ax.set_title("\n".join(filter(None, lines)), loc="left", fontsize=FONT + 1)


def _short(names):
    return ", ".join(role_of(name) for name in names)


def _set_scale(ax: Axes, table: pd.DataFrame) -> None:
    """A logarithmic axis for all scores of a model, with plain numbers."""
    low, high = table.min(axis=None), table.max(axis=None)
    ax.set(yscale="log", ylim=(min(low, 1) / 1.15, max(high, 1) * 1.15))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _draw(ax: Axes, table: pd.DataFrame, chosen: dict[str, list[str]]) -> None:
    """One line per type, its name at the right end, and a dot at each form."""
    places = np.arange(table.shape[1])
    ax.axhline(1, color=DARK, lw=1, ls="--", zorder=0)
    low, high = np.log(ax.get_ylim())
    inches = ax.figure.get_figheight() * 0.8  # what titles leave
    gap = (high - low) * FONT * 1.3 / (72 * inches)
    heights = np.exp(spread_out(np.log(table.iloc[:, -1].to_numpy()), gap, low, high))
    for (name, row), height in zip(table.iterrows(), heights, strict=True):
        color = type_color(name)
        ax.plot(places, row, color=color, lw=1.6, zorder=2, label=name)
        for place, form in zip(places, table, strict=True):
            is_chosen = name in chosen[form]
            size, face = (70, color) if is_chosen else (22, "white")
            ax.scatter(place, row[form], s=size, color=face, edgecolor=color, zorder=3)
        text = f"{role_of(name)} {row.iloc[-1]:.2f}"
        style = {"color": color, "fontsize": FONT, "va": "center", "annotation_clip": False}
        ax.annotate(text, (places[-1], height), (9, 0), textcoords="offset points", **style)
    ax.set_xticks(places, list(table))
    ax.set_xlim(-0.2, places[-1] + 0.12)  # labels begin behind the axes
