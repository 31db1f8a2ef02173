"""Does a placement pay? Finetuning with TRL and PEFT, grids of runs, and paired comparisons."""

import copy
import gc
import hashlib
import inspect
import itertools
import json
import os
import random
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import PeftModel, get_peft_model
from scipy.stats import t as student
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed

from plop_nb.hooks import record_norms
from plop_nb.nfn import nfn_scores
from plop_nb.stats import type_means
from plop_nb.tasks import Task, load_task

__all__ = [
    "NormsCallback", "Task", "curves", "evaluate", "finetune", "grid", "load_task", "rank_for", "read_runs", "tuned",
    "versus",
]  # fmt: skip

SPLITS = ("test", "validation")
TOKENS = 2048  # of a batch whose loss is taken: bounds its logits
NOT_SETTINGS = ("model", "tokenizer", "task", "placement", "callbacks", "out", "progress")
LOWER_IS_BETTER = {"loss": True, "accuracy": False, "reward": False}


def rank_for(placement, model, parameters):
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
    """
    if not parameters > 0:
        raise ValueError(f"parameters={parameters!r}, expected a positive number, such as 2_400_000")
    of_rank_1 = placement.check(model, placement.lora_config(model, r=1))["trainable"].sum()
    return max(1, round(parameters / int(of_rank_1)))


def finetune(
    model,
    tokenizer,
    task,
    placement,
    *,
    r=16,
    lora_alpha=None,
    lr=1e-3,
    steps=100,
    batch_size=16,
    seed=0,
    max_length=512,
    accuracy=True,
    final="test",
    logging_steps=5,
    callbacks=(),
    out=None,
    progress=False,
):
    """Train adapters on a placement with TRL's SFTTrainer, and evaluate them. The model comes back as it was.

    AdamW, linear decay after 10 % warmup, loss on the completions alone. The base weights stay in the
    model's dtype without autocast; the adapters are float32. On a CPU the same arguments give the same
    result, whatever ran before.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers, on its device, without adapters.
    tokenizer : transformers tokenizer
        With an `eos_token`, which ends every completion.
    task : Task
        From `load_task`, or your own.
    placement : Placement
        Where the adapters go: from `place`, `Placement.of_types` or `Placement.of_modules`.
    r, lora_alpha : int
        Rank and scale; `lora_alpha` is `2 r` by default, which keeps the factor `alpha / r` the same.
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
        `task`, `model`, `dtype`, `types` (joined by +), `modules` (adapted, PEFT's count), `r`, `lora_alpha`,
        `parameters` (trainable), `lr`, `steps`, `batch_size`, `max_length`, `seed`, `split`, `loss` (nats per
        completion token, end of text included), `accuracy` (share, or None), `seconds` (of training), `peak_memory`
        (bytes: on CUDA the most allocated while training; else the most this process has ever held), `device`,
        `torch` (version), `curve` (list of [step, mean training loss since the point before]).

    Raises
    ------
    ImportError
        TRL is not installed.
    TypeError, ValueError
        Bad input: names the argument, its value and what would do.
    """
    trl = import_trl("finetuning")
    _check(model, tokenizer, task, final)
    if steps < 1:
        raise ValueError(f"steps={steps!r}, expected at least 1: evaluate gives the loss of an untrained model")
    lora_alpha = 2 * r if lora_alpha is None else lora_alpha
    config = placement.lora_config(model, r=r, lora_alpha=lora_alpha)
    with restored(model), seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers on a default of TRL's
        lora = get_peft_model(model, config)
        adapted = len(lora.targeted_module_names) + len(getattr(lora, "targeted_parameter_names", ()))
        parameters = lora.get_nb_trainable_parameters()[0]
        trainer = _trainer(
            trl, lora, tokenizer, task, list(callbacks), progress, learning_rate=lr, max_steps=steps,
            per_device_train_batch_size=batch_size, seed=seed, max_length=max_length, logging_steps=logging_steps,
        )  # fmt: skip
        seconds, peak = _train(trainer, model.device)
        if out is not None:
            lora.save_pretrained(out)
        found = evaluate(lora, tokenizer, task, final, accuracy=accuracy, max_length=max_length)
    return {
        "task": task.name, "model": _name(model), "dtype": _dtype(model), "types": "+".join(placement.types),
        "modules": adapted, "r": r, "lora_alpha": lora_alpha, "parameters": parameters, "lr": lr, "steps": steps,
        "batch_size": batch_size, "max_length": max_length, "seed": seed, "split": final, **found, "seconds": seconds,
        "peak_memory": peak, "device": _device(model), "torch": torch.__version__,
        "curve": [[e["step"], e["loss"]] for e in trainer.state.log_history if "loss" in e],
    }  # fmt: skip


def evaluate(model, tokenizer, task, split="test", *, accuracy=True, max_length=512, batch_size=None):
    """Loss and accuracy of a model, with adapters or without, on a split of a task.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model, also a `PeftModel` or one with merged adapters.
    tokenizer : transformers tokenizer
    task : Task
    split : {"test", "validation", "train"}
    accuracy : bool
        Generate completions greedily and check them.
    max_length : int
        As in `finetune`.
    batch_size : int, optional
        Prompts to generate for at a time: 64 on a CPU, else 256.

    Returns
    -------
    dict
        `loss`: mean cross-entropy (nats) over all completion tokens of the split together, end of
        text included. `accuracy`: share of completions that `task.check` takes, or None.
    """
    _check(model, tokenizer, task, split, (*SPLITS, "train"))
    batch_size = batch_size or (64 if model.device.type == "cpu" else 256)
    with restored(model), torch.no_grad():
        model.eval()
        right = None
        if accuracy and task.check is not None:
            examples = getattr(task, split)
            prompts = [e["prompt"] for e in examples]
            texts = _generate(model, tokenizer, prompts, task.new_tokens, max_length, batch_size)
            right = float(np.mean([task.check(text, e) for text, e in zip(texts, examples, strict=True)]))
        return {"loss": _loss(model, _encoded(task, split, tokenizer, max_length), _pad(tokenizer)), "accuracy": right}


def _check(model, tokenizer, task, split, splits=SPLITS):
    if not isinstance(task, Task):
        raise TypeError(f"task is {type(task).__name__}, expected a Task, such as load_task('sums')")
    if split not in splits:
        raise ValueError(f"split {split!r} is unknown, choose one of {splits}")
    trains = splits is SPLITS
    if empty := [s for s in (*["train"] * trains, split) if not getattr(task, s)]:
        raise ValueError(f"task {task.name!r} has no example in its split {empty[0]!r}: give it at least one")
    if tokenizer.eos_token_id is None:
        raise ValueError("this tokenizer has no eos_token, which ends every completion: set tokenizer.eos_token")
    if trains and isinstance(model, PeftModel):
        raise TypeError("model is a PeftModel, expected one without adapters: pass model.unload()")


def import_trl(what):
    """TRL, which is an extra, or a line that says how to install it."""
    try:
        import trl
    except ImportError as error:
        raise ImportError(f"{what} needs TRL, which is not installed: pip install 'plop_nb[finetune]'") from error
    return trl


def _trainer(trl, lora, tokenizer, task, callbacks, progress, **settings):
    """An SFTTrainer that leaves out what would blur a comparison or write files."""
    from datasets import Dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    on_cpu = lora.device.type == "cpu"
    rows = Dataset.from_list(_encoded(task, "train", tokenizer, settings["max_length"]))
    args = trl.SFTConfig(
        output_dir=tempfile.gettempdir(), save_strategy="no", report_to="none", disable_tqdm=not progress,
        lr_scheduler_type="linear", warmup_steps=round(0.1 * settings["max_steps"]), logging_nan_inf_filter=False,
        bf16=False, fp16=False, gradient_checkpointing=False, use_cpu=on_cpu, dataloader_pin_memory=not on_cpu,
        packing=False, dataset_kwargs={"skip_prepare_dataset": True}, **settings,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        lora, args, train_dataset=rows, data_collator=DataCollatorForLanguageModeling(_pad(tokenizer)),
        processing_class=tokenizer, callbacks=callbacks,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train(trainer, device):
    """(seconds, peak memory in bytes) of the training."""
    if device.type == "cuda":
        gc.collect()  # what the run before has left
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    trainer.train()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter() - start, torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _encoded(task, split, tokenizer, max_length):
    """Token ids and labels of a split's examples; prompt and completion apart, as generation meets them."""
    examples = getattr(task, split)
    prompts = tokenizer([e["prompt"] for e in examples])["input_ids"]
    completions = tokenizer([e["completion"] for e in examples], add_special_tokens=False)["input_ids"]
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        completion = [*completion, tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + completion
        rows.append({"input_ids": (prompt + completion)[-max_length:], "labels": labels[-max_length:]})
    return rows


def _pad(tokenizer):
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _loss(model, rows, pad):
    """Mean cross-entropy over all labelled tokens, in batches of like length."""
    total, tokens = 0.0, 0
    for batch in _batches(rows, lambda row: len(row["input_ids"]), TOKENS):
        ids, labels = (_padded([row[k] for row in batch], fill) for k, fill in (("input_ids", pad), ("labels", -100)))
        mask = _padded([[1] * len(row["input_ids"]) for row in batch], 0)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1]
        labels = labels[:, 1:].to(logits.device)
        counted = labels != -100
        total += torch.nn.functional.cross_entropy(logits[counted].float(), labels[counted], reduction="sum").item()
        tokens += counted.sum().item()
    return total / tokens


def _padded(rows, fill, left=False):
    """Lists of unlike length as one tensor."""
    length = max(map(len, rows))
    gaps = [[fill] * (length - len(row)) for row in rows]
    return torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)])


def _batches(rows, length, tokens):
    """The rows by length, in batches of at most so many tokens with their padding."""
    batch = []
    for row in sorted(rows, key=length):
        if batch and (len(batch) + 1) * length(row) > tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _generate(model, tokenizer, prompts, new_tokens, max_length, batch_size):
    """Greedy completions of the prompts (list of str), padded on the left, like lengths together."""
    ids = [row[-max_length:] for row in tokenizer(prompts)["input_ids"]]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = {}
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        tokens = _padded([ids[i] for i in part], _pad(tokenizer), left=True)
        mask = _padded([[1] * len(ids[i]) for i in part], 0, left=True)
        made = model.generate(
            input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=new_tokens,
            do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, repetition_penalty=None,
            use_cache=True, pad_token_id=_pad(tokenizer), eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        texts |= zip(part, tokenizer.batch_decode(made[:, tokens.shape[1] :], skip_special_tokens=True), strict=True)
    return [texts[i] for i in range(len(prompts))]


@contextmanager
def restored(model):
    """Puts back what PEFT and the trainers change of a model besides weights, on every way out.

    They replace modules by adapted ones, patch `forward`, freeze parameters, add hooks, change
    modes, and align the configs with the tokenizer.
    """
    configs = [getattr(m, name, None) for m in model.modules() for name in ("config", "generation_config")]
    owners = list({id(o): o for o in (*model.modules(), *configs) if hasattr(o, "__dict__")}.values())
    # One level down as well: children, parameters and hooks are kept in dictionaries.
    content = lambda value: copy.copy(value) if isinstance(value, dict | list) else None
    before = [{name: (value, content(value)) for name, value in vars(owner).items()} for owner in owners]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for owner, attributes in zip(owners, before, strict=True):
            vars(owner).clear()
            vars(owner).update({k: v for k, (v, _) in attributes.items()})
            for value, kept in attributes.values():
                if kept is not None:
                    value.clear()
                    (value.update if isinstance(value, dict) else value.extend)(kept)
        for parameter, trains, grad in flags:
            parameter.requires_grad_(trains)
            parameter.grad = grad


@contextmanager
def seeded(seed=None):
    """All global random generators seeded, and put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            if seed is not None:
                set_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _name(model):
    """The model's Hub id, or the last part of its folder: the same on every machine."""
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return Path(name).name if os.path.isdir(name) else name


def _device(model):
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type


def _dtype(model):
    return str(model.dtype).removeprefix("torch.")


def grid(
    model, tokenizer, tasks, placements, *, seeds, lrs, ranks=None, path=None, share=(0, 1), progress=True, **options
):
    """Finetune every task with every placement, learning rate and seed; one row a run.

    Parameters
    ----------
    model, tokenizer
        As in `finetune`.
    tasks : iterable of Task
    placements : dict
        {name: Placement}.
    seeds : iterable of int
    lrs : float, iterable of float, dict or pandas.DataFrame
        Learning rates for all, or {placement name: one or several}, or what `tuned` returns.
    ranks : dict, optional
        {placement name: rank}, such as from `rank_for`; by default the `r` of `finetune`.
    path : str or Path, optional
        JSON lines file of finished runs, one line each; its folder is made. Runs that stand there are not
        run again; several processes may write to the same file.
    share : (int, int)
        `(i, n)`: run only every n-th cell from the i-th on, for n processes with i = 0 to n - 1.
    progress : bool
        Show a progress bar over the runs.
    **options
        Other arguments of `finetune`, the same for all runs.

    Returns
    -------
    pandas.DataFrame
        The runs of this grid that are finished: `placement` (name), and what `finetune` returns.
    """
    part, parts = share
    if not 0 <= part < parts:
        raise ValueError(f"share={share!r}, expected (i, n) with i from 0 to n - 1")
    if refused := {"callbacks", "out", "r", "lr", "seed"} & set(options):
        raise ValueError(f"{refused.pop()} cannot be an option of a whole grid: see ranks, lrs and seeds, or finetune")
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    lrs = lrs.set_index(["task", "placement"])["lr"].to_dict() if isinstance(lrs, pd.DataFrame) else lrs
    lrs = {name: _rates(own) for name, own in lrs.items()} if isinstance(lrs, dict) else _rates(lrs)
    tasks = list(tasks)
    for task in tasks:
        _check(model, tokenizer, task, options.get("final", "test"))
    digests = [_digest(task, tokenizer) for task in tasks]
    cells = []
    for (task, digest), (name, placement), seed in itertools.product(zip(tasks, digests), placements.items(), seeds):
        rank = {} if ranks is None else {"r": _of(ranks, task, name, "ranks")}
        for lr in _of(lrs, task, name, "lrs") if isinstance(lrs, dict) else lrs:
            run = {**options, **rank, "lr": lr, "seed": seed}
            cells.append((task, name, placement, run, _key(model, digest, placement, run)))
    done = {(row["key"], row["placement"]): row for row in _lines(path)}
    own = [cell for cell in cells[part::parts] if (cell[-1], cell[1]) not in done]
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
    for task, name, placement, run, key in tqdm(own, desc="runs", disable=hidden):
        same = next((row for (k, _), row in done.items() if k == key), None)  # under another name
        row = same or finetune(model, tokenizer, task, placement, **run)
        done[key, name] = {**row, "key": key, "placement": name}
        _append(path, done[key, name])
    done |= {(row["key"], row["placement"]): row for row in _lines(path)}  # of other processes
    return _frame([done[key, name] for _, name, _, _, key in cells if (key, name) in done])


def read_runs(path):
    """The finished runs in a file of `grid`, as it returns them."""
    if not Path(path).exists():
        raise ValueError(f"path={str(path)!r} does not exist: name the file that grid wrote")
    return _frame({(row["key"], row["placement"]): row for row in _lines(path)}.values())


def curves(runs):
    """The training curves of runs: one row per run and logged step.

    Returns
    -------
    pandas.DataFrame
        The columns of `runs` but `curve`, with `step` and `train_loss` (nats per token, a mean since
        the step before).
    """
    rows = runs.explode("curve", ignore_index=True).dropna(subset="curve").reset_index(drop=True)
    points = pd.DataFrame(rows["curve"].tolist(), columns=["step", "train_loss"])
    return pd.concat([rows.drop(columns="curve"), points], axis=1)


def _rates(lrs):
    """One learning rate, or any iterable of them, as a list."""
    return [lrs] if np.isscalar(lrs) else list(lrs)


def _of(table, task, name, argument):
    """What a table says of a task and a placement."""
    found = table.get((task.name, name), table.get(name))
    if found is None:
        raise ValueError(f"{argument} has nothing for placement {name!r} on task {task.name!r}: add it")
    return found


def _key(model, digest, placement, run):
    """A hash of what determines a run's result; `digest` is of its task and tokenizer."""
    defaults = {k: p.default for k, p in inspect.signature(finetune).parameters.items() if k not in NOT_SETTINGS}
    if unknown := set(run) - set(defaults) - set(NOT_SETTINGS):
        raise TypeError(f"{unknown.pop()!r} is not an argument of finetune")
    settings = defaults | {k: v for k, v in run.items() if k in defaults}
    settings["lora_alpha"] = settings["lora_alpha"] or 2 * settings["r"]
    settings |= {"model": _name(model), "weights": _fingerprint(model), "dtype": _dtype(model)}
    settings |= {"task": digest, "modules": sorted(placement.modules)}
    return hashlib.sha256(_json(dict(sorted(settings.items()))).encode()).hexdigest()[:16]


def _fingerprint(model):
    """A hash of the first numbers of every parameter: tells checkpoints of one name apart."""
    first = [p.detach().flatten()[:8].float().to(model.device) for p in model.parameters() if not p.is_meta]
    return hashlib.sha256(torch.cat(first).cpu().numpy().tobytes()).hexdigest()


def _digest(task, tokenizer):
    """A hash of a task's examples and of their tokens, but not of the code of its check."""
    filled = [split for split in ("train", "validation", "test") if getattr(task, split)]
    content = {split: (getattr(task, split), _encoded(task, split, tokenizer, sys.maxsize)) for split in filled}
    about = [task.name, task.new_tokens, task.check is None, content]
    return hashlib.sha256(json.dumps(about, default=repr).encode()).hexdigest()


def _lines(path):
    """The whole lines of a file of runs; what a crash has cut short is left out."""
    if path is None or not Path(path).exists():
        return
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "key" in row:
            yield row


def _append(path, row):
    """Add a line by a single write, so that processes do not mix theirs; end a line that a crash has cut short."""
    if path is None:
        return
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        cut = size and file.read(1) != b"\n"
        file.write(b"\n" * bool(cut) + _json(row).encode() + b"\n")


def _json(row):
    return json.dumps(row, default=lambda value: value.item())  # numbers of numpy


def _frame(rows):
    frame = pd.DataFrame(rows)
    first = [c for c in ("task", "placement") if c in frame]
    return frame[first + [c for c in frame if c not in first]].astype({"accuracy": float} if len(frame) else {})


def tuned(runs):
    """The learning rate with the lowest mean validation loss for each task and placement.

    Parameters
    ----------
    runs : pandas.DataFrame
        From a `grid` with `final="validation"`.

    Returns
    -------
    pandas.DataFrame
        Columns `task`, `placement`, `lr`, `loss` (mean over seeds), `seeds`, `edge` (True: the best is
        the lowest or highest tried, so try further ones). `grid` takes it as `lrs`.

    Raises
    ------
    ValueError
        A row was evaluated on another split, or a placement was run at several ranks.
    """
    _columns(runs, "task", "placement", "lr", "r", "seed", "split", "loss")
    if others := set(runs["split"]) - {"validation"}:
        raise ValueError(f"runs were evaluated on the split {others.pop()!r}: tune on runs with final='validation'")
    best = []
    for (task, placement), group in runs.groupby(["task", "placement"], sort=False):
        if group["r"].nunique() > 1:
            raise ValueError(f"placement {placement!r} was run at ranks {sorted(group['r'].unique())}: tune one rank")
        losses = group["loss"].fillna(np.inf).groupby(group["lr"]).mean()  # not a number: it diverged
        lr = losses.idxmin()
        edge = lr in (losses.index.min(), losses.index.max())
        best.append((task, placement, lr, losses[lr], group["seed"].nunique(), edge))
    return pd.DataFrame(best, columns=["task", "placement", "lr", "loss", "seeds", "edge"])


def versus(runs, reference, value="loss", level=0.95):
    """Each placement minus a reference, paired by task and seed.

    Parameters
    ----------
    runs : pandas.DataFrame
        From `grid`, one learning rate for each placement.
    reference : str
        Name of the placement to compare with.
    value : {"loss", "accuracy", "reward"}
    level : float
        Coverage of the interval: Student's t over seeds.

    Returns
    -------
    pandas.DataFrame
        Columns `task`, `placement`, `difference`, `low`, `high`, `seeds`, `parameters`,
        `reference_parameters`, `verdict` ("better" or "worse" where the interval leaves out zero, else
        "undecided"; lower loss is better, higher accuracy or reward is better).

    Raises
    ------
    ValueError
        An unknown `reference` or `value`, several runs for one seed, fewer than 2 seeds in common, or a run
        whose value is not finite (it diverged).
    """
    _columns(runs, "task", "placement", "seed", "parameters", value)
    if value not in LOWER_IS_BETTER:
        raise ValueError(f"value={value!r} is unknown, choose one of {tuple(LOWER_IS_BETTER)}")
    if reference not in set(runs["placement"]):
        raise ValueError(f"reference={reference!r} was not run, choose one of {sorted(set(runs['placement']))}")
    if runs.duplicated(["task", "placement", "seed"]).any():
        raise ValueError("several runs of one task, placement and seed: keep one learning rate, split and rank of each")
    if not isinstance(level, float) or not 0 < level < 1:
        raise ValueError(f"level={level!r}, expected a number between 0 and 1, such as 0.95")
    if len(lost := runs[~np.isfinite(runs[value].astype(float))]):
        task, name, seed, found = lost.iloc[0][["task", "placement", "seed", value]]
        raise ValueError(
            f"{value} is {found} for placement {name!r} with seed {seed} on {task!r}: where a run diverged, take a "
            f"lower learning rate for all seeds of that placement, or leave the placement out"
        )
    columns = ["difference", "low", "high", "seeds", "parameters", "reference_parameters", "verdict"]
    rows = []
    for task, group in runs.groupby("task", sort=False):
        wide = group.pivot(index="seed", columns="placement", values=value)
        parameters = group.drop_duplicates("placement").set_index("placement")["parameters"]
        for name in (n for n in parameters.index if n != reference):
            gaps = (wide[name] - wide[reference]).dropna() if reference in wide else []
            if len(gaps) < 2:
                raise ValueError(
                    f"{name!r} and {reference!r} have {len(gaps)} seeds in common on {task!r}: run 2 or more"
                )
            half = student.ppf((1 + level) / 2, len(gaps) - 1) * gaps.std() / len(gaps) ** 0.5
            mean, interval = gaps.mean(), (gaps.mean() - half, gaps.mean() + half)
            verdict = _verdict(*interval, LOWER_IS_BETTER[value])
            rows.append((task, name, mean, *interval, len(gaps), parameters[name], parameters[reference], verdict))
    return pd.DataFrame(rows, columns=["task", "placement", *columns])


def _verdict(low, high, lower_is_better):
    if low <= 0 <= high:
        return "undecided"
    return "better" if (high < 0) == lower_is_better else "worse"


def _columns(runs, *names):
    if missing := [n for n in names if n not in getattr(runs, "columns", ())]:
        raise ValueError(f"runs lacks the columns {missing}: expected the frame that grid returns")


class NormsCallback(TrainerCallback):
    """Records feature norms and NFN of the effective maps `W + BA` while a trainer runs.

    Merges the adapters into a float32 copy of the model, so the training does not notice.

    Parameters
    ----------
    texts : list of str
        Fixed probe texts.
    tokenizer : transformers tokenizer
    every : int
        Steps between two records; the start and the end are recorded too.
    """

    def __init__(self, texts, tokenizer, every=10):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}, expected an integer of at least 1")
        self._texts, self._tokenizer, self._every, self._rows = texts, tokenizer, every, []

    def on_train_begin(self, args, state, control, model=None, **_):
        """Record the start."""
        self._record(state.global_step, model)

    def on_step_end(self, args, state, control, model=None, **_):
        """Record every few steps, and the last."""
        if state.global_step % self._every == 0 or state.global_step >= state.max_steps:
            self._record(state.global_step, model)

    def frame(self):
        """The record so far.

        Returns
        -------
        pandas.DataFrame
            Columns `step`, `type`, `input_norm` (||z||), `feature_norm` (||(W + BA) z||), `nfn`; means as
            in `by_type`.
        """
        return pd.concat(self._rows, ignore_index=True)

    def _record(self, step, model):
        with seeded(), torch.no_grad():
            merged = copy.deepcopy(model).float().merge_and_unload()
            vars(merged).pop("forward", None)  # a trainer's patch, which runs the model that it was made for
            with record_norms(merged) as record:
                nfn_scores(merged, self._texts, self._tokenizer, progress=False, distribute=False)
        values = record.frame()
        means = {c: type_means(values.assign(nfn=values[c])) for c in ("input_norm", "feature_norm", "nfn")}
        self._rows.append(pd.DataFrame(means).reset_index().assign(step=step)[["step", "type", *means]])
