"""The placements of the benchmark: sets of types, fixed ones, and what other rules choose.

What others have published is built from what they ship, or from the abstract where there is no
code; which one is said beside it.
"""

import itertools

import numpy as np
from peft import EvaConfig, LoraConfig
from peft.helpers import find_kappa_target_modules

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.budgets import adapter_sizes
from plop_nb.experiments.gradients import completion_gradients
from plop_nb.placement import Placement

ALPHA = 32  # over the rank: with it the best rates of all placements are alike
RANK = 8  # on all types: what the budget is near
EQUAL_SCALE = ", equal scale"  # a placement whose alpha / r is that of all types together
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXAMPLES = 32  # of the training split, for gradients


class Field:
    """Who competes on a model."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        texts = plop.load_texts("math", n=1)  # names the modules, which no text changes
        self.scores = plop.nfn_scores(model, texts, tokenizer, progress=False)
        self.sizes = adapter_sizes(self.scores)
        self.types = sorted(self.sizes.index)
        self.budget = budget_of(self.sizes)

    def of_types(self):
        """{group: {name: Placement}}: those that do not depend on a task."""
        rest = [name for name in self.types if name not in ATTENTION]
        triples = map(list, itertools.combinations(self.types, 3))
        groups = {
            "single": {short([name]): [name] for name in self.types},
            "fixed": {"attention": ATTENTION, "all": self.types, "query + value": ATTENTION[:3:2]},
            "triple": {short(types): types for types in triples},
        }
        if len(rest) != 3:
            groups["fixed"]["MLP"] = rest
        alike = groups["single"] | groups["triple"] | groups["fixed"]
        alike.pop("all")  # whose scale it is
        groups["scaled"] = {name + EQUAL_SCALE: types for name, types in alike.items()}
        found = {}
        for group, sets in groups.items():
            own = {name: types for name, types in sets.items() if set(types) <= set(self.types)}
            found[group] = {n: Placement.of_types(self.scores, types) for n, types in own.items()}
        found["fixed"]["last third of layers"] = self._of_modules(self._last_third())
        return found

    def of_task(self, task):
        """{name: Placement or LoraConfig}: what rules of others choose on a task."""
        options = {"examples": EXAMPLES}
        gradients = completion_gradients(self.model, task, self.tokenizer, **options)
        found = {
            "KappaTune": self._kappa(),
            "PAGE": self._of_modules(dominant_module(gradients)),
            "layers by gradient": self._of_modules(steepest_layers(self.model, gradients)),
        }
        for rho in (1, 2):
            found[f"EVA, rho {rho}"] = LoraConfig(
                r=RANK,
                lora_alpha=ALPHA,
                target_modules=self.types,
                init_lora_weights="eva",
                eva_config=EvaConfig(rho=rho),
                task_type="CAUSAL_LM",
            )
        return found

    def rank(self, placement):
        """The rank that comes nearest to the budget, as far as the maps have ranks."""
        if isinstance(placement, LoraConfig):
            return placement.r
        own = self.scores[self.scores["module"].isin(placement.modules)]
        fullest = own[["in_features", "out_features"]].min(axis=None)
        return min(ex.rank_for(placement, self.model, self.budget), int(fullest))

    @staticmethod
    def alpha(name, r):
        """lora_alpha of a placement with this name and rank."""
        return ALPHA * r / RANK if name.endswith(EQUAL_SCALE) else ALPHA

    def _kappa(self):
        """The fifth of all modules with the lowest condition numbers: PEFT's helper, as shipped.

        But for the head, whose adapter TRL cannot train.
        """
        names = find_kappa_target_modules(self.model, show_progress=False)["target_modules"]
        head = self.model.get_output_embeddings()
        names = [name for name in names if self.model.get_submodule(name) is not head]
        sizes = [sum(self.model.get_submodule(name).weight.shape) for name in names]
        r = max(1, round(self.budget / sum(sizes)))
        return LoraConfig(r=r, lora_alpha=ALPHA, target_modules=names, task_type="CAUSAL_LM")

    def _of_modules(self, modules):
        return Placement.of_modules(self.scores, modules)

    def _last_third(self):
        """The modules of the last layers."""
        maps = self.scores.drop_duplicates("module")
        layers = sorted(maps["layer"].unique())
        return maps.loc[maps["layer"].isin(layers[-(len(layers) // 3) :]), "module"].tolist()


def short(types):
    """The name of a set of types, such as "down+up+v"."""
    return "+".join(sorted(name.removesuffix("_proj") for name in types))


def budget_of(sizes):
    """The number of parameters, near rank 8 on all types, that every set of types can come near.

    Parameters
    ----------
    sizes : pandas.Series
        Adapter parameters of each type at rank 1.
    """
    sets = [*itertools.combinations(sizes.index, 3), *[[name] for name in sizes.index], sizes.index]
    at_rank_1 = np.array([sizes[list(types)].sum() for types in sets])
    least, most = (RANK - 1) * sizes.sum(), (RANK + 1) * sizes.sum()
    step = 10 ** int(np.log10(least) - 2)
    budgets = np.arange(least // step * step, most, step)
    ranks = np.maximum(1, np.round(budgets[:, None] / at_rank_1))
    misses = np.abs(ranks * at_rank_1 / budgets[:, None] - 1).max(axis=1)
    return int(budgets[misses.argmin()])


def dominant_module(gradients):
    """The one module with the most gradient energy for its adapter (arXiv 2605.06183, abstract).

    The energy is what PEFT's start lets through: E ||G A^T||_F^2 = r ||G||_F^2 / (3 in_features).
    """
    energy = gradients["frobenius"] ** 2 / gradients["in_features"]
    return [gradients.loc[energy.idxmax(), "module"]]


def steepest_layers(model, gradients, share=1 / 3):
    """All modules of the layers with the largest gradient for the size of their weights.

    The norm of a layer's gradient over that of its weights (arXiv 2602.04019, abstract).
    """
    norms = {n: model.get_submodule(n).weight.detach().norm().item() for n in gradients["module"]}
    squares = gradients.assign(
        of_gradient=gradients["frobenius"] ** 2,
        of_weight=gradients["module"].map(norms) ** 2,
    )
    layers = squares.groupby("layer")[["of_gradient", "of_weight"]].sum()
    steepness = np.sqrt(layers["of_gradient"] / layers["of_weight"])
    chosen = steepness.nlargest(round(share * len(layers))).index
    return gradients.loc[gradients["layer"].isin(chosen), "module"].tolist()
