"""Embeddings of vendors: OpenAI's protocol, which servers of one's own speak too, and Google's.

Sources: OpenAI, "Create embeddings" (platform.openai.com/docs/api-reference/embeddings); Google,
``models.batchEmbedContents`` (ai.google.dev/api/embeddings).
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from agent_orchestra.adapters.models.failures import Refusal, failure, refusal_of
from agent_orchestra.adapters.models.providers import Exchange, Provider, Providers, exchange
from agent_orchestra.adapters.models.vendors import Api, ModelName, parse
from agent_orchestra.core.values import cleaned
from agent_orchestra.errors import (
    ConfigurationError,
    EncoderFailed,
    InvalidInput,
    MissingExtra,
    ModelFailed,
    ModelOverloaded,
    ModelRateLimited,
    ModelServerError,
    ModelTimeout,
    ModelUnreachable,
    OrchestraError,
)

if TYPE_CHECKING:
    import httpx2
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["VendorEncoder", "open_vendor_encoder"]

#: Google takes a hundred texts at once, OpenAI 2,048 of 300,000 tokens together.
_MOST_TEXTS: Final = 96
_MOST_CHARS: Final = 100_000
#: OpenAI's models read 8,192 tokens and refuse more; no script needs more than two for a character.
_READ_CHARS: Final = 4_000
#: The one of Google's models that reads its task in front of the text (ai.google.dev/gemini-api/docs/embeddings).
_TASK_IN_WORDS: Final = "gemini-embedding-2"


def open_vendor_encoder(providers: Providers, setting: str) -> VendorEncoder:
    """The encoder of a name such as ``openai:text-embedding-3-small``. Nobody is asked yet.

    Raises :class:`ConfigurationError` with what to change, and :class:`MissingExtra`.
    """
    try:
        name = parse(setting, path="routing.encoder")
    except InvalidInput as error:
        raise ConfigurationError(error.detail) from None
    provider = providers[name.vendor.name]
    if name.api not in _CALLS:
        known = ", ".join(_CALLS)
        raise ConfigurationError(f"routing.encoder: there are no embeddings behind '{name.api}:'; known: {known}")
    if not provider.has_key:
        raise ConfigurationError(provider.missing_key(name.model).detail)
    if not name.vendor.installed():
        raise MissingExtra(f"embeddings of {provider.name} need: pip install 'agent-orchestra[{name.vendor.extra}]'")
    return VendorEncoder(provider, name)


class VendorEncoder:
    """Conforms to :class:`Encoder`. Keeps to the limits of the provider's key, which other calls share."""

    def __init__(self, provider: Provider, name: ModelName) -> None:
        self.name = str(name)
        #: 0 until the first answer.
        self.dimension = 0
        self._provider = provider
        self._model = name.model
        self._call = _CALLS[name.api]

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        # No vendor takes a blank text.
        places = [place for place, text in enumerate(texts) if text.strip()]
        batches = _batches([cleaned(texts[place].strip()[:_READ_CHARS]) for place in places])
        try:
            found = [self._unit(await self._asked(batch), len(batch)) for batch in batches]
        except OrchestraError as error:
            raise EncoderFailed(error.detail, encoder=self.name, vendor_error=error.code) from None
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if found:
            rows[places] = np.concatenate(found)
        return rows

    async def close(self) -> None:
        """The connections are the provider's, and closed with it."""

    async def _asked(self, texts: Sequence[str]) -> Sequence[object]:
        """The vectors as they come. Raises :class:`ModelFailed`."""
        provider = self._provider
        path, body, vectors = self._call(self._model, texts)
        headers = dict(provider.vendor.headers)
        if provider.config.api_key:
            headers[provider.vendor.header] = f"{'Bearer ' * provider.vendor.bearer}{provider.config.api_key}"
        http = (await provider.client()).http
        async with self._exchange():
            response = await http.post(provider.base_url + path, json=body, headers=headers)
            if response.status_code != 200:
                raise self._failure(response)
            try:
                return vectors(response.json())
            except (ValueError, LookupError, TypeError, RecursionError):
                raise self._refusal(ModelServerError, vendor_code="not_embeddings") from None

    @asynccontextmanager
    async def _exchange(self) -> AsyncGenerator[None]:
        """One call in the limits of the key, with the errors of the transport in our words."""
        import httpx2

        provider = self._provider
        token = exchange.set(Exchange(self._model))
        try:
            async with provider.limiter.place(self._model):
                try:
                    yield
                except (ModelRateLimited, ModelOverloaded) as error:
                    provider.limiter.refused(self._model, error)
                    raise
                except (httpx2.HTTPError, OSError) as error:
                    timeout = isinstance(error, httpx2.TimeoutException | TimeoutError) and not _is_broken(error)
                    raise self._refusal(ModelTimeout if timeout else ModelUnreachable) from None
        except ModelFailed as error:
            provider.last_error = error.code
            raise
        else:
            provider.last_error = None
        finally:
            exchange.reset(token)

    def _unit(self, vectors: Sequence[object], count: int) -> NDArray[np.float32]:
        """The vectors at unit length. Raises :class:`ModelServerError` for what are none, or others than before."""
        import numpy as np

        try:
            rows = np.array([_numbers(vector) for vector in vectors], dtype=np.float32)
        except (ValueError, TypeError):
            raise self._refusal(ModelServerError, vendor_code="not_embeddings") from None
        if rows.ndim != 2 or len(rows) != count or rows.shape[1] != (self.dimension or rows.shape[1]):
            raise self._refusal(ModelServerError, vendor_code="other_dimensions")
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise self._refusal(ModelServerError, vendor_code="no_direction")
        self.dimension = rows.shape[1]
        return rows / lengths

    def _failure(self, response: httpx2.Response) -> ModelFailed:
        try:
            body: object = response.json()
        except (ValueError, RecursionError):
            body = None
        return failure(
            Refusal(status=response.status_code, body=body, headers=response.headers),
            provider=self._provider.name,
            model=self._model,
            key_hint=self._provider.key_hint,
            key=self._provider.config.api_key,
        )

    def _refusal(self, kind: type[ModelFailed], *, vendor_code: str | None = None) -> ModelFailed:
        return refusal_of(
            kind,
            provider=self._provider.name,
            model=self._model,
            key_hint=self._provider.key_hint,
            vendor_code=vendor_code,
        )


def _is_broken(error: BaseException) -> bool:
    """Whether a timeout is none: the transport over aiohttp calls every broken connection one; its cause says which."""
    cause = error.__cause__
    while cause is not None and not isinstance(cause, TimeoutError):
        if type(cause).__module__.partition(".")[0] == "aiohttp":
            return True
        cause = cause.__cause__
    return False


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for text in texts:
        if batch and (len(batch) == _MOST_TEXTS or chars + len(text) > _MOST_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append(text)
        chars += len(text)
    if batch:
        yield batch


def _numbers(vector: object) -> NDArray[np.float32] | object:
    """A vector as numbers: little-endian floats in base64, or a list."""
    import numpy as np

    return np.frombuffer(base64.b64decode(vector), dtype="<f4") if isinstance(vector, str) else vector


def _openai(model: str, texts: Sequence[str]) -> _Call:
    # As the SDK asks, so that servers are used to it: a fifth of the bytes. One that does not know it sends lists.
    return "/embeddings", {"model": model, "input": texts, "encoding_format": "base64"}, _of_openai


def _of_openai(answer: Any) -> Sequence[object]:
    return [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]


def _google(model: str, texts: Sequence[str]) -> _Call:
    """Requests and lines of definitions are compared with each other: none is a document that the others search."""
    by_words = model == _TASK_IN_WORDS
    task = {} if by_words else {"taskType": "SEMANTIC_SIMILARITY"}
    told = [f"task: sentence similarity | query: {text}" for text in texts] if by_words else texts
    requests = [{"model": f"models/{model}", "content": {"parts": [{"text": text}]}, **task} for text in told]
    return f"/v1beta/models/{model}:batchEmbedContents", {"requests": requests}, _of_google


def _of_google(answer: Any) -> Sequence[object]:
    return [item["values"] for item in answer["embeddings"]]


#: A path below the base URL, the body to send there, and what finds the vectors in the answer, in order.
_Call = tuple[str, Mapping[str, object], Callable[[Any], Sequence[object]]]
_CALLS: Final[Mapping[Api, Callable[[str, Sequence[str]], _Call]]] = {
    Api.OPENAI_CHAT: _openai,
    Api.GOOGLE: _google,
    Api.LOCAL: _openai,
}
