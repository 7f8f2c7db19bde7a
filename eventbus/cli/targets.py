"""What a command is told to run: subscribers or relays, by the name of a module and perhaps of something in it.

Whatever is wrong with a name is said in one line, with the names that are near.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from inspect import iscoroutine
from types import ModuleType
from typing import Any, TypeVar, cast

from eventbus.cli.endings import Code, Failure, described, did_you_mean, place_of

T = TypeVar("T")


def find(targets: Iterable[str], kind: type[T]) -> list[T]:
    """What of a kind, `Subscriber` for one, the targets name, each once, in order. `Failure` with `Code.USAGE` if one names none.

    A target is ``module:attribute``, where the attribute is of that kind, a list or tuple of them, or something to call without
    arguments that returns either; or ``module`` alone: every one at its top level.
    """
    found: list[T] = []
    for target in targets:
        for thing in _find(target, kind):
            if not any(known is thing for known in found):
                found.append(thing)

    return found


def look_here() -> None:
    """Modules are looked for in the current directory first, as `python -m` does."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def _find(target: str, kind: type[T]) -> Sequence[T]:
    if "://" in target:
        raise _wrong("a URL is no target: give module:attribute, and the URL with --url")
    module_name, colon, attribute = target.partition(":")
    if not module_name or (colon and not attribute):
        raise _wrong(f"{target!r} is no target: give module:attribute, like reading_club.mailer:mailer, or a module")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise _wrong(f"{target!r} names a file: give the module, {dotted}{colon}{attribute}")
    module = _import(module_name)
    if colon:
        return _those_of(target, _attribute(target, module, attribute, kind), module, kind)
    if not (found := _top_level(module, kind)):
        raise _wrong(f"{module_name} has no {kind.__name__} at its top level; name what returns one: {module_name}:attribute")

    return list(found.values())


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if name == missing or name.startswith(f"{missing}."):
            parent, _, attribute = missing.rpartition(".")
            if parent and hasattr(sys.modules.get(parent), attribute):
                near = f"; did you mean {parent}:{attribute}?"
            else:
                near = did_you_mean(missing, _modules_beside(missing))
            raise _wrong(f"there is no module {missing!r} here ({os.getcwd()}) or on sys.path{near}", exc) from exc
        raise _wrong(f"{name} imports {missing!r}, which is not installed or is misspelled ({place_of(exc)})", exc) from exc
    except (Exception, SystemExit) as exc:
        raise _wrong(f"importing {name} failed: {described(exc)}", exc) from exc


def _attribute(target: str, module: ModuleType, path: str, kind: type[Any]) -> Any:
    thing: Any = module
    for name in path.split("."):
        try:
            thing = getattr(thing, name)
        except AttributeError as exc:
            names = list(_top_level(module, kind)) or [known for known in dir(thing) if not known.startswith("_")]
            near = did_you_mean(name, names) or _its_own(module, kind)
            raise _wrong(f"{module.__name__} has no {name!r}{near}", exc) from exc

    return thing


def _those_of(target: str, thing: Any, module: ModuleType, kind: type[T]) -> Sequence[T]:
    """Those of the kind in what an attribute holds."""
    word = kind.__name__
    if callable(thing) and not isinstance(thing, kind):
        try:
            thing = thing()
        except Exception as exc:
            raise _wrong(f"calling {target}() failed: {described(exc)}", exc) from exc
        if iscoroutine(thing):
            thing.close()
            raise _wrong(f"{target} is an async function: what returns {word.lower()}s is called before the event loop runs")
    if isinstance(thing, kind):
        thing = [thing]
    if isinstance(thing, list | tuple):
        things = cast("Sequence[Any]", thing)
        if things and all(isinstance(item, kind) for item in things):
            return cast("Sequence[T]", things)

    raise _wrong(f"{target} is {_kind(thing)}, not a {word} or a list of them{_its_own(module, kind)}")


def _top_level(module: ModuleType, kind: type[T]) -> dict[str, T]:
    return {name: thing for name, thing in vars(module).items() if isinstance(thing, kind)}


def _its_own(module: ModuleType, kind: type[Any]) -> str:
    names, word = list(_top_level(module, kind)), kind.__name__

    return f"; its {word.lower()}s are {', '.join(names)}" if names else f"; it has no {word} at its top level"


def _modules_beside(name: str) -> list[str]:
    """The names that could have been meant: modules in the same package, or in the current directory."""
    parent, _, _ = name.rpartition(".")
    places = list(getattr(sys.modules[parent], "__path__", ())) if parent in sys.modules else [os.getcwd()]
    prefix = f"{parent}." if parent else ""
    names = [prefix + module.name for module in pkgutil.iter_modules(places)]
    if not parent:  # a folder without an __init__.py is a package too
        names += [entry.name for entry in os.scandir() if entry.is_dir() and entry.name.isidentifier()]

    return names


def _kind(thing: Any) -> str:
    name = type(thing).__name__
    if isinstance(thing, list | tuple) and not thing:
        return f"an empty {name}"

    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _wrong(text: str, cause: BaseException | None = None) -> Failure:
    failure = Failure(text, Code.USAGE)
    failure.__cause__ = cause

    return failure
