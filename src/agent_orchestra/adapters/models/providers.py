"""One provider: its client, made when it is first used, its limits, and what was last seen of it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agent_orchestra.adapters.models.failures import Refusal, failure, refusal_of
from agent_orchestra.adapters.models.limiter import Limiter
from agent_orchestra.adapters.models.vendors import VENDORS, Api, ModelName, ProviderConfig, Vendor
from agent_orchestra.errors import (
    MissingExtra,
    ModelFailed,
    ModelTimeout,
    ModelUnreachable,
    ProviderKeyMissing,
)
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.models import ProviderStatus

if TYPE_CHECKING:
    import httpx2
    from pydantic_ai.models import Model

__all__ = ["Exchange", "Provider", "Providers", "exchange"]

_CONNECT_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 5.0
_FRESH_SECONDS: Final = 60.0


@dataclass(slots=True)
class Exchange:
    """What the headers of a response said, while the call that it belongs to goes on."""

    model: str
    sent: bool = False
    request_id: str | None = None
    response: httpx2.Response | None = None


#: The call that the current task makes. The SDKs keep what we need of a response to themselves; its headers pass here.
exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


class Provider:
    """One key at one vendor."""

    def __init__(self, vendor: Vendor, config: ProviderConfig) -> None:
        self.vendor = vendor
        self.config = config
        self.limiter = Limiter(vendor.name, concurrency=config.max_concurrency, max_wait=config.max_wait)
        self.last_error: str | None = None
        self._models: dict[tuple[Api, str], Model] = {}
        self._client: _Client | None = None
        self._connecting = asyncio.Lock()
        self._checking = asyncio.Lock()
        self._check_error: str | None = None
        self._checked: tuple[float, ProviderStatus] | None = None

    @property
    def name(self) -> str:
        return self.vendor.name

    @property
    def base_url(self) -> str:
        return (self.config.base_url or self.vendor.base_url).rstrip("/")

    @property
    def has_key(self) -> bool:
        return bool(self.config.api_key) or not self.vendor.needs_key

    @property
    def key_hint(self) -> str:
        """Where the key comes from, in words."""
        return " or ".join((*self.vendor.variables, f"providers.{self.name}.api_key"))

    def missing_key(self, model: str) -> ProviderKeyMissing:
        return ProviderKeyMissing(
            f"there is no key for {self.name}, which '{model}' needs; set {self.key_hint}",
            provider=self.name,
            model=model,
        )

    async def model(self, name: ModelName) -> Model:
        """The vendor's model, as pydantic-ai has it. Raises :class:`ProviderKeyMissing` or :class:`MissingExtra`."""
        if model := self._models.get((name.api, name.model)):
            return model
        if not self.has_key:
            raise self.missing_key(name.model)
        client = await self.client()
        # To make a model is to read the prices of all models, once.
        model = await asyncio.to_thread(_MAKERS[name.api], client, name.model)
        return self._models.setdefault((name.api, name.model), model)

    async def client(self) -> _Client:
        async with self._connecting:
            if self._client is None:
                if not self.vendor.installed():
                    raise MissingExtra(
                        f"models of {self.name} need the extra '{self.vendor.extra}': "
                        f"pip install 'agent-orchestra[{self.vendor.extra}]'"
                    )
                # The SDKs take a second or two to import.
                self._client = await asyncio.to_thread(_client, self)
            return self._client

    async def sent(self, _: httpx2.Request) -> None:
        """Called before every request."""
        if current := exchange.get():
            current.sent = True

    async def heard(self, response: httpx2.Response) -> None:
        """Called with the head of every response, before its body is read."""
        current = exchange.get()
        if current is None:
            return
        headers = response.headers
        current.response = response
        current.request_id = headers.get("x-request-id") or headers.get("request-id")
        self.limiter.heard(current.model, headers)

    async def status(self, *, fresh: bool) -> ProviderStatus:
        """What one cheap call says, or what it said within the last minute."""
        asked = time.monotonic()
        async with self._checking:
            # Whoever has waited for another's check is given what that has found.
            since = asked if fresh else asked - _FRESH_SECONDS
            if self._checked is None or self._checked[0] < since:
                found = await self._asked()
                self._checked = (time.monotonic(), found)
            # What calls have failed with since then is known without asking anybody.
            return dataclasses.replace(self._checked[1], last_error=self._check_error or self.last_error)

    def known(self) -> ProviderStatus | None:
        """What the last check has found, and calls since then; none where there was none."""
        if self._checked is None:
            return None
        return dataclasses.replace(self._checked[1], last_error=self._check_error or self.last_error)

    async def _asked(self) -> ProviderStatus:
        installed = self.vendor.installed()
        configured = self.has_key and (self.vendor.needs_key or self.config.base_url is not None)
        error: ModelFailed | None = None
        if configured and installed:
            error = await self._ping()
            self._check_error = error.code if error else None
        if not installed:
            detail = f"pip install 'agent-orchestra[{self.vendor.extra}]'"
        elif not configured:
            detail = f"set {self.key_hint}" if self.vendor.needs_key else f"set providers.{self.name}.base_url"
        else:
            detail = error.detail if error else "answers"
        return ProviderStatus(
            name=self.name,
            configured=configured,
            installed=installed,
            reachable=error is None if configured and installed else None,
            last_error=None,
            detail=detail,
            checked_ms=now_ms(),
        )

    async def _ping(self) -> ModelFailed | None:
        import httpx2

        client = (await self.client()).http
        headers = dict(self.vendor.headers)
        if self.config.api_key:
            headers[self.vendor.header] = f"{'Bearer ' * self.vendor.bearer}{self.config.api_key}"
        told = {"provider": self.name, "model": "models", "key_hint": self.key_hint}
        try:
            response = await client.get(self.base_url + self.vendor.ping, headers=headers, timeout=_CHECK_SECONDS)
        except (httpx2.TimeoutException, TimeoutError):
            return refusal_of(ModelTimeout, **told)
        except Exception:  # noqa: BLE001  a check tells what is wrong, whatever that is
            return refusal_of(ModelUnreachable, **told)
        if 300 <= response.status_code < 400:
            return refusal_of(ModelUnreachable, **told, status=response.status_code)
        if response.status_code < 300 or response.status_code in (404, 405):
            # One that does not list its models answers all the same.
            return None
        refusal = Refusal(status=response.status_code, body=_json(response))
        return failure(refusal, **told, key=self.config.api_key)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.http.aclose()


class Providers:
    """Every vendor that is known, by name, with the settings that it was given."""

    def __init__(self, configs: Mapping[str, ProviderConfig]) -> None:
        self._providers = {
            name: Provider(vendor, configs.get(name, ProviderConfig())) for name, vendor in VENDORS.items()
        }

    def __getitem__(self, name: str) -> Provider:
        return self._providers[name]

    async def check(self, *, fresh: bool = False) -> Sequence[ProviderStatus]:
        return await asyncio.gather(*(provider.status(fresh=fresh) for provider in self._providers.values()))

    def known(self) -> Sequence[ProviderStatus]:
        return [status for provider in self._providers.values() if (status := provider.known()) is not None]

    async def close(self) -> None:
        """Closes the connections that are open."""
        for provider in self._providers.values():
            await provider.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Client:
    """A vendor's client, and the connections below it. ``provider`` is pydantic-ai's."""

    http: httpx2.AsyncClient
    provider: Any = field(repr=False)


def _client(provider: Provider) -> _Client:
    import httpx2

    key, base_url = provider.config.api_key, provider.base_url
    # Whoever waits for a free connection waits in the limiter.
    timeout = httpx2.Timeout(provider.config.timeout, connect=min(_CONNECT_SECONDS, provider.config.timeout), pool=None)
    common: dict[str, Any] = {
        "timeout": timeout,
        # The limiter keeps to max_concurrency; a few more are for checks.
        "limits": httpx2.Limits(max_connections=provider.config.max_concurrency + 10),
        # A key must not follow where a server points.
        "follow_redirects": False,
        "event_hooks": {"request": [provider.sent], "response": [provider.heard]},
    }
    if provider.name == "anthropic":
        import anthropic
        from pydantic_ai.providers.anthropic import AnthropicProvider

        http = anthropic.DefaultAioHttpClient(**common)
        client = anthropic.AsyncAnthropic(
            api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=http
        )
        return _Client(http=http, provider=AnthropicProvider(anthropic_client=client))
    if provider.name == "google":
        from google.genai import Client
        from google.genai.types import HttpOptions, HttpRetryOptions
        from pydantic_ai.providers.google import GoogleProvider

        from agent_orchestra.adapters.models.gemini import mend

        async def patient(request: httpx2.Request) -> None:
            # The SDK gives every request one number for all that it may wait for.
            request.extensions["timeout"] = timeout.as_dict()

        common["event_hooks"] = {"request": [provider.sent, patient], "response": [provider.heard, mend]}
        # A compressed body cannot be looked into.
        http = httpx2.AsyncClient(**common, headers={"Accept-Encoding": "identity"})
        options = HttpOptions(
            base_url=base_url,
            # Instructions and tools are not in v1, which the SDK asks by itself.
            api_version="v1beta",
            httpx_async_client=http,
            timeout=int(provider.config.timeout * 1_000),
            retry_options=HttpRetryOptions(attempts=1),
        )
        return _Client(
            http=http,
            provider=GoogleProvider(client=Client(vertexai=False, api_key=key, http_options=options)),
        )
    import openai
    from pydantic_ai.providers.openai import OpenAIProvider

    http = openai.DefaultAioHttpClient(**common)
    # A server of one's own takes any key, and the SDK does not go without one.
    client = openai.AsyncOpenAI(
        api_key=key or "none", base_url=base_url, max_retries=0, timeout=timeout, http_client=http
    )
    return _Client(http=http, provider=OpenAIProvider(openai_client=client))


def _anthropic(client: _Client, model: str) -> Model:
    from pydantic_ai.models.anthropic import AnthropicModel

    return AnthropicModel(model, provider=client.provider)


def _chat(client: _Client, model: str) -> Model:
    from pydantic_ai.profiles.openai import OpenAIModelProfile

    from agent_orchestra.adapters.models.chat import ChatModel

    # Without it a stream that is cut off is taken for one that has ended.
    complete = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
    return ChatModel(model, provider=client.provider, profile=complete)


def _local(client: _Client, model: str) -> Model:
    from pydantic_ai.profiles.openai import OpenAIModelProfile

    from agent_orchestra.adapters.models.chat import ChatModel

    # Not every server knows the newer name of max_tokens.
    profile = OpenAIModelProfile(
        openai_chat_streaming_requires_finish_reason=True, openai_chat_supports_max_completion_tokens=False
    )
    return ChatModel(model, provider=client.provider, profile=profile)


def _responses(client: _Client, model: str) -> Model:
    from pydantic_ai.models.openai import OpenAIResponsesModel

    return OpenAIResponsesModel(model, provider=client.provider)


def _google(client: _Client, model: str) -> Model:
    from pydantic_ai.models.google import GoogleModel

    return GoogleModel(model, provider=client.provider)


_MAKERS: Final = {
    Api.ANTHROPIC: _anthropic,
    Api.OPENAI_CHAT: _chat,
    Api.OPENAI_RESPONSES: _responses,
    Api.GOOGLE: _google,
    Api.LOCAL: _local,
}


def _json(response: httpx2.Response) -> object:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None
