"""What calls of models have used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent_orchestra.core.values import Json

__all__ = ["Usage", "total", "usage_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a call used, in tokens, counted the same way for every vendor (OpenTelemetry's GenAI conventions).

    ``input_tokens`` is the whole prompt, what was read from and written to the vendor's cache included;
    ``output_tokens`` is all that was generated, reasoning included. ``cost_usd`` is none where no price is known, and
    ``price_date`` (ISO 8601) is that of the price list.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    price_date: str | None = None


def total(usages: Iterable[Usage]) -> Usage:
    """The sum. Its cost is none where the price of anything in it is not known, its date the oldest."""
    used = [usage for usage in usages if usage.input_tokens or usage.output_tokens or usage.cost_usd is not None]
    prices = [usage.cost_usd for usage in used if usage.cost_usd is not None]
    return Usage(
        input_tokens=sum(usage.input_tokens for usage in used),
        output_tokens=sum(usage.output_tokens for usage in used),
        cache_read_tokens=sum(usage.cache_read_tokens for usage in used),
        cache_write_tokens=sum(usage.cache_write_tokens for usage in used),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in used),
        cost_usd=sum(prices) if used and len(prices) == len(used) else None,
        price_date=min((usage.price_date for usage in used if usage.price_date is not None), default=None),
    )


def usage_json(usage: Usage) -> dict[str, Json]:
    """A usage as plain JSON."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_usd": usage.cost_usd,
        "price_date": usage.price_date,
    }
