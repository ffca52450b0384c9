"""What an installation declares: the versions of Python, the dependencies, and what the command says outside a checkout."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTS_ONLY = {"pytest", "pytest-xdist", "pypdf", "ruff"}


def test_the_same_versions_of_python_everywhere():
    versions = ["3.11", "3.12", "3.13"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == versions
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    makefile = (ROOT / "Makefile").read_text()
    assert "not (3, 11) <= v <= (3, 13)" in makefile and "3.11 to 3.13" in makefile
    assert [f"python{v}" for v in versions] == re.findall(r"command -v (python3\.\d+)", makefile)
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python>=3.11,<3.14" in conda
    assert "Python 3.11, 3.12 or 3.13" in (ROOT / "README.md").read_text()


def test_dependencies_are_those_of_the_environment():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pins = next(d["pip"] for d in conda if isinstance(d, dict))
    wanted = {pin for pin in pins if pin.split("==")[0] not in TESTS_ONLY}
    assert set(PROJECT["dependencies"]) == wanted
    # its metadata asks for torchvision: it is installed without dependencies, and influence says so where it lacks
    assert "--no-deps kronfluence==1.0.1" in (ROOT / "Makefile").read_text()
    assert not any("kronfluence" in dependency for dependency in wanted)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "What `pip install .` puts into a folder of packages, without the dependencies."
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "lib", source / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run([*pip, "--target", target, source], capture_output=True, text=True)
    if "setuptools" in done.stderr and done.returncode:
        pytest.skip("no setuptools here to build with")
    assert done.returncode == 0, done.stderr
    return target


def test_a_wheel_declares_its_dependencies(installed):
    told = Parser().parsestr(next(installed.glob("sieve_lm-*/METADATA")).read_text())
    assert set(told.get_all("Requires-Dist")) == set(PROJECT["dependencies"])
    assert set(told["Requires-Python"].split(",")) == {">=3.11", "<3.14"}


def test_outside_a_checkout_the_command_says_what_to_do(installed, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIEVE_")} | {"PYTHONPATH": str(installed)}
    code = "from lib.core.base import outputs; print(outputs())\nfrom lib.commands.cli import main; "
    for verb in (["status"], ["run", "s.yaml"], ["gc"]):
        command = [sys.executable, "-P", "-c", code + f"raise SystemExit(main({verb}))"]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == f"{tmp_path / 'outputs'}\n"  # and not below the packages
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "is not a checkout" in done.stderr and "pip install -e ." in done.stderr
    assert not list(installed.glob("outputs")) and not list(tmp_path.iterdir())
