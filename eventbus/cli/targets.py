"""What `eventbus run` is told to run: subscribers, by the name of a module and perhaps of something in it.

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
from typing import Any, cast

from eventbus.cli.endings import Code, Failure, described, did_you_mean, place_of
from eventbus.subscriber import Subscriber


def find(targets: Iterable[str]) -> list[Subscriber]:
    """The subscribers that the targets name, each once, in order. `Failure` with `Code.USAGE` if one names none.

    A target is ``module:attribute``, where the attribute is a `Subscriber`, a list or tuple of them, or something to call without
    arguments that returns either; or ``module`` alone: every subscriber at its top level.
    """
    found: list[Subscriber] = []
    for target in targets:
        for subscriber in _find(target):
            if not any(known is subscriber for known in found):
                found.append(subscriber)

    return found


def look_here() -> None:
    """Modules are looked for in the current directory first, as `python -m` does."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def _find(target: str) -> Sequence[Subscriber]:
    module_name, colon, attribute = target.partition(":")
    if not module_name or (colon and not attribute):
        raise _wrong(f"{target!r} is no target: give module:attribute, like reading_club.mailer:mailer, or a module")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise _wrong(f"{target!r} names a file: give the module, {dotted}{colon}{attribute}")
    module = _import(module_name)
    if colon:
        return _subscribers_of(target, _attribute(target, module, attribute), module)
    if not (found := _top_level(module)):
        raise _wrong(f"{module_name} has no Subscriber at its top level; name what returns one: {module_name}:attribute")

    return list(found.values())


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if name == missing or name.startswith(f"{missing}."):
            near = did_you_mean(missing, _modules_beside(missing))
            raise _wrong(f"there is no module {missing!r} here ({os.getcwd()}) or on sys.path{near}", exc) from exc
        raise _wrong(f"{name} imports {missing!r}, which is not installed or is misspelled ({place_of(exc)})", exc) from exc
    except (Exception, SystemExit) as exc:
        raise _wrong(f"importing {name} failed: {described(exc)}", exc) from exc


def _attribute(target: str, module: ModuleType, path: str) -> Any:
    thing: Any = module
    for name in path.split("."):
        try:
            thing = getattr(thing, name)
        except AttributeError as exc:
            names = list(_top_level(module)) or [known for known in dir(thing) if not known.startswith("_")]
            near = did_you_mean(name, names) or _its_subscribers(module)
            raise _wrong(f"{module.__name__} has no {name!r}{near}", exc) from exc

    return thing


def _subscribers_of(target: str, thing: Any, module: ModuleType) -> Sequence[Subscriber]:
    """The subscribers in what an attribute holds."""
    if callable(thing) and not isinstance(thing, Subscriber):
        try:
            thing = thing()
        except Exception as exc:
            raise _wrong(f"calling {target}() failed: {described(exc)}", exc) from exc
        if iscoroutine(thing):
            thing.close()
            raise _wrong(f"{target} is an async function: what returns subscribers is called before the event loop runs")
    if isinstance(thing, Subscriber):
        return [thing]
    if isinstance(thing, list | tuple):
        things = cast("Sequence[Any]", thing)
        if things and all(isinstance(item, Subscriber) for item in things):
            return cast("Sequence[Subscriber]", things)

    raise _wrong(f"{target} is {_kind(thing)}, not a Subscriber or a list of them{_its_subscribers(module)}")


def _top_level(module: ModuleType) -> dict[str, Subscriber]:
    return {name: thing for name, thing in vars(module).items() if isinstance(thing, Subscriber)}


def _its_subscribers(module: ModuleType) -> str:
    names = list(_top_level(module))

    return f"; its subscribers are {', '.join(names)}" if names else "; it has no Subscriber at its top level"


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
