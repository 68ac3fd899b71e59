"""The facade: what a program that embeds Agent Orchestra calls, and what the HTTP API calls too."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent_orchestra.core.agent import ID_RULE, Agent, Filter, SystemHealth, is_id, system_health
from agent_orchestra.core.conversation import Conversation, InputPolicy
from agent_orchestra.core.message import Attachment, Author, Message
from agent_orchestra.core.plan import Aggregation, Member, Plan, Strategy, made, plan_json
from agent_orchestra.core.prompt import Prompt, Wrote, check_prompt
from agent_orchestra.core.request import Answer, Record, Reply, Request, check
from agent_orchestra.core.stream import StreamEvent
from agent_orchestra.core.values import Json, JsonObject
from agent_orchestra.errors import Fault, InvalidInput
from agent_orchestra.runtime.alarms import StorageHealth, places, unhealthy
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.conversations import Conversations
from agent_orchestra.runtime.dispatcher import Dispatcher, RunLog, Submitted, fingerprint
from agent_orchestra.runtime.escalations import Escalations
from agent_orchestra.runtime.executor import Instance
from agent_orchestra.runtime.keys import Keys
from agent_orchestra.runtime.models import Models, ProviderStatus
from agent_orchestra.runtime.monitoring import Monitoring
from agent_orchestra.runtime.registry import Found, Registered, Registry
from agent_orchestra.runtime.routing import Routing

__all__ = ["DEFAULT_TENANT", "AgentsHealth", "Function", "Health", "Orchestra", "Wrap"]

DEFAULT_TENANT = "default"

#: What an agent in code may be: see :mod:`agent_orchestra.adapters.function` for the forms that it can have.
Function = Callable[..., object]


class Wrap(Protocol):
    """Makes a function into the instance of an agent. Raises :class:`InvalidAgent` for a form that cannot be called."""

    def __call__(self, agent_id: str, function: Function) -> Instance: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsHealth:
    """Disabled agents are left out: that they do not answer is wanted."""

    healthy_agents: int
    unhealthy_agents: int
    total_agents: int
    system_health: SystemHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """``uptime``: seconds since this process opened the orchestra."""

    uptime: float
    in_flight: int
    agents: AgentsHealth
    storage: Mapping[str, bool]


class Orchestra:
    """One orchestra, open. Made by :func:`agent_orchestra.open_orchestra`, which also closes it.

    Every method takes ``tenant``, whose agents, conversations and requests no other tenant sees; only the agents of the
    configuration, and those given in code for the tenant ``default``, are shared by all.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        dispatcher: Dispatcher,
        conversations: Conversations,
        keys: Keys,
        routing: Routing,
        monitoring: Monitoring,
        escalations: Escalations,
        log: RunLog,
        models: Models,
        wrap: Wrap,
        storage: StorageHealth,
        watch_seconds: float,
    ) -> None:
        self.keys = keys
        self.routing = routing
        self.monitoring = monitoring
        self.escalations = escalations
        self._models = models
        self._registry = registry
        self._dispatcher = dispatcher
        self._conversations = conversations
        self._log = log
        self._wrap = wrap
        self._storage = storage
        self._watch_seconds = watch_seconds
        self._began = time.monotonic()
        self._watchers: list[asyncio.Task[None]] = []
        #: Whether requests should be sent here: no more from the first word of its end on, while some are still taken.
        self.accepting = True

    async def start(self, configured: Sequence[Agent] | None, found: Sequence[Found] = ()) -> None:
        """Loads the agents and begins to watch. Raises :class:`InvalidAgent` for a wrong configured one.

        ``found``: agents in code, as :meth:`Registry.take_up` takes them.
        """
        await self._registry.start(configured)
        await self._registry.take_up(found)
        await self.routing.start(DEFAULT_TENANT, self._watch_seconds)
        await self.monitoring.start()
        watchers: list[Awaitable[None]] = [self._registry.watch(self._watch_seconds), self._dispatcher.watch()]
        self._watchers = [asyncio.ensure_future(watcher) for watcher in watchers]

    async def close(self, grace_seconds: float = 10.0) -> None:
        """Takes nothing new, lets what runs end within the grace, and records the rest as interrupted.

        Called once more while it waits, it waits no longer than that call's grace.
        """
        self.accepting = False
        await self._dispatcher.close(grace_seconds)
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self.routing.close()
        await self.monitoring.close()

    # --- agents

    async def register_agent(
        self, agent: Agent, run: Function | None = None, *, tenant: str = DEFAULT_TENANT, trusted: bool = False
    ) -> Registered:
        """Adds an agent. With ``run``, the function that answers for it; such an agent lives as long as this process.

        ``trusted`` says that the operator gives the definition, who may name any function.

        Raises :class:`InvalidAgent` with all that is wrong, :class:`AgentExists`, or :class:`Forbidden` for a function
        that a definition names and the operator has not allowed.
        """
        if run is not None:
            return await self._registry.register_in_code(tenant, agent, [self._wrap(agent.id, run)])
        return await self._registry.register(tenant, agent, trusted=trusted)

    async def update_agent(self, agent: Agent, *, tenant: str = DEFAULT_TENANT, trusted: bool = False) -> Registered:
        """Replaces the definition of the same id. Raises :class:`AgentNotFound`, and as :meth:`register_agent`."""
        return await self._registry.update(tenant, agent, trusted=trusted)

    async def change_agent(self, agent_id: str, *, tenant: str = DEFAULT_TENANT, **fields: object) -> Registered:
        """Replaces some fields of an agent, named as in :class:`Agent`, and leaves the others. Raises as above."""
        return await self._registry.change(tenant, agent_id, **fields)

    async def enable_agent(self, agent_id: str, *, enabled: bool, tenant: str = DEFAULT_TENANT) -> Registered:
        """Lets an agent take work, or not; kept over a restart. Raises :class:`AgentNotFound`."""
        return await self._registry.change(tenant, agent_id, enabled=enabled)

    async def unregister_agent(self, agent_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Removes an agent. What it is answering now is still answered. Raises :class:`AgentNotFound`."""
        await self._registry.unregister(tenant, agent_id)

    def get_agent(self, agent_id: str, *, tenant: str = DEFAULT_TENANT) -> Registered:
        """Raises :class:`AgentNotFound`."""
        return self._registry.roster(tenant).get(agent_id)

    def get_agents(self, wanted: Filter | None = None, *, tenant: str = DEFAULT_TENANT) -> list[Registered]:
        """The agents that are wanted, by id."""
        return self._registry.find(tenant, wanted or Filter())

    def resolve_agent(self, action: str, *, tenant: str = DEFAULT_TENANT) -> Registered:
        """The agent that an action means: an id, a capability, ``id.anything``. Raises :class:`NoAgentMatches`."""
        return self._registry.resolve(tenant, action)

    @property
    def kinds(self) -> Mapping[str, JsonObject]:
        """The kinds of agents that there are, each with the JSON Schema of its settings."""
        return {name: kind.schema for name, kind in self._registry.kinds.items()}

    # --- requests

    async def process_request(
        self,
        content: str,
        *,
        conversation_id: str | None = None,
        user_id: str | None = None,
        context: JsonObject | None = None,
        attachments: Sequence[Attachment] = (),
        capability: str | None = None,
        agent_id: str | None = None,
        idempotency_key: str | None = None,
        emit: Callable[[StreamEvent], None] | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Answer:
        """Routes the content to an agent and gives its answer, which is then on record.

        Without ``conversation_id`` a new conversation begins. ``attachments`` are given to the agent with this call and
        are not kept. ``emit`` is called with each event as it comes; it is the same call. Raises what refuses the
        request (:class:`InvalidInput`, :class:`NotFound`, :class:`Conflict`, :class:`Unavailable`), or the
        :class:`RunFailed` that it ended with.
        """
        request = make_request(
            content,
            conversation_id=conversation_id,
            user_id=user_id,
            context=context,
            attachments=attachments,
            capability=capability,
            agent_id=agent_id,
            idempotency_key=idempotency_key,
            streamed=emit is not None,
            tenant=tenant,
        )
        return await self._answered(request, emit)

    async def coordinate(
        self,
        agents: Sequence[str | Member] | None,
        content: str,
        *,
        strategy: Strategy | str = Strategy.PARALLEL,
        aggregate: Aggregation | str = Aggregation.CONCATENATE,
        synthesizer: str | None = None,
        score: str | None = None,
        router: str | Function | None = None,
        conversation_id: str | None = None,
        user_id: str | None = None,
        context: JsonObject | None = None,
        attachments: Sequence[Attachment] = (),
        idempotency_key: str | None = None,
        emit: Callable[[StreamEvent], None] | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Answer:
        """Has several agents work on the content and gives one answer; ``answer.reply.coordination`` tells of each.

        ``agents``: ids, or a :class:`Member` where there is more to say; none means those that the router names.
        ``synthesizer`` is the agent that makes one answer of all, ``score`` CEL that gives a number for a ``result``,
        ``router``, which ``conditional`` needs, CEL or a function that gives the ids of members. The rest is as for
        :meth:`process_request`. Raises :class:`InvalidInput` for a plan that cannot be run and
        :class:`CoordinationFailed` where no agent gave a result.
        """
        plan = await asyncio.to_thread(
            made,
            agents,
            strategy=strategy,
            aggregate=aggregate,
            synthesizer=synthesizer,
            score=score,
            router=router,
        )
        if plan.router is not None:
            self._wrap("router", plan.router)
        request = make_request(
            content,
            conversation_id=conversation_id,
            user_id=user_id,
            context=context,
            attachments=attachments,
            plan=plan,
            idempotency_key=idempotency_key,
            streamed=emit is not None,
            tenant=tenant,
        )
        return await self._answered(request, emit)

    async def _answered(self, request: Request, emit: Callable[[StreamEvent], None] | None) -> Answer:
        submitted = await self._dispatcher.submit(request)
        if emit is not None:
            async for event in await self._dispatcher.follow(request.tenant, submitted.request_id):
                emit(event)
        return await self._dispatcher.answer(request.tenant, submitted)

    async def process_message(
        self,
        conversation_id: str,
        content: str,
        *,
        context: JsonObject | None = None,
        idempotency_key: str | None = None,
        emit: Callable[[StreamEvent], None] | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Answer:
        """Has a message of the user answered in its conversation; the same as :meth:`process_request` there."""
        return await self.process_request(
            content,
            conversation_id=conversation_id,
            context=context,
            idempotency_key=idempotency_key,
            emit=emit,
            tenant=tenant,
        )

    async def submit(self, request: Request) -> Submitted:
        """Puts a request on record and lets it run; :meth:`answer` waits for it, :meth:`follow` listens to it."""
        return await self._dispatcher.submit(request)

    async def answer(self, tenant: str, submitted: Submitted) -> Answer:
        """The answer to a request that is on record. Raises the :class:`RunFailed` that it ended with."""
        return await self._dispatcher.answer(tenant, submitted)

    async def follow(
        self, request_id: str, *, after: int = 0, asked: str | None = None, tenant: str = DEFAULT_TENANT
    ) -> AsyncIterator[StreamEvent]:
        """The events of a request after a position, as they come, also when it has ended long ago.

        ``asked``: the fingerprint of what the caller believes it asked. Raises :class:`RequestNotFound` and
        :class:`StreamMismatch`.
        """
        return await self._dispatcher.follow(tenant, request_id, after=after, asked=asked)

    async def get_request(self, request_id: str, *, tenant: str = DEFAULT_TENANT) -> Record:
        """What is on record of a request. Raises :class:`RequestNotFound`."""
        return await self._log.find(tenant, request_id)

    # --- models

    async def ask_model(
        self,
        model: str,
        content: str | Prompt,
        *,
        emit: Callable[[str], None] | None = None,
    ) -> Reply:
        """Asks one model itself, without an agent; nothing of it is recorded.

        ``model``: such as ``anthropic:claude-sonnet-5``. ``emit`` is called with each piece of the text as it comes.
        Raises :class:`InvalidInput` for a name that is none, and :class:`ModelFailed`.
        """
        prompt = content if isinstance(content, Prompt) else Prompt(turns=[Wrote(content=content)])
        check_prompt(prompt)
        return await self._models.ask(model, prompt, emit)

    async def get_providers(self, *, fresh: bool = False) -> Sequence[ProviderStatus]:
        """How each provider of models is. What was found within the last minute is told again, but with ``fresh``."""
        return await self._models.check(fresh=fresh)

    # --- conversations

    async def create_conversation(
        self,
        *,
        conversation_id: str | None = None,
        user_id: str | None = None,
        context: JsonObject | None = None,
        input_policy: InputPolicy | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Conversation:
        """A new, empty conversation. Raises :class:`ConversationExists` for an id that is taken."""
        return await self._conversations.create(
            tenant,
            conversation_id=conversation_id,
            user_id=user_id,
            context=context,
            input_policy=input_policy,
        )

    async def get_conversation(self, conversation_id: str, *, tenant: str = DEFAULT_TENANT) -> Conversation:
        """Raises :class:`ConversationNotFound`."""
        return await self._conversations.get(tenant, conversation_id)

    async def get_conversations(
        self, *, user_id: str | None = None, before: str | None = None, limit: int = 50, tenant: str = DEFAULT_TENANT
    ) -> Sequence[Conversation]:
        """A page of conversations, newest first; ``before`` is the id of the last one of the page before."""
        return await self._conversations.find(tenant, user_id=user_id, before=before, limit=limit)

    async def get_messages(
        self, conversation_id: str, *, after: int = 0, limit: int = 100, tenant: str = DEFAULT_TENANT
    ) -> Sequence[Message]:
        """A page of messages in order, after a sequence number. Raises :class:`ConversationNotFound`."""
        return await self._conversations.messages(tenant, conversation_id, after=after, limit=limit)

    async def add_message(
        self,
        conversation_id: str,
        content: str,
        *,
        author: Author = Author.USER,
        expected_seq: int | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Message:
        """Adds a message that no agent answers. Raises :class:`SequenceConflict` unless it gets ``expected_seq``."""
        return await self._conversations.add_message(
            tenant, conversation_id, content, author=author, expected_seq=expected_seq
        )

    # --- health

    def agents_health(self, *, tenant: str = DEFAULT_TENANT) -> AgentsHealth:
        """How many agents can answer, and what that makes of the whole."""
        entries = self.get_agents(tenant=tenant)
        ill, total = unhealthy(entries)
        without, instances = places(entries)
        return AgentsHealth(
            healthy_agents=total - ill,
            unhealthy_agents=ill,
            total_agents=total,
            system_health=system_health(unhealthy=without, total=instances),
        )

    async def storage_ready(self) -> Mapping[str, bool]:
        """Whether the database is ``reachable``, and its ``migrations`` are current. Never raises."""
        return await self._storage.ready()

    async def health(self, *, tenant: str = DEFAULT_TENANT) -> Health:
        """The state of this process and of what it needs."""
        return Health(
            uptime=round(time.monotonic() - self._began, 3),
            in_flight=self._dispatcher.in_flight,
            agents=self.agents_health(tenant=tenant),
            storage=await self._storage.ready(),
        )


def make_request(
    content: str,
    *,
    tenant: str,
    conversation_id: str | None = None,
    user_id: str | None = None,
    context: JsonObject | None = None,
    attachments: Sequence[Attachment] = (),
    capability: str | None = None,
    agent_id: str | None = None,
    plan: Plan | None = None,
    idempotency_key: str | None = None,
    streamed: bool = False,
) -> Request:
    """A request with its id, its time and its fingerprint. Raises :class:`InvalidInput` with all that is wrong."""
    if not is_id(tenant):
        raise InvalidInput(f"tenant: {ID_RULE}", faults=(Fault(path="tenant", message=ID_RULE),))
    check(
        content,
        attachments=attachments,
        conversation_id=conversation_id,
        user_id=user_id,
        context=context,
        capability=capability,
        agent_id=agent_id,
        idempotency_key=idempotency_key,
    )
    if plan is not None and plan.members and (agent_id is not None or capability is not None):
        path = "agent_id" if agent_id is not None else "capability"
        fault = Fault(path=path, message="is for one agent; leave it out where 'agents' names several")
        raise InvalidInput(str(fault), faults=(fault,))
    asked: list[Json] = [content, conversation_id, user_id, context or {}, capability, agent_id]
    asked.extend([a.media_type, hashlib.sha256(a.data).hexdigest()] for a in attachments)
    if plan is not None:
        asked.append(plan_json(plan))
    return Request(
        id=new_id(),
        tenant=tenant,
        content=content,
        attachments=tuple(attachments),
        conversation_id=conversation_id,
        user_id=user_id,
        context=context or {},
        capability=capability,
        agent_id=agent_id,
        plan=plan,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint(*asked),
        streamed=streamed,
        received_ms=now_ms(),
    )
