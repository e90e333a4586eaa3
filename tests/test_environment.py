"""pyproject, lock, environment.yml and Colab's versions agree."""

from pathlib import Path
import re
import tomllib

from packaging.requirements import Requirement
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [
    Requirement(line)
    for line in sum(EXTRAS.values(), PROJECT["dependencies"])
    if not line.startswith("cam-helpers")
]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def pins(lines, python):
    """Return {name: version} of the lines of a requirements file that hold for a Python."""
    found = {}
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            pin = Requirement(line.split("#")[0].strip())
            system = {"python_version": python, "python_full_version": f"{python}.0"}
            if pin.marker is None or pin.marker.evaluate({**system, "sys_platform": "linux"}):
                found[pin.name.lower()] = str(pin.specifier).removeprefix("==")
    return found


def lock(python):
    return pins((ROOT / "requirements.lock").read_text().splitlines(), python)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_lock_pins_each_dependency_inside_its_bounds(requirement, python):
    assert requirement.specifier.contains(lock(python)[requirement.name.lower()])


def test_lock_names_no_index_and_no_path():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--index|--find-links|file:|/", text)


def test_environment_yml_names_each_dependency_and_takes_versions_from_the_lock():
    (by_pip,) = (line["pip"] for line in CONDA["dependencies"] if isinstance(line, dict))
    assert by_pip[0] == "-c requirements.lock"
    assert sorted(by_pip[1:]) == sorted(requirement.name for requirement in DIRECT)
    assert CONDA["dependencies"][:2] == ["python=3.12", "pip"]
    assert CONDA["channels"] == ["conda-forge"]


def test_environment_yml_gives_a_reason_for_each_line():
    lines = (ROOT / "environment.yml").read_text().splitlines()
    bare = [
        line for line in lines if "- " in line and not line.endswith("pip:") and "#" not in line
    ]
    assert bare == []


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_installing_moves_nothing_that_colab_has(requirement):
    requirement = Requirement(requirement)
    colab = pins((ROOT / "tests" / "colab" / "runtime.txt").read_text().splitlines(), "3.13")
    if requirement.name == "tf-keras-vis":
        assert requirement.name not in colab
    else:
        version = colab[requirement.name]
        assert version == "" or requirement.specifier.contains(version)
