"""Encoders of a few bytes: folders with an ONNX graph that looks up a row for each token, and does it well or badly.

The messages are those of ``onnx/onnx.proto``, of version 3, written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

__all__ = ["ROWS", "WORDS", "graph", "made"]

WORDS: Final = ("[UNK]", "a", "parcel", "lost", "money")
#: One for each of the words.
ROWS: Final = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 3, 4], [2, 2, 1]], dtype=np.float32)

#: Types of elements, as onnx.proto numbers them.
_FLOAT: Final = 1
_INT64: Final = 7


def made(
    folder: Path, model: bytes | None = None, *, at: str = "model.onnx", files: Mapping[str, object] | None = None
) -> Path:
    """A folder with an encoder. ``files``: others of JSON, by their paths."""
    path = folder / at
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model if model is not None else graph())
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    for place, content in (files or {}).items():
        path = folder / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def graph(
    rows: NDArray[np.float32] = ROWS,
    *,
    by: str = "input_ids",
    inputs: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
    kind: int = _INT64,
    output: str = "last_hidden_state",
    cast: bool = False,
) -> bytes:
    """A graph that gives for each token its row, chosen by an input; with ``cast``, the input itself as numbers."""
    if cast:
        to_float = _text(1, "to") + _number(3, _FLOAT) + _number(20, 2)
        node = _text(1, by) + _text(2, output) + _text(4, "Cast") + _message(5, to_float)
        table = b""
    else:
        node = _text(1, "rows") + _text(1, by) + _text(2, output) + _text(4, "Gather")
        dimensions = b"".join(_number(1, size) for size in rows.shape)
        table = _message(5, dimensions + _number(2, _FLOAT) + _text(8, "rows") + _message(9, rows.tobytes()))
    given = b"".join(_message(11, _tensor(name, kind, ("batch", "tokens"))) for name in inputs)
    rank = 2 if cast else 1 + rows.ndim
    told = _message(12, _tensor(output, _FLOAT, [f"size_{axis}" for axis in range(rank)]))
    whole = _message(1, node) + _text(2, "graph") + table + given + told
    return _number(1, 8) + _message(8, _text(1, "") + _number(2, 13)) + _message(7, whole)


def _tensor(name: str, kind: int, axes: Sequence[str]) -> bytes:
    shape = b"".join(_message(1, _text(2, axis)) for axis in axes)
    return _text(1, name) + _message(2, _message(1, _number(1, kind) + _message(2, shape)))


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
