"""The words of a text, folded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.words import terms

WORDS = ["invoice", "refund", "flight", "hotel", "password", "login", "holiday", "report", "chart", "deploy"]


@pytest.mark.parametrize(
    ("word", "folded"),
    [
        ("invoices", "invoice"),
        ("refunds", "refund"),
        ("policies", "policy"),
        ("ties", "ty"),
        ("boxes", "box"),
        ("shoes", "shoe"),
        ("trees", "tree"),
        ("zombaies", "zombaie"),
        ("status", "status"),
        ("boss", "boss"),
        ("gas", "gas"),
        ("bus", "bus"),
        ("plan", "plan"),
        ("s", "s"),
    ],
)
def test_plurals_are_folded_as_harman_says(word: str, folded: str) -> None:
    assert list(terms(word)) == [folded]


def test_a_text_becomes_its_words_without_case_and_stop_words() -> None:
    assert list(terms("Where are the INVOICES of Straße_42, please?")) == ["invoice", "strasse", "42"]
    assert list(terms("")) == []
    assert list(terms("how are you, and why?")) == []


@given(st.sampled_from(WORDS))
def test_singular_and_plural_meet(word: str) -> None:
    assert list(terms(word)) == list(terms(word + "s")) == list(terms(word.upper()))


@given(st.text())
def test_words_of_any_text_are_words(text: str) -> None:
    for term in terms(text):
        assert term
        assert not any(character.isspace() for character in term)
