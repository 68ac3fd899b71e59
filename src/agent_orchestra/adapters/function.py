"""Agents that are Python functions, named as ``module:function`` or given in code."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, cast

from agent_orchestra.adapters.code import (
    TARGET_SCHEMA,
    NotThereError,
    check_allowed,
    check_own,
    found,
    in_thread,
    is_target,
)
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.request import Reply
from agent_orchestra.core.values import Json, JsonObject
from agent_orchestra.errors import AgentFailed, Fault, InvalidAgent, RunFailed
from agent_orchestra.runtime.executor import Call, Emit, Instance
from agent_orchestra.runtime.orchestra import Function

__all__ = ["FunctionBackend", "FunctionKind"]

_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "properties": {
        "function": {
            "description": "One function, or one for each instance of the agent, as 'module:function'.",
            "anyOf": [
                TARGET_SCHEMA,
                {"type": "array", "items": TARGET_SCHEMA, "minItems": 1, "maxItems": 64},
            ],
        }
    },
    "required": ["function"],
    "additionalProperties": False,
}


class FunctionKind:
    """Conforms to :class:`Kind`.

    ``allowed``: the modules whose functions a caller may name who is not the operator.
    """

    def __init__(self, *, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)

    @property
    def schema(self) -> JsonObject:
        return _SCHEMA

    async def connect(self, agent: Agent, *, trusted: bool) -> Sequence[Instance]:
        targets = _targets(agent)
        if not trusted:
            for target in targets:
                check_allowed(target, self._allowed)
        instances: list[Instance] = []
        for target in targets:
            try:
                function = await asyncio.to_thread(found, target)
            except NotThereError as error:
                raise InvalidAgent(agent.id, (Fault(path="settings.function", message=str(error)),)) from error
            if not trusted:
                check_own(target, function)
            instances.append(wrapped(agent.id, function, instance_id=target))
        return instances


def _targets(agent: Agent) -> Sequence[str]:
    unknown = sorted(set(agent.settings) - {"function"})
    if unknown:
        raise InvalidAgent(agent.id, (Fault(path=f"settings.{unknown[0]}", message="is not known for functions"),))
    given = agent.settings.get("function")
    targets = [given] if isinstance(given, str) else given
    if not isinstance(targets, Sequence) or not targets or len(targets) > 64:
        message = "must be 'module:function', or a list of 1 to 64 of them"
        raise InvalidAgent(agent.id, (Fault(path="settings.function", message=message),))
    for target in targets:
        if not is_target(target):
            message = f"'{target}' is not of the form 'module:function'"
            raise InvalidAgent(agent.id, (Fault(path="settings.function", message=message),))
    return cast("Sequence[str]", targets)


def wrapped(agent_id: str, function: Function, *, instance_id: str = "in-process") -> Instance:
    """The instance that a function makes. Raises :class:`InvalidAgent` when it takes neither one argument nor two."""
    return Instance(id=instance_id, backend=FunctionBackend(agent_id, function))


class FunctionBackend:
    """Conforms to :class:`Backend`.

    A function takes the content, or the content and the :class:`Call`. It gives a text, any value that JSON can hold,
    or a :class:`Reply`; a generator tells its output piece by piece. It may be async. One that is not runs in a thread
    of its own, which Python cannot end: over its time it is left behind, and its instance has one place less until it
    ends.
    """

    def __init__(self, agent_id: str, function: Function) -> None:
        self._agent_id = agent_id
        self._function = function
        self._arguments = _arguments(agent_id, function)
        inner = function
        while isinstance(inner, partial):
            inner = cast("partial[object]", inner).func
        called = inner if inspect.isroutine(inner) else cast("Function", type(inner).__call__)
        self._is_async = inspect.iscoroutinefunction(called)
        self._is_async_generator = inspect.isasyncgenfunction(called)
        self._is_generator = inspect.isgeneratorfunction(called)

    async def run(self, call: Call, emit: Emit) -> Reply:
        try:
            given = await self._called(call, emit)
        except RunFailed:
            raise
        except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            # Even one that wants to end the program ends its own call, and no more.
            # The message of a foreign error may hold what nobody else should see, so only its class is told.
            raise AgentFailed(
                f"agent '{self._agent_id}' raised {type(error).__name__}", cause=type(error).__name__
            ) from error
        return _reply(self._agent_id, given)

    async def _called(self, call: Call, emit: Emit) -> object:
        function = partial(self._function, *(call.content, call)[: self._arguments])
        if self._is_async:
            return await cast("Awaitable[object]", function())
        if self._is_async_generator:
            pieces: list[str] = []
            async for piece in cast("AsyncIterator[object]", function()):
                pieces.append(_piece(self._agent_id, piece))
                emit(pieces[-1])
            return "".join(pieces)
        if self._is_generator:
            return await _told(self._agent_id, cast("Callable[[], Any]", function), emit)
        given = await in_thread(function)
        return await given if inspect.isawaitable(given) else given


def _arguments(agent_id: str, function: Function) -> int:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return 1
    for count in (2, 1):
        try:
            signature.bind(*("content", None)[:count])
        except TypeError:
            continue
        positional = [p for p in signature.parameters.values() if p.kind is not p.VAR_POSITIONAL]
        return (
            1 if count == 2 and len(positional) > 1 and positional[1].default is not inspect.Parameter.empty else count
        )
    fault = Fault(path="run", message="must take the content, or the content and the call")
    raise InvalidAgent(agent_id, (fault,))


async def _told(agent_id: str, function: Callable[[], Iterator[object]], emit: Emit) -> str:
    """Exhausts a generator in a thread. It is ended between two pieces once nobody wants more of them."""
    loop = asyncio.get_running_loop()
    enough = threading.Event()
    refused: list[Exception] = []

    def tell(piece: str) -> None:
        if not enough.is_set():
            try:
                emit(piece)
            except Exception as error:  # noqa: BLE001  raised where the call is awaited
                refused.append(error)
                enough.set()

    def exhaust() -> str:
        pieces: list[str] = []
        for piece in function():
            if enough.is_set():
                break
            pieces.append(_piece(agent_id, piece))
            loop.call_soon_threadsafe(tell, pieces[-1])
        return "".join(pieces)

    task = asyncio.ensure_future(in_thread(exhaust))
    try:
        output = await asyncio.shield(task)
    except asyncio.CancelledError:
        enough.set()
        await asyncio.wait((task,))
        raise
    if refused:
        raise refused[0]
    return output


def _piece(agent_id: str, piece: object) -> str:
    if not isinstance(piece, str):
        raise AgentFailed(f"agent '{agent_id}' told {type(piece).__name__}, not text", cause="output_not_text")
    return piece


def _reply(agent_id: str, given: object) -> Reply:
    if isinstance(given, str):
        return Reply(output=given)
    if given is None:
        return Reply(output="")
    value = given.value if isinstance(given, Reply) else given
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise AgentFailed(
            f"agent '{agent_id}' gave back {type(value).__name__}, which is neither text nor JSON",
            cause="output_not_json",
        ) from None
    if isinstance(given, Reply):
        return dataclasses.replace(given, output=_piece(agent_id, given.output))
    return Reply(output=text, value=cast("Json", json.loads(text)))
