"""A widget to try placements with: the choice, its picture and its config follow the controls."""

import html
import json
import re
from collections.abc import Mapping
from threading import Lock
from typing import Any

import pandas as pd
from torch import nn

from plop_nb.budgets import adapter_sizes, affordable, with_targets
from plop_nb.checks import missing_extra, positive_integer
from plop_nb.explorer_picture import Means, picture
from plop_nb.placement import Placement, place
from plop_nb.stats import lowest, type_means
from plop_nb.targets import name_pattern, skeleton
from plop_nb.text_table import check_columns

try:
    import ipywidgets as widgets
except ImportError as error:
    raise missing_extra("explore", "ipywidgets", "notebooks") from error

RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
GROUPS = {"types": "type", "layers": "layer", "modules": "target"}
K, BUDGET = "k types", "parameter budget"
# What the limit K is called by statistic: layers and modules get what `k` types would cost.
LIMITS = {"types": K, "layers": "cost of k types", "modules": "cost of k types"}


def explore(
    scores: pd.DataFrame | Mapping[str, pd.DataFrame],
    model: nn.Module | None = None,
    *,
    k: int = 3,
    r: int = 16,
    lora_alpha: int | None = None,
) -> "Explorer":
    """Try placements in a notebook: a widget with profile, heat map, parameter count and config.

    Adapters go on the lowest types, layers or single modules, as many as the budget allows. The
    budget is a number of parameters, or what adapters of this rank on the `k` lowest types have:
    types, layers and modules are compared at equal parameters.

    Parameters
    ----------
    scores : pandas.DataFrame, or dict of them
        From `nfn_scores`; several domains as `{domain: scores}`.
    model : torch.nn.Module, optional
        The model that was scored. With it the configuration is `Placement.lora_config`'s, proven to
        hit exactly the chosen modules. Without it, it is a regular expression that hits exactly
        them among all scored modules: right for plain models; it has no `task_type`, cannot know of
        modules that got no score, nor of those that PEFT renames (some mixtures of experts).
    k : int
        How many types to start with.
    r : int
        Rank to start with.
    lora_alpha : int, optional
        Scale of the adapters in the config, the same at every rank; None leaves it to PEFT, which
        takes 8.

    Returns
    -------
    Explorer
        An ipywidgets `VBox` that shows itself. Cells after it can read `.placement` (a
        `Placement`), `.parameters` (trainable ones) and `.config_text`; all three are None while an
        error is shown.

    Raises
    ------
    TypeError
        `scores` is neither a frame nor a dict of frames, or `model` is no model.
    ValueError
        `k`, `r` or `lora_alpha` is out of range, `scores` is not from `nfn_scores`, or `model` is
        another one.
    """
    domains = dict(scores) if isinstance(scores, Mapping) else {"scores": scores}
    if not domains or not all(isinstance(frame, pd.DataFrame) for frame in domains.values()):
        raise TypeError(
            f"scores={scores!r:.80}, expected the frame that nfn_scores returns, "
            "or a dict {domain: frame}"
        )
    if not (model is None or isinstance(model, nn.Module)):
        raise TypeError(
            f"model is {type(model).__name__}, expected the torch.nn.Module that was scored, "
            "or None"
        )
    r = positive_integer("r", r)
    if lora_alpha is not None:
        lora_alpha = positive_integer("lora_alpha", lora_alpha)
    for frame in domains.values():
        check_columns(frame, "layer")
        lowest(frame, k)  # raises where `k` or the frame is wrong
    domains = {name: with_targets(frame) for name, frame in domains.items()}
    return Explorer(domains, model, k=k, r=r, lora_alpha=lora_alpha)


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

    placement: Placement | None
    parameters: int | None
    config_text: str | None

    def __init__(
        self,
        domains: dict[str, pd.DataFrame],
        model: nn.Module | None,
        *,
        k: int,
        r: int,
        lora_alpha: int | None = None,
    ) -> None:
        self._domains = domains
        self._means = {name: Means(scores) for name, scores in domains.items()}
        self._alpha = lora_alpha
        # A cell below may put adapters into the model itself, so keep a copy without its weights.
        self._model = None if model is None else skeleton(model)
        self._forms: dict[tuple[str, ...], dict[str, Any]] = {}  # proven ones, by chosen modules
        self._lock = Lock()  # a notebook may run callbacks in several threads (kernel subshells)
        self._make_controls(k, r)
        self.status = widgets.HTML()
        self.picture = widgets.HTML()
        self.summary = widgets.HTML()
        box = {"width": "auto", "height": "9em"}
        self.config = widgets.Textarea(description="Config", layout=box)
        self._update()
        in_rows = {"flex_flow": "row wrap"}
        buttons = widgets.HBox([self.domain, self.statistic, self.limit], layout=in_rows)
        sizes = widgets.HBox([self.k, self.budget, self.rank], layout=in_rows)
        results = [self.status, self.picture, self.summary, self.config]
        super().__init__([buttons, sizes, *results])

    def _make_controls(self, k: int, r: int) -> None:
        frames = self._domains.values()
        self.domain = _buttons("Domain", list(self._domains))
        if len(frames) == 1:
            self.domain.layout.display = "none"
        layered = all(frame["layer"].notna().any() for frame in frames)
        statistics = [name for name in GROUPS if layered or name != "layers"]
        self.statistic = _buttons("Statistic", statistics)
        self.limit = _buttons("Limit", _limits("types"))
        types = min(len(type_means(frame)) for frame in frames)
        at_the_end = {"continuous_update": False}  # of a drag, not all along it
        self.k = widgets.IntSlider(description="k types", value=k, min=1, max=types, **at_the_end)
        ranks = sorted({*RANKS, r})
        self.rank = widgets.SelectionSlider(
            description="Rank", options=ranks, value=r, **at_the_end
        )
        whole = max(int(adapter_sizes(frame).sum()) for frame in frames) * ranks[-1]
        cost = self._cost_of_k()
        step = max(1, cost // 100)
        self.budget = widgets.BoundedIntText(
            description="Parameters", value=cost, min=1, max=whole, step=step
        )
        for control in (self.domain, self.statistic, self.limit, self.k, self.budget, self.rank):
            control.observe(self._changed, "value")

    @property
    def _scores(self) -> pd.DataFrame:
        return self._domains[self.domain.value]

    def _cost_of_k(self) -> int:
        """Parameters of adapters on the `k` lowest types."""
        types = lowest(self._scores, self.k.value)
        return self.rank.value * int(adapter_sizes(self._scores)[types].sum())

    def _changed(self, change: dict) -> None:
        """Choose and draw again. An error goes to the page: in a callback nobody would see it."""
        control, limit = change["owner"], self.limit.value
        if control is self.statistic:
            self._name_limit()
        if control is self.k and limit == BUDGET:
            return  # it waits until it is the limit
        if control is self.budget and limit == K:
            self.budget.value = self._cost_of_k()  # it follows `k`, whatever was typed
            return
        with self._lock:
            try:
                self._update()
                self.status.value = ""
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}")

    def _name_limit(self) -> None:
        """Call the limit what it is for the statistic. New options would reset the choice."""
        chosen = self.limit.value
        self.limit.unobserve(self._changed, "value")
        self.limit.options = _limits(self.statistic.value)
        self.limit.value = chosen
        self.limit.observe(self._changed, "value")

    def _fail(self, message: str) -> None:
        self.placement = self.parameters = self.config_text = None
        self.config.value = self.summary.value = ""
        alert = f'<b role="alert" style="color: #c00">{html.escape(message)}</b>'
        self.status.value = f"{alert} (picture: the choice before)"

    def _update(self) -> None:
        limit, r = self.limit.value, self.rank.value
        self.k.disabled = limit != K
        self.budget.disabled = limit != BUDGET
        if limit == K:
            self.budget.value = self._cost_of_k()
        placement = self._placed()
        chosen = self._scores[self._scores["module"].isin(placement.modules)]
        parameters = r * int(adapter_sizes(chosen).sum())
        self.config_text = _config_text(r, self._alpha, **self._form(placement, chosen))
        self.placement, self.parameters = placement, parameters
        self.config.value = self.config_text
        self.summary.value = _summary(placement, parameters, chosen)
        means = self._means[self.domain.value]
        self.picture.value = picture(means, self.statistic.value, placement)

    def _placed(self) -> Placement:
        """The lowest groups within the budget."""
        scores, budget, r = self._scores, self.budget.value, self.rank.value
        by = GROUPS[self.statistic.value]
        if by == "type":
            return place(scores, parameters=budget, r=r)
        grouped = scores.dropna(subset=by)  # a projector is in no layer
        lit = scores[by].isin(affordable(grouped, budget, r, by))
        return Placement.of_modules(scores, scores.loc[lit, "module"].unique())

    def _form(self, placement: Placement, chosen: pd.DataFrame) -> dict[str, Any]:
        """Arguments of `LoraConfig` that name the chosen modules.

        With a model they are proven, once for every choice.
        """
        if self._model is None:
            return _unproven_form(chosen, self._scores)
        modules = tuple(placement.modules)
        if modules not in self._forms:
            config = placement.lora_config(self._model)
            self._forms[modules] = {
                "target_modules": config.target_modules,
                "target_parameters": config.target_parameters,
                "task_type": config.task_type,
            }
        return self._forms[modules]


def _limits(statistic: str) -> list[tuple[str, str]]:
    """(label, value) of each limit."""
    return [(LIMITS[statistic], K), (BUDGET, BUDGET)]


def _buttons(description: str, options: list) -> widgets.ToggleButtons:
    """One of several; no `Dropdown`, whose arrow keys JupyterLab takes to move between cells."""
    one_line = {"width": "auto", "display": "flex", "flex_flow": "row nowrap"}
    style = {"button_width": "auto", "description_width": "5em"}
    return widgets.ToggleButtons(
        description=description, options=options, style=style, layout=one_line
    )


# The configuration as code


def _unproven_form(chosen: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    """The arguments that name the chosen modules, and no other scored one."""
    plain, stacked = chosen[chosen["experts"] == 1], chosen[chosen["experts"] > 1]
    known = scores[scores["experts"] == 1]
    return {
        "target_modules": name_pattern(plain["target"].unique(), known["target"].unique()),
        "target_parameters": stacked["target"].unique().tolist(),
    }


def _config_text(
    r: int,
    lora_alpha: int | None,
    *,
    target_modules: Any = None,
    target_parameters: list[str] | None = None,
    task_type: str | None = None,
) -> str:
    """Code that makes the `LoraConfig`."""
    lines = ["from peft import LoraConfig", "", "config = LoraConfig(", f"    r={r},"]
    lines += [] if lora_alpha is None else [f"    lora_alpha={lora_alpha},"]
    lines.append(f"    target_modules={_literal(target_modules or [])},")
    if target_parameters:
        lines.append(f"    target_parameters={_literal(target_parameters)},")
    if task_type:
        lines.append(f'    task_type="{task_type}",')
    return "\n".join([*lines, ")"])


def _literal(names: Any) -> str:
    """A list of names, or a regular expression broken where its alternatives meet."""
    if isinstance(names, str):
        alternatives = re.split(r"(?=\|)(?![^(]*\))", names)
        lines = [f"        {_raw(alternative)}" for alternative in alternatives]
        return "\n".join(["(", *lines, "    )"])
    names = sorted(names)
    text = json.dumps(names)
    if len(text) < 90:
        return text
    return json.dumps(names, indent=8).removesuffix("]") + "    ]"


def _raw(pattern: str) -> str:
    """A regular expression as a raw string, but where a name holds what would end one."""
    return repr(pattern) if '"' in pattern or "\n" in pattern else f'r"{pattern}"'


# What is shown


def _summary(placement: Placement, parameters: int, chosen: pd.DataFrame) -> str:
    """One paragraph: parameters, modules of each type, and how sure the choice is."""
    counts = chosen.drop_duplicates("target")["type"].value_counts()
    types = [f"{html.escape(name)} ({counts[name]})" for name in placement.types]
    size = f"<b>{parameters:,} trainable parameters</b> in {counts.sum()} modules"
    lines = [f"{size}: {', '.join(types)}"]
    if placement.swaps is not None:  # else it was chosen by hand, and nothing is known
        lines += [placement.certainty] if placement.certainty else []
        lines += [html.escape(note) for note in placement.notes]
    return "<br>".join(lines)
