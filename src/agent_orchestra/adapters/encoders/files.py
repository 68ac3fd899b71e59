"""What lies in the folder of a sentence encoder, in the forms in which they are published, and what it says of itself.

The forms are those of sentence-transformers (``1_Pooling/config.json``, ``sentence_bert_config.json``, ``onnx/``), of
Optimum, and of a plain folder with ``model.onnx`` and ``tokenizer.json``.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, cast

from agent_orchestra.errors import ConfigurationError

__all__ = ["SMALL_FILES", "TOKENIZER", "EncoderFiles", "Pooling", "beside", "files_in", "preferred"]

TOKENIZER: Final = "tokenizer.json"
_CONFIG: Final = "config.json"
_SENTENCES: Final = "sentence_bert_config.json"
_POOLING: Final = "1_Pooling/config.json"
#: What is read beside the model and the tokenizer, where it is there.
SMALL_FILES: Final = (_CONFIG, _SENTENCES, _POOLING)

#: A request says what it is about in fewer tokens, and the time to read it grows with them.
_MOST_TOKENS: Final = 256
_ONNX: Final = ".onnx"


class Pooling(StrEnum):
    """How one vector is made of those of the tokens."""

    MEAN = "mean"
    CLS = "cls"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFiles:
    """``tokens``: how many of a text are read."""

    folder: Path
    model: Path
    tokenizer: Path
    pooling: Pooling
    tokens: int

    def digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of all that decides about the vectors."""
        whole = hashlib.sha256(f"{self.pooling} {self.tokens}".encode())
        weights = beside(self.model.name, [path.name for path in self.model.parent.iterdir()])
        for path in (self.tokenizer, self.model, *map(self.model.with_name, weights)):
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()[:12]


def files_in(folder: Path) -> EncoderFiles:
    """The files of an encoder. Raises :class:`ConfigurationError` with the folder, and what it lacks."""
    if not folder.is_dir():
        raise ConfigurationError(f"there is no folder '{folder}' with an encoder")
    names = [path.relative_to(folder).as_posix() for path in (*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx"))]
    model = preferred(names)
    if model is None:
        told = f"none of its ONNX files is for a CPU ({', '.join(sorted(names))})" if names else "it has no model.onnx"
        raise ConfigurationError(f"the folder '{folder}' holds no encoder: {told}")
    if not (folder / TOKENIZER).is_file():
        raise ConfigurationError(f"the folder '{folder}' holds no encoder: it has no {TOKENIZER}")
    return EncoderFiles(
        folder=folder,
        model=folder / model,
        tokenizer=folder / TOKENIZER,
        pooling=_pooling(folder),
        tokens=_tokens(folder),
    )


def preferred(names: Collection[str], stems: Sequence[str] | None = None) -> str | None:
    """The ONNX file that this machine runs best, of their paths below a folder; none where there is none for a CPU.

    Eight bits before 32: a quarter of the memory, and faster. Where the processor cannot add up products of bytes in
    one instruction (VNNI), sums with signed weights may overflow, and those with unsigned ones do not (onnxruntime.ai,
    "Quantize ONNX models", on U8S8 and saturation). ``stems`` are names of files in order of preference, by default
    those that fit this processor.
    """
    for stem in stems if stems is not None else _stems():
        for place in ("", "onnx/"):
            if (name := f"{place}{stem}{_ONNX}") in names:
                return name
    # One that somebody gave a name of its own.
    own = [name for name in names if name.endswith(_ONNX) and not _is_for_others(name)]
    return own[0] if len(own) == 1 else None


def beside(model: str, names: Collection[str]) -> list[str]:
    """The files, of those named, that hold the weights of a model which are too large for its own file."""
    return sorted({f"{model}_data", f"{model}.data"} & set(names))


def _stems() -> list[str]:
    if platform.machine().lower() in ("arm64", "aarch64"):
        exact = ["model_qint8_arm64"]
    elif _has_vnni():
        exact = ["model_qint8_avx512_vnni", "model_qint8_avx512", "model_quint8_avx2"]
    else:
        exact = ["model_quint8_avx2"]
    return [*exact, "model_quantized", "model_int8", "model_uint8", "model"]


def _has_vnni() -> bool:
    """Only Linux tells without asking the processor itself; elsewhere the careful choice is made."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _is_for_others(name: str) -> bool:
    """Half precision and four bits are for GPUs; the other eight bits for other processors."""
    return any(part in name for part in ("fp16", "_q4", "bnb4", "int8_", "_O4"))


def _pooling(folder: Path) -> Pooling:
    told = _read(folder / _POOLING)
    modes = {name for name, value in told.items() if name.startswith("pooling_mode_") and value is True}
    if not modes or modes == {"pooling_mode_mean_tokens"}:
        return Pooling.MEAN
    if modes == {"pooling_mode_cls_token"}:
        return Pooling.CLS
    raise ConfigurationError(
        f"the encoder in '{folder}' pools its tokens by {', '.join(sorted(modes))}; known: mean, cls. Take another one"
    )


def _tokens(folder: Path) -> int:
    """The tokenizer's own limit is not asked: it is that of whoever exported it, and often half of the model's."""
    positions = _read(folder / _CONFIG).get("max_position_embeddings")
    told = (positions, _read(folder / _SENTENCES).get("max_seq_length"))
    return min([_MOST_TOKENS, *(limit for limit in told if isinstance(limit, int) and limit > 2)])


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file."""
    try:
        found: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"'{path}' cannot be read ({type(error).__name__}); fetch the encoder again") from None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
