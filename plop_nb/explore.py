"""A widget to try placements with: what is chosen, its picture and its LoraConfig follow the controls."""

import html
import io
import json
import re
from collections.abc import Mapping
from threading import Lock

import ipywidgets as widgets
import pandas as pd
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from plop_nb.placement import Placement, adapter_sizes, affordable, name_pattern, place, skeleton, with_targets
from plop_nb.plots import CHOSEN, NFN, OTHER, plot_heatmap, plot_types
from plop_nb.stats import by_layer, by_module, by_type, lowest, type_means

RANKS = [2**i for i in range(9)]
GROUPS = {"types": "type", "layers": "layer", "modules": "target"}
K, BUDGET = "k types", "parameter budget"
FORM = ("target_modules", "target_parameters", "task_type")
DPI = 110


def explore(scores, model=None, *, k=3, r=16):
    """Try placements in a notebook: a widget with profile, heat map, parameter count and `LoraConfig`.

    Adapters go on the lowest types, layers or single modules, as many as the budget allows. The
    budget is a number of parameters, or what adapters of this rank on the `k` lowest types have:
    types, layers and modules are compared at equal parameters.

    Parameters
    ----------
    scores : pandas.DataFrame, or dict of them
        From `nfn_scores`; several domains as `{domain: scores}`.
    model : torch.nn.Module, optional
        The model that was scored. With it the configuration is `Placement.lora_config`'s, proven to
        hit exactly the chosen modules. Without it, it is a regular expression that hits exactly them
        among all scored modules: right for plain models; it has no `task_type`, cannot know of
        modules that got no score, nor of those that PEFT renames (some mixtures of experts).
    k : int
        How many types to start with.
    r : int
        Rank to start with.

    Returns
    -------
    Explorer
        An ipywidgets `VBox` that shows itself. Cells after it can read `.placement` (a `Placement`),
        `.parameters` (trainable ones) and `.config_text`; all three are None while an error is shown.

    Raises
    ------
    TypeError
        `scores` is neither a frame nor a dict of frames, or `model` is no model.
    ValueError
        `k` or `r` is out of range, `scores` is not from `nfn_scores`, or `model` is another one.
    """
    domains = dict(scores) if isinstance(scores, Mapping) else {"scores": scores}
    if not domains or not all(isinstance(frame, pd.DataFrame) for frame in domains.values()):
        raise TypeError(
            f"scores={scores!r:.80}, expected the frame that nfn_scores returns, or a dict {{domain: frame}}"
        )
    if not (model is None or isinstance(model, nn.Module)):
        raise TypeError(f"model is {type(model).__name__}, expected the torch.nn.Module that was scored, or None")
    if not isinstance(r, int) or isinstance(r, bool) or r < 1:
        raise ValueError(f"r={r!r}, expected a positive integer, such as 16")
    for frame in domains.values():
        lowest(frame, k)
    return Explorer({name: with_targets(frame) for name, frame in domains.items()}, model, k, r)


class Explorer(widgets.VBox):
    """The widget that `explore` makes.

    Attributes
    ----------
    placement : Placement
        What the controls choose; None while they ask for the impossible.
    parameters : int
        Trainable parameters of its adapters.
    config_text : str
        Code that makes its `LoraConfig`.
    domain, statistic, limit, k, budget, rank : ipywidgets.Widget
        The controls; setting their `value` from a cell does what a hand on them does. While `limit`
        is "k types", `budget` follows `k`, and goes back when set.
    """

    def __init__(self, domains, model, k, r):
        self._domains, self._forms = domains, {}
        self._model = model if model is None else skeleton(model)  # a cell below may put adapters into the model itself
        self._lock = Lock()  # a notebook may run callbacks in several threads (kernel subshells)
        self.domain = _buttons("Domain", domains)
        self.statistic = _buttons("Statistic", self._statistics())
        self.limit = _buttons("Limit", [K, BUDGET])
        types = min(len(type_means(frame)) for frame in domains.values())
        self.k = widgets.IntSlider(description="k types", value=k, min=1, max=types, continuous_update=False)
        ranks = sorted({*RANKS, r})
        self.rank = widgets.SelectionSlider(description="Rank", options=ranks, value=r, continuous_update=False)
        whole = max(int(adapter_sizes(frame).sum()) for frame in domains.values()) * ranks[-1]
        self.budget = widgets.BoundedIntText(description="Parameters", value=self._cost(k), min=1, max=whole)
        self.budget.step = max(1, self.budget.value // 100)
        self.picture, self.summary, self.status = widgets.Image(format="png"), widgets.HTML(), widgets.HTML()
        self.config = widgets.Textarea(description="Config", layout={"width": "auto", "height": "16em"})
        self.picture.layout.max_width, self.status.layout.min_height = "100%", "2em"
        if len(domains) == 1:
            self.domain.layout.display = "none"
        controls = [self.domain, self.statistic, self.limit, self.k, self.budget, self.rank]
        for control in controls:
            control.observe(self._changed, "value")
        self._update()
        sizes = widgets.HBox(controls[3:], layout={"flex_flow": "row wrap"})
        super().__init__([*controls[:3], sizes, self.status, self.picture, self.summary, self.config])

    def _statistics(self):
        layered = all(frame["layer"].notna().any() for frame in self._domains.values())
        return [name for name in GROUPS if layered or name != "layers"]

    @property
    def _scores(self):
        return self._domains[self.domain.value]

    def _cost(self, k):
        """Parameters of adapters on the `k` lowest types."""
        return self.rank.value * int(adapter_sizes(self._scores)[lowest(self._scores, k)].sum())

    def _changed(self, change):
        """Choose and draw again. An error goes to the page: in a callback nobody would see it."""
        if change["owner"].disabled:  # `k` waits for its limit; the budget box, which follows it, goes back
            if change["owner"] is self.budget:
                self.budget.value = self._cost(self.k.value)
            return
        with self._lock:
            try:
                self._update()
                self.status.value = ""
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, message):
        self.placement = self.parameters = self.config_text = None
        self.config.value = self.summary.value = ""
        alert = f'<b role="alert" style="color: #c00">{html.escape(message)}</b>'
        self.status.value = f"{alert} (picture: the choice before)"

    def _update(self):
        self.k.disabled, self.budget.disabled = self.limit.value == BUDGET, self.limit.value == K
        if self.limit.value == K:
            self.budget.value = self._cost(self.k.value)
        placement = self._placed()
        chosen = self._scores[self._scores["module"].isin(placement.modules)]
        parameters = self.rank.value * int(adapter_sizes(chosen).sum())
        self.config_text = _config_text(self.rank.value, **self._form(placement, chosen))
        self.placement, self.parameters = placement, parameters
        self.config.value = self.config_text
        self.summary.value = _summary(placement, parameters, chosen.drop_duplicates("target")["type"].value_counts())
        self.picture.value = _png(self._scores, self.statistic.value, placement)

    def _placed(self):
        """The lowest groups within the budget."""
        scores, budget, r = self._scores, self.budget.value, self.rank.value
        by = GROUPS[self.statistic.value]
        if by == "type":
            return place(scores, parameters=budget, r=r)
        lit = scores[by].isin(affordable(scores, budget, r, by))
        return Placement.of_modules(scores, scores.loc[lit, "module"].unique())

    def _form(self, placement, chosen):
        """Arguments of `LoraConfig` that name the chosen modules; with a model proven, once for every choice."""
        if self._model is None:
            return _unproven_form(chosen, self._scores)
        key = tuple(placement.modules)
        if key not in self._forms:
            config = placement.lora_config(self._model)
            self._forms[key] = {name: getattr(config, name) for name in FORM}
        return self._forms[key]


def _buttons(description, options):
    """One of several; not a `Dropdown`, whose arrow keys JupyterLab takes to move between cells."""
    one_line = {"width": "auto", "display": "flex", "flex_flow": "row nowrap"}
    style = {"button_width": "auto", "description_width": "5em"}
    return widgets.ToggleButtons(description=description, options=list(options), style=style, layout=one_line)


def _unproven_form(chosen, scores):
    """The arguments that name the chosen modules, and no other scored one."""
    stacked = lambda frame: frame.loc[frame["experts"] > 1, "target"].unique().tolist()
    plain = lambda frame: frame.loc[frame["experts"] == 1, "target"].unique()
    return {"target_modules": name_pattern(plain(chosen), plain(scores)), "target_parameters": stacked(chosen)}


def _config_text(r, target_modules=None, target_parameters=None, task_type=None):
    """Code that makes the `LoraConfig`."""
    lines = ["from peft import LoraConfig", "", "config = LoraConfig(", f"    r={r},"]
    lines.append(f"    target_modules={_literal(target_modules or [])},")
    lines += [f"    target_parameters={_literal(target_parameters)},"] if target_parameters else []
    lines += [f'    task_type="{task_type}",'] if task_type else []
    return "\n".join([*lines, ")"])


def _literal(names):
    """A list, or a regular expression broken where its alternatives meet."""
    if isinstance(names, str):
        parts = re.split(r"(?=\|)(?![^(]*\))", names)
        return "(\n" + "\n".join(f'        r"{part}"' for part in parts) + "\n    )"
    names = sorted(names)
    text = json.dumps(names)
    return text if len(text) < 90 else json.dumps(names, indent=8)[:-1] + "    ]"


def _summary(placement, parameters, modules):
    """One paragraph; `modules` counts the chosen ones of each type."""
    types = ", ".join(f"{html.escape(name)} ({count})" for name, count in modules[placement.types].items())
    lines = [f"<b>{parameters:,} trainable parameters</b> in {modules.sum()} modules: {types}"]
    if placement.swaps is not None:
        lines += [f"confidence {placement.confidence:.0%}", *map(html.escape, placement.notes)]
    return "<br>".join(lines)


def _png(scores, statistic, placement):
    """Profile and heat map of a placement as PNG bytes: a picture that is replaced in one go does not flicker."""
    layers = scores["layer"].nunique()
    size = (11 if layers else 6, 0.17 * min(40, max(scores["type"].nunique() + 4, layers, 20)) + 1.2)
    canvas = FigureCanvasAgg(Figure(figsize=size, dpi=DPI, layout="constrained"))
    left, *right = canvas.figure.subplots(1, 2 if layers else 1, squeeze=False)[0]
    PROFILES[statistic](scores, placement, left)
    left.set_title(f"Profile by {statistic[:-1]}", loc="left")
    for ax in right:
        plot_heatmap(scores, chosen=placement.modules, ax=ax).set_title("Outlined: with adapters", loc="left")
        ax.tick_params(axis="x", rotation=90)
    buffer = io.BytesIO()
    canvas.print_png(buffer, pil_kwargs={"compress_level": 1})  # one pass: savefig would draw all twice
    return buffer.getvalue()


def _types_profile(scores, placement, ax):
    plot_types(scores, k=len(placement.types), ax=ax)


def _layers_profile(scores, placement, ax):
    layers = by_layer(scores)
    chosen = scores.loc[scores["module"].isin(placement.modules), "layer"].unique()
    colors = [CHOSEN if layer in chosen else OTHER for layer in layers["layer"]]
    spread = [(layers["nfn"] - layers["low"]).clip(lower=0), (layers["high"] - layers["nfn"]).clip(lower=0)]
    ax.barh(layers["layer"], layers["nfn"], xerr=spread, color=colors, error_kw={"capsize": 2, "lw": 1})
    ax.set_ylim(layers["layer"].max() + 0.5, layers["layer"].min() - 0.5)  # in line with the heat map
    _dress(ax, "layer")


def _modules_profile(scores, placement, ax):
    modules = by_module(scores)
    types = by_type(scores)["type"].tolist()
    colors = modules["module"].isin(placement.modules).map({True: CHOSEN, False: OTHER})
    ax.scatter(modules["nfn"], modules["type"].map(types.index), c=colors, s=14, alpha=0.7)
    ax.set_yticks(range(len(types)), types)
    ax.invert_yaxis()
    _dress(ax, "")


def _dress(ax, ylabel):
    ax.axvline(1, color="0.15", lw=1, ls="--")
    ax.set(xlabel=NFN, ylabel=ylabel)
    sns.despine(ax=ax)


PROFILES = {"types": _types_profile, "layers": _layers_profile, "modules": _modules_profile}
