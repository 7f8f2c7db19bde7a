"""From ``module:attribute`` to subscribers; every mistake is one line that says what to do."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from eventbus.errors import ConfigurationError, excerpt
from eventbus.subscriber import Subscriber


def load(target: str) -> list[Subscriber]:
    """The subscribers that a target names. `ConfigurationError` when there is none."""
    name, _, attribute = target.partition(":")
    if not name or name.startswith("."):
        raise ConfigurationError(f"{target!r}: write MODULE:ATTRIBUTE, like shop.mailer:mailer")
    module = _import(name, target)
    if not attribute:
        found = [thing for thing in vars(module).values() if isinstance(thing, Subscriber)]
        if not found:
            raise ConfigurationError(f"{target}: the module has no Subscriber at its top level; name a function that makes one, {target}:NAME")
        return _distinct(found)
    thing: Any = module
    for part in attribute.split("."):
        if not hasattr(thing, part):
            near = get_close_matches(part, dir(thing), n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {_subscribers(module) or 'no Subscriber'}"
            raise ConfigurationError(f"{target}: {name} has no attribute {part!r}{hint}")
        thing = getattr(thing, part)
    if callable(thing) and not isinstance(thing, Subscriber):
        thing = thing()
    if isinstance(thing, Subscriber):
        return [thing]
    if isinstance(thing, Iterable) and not isinstance(thing, str | bytes):
        found = list(thing)
        if found and all(isinstance(one, Subscriber) for one in found):
            return _distinct(found)

    raise ConfigurationError(f"{target} is a {type(thing).__name__}, not a Subscriber, a list of them, or a function that returns them")


def place_of(error: BaseException) -> str:
    """Where in the program an error was raised: ``shop/mailer.py:12``."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and f"eventbus{'/'}cli" not in frame.filename]

    return f"{own[-1].filename}:{own[-1].lineno}" if own else "?"


def _import(name: str, target: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigurationError(
                f"{target}: there is no module {exc.name!r} here or on sys.path; run this from the folder that holds it, or install it"
            ) from None
        raise ConfigurationError(f"{target}: importing {name} failed, for it needs {exc.name!r}, which is not installed") from exc
    except ConfigurationError:
        raise
    except Exception as exc:
        raise ConfigurationError(
            f"{target}: importing {name} failed: {type(exc).__name__}: {excerpt(str(exc))} ({place_of(exc)})"
        ) from exc


def _distinct(found: list[Subscriber]) -> list[Subscriber]:
    return list({id(one): one for one in found}.values())


def _subscribers(module: ModuleType) -> str:
    return ", ".join(name for name, thing in vars(module).items() if isinstance(thing, Subscriber))
