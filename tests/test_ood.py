"""The sets out of distribution as they really are: sizes, shares, labels by name, what collapses to what, and what is refused before a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toys import execute

from lib.core.base import DataError
from lib.core.sweeps import SweepError, check_inputs, load_sweep
from lib.data import ood
from lib.data import tasks as data
from lib.data.formats import FORMATS, read_file
from lib.metrics.scores import accuracy_by, predictions, score

ROOT = Path(__file__).parents[1]
COUNTS = {  # task: split: rows of each label, in the order of the task's labels
    "hans-regenerated": {"dev": [15000, 15000]},
    "hans-regenerated-halves": {"train": [7500, 7500], "dev": [7500, 7500]},
    "paws-qqp-dev": {"dev": [486, 191]},
    "paws-x-en": {"dev": [1137, 863], "test": [1093, 907]},
    "FEVER-Symmetric-v1": {"test": [379, 338]},
    "FEVER-Symmetric-v2": {"dev": [354, 354], "test": [356, 356]},
    "climate-fever": {"train": [1521, 656, 3963], "dev": [422, 146, 967]},
}


def pairs(name, split):
    rows = data.load_task(name, "local", splits=[split]).splits[split][:]
    return list(zip(rows["text_a"], rows["text_b"]))


@pytest.mark.parametrize("name", COUNTS)
def test_real_rows_and_labels(real, name):
    task = data.load_task(name, "local", splits=list(COUNTS[name]))
    assert {s: np.bincount(task.splits[s]["label"]).tolist() for s in task.splits} == COUNTS[
        name
    ] and data.check_source(name, "local")


def test_shares_are_the_published_ones(real):
    share = lambda name, split: [round(100 * n / sum(COUNTS[name][split]), 1) for n in COUNTS[name][split]]
    assert share("paws-qqp-dev", "dev") == [71.8, 28.2] and share("FEVER-Symmetric-v1", "test") == [
        52.9,
        47.1,
    ]
    assert share("FEVER-Symmetric-v2", "test") == share("hans-regenerated", "dev") == [50, 50]
    sets = {
        "paws-qqp-dev": 677,
        "FEVER-Symmetric-v1": 717,
        "FEVER-Symmetric-v2": 712,
        "hans-regenerated": 30000,
    }
    assert {n: sum(COUNTS[n][ood.OOD_SETS[n].split]) for n in sets} == sets


def test_hans_has_every_heuristic_with_every_label(real):
    task = data.load_task("hans-regenerated", "local")
    frame = pd.DataFrame({c: task.splits["dev"][c][:] for c in ("heuristic", "label", "text_a", "text_b")})
    assert frame.groupby(["heuristic", "label"]).size().to_dict() == {
        (h, y): 5000 for h in ("lexical_overlap", "subsequence", "constituent") for y in (0, 1)
    }
    first = frame.iloc[0]
    assert (first.text_a, first.text_b, first.label) == (
        "The students introduced the senators .",
        "The senators introduced the students .",
        1,
    )
    train, dev = (set(pairs("hans-regenerated-halves", s)) for s in ("train", "dev"))
    assert not train & dev and train | dev == set(zip(frame.text_a, frame.text_b))


def test_literals_of_bytes_are_read_as_the_texts_they_are(real):
    form, folder = FORMATS["paws-qqp-dev"], real / "ood" / "PAWS"
    raw, decoded = (read_file(folder / f"paws_qqp_dev_and_test{end}.tsv", form) for end in ("", "_decoded"))
    assert raw == decoded and len(raw["label"]) == 677 and not any(t.startswith("b'") for t in raw["text_a"])


def test_climate_claims_stand_on_one_side_only(real):
    train, dev = pairs("climate-fever", "train"), pairs("climate-fever", "dev")
    claims = {a for a, _ in train}, {a for a, _ in dev}
    assert (
        not claims[0] & claims[1]
        and (len(claims[0]), len(claims[1])) == (1228, 307)
        and (len(train), len(dev)) == (6140, 1535)
    )
    labels = np.add(*COUNTS["climate-fever"].values())
    assert labels.tolist() == [1943, 802, 4930]


def test_what_the_training_pairs_of_the_upper_bound_have_in_common_with_the_tests(real):
    "Half of v1 is in the development pairs of v2: a score on v1 after such training is not one of unseen rows."
    one, two, seen = (
        set(pairs(f"FEVER-Symmetric-{v}", s)) for v, s in (("v1", "test"), ("v2", "test"), ("v2", "dev"))
    )
    assert (len(one), len(one & seen), len(two & seen)) == (716, 354, 3)
    assert not set(pairs("paws-x-en", "dev")) & set(pairs("paws-x-en", "test"))


@pytest.mark.parametrize("name", ["HANS", "PAWS-QQP", "PAWS-Wiki", "FEVER"])
def test_a_stand_in_is_never_taken_for_the_published_set(real, name):
    with pytest.raises(DataError, match=f"^{name} was not found. Looked in: ") as caught:
        data.load_task(name)
    assert "\n" not in str(caught.value)
    if name not in ood.OOD_SETS:
        return
    with pytest.raises(DataError, match=f"{name} was not found"):
        ood.check_sets("MNLI" if name == "HANS" else "QQP", sets=[name])


def test_the_folder_of_the_symmetric_sets_as_their_authors_have_it(real, tmp_path, monkeypatch):
    for here, there in {
        "generated_v0.1": "symmetric_v0.1/fever_symmetric_generated",
        "dev_v0.2": "symmetric_v0.2/fever_symmetric_dev",
        "test_v0.2": "symmetric_v0.2/fever_symmetric_test",
    }.items():
        to = tmp_path / "data" / "FEVER-Symmetric" / f"{there}.jsonl"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real / "ood" / "FEVER-Symmetric" / f"fever_symmetric_{here}.jsonl", to)
    monkeypatch.setenv("SIEVE_DATA", str(tmp_path / "data"))
    assert len(data.load_task("FEVER-Symmetric-v1", "local").splits["test"]) == 717
    assert {s: len(d) for s, d in data.load_task("FEVER-Symmetric-v2", "local").splits.items()} == {
        "dev": 708,
        "test": 712,
    }


def test_a_model_with_one_answer(real):
    "What every constant answer scores on every stand-in: labels by name, collapse, measures."

    def scores(task, answer):
        out, task = {}, data.load_task(task, "local")
        for name, one in ood.ood_sets(task, source="local").items():
            logits = np.eye(len(task.labels))[[task.labels.index(answer)] * len(one)]
            out[name] = score(logits, one["label"], one.metrics, one.collapse)
        return out

    assert {
        a: scores("mnli-subset", a)["hans-regenerated"]["accuracy"]
        for a in ("entailment", "neutral", "contradiction")
    } == dict.fromkeys(("entailment", "neutral", "contradiction"), 0.5)
    facts = {
        a: {n: round(s["accuracy"], 3) for n, s in scores("climate-fever", a).items()}
        for a in ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
    }
    assert facts == {
        "SUPPORTS": {"FEVER-Symmetric-v1": 0.529, "FEVER-Symmetric-v2": 0.5},
        "REFUTES": {"FEVER-Symmetric-v1": 0.471, "FEVER-Symmetric-v2": 0.5},
        "NOT ENOUGH INFO": {"FEVER-Symmetric-v1": 0, "FEVER-Symmetric-v2": 0},
    }
    no = scores("qqp-subset", "not_duplicate")
    assert list(no) == ["paws-qqp-dev", "paws-x-en"] and no["paws-qqp-dev"] == pytest.approx(
        {
            "f1_weighted": 0.599976,
            "accuracy": 0.717873,
            "f1": 0,
            "f1_negative": 0.835770,
            "recall": 0,
            "specificity": 1,
        },
        abs=1e-6,
    )


def test_neutral_counts_as_no_entailment_on_hans(real):
    task = data.load_task("mnli-subset", "local")
    one = ood.ood_sets(task, ["hans-regenerated"])["hans-regenerated"]
    gold = np.array(one["gold"][:])
    assert set(zip(gold, one["label"])) == {
        ("entailment", task.labels.index("entailment")),
        ("non-entailment", task.labels.index("contradiction")),
    }
    logits = np.where(
        (gold == "entailment")[:, None], [2.0, 1.0, 0.0], [0.0, 2.0, 1.0]
    )  # neutral where there is no entailment: always right
    assert score(logits, one["label"], ["accuracy"], one.collapse) == {"accuracy": 1}
    parts = {
        r["metric"]: (r["value"], r["n"])
        for r in accuracy_by(
            predictions(logits[::-1], one.collapse), one["label"], {c: one[c] for c in one.by}
        )
    }
    assert (
        len(parts) == 3 + 2 + 6
        and parts["accuracy/subsequence"][1] == 10000
        and parts["accuracy/constituent/non-entailment"][1] == 5000
    )


@pytest.mark.parametrize(
    "name, rows, origin",
    [
        ("mnli-subset", 15891, {"hans-regenerated-halves": 15000}),
        ("qqp-subset", 2000, {"paws-x-en": 2000}),
        ("climate-fever", 6140, {"FEVER-Symmetric-v2": 7080}),
    ],
)
def test_training_on_both_distributions(real, name, rows, origin):
    task = data.load_task(name, "local")
    both = ood.with_ood_training(task, seed=1, source="local")
    train = both.splits["train"]
    frame = pd.DataFrame({c: train[c][:] for c in train.column_names})
    assert frame.origin.value_counts().to_dict() == {"": rows} | origin and sorted(frame.idx) == list(
        range(len(frame))
    )
    own = frame[frame.origin == ""].sort_values("idx")
    assert (
        own.label.tolist() == task.splits["train"]["label"][:]
        and own.text_a.tolist() == task.splits["train"]["text_a"][:]
    )
    assert (
        0 < (frame.origin[: len(frame) // 2] == "").mean() / (frame.origin == "").mean() < 1.1
    )  # shuffled, not appended
    added = frame[frame.origin != ""].label.value_counts().to_dict()
    wanted = {
        "mnli-subset": {0: 7500, 2: 7500},
        "qqp-subset": {0: 1137, 1: 863},
        "climate-fever": {0: 3540, 1: 3540},
    }[name]
    assert added == wanted and set(both.files) > set(task.files)


SWEEP = """
title: Missing set
question: Is it refused?
stages:
  scores: {notebook: evaluate, set: {task: TASK, source: local}, grid: {sets: [[matched], [SET]]}}
"""


@pytest.mark.parametrize(
    "task, asked, says",
    [
        ("mnli-subset", "HANS", "HANS was not found"),
        ("mnli-subset", "PAWS-Wiki", "no evaluation set 'PAWS-Wiki'"),
        ("mnli-subset", "hans-regenrated", "did you mean 'hans-regenerated'"),
        ("mnli-subset", "ood", None),
    ],
)
def test_a_sweep_asks_for_its_sets_before_anything_runs(real, tmp_path, task, asked, says):
    (file := tmp_path / "s.yaml").write_text(SWEEP.replace("TASK", task).replace("SET", asked))
    planned = load_sweep(file).planned
    if not says:
        return check_inputs(planned, file)
    with pytest.raises(SweepError, match=says) as caught:
        check_inputs(planned, file)
    assert "stage scores" in str(caught.value) and "\n" not in str(caught.value)


def test_the_evaluation_notebook_scores_sets_of_both_kinds(real, tmp_path):
    given = {"task": "climate-fever", "source": "local", "draws": 5, "sets": ["report", "FEVER-Symmetric-v1"]}
    execute("evaluate", tmp_path / "out.ipynb", given, SIEVE_OUTPUTS=tmp_path)
    folder = next(tmp_path.glob("evaluate/*"))
    rows = pd.DataFrame(json.loads((folder / "result.json").read_text())["metrics"])
    assert set(rows.split) == {"dev", "FEVER-Symmetric-v1"} and rows[rows.split != "dev"].n.eq(717).all()
    answers = pd.read_parquet(folder / "predictions.parquet").query("split == 'FEVER-Symmetric-v1'")
    model = rows.query("split == 'FEVER-Symmetric-v1' and family == 'full'").value.item()
    assert (
        model == (answers.prediction == answers.label).mean()
        and set(answers.label) == {0, 1}
        and "logit_2" in answers
    )
    files = json.loads((folder / "params.json").read_text())["data"]
    assert set(files) == {
        "glue/FEVER/climate-fever.jsonl",
        "ood/FEVER-Symmetric/fever_symmetric_generated_v0.1.jsonl",
    }
