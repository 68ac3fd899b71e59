"""Runs all scenarios, or those that are named, and prints what they measured: ``python -m tests.chaos``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.laboratory import Figure, Laboratory
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.services.network import forbid_network


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Breaks things, and prints a table.")
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help="words of their names; else all")
    parser.add_argument("--short", action="store_true", help="as short as in the tests; figures of speed say little")
    given = parser.parse_args()
    chosen = [one for one in SCENARIOS if not given.scenarios or any(word in one.name for word in given.scenarios)]
    if not chosen:
        parser.error(f"no such scenario; there are: {', '.join(one.name for one in SCENARIOS)}")
    forbid_network()
    # What is loaded by now stays: to look through it again while something is measured would only be noise.
    gc.collect()
    gc.freeze()
    _tell("| scenario | what is done | figure | value | bound | |\n|---|---|---|---:|---|---|")
    missed = 0
    for scenario in chosen:
        try:
            figures = asyncio.run(_figures(scenario, full=not given.short))
        except Exception as error:  # noqa: BLE001  the others are measured all the same
            _tell(f"| {scenario.name} | {scenario.done} | its end | {type(error).__name__}: {error} | | **missed** |")
            missed += 1
            continue
        _tell(_rows(scenario, figures))
        missed += sum(not figure.met for figure in figures)
    _tell(f"\n{missed or 'no'} figure{'s' * (missed != 1)} missed")
    return 1 if missed else 0


def _tell(lines: str) -> None:
    # At once: a table that goes into a pipe is watched too.
    sys.stdout.write(f"{lines}\n")
    sys.stdout.flush()


async def _figures(scenario: Scenario, *, full: bool) -> Sequence[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        return await scenario.run(Laboratory(folder=Path(folder), full=full))


def _rows(scenario: Scenario, figures: Sequence[Figure]) -> str:
    rows: list[str] = []
    for number, figure in enumerate(figures):
        about = f"{scenario.name} | {scenario.done}" if number == 0 else " | "
        met = ("met" if figure.met else "**missed**") if figure.bound else ""
        rows.append(f"| {about} | {figure.name} | {figure.shown} | {figure.bound} | {met} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
