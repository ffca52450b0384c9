"""Searches for subnetworks across processes: the same bits, and a killed one that goes on to them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEARCH = """
import hashlib, sys, numpy as np
from pathlib import Path
from torch.nn.functional import cross_entropy
from lib.data.tasks import load_task
from lib.models.masks import save_mask
from lib.core.runs import seed_everything
from lib.maskers.maskers import make_masker
from lib.training.loading import load_model
from lib.training.recipes import classification
from lib.training.search import PruningPlan, iterative_pruning
from lib.training.trainer import Evaluation, Optim, ScoreOptim, train
seed_everything(0, 1)
task = load_task("synthetic-nli", settings={"train": 320, "dev": 60, "ood": 20})
model, tokenizer = load_model("tiny", task, 0, tiny={"layers": 2, "width": 32, "heads": 2, "length": 48})
bias, folder = np.log(np.random.default_rng(0).dirichlet([1, 1], 320)), Path(sys.argv[1]) / "checkpoints"
poe = lambda z, y, bias: cross_entropy(z + bias, y)
recipe = classification(tokenizer, task, select=task.splits["dev"], columns={"bias": bias}, loss=poe)
optim = Optim(lr=1e-3, epochs=4, save_steps=4)
if sys.argv[2] == "mask":
    given = dict(sparsity=0.7, initial=0.3, init="soft", update_every=6, estimate_every=1)
    masker = make_masker("mask_training", model, steps=40, epoch_steps=10, **given)
    best = Evaluation(6, keep="best", start_ratio=0.5)
    masks = {"": train(model, recipe, optim, masker=masker, scores=ScoreOptim(1e-3), evaluation=best, folder=folder).mask}
else: masks = iterative_pruning(model, recipe, optim, PruningPlan(rewind=True), folder=folder).masks
for sparsity, mask in masks.items(): save_mask(mask, Path(sys.argv[1]) / f"mask{sparsity}.safetensors", "tiny")
print(*(hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(sys.argv[1]).glob("mask*.safetensors"))))
"""


def process(folder, kind, hash_seed):
    folder.mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "OMP_NUM_THREADS": "1",
        "SIEVE_OUTPUTS": str(folder / "out"),
    }
    return subprocess.Popen(
        [sys.executable, "-c", SEARCH, str(folder), kind],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digests(started):
    out, error = started.communicate(timeout=300)
    assert started.returncode == 0, error[-2000:]
    return out.splitlines()[-1].split()


@pytest.mark.parametrize("kind", ["mask", pytest.param("imp", marks=pytest.mark.slow)])
def test_a_killed_search_ends_with_the_same_masks(tmp_path, kind):
    whole = digests(process(tmp_path / "a", kind, "1"))
    killed = process(tmp_path / "b", kind, "2")
    while not list((tmp_path / "b").glob("checkpoints/checkpoint-*/complete")):
        assert killed.poll() is None, killed.communicate()[1][-2000:]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list((tmp_path / "b").glob("mask*.safetensors"))
    assert digests(process(tmp_path / "b", kind, "3")) == whole and len(whole) == (1 if kind == "mask" else 9)
