"""Runs the cases of a question in turn, each time in a fresh process, and makes a table of what they measured.

The cases alternate (A B, B A, A B, …), so that whatever else the machine does meets all of them alike. Each run gives
one number a figure; the table has the median of the runs, and from the smallest to the largest of them. What compares
two cases compares their runs of the same round, and has the median of these.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, cast

__all__ = [
    "Beside",
    "Case",
    "Failed",
    "Figures",
    "Missing",
    "Question",
    "Result",
    "ask",
    "machine",
    "quantile",
    "table",
]

#: What one run measured, by a name that ends in its unit.
Figures: TypeAlias = "dict[str, float]"

#: The longest that one run of a case may take.
_SECONDS: Final = 300.0
#: What somebody has set for us, for the interpreter, or for the rivals' tracing changes what is measured.
_NOT_PASSED_ON: Final = (
    *("ORCHESTRA_", "PYTHON", "LANGCHAIN_", "LANGSMITH_", "LANGGRAPH_"),
    *("OPENAI_", "LITELLM_", "PYDANTIC_AI_", "LOGFIRE_", "OTEL_"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``measure`` is called with whether to be quick. It is a function of a module: another process imports it.

    ``apart``: what an environment of its own is made of, where that of the project does not admit what is measured.
    """

    name: str
    measure: Callable[[bool], Figures]
    apart: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a case aims at beside others: at most so many ``times`` as much as each of them, for a rate at least.

    ``more`` instead: at most so much more.
    """

    case: str
    figure: str
    than: Sequence[str]
    times: float = 1.0
    more: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """``cases``: ours first, which the ratios refer to, unless it is ``against`` another.

    ``aims``: of ours; at most so much, for a rate at least. ``beside``: what is aimed at beside other cases.
    """

    name: str
    title: str
    note: str
    cases: Sequence[Case]
    against: str | None = None
    aims: Mapping[str, float] = field(default_factory=dict[str, float])
    beside: Sequence[Beside] = ()


@dataclass(frozen=True, slots=True)
class Missing:
    """A rival that is not installed."""

    package: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that did not end well; ``reason`` is the last line of what it said."""

    reason: str


Result: TypeAlias = "Sequence[Figures] | Missing | Failed"


def ask(question: Question, *, rounds: int, quick: bool) -> Mapping[str, Result]:
    """What each case measured in each round, by its name. Never raises for what a case does."""
    runs: dict[str, list[Figures]] = {case.name: [] for case in question.cases}
    out: dict[str, Missing | Failed] = {}
    with tempfile.TemporaryDirectory() as bytecode, tempfile.TemporaryDirectory() as apart:
        pythons: dict[str, str] = {}
        for number, case in enumerate(question.cases):
            python = _made(Path(apart, str(number)), case.apart) if case.apart else sys.executable
            if isinstance(python, Missing):
                out[case.name] = python
            else:
                pythons[case.name] = python
        # Round 0 does not count: it fills the caches, those of the disk and of compiled modules.
        for number in range(rounds + 1):
            for case in question.cases if number % 2 else reversed(question.cases):
                if case.name in out:
                    continue
                result = _alone(case, pythons[case.name], bytecode, quick=quick or number == 0)
                if isinstance(result, Missing | Failed):
                    out[case.name] = result
                elif number:
                    runs[case.name].append(result)
    return {name: out.get(name, done) for name, done in runs.items()}


def _made(folder: Path, packages: Sequence[str]) -> str | Missing:
    """The interpreter of a new environment with these packages, which uv makes of its cache or of the index."""
    # `uv run` tells its own place.
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        return Missing(f"{packages[0]}: no uv")
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    made = [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]
    filled = [uv, "pip", "install", "--quiet", "--python", python, *packages]
    try:
        for command in (made, filled):
            subprocess.run(command, capture_output=True, cwd=folder.parent, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return Missing(packages[0])
    return python


def _alone(case: Case, python: str, bytecode: str, *, quick: bool) -> Figures | Missing | Failed:
    """One run in a new process, which is this module run as a program."""
    place = f"{case.measure.__module__}:{case.measure.__name__}"
    command = [python, "-m", __name__, place, *(["--quick"] if quick else [])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=_root(), timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Failed(f"took longer than {_SECONDS:g} s")
    if done.returncode != 0:
        return Failed((done.stderr.strip().splitlines() or ["no word"])[-1])
    said = json.loads(done.stdout.splitlines()[-1])
    return Missing(said["missing"]) if "missing" in said else cast("Figures", said)


def _root() -> Path:
    return Path(__file__).resolve().parent.parent


def _run(place: str, *, quick: bool) -> None:
    """The other end of :func:`_alone`: the last line of standard output holds the figures."""
    module, _, name = place.partition(":")
    try:
        said: object = getattr(importlib.import_module(module), name)(quick)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("agent_orchestra", "benchmarks")):
            raise
        said = {"missing": error.name.partition(".")[0]}
    print(json.dumps(said))


def table(question: Question, results: Mapping[str, Result]) -> str:
    """A Markdown section: a row for each figure of each case, in the order of the cases."""
    measured = {name: runs for name, runs in results.items() if not isinstance(runs, Missing | Failed)}
    ours = question.cases[0].name
    against = question.against or ours
    lines = [
        f"\n### {question.title}\n",
        f"{question.note}\n",
        f"| figure | case | median | lowest to highest | times {question.against or 'ours'} | aim |",
        "|---|---|---:|---:|---:|---|",
    ]
    for figure in dict.fromkeys(figure for runs in measured.values() for figure in runs[0]):
        values = {name: [run[figure] for run in runs] for name, runs in measured.items() if figure in runs[0]}
        for name, found in values.items():
            median = statistics.median(found)
            ratio = f"{_ratio(found, values[against]):.2f}" if against in values and name != against else ""
            aims = [_aim(figure, median, question.aims)] if name == ours and figure in question.aims else []
            aims += [_beside(b, values) for b in question.beside if (b.case, b.figure) == (name, figure)]
            spread = f"{_number(min(found))} to {_number(max(found))}"
            lines.append(f"| {figure} | {name} | {_number(median)} | {spread} | {ratio} | {'; '.join(aims)} |")
    for name, result in results.items():
        if isinstance(result, Missing):
            lines.append(f"| all | {name} | not installed ({result.package}) | | | |")
        elif isinstance(result, Failed):
            lines.append(f"| all | {name} | FAILED: {result.reason} | | | |")
    return "\n".join(lines)


def _ratio(found: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(found, other, strict=True))


def _aim(figure: str, measured: float, aims: Mapping[str, float]) -> str:
    more_is_better = figure.endswith("/s")
    met = measured >= aims[figure] if more_is_better else measured <= aims[figure]
    return f"{'≥' if more_is_better else '≤'} {_number(aims[figure])}: {_met(met)}"


def _beside(aim: Beside, values: Mapping[str, Sequence[float]]) -> str:
    """What was aimed at, and whether it was met; beside a case that was not measured, that is not known."""
    found = values[aim.case]
    sides = [values[name] for name in aim.than if name in values]
    names = ", ".join(aim.than)
    if aim.more:
        gaps = [statistics.median(m - t for m, t in zip(found, side, strict=True)) for side in sides]
        met = all(gap <= aim.more for gap in gaps)
        bound = f"≤ {names} and {_number(aim.more)}"
        known = "".join(f" ({gap:+.2f})" for gap in gaps)
    else:
        ratios = [_ratio(found, side) for side in sides]
        more_is_better = aim.figure.endswith("/s")
        met = all(ratio >= aim.times if more_is_better else ratio <= aim.times for ratio in ratios)
        times = "" if aim.times == 1 else f"{_number(aim.times)} times "
        bound = f"{'≥' if more_is_better else '≤'} {times}{names}"
        known = ""
    said = _met(met) if not met or len(sides) == len(aim.than) else "not known"
    return f"{bound}: {said}{known}"


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def machine() -> str:
    """One line that says what was measured on."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{_processor()}, {os.cpu_count()} cores, {python}, {platform.system()} {platform.release()}, {today}"


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        for line in cpus.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    _run(sys.argv[1], quick="--quick" in sys.argv)
