"""What a race has found, and how it shows itself."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from zlib import crc32

import pandas as pd

from plop_nb.experiments.races.jobs import Run, judged, spent
from plop_nb.experiments.races.ladder import Ladder, Plan
from plop_nb.experiments.races.verdict import Standing

FINAL = "final"
RUN_COLUMNS = [
    "placement", "lr", "seed", "steps", "train_loss", "validation_loss", "rung", "seconds",
]  # fmt: skip


@dataclass(frozen=True, repr=False, eq=False)
class RaceResult:
    """What a race has found. Shows itself as a table in a notebook.

    Attributes
    ----------
    winner : str
        Name of the placement with the lowest mean validation loss in the final; without a final,
        of the one with the lowest training loss.
    lr : float
        Its learning rate.
    settings : dict
        Of the winner, for `finetune(model, task, tokenizer, placements[result.winner],
        **result.settings)`.
    runner_up : str or None
        The second in the final.
    margin, low, high : float
        Validation loss of the runner-up minus the winner's (nats per token, paired by seed), and
        its interval, which is as wide as all comparisons with the winner demand. NaN where there
        are no seeds for it.
    decided : bool
        Whether the winner's intervals to all other finalists are above zero.
    level : float
        Coverage of all these intervals together.
    table : pandas.DataFrame
        One row a placement, the winner first: `placement`, `lr` (its best), `loss` (mean on the
        validation split), `difference` (to the winner), `low`, `high`, `seeds`, `edge` (True: its
        best rate is the lowest or the highest one, so try further ones).
    runs : pandas.DataFrame
        One row a run: `placement`, `lr`, `seed`, `steps` (done), `train_loss` (mean of the latter
        half of these steps: what it is judged by), `validation_loss`, `rung` (share of all steps,
        or "final"), `seconds`.
    seconds, budget : float
        What all runs took, and what they might.
    plan : Plan
        What the budget was to buy.
    notes : list of str
        What to be careful about, if anything.
    """

    winner: str
    lr: float
    settings: dict[str, Any]
    runner_up: str | None
    margin: float
    low: float
    high: float
    decided: bool
    level: float
    table: pd.DataFrame
    runs: pd.DataFrame
    seconds: float
    budget: float
    plan: Plan
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        ladder: Ladder,
        runs: Sequence[Run],
        settings: Mapping[str, Mapping[str, Any]],
        level: float,
    ) -> "RaceResult":
        """The result of finished runs, with the settings of each placement."""
        found = ladder.verdict(runs, level)
        best = found.standings[0]
        second = found.standings[1]
        in_final = second.seeds > 0
        plan = ladder.plan(runs)
        return cls(
            winner=best.placement,
            lr=best.lr,
            settings={**settings[best.placement], "lr": best.lr},
            runner_up=second.placement if in_final else None,
            margin=second.difference,
            low=second.low,
            high=second.high,
            decided=found.decided,
            level=level,
            table=_table(ladder, found.standings),
            runs=_frame(ladder, runs),
            seconds=spent(runs),
            budget=ladder.seconds,
            plan=plan,
            notes=_notes(ladder, runs, found.standings),
        )

    def __repr__(self) -> str:
        return "\n".join([*self._lines(), self._shown().to_string(index=False, na_rep="")])

    def _repr_html_(self) -> str:
        table = self._shown()
        caption = "<br>".join(html.escape(line) for line in self._lines())
        style = table.style.set_uuid(f"race-{crc32(repr(self).encode()):08x}")
        style = style.hide(axis="index").format(escape="html", na_rep="").set_caption(caption)
        winner = pd.IndexSlice[table.index[:1], :]
        return style.set_properties(subset=winner, **{"font-weight": "bold"}).to_html()

    def _lines(self) -> list[str]:
        return [self._headline(), self._account(), *self.notes]

    def _headline(self) -> str:
        word = "decided" if self.decided else "undecided"
        start = f"winner: {self.winner} at lr {self.lr:g}, {word}"
        if self.runner_up is None:
            return f"{start}: no placement was evaluated"
        gap = f"{self.margin:.4f} nats below {self.runner_up}"
        seeds = int(self.table["seeds"].iloc[0])
        if math.isnan(self.low):
            return f"{start}: {gap}, by {seeds} seed{'s' if seeds > 1 else ''}"
        return (
            f"{start}: {gap} ({self.level:.0%} interval {self.low:.4f} to {self.high:.4f}, "
            f"{seeds} seeds, {(self.table['seeds'] > 0).sum()} finalists)"
        )

    def _account(self) -> str:
        return f"{len(self.runs)} runs in {self.seconds:.0f} of {self.budget:.0f} seconds"

    def _shown(self) -> pd.DataFrame:
        """The table with its numbers as texts."""
        table = self.table.copy()
        table["lr"] = table["lr"].map("{:g}".format)
        for column in ("loss", "difference", "low", "high"):
            table[column] = table[column].map(lambda x: "" if math.isnan(x) else f"{x:.4f}")
        table["edge"] = table["edge"].map({True: "yes", False: ""})
        return table


def _table(ladder: Ladder, standings: Sequence[Standing]) -> pd.DataFrame:
    table = pd.DataFrame([asdict(standing) for standing in standings])
    rates = [arm.lr for arm in ladder.arms]
    table["edge"] = table["lr"].isin([min(rates), max(rates)])
    return table


def _frame(ladder: Ladder, runs: Sequence[Run]) -> pd.DataFrame:
    rows = []
    for run in runs:
        job = run.job
        is_final = job.until == ladder.steps
        rung = FINAL if is_final else f"1/{round(ladder.steps / job.until)}"
        loss = judged(run.losses, job.until)
        about = [job.arm.placement, job.arm.lr, job.seed, job.until]
        rows.append([*about, loss, run.loss, rung, run.seconds])
    return pd.DataFrame(rows, columns=RUN_COLUMNS).astype({"validation_loss": float})


def _notes(ladder: Ladder, runs: Sequence[Run], standings: Sequence[Standing]) -> list[str]:
    notes = []
    best = standings[0]
    rates = sorted({arm.lr for arm in ladder.arms})
    if ladder.climb(runs).missing:
        notes.append("the runs took longer than planned: not all rungs are finished")
    if len(rates) > 1 and best.lr in (rates[0], rates[-1]):
        end = "lowest" if best.lr == rates[0] else "highest"
        notes.append(f"the winner's rate is the {end} of those given: try further ones")
    if best.seeds < 2:
        notes.append("the budget did not buy a final with 2 seeds: give more seconds")
    return notes
