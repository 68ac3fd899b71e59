"""Routing as people work with it: decide only, look at decisions, say what was right, report, go back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent_orchestra.core import classifier
from agent_orchestra.core.agent import is_id
from agent_orchestra.core.feedback import Feedback, Source
from agent_orchestra.core.request import check
from agent_orchestra.core.routing import Stage, Strategy
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import Conflict, ConversationNotFound, Fault, InvalidInput, OrchestraError
from agent_orchestra.runtime.classifying import Classifiers
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.conversations import Conversations
from agent_orchestra.runtime.decisions import Decision, DecisionLog
from agent_orchestra.runtime.learning import Learner
from agent_orchestra.runtime.models import Models
from agent_orchestra.runtime.registry import Registry
from agent_orchestra.runtime.router import Question, Router
from agent_orchestra.runtime.suggesting import suggest
from agent_orchestra.runtime.versions import Version, Versions

if TYPE_CHECKING:
    from agent_orchestra.core.classifier import Confusion, Overlap

__all__ = ["Opinion", "Report", "Routing", "RoutingStatus", "Suggestion"]

_MOST_SUGGESTED: Final = 50
#: Seconds that a registration waits to be told how its agent stands among the others.
_PATIENCE_SECONDS: Final = 1.0
#: Lines of two agents that are more similar than this say much the same.
_MUCH_ALIKE: Final = 0.8
#: Feedback that a caller may give; what models say is heard inside.
_GIVEN: Final = (Source.HUMAN, Source.THUMBS, Source.HANDOFF, Source.OUTCOME)


class Opinion(StrEnum):
    """What is said of a decision: the chosen agent is the right one, it is not, or no agent is."""

    RIGHT = "right"
    WRONG = "wrong"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingStatus:
    """How routing is in this process.

    ``encoder``: the one that is in use; ``fault``: why there is none, or what it failed with last. ``model``: the one
    that is asked in doubt; ``model_fault``: why it cannot be. ``version``: of what was learned, 0 where the definitions
    alone decide.
    """

    strategy: Strategy
    encoder: str | None
    fault: str | None
    model: str | None
    model_fault: str | None
    version: int
    learning_fault: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What stands in the way of good decisions, worst first, and what was learned so far.

    ``unreachable``: agents that even their own lines do not lead to.
    """

    overlaps: Sequence[Overlap]
    confusions: Sequence[Confusion]
    unreachable: Sequence[str]
    versions: Sequence[Version]
    feedback: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """An example that a model wrote for an agent, and the agent that it would be routed to as things are."""

    text: str
    goes_to: str | None
    confidence: float


class Routing:
    """What an orchestra offers about its routing."""

    def __init__(
        self,
        *,
        router: Router,
        registry: Registry,
        conversations: Conversations,
        decisions: DecisionLog,
        classifiers: Classifiers,
        learner: Learner,
        versions: Versions,
        models: Models,
        model: str | None,
        encoder_fault: str | None,
        history_messages: int,
    ) -> None:
        self._router = router
        self._registry = registry
        self._conversations = conversations
        self._decisions = decisions
        self._classifiers = classifiers
        self._learner = learner
        self._versions = versions
        self._models = models
        self._model = model
        self._encoder_fault = encoder_fault
        self._history_messages = history_messages
        self._model_fault: str | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None

    async def start(self, tenant: str, seconds: float) -> None:
        """Learns to know the agents of a tenant, before its first request, and follows what changes."""
        await self._classifiers.known(tenant, self._registry.roster(tenant))
        if self._model is not None:
            self._preparing = asyncio.create_task(self._prepare(self._model))
        self._watcher = asyncio.create_task(self._learner.watch(seconds))

    async def close(self) -> None:
        """Stops learning. What decides goes on deciding."""
        for task in filter(None, (self._watcher, self._preparing)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._classifiers.close()

    async def decide(
        self,
        content: str,
        *,
        conversation_id: str | None = None,
        user_id: str | None = None,
        context: JsonObject | None = None,
        capability: str | None = None,
        agent_id: str | None = None,
        tenant: str,
    ) -> Decision:
        """Decides where a request would go, and carries nothing out. The decision is on record.

        Its route has the stage NONE where no agent fits. Raises :class:`InvalidInput`, :class:`ConversationNotFound`,
        :class:`NoAgentMatches` for a capability that nobody has, and what refuses an agent that is named.
        """
        check(
            content,
            conversation_id=conversation_id,
            user_id=user_id,
            context=context,
            capability=capability,
            agent_id=agent_id,
        )
        question = Question(
            id=new_id(),
            tenant=tenant,
            text=content,
            agent_id=agent_id,
            capability=capability,
            user_id=user_id,
            context=context or {},
        )
        if conversation_id is not None:
            question = await self._in_conversation(question, conversation_id)
        return await self._router.record(question, await self._router.decide(question, self._registry.roster(tenant)))

    async def get_decision(self, decision_id: str, *, tenant: str) -> Decision:
        """One decision; that of a request has the request's id. Raises :class:`DecisionNotFound`."""
        return await self._decisions.find(tenant, decision_id)

    async def get_decisions(self, *, before: str | None = None, limit: int = 50, tenant: str) -> Sequence[Decision]:
        """A page of decisions, newest first; ``before`` is the id of the last one of the page before."""
        return await self._decisions.recent(tenant, before=before, limit=limit)

    async def give_feedback(
        self,
        decision_id: str,
        *,
        opinion: Opinion | None = None,
        agent_id: str | None = None,
        source: Source | None = None,
        author: str,
        tenant: str,
    ) -> Feedback:
        """Keeps what somebody says of a decision: an opinion of it, or which agent is the right one.

        ``author`` is whose word it is: what one author's word weighs is bounded. Raises :class:`DecisionNotFound`,
        :class:`AgentNotFound`, :class:`InvalidInput`, and :class:`Conflict` for an opinion on no choice at all.
        """
        if (opinion is None) is (agent_id is None):
            message = "give either an opinion of the decision or the right agent"
            raise InvalidInput(message, faults=(Fault(path="", message=message),))
        if source is not None and source not in _GIVEN:
            message = f"must be one of {', '.join(_GIVEN)}"
            raise InvalidInput(f"source {message}", faults=(Fault(path="source", message=message),))
        decision = await self._decisions.find(tenant, decision_id)
        if agent_id is not None:
            self._registry.roster(tenant).get(agent_id)
        chosen = decision.route.primary.agent_id if decision.route.stage is not Stage.NONE else None
        thumb = opinion in (Opinion.RIGHT, Opinion.WRONG)
        if source is None or (source is Source.HUMAN and opinion is Opinion.WRONG):
            # A person who names no agent would otherwise say that none is right.
            source = Source.THUMBS if thumb else Source.HUMAN
        if thumb and chosen is None:
            raise Conflict("the decision chose no agent; name the right one with 'agent_id', or say 'nobody'")
        right = chosen if opinion is Opinion.RIGHT else agent_id
        # What goes on with a conversation, such as "yes, please", tells of no agent when it stands alone.
        goes_on = decision.route.stage is Stage.CONVERSATION and right == chosen
        return await self._learner.hear(
            Feedback(
                tenant=tenant,
                decision_id=decision_id,
                text="" if goes_on else decision.text,
                agent_id=right,
                rejected=chosen if opinion is Opinion.WRONG else None,
                source=source,
                author=author,
                created_ms=now_ms(),
            )
        )

    async def report(self, *, tenant: str) -> Report:
        """What stands in the way of good decisions. It costs a look at every line of every definition."""
        known = await self._classifiers.followed(tenant, self._registry.roster(tenant))
        return Report(
            overlaps=await asyncio.to_thread(classifier.overlaps, known.model),
            confusions=await asyncio.to_thread(classifier.confusions, known.model),
            unreachable=await asyncio.to_thread(classifier.unreachable, known.model),
            versions=await self._versions.history(tenant),
            feedback=len(known.log),
        )

    async def refit(self, *, tenant: str) -> Version | None:
        """Learns now what there is to learn; the version, or none where there is nothing.

        Raises :class:`FitFailed`, :class:`EncoderFailed`, and :class:`Conflict` where the strategy does not learn.
        """
        return await self._learner.refit(tenant)

    async def roll_back(self, *, tenant: str) -> Version | None:
        """Withdraws what was learned last, with the feedback that made it; gives the version that decides then.

        Raises :class:`NothingToRollBack`.
        """
        return await self._learner.roll_back(tenant)

    async def suggest_examples(self, agent_id: str, *, count: int = 10, tenant: str) -> Sequence[Suggestion]:
        """Examples for an agent, written by the model of ``routing.llm``. Nothing is taken up: that is for a person.

        Raises :class:`AgentNotFound`, :class:`Conflict` where no model is set, and :class:`ModelFailed`.
        """
        roster = self._registry.roster(tenant)
        agent = roster.get(agent_id).agent
        if self._model is None:
            raise Conflict("suggestions are written by a model; set routing.llm.model")
        others = [entry.agent for entry in roster.entries.values() if entry.agent.id != agent_id]
        suggestions: list[Suggestion] = []
        for text in await suggest(self._models, self._model, agent, others, min(max(count, 1), _MOST_SUGGESTED)):
            question = Question(id=new_id(), tenant=tenant, text=text)
            classified = await self._classifiers.judge(question, roster, roster.available)
            best = classified.judgement.ranked[:1]
            suggestions.append(
                Suggestion(
                    text=text,
                    goes_to=best[0].agent_id if best else None,
                    confidence=round(classified.judgement.confidence, 4),
                )
            )
        return suggestions

    async def warnings(self, agent_id: str, *, tenant: str) -> Sequence[str]:
        """What makes an agent hard to reach as it is defined: sentences for whoever has just registered it."""
        known = await self._classifiers.known(tenant, self._registry.roster(tenant), patience=_PATIENCE_SECONDS)
        found = [
            f"'{overlap.line}' is much like '{overlap.other_line}' of agent '{overlap.other_id}'"
            for overlap in classifier.collisions(known.model, agent_id, above=_MUCH_ALIKE)
        ]
        agent = self._registry.roster(tenant).get(agent_id).agent
        if not (agent.description or agent.capabilities or agent.examples or agent.keywords):
            found.append("nothing says what the agent is for: only who names it reaches it")
        return found

    def status(self, *, tenant: str) -> RoutingStatus:
        """How routing is in this process."""
        known = self._classifiers.get(tenant)
        embeddings = self._classifiers.embeddings
        return RoutingStatus(
            strategy=self._router.policy.strategy,
            encoder=embeddings.name if embeddings is not None else None,
            fault=embeddings.last_error if embeddings is not None else self._encoder_fault,
            model=self._model,
            model_fault=self._model_fault,
            version=known.version.number if known is not None and known.version is not None else 0,
            learning_fault=self._learner.fault(tenant),
        )

    async def _prepare(self, model: str) -> None:
        """So that the first request in doubt does not wait for imports."""
        try:
            await self._models.prepare(model)
        except OrchestraError as error:
            self._model_fault = error.detail

    async def _in_conversation(self, question: Question, conversation_id: str) -> Question:
        if not is_id(conversation_id):
            raise ConversationNotFound("the request names a conversation that cannot be")
        conversation = await self._conversations.get(question.tenant, conversation_id)
        history = await self._conversations.messages(
            question.tenant,
            conversation_id,
            after=max(conversation.last_seq - self._history_messages, 0),
            limit=max(self._history_messages, 1),
        )
        return replace(
            question,
            conversation_id=conversation_id,
            active_agent=conversation.active_agent,
            user_id=question.user_id or conversation.user_id,
            context={**conversation.context, **question.context},
            history=history,
        )
