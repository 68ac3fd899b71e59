"""Runs the questions that are named, or all of them, and prints their tables: ``python -m benchmarks --quick``."""

from __future__ import annotations

import argparse
import sys

from benchmarks import dispatch, footprint, harness, models, orchestrated_request, routing, routing_growth

QUESTIONS = {
    question.name: question
    for question in (
        *orchestrated_request.QUESTIONS,
        *models.QUESTIONS,
        *routing.QUESTIONS,
        *routing_growth.QUESTIONS,
        *dispatch.QUESTIONS,
        *footprint.QUESTIONS,
    )
}
ROUNDS = {**routing.ROUNDS, **dispatch.ROUNDS}
TABLES = {**routing.TABLES, **dispatch.TABLES}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures, and prints Markdown tables.")
    parser.add_argument("questions", nargs="*", metavar="question", help=f"one of: {', '.join(QUESTIONS)}; else all")
    parser.add_argument("--quick", action="store_true", help="few requests, two rounds: shows that it runs, no more")
    parser.add_argument("--rounds", type=int, help="how often each case is run, else 5, or fewer where it takes long")
    given = parser.parse_args()
    if unknown := set(given.questions) - set(QUESTIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(QUESTIONS)}")
    print(harness.machine())
    failed = False
    for name in given.questions or QUESTIONS:
        rounds = given.rounds or (2 if given.quick else ROUNDS.get(name, 5))
        results = harness.ask(QUESTIONS[name], rounds=rounds, quick=given.quick)
        table = TABLES.get(name, harness.table)
        print(table(QUESTIONS[name], results), flush=True)
        failed = failed or any(isinstance(result, harness.Failed) for result in results.values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
