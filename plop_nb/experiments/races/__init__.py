"""A race of placements and learning rates on your own data, within a given time."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from plop_nb.checks import (
    coverage_level,
    positive_integer,
    positive_number,
    random_seed,
    yes_or_no,
)
from plop_nb.experiments.grids.cells import Cell, Label, digest
from plop_nb.experiments.grids.keys import run_key, task_digest
from plop_nb.experiments.races.jobs import Arm, Job
from plop_nb.experiments.races.ladder import FEWEST_STEPS, LONGEST_RUNG, Ladder
from plop_nb.experiments.races.live import JUDGED, Team, Track, raced
from plop_nb.experiments.races.result import RaceResult
from plop_nb.experiments.tasks.task import Task
from plop_nb.experiments.trainers import adapters, import_trl
from plop_nb.experiments.training import (
    check_run,
    check_tokens,
    plain_numbers,
    rank_for,
)
from plop_nb.fingerprint import fingerprint
from plop_nb.placement import Placement
from plop_nb.processes import this_process

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
RANK = 16
OPTIONS = {"steps": 100, "batch_size": 16, "lora_alpha": 32, "max_length": 512}


def race(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    placements: Mapping[str, Placement],
    *,
    seconds: float,
    rates: Iterable[float] = RATES,
    ranks: Mapping[str, int] | None = None,
    parameters: int | None = None,
    seed: int = 0,
    most_seeds: int = 5,
    reduction: int = 4,
    level: float = 0.95,
    storage: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> RaceResult:
    """Which placement, at which learning rate, is best on a task: found within a given time.

    Every arm, a placement with a rate, is trained with the same seed on the same batches, under
    the schedule of a full run, and stopped at a rung, such as an eighth of the steps. There it is
    judged by its mean training loss over the latter half of these steps, which costs no evaluation.
    The best quarter goes on to half of the steps, and at least one arm of each of the best four
    placements (successive halving: Karnin, Koren and Somekh 2013; Jamieson and Talwalkar 2016).
    Then the best arms of the best two to four placements run in full with fresh seeds, and the
    lowest mean loss on the validation split wins. The test split is not touched.

    What it can tell: which of these placements, each at one of these rates, has the lowest
    validation loss after so many steps on this task, and whether the winner's lead is more than
    the chance of seeds; where it says "decided" a placement that is not the best wins in at most 5
    of 100 races. What it cannot: the validation examples are always the same, so that a lead says
    nothing of other examples; placements that lost on the rungs were compared by the training loss
    of one seed, and one that begins slowly and ends well is lost there, as is one whose best
    rate is not among those given; "undecided" means that the lead is too small for these seeds,
    not that placements are alike; and longer trainings or other ranks may have other winners.

    Parameters
    ----------
    model, task, tokenizer
        As in `finetune`. The model stays as it is.
    placements : dict
        {name: Placement}, two or more: from `place`, `Placement.of_types` or
        `Placement.of_modules`.
    seconds : float
        What all runs may take together, one after another, those of earlier calls and of other
        processes included. The first run measures the time of a step and of an evaluation, and
        nothing is begun that would not fit; what was begun by a killed process does not count.
    rates : iterable of float
        Learning rates for every placement: by default five, a factor 2 apart, around 1e-3.
    ranks : dict, optional
        {name: rank}; by default 16 for all.
    parameters : int, optional
        Instead of `ranks`: adapter parameters to match with each placement, see `rank_for`.
    seed : int
        Of the runs on the rungs; the final has the seeds after it.
    most_seeds : int
        Seeds of the final at most; how many it has is said by time alone, before it begins.
    reduction : int
        2 or more: one in so many arms goes on, to a rung of so many times the steps.
    level : float
        Coverage of the intervals to the winner, all together.
    storage : str or Path, optional
        As in `grid`: the same call goes on where it was interrupted, and several processes share
        the runs.
    progress : bool
        Tell the plan, and show a progress bar of the seconds.
    **options
        `steps` (8 or more), `batch_size`, `max_length` and `lora_alpha` of `finetune`;
        `lora_alpha` is 32 by default at every rank, so that the best rate depends little on it
        (Schulman et al. 2025, LoRA Without Regret).

    Returns
    -------
    RaceResult
        In every process of `accelerate launch`, where all train on each run together.

    Raises
    ------
    TypeError, ValueError
        Bad input, or `seconds` that do not buy the first rung: says what would do.
    ImportError
        Optuna or TRL is not installed.
    """
    _load_trainer()
    ranks = _ranks(model, placements, ranks, parameters)
    settings = {name: _settings(rank, options) for name, rank in ranks.items()}
    ladder = Ladder(
        arms=_arms(placements, rates),
        steps=_steps(next(iter(settings.values()))["steps"]),
        seconds=float(positive_number("seconds", seconds, ", such as 600")),
        seed=random_seed("seed", seed),
        seeds=tuple(seed + 1 + number for number in range(_at_least_2("most_seeds", most_seeds))),
        reduction=_at_least_2("reduction", reduction),
    )
    random_seed("seed + most_seeds", ladder.seeds[-1])
    level, progress = coverage_level(level), yes_or_no("progress", progress)
    track = Track(model, task, tokenizer, placements, settings)
    _check_trainings(track)

    def lead(train: Any) -> RaceResult:
        cells = _cells(track, ladder)
        runs = raced(ladder, cells, train, storage=storage, progress=progress)
        return RaceResult.of(ladder, runs, settings, level)

    return Team(this_process(), track.train).follow(lead)


def _load_trainer() -> type:
    """TRL's trainer, which takes seconds to import: not in the first run, which is timed."""
    return import_trl("a race").SFTTrainer


def _ranks(
    model: nn.Module,
    placements: Mapping[str, Placement],
    ranks: Mapping[str, int] | None,
    parameters: int | None,
) -> dict[str, int]:
    """The rank of every placement."""
    if not isinstance(placements, Mapping):
        raise TypeError(f"placements={placements!r:.60}, expected a dict of names and placements")
    if len(placements) < 2:
        raise ValueError(f"placements has {len(placements)}, expected two or more to race")
    if ranks is not None and parameters is not None:
        raise ValueError(f"ranks and parameters={parameters} are both given: leave one of them out")
    found = {}
    for name, placement in placements.items():
        if not isinstance(name, str):
            raise TypeError(f"placements has the name {name!r:.60}, expected a text")
        if parameters is not None:
            found[name] = rank_for(placement, model, parameters)
        else:
            found[name] = RANK if ranks is None else _rank_of(name, ranks)
        adapters(model, placement, r=found[name])
    return found


def _rank_of(name: str, ranks: Mapping[str, int]) -> int:
    if not isinstance(ranks, Mapping):
        raise TypeError(f"ranks={ranks!r:.60}, expected a dict of names of placements")
    if name not in ranks:
        raise ValueError(f"ranks has nothing for placement {name!r}: add it")
    return positive_integer(f"ranks[{name!r}]", ranks[name])


def _settings(rank: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `finetune` for a placement of a rank, without learning rate and seed."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is no option of a race, choose from {', '.join(OPTIONS)}")
    return plain_numbers({**OPTIONS, **options, "r": rank})


def _arms(placements: Mapping[str, Placement], rates: Iterable[float]) -> tuple[Arm, ...]:
    """Every placement with every rate; first one with the most modules, which measures the time."""
    if isinstance(rates, str) or not isinstance(rates, Iterable):
        raise TypeError(f"rates={rates!r:.60}, expected a list: put it in one")
    numbers = [float(positive_number("rates", rate, " each")) for rate in rates]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"rates={numbers}, expected one or more, and none twice")
    names = sorted(placements, key=lambda name: len(placements[name].modules), reverse=True)
    middle = sorted(numbers, key=lambda rate: abs(math.log(rate / numbers[len(numbers) // 2])))
    return tuple(Arm(name, rate) for name in names for rate in middle)


def _steps(steps: int) -> int:
    if steps < FEWEST_STEPS * LONGEST_RUNG:
        raise ValueError(f"steps={steps}, expected {FEWEST_STEPS * LONGEST_RUNG} or more")
    return steps


def _at_least_2(name: str, value: Any) -> int:
    if positive_integer(name, value) == 1:
        raise ValueError(f"{name}=1, expected an integer of at least 2")
    return int(value)


def _check_trainings(track: Track) -> None:
    """Refuse what could not be trained, before anything is."""
    length = next(iter(track.settings.values()))["max_length"]
    model, task, tokenizer = track.model, track.task, track.tokenizer
    check_run(model, task, tokenizer, final=JUDGED, accuracy=False)
    check_tokens(model, task, tokenizer, final=JUDGED, accuracy=False, max_length=length)


def _cells(track: Track, ladder: Ladder) -> dict[Job, Cell]:
    """The cell of every job that there may be, known by all that determines its result."""
    of_task = task_digest(track.task, track.tokenizer)
    weights = fingerprint(track.model)
    cells = {}
    for job in ladder.all_jobs:
        placement = track.placements[job.arm.placement]
        of_run = run_key(track.model, of_task, placement, track.arguments(job), weights)
        key = digest({"run": of_run, "until": job.until, "evaluated": job.evaluated})
        labels: dict[str, Label] = {
            "placement": job.arm.placement,
            "lr": job.arm.lr,
            "seed": job.seed,
            "until": job.until,
        }
        cells[job] = Cell(key, labels, job)
    return cells
