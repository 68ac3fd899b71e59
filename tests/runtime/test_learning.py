"""What is learned, when, and that nothing which goes wrong on the way changes what decides."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from agent_orchestra.adapters.fitting import ProcessFitter
from agent_orchestra.core import classifier
from agent_orchestra.core.feedback import Source
from agent_orchestra.core.routing import Stage, Strategy
from agent_orchestra.errors import Conflict, FitFailed, NothingToRollBack, StorageUnavailable
from agent_orchestra.runtime.fitting import Fitted, Fitter, Job
from agent_orchestra.runtime.learning import Learner, LearningPolicy
from agent_orchestra.runtime.versions import VersionState
from tests.runtime.test_classifying import AGENTS, GARDEN, SHARED, Known, Words, opened, said
from tests.services.waiting import wait_until

ACTIVE, RETIRED, REJECTED, ROLLED_BACK = VersionState

#: Entries of feedback that make a refit due.
ENOUGH: Final = 4
#: Seconds between two looks.
OFTEN: Final = 0.01
#: As good as never.
LONG: Final = 3_600.0

EAGER: Final = LearningPolicy(feedback=ENOUGH, seconds=LONG, settle_seconds=LONG)


class Tutor:
    """Fits here and now, or fails, and says of what it has fitted what it is told. Conforms to :class:`Fitter`."""

    def __init__(self) -> None:
        self.better = True
        self.raises: list[Exception] = []
        self.jobs: list[Job] = []
        self.may_fit = asyncio.Event()
        self.may_fit.set()
        self.fitting = 0
        self.most = 0

    async def fit(self, job: Job) -> Fitted:
        self.jobs.append(job)
        self.fitting += 1
        self.most = max(self.most, self.fitting)
        try:
            await self.may_fit.wait()
        finally:
            self.fitting -= 1
        if self.raises:
            raise self.raises.pop(0)
        model = classifier.fit(job.agents, job.examples, job.vectors)
        return Fitted(learned=model.dump(), examples=model.examples, loss=0.25, champion_loss=0.5, better=self.better)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A learner on real parts, with its tutor."""

    known: Known
    learner: Learner
    tutor: Tutor

    async def tell(self, *texts: str, agent_id: str = "billing", tenant: str = SHARED) -> None:
        """People say of texts whose they are."""
        for number, text in enumerate(texts):
            await self.learner.hear(said(text, agent_id, author=f"author {number}", tenant=tenant))

    async def states(self, tenant: str = SHARED) -> list[VersionState]:
        """Of all versions, oldest first."""
        return [version.state for version in reversed(await self.known.versions.history(tenant))]

    @property
    def version(self) -> int:
        """What decides now, as far as it is known here; 0: the definitions."""
        known = self.known.classifiers.get(SHARED)
        return known.version.number if known is not None and known.version is not None else 0


@asynccontextmanager
async def taught(
    folder: Path,
    *,
    tutor: Tutor | None = None,
    fitter: Fitter | None = None,
    policy: LearningPolicy = EAGER,
    encoder: Words | None = None,
    strategy: Strategy = Strategy.HYBRID,
    register: bool = True,
) -> AsyncGenerator[Lesson]:
    async with opened(folder, encoder, strategy=strategy) as known:
        if register:
            await known.register(*AGENTS)
        tutor = tutor or Tutor()
        learner = Learner(
            classifiers=known.classifiers,
            registry=known.registry,
            feedback=known.feedback,
            versions=known.versions,
            fitter=fitter or tutor,
            policy=policy,
            telemetry=known.telemetry,
        )
        await known.follow()
        yield Lesson(known=known, learner=learner, tutor=tutor)


@asynccontextmanager
async def watched(learner: Learner) -> AsyncGenerator[asyncio.Task[None]]:
    watch = asyncio.create_task(learner.watch(OFTEN))
    try:
        yield watch
        assert not watch.done(), "the watch has ended"
    finally:
        watch.cancel()
        await asyncio.wait({watch})


class Looks:
    """Counts the looks of a watch, by what it reads at each."""

    def __init__(self, lesson: Lesson) -> None:
        self._feedback = lesson.known.feedback

    async def pass_by(self, number: int = 5) -> None:
        """Returns after so many more."""
        enough = self._feedback.heads + number
        await wait_until(lambda: self._feedback.heads >= enough, "the watch does not look")


def figures(number: int) -> list[str]:
    """So many texts that no definition would lead to."""
    return [f"{word} the quarterly figures" for word in "show send check count forget find read print".split()[:number]]


# --- when


async def test_enough_feedback_is_learned_from(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: lesson.version == 1, "nothing was learned")
        found = await lesson.known.judge("draw the quarterly figures")
        assert (found.judgement.ranked[0].agent_id, found.stage, found.version) == ("billing", Stage.LEARNED, 1)
        assert {example.text for example in lesson.tutor.jobs[0].examples} == set(figures(ENOUGH))


async def test_less_is_not_learned_from_yet(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        await lesson.tell(*figures(ENOUGH - 1))
        await Looks(lesson).pass_by()
        assert lesson.tutor.jobs == []


async def test_less_is_learned_from_when_it_is_old_enough(tmp_path: Path) -> None:
    policy = dataclasses.replace(EAGER, feedback=1_000, seconds=0.05)
    async with taught(tmp_path, policy=policy) as lesson, watched(lesson.learner):
        await lesson.tell(*figures(1))
        await wait_until(lambda: lesson.version == 1, "nothing was learned")


async def test_examples_of_definitions_are_learned_once_they_have_settled(tmp_path: Path) -> None:
    policy = dataclasses.replace(EAGER, settle_seconds=0.05)
    async with taught(tmp_path, policy=policy) as lesson, watched(lesson.learner):
        await Looks(lesson).pass_by()
        assert lesson.tutor.jobs == []
        await lesson.known.registry.change(SHARED, "billing", examples=("show the quarterly figures",))
        await lesson.known.follow()
        await wait_until(lambda: lesson.version == 1, "nothing was learned")
        await Looks(lesson).pass_by()
        assert len(lesson.tutor.jobs) == 1


async def test_examples_that_have_not_settled_are_not_learned(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        await lesson.known.registry.change(SHARED, "billing", examples=("show the quarterly figures",))
        await lesson.known.follow()
        await Looks(lesson).pass_by()
        assert lesson.tutor.jobs == []


async def test_definitions_that_change_are_learned_though_nobody_asks_for_them(tmp_path: Path) -> None:
    policy = dataclasses.replace(EAGER, settle_seconds=0.05)
    async with taught(tmp_path, policy=policy) as lesson, watched(lesson.learner):
        await lesson.known.registry.change(SHARED, "billing", examples=("show the quarterly figures",))
        await wait_until(lambda: lesson.version == 1, "nothing was learned")


async def test_what_was_learned_is_not_learned_again(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: lesson.version == 1, "nothing was learned")
        await Looks(lesson).pass_by()
        assert len(lesson.tutor.jobs) == 1


async def test_a_start_is_no_reason_to_learn_again(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        await lesson.tell(*figures(ENOUGH))
        await lesson.learner.refit(SHARED)
    async with taught(tmp_path, register=False) as lesson, watched(lesson.learner):
        await Looks(lesson).pass_by()
        assert lesson.tutor.jobs == []
        assert lesson.version == 1


async def test_where_learning_is_off_nothing_is_learned_by_itself(tmp_path: Path) -> None:
    policy = dataclasses.replace(EAGER, enabled=False)
    async with taught(tmp_path, policy=policy) as lesson, watched(lesson.learner):
        await lesson.tell(*figures(ENOUGH))
        await Looks(lesson).pass_by()
        assert lesson.tutor.jobs == []
        assert (await lesson.learner.refit(SHARED)) is not None


@pytest.mark.parametrize("strategy", [Strategy.SIMPLE, Strategy.SEMANTIC])
async def test_a_strategy_that_does_not_learn_says_so(tmp_path: Path, strategy: Strategy) -> None:
    async with taught(tmp_path, strategy=strategy) as lesson, watched(lesson.learner):
        await lesson.tell(*figures(ENOUGH))
        await Looks(lesson).pass_by()
        assert lesson.tutor.jobs == []
        with pytest.raises(Conflict):
            await lesson.learner.refit(SHARED)


async def test_where_there_is_nothing_to_learn_nothing_is_fitted(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        assert await lesson.learner.refit(SHARED) is None
        assert lesson.tutor.jobs == []
        assert await lesson.states() == []


async def test_thumbs_that_name_nobody_are_looked_at_once(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        for text in figures(ENOUGH):
            thumb = said(text, None, source=Source.THUMBS)
            await lesson.learner.hear(dataclasses.replace(thumb, rejected="travel"))
        await Looks(lesson).pass_by()
        assert lesson.tutor.jobs == []
        assert lesson.known.lines.all == []


# --- what comes of it


async def test_a_version_that_does_worse_never_decides_and_is_not_tried_again(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        lesson.tutor.better = False
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: bool(lesson.known.lines.of("routing_learned")), "nothing was fitted")
        await Looks(lesson).pass_by()
        assert await lesson.states() == [REJECTED]
        assert len(lesson.tutor.jobs) == 1
        assert lesson.version == 0
        assert (await lesson.known.judge("refund a payment")).stage is Stage.LEXICAL


async def test_after_a_version_that_did_worse_more_feedback_is_another_reason(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        lesson.tutor.better = False
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: bool(lesson.known.lines.of("routing_learned")), "nothing was fitted")
        lesson.tutor.better = True
        await lesson.tell(*figures(2 * ENOUGH)[ENOUGH:])
        await wait_until(lambda: lesson.version == 2, "nothing was learned")
        assert await lesson.states() == [REJECTED, ACTIVE]
        assert len(lesson.tutor.jobs[1].examples) == 2 * ENOUGH


async def test_the_champion_is_judged_by_what_it_had_not_seen(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        await lesson.tell(*figures(ENOUGH))
        await lesson.learner.refit(SHARED)
        await lesson.tell("draw the quarterly figures")
        await lesson.learner.refit(SHARED)
        first, second = lesson.tutor.jobs
        assert first.champion == b""
        assert list(first.unseen) == [True] * ENOUGH
        assert second.champion
        assert [example.text for example, new in zip(second.examples, second.unseen, strict=True) if new] == [
            "draw the quarterly figures"
        ]
        assert await lesson.states() == [RETIRED, ACTIVE]


async def test_vectors_of_every_text_come_with_the_job(tmp_path: Path) -> None:
    async with taught(tmp_path, encoder=Words()) as lesson:
        await lesson.tell(*figures(ENOUGH))
        await lesson.learner.refit(SHARED)
        [job] = lesson.tutor.jobs
        assert {*classifier.texts_of(AGENTS), *figures(ENOUGH)} == set(job.vectors)


async def test_a_long_text_is_kept_as_far_as_it_is_read(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        kept = await lesson.learner.hear(said("x" * 200_000, "billing"))
        assert len(kept.text) == 8_000


async def test_a_version_that_cannot_be_used_is_tried_to_be_replaced_once(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        lesson.tutor.better = False
        await lesson.tell(*figures(1))
        await lesson.known.keep(b"of another release", encoder="")
        async with watched(lesson.learner):
            await wait_until(lambda: bool(lesson.tutor.jobs), "nothing was fitted")
            await Looks(lesson).pass_by()
            assert len(lesson.tutor.jobs) == 1


async def test_a_version_of_another_encoder_is_replaced(tmp_path: Path) -> None:
    async with taught(tmp_path, encoder=Words()) as lesson:
        await lesson.tell(*figures(ENOUGH))
        await lesson.learner.refit(SHARED)
    async with (
        taught(tmp_path, encoder=Words("other words", dimension=64), register=False) as lesson,
        watched(lesson.learner),
    ):
        await wait_until(lambda: lesson.version == 2, "nothing was learned")
        assert lesson.tutor.jobs[0].champion == b""
        assert (await lesson.known.judge("draw the quarterly figures")).stage is Stage.LEARNED


# --- the way back


async def test_to_roll_back_makes_the_version_before_decide(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        for word in ("first", "second"):
            await lesson.tell(f"the {word} thing")
            await lesson.learner.refit(SHARED)
        assert lesson.version == 2
        back = await lesson.learner.roll_back(SHARED)
        assert back is not None
        assert (back.number, lesson.version) == (1, 1)
        assert await lesson.states() == [ACTIVE, ROLLED_BACK]


async def test_what_made_a_bad_version_is_set_aside_for_good(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        await lesson.tell("the first thing")
        await lesson.learner.refit(SHARED)
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: lesson.version == 2, "nothing was learned")
        await lesson.learner.roll_back(SHARED)
        await Looks(lesson).pass_by()
        assert len(lesson.tutor.jobs) == 2
        assert await lesson.known.remembered(figures(1)[0]) is None
        await lesson.tell("the third thing")
        await lesson.learner.refit(SHARED)
        assert [example.text for example in lesson.tutor.jobs[-1].examples] == ["the first thing", "the third thing"]


async def test_before_the_first_version_are_the_definitions(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        await lesson.tell(*figures(ENOUGH))
        await lesson.learner.refit(SHARED)
        assert await lesson.learner.roll_back(SHARED) is None
        assert (await lesson.known.judge("refund a payment")).stage is Stage.LEXICAL
        with pytest.raises(NothingToRollBack):
            await lesson.learner.roll_back(SHARED)


# --- when it goes wrong


async def test_a_fit_that_fails_is_told_and_changes_nothing(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        lesson.tutor.raises = [FitFailed("no memory")]
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: lesson.learner.fault(SHARED) == "no memory", "the failure is not told")
        await Looks(lesson).pass_by()
        assert len(lesson.tutor.jobs) == 1
        assert await lesson.states() == []
        assert lesson.known.lines.of("routing_not_learned") == [{"tenant": SHARED, "code": "fit_failed"}]
        await lesson.learner.refit(SHARED)
        assert lesson.learner.fault(SHARED) is None


async def test_a_fit_that_failed_is_tried_again_after_a_while(tmp_path: Path) -> None:
    policy = dataclasses.replace(EAGER, seconds=0.2)
    async with taught(tmp_path, policy=policy) as lesson, watched(lesson.learner):
        lesson.tutor.raises = [FitFailed("no memory")]
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: lesson.version == 1, "nothing was learned")
        assert len(lesson.tutor.jobs) == 2
        assert lesson.learner.fault(SHARED) is None


@pytest.mark.parametrize("error", [FitFailed("no memory"), StorageUnavailable("away")], ids=repr)
async def test_one_tenant_that_cannot_learn_keeps_no_other_from_it(tmp_path: Path, error: Exception) -> None:
    async with taught(tmp_path) as lesson:
        for tenant in ("acme", "globex"):
            await lesson.known.register(*AGENTS, tenant=tenant)
            await lesson.known.follow(tenant)
            await lesson.tell(*figures(ENOUGH), tenant=tenant)
            await lesson.known.follow(tenant)
        lesson.tutor.raises = [error]
        async with watched(lesson.learner):
            await wait_until(lambda: len(lesson.tutor.jobs) > 1, "the other was not fitted")
            await wait_until(lambda: bool(lesson.known.lines.of("routing_learned")), "the other has not learned")
            await Looks(lesson).pass_by()
            assert len(lesson.tutor.jobs) == 2
        assert [await lesson.states("acme"), await lesson.states("globex")] == [[], [ACTIVE]]


async def test_what_is_confirmed_while_a_fit_is_under_way_is_known_at_the_next_look(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        lesson.tutor.may_fit.clear()
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: lesson.tutor.fitting == 1, "nothing is fitted")
        await lesson.tell("the usual", agent_id="travel")
        await Looks(lesson).pass_by()
        assert await lesson.known.remembered("the usual") == "travel"
        lesson.tutor.may_fit.set()
        await wait_until(lambda: lesson.version == 1, "nothing was learned")


async def test_who_gives_up_waiting_for_a_fit_does_not_end_the_watch(tmp_path: Path) -> None:
    encoder = Words()
    async with taught(tmp_path, encoder=encoder) as lesson, watched(lesson.learner) as watch:
        encoder.held = {"water the roses"}
        await lesson.known.register(GARDEN)
        await lesson.tell(*figures(1))
        waiting = asyncio.create_task(lesson.learner.refit(SHARED))
        await wait_until(lambda: encoder.waiting == 1, "the new agent's lines were not encoded")
        waiting.cancel()
        await asyncio.wait({waiting})
        encoder.let()
        await Looks(lesson).pass_by()
        assert not watch.done()


async def test_no_two_fits_run_at_once(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        await lesson.tell(*figures(ENOUGH))
        lesson.tutor.may_fit.clear()
        asked = [asyncio.create_task(lesson.learner.refit(SHARED)) for _ in range(3)]
        await wait_until(lambda: lesson.tutor.fitting == 1, "nothing is fitted")
        lesson.tutor.may_fit.set()
        await asyncio.gather(*asked)
        assert lesson.tutor.most == 1
        assert lesson.version == len(lesson.tutor.jobs)


async def test_a_look_that_fails_is_not_the_last(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        lesson.known.feedback.fails = True
        await wait_until(lambda: bool(lesson.known.lines.of("learning_interrupted")), "the failure is not told")
        lesson.known.feedback.fails = False
        await lesson.tell(*figures(ENOUGH))
        await wait_until(lambda: lesson.version == 1, "nothing was learned")


async def test_feedback_that_could_not_be_read_is_read_later(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson, watched(lesson.learner):
        await lesson.tell("the usual", agent_id="travel")
        lesson.known.feedback.reads_fail = True
        await wait_until(lambda: bool(lesson.known.lines.of("classifier_not_refreshed")), "nothing was read")
        lesson.known.feedback.reads_fail = False
        await wait_until(lambda: bool(memory(lesson)), "what was confirmed is not known")
        assert await lesson.known.remembered("the usual") == "travel"


def memory(lesson: Lesson) -> Any:
    known = lesson.known.classifiers.get(SHARED)
    return known.memory if known is not None else None


# --- several processes


async def test_of_two_that_learn_at_once_one_wins_and_the_other_takes_it_over(tmp_path: Path) -> None:
    async with taught(tmp_path) as one, taught(tmp_path, register=False) as two:
        await one.tell(*figures(ENOUGH))
        two.tutor.may_fit.clear()
        late = asyncio.create_task(two.learner.refit(SHARED))
        await wait_until(lambda: two.tutor.fitting == 1, "nothing is fitted")
        first = await one.learner.refit(SHARED)
        assert first is not None
        assert first.number == 1
        two.tutor.may_fit.set()
        assert await late is None
        async with watched(two.learner):
            await wait_until(lambda: two.version == 1, "the other's version is not known")
        assert await one.states() == [ACTIVE]
        assert (await two.known.judge("draw the quarterly figures")).version == 1


async def test_what_another_process_has_heard_learned_and_withdrawn_is_followed(tmp_path: Path) -> None:
    async with taught(tmp_path) as one, taught(tmp_path, register=False) as two, watched(two.learner):
        await one.tell("the usual", agent_id="travel")
        await wait_until(lambda: bool(memory(two)), "what was confirmed elsewhere is not known")
        await one.learner.refit(SHARED)
        await wait_until(lambda: two.version == 1, "what was learned elsewhere does not decide")
        await one.learner.roll_back(SHARED)
        await wait_until(lambda: two.version == 0, "what was withdrawn elsewhere still decides")


# --- the end


async def test_to_end_the_watch_ends_the_fit(tmp_path: Path) -> None:
    async with taught(tmp_path) as lesson:
        async with watched(lesson.learner):
            lesson.tutor.may_fit.clear()
            await lesson.tell(*figures(ENOUGH))
            await wait_until(lambda: lesson.tutor.fitting == 1, "nothing is fitted")
        assert lesson.tutor.fitting == 0
        assert await lesson.states() == []


@pytest.mark.slow
async def test_a_process_that_fits_ends_with_the_watch(tmp_path: Path) -> None:
    async with taught(tmp_path, fitter=ProcessFitter()) as lesson:
        before = children()
        async with watched(lesson.learner):
            await lesson.tell(*figures(ENOUGH))
            await wait_until(lambda: children() != before, "no process fits")
        assert children() == before
        assert await lesson.states() == []


@pytest.mark.slow
async def test_what_a_process_has_learned_decides(tmp_path: Path) -> None:
    async with taught(tmp_path, fitter=ProcessFitter()) as lesson:
        await lesson.tell(*figures(ENOUGH))
        await lesson.tell("water the hotel garden", "walk the hotel dog", agent_id="travel")
        version = await lesson.learner.refit(SHARED)
        assert version is not None
        assert version.state in (ACTIVE, REJECTED)
        assert version.examples >= ENOUGH


def children() -> set[str]:
    """The processes that this one has started, and that have not ended."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not listed.exists():
        pytest.skip("this system does not tell of processes in /proc")
    return set(listed.read_text().split())
