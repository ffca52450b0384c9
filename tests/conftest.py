"""What several test files share."""

import os
from pathlib import Path

import pytest
from toys import Project

ROOT = Path(__file__).parents[1]


# the files that take longest, longest first: the last file to be given out ends the whole
LONG = "studies patterns own_methods wishes kills engine sparsity groups subnetworks bias_tests export ood push".split()


def pytest_collection_modifyitems(items):
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture
def real_data():
    "A function: folder of real data by its name below the data folder, or a skip that says what was looked for."

    def find(name: str) -> Path:
        places = (
            [ROOT / os.environ["SIEVE_DATA"]]
            if "SIEVE_DATA" in os.environ
            else [ROOT / "data", ROOT.parent / "shared" / "data"]
        )
        for place in places:
            if (place / name).is_dir():
                return place / name
        pytest.skip(f"no real data: {name} is in none of {', '.join(map(str, places))}")

    return find


@pytest.fixture
def real(real_data, monkeypatch, tmp_path):
    "The folder of real data, with SIEVE_DATA set to it, results below a temporary folder and the hub off."
    import datasets
    import huggingface_hub.constants

    folder = real_data("ood").parent
    monkeypatch.setenv("SIEVE_DATA", str(folder))
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project of toy notebooks; this process's environment points there."
    project = Project(tmp_path)
    for name in ("SIEVE_OUTPUTS", "SIEVE_NBS", "SIEVE_DATA"):
        monkeypatch.setenv(name, project.env[name])
    return project
