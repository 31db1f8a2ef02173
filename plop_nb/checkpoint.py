"""A file of finished samples, so that an interrupted run loses nothing: one JSON line each."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


class Finished:
    """The samples that a run has finished, on disk.

    The first line tells which run it is (settings, and the baseline of every module, which changes
    with the weights); each further line is a sample. A line cut short by a crash is left out. What
    an observer adds up over all samples stands in a second file beside it, `PATH.totals`, with the
    id of the run and the number of lines that it covers.

    Parameters
    ----------
    path : str or Path
        Made where it does not exist.
    maps : pandas.DataFrame
        The scored maps: `module`, `type`, `layer`.
    settings : dict
        Whatever tells one run from another.
    gains : list of float or None
        The baseline of each map, None where it is not known yet.
    columns : sequence of str
        The means to keep of every sample and map.
    has_totals : bool
        Whether the run adds something up.

    Raises
    ------
    ValueError
        The file holds another run, or is of another kind.
    """

    def __init__(
        self,
        path: str | Path,
        maps: pd.DataFrame,
        settings: dict,
        gains: list,
        *,
        columns: Sequence[str] = ("nfn",),
        has_totals: bool = False,
    ) -> None:
        self._path, self._maps, self._columns = Path(path), maps, list(columns)
        self._numbers = {name: i for i, name in enumerate(maps["module"])}
        head = {"settings": {**settings, "modules": list(self._numbers)}, "gains": gains}
        head["id"] = self._id = uuid.uuid4().hex
        self._samples: dict[int, dict] = {}
        self._lines = 0
        self.totals: dict[str, torch.Tensor] = {}
        if not self._path.exists():
            self._write([head], "w")
            return
        lines = list(_parsed(self._path))
        if not lines or "settings" not in lines[0]:
            raise ValueError(f"partial={str(path)!r} is a file of another kind: name a new file")
        if differs := _difference(lines[0], head):
            raise ValueError(
                f"partial={str(path)!r} holds another run, its {differs}: delete the file, or name "
                "another one"
            )
        head["id"] = self._id = lines[0].get("id", self._id)
        samples = lines[1:]
        if has_totals:
            samples = self._covered(samples)
        self._samples = {line["sample"]: line for line in samples}
        self._write([head, *self._samples.values()], "w")  # whole lines only
        self._lines = len(self._samples)

    def has(self, sample: int, row: dict[str, torch.Tensor]) -> bool:
        """Whether this sample is finished; `row` are its tensors.

        Raises
        ------
        ValueError
            Another text stands there.
        """
        found = self._samples.get(sample)
        if found is None:
            return False
        if found["key"] != key(row):
            raise ValueError(
                f"partial={str(self._path)!r} has another text as sample {sample}: delete the "
                "file, or name another one"
            )
        return True

    def add(
        self,
        frame: pd.DataFrame,
        keys: dict[int, str],
        unclear: set[str],
        totals: dict[str, torch.Tensor],
    ) -> None:
        """Append the samples of `frame`.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows of finished samples only.
        keys : dict
            {sample: key of its tensors}.
        unclear : set of str
            Modules to distrust.
        totals : dict of tensors
            What was added up in this run, since it began.
        """
        lines = []
        for sample, rows in frame.groupby("sample"):
            line = {"sample": int(sample), "key": keys[sample], "unclear": sorted(unclear)}
            line["map"] = rows["module"].map(self._numbers).tolist()
            for column in ("tokens", *self._columns):
                line[column] = rows[column].tolist()
            lines.append(line)
        self._write(lines, "a")
        self._lines += len(lines)
        if totals:
            self._write_totals(added(self.totals, totals))

    def frame(self) -> pd.DataFrame:
        """The samples that were on disk when the run began, with the columns of a record."""
        parts = []
        unclear = set()
        for line in self._samples.values():
            measured = {name: line[name] for name in ("tokens", *self._columns)}
            parts.append(self._maps.iloc[line["map"]].assign(**measured, sample=line["sample"]))
            unclear.update(line["unclear"])
        if not parts:
            return pd.DataFrame()
        frame = pd.concat(parts)
        order = ["sample", *self._maps, "tokens", *self._columns]
        return frame.loc[~frame["module"].isin(unclear), order]

    def _write(self, lines, mode):
        with self._path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _totals_path(self):
        return self._path.with_name(f"{self._path.name}.totals")

    def _write_totals(self, totals):
        """After the lines that they cover: lines beyond are run again."""
        path = self._totals_path()
        unfinished = path.with_name(f"{path.name}.unfinished")
        tensors = {name: total.cpu().contiguous() for name, total in totals.items()}
        save_file(tensors, unfinished, metadata={"id": self._id, "lines": str(self._lines)})
        os.replace(unfinished, path)

    def _covered(self, samples):
        """The samples whose totals are on disk, which are read; the others are run again."""
        path = self._totals_path()
        if not path.exists():
            return []
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                lines = int(about["lines"])
                if about["id"] != self._id or lines > len(samples):  # of a file that is gone
                    return []
                self.totals = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{str(path)!r} is damaged ({error}): delete it, and the samples are run again"
            ) from error
        return samples[:lines]


def added(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums of tensors of the same name, on the CPU."""
    sums = {name: tensor.cpu() for name, tensor in one.items()}
    for name, tensor in other.items():
        sums[name] = sums[name] + tensor.cpu() if name in sums else tensor.cpu()
    return sums


def key(row: dict[str, torch.Tensor]) -> str:
    """A hash of one sample's tensors, padding left out."""
    mask = row.get("attention_mask")
    digest = hashlib.sha256()
    for name in sorted(row):
        value = row[name]
        if mask is not None and mask.ndim == 1 and value.shape[:1] == mask.shape:
            value = value[mask != 0]
        shape = str(tuple(value.shape)).encode()
        digest.update(name.encode() + shape + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _parsed(path) -> Iterator[dict]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _difference(there, here):
    """What tells two first lines apart, in words; None where they are of the same run."""
    for name in {**here["settings"], **there["settings"]}:
        other, value = (head["settings"].get(name) for head in (there, here))
        if other != value:
            return f"{name} differ" if name == "modules" else f"{name} is {other!r}, here {value!r}"
    for one, other in zip(there["gains"], here["gains"], strict=True):
        if one is not None and other is not None and not np.isclose(one, other, rtol=1e-5):
            return "weights differ"
    return None
