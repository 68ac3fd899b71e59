"""Functions that are marked as agents are found: in named modules, and in packages as pip leaves them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_orchestra import Agent, Limits, Orchestra, agent
from agent_orchestra.adapters.discovery import AgentFields
from agent_orchestra.bootstrap import open_from_settings
from agent_orchestra.errors import ConfigurationError, InvalidAgent
from agent_orchestra.settings import load_settings
from tests.runtime.parts import Lines
from tests.services.service import orchestra, running_service

SECRET = "hunter2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules can be imported, and whose distributions are installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    importlib.invalidate_caches()
    return folder


def write(folder: Path, name: str, source: str) -> None:
    path = folder / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"from agent_orchestra import agent\n{source}\n", encoding="utf-8")


def marked(agent_id: str, says: str = "", name: str | None = None) -> str:
    """The source of a function that is an agent."""
    name = name or agent_id
    return f"@agent(id={agent_id!r}, keywords=[{agent_id!r}])\ndef {name}(content):\n    return {says or agent_id!r}\n"


def install(folder: Path, distribution: str, points: Sequence[str]) -> None:
    """Leaves there what pip leaves of a package that is installed."""
    there = folder / f"{distribution}-1.0.dist-info"
    there.mkdir()
    (there / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    lines = "\n".join(["[agent_orchestra.agents]", *points, ""])
    (there / "entry_points.txt").write_text(lines, encoding="utf-8")


@asynccontextmanager
async def opened(
    tmp_path: Path, *modules: str, entry_points: bool = True, agents: Sequence[Mapping[str, Any]] | None = None
) -> AsyncGenerator[tuple[Orchestra, Lines]]:
    nothing = tmp_path / "nothing.yaml"
    nothing.touch()
    more: dict[str, Any] = {} if agents is None else {"agents": agents}
    settings = load_settings(
        nothing,
        database={"url": f"sqlite:///{tmp_path / 'orchestra.db'}"},
        registry={"modules": modules, "entry_points": entry_points},
        **more,
    )
    lines = Lines()
    async with open_from_settings(settings, log=lines) as opened:
        yield opened, lines


def ids(opened: Orchestra) -> list[str]:
    return [entry.agent.id for entry in opened.get_agents()]


async def said(opened: Orchestra, agent_id: str, tenant: str = "default") -> str:
    answer = await opened.process_request("snow", agent_id=agent_id, tenant=tenant)
    return answer.output.splitlines()[-1]


def failures(lines: Lines) -> list[tuple[object, str]]:
    return [(fields["entry_point"], str(fields["reason"])) for fields in lines.of("agent_discovery_failed")]


def configured(agent_id: str, says: str) -> dict[str, Any]:
    return {
        "id": agent_id,
        "kind": "offline",
        "keywords": [agent_id],
        "settings": {"knowledge": [f"Snow is the {says}."]},
    }


def test_a_marked_function_stays_what_it_is() -> None:
    def plain(content: str) -> str:
        return content.upper()

    same = agent(id="shout", capabilities=["shouting"], limits=Limits(timeout=5))(plain)
    assert same is plain
    assert same("hello") == "HELLO"


def test_the_name_of_the_mark_is_nothing_elses() -> None:
    # A module of that name would take its place as soon as anybody imported it.
    assert importlib.util.find_spec("agent_orchestra.agent") is None
    assert callable(agent)


def test_all_can_be_said_of_a_marked_function_that_can_be_said_of_an_agent() -> None:
    assert {field.name for field in dataclasses.fields(Agent)} == {"id", "kind", *AgentFields.__annotations__}


@agent(id="b")
def _marked(content: str) -> str:
    return content


def _no_arguments() -> str:
    return ""


def _echo(content: str) -> str:
    return content


class _Class:
    def __call__(self, content: str) -> str:
        return content


_WRONG: list[tuple[dict[str, Any], Callable[..., object], str]] = [
    ({"id": "no spaces"}, _echo, "id"),
    ({"id": "health"}, _echo, "id"),
    ({"id": "a", "capabilities": "billing"}, _echo, "capabilities"),
    ({"id": "a", "keywords": ["x", 1]}, _echo, "keywords"),
    ({"id": "a", "examples": [" "]}, _echo, "examples.0"),
    ({"id": "a", "role": "chief"}, _echo, "role"),
    ({"id": "a", "priority": 5_000}, _echo, "priority"),
    ({"id": "a"}, _no_arguments, "run"),
    ({"id": "a"}, _Class, "run"),
    ({"id": "a"}, _Class(), "run"),
    ({"id": "a"}, functools.partial(_echo), "run"),
    ({"id": "a"}, len, "run"),
    ({"id": "a"}, _marked, "run"),
]


@pytest.mark.parametrize(("fields", "function", "path"), _WRONG)
def test_what_is_wrong_is_told_where_it_is_marked(
    fields: dict[str, Any], function: Callable[..., object], path: str
) -> None:
    with pytest.raises(InvalidAgent) as caught:
        agent(**fields)(function)
    assert [fault.path for fault in caught.value.faults] == [path]


def test_a_field_that_no_agent_has_is_refused() -> None:
    with pytest.raises(TypeError):
        agent(id="a", keyword=["x"])  # pyright: ignore[reportCallIssue]


async def test_the_agents_of_a_named_module_answer_every_tenant(tmp_path: Path, folder: Path) -> None:
    write(folder, "company_one", marked("zebra") + marked("ant") + "def plain(content):\n    return ''\n")
    async with opened(tmp_path, "company_one") as (it, lines):
        assert ids(it) == ["ant", "zebra"]
        answer = await it.process_request("ant", tenant="somebody")
        assert (answer.agent, answer.output, answer.instance) == ("ant", "ant", "company_one:ant")
        assert it.get_agent("ant").source == "code"
        assert failures(lines) == []
    async with opened(tmp_path) as (it, _):
        assert ids(it) == [], "it is not stored"


async def test_a_module_has_what_it_defines_and_a_package_what_its_modules_define(tmp_path: Path, folder: Path) -> None:
    write(folder, "others", marked("other"))
    write(folder, "company_two.inner", marked("inner"))
    write(folder, "company_two.unseen", marked("unseen"))
    write(
        folder,
        "company_two.__init__",
        "from others import other\nfrom .inner import inner\nalso = inner\n" + marked("own"),
    )
    async with opened(tmp_path, "company_two", "company_two.inner") as (it, _):
        assert ids(it) == ["inner", "own"]


async def test_a_module_that_imports_another_by_chance_is_not_that_other(tmp_path: Path, folder: Path) -> None:
    write(folder, "company", marked("short"))
    write(folder, "company_more", "from company import short\n" + marked("own"))
    async with opened(tmp_path, "company_more") as (it, _):
        assert ids(it) == ["own"]


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("gone_from_here", None, "cannot be imported (ModuleNotFoundError: there is no module 'gone_from_here')"),
        ("needs_more", "import not_installed_here", "ModuleNotFoundError: there is no module 'not_installed_here'"),
        ("breaks", f"raise RuntimeError({SECRET!r})", "module 'breaks' cannot be imported (RuntimeError)"),
        ("quits", f"raise SystemExit({SECRET!r})", "module 'quits' cannot be imported (SystemExit)"),
        ("slips", "def (", "module 'slips' cannot be imported (SyntaxError)"),
        ("marks_nothing", "def plain(content): ...", "has no function of its own that is marked with @agent"),
        ("borrows", "from tests.adapters.marked import borrowed", "has no function of its own"),
        ("mistaken", "@agent(id='a', keywords='x')\ndef f(content): ...", "keywords: must be a list of texts"),
        ("twice", marked("a") + marked("a", name="b"), "agent 'a' is there twice, as twice:a and as twice:b"),
        ("first", marked("shared"), "agent 'shared' is there twice, as of_another:shared and as first:shared"),
    ],
)
async def test_a_named_module_without_its_agents_is_told_at_the_start(
    tmp_path: Path, folder: Path, name: str, source: str | None, said: str
) -> None:
    write(folder, "of_another", marked("shared"))
    if source is not None:
        write(folder, name, source)
    with pytest.raises(ConfigurationError) as caught:
        async with opened(tmp_path, "of_another", name):
            pass
    assert caught.value.detail.startswith("registry.modules.1: ")
    assert said in caught.value.detail
    assert SECRET not in caught.value.detail
    assert not (tmp_path / "orchestra.db").exists(), "it is told before anything else is done"


@pytest.mark.parametrize("name", ["", "my/agents.py", "my.agents:billing", ".agents", "my-agents"])
def test_what_is_no_name_of_a_module_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "nothing.yaml").touch()
    with pytest.raises(ConfigurationError, match=r"registry\.modules\.0"):
        load_settings(tmp_path / "nothing.yaml", registry={"modules": [name]})


async def test_installed_packages_bring_their_agents(tmp_path: Path, folder: Path) -> None:
    write(folder, "plugin_a", marked("alpha") + marked("beta"))
    write(folder, "plugin_b", marked("gamma") + marked("left"))
    install(folder, "plugin_a", ["all = plugin_a"])
    install(folder, "plugin_b", ["one = plugin_b:gamma"])
    async with opened(tmp_path) as (it, lines):
        assert ids(it) == ["alpha", "beta", "gamma"]
        assert (await it.process_request("gamma")).instance == "plugin_b:gamma"
        assert failures(lines) == []
    async with opened(tmp_path, entry_points=False) as (it, _):
        assert ids(it) == []


async def test_a_package_that_breaks_takes_no_service_down(tmp_path: Path, folder: Path) -> None:
    write(folder, "plugin_fine", marked("fine") + "def plain(content): ...\n")
    write(folder, "plugin_broken", f"raise RuntimeError({SECRET!r})")
    write(folder, "plugin_quits", "import sys\nsys.exit(3)")
    write(folder, "plugin_made_up", f"def __getattr__(name):\n    raise OSError({SECRET!r})")
    install(
        folder,
        "plugin",
        [
            "broken = plugin_broken",
            "fine = plugin_fine:fine",
            "gone = plugin_gone",
            "made_up = plugin_made_up:agent_of_mine",
            "none = plugin_made_up",
            "plain = plugin_fine:plain",
            "missing = plugin_fine:missing.more",
            "quits = plugin_quits",
            "wrong = not a module",
        ],
    )
    install(folder, "plugin_later", ["fine = plugin_fine:plain"])
    async with opened(tmp_path) as (it, lines):
        assert ids(it) == ["fine"]
        assert (await it.process_request("fine")).output == "fine"
    told = failures(lines)
    assert told == [
        ("broken", "module 'plugin_broken' cannot be imported (RuntimeError)"),
        ("fine", "'plugin_fine:plain' has the name of another entry point"),
        ("gone", "module 'plugin_gone' cannot be imported (ModuleNotFoundError: there is no module 'plugin_gone')"),
        ("made_up", "module 'plugin_made_up' has no 'agent_of_mine'"),
        ("missing", "module 'plugin_fine' has no 'missing.more'"),
        ("none", "module 'plugin_made_up' has no function of its own that is marked with @agent"),
        ("plain", "'plugin_fine:plain' is not marked with @agent"),
        ("quits", "module 'plugin_quits' cannot be imported (SystemExit)"),
        ("wrong", "'not a module' is neither a module nor 'module:function'"),
    ]


async def test_a_list_of_entry_points_that_cannot_be_read_takes_no_service_down(tmp_path: Path, folder: Path) -> None:
    write(folder, "company_three", marked("own"))
    install(folder, "torn", [])
    (folder / "torn-1.0.dist-info" / "entry_points.txt").write_bytes(b"[agent_orchestra.agents]\nx = \xff\xfe")
    async with opened(tmp_path, "company_three") as (it, lines):
        assert ids(it) == ["own"]
    assert [entry_point for entry_point, _ in failures(lines)] == [None]


async def test_the_configuration_goes_before_modules_and_these_before_packages(tmp_path: Path, folder: Path) -> None:
    write(folder, "company_four", marked("one", "module") + marked("two", "module"))
    names = ("one", "two", "three")
    write(folder, "plugin_c", "".join(marked(name, "package") for name in names))
    write(folder, "plugin_d", marked("three", "package after it"))
    install(folder, "plugin_d", ["z = plugin_d"])
    install(folder, "plugin_c", ["a = plugin_c"])
    async with opened(tmp_path, "company_four", agents=[configured("one", "configuration")]) as (it, lines):
        assert [await said(it, name) for name in names] == ["Snow is the configuration.", "module", "package"]
    taken = "there is already an agent '{}', of source '{}'"
    assert failures(lines) == [
        (None, taken.format("one", "config")),
        ("a", taken.format("one", "config")),
        ("a", taken.format("two", "code")),
        ("z", taken.format("three", "code")),
    ]


async def test_what_was_registered_over_the_api_gives_way_to_a_named_module_and_to_no_package(
    tmp_path: Path, folder: Path
) -> None:
    write(folder, "company_five", marked("mine", "module"))
    write(folder, "plugin_e", marked("mine", "package"))
    install(folder, "plugin_e", ["e = plugin_e"])
    async with opened(tmp_path, entry_points=False) as (it, _):
        stored = Agent(id="mine", kind="offline", settings={"knowledge": ["Snow is the stored one."]})
        await it.register_agent(stored)
        await it.register_agent(
            dataclasses.replace(stored, settings={"knowledge": ["Snow is theirs."]}), tenant="somebody"
        )
    async with opened(tmp_path) as (it, lines):
        assert await said(it, "mine") == "Snow is the stored one."
        assert [entry_point for entry_point, _ in failures(lines)] == ["e"]
    async with opened(tmp_path, "company_five") as (it, lines):
        assert await said(it, "mine") == "module"
        assert [fields["agent"] for fields in lines.of("agent_replaced_by_code")] == ["mine"]
        # A tenant's own agent goes before those that all share.
        assert await said(it, "mine", tenant="somebody") == "Snow is theirs."
    async with opened(tmp_path, entry_points=False) as (it, _):
        assert await said(it, "mine") == "Snow is the stored one.", "it is back"


async def test_a_found_agent_is_changed_and_removed_as_others_are(tmp_path: Path, folder: Path) -> None:
    write(folder, "company_six", marked("one"))
    for _ in range(2):
        async with opened(tmp_path, "company_six") as (it, _):
            assert it.get_agent("one").agent.enabled, "a start begins with what the code says"
            await it.enable_agent("one", enabled=False)
            assert not it.get_agent("one").agent.enabled
            await it.unregister_agent("one")
            assert ids(it) == []


@pytest.mark.slow
async def test_the_command_line_and_the_service_see_what_is_found(tmp_path: Path) -> None:
    write(tmp_path, "beside", marked("beside"))
    write(tmp_path, "plugin", "import pathlib\npathlib.Path('imported').touch()\n" + marked("packed"))
    write(tmp_path, "broken", "raise RuntimeError")
    install(tmp_path, "plugins", ["broken = broken", "packed = plugin"])
    (tmp_path / "orchestra.yaml").write_text("registry: {modules: [beside]}\n", encoding="utf-8")
    assert orchestra("keys", "list", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "imported").exists(), "what needs no agents imports none"
    listed = orchestra("agents", "list", "--json", cwd=tmp_path)
    assert [(entry["id"], entry["source"]) for entry in json.loads(listed.stdout)] == [
        ("beside", "code"),
        ("packed", "code"),
    ], listed.stderr
    asked = orchestra("ask", "packed", cwd=tmp_path)
    assert (asked.returncode, asked.stdout) == (0, "packed\n"), asked.stderr
    switched_off = {"ORCHESTRA_REGISTRY__ENTRY_POINTS": "false"}
    listed = orchestra("agents", "list", "--json", cwd=tmp_path, more_environment=switched_off)
    assert [entry["id"] for entry in json.loads(listed.stdout)] == ["beside"]
    wrong = orchestra("agents", "list", cwd=tmp_path, more_environment={"ORCHESTRA_REGISTRY__MODULES": '["besides"]'})
    assert wrong.returncode == 2
    assert "registry.modules.0: module 'besides' cannot be imported" in wrong.stderr
    with running_service(tmp_path, {"registry": {"modules": ["beside"]}}) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            for name in ("beside", "packed"):
                response = await client.post("/v1/orchestrate", json={"content": name})
                assert (response.status_code, response.json()["output"]) == (200, name)
        assert "agent_discovery_failed" in service.read_log()
        assert "Traceback" not in service.read_log()
