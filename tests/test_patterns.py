"""Attention patterns: what the classifier learns from drawn maps, the whole study at smoke size, and a model of full size."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toys import OFFLINE, command, execute

from lib.attribution.labelled_maps import write_maps
from lib.attribution.patterns import PATTERN_RECIPES, classification_report, fit_patterns, predict_classes
from lib.core.folders import Run
from lib.core.keys import notebook_path
from lib.core.sweeps import load_sweep
from lib.data.synthetic_attention import synthetic_maps

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "nbs" / "sweeps"
BIN = Path(sys.executable).parent


def run(*command, **env):
    "A process of its own"
    env = os.environ | OFFLINE | {k: str(v) for k, v in env.items()}
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True)


def weighted_f1(classifier, maps, **settings):
    found, kinds = synthetic_maps("dev", {"dev": 200} | settings, maps)
    return classification_report(kinds, predict_classes(classifier, found))[1]


@pytest.fixture(scope="module")
def raw_classifier():
    torch.set_num_threads(1)
    return fit_patterns(
        synthetic_maps("train", {"train": 1200, "high": 96}),
        synthetic_maps("dev", {"dev": 100, "high": 96}),
        ("raw", "synthetic"),
        PATTERN_RECIPES["short"],
        seed=13,
    )[0]


OTHERS = {
    "another seed": {"seed": 5},
    "short texts": {"seed": 6, "low": 16, "high": 32},
    "long texts": {"seed": 7, "low": 64, "high": 128},
    "little noise": {"seed": 8, "noise": 0.08},
    "more noise": {"seed": 9, "noise": 0.2},
    "no padding": {"seed": 10, "padding": 0.0},
    "all padded": {"seed": 11, "padding": 1.0},
}


@pytest.mark.slow  # more than a minute of training
def test_kinds_are_told_apart_on_maps_of_other_seeds_sizes_and_noise(raw_classifier):
    scores = {name: weighted_f1(raw_classifier, "raw", **settings) for name, settings in OTHERS.items()}
    print(scores)
    assert min(scores.values()) >= 0.95, scores


@pytest.mark.slow
def test_score_falls_with_labels(raw_classifier):
    "With half of the labels wrong even a perfect answer is right on half of the maps."
    half = weighted_f1(raw_classifier, "raw", seed=5, label_noise=0.5)
    print(half)
    assert 0.4 < half < 0.6


@pytest.mark.slow
def test_norm_based_maps_and_a_teacher_who_errs():
    torch.set_num_threads(1)
    norm = fit_patterns(
        synthetic_maps("train", {"train": 2000}, "norm"),
        synthetic_maps("dev", {"dev": 200}, "norm"),
        ("norm", "synthetic"),
        PATTERN_RECIPES["short"],
        seed=13,
    )[0]
    scores = {name: weighted_f1(norm, "norm", **settings) for name, settings in OTHERS.items()}
    wrong = {"train": 1200, "label_noise": 0.5}
    misled = fit_patterns(
        synthetic_maps("train", wrong),
        synthetic_maps("dev", {"dev": 200, "label_noise": 0.5}),
        ("raw", "synthetic"),
        PATTERN_RECIPES["short"],
        seed=13,
    )[0]
    taught = weighted_f1(misled, "raw", seed=5)
    print(scores, "taught with half of the labels wrong:", taught)
    assert min(scores.values()) >= 0.95 and taught < min(scores.values())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "Every stage of the attention study at smoke size."
    outputs = tmp_path_factory.mktemp("attention")
    done = command("run", SWEEPS / "attention.yaml", "--smoke", "-j", 2, SIEVE_OUTPUTS=outputs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return outputs


def test_every_stage_has_run(study, monkeypatch):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(study))
    sweep = load_sweep(SWEEPS / "attention.yaml", smoke=True)
    assert all(Run(r.notebook, r.key).finished() for r in sweep.planned)
    analysis = next(Run(r.notebook, r.key) for r in sweep.planned if r.stage == "patterns")
    shares = pd.DataFrame(analysis.result["metrics"]).query("metric == 'share'")
    assert np.allclose(shares.groupby(["task", "state", "maps", "heads"]).value.sum(), 1) and set(
        shares.state
    ) == {"fine-tuned", "pre-trained"}
    assert len(list(analysis.folder.glob("*.svg"))) >= 4 + 4 + 2


def test_fine_tuning_and_masks_are_those_of_the_lottery_study():
    mine, theirs = load_sweep(SWEEPS / "attention.yaml"), load_sweep(SWEEPS / "lottery.yaml")
    shared = [r for r in mine.planned if r.stage in ("finetune", "heads_mlps", "super")]
    assert len(shared) == 88 and all(str(r) in theirs.runs for r in shared)


def test_maps_drawn_to_be_labelled_come_back_as_training_maps(study, tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(study))
    drawn = next(
        Run(r.notebook, r.key)
        for r in load_sweep(SWEEPS / "attention.yaml", smoke=True).planned
        if r.stage == "maps_to_label" and r.params["maps"] == "norm"
    )
    sheet = drawn.folder / "to_label" / "normed" / "attention_norm_annotated.tsv"
    names = [line.split("\t")[0] for line in sheet.read_text().splitlines()]
    assert (
        len(names) == 12
        and all((sheet.parent / "data" / f"{n}.npy").is_file() for n in names)
        and names[0].startswith("synthetic-nli_1_")
    )
    found, kinds = synthetic_maps("dev", {"dev": 60, "high": 24}, "norm")
    write_maps(tmp_path / "data" / "mine", "norm", found, kinds, [f"RTE_1_{i}" for i in range(60)])
    given = {"maps_from": "mine", "maps": "norm", "epochs": 1}
    places = {"SIEVE_OUTPUTS": tmp_path / "outputs", "SIEVE_DATA": tmp_path / "data"}
    execute("pattern_classifier", tmp_path / "out.ipynb", given, **places)
    result = json.loads(next((tmp_path / "outputs").glob("pattern_classifier/*/result.json")).read_text())
    made = json.loads(next((tmp_path / "outputs").glob("pattern_classifier/*/params.json")).read_text())
    assert (
        {m["task"] for m in result["metrics"]} == {"mine"}
        and len(made["data"]) == 62
        and {m["n"] for m in result["metrics"]} == {6}
    )


def test_a_wrong_place_of_labelled_maps_is_refused_before_anything_runs(tmp_path):
    sweep = tmp_path / "s.yaml"
    sweep.write_text(
        f"stages:\n  c: {{notebook: pattern_classifier, set: {{maps_from: {tmp_path}/nowhere.zip}}}}\n"
    )
    done = command("run", sweep, SIEVE_OUTPUTS=tmp_path / "outputs")
    assert (
        done.returncode != 0
        and "nowhere.zip" in done.stderr
        and "stage c" in done.stderr
        and not list((tmp_path / "outputs").glob("[!.]*/*"))
    )


@pytest.mark.slow
def test_all_heads_of_a_full_size_model_in_little_memory(tmp_path):
    "bert-base in shape (random weights), 100 sentences of 64 tokens: one command, with progress, under 2 GiB."
    from transformers import BertConfig, BertModel

    from lib.data.tasks import load_task, task_texts, tiny_tokenizer

    folder, data = tmp_path / "base", tmp_path / "data" / "glue" / "MRPC"
    tokenizer = tiny_tokenizer(task_texts(load_task("synthetic-nli", settings={"train": 300})), 600)
    words = [w for w in tokenizer.get_vocab() if w.isalpha() and len(w) > 3]
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data.mkdir(parents=True)
    rng, text = np.random.default_rng(0), lambda n: " ".join(rng.choice(words, n))
    rows = "\n".join(f"{i % 2}\t1\t2\t{text(31)}\t{text(30)}" for i in range(220))
    for split in ("train", "dev"):
        (data / f"{split}.tsv").write_text(f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{rows}\n")
    done = run(
        BIN / "papermill",
        notebook_path("classify_heads"),
        tmp_path / "out.ipynb",
        "-p",
        "model",
        folder,
        "-p",
        "task",
        "MRPC",
        "-p",
        "sentences",
        100,
        "-p",
        "threads",
        2,
        SIEVE_OUTPUTS=tmp_path / "outputs",
        SIEVE_DATA=tmp_path / "data",
        OMP_NUM_THREADS="2",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = next((tmp_path / "outputs").glob("classify_heads/*"))
    heads = pd.read_parquet(made / "heads.parquet")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{json.loads((made / 'params.json').read_text())['seconds']:.0f} s, at most {peak:.2f} GiB in one process"
    )
    assert len(heads) == 14_400 and peak < 2 and "100/100" in (tmp_path / "out.ipynb").read_text()
    tokens = pd.read_parquet(made / "examples.parquet").tokens
    assert tokens.between(60, 68).all()
