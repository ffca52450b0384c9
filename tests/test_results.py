"""What the analyses read of our own runs, on runs that are written without training; and the fixtures, which a script must be able to make again."""

import filecmp
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from lib.core.base import ROOT
from lib.core.runs import start
from lib.models.masks import save_mask
from lib.study.study import study as study_of
from lib.study.subnetworks import (
    compare_examples,
    main_scores,
    mask_tables,
    predictions_of,
    score_tables,
    subnetwork_scores,
    subnetwork_sizes,
)

TASKS, SEEDS = ["synthetic-nli", "synthetic-nli-plain"], [1, 2]
FULL = {
    "units": "",
    "scores": "",
    "rule": "",
    "schedule": "",
    "loss": "ce",
    "start": "pre-trained",
    "role": "full",
    "sparsity": 0.0,
}
GOOD = FULL | {
    "units": "head+mlp",
    "scores": "importance",
    "rule": "topk",
    "start": "ce-tuned",
    "role": "good",
    "sparsity": 0.4,
}
SMALL = GOOD | {"units": "weight", "scores": "magnitude"}
MAJORITY = FULL | {"role": "majority", "subject": "", "mask": "majority"}


def make(notebook, rows=(), files=None, identity=None, **params):
    "A finished run with these metric rows; `files` writes its artefacts."
    run = start(notebook, dict(params))
    if files:
        files(run)
    run.finish(list(rows), identity=identity or FULL)
    return run.key


def mask_run(notebook, kept, family, kind, identity, **params):
    "A finished run that holds a mask of 2 layers x 2 heads."

    def files(run):
        mask = {"head": torch.tensor(kept, dtype=torch.float32), "mlp": torch.tensor([1.0, 0.0])}
        save_mask(mask, run.path("mask.safetensors"), "tiny", family, kind)
        cells = [("head", l, h, kept[l][h] / 2) for l in range(2) for h in range(2)] + [
            ("mlp", l, -1, 0.5) for l in range(2)
        ]
        if notebook == "magnitude":
            pd.DataFrame(cells, columns=["kind", "layer", "head", "share"]).to_parquet(
                run.path("survival.parquet")
            )

    return make(notebook, [{"metric": "kept", "value": 1, "split": ""}], files, identity, **params)


def scored(mask, value, split="dev", **more):
    return {"metric": "accuracy", "value": value, "split": split, "n": 10, "mask": mask} | more


@pytest.fixture
def study(tmp_path, monkeypatch):
    "Keys of a small study: for two tasks and seeds a full model, three masks, their evaluation, and one retrained subnetwork."
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    keys = {"masks": [], "evaluate": [], "retrained": []}
    for task in TASKS:
        for seed in SEEDS:
            same = {"task": task, "seed": seed}
            full = make("finetune", [scored("", 0.9), scored("", 0.2, "ood")], **same)
            good = mask_run(
                "importance", [[1, seed % 2], [0, 1]], "heads_mlps", "good", GOOD, model=full, **same
            )
            magnitude = mask_run(
                "magnitude", [[1, 1], [0, 1]], "magnitude", "good", SMALL, model=full, **same
            )
            drawn = GOOD | {"role": "bad"}
            bad = mask_run("draw_masks", [[0, 1], [1, 0]], "heads_mlps", "bad", drawn, mask=good, **same)
            kinds = {"": (0.9, FULL | {"subject": full}), "majority": (0.5, MAJORITY)}
            kinds |= {good: (0.8 + seed / 100, GOOD), magnitude: (0.7, SMALL), bad: (0.6, drawn)}
            about = lambda mask, who, seed=seed: {"subject": mask} | who | {"seed": seed}
            rows = [scored(mask, v) | about(mask, who) for mask, (v, who) in kinds.items()]
            rows.append({"metric": "size", "value": 0.4, "split": "", "mask": good} | about(good, GOOD))

            def answers(run, masks=("", good, bad), best=good):
                frame = [
                    {
                        "split": "dev",
                        "idx": i,
                        "mask": m,
                        "label": i % 2,
                        "prediction": i % 2 if m == best or i > 5 else 1 - i % 2,
                    }
                    for m in masks
                    for i in range(10)
                ]
                pd.DataFrame(frame).to_parquet(run.path("predictions.parquet"))

            keys["evaluate"].append(
                make(
                    "evaluate", rows, answers, model=full, masks=[good, magnitude, bad], **{**same, "seed": 0}
                )
            )
            again = make(
                "finetune", [scored(good, 0.85, tuned="ce")], identity=GOOD, model=full, mask=good, **same
            )  # its start weights are another run
            keys["retrained"].append(again)
            keys["masks"] += [good, magnitude, bad]
    return keys


def test_scores_of_runs(study):
    scores = subnetwork_scores(study_of([*study["evaluate"], *study["retrained"]]))
    found = (
        scores[scores.metric == "accuracy"].groupby(["family", "kind", "state"]).value.agg(["count", "mean"])
    )
    assert found["mean"].round(4).to_dict() == {
        ("none", "full", "none"): 0.9,
        ("none", "majority", "none"): 0.5,
        ("heads_mlps", "good", "pruned"): 0.815,
        ("heads_mlps", "good", "retrained"): 0.85,
        ("heads_mlps", "bad", "pruned"): 0.6,
        ("magnitude", "good", "pruned"): 0.7,
    }
    assert set(found["count"]) == {4} and set(scores.seed) == set(
        SEEDS
    )  # the model's seed, not the evaluation's
    assert set(subnetwork_scores(study_of(study["masks"])).metric) == {"kept"}


def test_evaluation_of_a_retrained_model(study):
    first = study["retrained"][0]
    rows = [scored("", 0.84, **GOOD, seed=1, subject=first, tuned="ce")]
    key = make("evaluate", rows, model=first, task=TASKS[0], seed=0)
    row = subnetwork_scores(study_of([key])).iloc[0]
    assert tuple(row[["family", "kind", "state", "value"]]) == ("heads_mlps", "good", "retrained", 0.84)


def test_retrained_subnetworks_of_several_units_have_names_of_their_own(study):
    keys = []
    for units, mode in (("head", "heads"), ("mlp", "mlps"), ("head+mlp", "joint")):
        who = GOOD | {"units": units}
        mask = mask_run("importance", [[1, 1], [0, 1]], mode, "good", who, mode=mode, task=TASKS[0], seed=9)
        row = scored(mask, 0.8, tuned="ce")
        keys.append(make("finetune", [row], identity=who, mask=mask, task=TASKS[0], seed=9))
    found = study_of(keys)
    assert found.apart.tolist() == ["heads", "MLPs", "heads and MLPs"] and found.label.nunique() == 3
    assert subnetwork_scores(found).family.tolist() == ["heads", "mlps", "heads_mlps"]


def test_tables_of_runs(study):
    table, per_seed = score_tables(study_of([*study["evaluate"], *study["retrained"]]), "")
    answers = predictions_of([*study["evaluate"], *study["retrained"]])
    assert len(main_scores(table)) == 12 and set(main_scores(table).n) == {2}
    assert subnetwork_sizes(per_seed)[["family", "kind", "mean"]].drop_duplicates().to_numpy().tolist() == [
        ["heads_mlps", "good", 0.4]
    ]
    pairs = compare_examples(answers, {}, draws=20)
    assert (
        pairs[["system", "difference"]].round(6).to_numpy().tolist() == [["bad", -0.6]] * 2
        and pairs.beyond.all()
    )
    assert len(predictions_of(study["evaluate"])) == 4 * 3 * 10


def test_masks_of_runs(study):
    tables = mask_tables(study["masks"], "", ["heads_mlps", "heads_mlps_bad", "super", "magnitude", "heads"])
    assert {name: len(t) for name, t in tables.items() if name[1] == "head"} == {
        ("heads_mlps", "head"): 4,
        ("heads_mlps_bad", "head"): 4,
        ("super", "head"): 2,
        ("magnitude", "head"): 4,
    }
    assert np.array_equal(tables["super", "head"]["mask"][0], [[1, 0], [0, 1]])
    assert tables["magnitude", "head"]["mask"][0].tolist() == [[0.5, 0.5], [0, 0.5]] and tables[
        "magnitude", "mlp"
    ]["mask"][0].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="none of the families"):
        mask_tables(study["masks"], "", ["mlps"])


def test_fixtures_are_made_by_their_script(tmp_path):
    subprocess.run([sys.executable, ROOT / "tests" / "make_fixtures.py", tmp_path], check=True)
    stored = ROOT / "tests" / "fixtures"
    names = sorted(str(p.relative_to(stored)) for p in stored.rglob("*") if p.is_file())
    assert (
        names == sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
        and len(names) > 50
    )
    assert filecmp.cmpfiles(stored, tmp_path, names, shallow=False)[0] == names
