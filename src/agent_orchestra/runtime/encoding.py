"""What turns texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Encoder"]


class Encoder(Protocol):
    """Turns texts into vectors of unit length."""

    @property
    def name(self) -> str:
        """Identifies the model and its weights: vectors of encoders with different names are never mixed."""
        ...

    @property
    def dimension(self) -> int:
        """The length of a vector; 0 while nothing has told it."""
        ...

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row for each text, in their order: (texts, dimension). Raises :class:`EncoderFailed`.

        A row has unit length; that of a text which says nothing to the encoder, as a blank one, is zeros.
        """
        ...

    async def close(self) -> None:
        """Gives back what it holds. It encodes nothing afterwards."""
        ...
