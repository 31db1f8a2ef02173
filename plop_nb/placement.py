"""Which module types get adapters, and the LoraConfig that hits exactly them."""

import copy
import re
from dataclasses import dataclass

import pandas as pd
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from plop_nb.modules import linear_maps
from plop_nb.stats import by_type, resampled_type_means

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def place(scores, k=3, *, seed=0):
    """Choose the `k` module types with the lowest score (PLoP, section 3; the paper uses k = 3).

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    k : int
        How many types, 1 to all of them.
    seed : int
        Seeds the resampling of texts behind the confidence.

    Returns
    -------
    Placement

    Raises
    ------
    ValueError
        `k` is out of range, or `scores` is not a frame of scores.
    """
    ranking = by_type(scores, seed=seed)
    if not isinstance(k, int) or not 1 <= k <= len(ranking):
        raise ValueError(f"k={k!r}, expected an integer from 1 to {len(ranking)}, the number of module types scored")
    types = ranking["type"].head(k).tolist()
    modules = scores.loc[scores["type"].isin(types), "module"].unique().tolist()
    return Placement(types, modules, _confidence(scores, types, seed), ranking)


@dataclass(frozen=True, repr=False)
class Placement:
    """The chosen module types of a model. Shows itself as a table in a notebook.

    Attributes
    ----------
    types : list of str
        The chosen types, lowest score first.
    modules : list of str
        Full names of their modules.
    confidence : float
        Share of resamples of the texts that choose the same set of types (NaN for one text).
    ranking : pandas.DataFrame
        All types, from `by_type`.
    """

    types: list
    modules: list
    confidence: float
    ranking: pd.DataFrame

    def lora_config(self, model, r=16, **options):
        """The `peft.LoraConfig` that puts adapters on exactly `self.modules` of `model`.

        Tries module names, then one anchored regular expression, then the full list of names,
        and returns the first form that hits every chosen module and no other. That is checked by
        injecting the adapters into an empty copy of the model; `check` shows the counts.

        Parameters
        ----------
        model : torch.nn.Module
            The model that was scored. It is not changed.
        r : int
            Rank of the adapters.
        **options
            Any other argument of `peft.LoraConfig` (`lora_alpha`, `lora_dropout`, ...).

        Raises
        ------
        ValueError
            `model` lacks a chosen module, or no form hits exactly the chosen ones.
        """
        if "target_modules" in options:
            raise ValueError(
                "target_modules is what the placement chooses: leave it out, or build a LoraConfig yourself"
            )
        options.setdefault("task_type", next((t for n, t in TASKS.items() if type(model).__name__.endswith(n)), None))
        for target in self._target_forms(model):
            config = LoraConfig(r=r, target_modules=target, **options)
            missed, extra = self._difference(model, config)
            if not missed and not extra:
                return config
        raise ValueError(
            f"no form of target_modules hits exactly the {len(self.modules)} modules of {self.types}: "
            f"the last one misses {missed[:3]} and adds {extra[:3]}"
        )

    def check(self, model, config):
        """What `config` would adapt in `model`, proven by injection into an empty copy.

        Returns
        -------
        pandas.DataFrame
            Columns `type`, `modules` (chosen), `adapted` (hit by `config`), `trainable`
            (adapter parameters), for every type that is chosen or hit.

        Raises
        ------
        ValueError
            `config` misses a chosen module or hits another one (names them).
        """
        missed, extra = self._difference(model, config)
        if missed or extra:
            raise ValueError(
                f"this config misses {len(missed)} chosen modules {missed[:3]} and adds {len(extra)} others {extra[:3]}"
            )
        adapted = _adapted(model, config)
        types = {m.name: m.type for m in linear_maps(model)}
        rows = pd.DataFrame({"type": [types[n] for n in adapted], "trainable": list(adapted.values())})
        table = rows.groupby("type")["trainable"].agg(adapted="size", trainable="sum").loc[self.types].reset_index()
        table.insert(1, "modules", pd.Series(self.modules).map(types).value_counts()[table["type"]].to_numpy())
        return table

    def _target_forms(self, model):
        """Ways to name the chosen modules to PEFT, shortest first."""
        maps = {m.name: m for m in linear_maps(model)}
        unknown = [name for name in self.modules if name not in maps]
        if unknown:
            raise ValueError(
                f"{type(model).__name__} has no module {unknown[0]!r}: this placement is for another model"
            )
        patterns = dict.fromkeys(maps[name].pattern for name in self.modules)
        yield list(dict.fromkeys(pattern.rsplit(".", 1)[-1] for pattern in patterns))
        yield "|".join(re.escape(pattern).replace(r"\*", r"\w+") for pattern in patterns)
        yield list(self.modules)

    def _difference(self, model, config):
        """(chosen modules that `config` misses, other modules that it hits)."""
        adapted = _adapted(model, config)
        return [n for n in self.modules if n not in adapted], [n for n in adapted if n not in set(self.modules)]

    def __repr__(self):
        lines = [f"adapters on {', '.join(self.types)} ({len(self.modules)} modules), confidence {self.confidence:.0%}"]
        return "\n".join(lines + [self._table().to_string(index=False)])

    def _repr_html_(self):
        table = self._table().style.hide(axis="index").format(precision=3)
        table = table.apply(lambda row: ["font-weight: bold" if row["adapters"] else ""] * len(row), axis=1)
        return table.set_caption(repr(self).splitlines()[0]).to_html()

    def _table(self):
        chosen = self.ranking["type"].isin(self.types).map({True: "yes", False: ""})
        return self.ranking.round({"nfn": 3, "low": 3, "high": 3}).assign(adapters=chosen)


def _confidence(scores, types, seed):
    draws = resampled_type_means(scores, seed)
    if draws.isna().to_numpy().any():
        return float("nan")
    worst_chosen = draws[types].max(axis=1)
    best_other = draws.drop(columns=types).min(axis=1)
    return float((worst_chosen < best_other).mean()) if draws.shape[1] > len(types) else 1.0


def _adapted(model, config):
    """{name: adapter parameters} of what PEFT adapts, found by injection into an empty copy."""
    copied = _skeleton(model)
    try:
        inject_adapter_in_model(copy.deepcopy(config), copied, low_cpu_mem_usage=True)
    except ValueError as error:  # nothing matched, or PEFT refuses this kind of module
        if "not found in the base model" not in str(error):
            raise
        return {}
    layers = {n: m for n, m in copied.named_modules() if isinstance(m, BaseTunerLayer)}
    return {
        name: sum(p.numel() for n, p in layer.named_parameters() if not n.startswith("base_layer"))
        for name, layer in layers.items()
    }


def _skeleton(model):
    """A copy of `model` whose parameters and buffers are on the meta device: structure without memory."""
    empty = {id(b): b.to("meta") for b in model.buffers()}
    empty |= {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)
