"""A router of the operator's own: a Python function, named as ``module:function``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, Final, cast

from agent_orchestra.adapters.code import NotThereError, found, in_thread, is_target
from agent_orchestra.core.routing import Choice
from agent_orchestra.core.values import cleaned
from agent_orchestra.errors import ConfigurationError
from agent_orchestra.runtime.router import OwnRouterFailed, RouteRequest

__all__ = ["FunctionRouter", "own_router"]

#: Calls that did not end in their time and still run. With more of them the function is not called.
_MOST_LEFT: Final = 16
_REASON_CHARS: Final = 500
_KEYS: Final = frozenset({"agent", "agents", "confidence", "reason"})


def own_router(target: str, *, timeout: float = 1.0) -> FunctionRouter:
    """The function that a setting names, imported. ``timeout``: seconds a decision.

    Raises :class:`ConfigurationError` for one that is not there, or that cannot be called with one argument.
    """
    if not is_target(target):
        raise ConfigurationError(f"routing.custom: '{target[:80]}' is not of the form 'module:function'")
    try:
        function = found(target)
    except NotThereError as error:
        raise ConfigurationError(f"routing.custom: {error}") from error
    if not _takes_one(function):
        raise ConfigurationError(f"routing.custom: '{target}' must take one argument, the RouteRequest")
    return FunctionRouter(function, timeout=timeout)


class FunctionRouter:
    """Conforms to :class:`OwnRouter`.

    The function takes a :class:`RouteRequest` and may be async; one that is not runs in a thread of its own. It gives

    - the id of an agent, or several ids, best first; of several, those that can take the request count;
    - a mapping with ``agent`` or ``agents``, and, as it likes, ``confidence`` (in [0, 1]) and ``reason``;
    - a :class:`Choice`;
    - None, where it has no opinion.

    A call that does not end in its time is left behind. Codes of failures: ``own_router_raised`` (the cause is the
    exception), ``own_router_timeout``, ``own_router_busy`` while too many are left behind, ``own_router_invalid`` for
    what is no choice, ``own_router_unknown_agent`` where none of the agents can take the request.
    """

    def __init__(self, function: Callable[[RouteRequest], object], *, timeout: float) -> None:
        self._function = function
        self._timeout = timeout
        self._is_async = _is_async(function)
        self._left: set[asyncio.Task[object]] = set()

    async def choose(self, request: RouteRequest) -> Choice | None:
        if len(self._left) >= _MOST_LEFT:
            raise OwnRouterFailed("own_router_busy")
        task = asyncio.create_task(self._called(request))
        try:
            await asyncio.wait((task,), timeout=self._timeout)
        finally:
            if not task.done():
                self._leave(task)
        if not task.done():
            raise OwnRouterFailed("own_router_timeout")
        if task.cancelled():
            raise OwnRouterFailed("own_router_raised")
        return _choice(task.result(), request.agents)

    async def _called(self, request: RouteRequest) -> object:
        try:
            if self._is_async:
                given = self._function(request)
            else:
                given = await in_thread(partial(self._function, request))
            return await given if inspect.isawaitable(given) else given
        except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            # Even one that wants to end the program ends its own call, and no more.
            raise OwnRouterFailed("own_router_raised") from error

    def _leave(self, task: asyncio.Task[object]) -> None:
        """Cancels a call that nobody waits for any more. Python cannot end a thread, so that one ends when it ends."""
        task.cancel()
        self._left.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:
        # Some that are written in C do not tell what they take.
        return True
    return True


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _choice(given: object, agents: Mapping[str, object]) -> Choice | None:
    """What a function has given, as a choice among these agents. Raises :class:`OwnRouterFailed`."""
    if given is None:
        return None
    ids, confidence, reason = _parts(given)
    if not isinstance(reason, str):
        raise OwnRouterFailed("own_router_invalid")
    known = tuple(dict.fromkeys(id_ for id_ in ids if id_ in agents))
    if not known:
        raise OwnRouterFailed("own_router_unknown_agent")
    return Choice(agents=known, confidence=_share(confidence), reason=cleaned(reason)[:_REASON_CHARS])


def _parts(given: object) -> tuple[Sequence[str], object, object]:
    """Ids, confidence and reason."""
    if isinstance(given, Choice):
        return _ids(given.agents), given.confidence, given.reason
    if not isinstance(given, Mapping):
        return _ids(given), 1.0, ""
    entries = cast("Mapping[object, object]", given)
    if not _KEYS.issuperset(entries) or ("agent" in entries) == ("agents" in entries):
        raise OwnRouterFailed("own_router_invalid")
    named = entries.get("agent", entries.get("agents"))
    return _ids(named), entries.get("confidence", 1.0), entries.get("reason", "")


def _ids(given: object) -> Sequence[str]:
    """One id or several, as a list that is not empty."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, Sequence) and given and all(isinstance(id_, str) for id_ in cast("Sequence[object]", given)):
        return cast("Sequence[str]", given)
    raise OwnRouterFailed("own_router_invalid")


def _share(given: object) -> float:
    # Real: what numpy computes is not always a float.
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) <= 1:
        raise OwnRouterFailed("own_router_invalid")
    return float(given)
