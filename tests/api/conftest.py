from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.api.serving import Served, serving


@pytest.fixture
async def served() -> AsyncGenerator[Served]:
    """An application without agents, on an SQLite file of its own."""
    async with serving() as found:
        yield found
