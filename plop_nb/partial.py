"""A file of finished samples, so that an interrupted run loses nothing: one JSON line each."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd


class Partial:
    """The samples that a run has finished, on disk.

    The first line tells which run it is (settings, and the baseline of every module, which changes
    with the weights); each further line is a sample. A line cut short by a crash is left out.
    """

    def __init__(self, path, maps, settings, gains):
        self._path, self._maps = Path(path), maps
        self._number = {name: i for i, name in enumerate(maps["module"])}
        head = {"settings": {**settings, "modules": list(self._number)}, "gains": gains}
        self._samples = {}
        if not self._path.exists():
            self._write([head], "w")
            return
        lines = list(_parsed(self._path))
        if not lines or "settings" not in lines[0]:
            raise ValueError(f"partial={str(path)!r} is a file of another kind: name a new file")
        if differs := _difference(lines[0], head):
            raise ValueError(
                f"partial={str(path)!r} holds another run, its {differs}: delete the file, or name another one"
            )
        self._samples = {line["sample"]: line for line in lines[1:]}
        self._write([head, *self._samples.values()], "w")  # whole lines only

    def has(self, sample, row):
        """Whether this sample is finished; `row` are its tensors.

        Raises
        ------
        ValueError
            Another text stands there.
        """
        found = self._samples.get(sample)
        if found and found["key"] != key(row):
            raise ValueError(
                f"partial={str(self._path)!r} has another text as sample {sample}: delete the file, or name another one"
            )
        return found is not None

    def add(self, frame, keys, unclear):
        """Append the samples of `frame`; `keys` is {sample: key of its tensors}, `unclear` modules to distrust."""
        lines = []
        for sample, rows in frame.groupby("sample"):
            columns = {"map": rows["module"].map(self._number), "tokens": rows["tokens"], "nfn": rows["nfn"]}
            line = {"sample": int(sample), "key": keys[sample], "unclear": sorted(unclear)}
            lines.append(line | {name: column.tolist() for name, column in columns.items()})
        self._write(lines, "a")

    def frame(self):
        """The samples that were on disk when the run began, as `nfn_scores` returns them."""
        parts = []
        for line in self._samples.values():
            rows = self._maps.iloc[line["map"]].assign(tokens=line["tokens"], nfn=line["nfn"])
            parts.append(rows.assign(sample=line["sample"]))
        if not parts:
            return pd.DataFrame()
        unclear = set().union(*(line["unclear"] for line in self._samples.values()))
        frame = pd.concat(parts)
        return frame.loc[~frame["module"].isin(unclear), ["sample", *self._maps, "tokens", "nfn"]]

    def _write(self, lines, mode):
        with self._path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def key(row):
    """A hash of one sample's tensors, padding left out."""
    mask = row.get("attention_mask")
    if mask is not None and mask.ndim == 1:
        row = {k: v[mask != 0] if v.shape[:1] == mask.shape else v for k, v in row.items()}
    digest = hashlib.sha256()
    for name in sorted(row):
        digest.update(name.encode() + str(tuple(row[name].shape)).encode() + row[name].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _parsed(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _difference(there, here):
    """What tells two first lines apart, in words; None where they are of the same run."""
    for name, value in here["settings"].items():
        other = there["settings"].get(name)
        if other != value:
            return f"{name} differ" if name == "modules" else f"{name} is {other!r}, here {value!r}"
    known = [(a, b) for a, b in zip(there["gains"], here["gains"], strict=True) if None not in (a, b)]
    return None if np.allclose(*np.array(known).reshape(-1, 2).T, rtol=1e-5) else "weights differ"
