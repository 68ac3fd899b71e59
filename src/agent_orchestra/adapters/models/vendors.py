"""The vendors that are known: how they are named, where they are, and what they need. Nothing heavy is imported."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agent_orchestra.errors import Fault, InvalidInput

__all__ = ["MODEL_NAME_PATTERN", "VENDORS", "Api", "ModelName", "ProviderConfig", "Vendor", "parse"]


class Api(StrEnum):
    """The protocol that a model is asked by; its value is the prefix of the names of models."""

    ANTHROPIC = "anthropic"
    OPENAI_CHAT = "openai"
    OPENAI_RESPONSES = "openai-responses"
    GOOGLE = "google"
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """``ping``: the path below the base URL that lists models, the cheapest question that needs the key."""

    name: str
    extra: str
    packages: tuple[str, ...]
    #: Of the environment, by their usual names: those of the key, and that of the address.
    variables: tuple[str, ...]
    base_url_variable: str | None = None
    base_url: str
    ping: str
    #: Of the key, and whether it stands behind the word Bearer.
    header: str
    bearer: bool = False
    needs_key: bool = True
    headers: Mapping[str, str]

    def installed(self) -> bool:
        """Whether the vendor's SDK is there, and what its models are asked through."""
        return all(_found(module) for module in (*self.packages, "pydantic_ai"))


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


VENDORS: Final[Mapping[str, Vendor]] = {
    vendor.name: vendor
    for vendor in (
        Vendor(
            name="anthropic",
            extra="anthropic",
            # For the SDK's own transport over aiohttp, the faster one.
            packages=("anthropic", "aiohttp"),
            variables=("ANTHROPIC_API_KEY",),
            base_url_variable="ANTHROPIC_BASE_URL",
            base_url="https://api.anthropic.com",
            ping="/v1/models?limit=1",
            header="x-api-key",
            headers={"anthropic-version": "2023-06-01"},
        ),
        Vendor(
            name="openai",
            extra="openai",
            packages=("openai", "aiohttp"),
            variables=("OPENAI_API_KEY",),
            base_url_variable="OPENAI_BASE_URL",
            base_url="https://api.openai.com/v1",
            ping="/models",
            header="authorization",
            bearer=True,
            headers={},
        ),
        Vendor(
            name="google",
            extra="google",
            packages=("google.genai",),
            variables=("GOOGLE_API_KEY", "GEMINI_API_KEY"),
            base_url_variable="GOOGLE_GEMINI_BASE_URL",
            base_url="https://generativelanguage.googleapis.com",
            ping="/v1beta/models?pageSize=1",
            header="x-goog-api-key",
            headers={},
        ),
        Vendor(
            name="local",
            extra="openai",
            packages=("openai", "aiohttp"),
            variables=(),
            # Where Ollama listens; vLLM and llama.cpp have other ports.
            base_url="http://127.0.0.1:11434/v1",
            ping="/models",
            header="authorization",
            bearer=True,
            needs_key=False,
            headers={},
        ),
    )
}
_VENDOR_OF: Final[Mapping[Api, str]] = {
    Api.ANTHROPIC: "anthropic",
    Api.OPENAI_CHAT: "openai",
    Api.OPENAI_RESPONSES: "openai",
    Api.GOOGLE: "google",
    Api.LOCAL: "local",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """How one provider is to be called.

    ``timeout``: seconds without a sign from it. ``max_concurrency``: calls at once with this key. ``max_wait``: seconds
    that a call may wait for the vendor's rate limit before it fails.
    """

    api_key: str | None = None
    base_url: str | None = None
    timeout: float = 120.0
    max_concurrency: int = 100
    max_wait: float = 10.0

    def __repr__(self) -> str:
        # The key must not come into a log with whatever prints this.
        return f"ProviderConfig(base_url={self.base_url!r})"


#: What stands in names of models. Google's stand in a URL, so no other characters do.
_MODEL: Final = "[A-Za-z0-9._:/@+~-]{1,200}"
MODEL_NAME_PATTERN: Final = rf"^({'|'.join(Api)}):{_MODEL}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """A name such as ``openai:gpt-5``, taken apart."""

    api: Api
    vendor: Vendor
    model: str

    def __str__(self) -> str:
        return f"{self.api}:{self.model}"


def parse(text: str, *, path: str = "model") -> ModelName:
    """Raises :class:`InvalidInput` with the nearest prefix, or all of them."""
    prefix, colon, model = text.partition(":")
    fault: str | None = None
    if not colon:
        fault = f"'{text[:80]}' names no provider; write it as in 'openai:{text[:80] or 'gpt-5'}'"
    elif prefix not in tuple(Api):
        near = difflib.get_close_matches(prefix, tuple(Api), n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(Api)}"
        fault = f"there is no provider '{prefix[:40]}'; {hint}"
    elif not re.fullmatch(_MODEL, model) or ".." in model:
        fault = f"what follows '{prefix}:' must be 1 to 200 letters, digits, or any of . _ : / @ + ~ -"
    if fault is not None:
        raise InvalidInput(f"{path}: {fault}", faults=(Fault(path=path, message=fault),))
    api = Api(prefix)
    return ModelName(api=api, vendor=VENDORS[_VENDOR_OF[api]], model=model)
