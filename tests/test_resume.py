"""A stopped run goes on from what it has finished, and its result is that of an undisturbed one, to the bit."""

import json

import pytest

from lib.attribution.per_example import RowStore
from lib.core.base import ROOT
from lib.core.folders import run_folders
from lib.training import trainer

SMALL = {"settings": {"train": 40, "dev": 24, "test": 24}, "max_steps": 2, "batch_size": 8}


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / "outputs"))
    return lambda name: monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / name))


def execute(notebook, **params):
    "Run the notebook's code cells in this process with other parameters; its variables."
    scope = {"__name__": "__main__"}
    for cell in json.loads((ROOT / "nbs" / "experiments" / f"{notebook}.ipynb").read_text())["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "checks" not in tags:
            exec("".join(cell["source"]), scope)
            scope |= params if "parameters" in tags else {}
    return scope


class Calls:
    "Calls of a function are counted, and the one of a number is interrupted."

    def __init__(self, patch, owner, name):
        self.seen = self.stop = 0
        real = getattr(owner, name)

        def counted(*args, **more):
            self.seen += 1
            if self.seen == self.stop:
                raise KeyboardInterrupt
            return real(*args, **more)

        patch.setattr(owner, name, counted)


def interrupted(patch, outputs, stop, owner, name, notebook, **params):
    "result.json undisturbed, and interrupted and started again; how often the function was called for each."
    found, counts, calls = [], [], Calls(patch, owner, name)
    for place, calls.stop in (("whole", 0), ("parted", stop)):
        outputs(place)
        calls.seen = 0
        if calls.stop:
            with pytest.raises(KeyboardInterrupt):
                execute(notebook, **params)
        calls.seen = calls.stop = 0
        run = execute(notebook, **params)["run"]
        counts.append(calls.seen)
        found.append((run.folder / "result.json").read_bytes())
        assert run.problem() == "" and not (run.folder / "checkpoints").exists()
        assert run_folders() == [run]
    return found, counts


def test_removal_keeps_every_training_that_ended(monkeypatch, outputs):
    given = SMALL | {"remove": "random", "ks": [0, 4, 8], "draw": 1}
    (whole, parted), counts = interrupted(monkeypatch, outputs, 3, trainer, "train", "data_removal", **given)
    assert whole == parted and counts == [3, 1]


def test_retraining_keeps_every_subset_that_ended(monkeypatch, outputs):
    given = SMALL | {"m": 3, "seeds": 1}
    (whole, parted), counts = interrupted(
        monkeypatch, outputs, 3, trainer, "train", "retrain_subsets", **given
    )
    assert whole == parted and counts == [3, 1]


@pytest.mark.parametrize("method, options", [("trak", {"k": 8}), ("gradient_dot", {})])
def test_attribution_keeps_the_features(monkeypatch, outputs, method, options):
    given = {"settings": SMALL["settings"], "batch_size": 8, "method": method, "options": options}
    (whole, parted), counts = interrupted(monkeypatch, outputs, 4, RowStore, "add", "attribution", **given)
    assert whole == parted and counts[1] == counts[0] - 3


def test_damaged_features_are_made_again(tmp_path):
    import torch

    net = torch.nn.Linear(2, 2)

    class Rows:
        column_names = ()

    store = RowStore(file := tmp_path / "f.npy", (4, 2), net, Rows())
    store.add(torch.ones(2, 2))
    assert RowStore(file, (4, 2), net, Rows()).done == 2
    raw = bytearray(file.read_bytes())
    raw[-8] ^= 1  # in what is not written yet: no harm
    file.write_bytes(raw)
    assert RowStore(file, (4, 2), net, Rows()).done == 2
    raw[-20] ^= 1
    file.write_bytes(raw)
    with pytest.warns(UserWarning, match="f.npy was altered: its rows are made again"):
        assert RowStore(file, (4, 2), net, Rows()).done == 0
