"""Full finetuning, what LoRA is measured against: all weights of a copy are trained."""

import copy

import torch

from plop_nb import experiments as ex
from plop_nb.experiments.evaluation import encoded
from plop_nb.experiments.grids.cells import Cell, digest, run_cells
from plop_nb.experiments.isolation import isolated
from plop_nb.experiments.trainers import device_name, dtype_name, import_trl, run_trainer
from plop_nb.experiments.training import supervised_settings, supervised_trainer
from plop_nb.origin import model_name
from plop_nb.processes import this_process

NAME = "full finetuning"
RATES = [2.5e-5, 5e-5, 1e-4, 2e-4]  # about a tenth of LoRA's


def trained_fully(model, task, tokenizer, unrelated, *, lr, steps, batch_size, seed):
    """The row of a run, with the columns that a grid with `per_example` and `unrelated` returns."""
    trl = import_trl("full finetuning")
    given = {"lr": lr, "steps": steps, "batch_size": batch_size, "seed": seed}
    given |= {"max_length": 512, "logging_steps": 1}
    rows = encoded(task, "train", tokenizer, given["max_length"])
    with isolated(seed) as folder:
        trained = copy.deepcopy(model).float().requires_grad_(True)
        settings = supervised_settings(trl, model, given, folder, progress=False)
        options = {"callbacks": [], "process": this_process()}
        trainer = supervised_trainer(trl, trained, rows, tokenizer, settings, **options)
        cost = run_trainer(trainer)
        found = ex.evaluate(trained, task, tokenizer, accuracy=False, per_example=True)
        other = ex.evaluate(trained, unrelated, tokenizer, accuracy=False)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return given | found | {
        "model": model_name(model),
        "types": "all weights",
        "parameters": sum(parameter.numel() for parameter in trained.parameters()),
        "unrelated_loss": other["loss"],
        "seconds": cost.seconds,
        "device": device_name(model),
        "dtype": dtype_name(trained),
        "torch": torch.__version__,
        "curve": [[entry["step"], entry["loss"]] for entry in logged],
    }  # fmt: skip


def loss_of_full_finetuning(model, task, tokenizer, unrelated, *, storage, **settings):
    """The held-out loss of a run, which is kept in a storage of `grid`."""
    about = {"task": task.name, "placement": NAME, "lr": settings["lr"], "seed": settings["seed"]}
    cell = Cell(digest([model_name(model), NAME, task.test, about, settings]), about, settings)

    def run(content):
        return trained_fully(model, task, tokenizer, unrelated, **content)

    rows = run_cells([cell], run, storage=storage, study=NAME, progress=False)
    return rows[0]["loss"]
