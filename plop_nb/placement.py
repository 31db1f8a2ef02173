"""Which module types get adapters."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any
from zlib import crc32

import pandas as pd
from peft import LoraConfig
from torch import nn

from plop_nb.budgets import adapted_modules, adapter_sizes, affordable
from plop_nb.checks import positive_integer
from plop_nb.exporting import export
from plop_nb.ranks import config_with_ranks
from plop_nb.rules import name_of, ordered_types
from plop_nb.stats import by_type, confidence, diagnoses, first_types, swaps, type_means
from plop_nb.targets import adapted_targets, difference, wanted_targets
from plop_nb.text_table import check_columns, text_table


def place(
    scores: pd.DataFrame,
    k: int | None = None,
    *,
    rule: str | pd.Series = "nfn",
    parameters: int | None = None,
    r: int = 16,
    seed: int = 0,
) -> "Placement":
    """Choose the module types with the lowest score (PLoP, section 3), or by another rule.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    k : int, optional
        How many types, 1 to all of them; 3 by default, as in the paper.
    rule : {"nfn", "size"} or pandas.Series
        Which types come first. "nfn": those with the lowest score. "size": those whose adapters
        have the most parameters at the same rank, which in most decoders are the three of the MLP;
        the scores do not matter, so those of one text will do. A Series {type: number} is a rule
        of your own: the lowest numbers come first.

        In the benchmark of notebooks 05 and 05b (SmolLM2-135M at the beginning of trainings, all 35
        sets of three types at equal parameters, sums and spelling) no rule is shown to choose
        better than "size". At one learning rate "size" is not shown to be ahead of the average set,
        with either scale of the adapters; at a higher one it is. At tuned rates the choice of "nfn"
        (value in the place of gate) is 0.25 nats per token behind it on spelling (0.09 to 0.40,
        intervals for all comparisons at once with a common spread of seeds; -0.01 to 0.51 with each
        placement's own), mostly as "size" can be trained at twice the rate, and cannot be told from
        it on sums and on syllogisms. On Gemma-3-270M and sums the choice of "nfn" is 0.04 ahead of
        "size", each at its own rate, which is undecided (0.11 ahead to 0.04 behind, three seeds).
    parameters : number, optional
        Instead of `k`, a budget: from the first type on, as many as keep the adapters within so
        many parameters.
    r : int
        Rank of the adapters that `parameters` counts.
    seed : int
        Seeds the resampling of texts behind the confidence.

    Returns
    -------
    Placement

    Raises
    ------
    ValueError
        `k` or `r` is out of range; `rule` is unknown, or lacks a type; `k` is given together with
        `parameters`, which is no positive number, or less than the adapters of the first type
        alone; or `scores` is not a frame of scores.

    Warns
    -----
    UserWarning
        Texts are copies of others: each counts once.
    """
    r = positive_integer("r", r)
    if k is not None and parameters is not None:
        raise ValueError(
            f"k={k!r} and parameters={parameters!r} both say how many types: leave one of them out"
        )
    table = text_table(scores)
    name = name_of(rule)
    sizes = adapter_sizes(scores) if name == "size" else None
    order = ordered_types(table, sizes, rule)
    if parameters is not None:
        k = len(affordable(scores, parameters, r, order=order))
    types = first_types(order, 3 if k is None else k)
    if name != "nfn":
        by_hand = Placement.of_types(scores, types)
        return replace(by_hand, types=types, notes=[f"chosen by {name}, not by score"])
    sure = confidence(table, types, seed=seed)
    return Placement(
        types=types,
        modules=adapted_modules(scores[scores["type"].isin(types)]),
        confidence=sure,
        ranking=by_type(table),
        swaps=swaps(table, types),
        notes=diagnoses(table, types, sure),
    )


@dataclass(frozen=True, repr=False, eq=False)
class Placement:
    """The chosen module types of a model. Shows itself as a table in a notebook.

    Two placements are equal where adapters go on the same modules, however those were found.

    Attributes
    ----------
    types : list of str
        The chosen types, lowest score first.
    modules : list of str
        Full names of their modules; of a stack of experts all, which PEFT adapts as one.
    confidence : float
        Probability that texts without end would choose the same set of types (NaN for one text,
        where a type's modules were reached by one text each, and where the types were chosen by
        hand).
    ranking : pandas.DataFrame
        All types, from `by_type`.
    swaps : pandas.DataFrame
        Every chosen type against every other one, the pair that is likeliest to swap first:
        `chosen`, `other`, `gap`, `probability`.
    notes : list of str
        What is wrong with the ranking, if anything: all scores near 1, too few texts, copies of
        texts, types on modules that few texts reach, undecided; or that the choice was made by
        hand.
    """

    types: list[str]
    modules: list[str]
    confidence: float | None = None
    ranking: pd.DataFrame | None = None
    swaps: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_types(cls, scores: pd.DataFrame, types: Iterable[str]) -> "Placement":
        """A placement on types chosen by hand, to compare with.

        Parameters
        ----------
        scores : pandas.DataFrame
            From `nfn_scores`.
        types : iterable of str
            Their names, as in the column `type`.

        Raises
        ------
        ValueError
            `scores` has no such type.
        """
        known = _known(scores, "type", types)
        return cls.of_modules(scores, scores.loc[scores["type"].isin(known), "module"].unique())

    @classmethod
    def of_modules(cls, scores: pd.DataFrame, modules: Iterable[str]) -> "Placement":
        """A placement on modules chosen by hand (column `module` of scores), as `of_types`.

        PEFT adapts a stack of experts as one: one expert brings the others of its stack, and a
        note says so.
        """
        known = _known(scores, "module", modules)
        table = text_table(scores)
        chosen = scores[scores["module"].isin(known)]
        its_types, adapted = set(chosen["type"]), adapted_modules(chosen)
        notes = ["chosen by hand"]
        if more := set(adapted) & set(scores["module"]) - set(known):
            notes.append(
                f"PEFT adapts a stack of experts as one: {len(more)} experts that were not chosen "
                f"come with those that were, such as {min(more)}"
            )
        return cls(
            types=[t for t in type_means(table).index if t in its_types],
            modules=adapted,
            confidence=float("nan"),
            ranking=by_type(table),
            notes=notes,
        )

    def lora_config(
        self,
        model: nn.Module,
        r: int | None = None,
        *,
        parameters: int | None = None,
        ranks: Mapping[str, int] | None = None,
        layers: Iterable[int] | None = None,
        exclude: Iterable[str] = (),
        **options: Any,
    ) -> LoraConfig:
        """The `peft.LoraConfig` that puts adapters on exactly `self.modules` of `model`.

        Tries short names, anchored regular expressions, full names and parameter names, and returns
        the first form that hits every chosen module and no other. That is checked by injecting the
        adapters into an empty copy of the model; `check` shows the counts. Its own method
        `save_pretrained(folder)` writes the `adapter_config.json` that other programs take, such as
        the MetaMathQA suite in PEFT's `method_comparison`.

        Parameters
        ----------
        model : torch.nn.Module
            The model that was scored. It is not changed.
        r : int, optional
            Rank of the adapters, 16 by default; of a stack of experts that of each.
        parameters : int, optional
            Instead of `r`, a budget: the largest rank that keeps all adapters within it.
        ranks : dict, optional
            {type: rank} of types that get another rank. `lora_alpha` stays the same for all, so
            that their scale alpha / r is another one, too; `alpha_pattern` changes that. A stack of
            E experts costs E times one map: `{"gate_up_proj": r // E}` gives it the same cost.
        layers : iterable of int, optional
            Only the chosen modules in these layers.
        exclude : iterable of str, optional
            Names of parts of the model that get no adapters, such as "vision_tower".
        **options
            Any other argument of `peft.LoraConfig` (`lora_alpha`, `rank_pattern`, ...), but for
            those that say where adapters go. `modules_to_save` and `trainable_token_indices` train
            something besides; where embeddings and head share one weight (`tie_word_embeddings`),
            `ensure_weight_tying=True` keeps it so.

        Raises
        ------
        ValueError
            `model` lacks a chosen module, an option says where adapters go or trains a chosen
            module whole, no form hits exactly the chosen ones, or the budget is less than rank 1.
        """
        wanted = wanted_targets(model, self.modules, layers, exclude)
        return config_with_ranks(model, wanted, r, parameters=parameters, ranks=ranks, **options)

    def export(self, tool: str, model: nn.Module, r: int | None = None, **options: Any) -> str:
        """Text that makes another tool, such as "axolotl", put adapters on exactly these modules.

        Tools, what is returned, and errors: `plop_nb.exporting.export`. `r` and options, `layers`
        among them: `lora_config`.
        """
        return export(model, self.lora_config(model, r, **options), tool)

    def check(
        self,
        model: nn.Module,
        config: LoraConfig,
        *,
        layers: Iterable[int] | None = None,
        exclude: Iterable[str] = (),
    ) -> pd.DataFrame:
        """What `config` would adapt in `model`, proven by injection into an empty copy.

        Returns
        -------
        pandas.DataFrame
            Columns `type`, `modules` (chosen; the experts of a stack are adapted as one),
            `adapted` (hit by `config`), `trainable` (adapter parameters), for every chosen type.

        Raises
        ------
        ValueError
            `config` misses a chosen module or hits another one (names them).
        """
        wanted = wanted_targets(model, self.modules, layers, exclude)
        adapted = adapted_targets(model, config)
        if set(wanted) != set(adapted):
            raise ValueError(f"this config {difference(wanted, adapted)}")
        types = [wanted[target].type for target in adapted]
        rows = pd.DataFrame({"type": types, "trainable": list(adapted.values())})
        table = rows.groupby("type")["trainable"].agg(adapted="size", trainable="sum")
        table = table.reindex([t for t in self.types if t in table.index]).reset_index()
        chosen = pd.Series([m.type for m in wanted.values()]).value_counts()
        table.insert(1, "modules", chosen[table["type"]].to_numpy())
        return table

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return set(self.types) == set(other.types) and set(self.modules) == set(other.modules)

    # Its lists may change.
    __hash__ = None  # type: ignore[assignment]

    @property
    def certainty(self) -> str:
        """How sure it is in words, such as "confidence 98%"; empty where that is not known."""
        if self.confidence is None or isnan(self.confidence):
            return ""
        return f"confidence {percent(self.confidence)}"

    def __repr__(self) -> str:
        table = self._table()
        shown = [] if table is None else [table.to_string(index=False)]
        return "\n".join([self._headline(), *self.notes, *shown])

    def _repr_html_(self) -> str:
        table = self._table()
        caption = "<br>".join(html.escape(line) for line in (self._headline(), *self.notes))
        if table is None:
            return f"<p>{caption}</p>"
        chosen = table["adapters"] == "yes"
        style = table.style.set_uuid(f"placement-{crc32(repr(self).encode()):08x}")
        style = style.hide(axis="index").format(precision=3, escape="html").set_caption(caption)
        blue, grey = "rgba(1, 115, 178, 0.35)", "rgba(128, 128, 128, 0.35)"
        for rows, color in ((chosen, blue), (~chosen, grey)):
            cells = pd.IndexSlice[rows, "nfn"]
            style = style.bar(subset=cells, color=color, vmin=0, vmax=table["nfn"].max())
        bold = pd.IndexSlice[chosen, :]
        return style.set_properties(subset=bold, **{"font-weight": "bold"}).to_html()

    def _headline(self):
        types = ", ".join(self.types) or "nothing"
        sure = f", {self.certainty}" if self.certainty else ""
        return f"adapters on {types} ({len(self.modules)} modules){sure}"

    def _table(self):
        """The ranking as it is shown; None where there is none."""
        if self.ranking is None:
            return None
        chosen = self.ranking["type"].isin(self.types).map({True: "yes", False: ""})
        return self.ranking.round({"nfn": 3, "low": 3, "high": 3}).assign(adapters=chosen)


def _known(scores, column, names):
    """The names as a list: all in this column of the scores."""
    check_columns(scores)
    if isinstance(names, Iterable) and not isinstance(names, str):
        names = list(names)
    if not isinstance(names, list) or not names:
        raise ValueError(
            f"{column}s={names!r}, expected a list of names from the column {column!r} of scores"
        )
    have = set(scores[column].unique())
    for name in names:
        if name not in have:
            raise ValueError(
                f"{name!r} is not a {column} in scores, choose from {sorted(map(str, have))[:10]}"
            )
    return names


def percent(share):
    """A share of 1 in words, never rounded up to all of it: "98%", "> 99%", "> 99.9%"."""
    if share > 0.999:
        return "> 99.9%"
    return "> 99%" if share >= 0.995 else f"{share:.0%}"
