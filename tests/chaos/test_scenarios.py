"""The scenarios of ``make chaos``, as short as counts and orders allow. Figures of speed are left to that command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.laboratory import Laboratory
from tests.chaos.scenarios import SCENARIOS, Scenario


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, id=one.name.replace(" ", "-"), marks=pytest.mark.slow if one.slow else ()) for one in SCENARIOS],
)
async def test_what_goes_wrong_costs_no_more_than_it_may(scenario: Scenario, tmp_path: Path) -> None:
    figures = await scenario.run(Laboratory(folder=tmp_path, full=False))
    assert figures
    missed = [f"{one.name}: {one.shown}, not {one.bound}" for one in figures if not one.timing and not one.met]
    assert missed == []
