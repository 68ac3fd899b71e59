"""What makes a value fit to be stored."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.values import Json, cleaned, faults_in

any_text = st.text(st.characters())
halves = st.text(st.characters(categories=("Cs",)) | st.characters() | st.just("\0"))
fine_text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
fine: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | fine_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(fine_text, inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int) -> Json:
    value: Json = "deep"
    for _ in range(depth):
        value = [value]
    return value


@given(halves)
def test_what_is_cleaned_can_be_stored(text: str) -> None:
    clean = cleaned(text)
    assert "\0" not in clean
    clean.encode("utf-8")
    assert cleaned(clean) == clean
    assert list(faults_in("x", clean)) == []


@given(fine_text)
def test_a_fine_text_comes_back_as_it_is(text: str) -> None:
    assert cleaned(text) == text
    assert list(faults_in("x", text)) == []


@given(halves, halves)
def test_pieces_are_cleaned_as_the_whole_is(one: str, other: str) -> None:
    """A stream cleans piece by piece, and its answer whole; both must read the same."""
    assert cleaned(one + other) == cleaned(one) + cleaned(other)


def test_a_nul_and_half_a_character_become_replacement_characters() -> None:
    assert cleaned("a\0b") == "a\ufffdb"
    assert cleaned("ä\0b") == "ä\ufffdb"
    assert set(cleaned("ä\ud800")) == {"ä", "\ufffd"}
    assert cleaned("🧾") == "🧾"


@given(fine)
def test_a_fine_value_has_no_fault_and_is_json(value: Json) -> None:
    assert list(faults_in("x", value)) == []
    assert json.loads(json.dumps(value, allow_nan=False)) == value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("a\0", "x"),
        ("\ud83d", "x"),
        (math.nan, "x"),
        (math.inf, "x"),
        (-math.inf, "x"),
        (["fine", ["a\0"]], "x.1.0"),
        ({"a": {"b": math.nan}}, "x.a.b"),
        ({"a\0": 1}, "x"),
        ((1, "\udc00"), "x.1"),
    ],
)
def test_a_fault_names_its_place(value: Json, path: str) -> None:
    assert [fault.path for fault in faults_in("x", value)] == [path]


def test_all_faults_of_a_value_are_told() -> None:
    value: Json = {"a": "\0", "b": [math.nan, "fine", "\ud800"]}
    assert [fault.path for fault in faults_in("x", value)] == ["x.a", "x.b.0", "x.b.2"]


def test_a_value_is_at_most_fifty_deep() -> None:
    assert list(faults_in("x", nested(50))) == []
    (fault,) = faults_in("x", nested(51))
    assert "50 deep" in fault.message
    (fault,) = faults_in("x", nested(900))
    assert "50 deep" in fault.message
