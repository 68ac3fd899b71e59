"""Suites of labelled requests, as files hold them.

Files are in UTF-8; those of many objects hold a JSON list, or an object a line.

Registry: definitions of agents, with ``id`` or ``name`` and what else a definition has of ``description``,
``capabilities``, ``keywords`` and ``examples``. A label names an agent by its ``id``, or by its ``name`` where it has
none; then a name may stand for several.

Requests (``test``) and examples (``train``): ``text``, and under the field that is the ``label`` the agent whose it is,
null where it is nobody's. A request may have ``id``; ``candidates``, the only agents that may have it, by label, or by
``n`` in the registry, else by their place in it, from 0; and, where it goes on with a conversation, ``previous_agent``
(the label of the agent that has it) and ``system`` (that agent's last words).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, StrictInt, StrictStr, ValidationError

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Example, Turn
from agent_orchestra.core.values import faults_in
from agent_orchestra.errors import InvalidInput

__all__ = ["Request", "Suite", "read"]

#: How many names of agents that are not known an error lists.
_NAMED: Final = 5

Row = TypeVar("Row", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``truth``: a label, none where the request is nobody's. ``among``: ids of agents, none for all of them."""

    id: str | int
    text: str
    truth: str | None
    among: frozenset[str] | None = None
    turn: Turn | None = None
    previous: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """``labels``: what requests call each agent, by its id. ``agents`` have the examples of their own that count."""

    agents: Sequence[Agent]
    labels: Mapping[str, str]
    examples: Sequence[Example]
    requests: Sequence[Request]


class _Definition(BaseModel):
    """An agent of a registry. Nothing is asked of it that routing does not need."""

    id: str | None = None
    n: StrictInt | None = None
    name: str | None = None
    description: str | None = None
    capabilities: tuple[str, ...] | None = None
    keywords: tuple[str, ...] | None = None
    examples: tuple[str, ...] | None = None


class _Labelled(BaseModel):
    text: str
    label: str | None


class _Request(_Labelled):
    id: StrictStr | StrictInt | None = None
    candidates: tuple[StrictInt | StrictStr, ...] | None = None
    system: str | None = None
    previous_agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registry:
    """The ids of agents, ``by_label`` and ``by_number``."""

    agents: Sequence[Agent]
    by_label: Mapping[str, Sequence[str]]
    by_number: Mapping[int, str]


def read(
    registry: Path,
    test: Path,
    train: Path | None = None,
    *,
    shots: int | None = None,
    label: str = "agent",
    seed: int = 0,
) -> Suite:
    """Reads the files.

    ``train``: examples that stand in place of the registry's own, which are used where it is not given. ``shots``: at
    most so many of them an agent, drawn by ``seed``; 0: none; not given: all. A draw of fewer is part of one of more.

    Raises :class:`InvalidInput` for the first thing that is wrong, with the file and the line.
    """
    if shots is not None and shots < 0:
        raise InvalidInput(f"the number of shots is {shots}; it must be 0 or more")
    known = _read_registry(registry)
    requests = _read_requests(test, known, label)
    agents, examples = known.agents, list[Example]()
    if train is not None or shots is not None:
        examples = _own_examples(agents) if train is None else _read_examples(train, known, label)
        agents = [replace(agent, examples=()) for agent in agents]
    if shots is not None:
        examples = _drawn(examples, shots, seed)
    labels = {agent_id: label for label, ids in known.by_label.items() for agent_id in ids}
    return Suite(agents=agents, labels=labels, examples=examples, requests=requests)


def _own_examples(agents: Sequence[Agent]) -> list[Example]:
    return [Example(text=text, agent_id=agent.id) for agent in agents for text in agent.examples]


def _read_registry(path: Path) -> _Registry:
    agents: dict[str, Agent] = {}
    by_label: defaultdict[str, list[str]] = defaultdict(list)
    by_number: dict[int, str] = {}
    for number, (place, given) in enumerate(_objects(path)):
        found = _valid(_Definition, given, place)
        label = found.id or found.name
        if not label:
            raise InvalidInput(f"{place}: has neither 'id' nor 'name'")
        agent_id = found.id or f"#{number}"
        if agent_id in agents:
            raise InvalidInput(f"{place}: there is an agent '{agent_id}' already")
        agents[agent_id] = Agent(
            id=agent_id,
            kind="evaluated",
            name=found.name or label,
            description=found.description or "",
            capabilities=found.capabilities or (),
            keywords=found.keywords or (),
            examples=found.examples or (),
        )
        by_label[label].append(agent_id)
        by_number[number if found.n is None else found.n] = agent_id
    return _Registry(agents=list(agents.values()), by_label=by_label, by_number=by_number)


def _read_examples(path: Path, registry: _Registry, label: str) -> list[Example]:
    found = [(place, _labelled(_Labelled, given, label, place)) for place, given in _objects(path)]
    _check_known(registry, ((place, row.label) for place, row in found))
    return [
        Example(text=row.text, agent_id=None if row.label is None else registry.by_label[row.label][0])
        for _, row in found
    ]


def _read_requests(path: Path, registry: _Registry, label: str) -> list[Request]:
    found = [(place, _labelled(_Request, given, label, place)) for place, given in _objects(path)]
    _check_known(registry, ((place, name) for place, row in found for name in (row.label, row.previous_agent)))
    return [_request(row, registry, number, place) for number, (place, row) in enumerate(found, start=1)]


def _request(row: _Request, registry: _Registry, number: int, place: str) -> Request:
    """``number``: the id of a request that has none."""
    previous, last = row.previous_agent, row.system or ""
    turn = None
    if previous is not None or last:
        turn = Turn(previous=None if previous is None else registry.by_label[previous][0], last=last, last_vector=None)
    return Request(
        id=number if row.id is None else row.id,
        text=row.text,
        truth=row.label,
        among=None if row.candidates is None else _among(row.candidates, registry, place),
        turn=turn,
        previous=previous,
    )


def _among(candidates: Sequence[int | str], registry: _Registry, place: str) -> frozenset[str]:
    found: set[str] = set()
    for candidate in candidates:
        if isinstance(candidate, int) and candidate in registry.by_number:
            found.add(registry.by_number[candidate])
        elif isinstance(candidate, str) and candidate in registry.by_label:
            found.update(registry.by_label[candidate])
        else:
            raise InvalidInput(
                f"{place}: the registry, of {len(registry.agents)} agents, has no candidate {candidate!r}"
            )
    return frozenset(found)


def _check_known(registry: _Registry, named: Iterable[tuple[str, str | None]]) -> None:
    unknown: dict[str, str] = {}
    for place, label in named:
        if label is not None and label not in registry.by_label:
            unknown.setdefault(label, place)
    if unknown:
        names = ", ".join(f"'{label}'" for label in list(unknown)[:_NAMED])
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise InvalidInput(f"{next(iter(unknown.values()))}: the registry has no agent {names}{more}")


def _drawn(pool: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """The first ``shots`` of each agent's examples in an order that follows from the seed and the agent."""
    of_agent: defaultdict[str | None, list[Example]] = defaultdict(list)
    for example in pool:
        of_agent[example.agent_id].append(example)
    drawn: list[Example] = []
    for agent_id, examples in of_agent.items():
        # No secret follows from it: the same draw each time is what is wanted.
        random.Random(f"{seed}:{agent_id}").shuffle(examples)  # noqa: S311
        drawn += examples[:shots]
    return drawn


def _labelled(kind: type[Row], given: Mapping[str, Any], label: str, place: str) -> Row:
    if label not in given:
        raise InvalidInput(f"{place}: has no field '{label}'")
    return _valid(kind, {**given, "label": given[label]}, place)


def _valid(kind: type[Row], given: Mapping[str, Any], place: str) -> Row:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise InvalidInput(f"{place}: {field}: {fault['msg']}") from None


def _objects(path: Path) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """The objects of a file, each with its place: the file and the line, or the number in the list, from 1.

    There is one at least.
    """
    text = _text(path)
    if text.lstrip().startswith("["):
        listed: list[Any] = _parsed(text, str(path))
        found = [(f"{path}: entry {number}", given) for number, given in enumerate(listed, start=1)]
    else:
        numbered = ((f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), start=1))
        found = [(place, _parsed(line, place)) for place, line in numbered if line.strip()]
    if not found:
        raise InvalidInput(f"{path}: is empty")
    return [(place, _object(given, place)) for place, given in found]


def _object(given: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise InvalidInput(f"{place}: is not a JSON object")
    fields = cast("dict[str, Any]", given)
    for field, value in fields.items():
        for fault in faults_in(field, value):
            raise InvalidInput(f"{place}: {fault}")
    return fields


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: is not in UTF-8") from None


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = place if error.lineno == 1 else f"{place}:{error.lineno}"
        raise InvalidInput(f"{where}: is not JSON: {error.msg} at character {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{place}: is not JSON that can be read: {error}") from None
