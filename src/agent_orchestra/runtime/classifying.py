"""Estimates whose a text is, by a model of each tenant's agents that follows them as they change."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from agent_orchestra.core import classifier
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Model, Turn, Vector
from agent_orchestra.core.feedback import Feedback, memory_of
from agent_orchestra.core.routing import Stage, Strategy, normalised
from agent_orchestra.errors import EncoderFailed, code_of
from agent_orchestra.runtime.embeddings import Embeddings
from agent_orchestra.runtime.registry import Roster
from agent_orchestra.runtime.router import Classified, Question
from agent_orchestra.runtime.telemetry import Telemetry
from agent_orchestra.runtime.versions import KEPT_CHARS, FeedbackLog, Version, Versions, VersionState, counting

__all__ = ["Classifiers", "Known"]

#: Models are kept for so many tenants, those that asked last.
_MOST_TENANTS: Final = 32
#: Versions beyond these are not looked at for what was rolled back.
_HISTORY: Final = 1_000
#: The newest entries of feedback that are kept; no more texts are ever learned from.
_MOST_FEEDBACK: Final = 20_000
#: Seconds that a request waits for new agents to be known by their words, before it is decided without them.
_MEETING_SECONDS: Final = 1.0
#: Seconds that a request waits for a model that follows a change of the agents; it then takes what there is.
_GRACE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of one tenant's agents. Never changes; it is replaced as a whole.

    ``floor`` compares words alone. ``model`` has all that the strategy, the encoder and what was learned give, and is
    the floor where they give nothing, or not yet; ``vectors`` are those of its agents' texts. ``version``: what is
    active, whether or not it could be used; it cannot where it is ``stale``, as after a change of the encoder.
    ``history``: all fits, newest first, whatever came of them. ``log``: the feedback that counts. ``memory``: confirmed
    requests. ``heard``: the last entry of the tenant's log, ``head`` of all logs, by then. ``whole``: whether nothing
    was missing that may come yet.
    """

    roster: Roster
    floor: Model
    model: Model
    vectors: Mapping[str, Vector] = field(default_factory=dict[str, Vector])
    version: Version | None = None
    stale: bool = False
    history: Sequence[Version] = ()
    log: tuple[Feedback, ...] = ()
    memory: Mapping[str, str]
    heard: int = 0
    head: int = 0
    whole: bool = False


class _Followed:
    """What is known of a tenant, and the task that has it follow what it was last asked to."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.wanted = known.roster
        self.asked = 0
        self.began = 0.0
        self.task: asyncio.Task[None] | None = None
        #: Whether the agents that are wanted are known at least by their words.
        self.met = asyncio.Event()

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()


class Classifiers:
    """Conforms to :class:`Classifier`. ``embeddings``: none where there is no encoder."""

    def __init__(
        self,
        *,
        strategy: Strategy,
        embeddings: Embeddings | None,
        versions: Versions,
        feedback: FeedbackLog,
        shared_tenant: str,
        telemetry: Telemetry,
    ) -> None:
        self.embeddings = embeddings if strategy is not Strategy.SIMPLE else None
        self.learns = strategy in (Strategy.LEARNED, Strategy.LLM, Strategy.HYBRID)
        self._versions = versions
        self._feedback = feedback
        self._shared_tenant = shared_tenant
        self._telemetry = telemetry
        self._tenants: OrderedDict[str, _Followed] = OrderedDict()
        self._closed = False

    @property
    def encoder(self) -> str:
        """The name of the encoder, empty where there is none."""
        return self.embeddings.name if self.embeddings is not None else ""

    async def judge(self, question: Question, roster: Roster, among: Mapping[str, Agent]) -> Classified:
        known = await self.known(question.tenant, roster)
        model, degraded = known.model, ()
        vectors: Sequence[Vector] = ()
        last = question.last_turn
        if self.embeddings is not None and model is known.floor:
            degraded = ("encoder_not_ready",)
        elif self.embeddings is not None:
            # Where an agent has the conversation, what it said last tells by its form, and need not be compared.
            texts = [question.text, last] if last and question.active_agent is None else [question.text]
            try:
                vectors = await self.embeddings.of_request(texts)
            except EncoderFailed as error:
                model, degraded = known.floor, (error.code,)
        judgement = model.judge(
            question.text,
            vectors[0] if vectors else None,
            # The model's own agents are all that there are, most of the time: nothing need be left out.
            among=None if among is roster.available and known.roster is roster else among,
            turn=Turn(previous=question.active_agent, last=last, last_vector=vectors[1] if len(vectors) > 1 else None),
        )
        return Classified(
            judgement=judgement,
            stage=Stage.LEARNED if model.learned else Stage.SEMANTIC if vectors else Stage.LEXICAL,
            version=known.version.number if model.learned and known.version is not None else 0,
            degraded=degraded,
        )

    async def remembered(self, tenant: str, roster: Roster, text: str) -> str | None:
        memory = (await self.known(tenant, roster)).memory
        # Of what is longer only the beginning was kept.
        return memory.get(normalised(text)) if memory and len(text) < KEPT_CHARS else None

    async def known(self, tenant: str, roster: Roster, *, patience: float = _GRACE_SECONDS) -> Known:
        """What is known of a tenant's agents.

        Where they have changed, it is waited for until they are known by their words, and so many seconds, once, for
        the rest. A roster that is older than what is known changes nothing.
        """
        state = self._tenants.get(tenant) or await self._begun(tenant, roster)
        self._tenants.move_to_end(tenant)
        if not state.asked or state.known.roster.number < roster.number:
            if not state.asked or state.wanted.number < roster.number or not state.busy:
                self._ask(tenant, state, roster)
            with suppress(TimeoutError):
                async with asyncio.timeout(_MEETING_SECONDS):
                    await state.met.wait()
            await self._wait(state, patience - (asyncio.get_running_loop().time() - state.began))
        return state.known

    async def followed(self, tenant: str, roster: Roster) -> Known:
        """What is known once all that there is by now has been taken up: agents, feedback, versions."""
        state = self._tenants.get(tenant) or await self._begun(tenant, roster)
        self._ask(tenant, state, roster)
        await self._wait(state, None)
        return state.known

    def get(self, tenant: str) -> Known | None:
        """What is known of a tenant's agents by now."""
        state = self._tenants.get(tenant)
        return state.known if state is not None else None

    def tenants(self) -> Sequence[str]:
        """Those for whom a model is kept."""
        return list(self._tenants)

    async def vectors(self, tenant: str, texts: Sequence[str]) -> Mapping[str, Vector]:
        """The vectors of definitions and examples; none where there is no encoder. Raises :class:`EncoderFailed`."""
        if self.embeddings is None:
            return {}
        return await self.embeddings.of_definitions({tenant, self._shared_tenant}, tenant, texts)

    async def close(self) -> None:
        """Ends what is at work. What is known goes on deciding."""
        self._closed = True
        tasks = [state.task for state in self._tenants.values() if state.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.embeddings is not None:
            await self.embeddings.close()

    async def _begun(self, tenant: str, roster: Roster) -> _Followed:
        """The floor, at once; the rest follows."""
        floor = await asyncio.to_thread(classifier.untaught, tuple(roster.available.values()), {})
        state = self._tenants.setdefault(tenant, _Followed(Known(roster=roster, floor=floor, model=floor, memory={})))
        while len(self._tenants) > _MOST_TENANTS:
            _, gone = self._tenants.popitem(last=False)
            if gone.task is not None:
                gone.task.cancel()
        return state

    def _ask(self, tenant: str, state: _Followed, roster: Roster) -> None:
        """Has the state follow a roster, and take up what there is. What is at work for an older one gives way."""
        state.asked += 1
        state.began = asyncio.get_running_loop().time()
        newer = roster.number > state.wanted.number
        if newer:
            state.wanted = roster
            state.met.clear()
        if self._closed or (state.busy and not newer):
            return
        if state.task is not None:
            state.task.cancel()
        state.task = asyncio.create_task(self._follow(tenant, state))

    async def _wait(self, state: _Followed, seconds: float | None) -> None:
        task = None
        while task is not state.task and (seconds is None or seconds > 0):
            task = state.task
            if task is not None:
                # Not the task itself: whoever gives up waiting must not end it for the others.
                await asyncio.wait({task}, timeout=seconds)

    async def _follow(self, tenant: str, state: _Followed) -> None:
        """Takes up what there is, until nothing more was asked for meanwhile."""
        asked = -1
        while asked != state.asked:
            asked = state.asked
            try:
                await self._take_up(tenant, state, state.wanted)
            except Exception as error:  # noqa: BLE001  what decided before goes on deciding
                self._telemetry.warn("classifier_not_refreshed", code=code_of(error))

    async def _take_up(self, tenant: str, state: _Followed, roster: Roster) -> None:
        before = state.known
        known = await self._met(state, roster)
        head = await self._feedback.head()
        new = await self._feedback.read(tenant, after=before.heard, limit=_MOST_FEEDBACK)
        history = await self._versions.history(tenant, limit=_HISTORY)
        version = next((v for v in history if v.state is VersionState.ACTIVE), None) if self.learns else None
        known = replace(known, version=version, history=history, head=head)
        if new or history != before.history:
            log = await asyncio.to_thread(counting, [*before.log, *new][-_MOST_FEEDBACK:], history)
            memory = await asyncio.to_thread(memory_of, log)
            known = replace(known, log=tuple(log), memory=memory, heard=new[-1].sequence if new else before.heard)
        words_only = self.embeddings is not None and before.model is before.floor
        if before.whole and not words_only and before.version == version:
            state.known = await self._rebuilt(tenant, state, roster, known)
        else:
            state.known = await self._built(tenant, roster, known)

    async def _met(self, state: _Followed, roster: Roster) -> Known:
        """What was known, with a floor for these agents; until there is more, requests know new ones by their words."""
        before = state.known
        if before.roster is roster:
            state.met.set()
            return before
        known = replace(before, floor=await asyncio.to_thread(before.floor.rebuilt, _agents(roster), {}))
        model = known.floor
        if before.model is not before.floor:
            model = await asyncio.to_thread(before.model.rebuilt, _agents(roster), before.vectors)
        state.known = replace(known, roster=roster, model=model, whole=False)
        state.met.set()
        return known

    async def _rebuilt(self, tenant: str, state: _Followed, roster: Roster, known: Known) -> Known:
        """With a model that follows a change of the agents: only what has changed is read."""
        if known.roster is roster:
            return known
        if self.embeddings is None and not known.model.learned:
            return replace(known, roster=roster, model=known.floor)
        try:
            new = await self.vectors(tenant, classifier.texts_of(_changed(roster, known.roster)))
        except EncoderFailed:
            return replace(known, roster=roster, model=state.known.model, whole=False)
        every = {**known.vectors, **new}
        vectors = {text: every[text] for text in classifier.texts_of(_agents(roster)) if text in every}
        model = await asyncio.to_thread(known.model.rebuilt, _agents(roster), vectors)
        return replace(known, roster=roster, model=model, vectors=vectors)

    async def _built(self, tenant: str, roster: Roster, known: Known) -> Known:
        """With a model made anew."""
        agents = _agents(roster)
        try:
            vectors = await self.vectors(tenant, classifier.texts_of(agents))
        except EncoderFailed:
            return replace(known, roster=roster, model=known.floor, whole=False)
        model = await asyncio.to_thread(classifier.untaught, agents, vectors) if vectors else known.floor
        stale = False
        stored = await self._versions.load(tenant) if known.version is not None else None
        if stored is not None:
            try:
                self._check_encoder(stored[0])
                model = await asyncio.to_thread(classifier.restore, stored[1], agents, vectors)
            except ValueError:
                stale = True
                self._telemetry.warn("version_not_usable", tenant=tenant, version=stored[0].number)
        version = stored[0] if stored is not None else None
        return replace(known, roster=roster, model=model, vectors=vectors, version=version, stale=stale, whole=True)

    def _check_encoder(self, version: Version) -> None:
        """Raises ValueError where a version was learned from vectors of another encoder."""
        if version.encoder != self.encoder:
            raise ValueError(f"it was learned with '{version.encoder}', not '{self.encoder}'")


def _changed(roster: Roster, before: Roster) -> Sequence[Agent]:
    """The agents that were not there before as they are now."""
    return [agent for agent in _agents(roster) if before.available.get(agent.id) != agent]


def _agents(roster: Roster) -> Sequence[Agent]:
    return tuple(roster.available.values())
