"""Classes and functions that the configuration names: ``package.module:name``, or a stock runner's short name.

One word, several places: the class ``incoming`` is ``qrunner.runners.incoming:IncomingRunner``.

Failures: every one is a ``ConfigError`` that says which name, and what stands in its way.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qrunner.errors import ConfigError
from qrunner.runner import Runner

_STOCK = "qrunner.runners"


def extend_path(folders: Iterable[Path]) -> None:
    """Puts the site's folders first on the import path, in their order; one that is there already stays."""
    fresh = [str(folder) for folder in folders if str(folder) not in sys.path]
    sys.path[:0] = fresh


def stock_names() -> tuple[str, ...]:
    """The short names of all stock runners."""
    package = importlib.import_module(_STOCK)
    return tuple(module.name for module in pkgutil.iter_modules(package.__path__))


def load_class(name: str) -> type[Runner]:
    """The runner class of a configuration's ``class``. :raises ConfigError: with what is wrong, one line."""
    found = _load(name if ":" in name else _stock_target(name), name)
    if not (isinstance(found, type) and issubclass(found, Runner)):
        raise ConfigError(f"{name}: is {_kind(found)}, not a class derived from qrunner.Runner")
    return found


def load_function(name: str) -> Callable[..., Any]:
    """A site's function, ``package.module:function``. :raises ConfigError: with what is wrong, one line."""
    found = _load(name, name)
    if not callable(found):
        raise ConfigError(f"{name}: is {_kind(found)}, not a function")
    return found  # type: ignore[no-any-return]


def _stock_target(name: str) -> str:
    names = stock_names()
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(
            f"{name}: there is no stock runner of this name; {hint} (a site's own: package.module:Class)"
        )
    return f"{_STOCK}.{name}:{name.title().replace('_', '')}Runner"


def _load(target: str, name: str) -> Any:
    module_name, colon, attributes = target.partition(":")
    if not (module_name and colon and attributes):
        raise ConfigError(f"{name}: is not of the form package.module:name")
    value: Any = _import(module_name, name)
    for attribute in attributes.split("."):
        try:
            value = getattr(value, attribute)
        except AttributeError:
            near = get_close_matches(attribute, vars(value) if hasattr(value, "__dict__") else (), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{name}: {module_name} has no {attribute!r}{hint}") from None
    return value


def _import(module_name: str, name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"{name}: there is no module {error.name!r} on the python_path") from None
        raise ConfigError(f"{name}: {_place(error)}{error}") from error
    except ConfigError as error:  # a stock runner says which extra it wants
        raise ConfigError(f"{name}: {error}") from error
    # Site code may raise, or exit, as it is imported; whatever it does is this name's problem.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{name}: {_place(error)}{type(error).__name__}: {error}") from error


def _place(error: BaseException) -> str:
    """``file:line: `` of where site code raised: the last frame that is not the import machinery's."""
    if isinstance(error, SyntaxError):
        return ""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<frozen") and file not in (__file__, importlib.__file__):
            place = f"{file}:{trace.tb_lineno}: "
        trace = trace.tb_next
    return place


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if not isinstance(value, type) else f"the class {value.__name__}"
