"""The vectors of texts: those of definitions and examples kept, those of requests made as they come."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from agent_orchestra.errors import EncoderFailed
from agent_orchestra.runtime.encoding import Encoder
from agent_orchestra.runtime.telemetry import Telemetry
from agent_orchestra.runtime.vectors import VectorStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

__all__ = ["Embeddings"]

#: Texts of requests whose vectors are kept in memory: the assistant's last turn comes again with the next request.
_RECENT: Final = 512
#: Beyond so many characters a text says nothing that its beginning does not; no encoder reads more.
_READ_CHARS: Final = 8_000
#: Seconds for all the lines of a registry; nobody waits for them.
_PATIENCE_SECONDS: Final = 600.0


class Embeddings:
    """Vectors by one encoder.

    ``timeout``: seconds that a request waits for its vectors. ``pause``: seconds for which an encoder that failed is
    left alone.
    """

    def __init__(
        self, encoder: Encoder, store: VectorStore, *, timeout: float, pause: float = 5.0, telemetry: Telemetry
    ) -> None:
        self._encoder = encoder
        self._store = store
        self._timeout = timeout
        self._pause = pause
        self._telemetry = telemetry
        self._recent: OrderedDict[str, Vector] = OrderedDict()
        self._failed_until = 0.0
        self.last_error: str | None = None

    @property
    def name(self) -> str:
        return self._encoder.name

    async def of_request(self, texts: Sequence[str]) -> list[Vector]:
        """The vectors of a request's texts. Raises :class:`EncoderFailed`, at once while a failure is fresh."""
        texts = [text[:_READ_CHARS] for text in texts]
        found = {text: vector for text in texts if (vector := self._recent.get(text)) is not None}
        if missing := [text for text in dict.fromkeys(texts) if text not in found]:
            found |= zip(missing, await self._encode(missing, self._timeout), strict=True)
        for text, vector in found.items():
            self._recent[text] = vector
            self._recent.move_to_end(text)
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return [found[text] for text in texts]

    async def of_definitions(self, tenants: Collection[str], tenant: str, texts: Sequence[str]) -> Mapping[str, Vector]:
        """The vectors of many texts, from the store where they are kept; new ones are kept for ``tenant``.

        ``tenants``: whose kept vectors may be used. Raises :class:`EncoderFailed`.
        """
        texts = list(dict.fromkeys(texts))
        if not texts:
            return {}
        kept = await self._store.load(tenants, self.name, texts)
        # A vendor may change what stands behind a name.
        length = self._encoder.dimension
        found = {text: vector for text, vector in kept.items() if not length or len(vector) == length}
        if missing := [text for text in texts if text not in found]:
            vectors = await self._encode(missing, _PATIENCE_SECONDS)
            new = dict(zip(missing, vectors, strict=True))
            await self._store.save(tenant, self.name, new)
            found |= new
        return found

    async def close(self) -> None:
        await self._encoder.close()

    async def _encode(self, texts: Sequence[str], seconds: float) -> NDArray[np.float32]:
        if time.monotonic() < self._failed_until:
            raise EncoderFailed("the encoder failed a moment ago, and is left alone for a while")
        try:
            async with asyncio.timeout(seconds):
                vectors = await self._encoder.encode(texts)
        except TimeoutError:
            raise self._failure(EncoderFailed("the encoder took too long")) from None
        except EncoderFailed as error:
            raise self._failure(error) from None
        self.last_error = None
        return vectors

    def _failure(self, error: EncoderFailed) -> EncoderFailed:
        self._failed_until = time.monotonic() + self._pause
        self.last_error = error.detail
        self._telemetry.warn("encoder_failed", encoder=self.name, code=error.code)
        return error
