"""Learns from examples and feedback in the background, and lets a new version decide only where it does no worse."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agent_orchestra.core import classifier
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Example
from agent_orchestra.core.feedback import Feedback, examples_of, unseen
from agent_orchestra.errors import Conflict, OrchestraError, code_of
from agent_orchestra.runtime.classifying import Classifiers, Known
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.fitting import Fitter, Job
from agent_orchestra.runtime.registry import Registry
from agent_orchestra.runtime.telemetry import Telemetry
from agent_orchestra.runtime.versions import KEPT_CHARS, FeedbackLog, Version, Versions, VersionState

__all__ = ["Learner", "LearningPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPolicy:
    """When a refit is due: after ``feedback`` new entries, or ``seconds`` after the first of fewer.

    The agents' own examples are learned ``settle_seconds`` after they have changed for the last time. After a fit that
    failed, ``seconds`` pass before the next.
    """

    enabled: bool = True
    feedback: int = 20
    seconds: float = 300.0
    settle_seconds: float = 5.0


@dataclass(slots=True)
class _Attempts:
    """What was tried for one tenant, whatever came of it: up to where in its log, on which definitions.

    ``settling``: definitions that have changed, at the time ``since``. ``again``: when the next attempt may be made.
    """

    made: bool = False
    heard: int = 0
    definitions: str = ""
    settling: str = ""
    since: float = 0.0
    again: float = 0.0
    fault: str | None = None


class Learner:
    """Watches the log and the agents, and refits one tenant at a time."""

    def __init__(
        self,
        *,
        classifiers: Classifiers,
        registry: Registry,
        feedback: FeedbackLog,
        versions: Versions,
        fitter: Fitter,
        policy: LearningPolicy,
        telemetry: Telemetry,
    ) -> None:
        self._classifiers = classifiers
        self._registry = registry
        self._feedback = feedback
        self._versions = versions
        self._fitter = fitter
        self._policy = policy
        self._telemetry = telemetry
        self._attempts: dict[str, _Attempts] = {}
        self._fitting = asyncio.Lock()

    def fault(self, tenant: str) -> str | None:
        """What the last attempt to learn failed with; none after one that did not."""
        attempts = self._attempts.get(tenant)
        return attempts.fault if attempts is not None else None

    async def hear(self, given: Feedback) -> Feedback:
        """Keeps an entry of feedback. What it confirms is known at the next look, what it teaches takes a refit."""
        return await self._feedback.append(dataclasses.replace(given, text=given.text[:KEPT_CHARS]))

    async def watch(self, seconds: float) -> None:
        """Follows what other processes have heard and learned, and refits where it is due, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(seconds, self._look))
            tasks.create_task(self._every(seconds, self._learn))

    async def refit(self, tenant: str) -> Version | None:
        """Fits what there is to learn, and puts it to the test; none where there is nothing, or another was faster.

        Raises :class:`FitFailed`, :class:`EncoderFailed` or :class:`StorageUnavailable`; what decided goes on deciding.
        """
        if not self._classifiers.learns:
            raise Conflict(
                "the routing strategy does not learn; set orchestrator.routing_strategy to learned or hybrid"
            )
        async with self._fitting:
            known = await self._followed(tenant)
            attempts = self._attempts.setdefault(tenant, _Attempts())
            try:
                version = await self._refitted(tenant, known)
            except Exception as error:
                attempts.fault = error.detail if isinstance(error, OrchestraError) else code_of(error)
                attempts.again = asyncio.get_running_loop().time() + self._policy.seconds
                raise
            attempts.made, attempts.fault = True, None
            attempts.heard, attempts.definitions = known.heard, known.roster.examples
        if version is not None:
            await self._followed(tenant)
        return version

    async def roll_back(self, tenant: str) -> Version | None:
        """Withdraws the active version, with the feedback that made it; gives the one that is active then.

        Raises :class:`NothingToRollBack`.
        """
        version = await self._versions.roll_back(tenant)
        await self._followed(tenant)
        return version

    async def _refitted(self, tenant: str, known: Known) -> Version | None:
        agents = _agents(known)
        champion = await self._versions.load(tenant)
        seen = champion[0].feedback_seq if champion is not None else 0
        examples, fresh = await asyncio.to_thread(_to_learn, known.log, seen)
        if not examples and not any(agent.examples for agent in agents):
            return None
        texts = [*classifier.texts_of(agents), *(example.text for example in examples)]
        fitted = await self._fitter.fit(
            Job(
                agents=agents,
                examples=examples,
                vectors=await self._classifiers.vectors(tenant, texts),
                champion=champion[1] if champion is not None and not known.stale else b"",
                unseen=fresh,
            )
        )
        version = Version(
            tenant=tenant,
            number=0,
            state=VersionState.ACTIVE if fitted.better else VersionState.REJECTED,
            encoder=self._classifiers.encoder,
            feedback_seq=known.heard,
            definitions=known.roster.examples,
            examples=fitted.examples,
            loss=fitted.loss,
            champion_loss=fitted.champion_loss,
            created_ms=now_ms(),
        )
        expected = champion[0].number if champion is not None else None
        kept = await self._versions.add(version, fitted.learned, expected=expected)
        if kept is not None:
            self._telemetry.tell(
                "routing_learned",
                tenant=tenant,
                version=kept.number,
                state=kept.state,
                examples=kept.examples,
                loss=kept.loss,
                champion_loss=kept.champion_loss,
            )
        return kept

    async def _every(self, seconds: float, do: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await do()
            except Exception as error:  # noqa: BLE001  the watch goes on, whatever one look has met
                self._telemetry.warn("learning_interrupted", code=code_of(error))

    async def _look(self) -> None:
        head, active = await self._feedback.head(), await self._versions.active()
        for tenant in self._classifiers.tenants():
            known = self._classifiers.get(tenant)
            if known is None:
                continue
            number = known.version.number if known.version is not None else None
            learned = self._classifiers.learns and active.get(tenant) != number
            moved = known.roster is not self._registry.roster(tenant)
            if head != known.head or not known.whole or learned or moved:
                await self._followed(tenant)

    async def _learn(self) -> None:
        if not (self._policy.enabled and self._classifiers.learns):
            return
        kept = self._classifiers.tenants()
        self._attempts = {tenant: attempts for tenant, attempts in self._attempts.items() if tenant in kept}
        for tenant in kept:
            known = self._classifiers.get(tenant)
            if known is not None and self._due(tenant, known):
                try:
                    await self.refit(tenant)
                except Exception as error:  # noqa: BLE001  the other tenants learn, whatever this one has met
                    self._telemetry.warn("routing_not_learned", tenant=tenant, code=code_of(error))

    def _due(self, tenant: str, known: Known) -> bool:
        """Whether there is something to learn that the last attempt, whatever came of it, had not seen."""
        attempts = self._attempts.setdefault(tenant, _Attempts())
        now = asyncio.get_running_loop().time()
        if now < attempts.again or not known.whole:
            return False
        if known.stale and not attempts.made:
            return True
        last = known.history[0] if known.history else None
        heard = max(attempts.heard, last.feedback_seq if last is not None else 0)
        new = [entry for entry in known.log if entry.sequence > heard]
        if len(new) >= self._policy.feedback:
            return True
        if new and now_ms() - new[0].created_ms >= self._policy.seconds * 1_000:
            return True
        return self._settled(attempts, known.roster.examples, last.definitions if last else "", now)

    def _settled(self, attempts: _Attempts, digest: str, learned: str, now: float) -> bool:
        """Whether the agents' own examples differ from those of the last attempt, and have been so for a while."""
        if digest in (learned, attempts.definitions):
            return False
        if attempts.settling != digest:
            attempts.settling, attempts.since = digest, now
        return now - attempts.since >= self._policy.settle_seconds

    async def _followed(self, tenant: str) -> Known:
        return await self._classifiers.followed(tenant, self._registry.roster(tenant))


def _to_learn(log: Sequence[Feedback], seen: int) -> tuple[list[Example], list[bool]]:
    """The examples that a log amounts to, and for each whether nothing was said of it up to the entry ``seen``."""
    examples = examples_of(log)
    return examples, unseen(examples, log, seen)


def _agents(known: Known) -> Sequence[Agent]:
    return tuple(known.roster.available.values())
