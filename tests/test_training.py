"""Training across processes: the same bits, and a killed run that goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.core.base import DataError
from lib.core.keys import notebook_path
from lib.data.tasks import load_task
from lib.training.loading import check_model, load_model, save_model

ROOT = Path(__file__).parents[1]
TRAIN = """
import hashlib, sys, torch
from pathlib import Path
from lib.data.tasks import load_task
from lib.core.runs import seed_everything
from lib.training.loading import load_model, save_model
from lib.training.recipes import classification
from lib.training.trainer import Evaluation, Optim, train
from lib.models.units import bake, ones
seed_everything(0, 1)
task = load_task("synthetic-nli", settings={"train": 320, "dev": 60, "ood": 20})
model, tokenizer = load_model("tiny", task, 0, tiny={"layers": 2, "width": 32, "heads": 2, "length": 48})
mask = ones(model, "head"); mask["head"][1, 0] = 0
folder = Path(sys.argv[1])
recipe = classification(tokenizer, task, select=task.splits["dev"])
train(model, recipe, Optim(lr=1e-3, epochs=3, save_steps=4), masker=mask, evaluation=Evaluation(keep="best"), folder=folder / "checkpoints")
save_model(bake(model, mask), tokenizer, folder / "model")
print(hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest())
"""


def process(folder, hash_seed, outputs):
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1", "SIEVE_OUTPUTS": str(outputs)}
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder)],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest(started):
    out, error = started.communicate(timeout=300)
    assert started.returncode == 0, error[-2000:]
    return out.splitlines()[-1]


def test_two_processes_train_the_same_bits_and_a_killed_one_goes_on_to_them(tmp_path):
    first = digest(process(tmp_path / "a", "1", tmp_path / "out1"))
    killed = process(tmp_path / "b", "2", tmp_path / "out2")
    while not list((tmp_path / "b").glob("checkpoints/checkpoint-*/complete")):  # in the middle of training
        assert killed.poll() is None, killed.communicate()[1][-2000:]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "b" / "model").exists()
    assert digest(process(tmp_path / "b", "3", tmp_path / "out2")) == first


def test_a_seed_changes_the_head_of_saved_weights_and_nothing_else(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    task = load_task("synthetic-nli", settings={"train": 40, "dev": 10, "ood": 10})
    model, tokenizer = load_model("tiny", task, 0, tiny={"layers": 1, "width": 16, "heads": 2})
    save_model(model, tokenizer, tmp_path / "start", encoder_only=True)
    a, b, again = (load_model(str(tmp_path / "start"), task, seed)[0].state_dict() for seed in (1, 2, 1))
    assert {n for n in a if not torch.equal(a[n], b[n])} == {"classifier.weight"} and all(
        torch.equal(a[n], again[n]) for n in a
    )


def test_models_that_are_not_there(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    with pytest.raises(
        DataError, match="no model 'bert-base-uncasd': not tiny, no run key, no folder, and the hub says"
    ) as caught:
        check_model("bert-base-uncasd")
    assert "\n" not in str(caught.value)
    with pytest.raises(Exception, match="no run '0123456789'"):
        check_model("0123456789")


@pytest.mark.slow
def test_finetune_mask_retrain_evaluate_through_the_notebooks(tmp_path):
    "An encoder, a fine-tuned model, a mask drawn for it, the retrained subnetwork, and the evaluation of both under that mask."
    import pandas as pd

    env = {**os.environ, "SIEVE_OUTPUTS": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(notebook, **parameters):
        given = [x for name, value in parameters.items() for x in ("-y", json.dumps({name: value}))]
        before = set(tmp_path.glob(f"{notebook}/*"))
        subprocess.run(
            [
                sys.executable,
                "-m",
                "papermill",
                str(notebook_path(notebook)),
                str(tmp_path / "out.ipynb"),
                "--no-progress-bar",
                *given,
            ],
            env=env,
            check=True,
            capture_output=True,
            cwd=tmp_path,
        )
        (folder,) = set(tmp_path.glob(f"{notebook}/*")) - before
        return folder, json.loads((folder / "result.json").read_text())

    start, result = run("finetune", max_steps=0)
    assert result["metrics"] == [] and (start / "model" / "model.safetensors").exists()
    model, _ = run("finetune", model=start.name, lr=1e-3, epochs=2.0)
    mask, _ = run("importance", model=model.name)
    retrained, scores = run("finetune", model=start.name, lr=1e-3, epochs=2.0, mask=mask.name)
    _, pruned = run("evaluate", model=model.name, masks=[mask.name])
    evaluated, again = run("evaluate", model=retrained.name, masks=[mask.name], sets=["dev", "select"])
    value = lambda result, mask, split: next(
        r["value"]
        for r in result["metrics"]
        if (r["mask"], r["split"], r["metric"]) == (mask, split, "accuracy")
    )
    assert value(scores, mask.name, "dev") == value(again, "", "dev") == value(again, mask.name, "dev")
    assert {r["split"] for r in pruned["metrics"]} == {"dev", "ood", ""} and {
        r["mask"] for r in pruned["metrics"]
    } == {"", mask.name, "majority"}
    answers = pd.read_parquet(evaluated / "predictions.parquet")
    assert (
        answers.groupby(["mask", "split"], sort=False).idx.apply(tuple).groupby("split").nunique().eq(1).all()
    )
