"""Routing from the command line: where a request would go and why, what is said of it, reports, figures, encoders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.adapters.encoders.graphs import made
from tests.cli.running import run
from tests.services.hub import HubModel, running_hub
from tests.services.service import PROJECT, orchestra

# Each command opens an orchestra of its own.
pytestmark = pytest.mark.slow

ENCODER: Final = PROJECT.parent / "shared" / "encoder"
FIGURES: Final = (
    "n top1 top3 macro_f1 oos_auroc oos_recall oos_precision in_scope_rejected ece p50_ms p99_ms fit_s".split()
)
BILLING: Final = {
    "id": "billing",
    "kind": "offline",
    "description": "Explains invoices and refunds payments.",
    "capabilities": ["explain an invoice", "refund a payment"],
    "keywords": ["invoice", "refund"],
    "settings": {"knowledge": ["Refunds take five days."]},
}
TRAVEL: Final = {
    "id": "travel",
    "kind": "offline",
    "description": "Books flights and hotels.",
    "capabilities": ["book a flight", "find a hotel"],
    "keywords": ["flight", "hotel"],
    "settings": {"knowledge": ["Flights leave daily."]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a settings file of two agents."""
    configured(tmp_path)
    return tmp_path


def configured(folder: Path, **sections: object) -> None:
    settings = {"agents": [BILLING, TRAVEL], **sections}
    (folder / "orchestra.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def succeeds(*arguments: str | Path, cwd: Path, given: str | None = None) -> str:
    done = run(*arguments, cwd=cwd, given=given)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def refused(*arguments: str | Path, cwd: Path, status: int | None = None) -> str:
    """The one line of an error of ours."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode != 0, done.stdout
    assert status is None or done.returncode == status, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(r" \[[a-z_]+\]\n$", done.stderr), done.stderr
    return done.stderr


def misused(*arguments: str | Path, cwd: Path) -> str:
    """What is said about a command line that cannot be read."""
    done = run(*arguments, cwd=cwd)
    assert (done.returncode, done.stdout) == (2, ""), (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def decided(content: str, *options: str | Path, cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(succeeds("route", content, "--json", *options, cwd=cwd))
    return found


# --- where a request would go


def test_a_table_tells_where_a_request_would_go_and_why(folder: Path) -> None:
    done = run("route", "please refund my invoice", cwd=folder)
    assert done.returncode == 0, done.stderr
    head, first, *rest = done.stdout.splitlines()
    assert head.split() == ["agent", "confidence", "nearest"]
    assert re.match(r"billing +[01]\.\d\d +(keywords|capability|description): \w", first), first
    assert rest[-1].startswith("lexical: nearest to its ")
    assert re.search(r"margin [01]\.\d\d, in scope [01]\.\d\d, policy hybrid/0, [\d.]+ ms", done.stderr), done.stderr
    assert re.search(r"decision [0-9a-f-]{36}", done.stderr), done.stderr
    assert "Refunds take" not in done.stdout, "nobody was asked"


def test_the_same_as_json(folder: Path) -> None:
    found = decided("please refund my invoice", cwd=folder)
    assert found["candidates"][0]["agent"] == "billing"
    assert (found["stage"], found["policy"], found["degraded"]) == ("lexical", "hybrid/0", [])
    assert {"id", "reason", "margin", "secondary", "in_scope", "propensity", "ms"} <= set(found)
    from_input = json.loads(succeeds("route", "-", "--json", cwd=folder, given="please refund my invoice"))
    assert from_input["candidates"] == found["candidates"]


def test_options_narrow_the_choice(folder: Path) -> None:
    able = decided("please refund my invoice", "--capability", "book a flight", cwd=folder)
    assert (able["candidates"][0]["agent"], able["stage"]) == ("travel", "capability")
    answer = json.loads(succeeds("ask", "a flight", "--json", "--user", "ann", cwd=folder))
    goes_on = decided("and then", "--conversation", answer["conversation_id"], "--user", "ann", cwd=folder)
    assert (goes_on["candidates"][0]["agent"], goes_on["stage"]) == ("travel", "conversation")


def test_what_fits_nobody_is_told_and_is_no_error(folder: Path) -> None:
    done = run("route", "zzz qqq", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "none: no agent fits the request" in done.stdout
    assert decided("zzz qqq", cwd=folder)["stage"] == "none"


def test_what_cannot_be_decided(folder: Path) -> None:
    assert "blank" in refused("route", " ", cwd=folder)
    assert "blank" in refused("route", "-", cwd=folder)
    assert "capability" in refused("route", "hi", "--capability", "to fly", cwd=folder)
    assert "gone" in refused("route", "hi", "--conversation", "gone", cwd=folder)
    assert "[configuration]" in refused("route", "hi", "--config", "missing.yaml", cwd=folder)
    misused("route", cwd=folder)


def test_without_agents_nobody_is_found(tmp_path: Path) -> None:
    found = decided("please refund my invoice", cwd=tmp_path)
    assert (found["candidates"], found["stage"]) == ([], "none")


def test_an_encoder_that_is_missing_is_said_on_the_side(folder: Path) -> None:
    configured(folder, routing={"encoder": str(folder / "missing")})
    done = run("route", "please refund my invoice", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stage"] == "lexical"
    report = succeeds("routing", "report", cwd=folder)
    assert "encoder none: words alone are compared" in report
    assert "missing" in report


# --- what is said of it, and what becomes of that


def test_feedback_is_kept_and_remembered(folder: Path) -> None:
    found = decided("please refund my invoice", cwd=folder)
    assert succeeds("feedback", found["id"], "--opinion", "right", cwd=folder) == "kept as 1\n"
    again = decided("Please, refund my invoice!", cwd=folder)
    assert (again["candidates"][0]["agent"], again["stage"]) == ("billing", "memory")
    assert succeeds("feedback", again["id"], "--agent", "travel", "--user", "ann", cwd=folder) == "kept as 2\n"
    assert decided("please refund my invoice", cwd=folder)["stage"] == "lexical", "it is disputed"
    answer = json.loads(succeeds("ask", "a flight", "--json", cwd=folder))
    assert succeeds("feedback", answer["request_id"], "--opinion", "nobody", cwd=folder) == "kept as 3\n"


def test_feedback_that_means_nothing_is_refused(folder: Path) -> None:
    found = decided("please refund my invoice", cwd=folder)
    assert "[invalid_input]" in refused("feedback", found["id"], cwd=folder)
    both = ("--opinion", "right", "--agent", "billing")
    assert "[invalid_input]" in refused("feedback", found["id"], *both, cwd=folder)
    assert "[decision_not_found]" in refused("feedback", "nothing", "--opinion", "right", cwd=folder)
    assert "[agent_not_found]" in refused("feedback", found["id"], "--agent", "nobody", cwd=folder)
    assert "none of right, wrong, nobody" in misused("feedback", found["id"], "--opinion", "splendid", cwd=folder)


def test_a_report_for_people_and_for_programs(folder: Path) -> None:
    clone = {**BILLING, "id": "clone"}
    (folder / "orchestra.yaml").write_text(yaml.safe_dump({"agents": [BILLING, TRAVEL, clone]}))
    text = succeeds("routing", "report", cwd=folder)
    assert "strategy hybrid, encoder none: words alone are compared" in text
    assert re.search(r"billing +clone +1\.00 +", text), text
    assert "Learned (0 entries of feedback)" in text
    found = json.loads(succeeds("routing", "report", "--json", cwd=folder))
    assert set(found) == {"status", "overlaps", "confusions", "unreachable", "versions", "feedback"}
    assert (found["overlaps"][0]["agent_id"], found["overlaps"][0]["other_id"]) == ("billing", "clone")
    assert found["status"]["strategy"] == "hybrid"


def test_there_is_nothing_to_report_of_nobody(tmp_path: Path) -> None:
    found = json.loads(succeeds("routing", "report", "--json", cwd=tmp_path))
    assert (found["overlaps"], found["versions"], found["feedback"]) == ([], [], 0)
    succeeds("routing", "report", cwd=tmp_path)


@pytest.mark.timeout(120)
def test_what_was_said_is_learned_and_rolled_back(folder: Path) -> None:
    assert succeeds("routing", "learn", cwd=folder) == "there is nothing to learn from\n"
    assert "[nothing_to_roll_back]" in refused("routing", "rollback", cwd=folder)
    examples = ["where is my parcel", "trace a parcel", "the parcel is lost", "my parcel is late"]
    (folder / "orchestra.yaml").write_text(
        yaml.safe_dump({"agents": [BILLING, {**TRAVEL, "examples": examples}]}), encoding="utf-8"
    )
    learned = succeeds("routing", "learn", cwd=folder)
    assert learned == "version 1 is active: 4 examples\n"
    found = decided("is the parcel late", cwd=folder)
    assert (found["candidates"][0]["agent"], found["stage"], found["policy"]) == ("travel", "learned", "hybrid/1")
    table = succeeds("routing", "report", cwd=folder)
    assert re.search(r"\n1 +active +4 +", table), table
    [version] = json.loads(succeeds("routing", "report", "--json", cwd=folder))["versions"]
    assert (version["number"], version["state"], version["examples"]) == (1, "active", 4)
    assert succeeds("routing", "rollback", cwd=folder) == "the definitions alone decide\n"
    assert decided("is the parcel late", cwd=folder)["policy"] == "hybrid/0"
    assert "[nothing_to_roll_back]" in refused("routing", "rollback", cwd=folder)


def test_a_strategy_that_does_not_learn_says_so(folder: Path) -> None:
    configured(folder, orchestrator={"routing_strategy": "simple"})
    assert "routing_strategy" in refused("routing", "learn", cwd=folder)


# --- figures


REGISTRY: Final = (
    {"id": "billing", "description": "Invoices, refunds and payments.", "examples": ["I was charged twice"]},
    {"id": "travel", "description": "Flights, hotels and trains.", "examples": ["Book me a flight"]},
)
REQUESTS: Final = (
    {"text": "refund my payment", "agent": "billing"},
    {"text": "explain this invoice", "agent": "billing"},
    {"text": "two flights to Rome", "agent": "travel"},
    {"text": "a hotel near the trains", "agent": "travel"},
    {"text": "zzz qqq", "agent": None},
)


def lines(path: Path, objects: Sequence[object]) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in objects), encoding="utf-8")
    return path


@pytest.fixture
def suite(tmp_path: Path) -> tuple[str | Path, ...]:
    """The options for a small suite."""
    registry = tmp_path / "registry.json"
    registry.write_text(json.dumps(REGISTRY))
    return ("--registry", registry, "--test", lines(tmp_path / "test.jsonl", REQUESTS))


def test_figures_for_programs_have_their_names_in_order(tmp_path: Path, suite: tuple[str | Path, ...]) -> None:
    printed = succeeds("eval", "routing", *suite, "--json", cwd=tmp_path)
    found: dict[str, Any] = json.loads(printed)
    assert list(found)[: len(FIGURES)] == FIGURES
    assert printed.count("\n") == 1
    assert (found["n"], found["oos"], found["top1"], found["agents"]) == (4, 1, 1.0, 2)
    for name in FIGURES:
        assert isinstance(found[name], int | float), name
    assert found["encoder"] is None
    assert not (tmp_path / "orchestra.db").exists(), "an evaluation needs no database"


def test_figures_for_people_are_the_same(tmp_path: Path, suite: tuple[str | Path, ...]) -> None:
    table = succeeds("eval", "routing", *suite, cwd=tmp_path)
    assert table.splitlines()[0].split() == ["figure", "value"]
    assert [line.split()[0] for line in table.splitlines()[1 : 1 + len(FIGURES)]] == FIGURES


def test_examples_are_drawn_and_predictions_written(tmp_path: Path, suite: tuple[str | Path, ...]) -> None:
    texts = {"billing": ("pay the bill", "a wrong bill", "my bill"), "travel": ("a train", "one night", "by plane")}
    pool = [{"text": text, "intent": agent} for agent, own in texts.items() for text in own]
    train = lines(tmp_path / "train.jsonl", pool)
    asked = [{"id": f"r{n}", "text": each["text"], "intent": each["agent"]} for n, each in enumerate(REQUESTS)]
    test = lines(tmp_path / "by_intent.jsonl", asked)
    predictions = tmp_path / "predictions.jsonl"
    options = ("--registry", suite[1], "--test", test, "--train", train, "--label", "intent", "--json")
    for shots, count in ((0, 0), (2, 4)):
        found = json.loads(
            succeeds("eval", "routing", *options, "--shots", str(shots), "--predictions", predictions, cwd=tmp_path)
        )
        assert found["examples"] == count
    assert json.loads(succeeds("eval", "routing", *options, cwd=tmp_path))["examples"] == 6
    written = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [line["id"] for line in written] == [f"r{n}" for n in range(len(REQUESTS))]
    assert set(written[0]) == {"id", "ranking", "confidence", "accept"}
    assert written[0]["ranking"][0] == "billing"


def test_files_that_cannot_be_evaluated(tmp_path: Path, suite: tuple[str | Path, ...]) -> None:
    registry, test = Path(suite[1]), Path(suite[3])
    missing = tmp_path / "missing.jsonl"
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "hi", "agent": "billing"}\n{"text": \n')
    stranger = lines(tmp_path / "stranger.jsonl", [{"text": "hi", "agent": "nobody"}])
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    unlabelled = lines(tmp_path / "unlabelled.jsonl", [{"text": "hi"}])
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    for options, said in (
        (("--registry", missing, "--test", test), "missing.jsonl"),
        (("--registry", registry, "--test", missing), "missing.jsonl"),
        (("--registry", registry, "--test", test, "--train", missing), "missing.jsonl"),
        (("--registry", registry, "--test", tmp_path), str(tmp_path)),
        (("--registry", registry, "--test", broken), "broken.jsonl:2"),
        (("--registry", registry, "--test", stranger), "'nobody'"),
        (("--registry", registry, "--test", empty), "empty"),
        (("--registry", registry, "--test", unlabelled), "'agent'"),
        (("--registry", registry, "--test", binary), "binary.jsonl"),
        (("--registry", registry, "--test", test, "--predictions", tmp_path / "no" / "where"), "where"),
        (("--registry", registry, "--test", test, "--encoder", tmp_path / "no-encoder"), "no-encoder"),
    ):
        assert said in refused("eval", "routing", *options, "--json", cwd=tmp_path, status=2), options
    assert "--test" in misused("eval", "routing", "--registry", registry, cwd=tmp_path)
    assert "--shots" in misused("eval", "routing", *suite, "--shots", "-1", cwd=tmp_path)


def test_the_real_command_says_one_line_too(tmp_path: Path) -> None:
    done = orchestra("eval", "routing", "--registry", "no.json", "--test", "no.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")


def test_an_evaluation_with_an_encoder_names_it(tmp_path: Path, suite: tuple[str | Path, ...]) -> None:
    if not ENCODER.is_dir():
        pytest.skip("../shared/encoder is not here")
    found = json.loads(succeeds("eval", "routing", *suite, "--encoder", ENCODER, "--json", cwd=tmp_path))
    assert (found["top1"], bool(found["encoder"])) == (1.0, True)
    configured(tmp_path, routing={"encoder": str(ENCODER)})
    assert json.loads(succeeds("eval", "routing", *suite, "--json", cwd=tmp_path))["encoder"] == found["encoder"]
    without = json.loads(succeeds("eval", "routing", *suite, "--encoder", "", "--json", cwd=tmp_path))
    assert without["encoder"] is None


# --- encoders


def test_an_encoder_is_tried(tmp_path: Path) -> None:
    if not ENCODER.is_dir():
        pytest.skip("../shared/encoder is not here")
    first, *table = succeeds("encoder", "check", "--encoder", ENCODER, cwd=tmp_path).splitlines()
    assert re.search(r": \d+ numbers, open in \d+ ms, [\d.]+ ms a text$", first), first
    assert table[0].split() == ["similarity", "text"]
    rows = [line.strip().split(maxsplit=1) for line in table[1:]]
    assert [text for _, text in rows] == ["I was charged twice", "Can I get my money back?", "Do I need a visa?"]
    same, near, far = (float(similarity) for similarity, _ in rows)
    assert same == pytest.approx(1, abs=0.01)
    assert near > far


def test_an_encoder_is_tried_with_other_texts_and_from_the_settings(tmp_path: Path) -> None:
    configured(tmp_path, routing={"encoder": str(made(tmp_path / "encoder"))})
    told = succeeds("encoder", "check", "lost money", "lost money", "a parcel", cwd=tmp_path)
    texts = [line.strip().split(maxsplit=1)[1] for line in told.splitlines()[2:]]
    assert texts == ["lost money", "lost money", "a parcel"]


def test_encoders_that_are_none(tmp_path: Path) -> None:
    assert "routing.encoder" in refused("encoder", "check", cwd=tmp_path, status=2)
    missing = tmp_path / "missing"
    assert "missing" in refused("encoder", "check", "--encoder", missing, cwd=tmp_path, status=2)
    assert refused("encoder", "check", "--encoder", tmp_path, cwd=tmp_path, status=2)
    assert "install" in refused("encoder", "check", "--encoder", "nobody/no-model", cwd=tmp_path, status=2)


@pytest.mark.parametrize("name", ["", "no name", "../up", "a/b/c", "/root", "a/b@", "-x/y", "https://hub.example/a/b"])
def test_a_name_that_is_none_of_the_hubs_is_refused(tmp_path: Path, name: str) -> None:
    done = run("encoder", "install", "--", name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(120)
def test_an_encoder_is_fetched_once_and_used_without_a_network(tmp_path: Path) -> None:
    """In processes of their own: the hub's client reads its address when it is imported."""
    files = {path.name: path.read_bytes() for path in made(tmp_path / "made").iterdir()}
    name = "owner/small-model"
    configured(tmp_path, routing={"encoder": name, "encoder_folder": str(tmp_path / "encoders")})
    with running_hub() as hub:
        hub.models[name] = HubModel(files=files)
        online = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        for _ in range(2):
            done = orchestra("encoder", "install", name, cwd=tmp_path, more_environment=online, seconds=60)
            assert done.returncode == 0, done.stderr
            assert Path(done.stdout.strip()).is_relative_to(tmp_path / "encoders")
            assert f"routing.encoder: {name}" in done.stderr
        assert hub.asked
        done = orchestra("encoder", "install", "owner/other-model", cwd=tmp_path, more_environment=online, seconds=60)
        assert (done.returncode != 0, done.stdout) == (True, ""), done
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    # The hub is gone; what was fetched is there.
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    done = orchestra("encoder", "check", "lost money", "a parcel", cwd=tmp_path, more_environment=gone)
    assert done.returncode == 0, done.stderr
    assert decided("please refund my invoice", cwd=tmp_path)["degraded"] == []
    done = orchestra("encoder", "install", "owner/other-model", cwd=tmp_path, more_environment=gone, seconds=60)
    assert (done.returncode != 0, done.stdout) == (True, ""), done
    assert done.stderr.count("\n") == 1, done.stderr
