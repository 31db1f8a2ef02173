"""Does a placement pay? One run of finetuning with TRL and PEFT."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback

from plop_nb.checks import (
    positive_integer,
    positive_number,
    random_seed,
    writable_folder,
    yes_or_no,
)
from plop_nb.experiments.evaluation import (
    check_end,
    check_task,
    check_vocabulary,
    encoded,
    evaluate,
    has_completions,
    token_limit,
    try_check,
)
from plop_nb.experiments.generation import padding_id
from plop_nb.experiments.isolation import (
    check_trainable,
    isolated,
    own_forward,
    shared_copy,
)
from plop_nb.experiments.tasks.task import Task
from plop_nb.experiments.trainers import (
    adapters,
    device_name,
    dtype_name,
    import_trl,
    model_name,
    run_trainer,
    trainer_settings,
)
from plop_nb.placement import Placement

FINAL_SPLITS = ("test", "validation")
# Arguments of trainings that are numbers, in the order of the columns, and how each is checked
NUMBERS: dict[str, Callable[[str, Any], int | float]] = {
    "r": positive_integer,
    "lora_alpha": positive_number,
    "lr": positive_number,
    "steps": positive_integer,
    "batch_size": positive_integer,
    "max_length": token_limit,
    "seed": random_seed,
    "logging_steps": positive_integer,
}


def rank_for(placement: Placement, model: nn.Module, parameters: int) -> int:
    """The rank at which a placement's adapters come nearest to a number of parameters.

    Parameters
    ----------
    placement : Placement
    model : torch.nn.Module
        The model that was scored.
    parameters : int
        Adapter parameters to match; the exact count at this rank is in the result of `finetune`.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        `placement` is none, or `parameters` is not positive.
    """
    budget = positive_number("parameters", parameters, ", such as 2_400_000")
    config = adapters(model, placement, r=1)
    of_rank_1 = placement.check(model, config)["trainable"].sum()
    return max(1, round(budget / int(of_rank_1)))


def finetune(
    model: nn.Module,
    task: Task,
    tokenizer: Any,
    placement: Placement,
    *,
    r: int = 16,
    lora_alpha: int | None = None,
    lr: float = 1e-3,
    steps: int = 100,
    batch_size: int = 16,
    seed: int = 0,
    max_length: int = 512,
    accuracy: bool = True,
    final: str = "test",
    logging_steps: int = 5,
    callbacks: Iterable[TrainerCallback] = (),
    out: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train adapters on a placement with TRL's SFTTrainer, and evaluate them.

    What is trained shares the weights of `model`, nothing else: the model stays as it is. AdamW,
    linear decay after 10 % warmup, loss on the completions alone. The base weights stay in the
    model's dtype without autocast; the adapters are float32. On a CPU the same arguments give the
    same result, whatever ran before.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers, on its device, without adapters.
    task : Task
        From `load_task`, or your own, with completions.
    tokenizer : transformers tokenizer
        With an `eos_token`, which ends every completion.
    placement : Placement
        Where the adapters go: from `place`, `Placement.of_types` or `Placement.of_modules`.
    r, lora_alpha : int
        Rank and scale; `lora_alpha` is `2 r` by default, which keeps the factor `alpha / r` the
        same.
    lr : float
        Peak learning rate.
    steps, batch_size : int
        Optimizer steps, and examples in each.
    seed : int
        Of the adapters' start and the order of examples.
    max_length : int
        Tokens of an example; a longer one loses the beginning of its prompt.
    accuracy : bool
        Also generate completions and check them (nothing for a task without `check`).
    final : {"test", "validation"}
        The split to evaluate on. Tune on "validation".
    logging_steps : int
        Steps between two points of the curve.
    callbacks : iterable of transformers.TrainerCallback
        Such as `NormsCallback`.
    out : str or Path, optional
        Folder for the trained adapter, as PEFT saves it before the evaluation; made before the
        training.
    progress : bool
        Show the trainer's progress bar.

    Returns
    -------
    dict
        `task`, `model`, `dtype`, `types` (joined by +), `modules` (adapted, PEFT's count),
        `parameters` (trainable), `r`, `lora_alpha`, `lr`, `steps`, `batch_size`, `max_length`,
        `seed`, `split`, `loss` (nats per completion token, end of text included), `accuracy`
        (share, or None), `seconds` (of training), `peak_memory` (bytes: on CUDA the most allocated
        while training; else the most this process has ever held), `device`, `torch` (version),
        `curve` (list of [step, mean training loss since the point before]).

    Raises
    ------
    ImportError
        TRL is not installed.
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    """
    trl = import_trl("finetuning")
    given = plain_numbers(
        {
            "r": r,
            "lora_alpha": lora_alpha,
            "lr": lr,
            "steps": steps,
            "batch_size": batch_size,
            "max_length": max_length,
            "seed": seed,
            "logging_steps": logging_steps,
        }
    )
    given["lora_alpha"] = given["lora_alpha"] or 2 * given["r"]
    # whatever can fail is tried before the training
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks={callbacks!r:.60}, expected a list: put it in one")
    check_run(model, task, tokenizer, final=final, accuracy=accuracy)
    rows = check_tokens(
        model, task, tokenizer, final=final, accuracy=accuracy, max_length=given["max_length"]
    )
    config = adapters(model, placement, r=given["r"], lora_alpha=given["lora_alpha"])
    folder_of_adapter = None if out is None else writable_folder("out", out)
    with isolated(given["seed"]) as folder:
        base = shared_copy(model)
        lora = get_peft_model(base, config)
        parameters = lora.get_nb_trainable_parameters()[0]
        settings = trainer_settings(
            trl.SFTConfig,
            model,
            lr=given["lr"],
            steps=given["steps"],
            seed=given["seed"],
            output_dir=folder,
            lr_scheduler_type="linear",
            warmup_steps=round(0.1 * given["steps"]),
            per_device_train_batch_size=given["batch_size"],
            max_length=given["max_length"],
            logging_steps=given["logging_steps"],
            logging_nan_inf_filter=False,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            disable_tqdm=not progress,
        )
        with own_forward(base):
            trainer = _supervised(trl, lora, rows, tokenizer, settings, list(callbacks))
            cost = run_trainer(trainer)
        if folder_of_adapter is not None:
            lora.save_pretrained(folder_of_adapter)
        found = evaluate(lora, task, tokenizer, final, accuracy=accuracy, max_length=max_length)
    return {
        "task": task.name,
        "model": model_name(model),
        "dtype": dtype_name(model),
        "types": "+".join(placement.types),
        "modules": _adapted_count(lora),
        "parameters": parameters,
        **{name: number for name, number in given.items() if name != "logging_steps"},
        "split": final,
        **found,
        "seconds": cost.seconds,
        "peak_memory": cost.peak_memory,
        "device": device_name(model),
        "torch": torch.__version__,
        "curve": _curve(trainer),
    }


def plain_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a training, the `NUMBERS` among them checked, and numpy's made Python's.

    Raises
    ------
    ValueError
        Names the argument, its value and what would do.
    """
    plain = dict(settings)
    for name, number in settings.items():
        default = name == "lora_alpha" and number is None
        if name in NUMBERS and not default:
            plain[name] = NUMBERS[name](name, number)
    return plain


def _adapted_count(lora: PeftModel) -> int:
    """How many modules, and stacks of experts, have adapters."""
    return len(lora.targeted_module_names) + len(getattr(lora, "targeted_parameter_names", ()))


def _curve(trainer: Trainer) -> list[list[float]]:
    """[step, mean training loss since the point before] of every logged step."""
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [[entry["step"], entry["loss"]] for entry in logged]


def check_run(model: nn.Module, task: Task, tokenizer: Any, *, final: str, accuracy: bool) -> None:
    """Refuse what cannot be finetuned, as far as a glance tells (TypeError, ValueError)."""
    if final not in FINAL_SPLITS:
        raise ValueError(f"split {final!r} is unknown, choose one of {FINAL_SPLITS}")
    check_task(task, "train", final)
    judged = yes_or_no("accuracy", accuracy) and task.check is not None
    check_trainable(model, generates=judged)
    check_end(tokenizer)
    for split in ("train", final):
        if not has_completions(task, split):
            raise ValueError(
                f"task {task.name!r} has examples without 'completion' in its split {split!r}, "
                f"which finetuning needs: add it, or train with grpo.train"
            )


def check_tokens(
    model: nn.Module, task: Task, tokenizer: Any, *, final: str, accuracy: bool, max_length: int
) -> list[dict[str, list[int]]]:
    """Refuse, of what `check_run` takes, tokens that the model cannot read, and a check that fails.

    Returns
    -------
    list of dict
        Token ids and labels of the training split, as in `evaluation.encoded`.

    Raises
    ------
    ValueError
        A prompt without tokens, or a token without embedding.
    Exception
        What the task's check raises of an example.
    """
    if accuracy:
        try_check(task, final)
    rows = encoded(task, "train", tokenizer, max_length)
    check_vocabulary(model, rows + encoded(task, final, tokenizer, max_length))
    return rows


def _supervised(
    trl: ModuleType,
    lora: nn.Module,
    rows: list[dict],
    tokenizer: Any,
    settings: Any,
    callbacks: list[TrainerCallback],
) -> Trainer:
    from datasets import Dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return trl.SFTTrainer(
        lora,
        settings,
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForLanguageModeling(padding_id(tokenizer)),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
