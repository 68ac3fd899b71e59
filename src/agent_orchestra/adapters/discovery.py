"""Agents that are functions marked with ``@agent``, found in modules by name and in the packages that are installed."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Final, TypedDict, TypeVar, Unpack, cast

from agent_orchestra.adapters.code import NotThereError
from agent_orchestra.adapters.function import wrapped
from agent_orchestra.core.agent import Agent, Balancing, Limits, Role
from agent_orchestra.core.agent import check as faults_of
from agent_orchestra.core.resilience import Recovery
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import ConfigurationError, Fault, InvalidAgent, OrchestraError
from agent_orchestra.runtime.registry import Found
from agent_orchestra.runtime.telemetry import Telemetry

__all__ = ["AgentFields", "agent", "found_in_modules", "found_in_packages"]

F = TypeVar("F", bound=Callable[..., object])

_GROUP: Final = "agent_orchestra.agents"
_MARK: Final = "__orchestra_agent__"
_LINES: Final = ("capabilities", "examples", "keywords")


class AgentFields(TypedDict, total=False):
    """What may be said of an agent besides its id: the fields of :class:`Agent`, whose kind is ``function``."""

    name: str
    version: str
    provider: str | None
    role: Role
    capabilities: Sequence[str]
    domain: str | None
    description: str
    examples: Sequence[str]
    keywords: Sequence[str]
    priority: int
    enabled: bool
    read_only: bool
    limits: Limits
    balancing: Balancing
    recovery: Recovery
    settings: JsonObject


def agent(*, id: str, **fields: Unpack[AgentFields]) -> Callable[[F], F]:  # noqa: A002  the name of the field
    """Marks a function as an agent, and leaves it as it is.

    Its module is named in ``registry.modules``, or by an entry point of the group ``agent_orchestra.agents``. Raises
    :class:`InvalidAgent` with all that is wrong with the definition, and for what an agent cannot be: a class, an
    object that is no function, a function that takes neither one argument nor two, or that is an agent already.
    """
    lines = {name: _lines(id, name, given) for name, given in fields.items() if name in _LINES}
    definition = Agent(id=id, kind="function", **cast("dict[str, Any]", {**fields, **lines}))
    faults = list(faults_of(definition))
    if definition.role not in set(Role):
        faults.append(Fault(path="role", message=f"must be one of {', '.join(Role)}"))
    if faults:
        raise InvalidAgent(id, tuple(faults))

    def mark(function: F) -> F:
        # What has no name of its own has no module of its own either, and would never be found there.
        if inspect.isclass(function) or not hasattr(function, "__qualname__"):
            raise _unfit(id, "must be a function")
        if (before := _marked(function)) is not None:
            raise _unfit(id, f"is the agent '{before.id}' already; write a function for each agent")
        wrapped(id, function)
        try:
            setattr(function, _MARK, definition)
        except (AttributeError, TypeError):
            raise _unfit(id, "must be a function that is written in Python") from None
        return function

    return mark


def _lines(agent_id: str, name: str, given: object) -> tuple[str, ...]:
    lines = tuple(cast("Sequence[object]", given)) if isinstance(given, list | tuple) else ()
    if not isinstance(given, list | tuple) or not all(isinstance(line, str) for line in lines):
        raise InvalidAgent(agent_id, (Fault(path=name, message="must be a list of texts"),))
    return cast("tuple[str, ...]", lines)


def _unfit(agent_id: str, message: str) -> InvalidAgent:
    return InvalidAgent(agent_id, (Fault(path="run", message=message),))


async def found_in_modules(modules: Sequence[str]) -> Sequence[Found]:
    """The agents of the modules that the settings name, in their order, and in each module in its own.

    A module has the marked functions that it defines, and a package also those that it imports from its own modules. A
    function that comes from elsewhere is not taken up: to call another's agent is not to put it into service.

    Raises :class:`ConfigurationError` with the place for a module that cannot be imported, that has no marked function,
    or whose agent another one has already.
    """
    by_id: dict[str, _Marked] = {}
    for number, name in enumerate(modules):
        place = f"registry.modules.{number}"
        try:
            marked = await asyncio.to_thread(_in_module, name)
        except NotThereError as error:
            raise ConfigurationError(f"{place}: {error}") from None
        for one in marked:
            before = by_id.setdefault(one.found.agent.id, one)
            if before.function is not one.function:
                raise ConfigurationError(
                    f"{place}: agent '{one.found.agent.id}' is there twice, "
                    f"as {before.found.instance.id} and as {one.found.instance.id}"
                )
    return [one.found for one in by_id.values()]


async def found_in_packages(telemetry: Telemetry) -> Sequence[Found]:
    """The agents of entry points, by the names of these; each names a module or one marked function.

    Never raises: what cannot be had is told to the log, so that a package that breaks takes no service down.
    """
    try:
        points = await asyncio.to_thread(_entry_points)
    except Exception as error:  # noqa: BLE001  the list of one package that cannot be read hides those of all others
        reason = f"the entry points of what is installed cannot be read ({type(error).__name__})"
        telemetry.warn("agent_discovery_failed", entry_point=None, reason=reason)
        return []
    found: list[Found] = []
    names: set[str] = set()
    for point in points:
        try:
            if point.name in names:
                raise NotThereError(f"'{point.value}' has the name of another entry point")  # noqa: TRY301
            names.add(point.name)
            marked = await asyncio.to_thread(_named_by, point)
        except NotThereError as error:
            telemetry.warn("agent_discovery_failed", entry_point=point.name, reason=str(error))
        else:
            found += [dataclasses.replace(one.found, entry_point=point.name) for one in marked]
    return found


def _entry_points() -> Sequence[EntryPoint]:
    return sorted(entry_points(group=_GROUP), key=lambda point: (point.name, point.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marked:
    function: Callable[..., object]
    found: Found


def _named_by(point: EntryPoint) -> Sequence[_Marked]:
    """Raises :class:`NotThereError`."""
    try:
        name, attributes = point.module, point.attr
    except Exception:  # noqa: BLE001  how it says that the value is of no known form differs from one Python to the next
        raise NotThereError(f"'{point.value}' is neither a module nor 'module:function'") from None
    if not attributes:
        return _in_module(name)
    value: object = _imported(name)
    try:
        for attribute in attributes.split("."):
            value = getattr(value, attribute)
    except Exception:  # noqa: BLE001  a module may make up its attributes as they are asked for
        raise NotThereError(f"module '{name}' has no '{attributes}'") from None
    definition = _marked(value)
    if definition is None:
        raise NotThereError(f"'{name}:{attributes}' is not marked with @agent")
    return [_connected(definition, cast("Callable[..., object]", value), name, attributes)]


def _in_module(name: str) -> Sequence[_Marked]:
    """Raises :class:`NotThereError`."""
    found = list(_own(_imported(name)))
    if not found:
        raise NotThereError(f"module '{name}' has no function of its own that is marked with @agent")
    return found


def _own(module: ModuleType) -> Iterator[_Marked]:
    name = module.__name__
    seen: list[object] = []
    for attribute, value in list(vars(module).items()):
        definition = _marked(value)
        if definition is None or any(value is before for before in seen):
            continue
        home = str(getattr(value, "__module__", None))
        if home == name or home.startswith(f"{name}."):
            seen.append(value)
            yield _connected(definition, value, name, attribute)


def _marked(value: object) -> Agent | None:
    # Looked up without running anything: a module may hold proxies that answer to every name, or to none.
    mark = inspect.getattr_static(value, _MARK, None)
    return mark if isinstance(mark, Agent) else None


def _connected(definition: Agent, function: Callable[..., object], module: str, name: str) -> _Marked:
    target = f"{module}:{name}"
    try:
        instance = wrapped(definition.id, function, instance_id=target)
    except InvalidAgent as error:
        # A decorator above the mark can have made another function of it.
        raise NotThereError(f"'{target}': {error.detail}") from None
    return _Marked(function=function, found=Found(agent=definition, instance=instance))


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001  in a thread nobody else ends; what a module raises is its own fault
        raise NotThereError(f"module '{name}' cannot be imported ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    """What an error says without its message, which may hold anything; ours say nothing that nobody should see."""
    if isinstance(error, OrchestraError):
        return error.detail
    if isinstance(error, ModuleNotFoundError) and isinstance(error.name, str):
        return f"ModuleNotFoundError: there is no module '{error.name}'"
    return type(error).__name__
