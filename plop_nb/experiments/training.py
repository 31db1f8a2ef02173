"""Does a placement pay? One run of finetuning with TRL and PEFT, and what all trainers share."""

import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from plop_nb.checks import missing_extra, positive_integer
from plop_nb.experiments.evaluation import (
    check_end,
    check_task,
    encoded,
    evaluate,
    has_completions,
)
from plop_nb.experiments.generation import padding_id
from plop_nb.experiments.isolation import seeded, shared_copy
from plop_nb.experiments.tasks.task import Task
from plop_nb.placement import Placement

FINAL_SPLITS = ("test", "validation")


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
    ValueError
        `parameters` is not positive.
    """
    if not parameters > 0:
        raise ValueError(
            f"parameters={parameters!r}, expected a positive number, such as 2_400_000"
        )
    of_rank_1 = placement.check(model, placement.lora_config(model, r=1))["trainable"].sum()
    return max(1, round(parameters / int(of_rank_1)))


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
        Folder for the trained adapter, as PEFT saves it.
    progress : bool
        Show the trainer's progress bar.

    Returns
    -------
    dict
        `task`, `model`, `dtype`, `types` (joined by +), `modules` (adapted, PEFT's count), `r`,
        `lora_alpha`, `parameters` (trainable), `lr`, `steps`, `batch_size`, `max_length`, `seed`,
        `split`, `loss` (nats per completion token, end of text included), `accuracy` (share, or
        None), `seconds` (of training), `peak_memory` (bytes: on CUDA the most allocated while
        training; else the most this process has ever held), `device`, `torch` (version), `curve`
        (list of [step, mean training loss since the point before]).

    Raises
    ------
    ImportError
        TRL is not installed.
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    """
    trl = import_trl("finetuning")
    check_run(model, task, tokenizer, final)
    steps = positive_integer("steps", steps, ": evaluate gives the loss of an untrained model")
    lora_alpha = 2 * r if lora_alpha is None else lora_alpha
    config = placement.lora_config(model, r=r, lora_alpha=lora_alpha)
    with seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers on a default of TRL's
        base = shared_copy(model)
        lora = get_peft_model(base, config)
        parameters = lora.get_nb_trainable_parameters()[0]
        settings = trainer_settings(
            trl.SFTConfig,
            model,
            lr=lr,
            steps=steps,
            seed=seed,
            lr_scheduler_type="linear",
            warmup_steps=round(0.1 * steps),
            per_device_train_batch_size=batch_size,
            max_length=max_length,
            logging_steps=logging_steps,
            logging_nan_inf_filter=False,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            disable_tqdm=not progress,
        )
        rows = encoded(task, "train", tokenizer, max_length)
        with own_forward(base):
            trainer = _supervised(trl, lora, rows, tokenizer, settings, list(callbacks))
            cost = run_trainer(trainer)
        if out is not None:
            lora.save_pretrained(out)
        found = evaluate(lora, task, tokenizer, final, accuracy=accuracy, max_length=max_length)
    return {
        "task": task.name,
        "model": model_name(model),
        "dtype": dtype_name(model),
        "types": "+".join(placement.types),
        "modules": _adapted_count(lora),
        "r": r,
        "lora_alpha": lora_alpha,
        "parameters": parameters,
        "lr": lr,
        "steps": steps,
        "batch_size": batch_size,
        "max_length": max_length,
        "seed": seed,
        "split": final,
        "loss": found["loss"],
        "accuracy": found["accuracy"],
        "seconds": cost.seconds,
        "peak_memory": cost.peak_memory,
        "device": device_name(model),
        "torch": torch.__version__,
        "curve": _curve(trainer),
    }


def _adapted_count(lora: PeftModel) -> int:
    """How many modules, and stacks of experts, have adapters."""
    return len(lora.targeted_module_names) + len(getattr(lora, "targeted_parameter_names", ()))


def _curve(trainer: Trainer) -> list[list[float]]:
    """[step, mean training loss since the point before] of every logged step."""
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [[entry["step"], entry["loss"]] for entry in logged]


def check_run(model: nn.Module, task: Task, tokenizer: Any, final: str) -> None:
    """Refuse a task, a split to evaluate on, or a model that cannot be finetuned.

    Raises
    ------
    TypeError, ValueError
        Names the argument, its value and what would do.
    """
    if final not in FINAL_SPLITS:
        raise ValueError(f"split {final!r} is unknown, choose one of {FINAL_SPLITS}")
    check_task(task, "train", final)
    check_end(tokenizer)
    for split in ("train", final):
        if not has_completions(task, split):
            raise ValueError(
                f"task {task.name!r} has examples without 'completion' in its split {split!r}, "
                f"which finetuning needs: add it, or train with grpo.train"
            )
    if isinstance(model, PeftModel):
        raise TypeError("model is a PeftModel, expected one without adapters: pass model.unload()")


def import_trl(what: str) -> ModuleType:
    """TRL, which is an extra.

    Raises
    ------
    ImportError
        It is not installed; says what needs it and how to install it.
    """
    try:
        import trl
    except ImportError as error:
        raise missing_extra(what, "TRL", "finetune") from error
    return trl


def trainer_settings(
    kind: type, model: nn.Module, *, lr: float, steps: int, seed: int, **options: Any
) -> Any:
    """An SFTConfig or GRPOConfig of TRL's: nothing that blurs a comparison or writes files.

    Parameters
    ----------
    kind : type
        `trl.SFTConfig` or `trl.GRPOConfig`.
    model : torch.nn.Module
        What is trained, or what it shares its weights with: says the device.
    lr, steps, seed
        As in `finetune`.
    **options
        Further arguments of `kind`, which may also take the place of those set here.

    Returns
    -------
    trl.SFTConfig or trl.GRPOConfig
    """
    on_cpu = model.device.type == "cpu"
    shared = {
        "learning_rate": lr,
        "max_steps": steps,
        "seed": seed,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": tempfile.gettempdir(),
    }
    return kind(**(shared | options))


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


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """Puts the `forward` of a model back: TRL's runs one model alone, and copies would share it."""
    own = vars(model).get("forward")
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if own is not None:
            model.forward = own


@dataclass(frozen=True)
class Cost:
    """What a training took.

    Attributes
    ----------
    seconds : float
    peak_memory : int
        Bytes: on CUDA the most allocated while training, else the most this process ever held.
    """

    seconds: float
    peak_memory: int


def run_trainer(trainer: Trainer) -> Cost:
    """Train, quietly, and say what it took."""
    trainer.remove_callback(PrinterCallback)
    device = trainer.model.device
    on_cuda = device.type == "cuda"
    if on_cuda:
        gc.collect()  # what the run before has left
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    trainer.train()
    if on_cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else _most_held()
    return Cost(seconds, peak)


def _most_held() -> int:
    """Bytes that this process has held at most."""
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def model_name(model: nn.Module) -> str:
    """The model's Hub id, or the last part of its folder: the same on every machine."""
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_dir() else name


def device_name(model: nn.Module) -> str:
    """The name of the model's GPU, or the kind of its device."""
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return model.device.type


def dtype_name(model: nn.Module) -> str:
    """The model's dtype without its module, such as "bfloat16"."""
    return str(model.dtype).removeprefix("torch.")
