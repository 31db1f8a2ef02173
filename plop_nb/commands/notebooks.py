"""The course for those who installed the package: `plop-nb notebooks FOLDER`."""

import argparse
import shutil
from pathlib import Path

import plop_nb
from plop_nb.checks import PACKAGES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, help="a new folder, or one that holds no notebooks")


def run(given: argparse.Namespace) -> int:
    """Copy the notebooks, their guide and pictures. Returns 0."""
    source, folder = course(), given.folder
    names = sorted(path.name for path in source.glob("*.ipynb"))
    if there := [name for name in names if (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds {there[0]} already, and your changes would be lost: choose another "
            "folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*names, "GUIDE.md"]:
        shutil.copyfile(source / name, folder / name)
    shutil.copytree(source / "images", folder / "images", dirs_exist_ok=True)
    print(f"{len(names)} notebooks are in {folder}. To open the first one:")
    print(f"    pip install jupyterlab ipywidgets {PACKAGES['finetune']}")
    print(f"    jupyter lab {folder / names[0]}")
    print(f"Some need more texts and tasks: pip install {PACKAGES['tasks']}")
    return 0


def course() -> Path:
    """Where the notebooks are: inside the installed package, or in the checkout.

    Raises
    ------
    FileNotFoundError
        They are in neither place.
    """
    package = Path(plop_nb.__file__).parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise FileNotFoundError(
        f"the notebooks are not in {package}: this package was built without them; take them from "
        "the repository"
    )
