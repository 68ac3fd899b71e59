"""A vendor's model behind our promises: its limits kept, its errors ours, its answers whole. Imports pydantic-ai."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelRequestTimeout,
    ModelTimeoutError,
    UserError,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext

from agent_orchestra.adapters.models.failures import Refusal, failure, refusal_of
from agent_orchestra.adapters.models.prices import cost_of
from agent_orchestra.adapters.models.providers import Exchange, Provider, exchange
from agent_orchestra.core.request import Generation, Reply, StopReason, ToolCall, Usage
from agent_orchestra.core.values import cleaned
from agent_orchestra.errors import (
    ContentRefused,
    ModelFailed,
    ModelOverloaded,
    ModelRateLimited,
    ModelRequestInvalid,
    ModelServerError,
    ModelTimeout,
    ModelUnreachable,
    OrchestraError,
    StreamBroken,
)

__all__ = ["ListenerFailed", "VendorModel", "generation_of", "reply_of", "usage_of"]


class ListenerFailed(Exception):
    """Whoever listens to a stream has raised. It is no fault of the vendor's, and is not told as one."""


_STOPS: Final = {"stop": StopReason.STOP, "length": StopReason.LENGTH, "tool_call": StopReason.TOOL_CALL}


class VendorModel(WrapperModel):
    """One model, as any part of pydantic-ai may use it. Raises :class:`ModelFailed`, and no vendor's error."""

    def __init__(self, wrapped: Model, provider: Provider, model: str) -> None:
        super().__init__(wrapped)
        self.vendor = provider
        #: The name that was asked for; the vendor may answer with a more exact one.
        self.asked = model

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        async with self._call() as current:
            with self._translated(streaming=False):
                response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            self._check(response)
        _note_request_id(response, current)
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        async with self._call() as current:
            began = False
            try:
                async with self.wrapped.request_stream(
                    messages, model_settings, model_request_parameters, run_context
                ) as streamed:
                    began = True
                    yield streamed
            except ListenerFailed:
                raise
            except Exception:
                with self._translated(streaming=began):
                    raise
            self._check(streamed.get(), streamed=True)
            _note_request_id(streamed, current)

    @asynccontextmanager
    async def _call(self) -> AsyncGenerator[Exchange]:
        current = Exchange(self.asked)
        token = exchange.set(current)
        try:
            async with self.vendor.limiter.place(self.asked):
                # In the place: what the limiter itself refuses never comes here.
                try:
                    yield current
                except (ModelRateLimited, ModelOverloaded) as error:
                    self.vendor.limiter.refused(self.asked, error)
                    raise
        except ModelFailed as error:
            self.vendor.last_error = error.code
            raise
        else:
            self.vendor.last_error = None
        finally:
            exchange.reset(token)
            if current.response is not None and not current.response.is_closed:
                # Whoever was reading has left in the middle; not every SDK lets go of the connection then.
                await current.response.aclose()

    @contextmanager
    def _translated(self, *, streaming: bool) -> Generator[None]:
        """``streaming``: the answer has begun, so what breaks now breaks an answer off.

        A vendor's own error is not kept as the cause: what it says may quote the key, and causes are logged.
        """
        try:
            yield
        except OrchestraError:
            raise
        except ModelHTTPError as error:
            raise self._failure(_refusal(error)) from None
        except ContentFilterError:
            raise self._refusal(ContentRefused) from None
        except (ModelTimeoutError, ModelRequestTimeout) as error:
            kind = ModelTimeout if _is_timeout(error) else ModelUnreachable
            raise self._refusal(StreamBroken if streaming else kind) from None
        except ModelConnectionError:
            raise self._refusal(StreamBroken if streaming else ModelUnreachable) from None
        except ModelAPIError as error:
            if error.body is not None or error.provider_error_code is not None:
                raise self._failure(_refusal(error)) from None
            raise self._refusal(StreamBroken if streaming else ModelServerError) from None
        except UserError as error:
            # What pydantic-ai finds wrong with a request before it is sent.
            raise self._refusal(ModelRequestInvalid) from error
        except (OSError, TimeoutError) as error:
            kind = ModelTimeout if isinstance(error, TimeoutError) else ModelUnreachable
            raise self._refusal(StreamBroken if streaming else kind) from None
        except Exception as error:
            current = exchange.get()
            if current is None or not current.sent:
                raise self._refusal(ModelRequestInvalid) from error
            # An answer of a form that nobody expects breaks whoever reads it.
            raise self._refusal(StreamBroken if streaming else ModelServerError) from error

    def _check(self, response: ModelResponse, *, streamed: bool = False) -> None:
        """Lets through only an answer that is whole."""
        details = response.provider_details or {}
        if response.finish_reason == "content_filter":
            code = _text_in(details, "block_reason") or _text_in(details, "finish_reason")
            raise self._refusal(ContentRefused, vendor_code=code)
        if response.finish_reason == "error":
            raise self._refusal(ModelServerError, vendor_code=_text_in(details, "finish_reason"))
        if response.finish_reason is None or response.state != "complete":
            raise self._refusal(StreamBroken if streamed else ModelServerError)

    def _failure(self, refusal: Refusal) -> ModelFailed:
        return failure(
            refusal,
            provider=self.vendor.name,
            model=self.asked,
            key_hint=self.vendor.key_hint,
            key=self.vendor.config.api_key,
            vendor_request_id=self._request_id(),
        )

    def _refusal(self, kind: type[ModelFailed], *, vendor_code: str | None = None) -> ModelFailed:
        return refusal_of(
            kind,
            provider=self.vendor.name,
            model=self.asked,
            key_hint=self.vendor.key_hint,
            vendor_code=vendor_code,
            vendor_request_id=self._request_id(),
        )

    def _request_id(self) -> str | None:
        current = exchange.get()
        return current.request_id if current else None


_REQUEST_ID: Final = "orchestra_request_id"


def _note_request_id(response: ModelResponse | StreamedResponse, current: Exchange) -> None:
    if current.request_id:
        response.provider_details = {**(response.provider_details or {}), _REQUEST_ID: current.request_id}


def _refusal(error: ModelAPIError) -> Refusal:
    """What the vendor sent. An error inside a stream came with the status of the stream, which says nothing of it."""
    status, headers = None, {}
    if isinstance(error, ModelHTTPError) and not error.in_stream:
        status, headers = error.status_code, error.headers or {}
    body = error.body or {"code": error.provider_error_code, "type": error.provider_error_type}
    return Refusal(status=status, body=body, headers=headers)


def _is_timeout(error: BaseException) -> bool:
    """Whether time ran out. One of the transports calls every broken connection a timeout; its own cause says which."""
    cause: BaseException | None = error
    by_aiohttp = False
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return True
        by_aiohttp = by_aiohttp or type(cause).__module__.partition(".")[0] == "aiohttp"
        cause = cause.__cause__
    return not by_aiohttp


def reply_of(response: ModelResponse, model: VendorModel, *, first_token_ms: float | None = None) -> Reply:
    """One response as a reply. Raises :class:`ModelServerError` for a call of a tool whose arguments are no JSON."""
    calls: list[ToolCall] = []
    for part in response.parts:
        if isinstance(part, ToolCallPart):
            try:
                arguments = part.args_as_dict(raise_if_invalid=True)
            except (ValueError, AssertionError):
                raise refusal_of(
                    ModelServerError, provider=model.vendor.name, model=model.asked, vendor_code="tool_call_not_json"
                ) from None
            calls.append(ToolCall(id=part.tool_call_id, name=part.tool_name, arguments=arguments))
    return Reply(
        output="".join(part.content for part in response.parts if isinstance(part, TextPart)),
        tool_calls=tuple(calls),
        usage=usage_of([response], model),
        generation=generation_of(response, model, first_token_ms),
    )


def generation_of(response: ModelResponse, model: VendorModel, first_token_ms: float | None) -> Generation:
    """Which model wrote a response, and how it stopped. Gemini says ``STOP`` also where it calls a tool."""
    calls = any(isinstance(part, ToolCallPart) for part in response.parts)
    stop = _STOPS.get(response.finish_reason or "", StopReason.STOP)
    request_id = _text_in(response.provider_details, _REQUEST_ID) or response.provider_response_id
    return Generation(
        provider=model.vendor.name,
        model=cleaned(response.model_name or model.asked),
        stop_reason=StopReason.TOOL_CALL if calls and stop is StopReason.STOP else stop,
        request_id=cleaned(request_id) if request_id else None,
        first_token_ms=first_token_ms,
    )


def usage_of(responses: Sequence[ModelResponse], model: VendorModel) -> Usage:
    """What some responses used together. Where the cost of one is not known, that of all is not."""
    used = [response.usage for response in responses]
    costs = [
        cost_of(
            response.usage,
            provider=model.vendor.name,
            model=response.model_name or model.asked,
            tier=_text_in(response.provider_details, "service_tier"),
        )
        for response in responses
    ]
    known = [cost for cost, _ in costs if cost is not None]
    priced = len(known) == len(costs) > 0
    return Usage(
        input_tokens=sum(one.input_tokens for one in used),
        output_tokens=sum(one.output_tokens for one in used),
        cache_read_tokens=sum(one.cache_read_tokens for one in used),
        cache_write_tokens=sum(one.cache_write_tokens for one in used),
        reasoning_tokens=sum(_reasoning(one.details) for one in used),
        cost_usd=sum(known) if priced else None,
        price_date=costs[-1][1] if priced else None,
    )


def _reasoning(details: Mapping[str, int]) -> int:
    """What OpenAI calls reasoning is thoughts for Google."""
    return details.get("reasoning_tokens") or details.get("thoughts_tokens", 0)


def _text_in(details: Mapping[str, Any] | None, name: str) -> str | None:
    found = (details or {}).get(name)
    return found if isinstance(found, str) else None
