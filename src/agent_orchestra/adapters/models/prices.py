"""What a call has cost, from the prices of the package ``genai-prices``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic_ai.usage import RequestUsage

__all__ = ["cost_of"]

_MILLION: Final = 1_000_000
_USUAL_TIERS: Final = (None, "default", "standard", "auto")


def cost_of(
    usage: RequestUsage, *, provider: str, model: str, tier: str | None = None
) -> tuple[float | None, str | None]:
    """US dollars, and the date of the prices (ISO 8601); none and none where no price is known, never zero for it.

    ``tier``: the vendor's class of service that the call was billed by, where the response tells.
    The date is that of the price list: when it was fetched, or else the day of the last dated change that it holds.
    """
    if usage.unmeasured_requests or not (usage.input_tokens or usage.output_tokens):
        return None, None
    read, written = usage.cache_read_tokens, usage.cache_write_tokens
    plain = usage.input_tokens - read - written
    usual = plain >= 0 and tier in _USUAL_TIERS and not _has_others(usage)
    rates = _rates(provider, model) if usual else None
    if rates is None:
        cost = _calculated(usage, provider, model, tier)
    else:
        cost = sum(map(float.__mul__, rates, map(float, (plain, usage.output_tokens, read, written))))
    # A trillionth of a dollar is noise of the arithmetic.
    return (None, None) if cost is None else (round(cost, 12), _list_date())


def _has_others(usage: RequestUsage) -> bool:
    """Whether there are tokens of kinds that have prices of their own."""
    audio = usage.input_audio_tokens or usage.cache_audio_read_tokens or usage.output_audio_tokens
    return bool(usage.cache_write_1h_tokens or audio or usage.audio_seconds)


def _calculated(usage: RequestUsage, provider: str, model: str, tier: str | None) -> float | None:
    from genai_prices import calc_price

    context = None if tier is None else {"service_tier": tier}
    now = datetime.now(UTC)
    try:
        price = calc_price(usage, model, provider_id=provider, genai_request_timestamp=now, price_context=context)
    except (LookupError, ValueError):
        return None
    return float(price.total_price)


@lru_cache(maxsize=1_024)
def _rates(provider: str, model: str) -> Sequence[float] | None:
    """Dollars a token: of plain input, output, what was read from a cache, and written to one.

    Where a price has neither steps nor conditions it is these four times the tokens; the package reckons in decimals
    over all its units, at every call. None where it has, or where the model is not known.
    """
    from genai_prices import Usage
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import ModelPrice, TieredPrices

    try:
        _, info = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    price = info.prices
    if not isinstance(price, ModelPrice):
        return None
    steps = any(isinstance(value, TieredPrices) for value in vars(price).values())
    if steps or price.requests_kcount or any("reasoning" in name for name in vars(price)):
        return None
    units = (
        Usage(input_tokens=_MILLION),
        Usage(output_tokens=_MILLION),
        Usage(input_tokens=_MILLION, cache_read_tokens=_MILLION),
        Usage(input_tokens=_MILLION, cache_write_tokens=_MILLION),
    )
    try:
        return [float(price.calc_price(unit)["total_price"]) / _MILLION for unit in units]
    except (LookupError, ValueError):
        return None


@cache
def _list_date() -> str:
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import StartDateConstraint

    snapshot = get_snapshot()
    if snapshot.from_auto_update:
        return snapshot.timestamp.date().isoformat()
    today = datetime.now(UTC).date()
    changes = [
        change.constraint
        for provider in snapshot.providers
        for model in provider.models
        for change in (*(model.prices if isinstance(model.prices, list) else ()), *(model.price_variants or ()))
    ]
    starts = [change.start_date for change in changes if isinstance(change, StartDateConstraint)]
    return max(start for start in starts if start <= today).isoformat()
