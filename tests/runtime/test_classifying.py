"""The estimate follows the agents, whatever becomes of the encoder, the storage or what was learned."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from agent_orchestra.adapters.offline import OfflineKind
from agent_orchestra.adapters.sql.agents import SqlAgentStore
from agent_orchestra.adapters.sql.database import open_database
from agent_orchestra.adapters.sql.decisions import SqlDecisionLog
from agent_orchestra.adapters.sql.learning import SqlFeedbackLog, SqlVectorStore, SqlVersions
from agent_orchestra.core import classifier
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Example
from agent_orchestra.core.feedback import Feedback, Source
from agent_orchestra.core.routing import Stage, Strategy
from agent_orchestra.errors import EncoderFailed, StorageUnavailable
from agent_orchestra.runtime.classifying import Classifiers
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.embeddings import Embeddings
from agent_orchestra.runtime.encoding import Encoder
from agent_orchestra.runtime.registry import Registry
from agent_orchestra.runtime.router import Classified, Question
from agent_orchestra.runtime.telemetry import Telemetry
from agent_orchestra.runtime.versions import FeedbackLog, Version, VersionState
from tests.runtime.parts import Lines
from tests.services.waiting import wait_until

SHARED: Final = "default"
PATIENT: Final = 30.0
#: Tenants of whom more is kept than a floor that was made a moment ago.
MOST: Final = 32


def agent(agent_id: str, *lines: str, **more: Any) -> Agent:
    return Agent(id=agent_id, kind="offline", capabilities=lines, settings={"knowledge": ["Nothing."]}, **more)


BILLING: Final = agent("billing", "explain an invoice", "refund a payment")
REPAIRS: Final = agent("repairs", "fix a broken screen", "replace the battery")
TRAVEL: Final = agent("travel", "book a flight", "find a hotel")
GARDEN: Final = agent("garden", "water the roses", "mow the lawn")
AGENTS: Final = (BILLING, REPAIRS, TRAVEL)


class Words:
    """Texts as bags of hashed words. It can be made to fail, and held. Conforms to :class:`Encoder`."""

    def __init__(self, name: str = "words", dimension: int = 256) -> None:
        self.name = name
        self.dimension = dimension
        self.fails = False
        #: Calls with one of these texts fail.
        self.refused: set[str] = set()
        #: Calls with one of these texts wait.
        self.held: set[str] = set()
        self.asked: list[Sequence[str]] = []
        self.waiting = 0
        self.closed = False
        self._let = asyncio.Event()

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(tuple(texts))
        if not self.held.isdisjoint(texts):
            self.waiting += 1
            try:
                await self._let.wait()
            finally:
                self.waiting -= 1
        if self.fails or not self.refused.isdisjoint(texts):
            raise EncoderFailed("the encoder is broken")
        return np.stack([self._row(text) for text in texts])

    async def close(self) -> None:
        self.closed = True

    @property
    def encoded(self) -> list[str]:
        """Every text that it was ever given."""
        return [text for texts in self.asked for text in texts]

    def let(self) -> None:
        self.held.clear()
        self._let.set()

    def _row(self, text: str) -> NDArray[np.float32]:
        row = np.zeros(self.dimension, np.float32)
        for word in text.casefold().split():
            row[zlib.crc32(word.encode()) % self.dimension] += 1
        return row / max(float(np.linalg.norm(row)), 1e-9)


class Unreadable:
    """A log of feedback that can be made unavailable. Conforms to :class:`FeedbackLog`."""

    def __init__(self, inner: FeedbackLog) -> None:
        self.inner = inner
        #: All calls fail, or those that read entries.
        self.fails = self.reads_fail = False
        self.heads = 0

    async def append(self, given: Feedback) -> Feedback:
        self._check(self.fails)
        return await self.inner.append(given)

    async def read(self, tenant: str, *, after: int = 0, limit: int = 100_000) -> Sequence[Feedback]:
        self._check(self.fails or self.reads_fail)
        return await self.inner.read(tenant, after=after, limit=limit)

    async def head(self) -> int:
        self.heads += 1
        self._check(self.fails)
        return await self.inner.head()

    def _check(self, fails: bool) -> None:
        if fails:
            raise StorageUnavailable("the log of feedback is away")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an estimate is made with, and what it is made from."""

    registry: Registry
    classifiers: Classifiers
    embeddings: Embeddings | None
    feedback: Unreadable
    versions: SqlVersions
    decisions: SqlDecisionLog
    telemetry: Telemetry
    lines: Lines

    async def register(self, *agents: Agent, tenant: str = SHARED) -> None:
        for agent in agents:
            await self.registry.register(tenant, agent)

    async def judge(self, text: str, *, tenant: str = SHARED) -> Classified:
        roster = self.registry.roster(tenant)
        question = Question(id=new_id(), tenant=tenant, text=text)
        return await self.classifiers.judge(question, roster, roster.available)

    async def chosen(self, text: str, *, tenant: str = SHARED) -> str | None:
        """Who is likeliest, if anybody is likely enough."""
        judgement = (await self.judge(text, tenant=tenant)).judgement
        return judgement.ranked[0].agent_id if judgement.accepted else None

    async def reaches(self, text: str, agent_id: str, *, tenant: str = SHARED) -> None:
        """Returns once a request goes to an agent: on a busy machine the first may come before the change is known."""
        for _ in range(500):
            if await self.chosen(text, tenant=tenant) == agent_id:
                return
            # A request need not wait for anything, and would leave nobody else his turn.
            await asyncio.sleep(0.01)
        pytest.fail(f"'{text}' does not go to '{agent_id}'")

    async def follow(self, tenant: str = SHARED) -> None:
        """Returns when all that there is to know is known."""
        await self.classifiers.followed(tenant, self.registry.roster(tenant))

    async def remembered(self, text: str, *, tenant: str = SHARED) -> str | None:
        return await self.classifiers.remembered(tenant, self.registry.roster(tenant), text)

    async def confirm(self, text: str, agent_id: str, *, author: str = "ann", tenant: str = SHARED) -> Feedback:
        return await self.feedback.append(said(text, agent_id, author=author, tenant=tenant))

    async def teach(self, *examples: Example, encoder: Words | None = None, tenant: str = SHARED) -> Version:
        """Makes what these examples teach the active version."""
        agents = tuple(self.registry.roster(tenant).available.values())
        texts = [*classifier.texts_of(agents), *(example.text for example in examples)]
        vectors = {} if encoder is None else dict(zip(texts, await Words().encode(texts), strict=True))
        learned = classifier.fit(agents, examples, vectors).dump()
        return await self.keep(learned, encoder="" if encoder is None else encoder.name, tenant=tenant)

    async def keep(self, learned: bytes, *, encoder: str, tenant: str = SHARED) -> Version:
        version = Version(
            tenant=tenant,
            number=0,
            state=VersionState.ACTIVE,
            encoder=encoder,
            feedback_seq=0,
            definitions="",
            examples=1,
            loss=None,
            champion_loss=None,
            created_ms=now_ms(),
        )
        kept = await self.versions.add(version, learned, expected=(await self.versions.active()).get(tenant))
        assert kept is not None
        return kept


@asynccontextmanager
async def opened(
    folder: Path,
    encoder: Encoder | None = None,
    *,
    strategy: Strategy = Strategy.HYBRID,
    encoder_timeout: float = PATIENT,
    encoder_pause: float = PATIENT,
) -> AsyncGenerator[Known]:
    """The real parts on a file in the folder, as a process of its own would have them."""
    database = await open_database(f"sqlite:///{folder / 'orchestra.db'}")
    await database.share()
    lines = Lines()
    telemetry = Telemetry(lines, detailed=False)
    registry = Registry(
        store=SqlAgentStore(database), kinds={"offline": OfflineKind()}, shared_tenant=SHARED, telemetry=telemetry
    )
    await registry.start(None)
    embeddings = None
    if encoder is not None:
        embeddings = Embeddings(
            encoder, SqlVectorStore(database), timeout=encoder_timeout, pause=encoder_pause, telemetry=telemetry
        )
    feedback, versions = Unreadable(SqlFeedbackLog(database)), SqlVersions(database)
    classifiers = Classifiers(
        strategy=strategy,
        embeddings=embeddings,
        versions=versions,
        feedback=feedback,
        shared_tenant=SHARED,
        telemetry=telemetry,
    )
    try:
        yield Known(
            registry=registry,
            classifiers=classifiers,
            embeddings=embeddings,
            feedback=feedback,
            versions=versions,
            decisions=SqlDecisionLog(database),
            telemetry=telemetry,
            lines=lines,
        )
    finally:
        await classifiers.close()
        await database.close()


def said(
    text: str, agent_id: str | None, *, source: Source = Source.HUMAN, author: str = "ann", tenant: str = SHARED
) -> Feedback:
    return Feedback(
        tenant=tenant,
        decision_id=new_id(),
        text=text,
        agent_id=agent_id,
        source=source,
        author=author,
        created_ms=now_ms(),
    )


#: What no definition would lead to, said often enough to be learned.
TAUGHT: Final = tuple(Example(text=f"{word} the quarterly figures", agent_id="billing") for word in "a b c d".split())


# --- the agents as they are


async def test_a_request_goes_to_the_agent_whose_words_it_has(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        found = await known.judge("please refund my payment")
        assert found.judgement.ranked[0].agent_id == "billing"
        assert (found.stage, found.version, found.degraded) == (Stage.LEXICAL, 0, ())


async def test_with_an_encoder_meanings_are_compared(tmp_path: Path) -> None:
    async with opened(tmp_path, Words()) as known:
        await known.register(*AGENTS)
        await known.follow()
        assert (await known.judge("refund a payment")).stage is Stage.SEMANTIC


@pytest.mark.parametrize("encoding", [False, True], ids=["words", "meanings"])
async def test_a_new_agent_is_usable_in_the_next_request(tmp_path: Path, *, encoding: bool) -> None:
    async with opened(tmp_path, Words() if encoding else None) as known:
        await known.register(*AGENTS)
        await known.follow()
        await known.register(GARDEN)
        await known.reaches("water the roses", "garden")


async def test_the_first_agent_of_all_is_usable_in_the_next_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        assert (await known.judge("water the roses")).judgement.ranked == ()
        await known.register(GARDEN)
        await known.reaches("water the roses", "garden")


async def test_a_changed_agent_is_known_by_what_it_says_now(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        await known.follow()
        await known.registry.change(SHARED, "travel", capabilities=("water the roses",))
        await known.reaches("water the roses", "travel")


async def test_what_is_gone_is_not_chosen(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        await known.follow()
        await known.registry.change(SHARED, "billing", enabled=False)
        await known.registry.unregister(SHARED, "repairs")
        ranked = (await known.judge("refund a payment for a broken screen")).judgement.ranked
        assert [scored.agent_id for scored in ranked] == ["travel"]


async def test_what_is_gone_is_not_chosen_by_the_model_of_before_either(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.held = {"water the roses"}
        await known.registry.change(SHARED, "billing", enabled=False)
        await known.registry.unregister(SHARED, "repairs")
        await known.register(GARDEN)
        following = asyncio.create_task(known.follow())
        await wait_until(lambda: encoder.waiting == 1, "the new agent's lines were not encoded")
        ranked = (await known.judge("refund a payment for a broken screen")).judgement.ranked
        assert not {"billing", "repairs"} & {scored.agent_id for scored in ranked}
        encoder.let()
        await following


async def test_a_request_works_on_the_agents_that_it_began_with(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        began_with = known.registry.roster(SHARED)
        await known.register(GARDEN)
        await known.follow()
        question = Question(id=new_id(), tenant=SHARED, text="water the roses")
        found = await known.classifiers.judge(question, began_with, began_with.available)
        assert "garden" not in {scored.agent_id for scored in found.judgement.ranked}


async def test_a_request_that_began_before_a_change_does_not_undo_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        began_with = known.registry.roster(SHARED)
        await known.register(GARDEN)
        await known.follow()
        question = Question(id=new_id(), tenant=SHARED, text="refund a payment")
        await known.classifiers.known(SHARED, began_with, patience=PATIENT)
        await known.classifiers.judge(question, began_with, began_with.available)
        current = known.classifiers.get(SHARED)
        assert current is not None
        assert current.roster is known.registry.roster(SHARED)


async def test_those_who_wait_for_a_change_get_it_though_another_is_under_way(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.held = {"water the roses"}
        await known.register(GARDEN)
        first = asyncio.create_task(known.follow())
        await wait_until(lambda: encoder.waiting == 1, "the new agent's lines were not encoded")
        await known.register(agent("kitchen", "bake a cake"))
        roster = known.registry.roster(SHARED)
        following = asyncio.create_task(known.classifiers.known(SHARED, roster, patience=PATIENT))
        encoder.let()
        assert (await following).roster is roster
        await first


async def test_while_new_agents_are_encoded_the_others_are_known_as_before(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.held = {"water the roses"}
        await known.register(GARDEN)
        following = asyncio.create_task(known.follow())
        await wait_until(lambda: encoder.waiting == 1, "the new agent's lines were not encoded")
        assert (await known.judge("refund a payment")).stage is Stage.SEMANTIC
        assert await known.chosen("water the roses") == "garden"
        encoder.let()
        await following


# --- the encoder


async def test_where_the_encoder_fails_words_decide_and_the_decision_says_so(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.fails = True
        found = await known.judge("refund a payment")
        assert found.judgement.ranked[0].agent_id == "billing"
        assert (found.stage, found.degraded) == (Stage.LEXICAL, ("encoder_failed",))


async def test_where_the_encoder_hangs_words_decide(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder, encoder_timeout=0.05) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.held = {"refund a payment now"}
        found = await known.judge("refund a payment now")
        assert found.judgement.ranked[0].agent_id == "billing"
        assert (found.stage, found.degraded) == (Stage.LEXICAL, ("encoder_failed",))
        assert encoder.waiting == 0


async def test_an_encoder_that_has_just_failed_is_not_waited_for_again(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.fails = True
        await known.judge("refund a payment")
        calls = len(encoder.asked)
        assert (await known.judge("book a flight")).degraded == ("encoder_failed",)
        assert len(encoder.asked) == calls


async def test_an_encoder_that_fails_at_the_start_is_used_once_it_works(tmp_path: Path) -> None:
    encoder = Words()
    encoder.fails = True
    async with opened(tmp_path, encoder, encoder_pause=0.0) as known:
        await known.register(*AGENTS)
        await known.follow()
        found = await known.judge("refund a payment")
        assert (found.judgement.ranked[0].agent_id, found.stage) == ("billing", Stage.LEXICAL)
        assert found.degraded == ("encoder_not_ready",)
        encoder.fails = False
        await known.follow()
        found = await known.judge("refund a payment")
        assert (found.judgement.ranked[0].agent_id, found.stage) == ("billing", Stage.SEMANTIC)


async def test_an_encoder_that_fails_at_a_change_is_used_for_it_once_it_works(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder, encoder_pause=0.0) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.fails = True
        await known.register(GARDEN)
        await known.follow()
        await known.reaches("water the roses", "garden")
        encoder.fails = False
        await known.follow()
        found = await known.judge("water the roses")
        assert (found.judgement.ranked[0].agent_id, found.stage) == ("garden", Stage.SEMANTIC)


async def test_an_agent_whose_lines_cannot_be_encoded_is_known_by_its_words_and_the_others_as_before(
    tmp_path: Path,
) -> None:
    encoder = Words()
    encoder.refused = {"water the roses"}
    async with opened(tmp_path, encoder, encoder_pause=0.0) as known:
        await known.register(*AGENTS)
        await known.follow()
        await known.register(GARDEN)
        await known.follow()
        await known.reaches("mow the lawn", "garden")
        found = await known.judge("refund a payment")
        assert (found.judgement.ranked[0].agent_id, found.stage) == ("billing", Stage.SEMANTIC)


async def test_a_new_agent_does_not_wait_for_an_encoder_that_hangs(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder, encoder_timeout=0.05) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.held = {"water the roses", "water my roses"}
        await known.register(GARDEN)
        await known.reaches("water my roses", "garden")


async def test_later_changes_are_followed_while_the_encoder_hangs(tmp_path: Path) -> None:
    encoder = Words()
    encoder.held = {"refund a payment"}
    async with opened(tmp_path, encoder, encoder_timeout=0.05) as known:
        await known.register(BILLING)
        await known.reaches("refund a payment", "billing")
        await known.register(GARDEN)
        await known.reaches("water the roses", "garden")


async def test_definitions_are_encoded_once_in_the_life_of_a_database(tmp_path: Path) -> None:
    first = Words()
    async with opened(tmp_path, first) as known:
        await known.register(*AGENTS)
        await known.follow()
        assert sorted(first.encoded) == sorted(set(first.encoded))
        assert {"refund a payment", "book a flight"} <= set(first.encoded)
    second = Words()
    async with opened(tmp_path, second) as known:
        await known.follow()
        assert second.asked == []
        await known.register(GARDEN)
        await known.follow()
        assert {"water the roses", "mow the lawn"} <= set(second.encoded)
        assert "refund a payment" not in second.encoded


async def test_vectors_of_different_encoders_are_never_mixed(tmp_path: Path) -> None:
    async with opened(tmp_path, Words()) as known:
        await known.register(*AGENTS)
        await known.follow()
    other = Words("other words", dimension=64)
    async with opened(tmp_path, other) as known:
        await known.follow()
        assert "refund a payment" in other.encoded
        found = await known.judge("refund a payment")
        assert (found.judgement.ranked[0].agent_id, found.stage) == ("billing", Stage.SEMANTIC)


async def test_a_strategy_that_compares_words_asks_no_encoder(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder, strategy=Strategy.SIMPLE) as known:
        await known.register(*AGENTS)
        await known.reaches("refund a payment", "billing")
        assert encoder.asked == []


# --- what was learned


async def test_what_was_learned_decides_with_its_version(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.teach(*TAUGHT, encoder=encoder)
        await known.follow()
        found = await known.judge("e the quarterly figures")
        assert (found.judgement.ranked[0].agent_id, found.stage, found.version) == ("billing", Stage.LEARNED, 1)


async def test_what_was_learned_outlives_a_change_of_the_agents(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.teach(*TAUGHT, encoder=encoder)
        await known.register(GARDEN)
        await known.follow()
        await known.reaches("water the roses", "garden")
        found = await known.judge("e the quarterly figures")
        assert (found.judgement.ranked[0].agent_id, found.stage) == ("billing", Stage.LEARNED)


@pytest.mark.parametrize("strategy", [Strategy.SIMPLE, Strategy.SEMANTIC])
async def test_a_strategy_without_learning_uses_nothing_that_was_learned(tmp_path: Path, strategy: Strategy) -> None:
    async with opened(tmp_path, strategy=strategy) as known:
        await known.register(*AGENTS)
        await known.teach(*TAUGHT)
        await known.follow()
        found = await known.judge("e the quarterly figures")
        assert (found.stage, found.version) == (Stage.LEXICAL, 0)


@pytest.mark.parametrize("encoding", [False, True], ids=["no encoder", "another"])
async def test_what_was_learned_with_another_encoder_is_not_used(tmp_path: Path, *, encoding: bool) -> None:
    other = Words("other words", dimension=64) if encoding else None
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        await known.teach(*TAUGHT, encoder=Words())
    async with opened(tmp_path, other) as known:
        await known.follow()
        found = await known.judge("refund a payment")
        assert found.judgement.ranked[0].agent_id == "billing"
        assert (found.stage, found.version) == (Stage.LEXICAL if other is None else Stage.SEMANTIC, 0)


async def test_while_the_encoder_fails_what_was_learned_with_it_rests(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.teach(*TAUGHT, encoder=encoder)
        await known.follow()
        encoder.fails = True
        found = await known.judge("refund a payment")
        assert (found.stage, found.version, found.degraded) == (Stage.LEXICAL, 0, ("encoder_failed",))


async def test_what_cannot_be_read_of_what_was_learned_holds_nothing_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        await known.keep(b"of another release", encoder="")
        await known.confirm("the usual", "travel")
        await known.follow()
        await known.register(GARDEN)
        await known.reaches("water the roses", "garden")
        assert (await known.judge("refund a payment")).stage is Stage.LEXICAL
        assert await known.remembered("the usual") == "travel"


# --- the memory


async def test_a_confirmed_request_is_remembered_whatever_its_case_and_punctuation(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        await known.confirm("The usual, please!", "travel")
        await known.follow()
        assert await known.remembered("the USUAL please") == "travel"
        assert await known.remembered("the usual") is None


async def test_what_was_confirmed_is_known_to_the_first_request_after_a_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS, tenant="acme")
        await known.confirm("the usual", "travel", tenant="acme")
    async with opened(tmp_path) as known:
        # However long the first look may take on a busy machine.
        await known.classifiers.known("acme", known.registry.roster("acme"), patience=PATIENT)
        assert await known.remembered("the usual", tenant="acme") == "travel"


async def test_what_a_person_disputes_is_not_remembered(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        await known.confirm("the usual", "travel")
        await known.follow()
        await known.confirm("the usual", "repairs", author="ben")
        await known.follow()
        assert await known.remembered("the usual") is None


async def test_tenants_do_not_share_what_was_confirmed(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS, tenant="acme")
        await known.register(*AGENTS, tenant="globex")
        await known.confirm("the usual", "travel", tenant="acme")
        await known.follow("acme")
        await known.follow("globex")
        assert await known.remembered("the usual", tenant="acme") == "travel"
        assert await known.remembered("the usual", tenant="globex") is None


async def test_the_feedback_behind_a_version_that_was_withdrawn_is_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        given = await known.confirm("the usual", "travel")
        version = Version(
            tenant=SHARED,
            number=0,
            state=VersionState.ACTIVE,
            encoder="",
            feedback_seq=given.sequence,
            definitions="",
            examples=1,
            loss=None,
            champion_loss=None,
            created_ms=now_ms(),
        )
        await known.versions.add(version, classifier.untaught(AGENTS, {}).dump(), expected=None)
        await known.follow()
        assert await known.remembered("the usual") == "travel"
        await known.versions.roll_back(SHARED)
        await known.follow()
        assert await known.remembered("the usual") is None


# --- what goes wrong around it


async def test_a_refresh_that_fails_leaves_what_decided_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        await known.follow()
        known.feedback.fails = True
        await known.register(GARDEN)
        await known.follow()
        assert await known.chosen("refund a payment") == "billing"
        assert {"code": "storage_unavailable"} in known.lines.of("classifier_not_refreshed")
        known.feedback.fails = False
        await known.reaches("water the roses", "garden")


async def test_one_who_does_not_want_to_wait_takes_nothing_from_the_others(tmp_path: Path) -> None:
    encoder = Words()
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        await known.follow()
        encoder.held = {"water the roses"}
        await known.register(GARDEN)
        impatient, patient = asyncio.create_task(known.follow()), asyncio.create_task(known.follow())
        await wait_until(lambda: encoder.waiting == 1, "the new agent's lines were not encoded")
        impatient.cancel()
        await asyncio.wait({impatient})
        encoder.let()
        await patient
        assert encoder.encoded.count("water the roses") == 1
        assert await known.chosen("water the roses") == "garden"


async def test_to_close_ends_what_is_at_work(tmp_path: Path) -> None:
    encoder = Words()
    encoder.held = {"refund a payment"}
    async with opened(tmp_path, encoder) as known:
        await known.register(*AGENTS)
        following = asyncio.create_task(known.follow())
        await wait_until(lambda: encoder.waiting == 1, "nothing was encoded")
    await following
    assert encoder.waiting == 0
    assert encoder.closed
    assert known.lines.all == []


async def test_what_was_known_goes_on_deciding_after_the_close(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS)
        await known.follow()
        await known.classifiers.close()
        assert await known.chosen("refund a payment") == "billing"
        await known.register(GARDEN)
        assert await known.chosen("refund a payment") == "billing"


# --- many tenants


async def test_models_are_kept_for_those_tenants_that_asked_last(tmp_path: Path) -> None:
    tenants = [f"tenant{number}" for number in range(MOST + 8)]
    async with opened(tmp_path) as known:
        for tenant in tenants:
            await known.register(GARDEN, tenant=tenant)
            assert await known.chosen("water the roses", tenant=tenant) == "garden"
            assert await known.chosen("water the roses", tenant=tenants[0]) == "garden"
        assert set(known.classifiers.tenants()) == {tenants[0], *tenants[-MOST + 1 :]}
        await known.reaches("water the roses", "garden", tenant=tenants[1])


async def test_tenants_whose_models_are_being_made_do_not_come_on_top(tmp_path: Path) -> None:
    encoder = Words()
    encoder.held = {"water the roses"}
    tenants = [f"tenant{number}" for number in range(2 * MOST)]
    async with opened(tmp_path, encoder) as known:
        for tenant in tenants:
            await known.register(GARDEN, tenant=tenant)
            await known.classifiers.known(tenant, known.registry.roster(tenant), patience=0.0)
        assert len(known.classifiers.tenants()) == MOST
        encoder.let()
        for tenant in tenants[-MOST:]:
            await known.follow(tenant)
        await known.reaches("water the roses", "garden", tenant=tenants[-1])
        assert len(known.classifiers.tenants()) <= MOST
        assert known.lines.of("classifier_not_refreshed") == []


async def test_tenants_do_not_see_each_others_agents(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        await known.register(*AGENTS, tenant="acme")
        await known.register(GARDEN, tenant="globex")
        assert await known.chosen("refund a payment", tenant="acme") == "billing"
        ranked = (await known.judge("refund a payment", tenant="globex")).judgement.ranked
        assert [scored.agent_id for scored in ranked] == ["garden"]


async def test_a_change_of_one_tenants_agents_makes_no_work_for_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as known:
        for tenant in ("acme", "globex"):
            await known.register(*AGENTS, tenant=tenant)
            await known.follow(tenant)
        before = known.classifiers.get("globex")
        await known.register(GARDEN, tenant="acme")
        after = await known.classifiers.known("globex", known.registry.roster("globex"), patience=PATIENT)
        assert before is not None
        assert after.model is before.model
