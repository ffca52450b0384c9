"""Two analyses across studies: on a tiny sweep from end to end, and that the sweep of the real encoder makes no run of its neighbours again."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from toys import command, execute

from lib.core.base import ROOT
from lib.core.folders import run_folders
from lib.core.sweeps import load_sweep

MINILM = ROOT / "nbs" / "sweeps" / "minilm"
OWN = {"bias_sst2", "mask_poe_sst2", "mask_frozen_sst2", "bias_hate", "bias_hate_shuffled"}
TINY = """
title: Tiny
set: {source: synthetic, max_length: 32}
stages:
  finetune:
    notebook: finetune
    set: {settings: &few {train: 64, dev: 40, ood: 40}, tiny: {layers: 2, width: 32, heads: 4, vocab: 300, length: 32}, max_steps: 4}
    grid: {model: [tiny], seed: [1, 2]}
  ranked:
    notebook: importance
    set: {settings: *few, procedure: rank, measure_on: train_in_order, scores: absolute, per_step: 2, rows: 32}
    from: {model: finetune}
  gates:
    notebook: train_mask
    set: {settings: *few, masker: dsp, k: 2, score_lr: 0.3, max_steps: 4, masker_options: {cooldown: 2}}
    from: {model: finetune}
  searched:
    notebook: train_mask
    set: {settings: *few, score_lr: 0.1, max_steps: 4, sparsity: 0.5}
    from: {model: finetune}
  frozen:
    notebook: train_mask
    set: {settings: *few, score_lr: 0.0, max_steps: 1, sparsity: 0.5}
    from: {model: finetune}
  overlap:
    notebook: method_overlap
    set: {draws: 200}
    over: {runs: [ranked, gates, searched, frozen]}
    by: []
  moved:
    notebook: method_overlap
    set: {draws: 200, moved: true}
    over: {runs: [ranked, gates, searched, frozen]}
    by: []
  scores:
    notebook: attribution
    set: {task: synthetic-toxicity, settings: &rows {train: 60, dev: 32, test: 32, seed: 3}, tiny: {layers: 1, width: 32, heads: 2, vocab: 400, length: 32}}
    grid: {method: [last_layer, random], seed: [1, 2]}
  bias:
    notebook: bias_model
    set: {task: synthetic-toxicity, settings: *rows, kind: first_text, sets: []}
    grid: {shuffled: [false, true]}
  rows:
    notebook: rows_and_bias
    set: {parts: 5}
    over: {runs: [scores, bias]}
    by: []
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Finished runs of the tiny sweep by stage, and where they are."
    place = tmp_path_factory.mktemp("across")
    (place / "tiny.yaml").write_text(TINY)
    done = command("run", place / "tiny.yaml", SIEVE_OUTPUTS=place / "outputs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIEVE_OUTPUTS", str(place / "outputs"))
        planned, runs = load_sweep(place / "tiny.yaml").planned, {run.key: run for run in run_folders()}
        yield place, {s: [runs[r.key] for r in planned if r.stage == s] for s in {r.stage for r in planned}}


def test_heads_of_four_methods_are_counted_as_their_masks_say(made):
    _, runs = made
    [overlap] = runs["overlap"]
    table = pd.read_csv(overlap.artefact("overlaps.csv")).set_index(["method", "other"])
    heads = pd.read_csv(overlap.artefact("heads.csv"), dtype=str)
    names = list(dict.fromkeys(heads.method))
    assert len(names) == 4 and len(table) == 10 and (table.n == [1, 2, 1, 2, 2, 1, 2, 2, 2, 1]).all()
    kept = {(r.method, int(r.seed)): {*r.heads.split()} for r in heads.itertuples()}
    assert {len(v) for v in kept.values()} == {2}  # a quarter of 8
    for method, other in table.index:
        same = [len(kept[method, s] & kept[other, s]) for s in (1, 2)]
        same = [len(kept[method, 1] & kept[method, 2])] if method == other else same
        assert table.loc[(method, other), "mean"] == sum(same) / len(same)
    assert (table.expected == 2 * 2 / 8).all() and table.p.between(0, 1, inclusive="right").all()
    assert overlap.artefact("method_overlap.svg").is_file()


def test_what_training_moved_leaves_the_controls_out(made):
    _, runs = made
    heads = pd.read_csv(runs["moved"][0].artefact("heads.csv"))
    assert [name for name in heads.method.unique() if "moved" in name] and heads.method.nunique() == 3


def test_weights_stand_beside_the_rows_that_were_scored(made):
    _, runs = made
    found = pd.read_csv(runs["rows"][0].artefact("correlations.csv"))
    assert len(found) == 2 * 2 * 2 and found.value.between(-1, 1).all()
    curve = pd.read_csv(runs["rows"][0].artefact("weights.csv"))
    mean = curve.groupby(["bias", "method"])["mean"].mean()  # parts are of equal size
    labels = pd.read_parquet(runs["scores"][0].artefact("rows.parquet")).label.to_numpy()
    for name, run in zip(("first text", "first text, shuffled"), runs["bias"]):
        answers = load_file(run.artefact("bias.safetensors"))["log_probs"]
        by_hand = 1 - np.exp(answers[np.arange(len(labels)), labels]).mean()
        assert np.allclose(mean[name], by_hand, atol=1e-6)
    assert set(curve.part) == {1, 2, 3, 4, 5} and (curve.n == 2).all()


@pytest.mark.parametrize(
    "notebook, stages, given, words",
    [
        ("method_overlap", ["overlap", "searched"], {"k": 8}, "choose from 1 to 7"),
        ("method_overlap", ["gates"], {"k": 3}, "keeps 2 of 8 heads"),
        ("method_overlap", ["searched"], {"moved": True}, "no control with frozen scores"),
        ("method_overlap", ["finetune"], {}, "none of these runs has a mask"),
        ("rows_and_bias", ["scores"], {}, "none of these runs is a bias model"),
        ("rows_and_bias", ["scores", "bias"], {"parts": 61}, "60 rows cannot be cut into 61 parts"),
    ],
)
def test_what_cannot_be_compared_is_refused(made, tmp_path, notebook, stages, given, words):
    place, runs = made
    keys = [run.key for stage in stages for run in runs[stage] if stage != "overlap"]
    with pytest.raises(Exception, match=words):
        execute(notebook, tmp_path / "out.ipynb", {"runs": keys} | given, SIEVE_OUTPUTS=place / "outputs")


def test_the_sweep_of_the_real_encoder_makes_no_run_of_its_neighbours_again():
    names = [p for p in sorted(MINILM.glob("*.yaml")) if p.stem != "across"]
    there = {run.key for path in names for run in load_sweep(path).planned}
    sweep = load_sweep(MINILM / "across.yaml").planned
    analyses = {p.stem for p in (ROOT / "nbs" / "analyses").glob("*.ipynb")}
    again = {r.stage for r in sweep if r.key not in there and r.notebook not in analyses}
    assert again == OWN, "repeat the stages of the neighbours word for word"
