"""Knows the agents: registers, validates, lists and finds them, and keeps them connected to what runs them."""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

from agent_orchestra.core import agent as agents
from agent_orchestra.core.agent import Agent, Filter, Status
from agent_orchestra.core.routing import resolve
from agent_orchestra.core.values import Json, JsonObject, nearest
from agent_orchestra.errors import AgentExists, AgentNotFound, Fault, Forbidden, InvalidAgent, OrchestraError, code_of
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.executor import Instance, Pool
from agent_orchestra.runtime.telemetry import Telemetry

__all__ = ["AgentStore", "Found", "Kind", "Registered", "Registry", "Roster", "Source", "StoredAgent"]


class Source(StrEnum):
    """Where a definition comes from. All tenants share those of the configuration; those in code are not stored."""

    API = "api"
    CONFIG = "config"
    CODE = "code"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAgent:
    """A definition as it is kept. ``origin``: a digest of the configured definition that it was made from."""

    tenant: str
    agent: Agent
    source: Source
    origin: str | None = None
    updated_ms: int


class AgentStore(Protocol):
    """Keeps definitions. Each change is kept together with the event that tells of it, or not at all."""

    async def load(self) -> tuple[int, Sequence[StoredAgent]]:
        """All definitions of all tenants, and the revision that they make up."""
        ...

    async def save(self, stored: StoredAgent, *, new: bool) -> None:
        """Keeps a definition. With ``new``, raises :class:`AgentExists` when there is one of that id."""
        ...

    async def remove(self, tenant: str, agent_id: str) -> None:
        """Removes a definition. Raises :class:`AgentNotFound`."""
        ...

    async def revision(self) -> int:
        """A number that is another one after every change, by whichever process."""
        ...


class Kind(Protocol):
    """One kind of agent: what its settings look like, and how its instances are made."""

    @property
    def schema(self) -> JsonObject:
        """The JSON Schema of ``Agent.settings`` for this kind."""
        ...

    async def connect(self, agent: Agent, *, trusted: bool) -> Sequence[Instance]:
        """The instances of an agent, at least one.

        ``trusted`` says that the operator wrote the definition, not a caller. Raises :class:`InvalidAgent` with what is
        wrong in ``settings``, or :class:`Forbidden` for what only an operator may name.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """An agent as it is known now. ``fault``: why it has no instances, when it has none."""

    tenant: str
    agent: Agent
    source: Source
    pool: Pool
    updated_ms: int
    fault: str | None = None
    origin: str | None = None

    @property
    def status(self) -> Status:
        return agents.status(
            enabled=self.agent.enabled,
            instances=len(self.pool.instances),
            healthy=sum(instance.healthy for instance in self.pool.instances),
            in_flight=self.pool.in_flight,
            failures_in_row=self.pool.failures_in_row,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An agent in code that a start has found; ``entry_point`` is the one that named it, none for the settings."""

    agent: Agent
    instance: Instance
    entry_point: str | None = None


class Roster:
    """The agents that one tenant sees, at one moment. Never changes; a request works on the one that it began with."""

    def __init__(self, entries: Mapping[str, Registered], *, number: int = 0) -> None:
        self.entries = entries
        #: Grows from one roster of a process to the next.
        self.number = number

    @cached_property
    def available(self) -> Mapping[str, Agent]:
        """Those that can take work."""
        return {e.agent.id: e.agent for e in self.entries.values() if e.agent.enabled and e.pool.instances}

    @cached_property
    def examples(self) -> str:
        """A digest of all examples that definitions hold, and of whose they are; empty where there are none."""
        own = [[agent.id, *agent.examples] for agent in self.available.values() if agent.examples]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest() if own else ""

    def get(self, agent_id: str) -> Registered:
        """Raises :class:`AgentNotFound`, with the nearest id when one is near."""
        if entry := self.entries.get(agent_id):
            return entry
        near = difflib.get_close_matches(agent_id, self.entries, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise AgentNotFound(f"there is no agent '{agent_id}'{hint}")


class Registry:
    """All agents of all tenants, as stored, as configured and as given in code."""

    def __init__(
        self, *, store: AgentStore, kinds: Mapping[str, Kind], shared_tenant: str, telemetry: Telemetry
    ) -> None:
        self._store = store
        self._kinds = kinds
        self._shared_tenant = shared_tenant
        self._telemetry = telemetry
        self._entries: dict[tuple[str, str], Registered] = {}
        self._rosters: dict[str, Roster] = {}
        self._before: dict[str, Roster] = {}
        self._numbers = itertools.count(1)
        #: Grows with every change of what agents there are.
        self.changes = 0
        self._revision = -1
        self._changing = asyncio.Lock()
        #: Agents of the configuration, of which those that come first may mention those that come later.
        self._expected: frozenset[str] = frozenset()

    @property
    def kinds(self) -> Mapping[str, Kind]:
        return self._kinds

    async def start(self, configured: Sequence[Agent] | None) -> None:
        """Loads what is stored and brings it in line with the configuration, when there is one.

        A configured definition replaces the stored one only where the file has changed since it was last read, so that
        what was changed at run time outlives a restart; an agent of the file that was unregistered comes back.
        Raises :class:`InvalidAgent` for a wrong definition.
        """
        async with self._changing:
            await self._reload()
            if configured is not None:
                try:
                    await self._configure(configured)
                finally:
                    self._expected = frozenset()

    async def take_up(self, found: Sequence[Found]) -> None:
        """Registers the agents in code that a start has found, in this order, for all tenants to share.

        The configuration goes before them: its agents stay. One that the settings name by its module takes the place of
        one that was registered over the API; that stays stored, and is back when the code is gone. One that is merely
        installed takes nobody's place. What is left out is told to the log. Raises :class:`InvalidAgent`.
        """
        for one in found:
            agent_id, function = one.agent.id, one.instance.id
            before = self.roster(self._shared_tenant).entries.get(agent_id)
            if before is not None and [instance.id for instance in before.pool.instances] == [function]:
                # The same function, named by the settings and by its package.
                continue
            if before is not None and (one.entry_point is not None or before.source is not Source.API):
                reason = f"there is already an agent '{agent_id}', of source '{before.source}'"
                self._telemetry.warn(
                    "agent_discovery_failed", entry_point=one.entry_point, function=function, reason=reason
                )
                continue
            if before is not None:
                self._telemetry.warn("agent_replaced_by_code", agent=agent_id, function=function)
            await self.register_in_code(self._shared_tenant, one.agent, [one.instance])

    async def register(self, tenant: str, agent: Agent, *, trusted: bool = False) -> Registered:
        """Adds an agent; ``trusted`` says that the operator gives it.

        Raises :class:`InvalidAgent`, :class:`AgentExists` or :class:`Forbidden`.
        """
        async with self._changing:
            if agent.id in self.roster(tenant).entries:
                raise AgentExists(f"there is already an agent '{agent.id}'; update it, or choose another id")
            return await self._put(tenant, agent, new=True, trusted=trusted)

    async def register_in_code(self, tenant: str, agent: Agent, instances: Sequence[Instance]) -> Registered:
        """Adds an agent whose instances only this process has; a second time replaces it. It is not stored."""
        if faults := agents.check(agent):
            raise InvalidAgent(agent.id, faults)
        async with self._changing:
            pool = self._checked_pool(tenant, agent, Pool(instances, tenant=tenant))
            pool.weigh(agent.balancing.weights)
            entry = Registered(tenant=tenant, agent=agent, source=Source.CODE, pool=pool, updated_ms=now_ms())
            self._entries[tenant, agent.id] = entry
            self._changed()
            return entry

    async def update(self, tenant: str, agent: Agent, *, trusted: bool = False) -> Registered:
        """Replaces a definition. Calls that run finish on what they began with. Raises as :meth:`register`."""
        async with self._changing:
            self._mine(tenant, agent.id)
            return await self._put(tenant, agent, new=False, trusted=trusted)

    async def change(self, tenant: str, agent_id: str, **fields: object) -> Registered:
        """Replaces some fields of a definition, and leaves the others as they are by then. Raises as :meth:`update`."""
        async with self._changing:
            agent = dataclasses.replace(self._mine(tenant, agent_id).agent, **fields)
            return await self._put(tenant, agent, new=False)

    async def unregister(self, tenant: str, agent_id: str) -> None:
        """Removes an agent. Raises :class:`AgentNotFound` or :class:`Forbidden`."""
        async with self._changing:
            entry = self._mine(tenant, agent_id)
            if entry.source is not Source.CODE:
                await self._store.remove(tenant, agent_id)
            del self._entries[tenant, agent_id]
            self._changed()

    def roster(self, tenant: str) -> Roster:
        """The agents that a tenant sees now: its own, and the shared ones that it does not have itself."""
        roster = self._rosters.get(tenant)
        if roster is None:
            shared = {
                agent_id: entry
                for (owner, agent_id), entry in self._entries.items()
                if owner == self._shared_tenant and entry.source is not Source.API
            }
            own = {agent_id: entry for (owner, agent_id), entry in self._entries.items() if owner == tenant}
            entries = dict(sorted((shared | own).items()))
            before = self._before.pop(tenant, None)
            # What has not changed for this tenant stays what it is, with all that was made from it.
            same = before is not None and before.entries == entries
            roster = before if before is not None and same else Roster(entries, number=next(self._numbers))
            self._rosters[tenant] = roster
        return roster

    def all(self) -> Collection[Registered]:
        """The agents of all tenants."""
        return self._entries.values()

    def _changed(self) -> None:
        self.changes += 1
        self._before |= self._rosters
        self._rosters = {}

    def find(self, tenant: str, wanted: Filter) -> list[Registered]:
        """The agents that are wanted, by id."""
        return [e for e in self.roster(tenant).entries.values() if agents.matches(wanted, e.agent, e.status)]

    def resolve(self, tenant: str, action: str) -> Registered:
        """The agent that an action's name means. Raises :class:`NoAgentMatches`."""
        roster = self.roster(tenant)
        return roster.entries[resolve(action, roster.available).id]

    async def watch(self, seconds: float) -> None:
        """Sees the changes that other processes make, for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                if await self._store.revision() != self._revision:
                    async with self._changing:
                        await self._reload()
            except Exception as error:  # noqa: BLE001  the watch goes on, whatever one look has met
                self._telemetry.warn("registry_not_refreshed", code=code_of(error))

    def _mine(self, tenant: str, agent_id: str) -> Registered:
        entry = self.roster(tenant).get(agent_id)
        if entry.tenant != tenant:
            raise Forbidden(f"agent '{agent_id}' is shared by all tenants; only its operator can change it")
        return entry

    async def _put(
        self,
        tenant: str,
        agent: Agent,
        *,
        new: bool,
        source: Source | None = None,
        origin: str | None = None,
        trusted: bool = False,
    ) -> Registered:
        before = self._entries.get((tenant, agent.id))
        pool = await self._pool(before, tenant, agent, trusted=trusted or source is Source.CONFIG)
        stored = StoredAgent(
            tenant=tenant,
            agent=agent,
            source=source or (before.source if before else Source.API),
            origin=origin if source else (before.origin if before else None),
            updated_ms=max(now_ms(), before.updated_ms + 1 if before else 0),
        )
        if stored.source is not Source.CODE:
            await self._store.save(stored, new=new)
        return self._add(stored, pool, None)

    async def _pool(
        self, before: Registered | None, tenant: str, agent: Agent, *, trusted: bool, stored: bool = False
    ) -> Pool:
        """The instances of a definition. They stay what they are, with what is known of them, where it only changes."""
        if before is not None and before.source is Source.CODE:
            if faults := agents.check(agent):
                raise InvalidAgent(agent.id, faults)
            return self._checked_pool(tenant, agent, before.pool, stored=stored)
        unchanged = before is not None and (before.agent.kind, before.agent.settings) == (agent.kind, agent.settings)
        if before is not None and unchanged and before.pool.instances:
            self._checked(agent)
            return self._checked_pool(tenant, agent, before.pool, stored=stored)
        instances = await self._checked(agent).connect(agent, trusted=trusted or unchanged)
        return self._checked_pool(tenant, agent, Pool(instances, tenant=tenant), stored=stored)

    def _checked_pool(self, tenant: str, agent: Agent, pool: Pool, *, stored: bool = False) -> Pool:
        """The pool. Raises :class:`InvalidAgent` for what the definition says of instances, and of other agents.

        What is ``stored`` was right when it was stored; agents that it mentions may have gone since.
        """
        weights = agent.balancing.weights
        ids = [instance.id for instance in pool.instances]
        # A model without a key makes no instance, but it is named rightly.
        named = {*ids, *_texts_in(agent.settings)}
        faults = [
            Fault(path=f"balancing.weights.{given}", message=f"is no instance of the agent; {nearest(given, ids)}")
            for given in weights
            if given not in named
        ]
        if not faults and ids and not any(weights.get(instance_id, 1.0) for instance_id in ids):
            faults.append(Fault(path="balancing.weights", message="are all 0, so that nobody would answer"))
        if not stored:
            known = {*self.roster(tenant).entries, *self._expected, agent.id}
            faults.extend(
                Fault(path=path, message=f"there is no agent '{mentioned}'; {nearest(mentioned, sorted(known))}")
                for instance in pool.instances
                for path, mentioned in instance.mentions.items()
                if mentioned not in known
            )
        if faults:
            raise InvalidAgent(agent.id, tuple(faults))
        return pool

    def _add(self, stored: StoredAgent, pool: Pool, fault: str | None) -> Registered:
        pool.weigh(stored.agent.balancing.weights)
        entry = Registered(
            tenant=stored.tenant,
            agent=stored.agent,
            source=stored.source,
            pool=pool,
            updated_ms=stored.updated_ms,
            fault=fault,
            origin=stored.origin,
        )
        self._entries[stored.tenant, stored.agent.id] = entry
        self._changed()
        return entry

    def _checked(self, agent: Agent) -> Kind:
        faults = agents.check(agent)
        kind = self._kinds.get(agent.kind)
        if kind is None:
            known = nearest(agent.kind, sorted(self._kinds))
            faults += (Fault(path="kind", message=f"there is no kind '{agent.kind}'; {known}"),)
        if faults or kind is None:
            raise InvalidAgent(agent.id, faults)
        return kind

    async def _reload(self) -> None:
        """Takes over what is stored, keeping the pools of agents that have not changed."""
        revision, stored = await self._store.load()
        kept = {key: entry for key, entry in self._entries.items() if entry.source is Source.CODE}
        for row in stored:
            key = (row.tenant, row.agent.id)
            before = self._entries.get(key)
            if key in kept:
                continue
            if before is not None and before.agent == row.agent and before.pool.instances:
                kept[key] = dataclasses.replace(before, source=row.source, origin=row.origin)
                continue
            try:
                # What is stored was allowed when it was stored; a function that is gone since then is told as a fault.
                kept[key] = self._add(
                    row, await self._pool(before, row.tenant, row.agent, trusted=True, stored=True), None
                )
            except Exception as error:  # noqa: BLE001  one agent that breaks takes no other with it
                fault = error.detail if isinstance(error, OrchestraError) else f"raised {type(error).__name__}"
                self._telemetry.warn("agent_offline", agent=row.agent.id, reason=fault)
                kept[key] = self._add(row, Pool((), tenant=row.tenant), fault)
        self._entries = kept
        self._changed()
        self._revision = revision

    async def _configure(self, configured: Sequence[Agent]) -> None:
        tenant = self._shared_tenant
        wanted = {agent.id: agent for agent in configured}
        if twice := [agent.id for agent in configured if wanted[agent.id] is not agent]:
            raise InvalidAgent(twice[0], (Fault(path="id", message="stands twice in the configuration"),))
        self._expected = frozenset(wanted)
        for number, agent in enumerate(wanted.values()):
            before = self._entries.get((tenant, agent.id))
            origin = _digest(agent)
            if before is None or before.source is not Source.CONFIG or before.origin != origin:
                try:
                    await self._put(tenant, agent, new=before is None, source=Source.CONFIG, origin=origin)
                except InvalidAgent as error:
                    faults = (Fault(path=f"agents.{number}.{f.path}", message=f.message) for f in error.faults)
                    raise InvalidAgent(agent.id, tuple(faults)) from error
                except (AgentExists, AgentNotFound):
                    # Another process starts with a configuration too; the row is as new as ours would be.
                    await self._reload()
        gone = [
            entry.agent.id
            for entry in self._entries.values()
            if entry.tenant == tenant and entry.source is Source.CONFIG and entry.agent.id not in wanted
        ]
        for agent_id in gone:
            with suppress(AgentNotFound):
                await self._store.remove(tenant, agent_id)
            del self._entries[tenant, agent_id]
        self._changed()


def _texts_in(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts_in(inner)


def _digest(agent: Agent) -> str:
    """A digest of a definition, in which what a later release has added counts only where it is said."""
    plain = dataclasses.asdict(agent)
    for name in ("read_only", "balancing", "recovery"):
        if getattr(agent, name) == getattr(_PLAIN, name):
            del plain[name]
    if not agent.limits.queue:
        del plain["limits"]["queue"]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


_PLAIN = Agent(id="plain", kind="plain")
