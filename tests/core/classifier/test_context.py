"""Whose a request is in the middle of a conversation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import context
from agent_orchestra.core.classifier.arrays import log_softmax

AGENTS = (
    Agent(id="hotel-desk", kind="function", name="Hotels"),
    Agent(id="rental_cars", kind="function", name="RentalCars"),
    Agent(id="weather", kind="function", name="Weather"),
)
HOTELS, CARS, WEATHER = range(3)
CLEARLY_WEATHER = np.array([-5.0, -5.0, -0.02]), np.array([0.1, 0.1, 0.6])
UNCLEAR = np.array([-1.1, -1.2, -1.0]), np.array([0.2, 0.15, 0.22])
OFFER = "Your room has been booked. Is there anything else I can help you with?"


def test_an_answer_to_a_question_stays_whatever_it_is_near_to() -> None:
    found = context.placed(*UNCLEAR, HOTELS, text="Four, please.", last="For how many nights?", meaning=True)
    assert found.stayed
    assert found.best == HOTELS
    assert np.exp(found.total[HOTELS]) > 0.95


@pytest.mark.parametrize("meaning", [True, False])
def test_a_request_of_its_own_that_another_agent_is_near_to_leaves_once_more_was_offered(meaning: bool) -> None:
    found = context.placed(*CLEARLY_WEATHER, HOTELS, text="What's the weather there?", last=OFFER, meaning=meaning)
    assert not found.stayed
    assert found.best == WEATHER


def test_the_same_request_is_less_sure_to_leave_in_the_middle_of_a_matter() -> None:
    asked = "Which city do you want to stay in?"
    after = context.placed(*CLEARLY_WEATHER, HOTELS, text="What's the weather there?", last=OFFER, meaning=True)
    amid = context.placed(*CLEARLY_WEATHER, HOTELS, text="What's the weather there?", last=asked, meaning=True)
    assert amid.total[WEATHER] < after.total[WEATHER]


def test_a_request_for_the_present_agent_itself_stays_after_an_offer() -> None:
    found = context.placed(*CLEARLY_WEATHER, WEATHER, text="And what about Tuesday?", last=OFFER, meaning=True)
    assert found.stayed
    assert found.best == WEATHER


def test_an_empty_request_stays() -> None:
    assert context.placed(*UNCLEAR, CARS, text="", last="", meaning=True).best == CARS


def test_the_only_agent_keeps_its_conversation() -> None:
    found = context.placed(np.zeros(1), np.ones(1), 0, text="I want a car", last=OFFER, meaning=True)
    assert found.best == 0
    assert found.total[0] == 0


def test_a_conversation_does_not_go_where_it_may_not() -> None:
    total, peak = log_softmax(np.array([-3.0, -1e4, -1e4])), np.array([0.1, 0.9, 0.9])
    found = context.placed(total, peak, HOTELS, text="I want a car", last=OFFER, meaning=True)
    assert found.best == HOTELS
    assert found.total[CARS] < -100


@given(
    st.lists(st.floats(-20, 0), min_size=1, max_size=6),
    st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    st.data(),
)
def test_probabilities_in_context_sum_to_one_and_the_best_has_the_highest(
    scores: list[float], similar: list[float], data: st.DataObject
) -> None:
    total, peak = log_softmax(np.array(scores)), np.array(similar[: len(scores)])
    present = data.draw(st.integers(0, len(scores) - 1))
    text, last = data.draw(st.text()), data.draw(st.text())
    found = context.placed(total, peak, present, text=text, last=last, meaning=data.draw(st.booleans()))
    assert np.exp(found.total).sum() == pytest.approx(1)
    assert found.total[found.best] == found.total.max()
    assert found.stayed == (found.best == present)


@pytest.mark.parametrize("last", [
    "Is there anything else I can help you with?", "Anything else?", "anythingelse for you?",
    "What else can I do for you?",
    "Could I further assist you?", "Do you need more help?", "Let me know if you have any other questions.",
    "I found it. Should you need assistance, tell me.",
])  # fmt: skip
def test_an_offer_of_more_is_seen_and_is_no_question_of_the_matter(last: str) -> None:
    told = _told(last=last)
    assert told["offers"]
    assert not told["asks"]


@pytest.mark.parametrize("last", [
    "Your table is booked.", "I've scheduled your visit.", "Confirmed and it is at 29 East Allen Street.",
    "The transfer has been successfully initiated and takes 3 days.", "Your refund was processed. Have a great day!",
])  # fmt: skip
def test_a_report_of_what_was_achieved_is_seen(last: str) -> None:
    assert _told(last=last)["done"]


@pytest.mark.parametrize(
    "last", ["Is it for two people?", "Should your table be booked for six?", "Please confirm: one room."]
)
def test_what_still_has_to_be_answered_is_not_achieved(last: str) -> None:
    assert not _told(last=last)["done"]
    assert not _told(last=last)["offers"]


@pytest.mark.parametrize("text", [
    "I need a cab.", "Great, now I'd like to see the weather.", "ok thanks. Can you find me a hotel?", "Find me a taxi",
    "Yes, what's the balance?", "We are looking for a flat", "Please show me my invoices",
])  # fmt: skip
def test_a_request_of_its_own_is_seen_behind_pleasantries(text: str) -> None:
    assert _told(text=text)["begins"]


@pytest.mark.parametrize(
    "text", ["Yes, that's right.", "Four", "In San Francisco please.", "Thanks, that'll be all.", "7:45 pm", ""]
)
def test_an_answer_is_no_request_of_its_own(text: str) -> None:
    assert not _told(text=text)["begins"]


@pytest.mark.parametrize(("text", "wanted"), [
    ("Switch to weather", (WEATHER,)),
    ("please let me talk to the Hotels agent about my bill", (HOTELS,)),
    ("Can you connect me with rental cars?", (CARS,)),
    ("put me through to RentalCars!", (CARS,)),
    ("hand this over to rental_cars, please", (CARS,)),
    ("@hotel-desk is breakfast included?", (HOTELS,)),
    ("No. Go back to the weather.", (WEATHER,)),
    ("I don't like this. Talk to weather.", (WEATHER,)),
])  # fmt: skip
def test_an_agent_can_be_asked_for_by_name_or_id(text: str, wanted: tuple[int, ...]) -> None:
    assert context.asked_for(text, AGENTS) == wanted


@pytest.mark.parametrize("text", [
    "", "weather", "I want to talk to my mother", "please don't switch to weather", "I did not ask to talk to hotels",
    "write to me@weather.example", "switch to", "transfer 100 dollars to weather", "I would rather go to the cinema",
    "switch to another one instead",
])  # fmt: skip
def test_what_only_sounds_like_it_asks_for_nobody(text: str) -> None:
    assert context.asked_for(text, AGENTS) == ()


def test_of_several_names_that_fit_the_longest_is_meant() -> None:
    agents = (Agent(id="a", kind="function", name="Billing"), Agent(id="b", kind="function", name="Billing Disputes"))
    assert context.asked_for("switch to billing disputes", agents) == (1,)
    assert context.asked_for("switch to billing", agents) == (0,)


def test_two_agents_of_the_same_name_are_both_meant_and_the_likelier_gets_it() -> None:
    agents = (*AGENTS, Agent(id="hotels-2", kind="function", name="hotels"))
    asked = context.asked_for("talk to hotels", agents)
    assert asked == (HOTELS, 3)
    found = context.switched(log_softmax(np.array([-3.0, -1.0, -1.0, -2.0])), asked, WEATHER)
    assert found.best == 3
    assert not found.stayed


def test_who_is_asked_for_by_name_gets_it_against_all_likelihood() -> None:
    found = context.switched(CLEARLY_WEATHER[0], (HOTELS,))
    assert found.best == HOTELS
    assert np.exp(found.total[HOTELS]) > 0.9


def test_asking_for_the_agent_that_is_there_already_stays() -> None:
    assert context.switched(UNCLEAR[0], (CARS,), CARS).stayed


def test_without_a_present_agent_the_last_turn_tells_whose_an_answer_is() -> None:
    total = context.agreed(UNCLEAR[0], np.array([-4.0, -0.1, -4.0]))
    assert total.argmax() == CARS
    assert np.exp(total).sum() == pytest.approx(1)


def test_a_megabyte_of_text_costs_no_more_than_its_beginning_and_end() -> None:
    long = "is it " * 200_000
    found = context.placed(*UNCLEAR, HOTELS, text=long, last=long, meaning=True)
    assert found.best == HOTELS
    assert context.asked_for(long, AGENTS) == ()


@pytest.mark.parametrize("text", ["thank you ", "i see ", "ok. ", "i ", "is now ", "send me back on over ", "\n", "!"])
def test_a_text_made_to_keep_the_patterns_busy_ends(text: str) -> None:
    found = context.placed(*UNCLEAR, HOTELS, text=text * 1_000, last=text * 1_000, meaning=True)
    assert np.isfinite(found.total).all()
    assert context.asked_for(text * 1_000, AGENTS) == ()


def _told(text: str = "", last: str = "") -> dict[str, float]:
    values = context.signals(*UNCLEAR, HOTELS, text=text, last=last)
    return dict(zip(context.SIGNALS, values.tolist(), strict=True))
