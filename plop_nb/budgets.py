"""What adapters cost, and what a budget allows."""

import pandas as pd

from plop_nb.checks import positive_integer, positive_number
from plop_nb.text_table import text_table


def affordable(
    scores: pd.DataFrame,
    parameters: float,
    r: int,
    by: str = "type",
    *,
    order: list[str] | None = None,
) -> list:
    """The first types, or other groups, whose adapters of rank `r` keep within a budget.

    `order` says which come first: by default those with the lowest score.
    """
    r = positive_integer("r", r)
    parameters = positive_number("parameters", parameters, " of parameters")
    if order is None:
        means = text_table(scores, by).values.mean()
        order = means.sort_values(kind="stable").index.tolist()
    cost = r * adapter_sizes(scores, by)[order].cumsum()
    if cost.iloc[0] > parameters:
        raise ValueError(
            f"parameters={parameters!r} is less than the {cost.iloc[0]:,} of adapters on {by} "
            f"{cost.index[0]} alone at r={r}: allow more, or lower r"
        )
    return cost.index[cost <= parameters].tolist()


def adapter_sizes(scores: pd.DataFrame, by: str = "type") -> pd.Series:
    """Parameters of adapters of rank 1 on each type, layer or target: in + out features.

    Those of all experts in a stack count together.
    """
    maps = with_targets(scores.drop_duplicates("module")).drop_duplicates("target")
    sizes = maps["experts"] * (maps["in_features"] + maps["out_features"])
    return sizes.groupby(maps[by]).sum()


def with_targets(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with the column `target`: what PEFT adapts, a module or a stack of experts."""
    missing = {"in_features", "out_features", "experts"} - set(scores.columns)
    if missing:
        raise ValueError(
            f"scores lacks the columns {sorted(missing)}, which a budget needs: see nfn_scores"
        )
    for name in ("in_features", "out_features", "experts"):
        if not (known := (scores[name] > 0).fillna(False).astype(bool)).all():
            row = scores[~known].iloc[0]
            raise ValueError(
                f"scores holds {name}={row[name]} for module {row['module']!r}, expected the shape "
                "that nfn_scores returns"
            )
    return scores.assign(target=_targets(scores))


def _targets(scores):
    """What PEFT adapts of each row's module."""
    stacks = scores["module"].str.replace(r"\.\d+$", "", regex=True)
    return scores["module"].where(scores["experts"] == 1, stacks)


def adapted_modules(chosen: pd.DataFrame) -> list[str]:
    """Names of the modules in these rows of a frame of scores, and of what PEFT adapts with them.

    It adapts a stack of experts as one, so that one expert brings all the others, also those that
    no text has reached.
    """
    chosen = chosen.drop_duplicates("module")
    if "experts" not in chosen or (chosen["experts"] == 1).all():
        return chosen["module"].tolist()
    stacks = pd.DataFrame({"target": _targets(chosen), "experts": chosen["experts"]})
    names = []
    for target, experts in stacks.drop_duplicates().itertuples(index=False):
        numbers = range(int(experts))
        names += [target] if experts == 1 else [f"{target}.{number}" for number in numbers]
    return names
