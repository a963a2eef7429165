"""Custom objectives: imported by name, `module:function`, from the study's folder; and what they read of a space."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpo.config.schema import StudyConfig
from hpo.core.errors import ConfigError, Problem, nearest
from hpo.space.search_space import SearchSpace


def imported(name: str, folder: Path) -> Callable[..., Any]:
    """Import a custom objective.

    Args:
        name: `module:function`.
        folder: The study file's folder, searched first, then the working folder.

    Raises:
        ConfigError: There is no such module or function, or importing it raises.
    """

    def problem(message: str) -> ConfigError:
        return ConfigError("the study", [Problem(("objective",), message)])

    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise problem(f"{name!r} must be module:function, e.g. train:objective")
    places = list(dict.fromkeys(str(place.resolve()) for place in (folder, Path.cwd())))
    sys.path[:] = [*places, *(place for place in sys.path if place not in places)]
    spec = importlib.machinery.PathFinder.find_spec(module, places)
    if spec is not None and getattr(sys.modules.get(module), "__file__", None) != spec.origin:
        sys.modules.pop(module, None)  # a module of the same name from another folder
    try:
        loaded = importlib.import_module(module)
    except SyntaxError as error:
        raise problem(f"{name!r} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:  # importing runs the module's code
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise problem(f"{name!r}: {error}; looked in {folder} and in the working folder") from None
        raise problem(f"{name!r} cannot be imported: {_raised(error, places)}") from None
    if not hasattr(loaded, attribute):
        raise problem(f"module {module!r} has no {attribute!r}")
    found = getattr(loaded, attribute)
    if not callable(found):
        raise problem(f"{name!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def refuse_unread_parameters(config: StudyConfig, space: SearchSpace, objective: Any) -> None:
    """Check a space against the `parameters` that a custom objective declares, if it declares any.

    Raises:
        ConfigError: The space has a parameter that the objective does not read.
    """
    declared: Sequence[str] | None = getattr(objective, "parameters", None)
    if declared is None:
        return
    unread = [name for name in space.names if name not in declared]
    if unread:
        raise ConfigError(
            config.name,
            [Problem(("space", n), f"is not read by {config.objective}{nearest(n, declared)}") for n in unread],
        )


def _raised(error: BaseException, places: Sequence[str]) -> str:
    """Return an exception with the file and line that raised it: the last one in the user's own folders."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if any(map(Path(f.filename).is_relative_to, places)) and "site-packages" not in f.filename]
    last = (own or frames)[-1]
    return f"{last.filename}, line {last.lineno}: {type(error).__name__}: {error}"
