"""Workflows of GitHub: they run targets of the Makefile, on the oldest Python, too."""

import re

import pytest
import yaml
from paths import ROOT


WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
STEPS = [step for workflow in WORKFLOWS.values() for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("command", [step["run"] for step in STEPS if "run" in step])
def test_they_run_targets_of_the_makefile(command):
    makefile = (ROOT / "Makefile").read_text()
    make, target, *settings = re.sub(r"\$\{\{.*?\}\}", "...", command).split()
    assert make == "make" and re.search(rf"^{target}:", makefile, flags=re.M)
    for setting in settings:
        assert re.search(rf"^{setting.partition('=')[0]} := ", makefile, flags=re.M)


def test_the_oldest_python_is_tested():
    versions = WORKFLOWS["checks"]["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert f'requires-python = ">={versions[0]}"' in (ROOT / "pyproject.toml").read_text()


def test_only_a_tag_publishes():
    triggers = WORKFLOWS["release"][True]  # YAML reads `on` as true.
    assert triggers == {"push": {"tags": ["v*"]}}
    assert WORKFLOWS["release"]["jobs"]["publish"]["permissions"] == {"id-token": "write"}
