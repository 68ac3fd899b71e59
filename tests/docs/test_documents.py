"""What the documents show is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest
import yaml
from tests.services.vendors import running_llmock

from agent_orchestra.core import breaker
from agent_orchestra.settings import ProviderSettings, Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[object]:
    found: list[object] = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL), 1):
            found.append(pytest.param(block, id=f"{document.relative_to(ROOT)}-{number}"))
    return found


@pytest.fixture(scope="module")
def vendors() -> Generator[Mapping[str, str]]:
    """The environment of a reader who has keys. The vendors are on loopback; no server of the reader's own is up."""
    with running_llmock() as llmock:
        yield {
            "ORCHESTRA_PROVIDERS__ANTHROPIC__BASE_URL": llmock.anthropic,
            "ORCHESTRA_PROVIDERS__OPENAI__BASE_URL": llmock.openai,
            "ORCHESTRA_PROVIDERS__GOOGLE__BASE_URL": llmock.google,
            "ORCHESTRA_PROVIDERS__LOCAL__BASE_URL": "http://127.0.0.1:9/v1",
            "ANTHROPIC_API_KEY": "key",
            "OPENAI_API_KEY": "key",
            "GOOGLE_API_KEY": "key",
        }


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, tmp_path: Path, vendors: Mapping[str, str]) -> None:
    (tmp_path / "without-keys.yaml").touch()
    environment = {**os.environ, **({} if "without-keys.yaml" in code else vendors)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_library_in_the_readme_prints_its_answer(tmp_path: Path) -> None:
    code = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "shouter: SHOUT HELLO! (nearest to its keywords 'shout')\n"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_valid_settings(text: str) -> None:
    sections = yaml.safe_load(text)
    assert sections
    Settings(**sections)


def test_links_lead_somewhere() -> None:
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in [*DOCUMENTS, ROOT / "AGENTS.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert not broken


def test_the_diagram_of_the_breaker_is_the_codes_own() -> None:
    guide = (ROOT / "docs/guides/dispatch.md").read_text(encoding="utf-8")
    assert re.findall(r"^```mermaid\n(.*?)^```", guide, re.MULTILINE | re.DOTALL) == [breaker.diagram() + "\n"]


def test_every_setting_is_in_the_guide() -> None:
    guide = (ROOT / "docs/guides/service.md").read_text(encoding="utf-8")
    missing = [
        f"{section}.{key}"
        for section, field in Settings.model_fields.items()
        for key in getattr(field.annotation, "model_fields", {})
        if f"{section}.{key}" not in guide and f"`.{key}`" not in guide
    ]
    of_providers = (ROOT / "docs/guides/providers.md").read_text(encoding="utf-8")
    missing += [key for key in ProviderSettings.model_fields if f"| `{key}` |" not in of_providers]
    assert not missing, missing
