"""Which module types get adapters, and the LoraConfig that hits exactly them."""

import copy
import html
import inspect
import re
import warnings
from dataclasses import dataclass, field
from math import isnan
from zlib import crc32

import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from plop_nb.modules import linear_maps, unwrapped
from plop_nb.stats import by_type, confidence, diagnoses, lowest, per_text, swaps, type_means

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def place(scores, k=None, *, parameters=None, r=16, seed=0):
    """Choose the module types with the lowest score (PLoP, section 3): `k` of them, or what a budget allows.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `nfn_scores`.
    k : int, optional
        How many types, 1 to all of them; 3 by default, as in the paper.
    parameters : int, optional
        Instead of `k`: from the lowest type on, as many as keep the adapters within so many parameters.
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
        `k` is out of range, or given together with `parameters`; the adapters of the lowest type
        alone exceed `parameters`; or `scores` is not a frame of scores.
    """
    if parameters is not None:
        if k is not None:
            raise ValueError(f"k={k!r} and parameters={parameters!r} both say how many types: leave one of them out")
        k = len(affordable(scores, parameters, r))
    types = lowest(scores, 3 if k is None else k)
    modules = scores.loc[scores["type"].isin(types), "module"].unique().tolist()
    sure = confidence(scores, types, seed=seed)
    return Placement(types, modules, sure, by_type(scores), swaps(scores, types), diagnoses(scores, types, sure))


def affordable(scores, parameters, r, by="type"):
    """The lowest types, or other groups, as many as have adapters of rank `r` within so many parameters."""
    means = per_text(scores, by).mean().sort_values(kind="stable")
    cost = r * adapter_sizes(scores, by)[means.index].cumsum()
    if cost.iloc[0] > parameters:
        raise ValueError(
            f"parameters={parameters!r} is less than the {cost.iloc[0]:,} of adapters on {by} {cost.index[0]} alone at "
            f"r={r}: allow more, or lower r"
        )
    return cost.index[cost <= parameters].tolist()


def adapter_sizes(scores, by="type"):
    """Parameters of adapters of rank 1 on each type, layer or target: in + out features, of all experts in a stack."""
    maps = with_targets(scores.drop_duplicates("module")).drop_duplicates("target")
    return (maps["experts"] * (maps["in_features"] + maps["out_features"])).groupby(maps[by]).sum()


def with_targets(scores):
    """The scored maps, with the column `target`: what PEFT adapts, the module or its stack of experts."""
    if missing := {"in_features", "out_features", "experts"} - set(scores.columns):
        raise ValueError(f"scores lacks the columns {sorted(missing)}, which a budget needs: see nfn_scores")
    stacks = scores["module"].str.replace(r"\.\d+$", "", regex=True)
    return scores.assign(target=scores["module"].where(scores["experts"] == 1, stacks))


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
        Probability that texts without end would choose the same set of types (NaN for one text, and
        where the types were chosen by hand).
    ranking : pandas.DataFrame
        All types, from `by_type`.
    swaps : pandas.DataFrame
        Every chosen type against every other one, the pair that is likeliest to swap first:
        `chosen`, `other`, `gap`, `probability`.
    notes : list of str
        What is wrong with the ranking, if anything: all scores near 1, too few texts, undecided; or that
        the choice was made by hand.
    """

    types: list
    modules: list
    confidence: float
    ranking: pd.DataFrame
    swaps: pd.DataFrame | None = None
    notes: list = field(default_factory=list)

    @classmethod
    def of_types(cls, scores, types):
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
        types = _known(scores, "type", types)
        return cls.of_modules(scores, scores.loc[scores["type"].isin(types), "module"].unique())

    @classmethod
    def of_modules(cls, scores, modules):
        """A placement on modules chosen by hand (their names, as in the column `module`); else as `of_types`."""
        chosen = scores.loc[scores["module"].isin(_known(scores, "module", modules))]
        types = [t for t in type_means(scores).index if t in set(chosen["type"])]
        return cls(types, chosen["module"].unique().tolist(), float("nan"), by_type(scores), None, ["chosen by hand"])

    def lora_config(self, model, r=16, *, layers=None, **options):
        """The `peft.LoraConfig` that puts adapters on exactly `self.modules` of `model`.

        Tries short names, anchored regular expressions, full names and parameter names, and returns
        the first form that hits every chosen module and no other. That is checked by injecting the
        adapters into an empty copy of the model; `check` shows the counts. Its own method
        `save_pretrained(folder)` writes the `adapter_config.json` that other programs take, such as the
        MetaMathQA suite in PEFT's `method_comparison`.

        Parameters
        ----------
        model : torch.nn.Module
            The model that was scored. It is not changed.
        r : int
            Rank of the adapters.
        layers : iterable of int, optional
            Only the chosen modules in these layers.
        **options
            Any other argument of `peft.LoraConfig` (`lora_alpha`, `lora_dropout`, ...).

        Raises
        ------
        ValueError
            `model` lacks a chosen module, or no form hits exactly the chosen ones.
        """
        if taken := {"target_modules", "target_parameters"} & set(options):
            raise ValueError(
                f"{taken.pop()} is what the placement chooses: leave it out, or build a LoraConfig yourself"
            )
        options.setdefault("task_type", _task_type(unwrapped(model)))
        wanted = self._wanted(model, layers)
        failures = []
        for form in _target_forms(wanted):
            config = LoraConfig(r=r, **form, **options)
            try:
                adapted = _adapted(model, config)
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:  # PEFT refuses this form
                failures.append(f"PEFT: {error}")
                continue
            if set(adapted) == set(wanted):
                return config
            failures.append(_difference(wanted, adapted))
        raise ValueError(f"no form of LoraConfig hits exactly {self.types}: " + "; ".join(dict.fromkeys(failures)))

    def check(self, model, config, *, layers=None):
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
        wanted, adapted = self._wanted(model, layers), _adapted(model, config)
        if set(wanted) != set(adapted):
            raise ValueError(f"this config {_difference(wanted, adapted)}")
        rows = pd.DataFrame({"type": [wanted[t].type for t in adapted], "trainable": list(adapted.values())})
        table = rows.groupby("type")["trainable"].agg(adapted="size", trainable="sum")
        table = table.reindex([t for t in self.types if t in table.index]).reset_index()
        chosen = pd.Series([m.type for m in wanted.values()]).value_counts()
        table.insert(1, "modules", chosen[table["type"]].to_numpy())
        return table

    def _wanted(self, model, layers):
        """{PEFT target: one of its maps} of the chosen modules, in `layers` only where given."""
        maps = {m.name: m for m in linear_maps(model)}
        unknown = [name for name in self.modules if name not in maps]
        if unknown:
            raise ValueError(
                f"{type(model).__name__} has no module {unknown[0]!r}: this placement is for another model"
            )
        wanted = {maps[name].target: maps[name] for name in self.modules}
        if layers is not None:
            layers = set(layers)
            if missing := layers - {m.layer for m in wanted.values()}:
                raise ValueError(f"layers={sorted(layers)}: no chosen module is in layer {min(missing)}")
            wanted = {target: m for target, m in wanted.items() if m.layer in layers}
        return wanted

    def __repr__(self):
        lines = [f"adapters on {', '.join(self.types)} ({len(self.modules)} modules)"]
        lines[0] += "" if isnan(self.confidence) else f", confidence {self.confidence:.0%}"
        return "\n".join([*lines, *self.notes, self._table().to_string(index=False)])

    def _repr_html_(self):
        table, caption = self._table(), [repr(self).splitlines()[0], *self.notes]
        chosen = table["adapters"] == "yes"
        style = table.style.set_uuid(f"placement-{crc32(repr(self).encode()):08x}").hide(axis="index")
        style = style.format(precision=3, escape="html").set_caption("<br>".join(html.escape(c) for c in caption))
        for rows, color in ((chosen, "rgba(1, 115, 178, 0.35)"), (~chosen, "rgba(128, 128, 128, 0.35)")):
            style = style.bar(subset=pd.IndexSlice[rows, "nfn"], color=color, vmin=0, vmax=table["nfn"].max())
        return style.set_properties(subset=pd.IndexSlice[chosen, :], **{"font-weight": "bold"}).to_html()

    def _table(self):
        chosen = self.ranking["type"].isin(self.types).map({True: "yes", False: ""})
        return self.ranking.round({"nfn": 3, "low": 3, "high": 3}).assign(adapters=chosen)


def _known(scores, column, names):
    """The names as a list: all in this column of the scores."""
    names, have = names if isinstance(names, str) else list(names), set(scores[column])
    if isinstance(names, str) or not names:
        raise ValueError(f"{column}s={names!r}, expected a list of names from the column {column!r} of scores")
    if unknown := [n for n in names if n not in have]:
        raise ValueError(f"{unknown[0]!r} is not a {column} in scores, choose from {sorted(have)[:10]}")
    return names


def _task_type(model):
    """What `PeftModel` is to wrap the model as; None for the plain wrapper, which suits every model."""
    task = next((task for ending, task in TASKS.items() if type(model).__name__.endswith(ending)), None)
    if task != "SEQ_2_SEQ_LM" or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return task
    # A decoder that also reads images or sound. PEFT's causal wrapper passes it `inputs_embeds`: BLIP takes none.
    takes_embeds = "inputs_embeds" in inspect.signature(model.forward).parameters
    return "CAUSAL_LM" if takes_embeds and hasattr(model, "generate") else None


def _target_forms(wanted):
    """Ways to name the wanted targets to PEFT, most readable first."""
    stacks = [target for target, m in wanted.items() if m.expert is not None]
    maps = {target: m for target, m in wanted.items() if m.expert is None}
    also = {"target_parameters": stacks} if stacks else {}
    if maps:
        yield {"target_modules": list(dict.fromkeys(target.rsplit(".", 1)[-1] for target in maps)), **also}
        patterns = dict.fromkeys(re.escape(m.pattern).replace(r"\*", r"\w+") for m in maps.values())
        yield {"target_modules": "|".join(patterns), **also}
        yield {"target_modules": name_pattern(maps), **also}
        yield {"target_modules": list(maps), **also}
    # PEFT renames modules of mixture models, but not parameters given by their full name.
    yield {"target_modules": [], "target_parameters": [f"{target}.weight" for target in maps] + stacks}


def name_pattern(names, known=()):
    """A regular expression that matches these names in full and no other known one: layers listed, or `\\d+` for all."""
    layers, everywhere = _by_place(names), _by_place(known)
    parts = []
    for around, numbers in layers.items():
        before, after = map(re.escape, around)
        number = r"\d+" if len(numbers) > 1 and numbers == everywhere.get(around) else "|".join(numbers)
        parts.append(before + (f"({number})" if "|" in number else number) + after)
    return "|".join(parts)


def _by_place(names):
    """{(name before, name after the layer's number): numbers}; a name without a number has the number ""."""
    places = {}
    for name in names:
        before, number, after = (*re.split(r"(?<![^.])(\d+)(?![^.])", name, maxsplit=1), "", "")[:3]
        places.setdefault((before, after), []).append(number)
    return places


def _difference(wanted, adapted):
    missed, extra = [t for t in wanted if t not in adapted], [t for t in adapted if t not in wanted]
    return f"misses {len(missed)} chosen modules {missed[:3]} and adds {len(extra)} others {extra[:3]}"


def _adapted(model, config):
    """{target: adapter parameters} of what PEFT adapts, found by injection into an empty copy."""
    empty = skeleton(model)
    empty = empty.unload() if isinstance(empty, PeftModel) else unwrapped(empty)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(empty, copy.deepcopy(config), low_cpu_mem_usage=True).get_base_model()
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        return {}
    found = {}
    for name, layer in adapted.named_modules():
        if isinstance(layer, BaseTunerLayer):
            target = name.replace(".base_layer", "").replace("_orig_mod.", "")
            parameter = getattr(layer, "parameter_name", "weight")
            target += "" if parameter == "weight" else f".{parameter}"
            own = (p for n, p in layer.named_parameters() if "base_layer" not in n)
            found[target] = sum(p.numel() for p in own)
    return found


def skeleton(model):
    """A copy of `model` whose parameters and buffers are on the meta device: structure without memory."""
    empty = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    return copy.deepcopy(model, empty | {id(p): _empty(p) for p in model.parameters()})


def _empty(parameter):
    """A meta parameter with the attributes of a quantised one, which PEFT asks for."""
    data = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    copied = nn.Parameter(data, requires_grad=parameter.requires_grad)
    vars(copied).update(vars(parameter))
    return copied
