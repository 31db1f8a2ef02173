"""What all trainings share: the settings of TRL's trainers, adapters, and what a training took."""

import gc
import sys
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import PrinterCallback, Trainer

from plop_nb.checks import missing_extra
from plop_nb.placement import Placement


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
    kind: type,
    model: nn.Module,
    *,
    lr: float,
    steps: int,
    seed: int,
    output_dir: str,
    **options: Any,
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
    output_dir : str
        Where the trainer may write, such as the folder of `isolated`.
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
        "output_dir": output_dir,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return kind(**(shared | options))


def adapters(model: nn.Module, placement: Placement, **options: Any) -> LoraConfig:
    """The `LoraConfig` of a placement; TypeError for what is no placement."""
    if not isinstance(placement, Placement):
        raise TypeError(
            f"placement is {type(placement).__name__} ({placement!r:.60}), expected a Placement: "
            f"from place, Placement.of_types or Placement.of_modules (finetune and grid take a "
            f"peft.LoraConfig as well)"
        )
    return placement.lora_config(model, **options)


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


def device_name(model: nn.Module) -> str:
    """The name of the model's GPU, or the kind of its device."""
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return model.device.type


def dtype_name(model: nn.Module) -> str:
    """The model's dtype without its module, such as "bfloat16"."""
    return str(model.dtype).removeprefix("torch.")
