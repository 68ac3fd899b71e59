"""Where the vectors of texts are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["VectorStore"]


class VectorStore(Protocol):
    """Keeps the vectors of texts, so that a start need not encode them again. The texts themselves are not kept.

    ``encoder`` is the name of what made the vectors: those of one are never given for another.
    """

    async def load(
        self, tenants: Collection[str], encoder: str, texts: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """Those that are kept for any of these tenants, by text. The arrays are read-only."""
        ...

    async def save(self, tenant: str, encoder: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keeps vectors, each of one dimension. One that is kept already stays as it is."""
        ...
