"""Does a placement pay? One run of finetuning with TRL and PEFT."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import Trainer, TrainerCallback

from plop_nb.checks import (
    positive_integer,
    positive_number,
    random_seed,
    writable_folder,
    yes_or_no,
)
from plop_nb.experiments.adapting import (
    adapted_copy,
    adapter_config,
    hit,
    rank_and_scale,
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
)
from plop_nb.experiments.sharing import check_processes, own_part, reads_whole_batches
from plop_nb.experiments.tasks.task import Task
from plop_nb.experiments.trainers import (
    adapters,
    device_name,
    dtype_name,
    import_trl,
    run_trainer,
    trainer_settings,
)
from plop_nb.origin import model_name
from plop_nb.placement import Placement
from plop_nb.processes import Process, gathered, this_process

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
    placement: Placement | LoraConfig,
    *,
    r: int | None = None,
    lora_alpha: int | None = None,
    lr: float = 1e-3,
    steps: int = 100,
    batch_size: int = 16,
    seed: int = 0,
    max_length: int = 512,
    accuracy: bool = True,
    final: str = "test",
    per_example: bool = False,
    unrelated: Task | None = None,
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

    Under `accelerate launch` the processes share each step: together they see the examples that one
    process would, and the loss is a mean over the tokens of all of them, so that the result is the
    same but for the order of sums (and for what dropout draws). The first process saves the
    adapter, and all return its result.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers, on its device, without adapters.
    task : Task
        From `load_task`, or your own, with completions.
    tokenizer : transformers tokenizer
        With an `eos_token`, which ends every completion.
    placement : Placement or peft.LoraConfig
        Where the adapters go: from `place`, `Placement.of_types` or `Placement.of_modules`; or
        any configuration of LoRA. With `init_lora_weights="eva"` PEFT starts the adapters on the
        main directions of the inputs of training examples, and spreads the ranks anew.
    r, lora_alpha : int
        Rank and scale: 16, and `2 r`, which keeps the factor `alpha / r` the same. A `LoraConfig`
        has its own.
    lr : float
        Peak learning rate.
    steps, batch_size : int
        Optimizer steps, and examples in each, of all processes together.
    seed : int
        Of the adapters' start and the order of examples.
    max_length : int
        Tokens of an example; a longer one loses the beginning of its prompt.
    accuracy : bool
        Also generate completions and check them (nothing for a task without `check`).
    final : {"test", "validation"}
        The split to evaluate on. Tune on "validation".
    per_example : bool
        Also return `losses`, `tokens` and `exact` of each example, as `evaluate` does.
    unrelated : Task, optional
        Texts that have nothing to do with the task: their loss after training, minus that of the
        untrained model (from `evaluate`), is what was forgotten.
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
        `task`, `model`, `dtype`, `types` (joined by +), `modules` (adapted, a stack of experts as
        one), `parameters` (trainable), `r`, `lora_alpha`, `lr`, `steps`, `batch_size`,
        `max_length`, `seed`, `split`, `loss` (nats per completion token, end of text included),
        `accuracy` (share, or None), `unrelated_loss` where asked for (of the test split),
        `seconds` (of training), `peak_memory` (bytes: on CUDA the most allocated while training;
        else the most this process has ever held), `device`, `torch` (version),
        `curve` (list of [step, mean training loss since the point before]).

    Raises
    ------
    ImportError
        TRL is not installed.
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    """
    trl = import_trl("finetuning")
    r, lora_alpha = rank_and_scale(placement, r, lora_alpha)
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
    options = {"max_length": given["max_length"]}
    # whatever can fail is tried before the training
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks={callbacks!r:.60}, expected a list: put it in one")
    per_example = yes_or_no("per_example", per_example)
    check_run(model, task, tokenizer, final=final, accuracy=accuracy)
    rows = check_tokens(model, task, tokenizer, final=final, accuracy=accuracy, **options)
    if unrelated is not None:
        check_unrelated(model, unrelated, tokenizer, **options)
    config = adapter_config(model, placement, r=given["r"], lora_alpha=given["lora_alpha"])
    folder_of_adapter = None if out is None else writable_folder("out", out)
    process = this_process()
    check_processes(process, model, rows, given)
    with isolated(given["seed"]) as folder:
        lora = adapted_copy(
            model,
            config,
            rows,
            pad=padding_id(tokenizer),
            batch_size=given["batch_size"],
            seed=given["seed"],
        )
        adapted = hit(lora, model)
        settings = supervised_settings(trl, model, given, folder, progress=progress)
        with own_forward(lora.get_base_model()):
            trainer = supervised_trainer(
                trl, lora, rows, tokenizer, settings, callbacks=list(callbacks), process=process
            )
            cost = run_trainer(trainer)
        if folder_of_adapter is not None and process.is_first:
            lora.save_pretrained(folder_of_adapter)
        found = evaluate(
            lora, task, tokenizer, final, accuracy=accuracy, per_example=per_example, **options
        )
        if unrelated is not None:
            other = evaluate(lora, unrelated, tokenizer, accuracy=False, **options)
            found["unrelated_loss"] = other["loss"]
    by_hand = isinstance(placement, LoraConfig)
    row = {
        "task": task.name,
        "model": model_name(model),
        "dtype": dtype_name(model),
        "types": "+".join(adapted.types if by_hand else placement.types),
        "modules": adapted.modules,
        "parameters": adapted.parameters,
        **{name: number for name, number in given.items() if name != "logging_steps"},
        "split": final,
        **found,
        "seconds": cost.seconds,
        "peak_memory": cost.peak_memory,
        "device": device_name(model),
        "torch": torch.__version__,
        "curve": _curve(trainer),
    }
    return gathered(row, process)[0]


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


def check_unrelated(model: nn.Module, unrelated: Any, tokenizer: Any, *, max_length: int) -> None:
    """Refuse as `unrelated` what has no loss to take (TypeError, ValueError)."""
    if not isinstance(unrelated, Task):
        raise TypeError(
            f"unrelated={unrelated!r:.60}, expected a Task, whose test split has texts of another "
            f"kind"
        )
    check_task(unrelated, "test")
    if not has_completions(unrelated, "test"):
        raise ValueError(
            f"unrelated={unrelated!r:.60} has test examples without 'completion': add it, as its "
            f"loss is what is measured"
        )
    check_vocabulary(model, encoded(unrelated, "test", tokenizer, max_length))


def supervised_settings(
    trl: ModuleType, model: nn.Module, given: Mapping[str, Any], folder: str, *, progress: bool
) -> Any:
    """The SFTConfig of a training whose `NUMBERS` are given: linear decay after 10 % warmup."""
    return trainer_settings(
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


def supervised_trainer(
    trl: ModuleType,
    trained: nn.Module,
    rows: list[dict],
    tokenizer: Any,
    settings: Any,
    *,
    callbacks: list[TrainerCallback],
    process: Process,
) -> Trainer:
    """TRL's trainer of a model, with adapters or without, on rows of `evaluation.encoded`."""
    from datasets import Dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    trainer, collate = trl.SFTTrainer, DataCollatorForLanguageModeling(padding_id(tokenizer))
    if process.number > 1:
        trainer, collate = reads_whole_batches(trainer), own_part(collate, process)
    return trainer(
        trained,
        settings,
        train_dataset=Dataset.from_list(rows),
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
