"""Conditions and scores: what they give, what is refused when they are set, and what they may cost."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core import expression
from agent_orchestra.core.expression import MAX_CHARS, NotAnExpressionError
from agent_orchestra.core.values import Json, JsonObject
from agent_orchestra.errors import ExpressionFailed

ANY = {"input": None, "results": None, "context": None}


def evaluated(text: str, **values: Json) -> Json:
    return expression.compile(text, dict.fromkeys(values)).evaluate(values)


@pytest.mark.parametrize(
    ("text", "values", "gives"),
    [
        ("x + 1", {"x": 2}, 3),
        ("x + 0.5", {"x": 1.5}, 2.0),
        ("x > 0.5", {"x": 1}, True),
        ("x == null", {"x": None}, True),
        ("x", {"x": {"a": [1, "b", None, True]}}, {"a": [1, "b", None, True]}),
        ("size(x) + x.size()", {"x": "héé"}, 10),
        ("x.a-b", {"x": {"a": 3}, "b": 1}, 2),
        ("x['a-b'].c", {"x": {"a-b": {"c": 1}}}, 1),
        ("has(x.a) ? x.a : 'none'", {"x": {}}, "none"),
        ("x.filter(e, e > 1).map(e, e * 2)", {"x": [1, 2, 3]}, [4, 6]),
        ("x.exists(e, e == 'b') && !x.all(e, e == 'b')", {"x": ["a", "b"]}, True),
        ("x.matches('^[a-z]{2,5}$') && x.contains('b')", {"x": "abc"}, True),
        ("timestamp('2026-01-02T03:04:05Z')", {}, "2026-01-02T03:04:05+00:00"),
        ("duration('90s')", {}, 90.0),
        ("type(x) == int", {"x": 1}, True),
        ("3u", {}, 3),
        ("1 // all, map(a, b), exists(", {}, 1),
    ],
)
def test_an_expression_gives_json(text: str, values: JsonObject, gives: Json) -> None:
    assert evaluated(text, **values) == gives


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not an expression"),
        ("1 +", "line 1, column 4"),
        ("a\n  ==", "line 2"),
        ("\0", "not an expression"),
        ('"\ud800"', "not an expression"),
        ("(" * 500 + "1" + ")" * 500, "nested too deep"),
        ("inptu == 'x'", "there is no 'inptu' here; did you mean 'input'?"),
        ("results.map(r, q)", "there is no 'q' here; known: context, input, results"),
        ("input.containz('x')", "there is no function 'containz'; did you mean 'contains'?"),
        ("results.map(a, results.map(b, results.map(c, 1)))", "loops 3 deep in each other; at most 2"),
        ("results.map(a, a)" + ".map(b, b)" * 4, "has 5 loops"),
        ("input.matches(input)", "must stand there as a text"),
        ("input.matches('a' + 'b')", "must stand there as a text"),
        ("input.matches('^(.*b.{99}){100}$')", "too large a pattern"),
        ("input.matches('((a{9}){99}){99}')", "too large a pattern"),
        ("input.matches('" + r"\\w" * 300 + "')", "too large a pattern"),
        ("input.matches(r'\\pL{1000}')", "too large a pattern"),
        ("x" * (MAX_CHARS + 1), f"at most {MAX_CHARS}"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_when_it_is_set(text: str, says: str) -> None:
    with pytest.raises(NotAnExpressionError) as caught:
        expression.compile(text, ANY)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("results.reserch.value", "'results' has no 'reserch' here; did you mean results.research?"),
        ("results['reserch'].value", "did you mean results.research?"),
        ("results.fact-check.value", "'results' has no 'fact' here; did you mean results['fact-check']?"),
        ("has(results.nobody)", "known: fact-check, research"),
        ("input == 'a' && results.x.value > 1", "'results' has no 'x' here"),
    ],
)
def test_a_field_that_is_not_there_is_refused_with_the_nearest(text: str, says: str) -> None:
    with pytest.raises(NotAnExpressionError) as caught:
        expression.compile(text, {"input": None, "results": ["research", "fact-check"]})
    assert says in str(caught.value)


def test_what_only_looks_like_a_field_is_let_through() -> None:
    for text in ("results.size() > 1", "input == 'results.x'", "[input].map(results, results.x)[0]", "input.results.x"):
        expression.compile(text, {"input": None, "results": ["a"]})


@pytest.mark.parametrize(
    ("text", "values", "says"),
    [
        ("x.a", {"x": {}}, "there is no 'a'"),
        ("x + 1", {"x": 1.5}, "int"),
        ("x.a > 1", {"x": None}, "overload"),
        ("1 / x", {"x": 0}, "division by zero"),
        ("x + 1", {"x": 2**63 - 1}, "overflow"),
        ("timestamp(x)", {"x": "yesterday"}, "timestamp"),
        ("{1: x}", {"x": 2}, "which is no JSON"),
        ("b'a'", {}, "bytes"),
        ("1.0 / x", {"x": 0.0}, "float"),
        ("x.matches('(')", {"x": "a"}, "regex"),
    ],
)
def test_what_goes_wrong_is_one_error_that_shows_the_text(text: str, values: JsonObject, says: str) -> None:
    with pytest.raises(ExpressionFailed) as caught:
        evaluated(text, **values)
    assert caught.value.detail.startswith(f"'{text}': ")
    assert says in caught.value.detail


def test_a_condition_is_true_or_false_and_a_score_is_a_number() -> None:
    assert expression.compile("x > 1", {"x": None}).holds({"x": 2})
    assert expression.compile("x", {"x": None}).number({"x": 2}) == 2.0
    for text, why in (("x", "gave 2, not true or false"), ("'a'", "a text"), ("[x]", "a list"), ("null", "null")):
        with pytest.raises(ExpressionFailed, match=why):
            expression.compile(text, {"x": None}).holds({"x": 2})
    with pytest.raises(ExpressionFailed, match="gave true, not a number"):
        expression.compile("x", {"x": None}).number({"x": True})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x.map(a, a)", {"x": list(range(20_000))}),
        ("x.map(a, y)", {"x": list(range(500)), "y": "a" * 200_000}),
        ("x.filter(a, a > 5).size() > 1", {"x": list(range(20_000))}),
        ("x.all(a, x.all(b, true))", {"x": list(range(2_000))}),
        ("x.all(a, y.contains('b'))", {"x": list(range(2_000)), "y": "a" * 500_000}),
        ("[x]" + "".join(f".map({v}, {'+'.join([v] * 40)})" for v in "abcd"), {"x": "aaaa"}),
        ("+".join(["x"] * 500), {"x": "a" * 200_000}),
        ("x.matches('^.*b.{99}$')", {"x": "ab" * 200_000}),
        ("x.all(a, a.matches('[a-z]{99}'))", {"x": ["ab"] * 200}),
        ("[x].map(a, [a, a, a, a, a, a, a, a, a, a, a])", {"x": "a" * 2_000_000}),
    ],
)
def test_what_would_take_too_long_is_refused_before_it_begins(text: str, values: JsonObject) -> None:
    with pytest.raises(ExpressionFailed, match="would take too long"):
        evaluated(text, **values)


def test_usual_sizes_are_let_through() -> None:
    results: dict[str, Json] = {
        f"m{n}": {"status": "SUCCEEDED", "value": {"score": 0.5}, "output": "x" * 10_000} for n in range(64)
    }
    text = "results.exists(id, results[id].status == 'FAILED') || results.all(id, results[id].output.contains('y'))"
    assert evaluated(text, results=results) is False
    assert evaluated("results.exists(id, results[id].output.matches('^[a-w]+$'))", results=results) is False
    assert evaluated(r"input.matches('^\\d{4}-\\d{2}-\\d{2}')", input="2026-01-02" + "x" * 200_000) is True
    assert evaluated("input + ' ' + results.m1.output", results=results, input="x" * 200_000) is not None


TEXTS = st.text(alphabet="abx.()[]{},'\"+-*/?:&|!<>= 019\n\\mapfilterhsu", max_size=60)


@given(text=TEXTS, value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_whatever_is_written_ends_in_a_value_or_in_one_of_two_errors(text: str, value: Json) -> None:
    with contextlib.suppress(NotAnExpressionError, ExpressionFailed):
        expression.compile(text, {"x": None, "a": None}).evaluate({"x": value, "a": 1})
