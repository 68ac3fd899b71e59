"""Agents that are plain functions: the whole contract is content in, text out."""

from __future__ import annotations

import ast
import asyncio
import operator
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from agent_orchestra import Call

_OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda dividend, divisor: dividend / divisor,
}


def calculate(content: str) -> dict[str, object]:
    """Does the arithmetic that a text holds. A value that JSON can hold becomes the answer's structured value."""
    expression = max(re.findall(r"[-+*/(). 0-9]+", content), key=len, default="").strip()
    return {"expression": expression, "result": _value(ast.parse(expression, mode="eval").body)}


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError("not arithmetic")


async def clock(_: str) -> str:
    """An async function."""
    await asyncio.sleep(0)
    return f"It is {datetime.now(UTC):%A, %d %B %Y, %H:%M} UTC."


async def summarize(_: str, call: Call) -> AsyncIterator[str]:
    """An async generator streams; the second argument brings the conversation so far."""
    asked = [message.content for message in call.history if message.author == "user"]
    yield f"So far you have asked {len(asked)} question{'' if len(asked) == 1 else 's'} in this conversation"
    for number, question in enumerate(asked, start=1):
        yield f"\n{number}. {question}"
