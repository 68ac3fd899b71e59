"""The port to the vendors of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent_orchestra.core.prompt import Prompt
from agent_orchestra.core.request import Reply
from agent_orchestra.runtime.executor import Emit

__all__ = ["Models", "ProviderStatus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """What is known of one provider.

    ``reachable``: whether it answered the last check with this key; none where it is not configured, and so was not
    asked. ``last_error``: the code of what the last call or check failed with, none after one that succeeded.
    """

    name: str
    configured: bool
    installed: bool
    reachable: bool | None
    last_error: str | None
    detail: str
    checked_ms: int


class Models(Protocol):
    """All models of all providers, by names such as ``anthropic:claude-sonnet-5``."""

    async def ask(self, model: str, prompt: Prompt, emit: Emit | None = None) -> Reply:
        """One turn of one model; with ``emit``, its text piece by piece as it comes.

        Raises :class:`InvalidInput` for a name that is none, :class:`MissingExtra` where the vendor's SDK is not
        installed, and :class:`ModelFailed` for all that can go wrong with the model.
        """
        ...

    async def prepare(self, model: str) -> None:
        """Makes ready what the first call of a model would have to wait for; the vendor is not asked.

        Raises :class:`InvalidInput`, :class:`MissingExtra` and :class:`ProviderKeyMissing` as that call would.
        """
        ...

    async def check(self, *, fresh: bool = False) -> Sequence[ProviderStatus]:
        """How each provider is, by one cheap call; what is younger than a minute is not asked again but with ``fresh``.

        Never raises for what is wrong with a provider.
        """
        ...
