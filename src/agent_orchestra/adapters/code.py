"""Python code that a definition names as ``module:function``: found, allowed, and called."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import re
import threading
from collections.abc import Callable, Collection
from typing import Any, Final, TypeVar

from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import AgentFailed, Forbidden

__all__ = ["TARGET_SCHEMA", "NotThereError", "check_allowed", "check_own", "found", "in_thread", "is_target"]

T = TypeVar("T")

_NAMES: Final = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
_TARGET: Final = f"^{_NAMES}:{_NAMES}$"
_FORM: Final = re.compile(_TARGET[1:-1])
_MOST_CHARS: Final = 250
TARGET_SCHEMA: Final[JsonObject] = {"type": "string", "pattern": _TARGET, "maxLength": _MOST_CHARS}


class NotThereError(Exception):
    """A target that cannot be had; its text says why, in words for whoever wrote it."""


def is_target(given: object) -> bool:
    """Whether a value is of the form ``module:function``."""
    return isinstance(given, str) and len(given) <= _MOST_CHARS and _FORM.fullmatch(given) is not None


def check_allowed(target: str, modules: Collection[str]) -> None:
    """Raises :class:`Forbidden` for a target that only the operator may name.

    To name a function is to import its module and call it, so nothing is allowed that the operator did not allow.
    """
    module, _, attribute = target.partition(":")
    if module not in modules or "." in attribute:
        raise Forbidden(
            f"'{target}' may not be named by callers, only the functions of modules in functions.allowed_modules; "
            "the operator can add the module there, or define the agent in the configuration"
        )


def check_own(target: str, function: object) -> None:
    """Raises :class:`Forbidden` for what a module has imported itself, down to whatever runs commands."""
    if getattr(function, "__module__", None) != target.partition(":")[0]:
        raise Forbidden(f"'{target}' is not a function of that module's own")


def found(target: str) -> Callable[..., Any]:
    """What a target names, imported. Raises :class:`NotThereError`."""
    module, _, attributes = target.partition(":")
    try:
        found: object = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except AttributeError:
        raise NotThereError(f"module '{module}' has no '{attributes}'") from None
    except Exception as error:
        # A module may do anything when it is imported: whatever fails there is a fault of this definition.
        raise NotThereError(f"'{module}' cannot be imported ({type(error).__name__})") from error
    if not callable(found):
        raise NotThereError(f"'{target}' cannot be called")
    return found


async def in_thread(function: Callable[[], T]) -> T:
    """Runs a function in a daemon thread of its own: one that never ends holds up neither a pool nor the exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            result = context.run(function)
        except BaseException as error:  # noqa: BLE001  handed to whoever awaits the call
            _settle(loop, future, None, error)
        else:
            _settle(loop, future, result, None)

    threading.Thread(target=work, name="orchestra-function", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        # Not before the thread has ended is the call over, however little anybody waits for it.
        await asyncio.wait((future,))
        future.exception()
        raise


def _settle(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], result: object, error: BaseException | None
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:
            future.set_exception(AgentFailed(f"the function raised {type(error).__name__}", cause=type(error).__name__))

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        # The loop has been closed: nobody waits any more.
        return
