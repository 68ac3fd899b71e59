"""A sentence encoder in a folder, run by onnxruntime on one thread.

Texts are encoded one by one. A model in eight bits scales what it computes by the largest value of its whole input, so
that in a batch a text's vector would depend on the others; and on one thread a batch is no faster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent_orchestra.adapters.encoders.files import EncoderFiles, Pooling, files_in
from agent_orchestra.errors import ConfigurationError, EncoderFailed, MissingExtra

__all__ = ["Description", "FolderEncoder", "describe", "open_folder"]

#: Texts as long as this together take a few milliseconds. They are not worth a thread; the event loop waits for them.
_INLINE_CHARS: Final = 200
#: Texts that are encoded before others have their turn, and before one who gave up is noticed.
_SLICE: Final = 8
#: No more characters are read for a token: in any script that has words they are shorter, with the space behind.
_TOKEN_CHARS: Final = 8
#: Names that exporters give to the vector of the whole text, where there are vectors of tokens beside it.
_SENTENCE_OUTPUTS: Final = ("sentence_embedding", "emb", "embedding", "embeddings")
_PROBES: Final = ("a", "Where is the parcel that I ordered on Monday?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """``tokens``: how many of a text are read. ``file``: the model's, below the folder; ``file_bytes``: its size."""

    name: str
    folder: Path
    file: str
    file_bytes: int
    dimension: int
    tokens: int
    pooling: Pooling


def describe(folder: Path) -> Description:
    """What the encoder in a folder is, after it has encoded. Takes a fraction of a second.

    Raises what :func:`open_folder` raises.
    """
    files = files_in(folder)
    encoder = open_folder(folder)
    return Description(
        name=encoder.name,
        folder=folder,
        file=files.model.relative_to(folder).as_posix(),
        file_bytes=files.model.stat().st_size,
        dimension=encoder.dimension,
        tokens=files.tokens,
        pooling=files.pooling,
    )


def open_folder(folder: Path) -> FolderEncoder:
    """The encoder in a folder, after it has encoded some texts. Takes a fraction of a second: call it in a thread.

    Raises :class:`ConfigurationError` with the folder and the way out, and :class:`MissingExtra`.
    """
    files = files_in(folder)
    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra("an encoder needs its extra: pip install 'agent-orchestra[encoder]'") from None
    with ThreadPoolExecutor(1) as beside:
        # To read the files once more takes about as long as to load them.
        digest = beside.submit(files.digest)
        try:
            tokenizer = Tokenizer.from_file(str(files.tokenizer))
        except Exception as error:  # noqa: BLE001  the library raises nothing more exact
            raise _unusable(
                files, f"its {files.tokenizer.name} is not one of the library 'tokenizers'", error
            ) from None
        try:
            session = _session(onnxruntime, files.model)
        except Exception as error:  # noqa: BLE001  as above
            raise _unusable(files, f"its {files.model.name} cannot be loaded", error) from None
        network = _Network(session, tokenizer, files)
        try:
            dimensions = {len(network.vector(text)) for text in (*_PROBES, "a " * files.tokens)}
        except EncoderFailed as error:
            raise _unusable(files, error.detail) from None
        if len(dimensions) > 1:
            raise _unusable(files, f"its vectors have different lengths: {', '.join(map(str, sorted(dimensions)))}")
        return FolderEncoder(f"folder:{digest.result()}", network, *dimensions)


def _unusable(files: EncoderFiles, why: str, error: Exception | None = None) -> ConfigurationError:
    told = f"{why} ({type(error).__name__})" if error is not None else why
    return ConfigurationError(
        f"the encoder in '{files.folder}' cannot be used: {told}; fetch it again, or take another"
    )


def _session(onnxruntime: Any, model: Path) -> Any:
    options = onnxruntime.SessionOptions()
    # The other processors are for the service. On one thread there is no pool either whose threads would spin.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # What goes wrong is raised; it need not be written to the terminal as well.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


class FolderEncoder:
    """Conforms to :class:`Encoder`. Short texts are encoded where they are asked for, others in a thread of its own."""

    def __init__(self, name: str, network: _Network, dimension: int) -> None:
        self.name = name
        self.dimension = dimension
        self._network = network
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._closed = False

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        inline = sum(map(len, texts)) <= _INLINE_CHARS
        for begin in range(0, len(texts), _SLICE):
            if self._closed:
                raise EncoderFailed("the encoder is closed", encoder=self.name)
            part = slice(begin, begin + _SLICE)
            if inline:
                self._fill(rows[part], texts[part])
            else:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._fill, rows[part], texts[part])
        return rows

    def _fill(self, rows: NDArray[np.float32], texts: Sequence[str]) -> None:
        """Writes the vectors of texts into rows of zeros, which is what a text without a token keeps."""
        for row, text in zip(rows, texts, strict=True):
            vector = self._network.vector(text)
            if len(vector) not in (0, self.dimension):
                raise EncoderFailed(
                    f"its vector has {len(vector)} numbers, and not {self.dimension}", encoder=self.name
                )
            row[: len(vector)] = vector

    async def close(self) -> None:
        self._closed = True
        self._thread.shutdown(wait=False)


class _Network:
    """A text in, its vector out. Any number of threads may use it at once."""

    def __init__(self, session: Any, tokenizer: Any, files: EncoderFiles) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(files.tokens)
        self._session = session
        self._tokenizer = tokenizer
        self._pooling = files.pooling
        self._read_chars = files.tokens * _TOKEN_CHARS
        self._inputs = {put.name: np.int32 if put.type == "tensor(int32)" else np.int64 for put in session.get_inputs()}
        outputs = [put.name for put in session.get_outputs()]
        self._output = next((name for name in _SENTENCE_OUTPUTS if name in outputs), outputs[0])

    def vector(self, text: str) -> NDArray[np.float32]:
        """A vector of unit length; one of no numbers for a text without a token. Raises :class:`EncoderFailed`."""
        try:
            found = self._tokenizer.encode(_encodable(text.lstrip()[: self._read_chars]))
            if all(found.special_tokens_mask):
                return np.empty(0, dtype=np.float32)
            tokens = {
                "input_ids": found.ids,
                "attention_mask": found.attention_mask,
                "token_type_ids": found.type_ids,
                "position_ids": range(len(found.ids)),
            }
            feed = {name: np.array([tokens[name]], dtype=kind) for name, kind in self._inputs.items()}
            output = self._session.run([self._output], feed)[0][0]
        except KeyError as error:
            raise EncoderFailed(f"its model asks for {error}, which is nothing that a tokenizer gives") from None
        except Exception as error:  # noqa: BLE001  the libraries raise nothing more exact
            raise EncoderFailed(f"its model failed on a text ({type(error).__name__})") from None
        if output.ndim == 2:
            # Of tokens of one text alone: none of them is padding.
            output = output[0] if self._pooling is Pooling.CLS else output.mean(axis=0)
        if output.ndim != 1:
            raise EncoderFailed("its model gives neither vectors of texts nor of tokens")
        length = float(np.linalg.norm(output.astype(np.float64)))
        if not 0 < length < float("inf"):
            raise EncoderFailed("its model gives a vector that has no direction")
        return (output / length).astype(np.float32)


def _encodable(text: str) -> str:
    """Half of a character, as a cut or a foreign encoding leaves it, is no text to a tokenizer."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
