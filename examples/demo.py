"""The whole path in one go: starts the real service, asks it over HTTP, stops it, starts it again, and asks on."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Question:
    """What is asked, and who is expected to answer. ``more``: what the body of the request has besides."""

    content: str
    expected: str
    more: Mapping[str, object] = field(default_factory=dict[str, object])
    goes_on: bool = False


QUESTIONS = (
    Question("I was charged twice this month", "billing"),
    Question("Can I still get a refund?", "billing", goes_on=True),
    Question("Which price has the company plan?", "billing"),
    Question("I forgot my password", "support"),
    Question("The app shows error 403 when I log in", "support"),
    Question("Do I need a visa for a trip to Japan?", "travel"),
    Question("How much may a hotel in Paris cost?", "travel"),
    Question("And the one after that?", "travel", goes_on=True),
    Question("How many days of vacation do I have?", "handbook"),
    Question("I am sick, what must I do?", "handbook"),
    Question("calculate 12 * (7 + 3)", "calculator"),
    Question("What time is it?", "clock"),
    Question("Please pass this on", "handbook", {"capability": "hr-policies"}),
    Question("Whom should I ask about my laptop?", "support", {"agent_id": "support"}),
    Question("Blue or green?", "reception"),
)


@dataclass
class Tally:
    answered: int = 0
    as_expected: int = 0


@contextmanager
def service(database: Path) -> Generator[str]:
    """The real service on a free port; its address, and its end at the end of the block."""
    command = [sys.executable, "-m", "agent_orchestra", "serve", "--port", "0"]
    command += ["--config", str(HERE / "orchestra.yaml"), "--database", str(database)]
    log = database.with_suffix(".log")
    with (
        log.open("ab") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listening on " not in line:
            raise SystemExit(f"the service did not start:\n{log.read_text(encoding='utf-8')}")
        try:
            yield line.split("listening on ", 1)[1].strip()
        finally:
            process.terminate()
            if process.wait(timeout=15) != 0:
                raise SystemExit(f"the service ended with {process.returncode}")


def ask_all(client: httpx.Client, table: Table, tally: Tally) -> list[str]:
    """Asks every question; gives the conversations that came of it, in order."""
    conversations: list[str] = []
    for question in QUESTIONS:
        body: dict[str, object] = {"content": question.content, **question.more}
        if question.goes_on:
            body["conversation_id"] = conversations[-1]
        began = time.perf_counter()
        response = client.post("/v1/orchestrate", json=body)
        took = (time.perf_counter() - began) * 1_000
        answer = response.json()
        if response.status_code != 200:
            table.add_row(question.content, f"HTTP {response.status_code}", "", "", "", answer["detail"])
            continue
        tally.answered += 1
        tally.as_expected += answer["agent"] == question.expected
        who = (
            answer["agent"] if answer["agent"] == question.expected else f"{answer['agent']} (not {question.expected})"
        )
        confidence = f"{answer['confidence']:.2f}"
        why = f"{answer['stage']}: {answer['reason']}"
        table.add_row(question.content, who, confidence, why, f"{took:.1f}", short(answer["output"]))
        conversations.append(answer["conversation_id"])
    return conversations


def short(output: str) -> str:
    """The first words of an answer, on one line."""
    text = " ".join(output.removeprefix("(offline, from this agent's own notes)").split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def main() -> int:
    on_terminal = sys.stdout.isatty()
    console = Console() if on_terminal else Console(width=200)
    table = Table("question", "agent", "confidence", "why", "ms", "answer", box=box.ROUNDED if on_terminal else None)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="orchestra-demo-") as folder:
        database = Path(folder) / "demo.db"
        with service(database) as address, httpx.Client(base_url=address, timeout=30) as client:
            console.print(f"the service runs at {address} on {database.name}, with {agents(client)} agents\n")
            conversation = ask_all(client, table, tally)[0]
            console.print(table)
        console.print("\nthe service has stopped; it starts again on the same file")
        with service(database) as address, httpx.Client(base_url=address, timeout=30) as client:
            messages = client.get(f"/v1/conversations/{conversation}/messages").json()["items"]
            console.print(f"conversation {conversation} is still there, with {len(messages)} messages:")
            for message in messages:
                console.print(
                    f"  {message['seq']}. {message['agent_id'] or message['author']}: {short(message['content'])}"
                )
            asked = {"content": "Summarize our conversation", "conversation_id": conversation}
            answer = client.post("/v1/orchestrate", json=asked).json()
            tally.answered += 1
            tally.as_expected += answer["agent"] == "summary"
            console.print(f"  {answer['agent']}: {short(answer['output'])}")
    total = len(QUESTIONS) + 1
    print(f"demo: {tally.answered} requests answered, {tally.as_expected} routed as expected")
    remembered = len(messages) == 4
    return 0 if tally.answered == tally.as_expected == total and remembered else 1


def agents(client: httpx.Client) -> int:
    return len(client.get("/v1/agents").json()["items"])


if __name__ == "__main__":
    raise SystemExit(main())
