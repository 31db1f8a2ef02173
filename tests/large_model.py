"""Score a randomly initialised Llama of 5.5 GB in a process held under 3 GB.

    python tests/large_model.py [--layers 14] [--limit 3.0] [--out data/results/large_model.csv]

A process whose resident memory, mapped file pages included, passes the limit is killed, and the
kernel's high-water mark is checked at the end. (Where one may, put a cgroup around it as well: what
is recorded was run so.) `--compare` scores the model whole as well, at a size where it fits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

TEXTS, TOKENS, GB = 64, 128, 1e9


def config(layers, width=4096):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 512,
        max_position_embeddings=512,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def write_model(folder, config):
    """A model folder with one shard for each layer; never more than one tensor in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    shards, generator = {}, torch.Generator().manual_seed(0)
    for name, parameter in empty.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{part}.safetensors", {})[name] = parameter.shape
    for file, shapes in shards.items():

        def draw(shape):
            return (
                torch.ones(shape)
                if len(shape) == 1
                else torch.randn(shape, generator=generator) * 0.02
            )

        save_file(
            {n: draw(s).bfloat16() for n, s in shapes.items()},
            folder / file,
            metadata={"format": "pt"},
        )
    config.save_pretrained(folder)
    index = {
        "metadata": {},
        "weight_map": {n: file for file, shapes in shards.items() for n in shapes},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def score(folder, out, texts, tokens, offload):
    """Score in this process, with `offload` GB of weights in memory at most (0: all of them)."""
    import torch
    from transformers import AutoModelForCausalLM

    import plop_nb as plop

    ids = torch.randint(32000, (texts, tokens), generator=torch.Generator().manual_seed(1))
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(8)
    ]
    start = time.perf_counter()
    away = {
        "device_map": "auto",
        "max_memory": {"cpu": int(offload * GB)},
        "offload_folder": f"{folder}/offload",
    }
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="bfloat16", **(away if offload else {})
    ).eval()
    frame = plop.nfn_scores(model, batches)
    frame.to_csv(out, index=False)
    print(
        json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak_gb": resident("VmHWM")})
    )


def resident(what, process="self"):
    """GB of resident memory of a process: now (VmRSS) or at most so far (VmHWM)."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(
        (int(line.split()[1]) * 1024 / GB for line in status.splitlines() if line.startswith(what)),
        0.0,
    )


def libraries():
    """GB of resident memory of a process that has loaded the libraries and no model: 0.5 to 0.9,
    by torch's build."""
    done = subprocess.run(
        [sys.executable, __file__, "--libraries"], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def in_child(folder, out, limit, *, texts=TEXTS, tokens=TOKENS, offload=True):
    """`score` in a fresh process, killed when its memory passes `limit` GB (None: no limit);
    what it measured."""
    in_memory = limit / 10 if offload else 0
    command = [
        sys.executable,
        __file__,
        "--score",
        str(folder),
        str(out),
        str(texts),
        str(tokens),
        str(in_memory),
    ]
    environment = {**os.environ, "TQDM_DISABLE": "1", "MALLOC_ARENA_MAX": "2"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        while child.poll() is None:
            if limit and resident("VmRSS", child.pid) > limit:
                child.kill()
                raise MemoryError(f"killed: resident memory passed {limit} GB")
            time.sleep(0.005)
        output, errors = child.communicate()
    if child.returncode:
        raise RuntimeError(errors[-3000:])
    found = json.loads(output.splitlines()[-1])
    if limit and found["peak_gb"] > limit:
        raise MemoryError(
            f"resident memory reached {found['peak_gb']:.3f} GB, the limit is {limit} GB"
        )
    return found


def largest_difference(frames):
    """Largest relative difference between the scores of two runs."""
    import pandas as pd

    here, there = (pd.read_csv(frame) for frame in frames)
    keys = ["sample", "module", "tokens"]
    both = here.merge(there, on=keys, how="outer", validate="one_to_one")
    return (both["nfn_x"] / both["nfn_y"] - 1).abs().max(skipna=False)


def measure(layers, width, limit, compare):
    """One row of the result."""
    with tempfile.TemporaryDirectory() as work:
        size = write_model(Path(work), config(layers, width))
        row = {"layers": layers, "width": width, "model_gb": size / GB, "limit_gb": limit}
        row |= in_child(work, f"{work}/limited.csv", limit)
        if compare:
            whole = in_child(work, f"{work}/whole.csv", None, offload=False)
            row |= {f"{name}_in_memory": value for name, value in whole.items()}
            row["largest_difference"] = largest_difference(
                [f"{work}/limited.csv", f"{work}/whole.csv"]
            )
    return row


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--limit", type=float, default=3.0, help="GB of resident memory")
    parser.add_argument(
        "--compare", action="store_true", help="also run with the model in memory, and compare"
    )
    parser.add_argument("--out", type=Path, help="append the result to this CSV file")
    given = parser.parse_args()
    row = measure(given.layers, given.width, given.limit, given.compare)
    row |= {"texts": TEXTS, "tokens": TOKENS, "device": f"CPU, {os.cpu_count()} cores", "seed": 0}
    row |= {name: version(name) for name in ("torch", "transformers", "accelerate")}
    row["command"] = f"python tests/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    print(json.dumps(row, indent=1))
    if given.out:
        import pandas as pd

        old = [pd.read_csv(given.out)] if given.out.exists() else []
        pd.concat([*old, pd.DataFrame([row])]).to_csv(given.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    if sys.argv[1:] == ["--libraries"]:
        from transformers import LlamaForCausalLM  # noqa: F401

        import plop_nb  # noqa: F401

        print(resident("VmRSS"))
    elif sys.argv[1:2] == ["--score"]:
        folder, out, texts, tokens, in_memory = sys.argv[2:]
        score(folder, out, int(texts), int(tokens), float(in_memory))
    else:
        main()
