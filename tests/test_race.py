"""A race of placements: who wins, what it costs, and that nothing is run twice."""

import math
import random
import threading
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState

import plop_nb as plop
from plop_nb import experiments as ex
from plop_nb.experiments.grids.cells import Cell, digest
from plop_nb.experiments.grids.storage import open_storage, quiet_optuna
from plop_nb.experiments.races import Arm, Job, Ladder, live
from plop_nb.experiments.races.jobs import Run, judged, spent
from plop_nb.experiments.races.ladder import climbed
from plop_nb.experiments.races.verdict import verdict
from plop_nb.placement import Placement
from tests.test_scale import launched
from tests.toy_task import toy_task

RATES = (1e-3, 2e-3, 4e-3)
ROOT = Path(__file__).parent.parent


def ladder(**options):
    """Four placements at three rates."""
    arms = tuple(Arm(name, lr) for name in "abcd" for lr in RATES)
    return Ladder(**({"arms": arms, "steps": 64, "seconds": 2000.0} | options))


class World:
    """Runs as they might be: placements and rates with a known loss, noise of seeds, and a clock.

    A step takes a second, an evaluation two, and what comes before the first step three.
    """

    def __init__(self, quality, noise=0.0, slow=()):
        self.quality, self.noise, self.slow = quality, noise, slow
        self.jobs = []

    def loss(self, arm):
        return self.quality[arm.placement] + 0.1 * abs(math.log2(arm.lr / 2e-3))

    def train(self, job):
        self.jobs.append(job)
        arm, steps = job.arm, np.arange(1, job.until + 1)
        draw = random.Random(f"{job.arm} {job.seed}")
        end = self.loss(arm) + self.noise * draw.gauss(0, 1)
        losses = end + 2 * np.exp(-steps / 8)
        step = 2.0 if arm.placement in self.slow else 1.0
        return Run(
            job,
            tuple(losses),
            end + 0.05 if job.evaluated else None,
            start=3.0,
            training=step * job.until,
            evaluation=2.0 * job.evaluated,
        )


CLEAR = {"a": 1.3, "b": 1.0, "c": 1.2, "d": 1.5}
TIES = dict.fromkeys("abcd", 1.0)


# Decisions


def test_the_best_arm_wins_and_all_are_ranked():
    race, world = ladder(), World(CLEAR)
    runs = climbed(race, world.train)
    found = race.verdict(runs)
    assert [(s.placement, s.lr) for s in found.standings] == [(n, 2e-3) for n in "bcad"]
    assert found.decided and found.standings[1].difference == pytest.approx(0.2)
    assert found.standings[0].loss == pytest.approx(1.05)


def test_a_rung_has_all_arms_on_the_same_seed_and_the_best_go_on():
    race, world = ladder(seconds=700.0), World(CLEAR)
    runs = climbed(race, world.train)
    plan = race.plan(runs)
    assert plan.rungs == (8, 32) and plan.arms == (12, 4)
    first = [job for job in world.jobs if job.until == 8]
    second = [job for job in world.jobs if job.until == 32]
    assert {job.arm for job in first} == set(race.arms) and len(first) == 12
    assert {job.arm for job in second} == {Arm(name, 2e-3) for name in "abcd"}
    assert {job.seed for job in first + second} == {race.seed}
    final = [job for job in world.jobs if job.until == 64]
    assert race.seed not in {job.seed for job in final} and all(job.evaluated for job in final)
    # each seed of the final is run by all, before the next one
    for number in range(0, len(final), plan.finalists):
        together = final[number : number + plan.finalists]
        assert len({job.seed for job in together}) == 1 and len({job.arm for job in together}) > 1


def test_evaluations_are_for_the_final_and_the_first_run():
    race, world = ladder(), World(CLEAR)
    climbed(race, world.train)
    evaluated = [job for job in world.jobs if job.evaluated]
    assert evaluated[0] == world.jobs[0] == race.probe
    assert all(job.until == race.steps for job in evaluated[1:])


@pytest.mark.parametrize("seconds", [200, 300, 450, 600, 800, 1200, 2500, 10_000])
@pytest.mark.parametrize("slow", [(), ("b",), ("a",), ("b", "c", "d")])
def test_the_budget_holds(seconds, slow):
    race, world = ladder(seconds=float(seconds)), World(CLEAR, slow=slow)
    try:
        runs = climbed(race, world.train)
    except ValueError:
        assert seconds == 200 and slow == ("a",)  # whose arm measures the time
        return
    assert spent(runs) <= seconds + (race.steps if slow else 0)  # a slow placement may surprise
    if not slow:
        assert spent(runs) <= race.plan(runs).seconds + 1e-6 <= seconds + 1e-3


def test_a_larger_budget_buys_a_more_thorough_race():
    before = None
    for seconds in (200, 450, 700, 1200, 3000):
        race = ladder(seconds=float(seconds))
        plan = race.plan(climbed(race, World(CLEAR).train))
        if before is not None:
            assert plan.seconds > before.seconds
            assert (plan.rungs[0], plan.seeds * plan.finalists) >= (before.rungs[0], 0)
        before = plan
    assert plan.rungs == (32,) and (plan.finalists, plan.seeds) == (4, 5)


def test_too_little_says_how_much_would_do():
    race = ladder(seconds=100.0)
    with pytest.raises(ValueError, match="seconds=100 is too little: 8 of 64 steps.* 12 arms") as e:
        climbed(race, World(CLEAR).train)
    enough = int(str(e.value).split("about ")[1].split()[0])
    assert enough == 12 * (3 + 8) + 2
    race = ladder(seconds=float(enough))
    found = race.verdict(climbed(race, World(CLEAR).train))
    assert found.standings[0].placement == "b" and not found.decided
    with pytest.raises(ValueError, match="too little"):
        climbed(ladder(seconds=enough - 1.0), World(CLEAR).train)


def test_ties_are_undecided():
    race = ladder()
    exact = race.verdict(climbed(race, World(TIES).train))
    assert not exact.decided and exact.standings[1].low == exact.standings[1].high == 0


@pytest.mark.slow
def test_chance_is_rarely_taken_for_a_winner():
    """Of races among equals at most one in twenty ends with "decided", in the long run."""
    decided = 0
    for number in range(100):
        seeds = tuple(range(number * 10 + 1, number * 10 + 6))
        race = ladder(seed=number * 10, seeds=seeds)
        decided += race.verdict(climbed(race, World(TIES, noise=0.1).train)).decided
    assert decided <= 100 * 0.05 + 3 * math.sqrt(100 * 0.05 * 0.95)


def test_the_interval_is_that_of_scipy_with_the_comparisons_counted():
    from scipy import stats

    arms = [Arm(name, 1e-3) for name in "abc"]
    losses = {"a": [1.2, 1.3, 1.25], "b": [1.0, 1.15, 1.05], "c": [1.1, 1.2, 1.3]}
    runs = []
    for arm in arms:
        for seed, loss in enumerate(losses[arm.placement]):
            runs.append(Run(Job(arm, seed, 8, evaluated=True), (), loss))
    found = verdict(arms, arms, runs)
    gaps = np.subtract(losses["c"], losses["b"])
    low, high = stats.t.interval(0.975, 2, loc=gaps.mean(), scale=stats.sem(gaps))
    second = found.standings[1]
    assert [s.placement for s in found.standings] == ["b", "c", "a"]
    assert (second.low, second.high) == (pytest.approx(low), pytest.approx(high))
    assert not found.decided and second.seeds == 3
    # only seeds that all finalists have
    fewer = verdict(arms, arms, runs[:-1])
    assert {s.seeds for s in fewer.standings} == {2}
    assert not verdict(arms, arms, [run for run in runs if run.job.seed == 0]).decided


def test_what_diverges_never_wins():
    def train(job):
        run = world.train(job)
        if job.arm.lr == 4e-3:
            return Run(job, (math.nan,) * job.until, math.nan, 3.0, job.until, 2.0)
        return run

    race, world = ladder(), World(CLEAR)
    assert race.verdict(climbed(race, train)).standings[0].placement == "b"
    only = ladder(arms=tuple(Arm(name, 4e-3) for name in "ab"))
    with pytest.raises(ValueError, match="all arms diverged .* lower rates than 0.004"):
        climbed(only, train)


def test_a_finalist_that_diverges_in_the_final_does_not_stop_it():
    def train(job):
        run = world.train(job)
        lost = job.evaluated and job.until == 64 and job.arm.placement == "b" and job.seed == 2
        return run if not lost else Run(job, run.losses, math.nan, 3.0, job.until, 2.0)

    race, world = ladder(), World(CLEAR)
    found = race.verdict(climbed(race, train))
    assert found.standings[0].placement == "c" and found.standings[-1].loss == math.inf


def test_the_order_of_arms_does_not_matter():
    """Nor does it when runs are finished in another order than they were wanted in."""
    expected = None
    for number in range(5):
        draw = random.Random(number)
        arms = list(ladder().arms)
        draw.shuffle(arms)
        race, world = ladder(arms=tuple(arms), seconds=700.0), World(CLEAR, noise=0.05)
        runs = []
        while jobs := race.wanted(runs):
            runs.insert(draw.randrange(len(runs) + 1), world.train(draw.choice(jobs)))
        found = race.verdict(runs)
        expected = expected or found
        assert found.standings[:3] == expected.standings[:3]


def test_a_longer_run_serves_a_shorter_rung():
    """A race with more seconds takes over what one with fewer has run."""
    world = World(CLEAR)
    runs = climbed(ladder(seconds=3000.0), world.train)
    assert {run.job.until for run in runs} == {8, 32, 64}  # 8: the first one
    before = len(world.jobs)
    small = ladder(seconds=spent(runs) + 30)
    assert small.wanted(runs) == [] and len(world.jobs) == before


def test_jobs_of_others_are_left_out_and_their_seconds_set_aside():
    race, world = ladder(seconds=200.0), World(CLEAR)
    assert race.wanted([], running=[race.probe]) == []
    runs = [world.train(race.probe)]
    jobs = race.wanted(runs)
    assert race.wanted(runs, running=jobs[:3]) == jobs[3:]
    assert len(ladder(seconds=134.0).wanted(runs, running=jobs[:3])) == len(jobs) - 3
    assert ladder(seconds=134.0).wanted(runs, running=[*jobs[:3], race.probe]) == jobs[3:-2]


def test_the_former_half_of_the_steps_does_not_count():
    assert judged([9.0, 9.0, 1.0, 3.0, 7.0], 4) == 2.0
    assert judged([1.0, math.nan], 2) == math.inf


# Live runs


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"eos_token": "<end>"})
    return byte_tokenizer


@pytest.fixture
def placements(tiny_llama, tokenizer):
    scores = plop.nfn_scores(tiny_llama, ["one text", "another"], tokenizer, progress=False)
    types = {"q": ["q_proj"], "v": ["v_proj"], "MLP": ["up_proj", "down_proj"]}
    return {name: Placement.of_types(scores, own) for name, own in types.items()}


class FakeTime:
    """`finetune` without training, on a clock of its own; MLP at 2e-3 is the best."""

    def __init__(self):
        self.now, self.calls, self.breaks_at = 0.0, [], None

    def __call__(self):
        return self.now

    def finetune(self, model, task, tokenizer, placement, *, callbacks, lr, seed, steps, **others):
        if len(self.calls) == self.breaks_at:
            raise KeyboardInterrupt
        name = "+".join(placement.types)
        self.calls.append((name, lr, seed))
        self.now += 3
        draw = random.Random(f"{name} {lr} {seed}")
        end = 1 + ("up" not in name) * 0.3 + abs(math.log2(lr / 2e-3)) * 0.1 + draw.gauss(0, 0.01)
        state = State()
        for step in range(steps):
            callbacks[0].on_step_begin(None, state, Control())
            self.now += 1
            state.global_step = step + 1
            state.log_history.append({"loss": end + math.exp(-step / 8)})
            control = Control()
            callbacks[0].on_log(None, state, control)
            if control.should_training_stop:
                break
        self.now += 2
        return {"loss": end}


class State:
    def __init__(self):
        self.global_step, self.log_history = 0, []


class Control:
    should_training_stop = False


@pytest.fixture
def fake(monkeypatch):
    faked = FakeTime()
    monkeypatch.setattr(live, "clock", faked)
    monkeypatch.setattr(live, "finetune", faked.finetune)
    monkeypatch.setattr(live, "PAUSE", 0.01)
    return faked


@pytest.fixture
def raced(tiny_llama, tokenizer, placements):
    def run(**options):
        settings = {"seconds": 900, "rates": RATES, "steps": 64, "progress": False} | options
        chosen = settings.pop("placements", placements)
        return ex.race(tiny_llama, toy_task(), tokenizer, chosen, **settings)

    return run


def trials_in(storage):
    with quiet_optuna():
        opened = open_storage(storage)
        names = optuna.get_all_study_names(opened)
        return [t for n in names for t in optuna.load_study(study_name=n, storage=opened).trials]


def test_a_race_finds_the_best_and_keeps_its_budget(raced, fake):
    result = raced()
    assert (result.winner, result.lr, result.decided) == ("MLP", 2e-3, True)
    assert result.margin == pytest.approx(0.3, abs=0.05) and 0 < result.low < result.high
    assert result.seconds == pytest.approx(fake.now) and fake.now <= result.budget == 900
    assert len(result.runs) == len(fake.calls)
    assert result.table["placement"].iloc[0] == "MLP" and set(result.table["placement"]) == {
        "q",
        "v",
        "MLP",
    }
    final = result.runs[result.runs["rung"] == "final"]
    assert final["validation_loss"].notna().all() and (final["steps"] == 64).all()
    assert result.runs["seconds"].sum() == pytest.approx(fake.now)
    by_hand = final.groupby("placement")["validation_loss"].mean()
    assert result.table.set_index("placement")["loss"].dropna().to_dict() == pytest.approx(
        dict(by_hand)
    )
    assert result.settings["r"] == 16 and result.settings["lora_alpha"] == 32


@pytest.mark.parametrize("seconds", [150, 300, 500, 2000])
def test_what_fits_is_spent_and_no_more(raced, fake, seconds):
    result = raced(seconds=seconds)
    assert fake.now == pytest.approx(result.seconds) and result.seconds <= seconds
    assert result.seconds <= result.plan.seconds + 1e-6
    assert (result.runner_up is None) == (seconds == 150) and result.decided == (seconds >= 500)


def test_too_few_seconds(raced, fake, tmp_path):
    with pytest.raises(ValueError, match="seconds=50 is too little: 8 of 64 steps for each of 9"):
        raced(seconds=50, storage=tmp_path / "r")
    assert len(fake.calls) == 1  # what measured the time
    raced(seconds=900, storage=tmp_path / "r")
    assert len(set(fake.calls[:1]) & set(fake.calls[1:])) <= 1


@pytest.mark.slow
def test_a_killed_race_goes_on(raced, fake, tmp_path):
    fake.breaks_at = 7
    with pytest.raises(KeyboardInterrupt):
        raced(storage=tmp_path / "r")
    fake.breaks_at = None
    resumed = raced(storage=tmp_path / "r")
    assert resumed.seconds <= 900
    calls = list(fake.calls)
    again = raced(storage=tmp_path / "r")
    assert fake.calls == calls and repr(again) == repr(resumed)
    pd.testing.assert_frame_equal(again.runs, resumed.runs)
    fake.calls.clear()
    whole = raced()
    assert sorted(fake.calls) == sorted(calls) and repr(whole) == repr(resumed)
    states = [trial.state for trial in trials_in(tmp_path / "r")]
    assert states.count(TrialState.FAIL) == 1 and states.count(TrialState.COMPLETE) == len(calls)


def cells_of(race):
    cells = {}
    for job in race.all_jobs:
        labels = {"placement": job.arm.placement, "lr": job.arm.lr, "seed": job.seed}
        cells[job] = Cell(digest(str(job)), {**labels, "until": job.until}, job)
    return cells


def row_of(run):
    """What `Track.train` returns."""
    about = {"score": run.losses[-1], "loss": run.loss, "losses": list(run.losses)}
    times = {name: getattr(run, name) for name in ("start", "training", "evaluation")}
    return about | times | {"evaluated": run.job.evaluated}


@pytest.mark.parametrize("seconds", [450.0, 1000.0])
def test_workers_share_a_race(tmp_path, monkeypatch, seconds):
    """Two threads stand for two processes: each job is done once, by one of them."""
    monkeypatch.setattr(live, "PAUSE", 0.1)
    race, done, results = ladder(seconds=seconds), [], []
    world = World(CLEAR, noise=0.02)

    def train(job):
        time.sleep(0.1)
        done.append(threading.get_ident())
        return row_of(world.train(job))

    def work():
        runs = live.raced(race, cells_of(race), train, storage=tmp_path / "r", progress=False)
        results.append(runs)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(world.jobs) == len(set(world.jobs)) and len(set(done)) >= 2
    alone = climbed(race, World(CLEAR, noise=0.02).train)
    for runs in results:
        assert {run.job for run in runs} == {run.job for run in alone} == set(world.jobs)
        assert race.verdict(runs) == race.verdict(alone)
        assert spent(runs) <= seconds


@pytest.mark.slow
def test_another_model_or_setting_is_another_race(raced, fake, tmp_path):
    raced(storage=tmp_path / "r")
    runs = len(fake.calls)
    raced(storage=tmp_path / "r", batch_size=4)
    assert len(fake.calls) == 2 * runs
    raced(storage=tmp_path / "r", ranks={"q": 4, "v": 4, "MLP": 4})
    assert len(fake.calls) == 3 * runs


def test_a_result_shows_itself(raced, fake):
    result = raced()
    text = repr(result)
    assert text.startswith("winner: MLP at lr 0.002, decided: 0.") and "seconds" in text
    assert "MLP" in result._repr_html_() and "nan" not in text.lower()
    early = raced(seconds=150)
    assert "undecided: no placement was evaluated" in repr(early) and "give more seconds" in repr(
        early
    )
    assert "nan" not in early._repr_html_().lower()


def test_names_are_escaped(raced, fake, placements):
    named = {"<b>": placements["q"], "MLP": placements["MLP"]}
    assert "<b>" not in raced(placements=named)._repr_html_()


def test_the_best_rate_at_the_edge_is_told(raced, fake):
    result = raced(rates=[2e-3, 4e-3, 8e-3])
    assert result.table["edge"].iloc[0] and "lowest of those given" in repr(result)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"seconds": 0}, ValueError, "seconds=0, expected a positive number"),
        ({"seconds": math.inf}, ValueError, "seconds=inf"),
        ({"rates": 1e-3}, TypeError, "rates=0.001, expected a list"),
        ({"rates": []}, ValueError, "expected one or more"),
        ({"rates": [1e-3, 1e-3]}, ValueError, "none twice"),
        ({"rates": [-1.0]}, ValueError, "rates=-1.0"),
        ({"placements": {}}, ValueError, "placements has 0, expected two or more"),
        ({"placements": ["q"]}, TypeError, "expected a dict"),
        ({"placements": {"a": "q_proj", "b": "v_proj"}}, TypeError, "expected a Placement"),
        ({"ranks": {"q": 4}}, ValueError, "ranks has nothing for placement 'v'"),
        ({"ranks": {"q": 0, "v": 1, "MLP": 1}}, ValueError, r"ranks\['q'\]=0"),
        ({"ranks": {}, "parameters": 100}, ValueError, "both given"),
        ({"steps": 7}, ValueError, "steps=7, expected 8 or more"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"most_seeds": 1}, ValueError, "most_seeds=1, expected an integer of at least 2"),
        ({"reduction": 1}, ValueError, "reduction=1"),
        ({"level": 2}, ValueError, "level=2"),
        ({"accuracy": True}, TypeError, "'accuracy' is no option of a race"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"storage": "."}, ValueError, "is a folder"),
    ],
)
def test_bad_input(raced, fake, options, error, text):
    with pytest.raises(error, match=text):
        raced(**options)
    assert fake.calls == []


def test_equal_parameters(raced, fake, tiny_llama, placements):
    result = raced(parameters=3000)
    placement = placements[result.winner]
    assert result.settings["r"] == ex.rank_for(placement, tiny_llama, 3000) != 16


def test_a_replay_of_the_recorded_runs_is_the_race(raced, fake, tmp_path):
    """The same decisions, fed with the curves that the race itself has recorded."""
    result = raced(seconds=700, storage=tmp_path / "r")
    rows = ex.read_runs(tmp_path / "r")
    names = ["start", "training", "evaluation"]
    known = {}
    for row in rows.to_dict("records"):
        job = Job(Arm(row["placement"], row["lr"]), row["seed"], row["until"], row["evaluated"])
        known[job] = Run(job, tuple(row["losses"]), row["loss"], **{n: row[n] for n in names})
    arms = tuple(dict.fromkeys(Arm(name, lr) for name in ("MLP", "q", "v") for lr in RATES))
    first = next(job.arm for job in known if job.evaluated and job.until < 64)
    arms = (first, *(arm for arm in arms if arm != first))
    race = ladder(arms=arms, seconds=700.0)
    runs = climbed(race, known.__getitem__)
    assert {run.job for run in runs} == set(known)
    found = race.verdict(runs)
    table = result.table.set_index("placement")
    assert [s.placement for s in found.standings[:2]] == result.table["placement"].tolist()[:2]
    assert found.decided == result.decided
    assert found.standings[1].low == pytest.approx(table.loc[result.runner_up, "low"])


# With real training


@pytest.fixture
def tiny_race(tiny_llama, tokenizer, placements):
    def run(**options):
        settings = {"seconds": 600, "rates": [1e-4, 1e-2], "steps": 8, "batch_size": 4}
        settings |= {"most_seeds": 2, "progress": False} | options
        return ex.race(tiny_llama, toy_task(), tokenizer, placements, **settings)

    return run


@pytest.mark.slow
def test_a_real_race(tiny_race, tiny_llama, tokenizer, placements, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    random_state = torch.random.get_rng_state()
    result = tiny_race(storage=tmp_path / "r")
    assert all(torch.equal(before[name], t) for name, t in tiny_llama.state_dict().items())
    assert not any("lora" in name for name, _ in tiny_llama.named_modules())
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert (result.winner, result.lr) == ("MLP", 1e-2)
    # each run is the beginning of the run that `finetune` makes of it
    rows = ex.read_runs(tmp_path / "r")
    row = rows[rows["until"] == 4].iloc[-1]
    own = {"lr": row["lr"], "seed": 0, "logging_steps": 1, "final": "validation"}
    settings = result.settings | own | {"accuracy": False}
    placement = placements[row["placement"]]
    whole = ex.finetune(tiny_llama, toy_task(), tokenizer, placement, **settings)
    assert row["losses"] == [loss for _, loss in whole["curve"]][:4]


LAUNCHED = """
import sys
import plop_nb as plop
from accelerate import PartialState
from plop_nb import experiments as ex
from tests import conftest
from tests.toy_task import toy_task

state = PartialState(cpu=True)
model = conftest.tiny_llama._get_wrapped_function()()
tokenizer = conftest.byte_tokenizer._get_wrapped_function()()
tokenizer.add_special_tokens({"eos_token": "<end>"})
scores = plop.nfn_scores(model, ["one text"], tokenizer, progress=False, distribute=False)
of = plop.Placement.of_types
placements = {"q": of(scores, ["q_proj"]), "MLP": of(scores, ["up_proj", "down_proj"])}
options = {"rates": [1e-4, 1e-2], "steps": 8, "batch_size": 4, "most_seeds": 2, "progress": False}
try:
    result = ex.race(model, toy_task(), tokenizer, placements, seconds=float(sys.argv[2]),
                     storage=f"{sys.argv[1]}/r", **options)
    text = f"{result.winner} {result.lr} {len(result.runs)} {result.seconds}"
except ValueError as error:
    text = f"ValueError {error}"
with open(f"{sys.argv[1]}/r.{state.process_index}", "w") as file:
    file.write(text)
"""


def found_by_two(folder, seconds):
    """What each of two processes has found that train together on a CPU."""
    done = launched(folder, str(seconds), script=LAUNCHED)
    assert done.returncode == 0, done.stderr[-3000:]
    return [(folder / f"r.{rank}").read_text() for rank in (0, 1)]


@pytest.mark.slow
def test_processes_that_train_together_decide_alike(tmp_path):
    first, second = found_by_two(tmp_path, 300)
    assert first == second and first.startswith("MLP 0.01 ")
    runs = int(first.split()[2])
    assert runs == len([t for t in trials_in(tmp_path / "r") if t.state.name == "COMPLETE"])
    first, second = found_by_two(tmp_path, 0.5)
    assert first == second and first.startswith("ValueError seconds=0.5 is too little")
