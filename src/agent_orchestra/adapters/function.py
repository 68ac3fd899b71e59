"""Agents that are Python functions, named as ``module:function`` or given in code."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

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
from agent_orchestra.errors import AgentFailed, AgentUnavailable, Fault, InvalidAgent, RunFailed
from agent_orchestra.runtime.executor import Call, Emit, Instance

if TYPE_CHECKING:
    # The facade knows everything, and who marks a function as an agent should not have to wait for that.
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
        },
        "health": {
            "description": "What tells whether an instance is well: called without an argument now and then, it raises "
            "or gives False where it is not. One for all, or one for each function.",
            "anyOf": [
                TARGET_SCHEMA,
                {"type": "array", "items": TARGET_SCHEMA, "minItems": 1, "maxItems": 64},
            ],
        },
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
        targets, checks = _targets(agent)
        if not trusted:
            for target in (*targets, *checks):
                check_allowed(target, self._allowed)
        instances: list[Instance] = []
        for target in targets:
            function = await _found(agent, "function", target, trusted=trusted)
            instances.append(wrapped(agent.id, function, instance_id=target))
        for number, target in enumerate(checks):
            function = await _found(agent, "health", target, trusted=trusted)
            if not _takes_nothing(function):
                raise _refused(agent, "health", f"'{target}' must be callable without an argument")
            for instance in instances if len(checks) == 1 else instances[number : number + 1]:
                instance.check = partial(_checked, function)
        return instances


def _targets(agent: Agent) -> tuple[Sequence[str], Sequence[str]]:
    """The functions of the instances, and those that check them: none, one for all, or one for each."""
    unknown = sorted(set(agent.settings) - {"function", "health"})
    if unknown:
        raise _refused(agent, unknown[0], "is not known for functions")
    functions = _listed(agent, "function")
    checks = _listed(agent, "health") if "health" in agent.settings else ()
    if len(checks) not in (0, 1, len(functions)):
        message = f"has {len(checks)} entries for {len(functions)} functions; give one for all, or one for each"
        raise _refused(agent, "health", message)
    return functions, checks


def _listed(agent: Agent, name: str) -> Sequence[str]:
    given = agent.settings.get(name)
    targets = [given] if isinstance(given, str) else given
    if not isinstance(targets, Sequence) or not targets or len(targets) > 64:
        raise _refused(agent, name, "must be 'module:function', or a list of 1 to 64 of them")
    for target in targets:
        if not is_target(target):
            raise _refused(agent, name, f"'{target}' is not of the form 'module:function'")
    return cast("Sequence[str]", targets)


async def _found(agent: Agent, name: str, target: str, *, trusted: bool) -> Function:
    try:
        function = await asyncio.to_thread(found, target)
    except NotThereError as error:
        raise _refused(agent, name, str(error)) from error
    if not trusted:
        check_own(target, function)
    return function


def _refused(agent: Agent, name: str, message: str) -> InvalidAgent:
    return InvalidAgent(agent.id, (Fault(path=f"settings.{name}", message=message),))


def _takes_nothing(function: Function) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:
        # Some that are written in C do not say what they take.
        return True
    return True


async def _checked(function: Function) -> None:
    """Returns when the function says that all is well; in a thread of its own where it is not async."""
    try:
        given: object = function() if _is_async(function) else await in_thread(function)
        if inspect.isawaitable(given):
            given = await cast("Awaitable[object]", given)
    except RunFailed:
        raise
    except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        raise AgentFailed(f"its check raised {type(error).__name__}", cause=type(error).__name__) from error
    if given is False:
        raise AgentFailed("its check gave False", cause="check_false")


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
        called = _called(function)
        self._is_async = _is_async(function)
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
            # A connection that broke has changed nothing where nothing is ever changed.
            kind = AgentUnavailable if call.agent.read_only and isinstance(error, OSError) else AgentFailed
            cause = type(error).__name__
            raise kind(f"agent '{self._agent_id}' raised {cause}", cause=cause) from error
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


def _called(function: Function) -> Function:
    """What runs when it is called: beneath partials, and beneath an object that can be called."""
    inner = function
    while isinstance(inner, partial):
        inner = cast("partial[object]", inner).func
    return inner if inspect.isroutine(inner) else cast("Function", type(inner).__call__)


def _is_async(function: Function) -> bool:
    return inspect.iscoroutinefunction(_called(function))


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
