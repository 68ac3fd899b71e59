"""The data that an evaluation needs. Without them its tests are skipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pytest

from agent_orchestra.adapters.encoders.folder import open_folder
from agent_orchestra.runtime.encoding import Encoder

SHARED = Path(__file__).resolve().parents[3] / "shared"
ROUTING = SHARED / "routing"


class Sampled(Protocol):
    def __call__(self, folder: str, count: int, *, nobodys: int = 0) -> Path: ...


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The small encoder of ../shared/encoder."""
    folder = SHARED / "encoder"
    if not folder.is_dir():
        pytest.skip("../shared/encoder is not here")
    return open_folder(folder)


@pytest.fixture
def sampled(tmp_path: Path) -> Sampled:
    """Writes a test file with so many requests of a suite's, and so many that are nobody's, evenly spread over it."""
    if not ROUTING.is_dir():
        pytest.skip("the data of ../shared/routing are not here")

    def sampled(folder: str, count: int, *, nobodys: int = 0) -> Path:
        lines = (ROUTING / folder / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        inside = [line for line in lines if json.loads(line)["agent"] is not None]
        outside = [line for line in lines if json.loads(line)["agent"] is None]
        test = tmp_path / f"{folder}.jsonl"
        test.write_text("".join(_spread(inside, count) + _spread(outside, nobodys)), encoding="utf-8")
        return test

    return sampled


def _spread(lines: Sequence[str], count: int) -> list[str]:
    return [lines[n * len(lines) // count] for n in range(count)]
