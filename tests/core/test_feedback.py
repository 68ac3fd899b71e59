"""What is learned from what is said, and from whom."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.classifier import Example
from agent_orchestra.core.feedback import (
    TRUST,
    Feedback,
    Source,
    better,
    examples_of,
    lead,
    memory_of,
    unseen,
)


def entry(
    text: str,
    agent_id: str | None,
    *,
    source: Source = Source.HUMAN,
    author: str = "ann",
    rejected: str | None = None,
    sequence: int = 1,
) -> Feedback:
    return Feedback(
        sequence=sequence,
        tenant="t",
        decision_id="d",
        text=text,
        agent_id=agent_id,
        rejected=rejected,
        source=source,
        author=author,
        created_ms=0,
    )


def only(log: list[Feedback]) -> Example:
    [example] = examples_of(log)
    return example


# --- what is learned


def test_a_correction_by_a_person_is_an_example_of_full_weight() -> None:
    assert only([entry("Where is my bill?", "billing")]) == Example(text="Where is my bill?", agent_id="billing")


@pytest.mark.parametrize("source", list(Source))
def test_each_source_weighs_what_it_is_trusted(source: Source) -> None:
    assert only([entry("a text", "billing", source=source)]).weight == pytest.approx(TRUST[source].weight)


def test_a_person_is_trusted_more_than_anything_else() -> None:
    assert all(TRUST[Source.HUMAN].weight > TRUST[other].weight for other in Source if other is not Source.HUMAN)


@pytest.mark.parametrize("source", [Source.HUMAN, Source.LLM])
def test_who_judges_may_say_that_a_request_is_nobodys(source: Source) -> None:
    assert only([entry("tell me a joke", None, source=source)]).agent_id is None


@pytest.mark.parametrize("source", [Source.THUMBS, Source.OUTCOME, Source.HANDOFF])
def test_that_an_agent_was_wrong_says_nothing_of_the_right_one(source: Source) -> None:
    assert examples_of([entry("a text", None, source=source, rejected="billing")]) == []


def test_a_thumb_down_takes_weight_from_what_others_say_of_that_agent() -> None:
    log = [entry("a text", "billing"), entry("A text!", None, source=Source.THUMBS, author="bob", rejected="billing")]
    assert only(log).weight == pytest.approx(TRUST[Source.HUMAN].weight - TRUST[Source.THUMBS].weight)


def test_a_thumb_down_outweighs_a_good_outcome() -> None:
    log = [
        entry("a text", "billing", source=Source.OUTCOME, author="system"),
        entry("a text", None, source=Source.THUMBS, rejected="billing"),
    ]
    assert examples_of(log) == []


def test_what_an_author_says_later_replaces_what_was_said_before() -> None:
    log = [
        entry("a text", "billing", source=Source.THUMBS),
        entry("a text", "sales", rejected="billing"),
        entry("a text", "support"),
    ]
    assert only(log) == Example(text="a text", agent_id="support", weight=1.0)


def test_an_outcome_does_not_replace_a_handoff_of_the_same_author() -> None:
    log = [
        entry("a text", "sales", source=Source.HANDOFF, author="system"),
        entry("a text", "sales", source=Source.OUTCOME, author="system"),
    ]
    assert only(log).weight == pytest.approx(TRUST[Source.HANDOFF].weight + TRUST[Source.OUTCOME].weight)


def test_of_contradicting_verdicts_the_heavier_is_learned_with_what_it_leads_by() -> None:
    log = [entry("a text", "billing", source=Source.LLM, author="judge"), entry(" A  TEXT. ", "sales")]
    example = only(log)
    assert example.agent_id == "sales"
    assert example.weight == pytest.approx(TRUST[Source.HUMAN].weight - TRUST[Source.LLM].weight)


def test_of_two_people_who_contradict_each_other_nothing_is_learned() -> None:
    assert examples_of([entry("a text", "billing"), entry("a text", "sales", author="bob")]) == []


def test_a_text_that_a_hundred_confirm_does_not_weigh_a_hundred_times() -> None:
    assert only([entry("a text", "billing", author=f"author {n}") for n in range(100)]).weight == pytest.approx(2)


def test_a_text_without_words_teaches_nothing() -> None:
    log = [entry("", "billing"), entry(" ?! ", "billing"), entry("👍", "billing")]
    assert examples_of(log) == []
    assert memory_of(log) == {}


def test_the_newest_of_very_many_texts_are_learned() -> None:
    log = [entry(f"text {n}", "billing") for n in range(20_100)]
    examples = examples_of(log)
    assert len(examples) == 20_000
    assert examples[-1].text == "text 20099"


# --- poisoning


def test_one_author_alone_is_heard_and_bounded() -> None:
    weights = [example.weight for example in examples_of([entry(f"text {n}", "billing") for n in range(500)])]
    assert all(weight > 0 for weight in weights)
    assert sum(weights) == pytest.approx(20)


def test_one_author_beside_many_has_at_most_half_of_an_agent() -> None:
    log = [entry(f"good {n}", "billing", author=f"author {n % 50}") for n in range(100)]
    log += [entry(f"bad {n}", "billing", author="mallory") for n in range(1_000)]
    weight = _weights(log)
    assert weight["bad"] == pytest.approx(100)
    assert weight["good"] == pytest.approx(100)


def test_outcomes_stay_a_small_share_however_many_they_are() -> None:
    log = [entry(f"good {n}", "billing", author=f"author {n % 50}") for n in range(100)]
    log += [entry(f"bad {n}", "billing", source=Source.OUTCOME, author=f"run {n % 70}") for n in range(5_000)]
    weight = _weights(log)
    assert weight["bad"] / sum(weight.values()) == pytest.approx(TRUST[Source.OUTCOME].share)


def test_the_bound_of_one_agent_does_not_touch_another() -> None:
    log = [entry(f"bad {n}", "billing", author="mallory") for n in range(500)] + [entry("good", "sales")]
    assert _weights(log)["good"] == 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from(["billing", "sales", None]),
            st.sampled_from(list(Source)),
            st.sampled_from("abc"),
        ),
        max_size=120,
    )
)
def test_every_example_has_some_weight_and_each_text_stands_once(
    said: list[tuple[int, str | None, Source, str]],
) -> None:
    log = [entry(f"text {n}", agent_id, source=source, author=author) for n, agent_id, source, author in said]
    examples = examples_of(log)
    assert all(0 < example.weight < 2.001 for example in examples)
    assert max(Counter(example.text for example in examples).values(), default=1) == 1


# --- what is remembered


def test_what_a_person_confirmed_is_remembered_whatever_its_case_and_punctuation() -> None:
    log = [entry("Where is  my bill?", "billing"), entry("hours", "support", source=Source.THUMBS)]
    assert memory_of(log) == {"where is my bill": "billing", "hours": "support"}


@pytest.mark.parametrize("source", [Source.LLM, Source.HANDOFF, Source.OUTCOME])
def test_only_people_are_remembered(source: Source) -> None:
    assert memory_of([entry("a text", "billing", source=source)]) == {}


def test_what_people_dispute_is_not_remembered() -> None:
    assert memory_of([entry("a text", "billing"), entry("a text", "sales", author="bob")]) == {}
    assert memory_of([entry("a text", "billing"), entry("a text", None, author="bob")]) == {}
    thumb = entry("a text", None, source=Source.THUMBS, author="bob", rejected="billing")
    assert memory_of([entry("a text", "billing"), thumb]) == {}


def test_a_dispute_of_a_model_is_none() -> None:
    assert memory_of([entry("a text", "billing"), entry("a text", "sales", source=Source.LLM)]) == {"a text": "billing"}


def test_who_thinks_better_of_it_is_believed() -> None:
    assert memory_of([entry("a text", "billing"), entry("a text", "sales", rejected="billing")]) == {"a text": "sales"}
    assert (
        memory_of([entry("a text", "billing"), entry("a text", None, source=Source.THUMBS, rejected="billing")]) == {}
    )


def test_the_newest_of_very_many_are_remembered() -> None:
    log = [entry(f"text {n}", "billing") for n in range(10_050)] + [entry("text 0", "billing")]
    memory = memory_of(log)
    assert len(memory) == 10_000
    assert "text 0" in memory
    assert "text 1" not in memory


# --- promotion


def test_a_text_that_was_spoken_of_before_is_not_unseen() -> None:
    log = [
        entry("old", "billing", sequence=1),
        entry("both", "billing", sequence=2),
        entry("Both!", "sales", sequence=3),
        entry("new", "sales", sequence=4),
    ]
    examples = [Example(text=text, agent_id="sales") for text in ("old", "both", "new")]
    assert unseen(examples, log, after=2) == [False, False, True]
    assert unseen(examples, log, after=0) == [True, True, True]


def test_a_candidate_that_is_not_worse_is_promoted() -> None:
    assert better(np.array([0.1, 0.4]), np.array([0.2, 0.4]))
    assert better(np.array([0.3]), np.array([0.3]))


def test_a_candidate_that_is_worse_is_not_promoted() -> None:
    assert not better(np.array([0.1, 0.6]), np.array([0.2, 0.4]))


def test_where_there_is_nothing_to_compare_nothing_speaks_against_the_candidate() -> None:
    assert better(np.zeros(0), np.zeros(0))
    assert better(np.array([np.nan]), np.array([0.1]))


def test_examples_count_by_their_weight() -> None:
    candidate, champion = np.array([0.1, 0.9]), np.array([0.4, 0.4])
    assert not better(candidate, champion)
    assert better(candidate, champion, np.array([1.0, 0.1]))


def test_the_lead_is_in_nats_an_example() -> None:
    assert lead(np.array([0.1, 0.5, np.nan]), np.array([0.4, 0.4, 1.0])) == pytest.approx(0.1)


def test_an_event_that_both_find_impossible_does_not_decide() -> None:
    candidate, champion = np.array([*[0.1] * 20, 30.0]), np.array([*[0.2] * 20, 9.0])
    assert better(candidate, champion)


def _weights(log: list[Feedback]) -> dict[str, float]:
    """The weight of the examples by the first word of their texts."""
    found: dict[str, float] = defaultdict(float)
    for example in examples_of(log):
        found[example.text.split()[0]] += example.weight
    return found
