"""Real files, where they are there, and what two processes must agree on."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lib.data import tasks as data
from lib.data.groups import Sampling

ROOT = Path(__file__).parents[1]
COUNTS = {  # task: split: rows of each label, in the order of the task's labels
    "CoLA": {"train": [2528, 6023], "dev": [322, 721]},
    "SST-2": {"train": [29780, 37569], "dev": [428, 444]},
    "MRPC": {"train": [1194, 2474], "dev": [129, 279]},
    "QNLI": {"dev": [2702, 2761]},
    "RTE": {"train": [1249, 1241], "dev": [146, 131]},
    "WNLI": {"train": [323, 312], "dev": [40, 31]},
    "mnli-subset": {
        "train": [5333, 5323, 5235],
        "matched": [3479, 3123, 3213],
        "mismatched": [346, 319, 335],
    },
    "qqp-subset": {"train": [1239, 761], "dev": [4871, 2729]},
}


@pytest.fixture
def glue(real_data, monkeypatch, tmp_path):
    "The real GLUE folder as data folder, the hub off."
    import datasets
    import huggingface_hub.constants

    folder = real_data("glue")
    monkeypatch.setenv("SIEVE_DATA", str(folder.parent))
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.parametrize("name", COUNTS)
def test_real_rows_and_labels(glue, name):
    splits = list(COUNTS[name])
    assert data.check_source(name, splits=splits).endswith(data.TASKS[name].folder)
    task = data.load_task(name, splits=splits)
    for split, counts in COUNTS[name].items():
        assert np.bincount(task.splits[split]["label"]).tolist() == counts, split
    assert all(
        hashlib.sha256((glue.parent / f).read_bytes()).hexdigest() == sha for f, sha in task.files.items()
    ) and len(task.files) == len(splits)


def test_real_similarity_scores(glue):
    task = data.load_task("STS-B")
    train, dev = (np.asarray(task.splits[s]["label"], float) for s in ("train", "dev"))
    assert (len(train), len(dev)) == (5749, 1500) and round(train.mean(), 3) == 2.701
    assert abs(dev.mean() - 2.3639075556) < 1e-6 and abs(dev.std() - 1.4999854043) < 1e-6


def test_rows_as_they_stand_in_the_files(glue):
    first = lambda name, split: data.load_task(name, splits=[split]).splits[split][0]
    assert first("CoLA", "dev")["text_a"] == "The sailors rode the breeze clear of the rocks."
    assert first("MRPC", "train")["text_a"].startswith(
        'Amrozi accused his brother , whom he called " the witness "'
    )
    assert first("RTE", "train") == {
        "text_a": "No Weapons of Mass Destruction Found in Iraq Yet.",
        "text_b": "Weapons of Mass Destruction Found in Iraq.",
        "label": 1,
        "idx": 0,
    }


def test_halves_of_every_real_dev_set(glue):
    for name in COUNTS:
        task = data.load_task(name, splits=data.dev_sets(name))
        sets = data.evaluation_sets(task)
        a, b = sets["select"], sets["report"][task.dev_sets[0]]
        whole = task.splits[task.dev_sets[0]]
        assert sorted(a["idx"][:] + b["idx"][:]) == list(range(len(whole))) and 0 <= len(a) - len(b) <= 1
        assert np.abs(np.bincount(a["label"]) - np.bincount(b["label"])).max() <= 1


@pytest.mark.parametrize(
    "name, splits, lacks",
    [
        ("QNLI", ["train"], "train.tsv"),
        ("QQP", None, "dev.tsv"),
        ("MNLI", ["train"], "train.tsv"),
        ("MNLI", ["mismatched"], "dev_mismatched.tsv"),
    ],
)
def test_a_subset_is_never_taken_for_the_full_set(glue, name, splits, lacks):
    with pytest.raises(data.DataError, match=f"Looked in: .*no {lacks}.*on the hub") as caught:
        data.load_task(name, splits=splits)
    assert "\n" not in str(caught.value)


def test_both_folder_layouts(tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_DATA", str(tmp_path))
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n")
    assert data.load_task("RTE", "local").files.keys() == {"RTE/dev.tsv"}
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    (tmp_path / "RTE" / "dev.tsv").rename(tmp_path / "glue" / "RTE" / "dev.tsv")
    assert data.load_task("RTE", "local").files.keys() == {"glue/RTE/dev.tsv"}


def test_no_data_folder_names_both_places(tmp_path, monkeypatch):
    "In a process without a network, as a user meets it: quickly, and in one sentence."
    code = "from lib.data.tasks import check_source\ncheck_source('RTE')"
    env = {
        **os.environ,
        "SIEVE_DATA": str(tmp_path / "nothing"),
        "HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    message = done.stderr.strip().splitlines()[-1]
    assert (
        done.returncode == 1
        and "nothing/glue/RTE is no folder" in message
        and "nyu-mll/glue (rte) on the hub" in message
    )


DIGESTS = {  # what the rows were before all formats had one reader and all tasks one loader
    "CoLA dev": "6f652f5befc22cc5",
    "STS-B dev": "844d9d75e8f8110d",
    "RTE train": "a35e33c0e5767ad1",
    "climate-fever train": "40b9db75545a86c7",
    "hans-regenerated-halves dev": "596e2bb25a35b0b4",
    "paws-qqp-dev dev": "9a4955410e3b17ea",
    "multi30k dev": "fd360bfefe6f9cc4",
    "synthetic-nli dev": "cda6041fd559d248",
    "synthetic-gender dev": "eeb99ea52f4e4b15",
    "synthetic-toxicity dev": "59d57909295e7996",
    "synthetic-translation dev": "394646e370fcd525",
    "toxigen split align": "10c0b018db68d1ed",
    "toxigen split select": "9ca8246ae8efa3ed",
    "toxigen thesis align": "1e2fac1f9b6c2f3d",
    "toxigen thesis select": "769dd19026566b32",
    "hatexplain split align": "bfc1a171dbdba1be",
    "hatexplain split select": "9093c759fe77c7a2",
    "hatexplain thesis align": "4ec70cb5452b49ff",
    "hatexplain thesis select": "1e52a5c57cf17e42",
    "synthetic-toxicity split align": "71e7fc98f976f3d0",
    "synthetic-toxicity split select": "1e8596df23169f01",
    "synthetic-toxicity thesis align": "cd87828cccecc419",
    "synthetic-toxicity thesis select": "66e6a56b88721c80",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_rows_are_the_very_same(real_data, monkeypatch, tmp_path, name):
    task, *protocol, split = name.split()
    if data.TASKS[task].draw is None:
        folder = real_data(data.TASKS[task].root)
        monkeypatch.setenv("SIEVE_DATA", str(folder.parent))
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    sampling = Sampling(protocol=protocol[0]) if protocol else None
    rows = data.load_task(task, splits=None if protocol else [split], sampling=sampling).splits[split]
    columns = json.dumps([[c, rows[c][:]] for c in sorted(rows.column_names)])
    assert hashlib.sha256(columns.encode()).hexdigest()[:16] == DIGESTS[name]


PROBE = """
import hashlib, json
from lib.data.tasks import *
task = load_task("{task}", settings={{"train": 500, "dev": 50}})
tokenizer = tiny_tokenizer(task_texts(task)[:4000], 3000)
dev = task.splits["dev"]
print(json.dumps([hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(), token_key(dev, tokenizer, 64), list(evaluation_sets(task)["select"]["idx"])]))
"""


def in_two_processes(task, **env):
    run = lambda seed: (
        subprocess.run(
            [sys.executable, "-c", PROBE.format(task=task)],
            env={**os.environ, **env, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    return json.loads(run("1")), json.loads(run("2"))


def test_synthetic_words_tokens_and_halves_are_the_same_in_two_processes():
    first, second = in_two_processes("synthetic-nli")
    assert first == second


def test_real_words_tokens_and_halves_are_the_same_in_two_processes(real_data):
    "On real text the trainer alone would give other words, not only other numbers, from process to process."
    first, second = in_two_processes("MRPC", SIEVE_DATA=str(real_data("glue").parent))
    assert first == second
