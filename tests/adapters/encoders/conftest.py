"""A small encoder, which is data beside the project, and copies of it that may be broken."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import pytest

from agent_orchestra.adapters.encoders.folder import FolderEncoder, open_folder
from tests.services.service import PROJECT

ENCODER: Final = PROJECT.parent / "shared" / "encoder"


@pytest.fixture(scope="session")
def encoder_folder() -> Path:
    """Without it tests are skipped on a developer's machine, and fail in CI."""
    if not ENCODER.is_dir():
        missing = f"there is no encoder in {ENCODER}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return ENCODER


@pytest.fixture
def copied(encoder_folder: Path, tmp_path: Path) -> Path:
    """A folder of this test's own, with the model and its tokenizer."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        shutil.copyfile(encoder_folder / name, folder / name)
    return folder


@pytest.fixture
async def encoder(encoder_folder: Path) -> AsyncGenerator[FolderEncoder]:
    opened = open_folder(encoder_folder)
    yield opened
    await opened.close()
