"""Bias models on real files: the stored claim-only predictions, and what shortcuts of real pairs are worth in and out of distribution."""

import json

import nbformat
import numpy as np
import pytest

from lib.core.base import DataError
from lib.core.keys import notebook_path
from lib.data.ood import ood_sets
from lib.data.tasks import TASKS, load_task
from lib.losses.bias_models import (
    BiasRecipe,
    accuracies,
    bias_model,
    fit_bias_model,
    load_log_probs,
    train_log_probs,
)

FEVER = list(TASKS["FEVER"].labels.values())
ROWS = 242_911  # of the training file that the stored predictions belong to


@pytest.fixture
def claim_only(real_data):
    return real_data("srnets") / "fever" / "claim_only_bias_log_probs.npy"


def test_stored_claim_only_predictions_are_what_their_description_says(claim_only):
    lp = load_log_probs(claim_only, FEVER, ROWS)
    assert (
        lp.shape == (ROWS, 3)
        and lp.dtype == np.float32
        and FEVER == ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]
    )
    p = np.exp(lp)
    assert abs(p.sum(1) - 1).max() < 2e-7
    assert (round(float(lp.min()), 4), round(float(lp.max()), 4)) == (-7.2932, -0.0048)
    assert p.astype(np.float64).mean(0).round(4).tolist() == [0.3542, 0.2938, 0.3520]
    assert (np.bincount(lp.argmax(1)) / ROWS).round(4).tolist() == [0.3561, 0.2696, 0.3743]
    assert round(float(np.median(p.max(1))), 4) == 0.5236 and len(np.unique(lp, axis=0)) == 122_739


def test_stored_predictions_of_other_data_are_refused(claim_only, tmp_path):
    for labels, n, ids, says in [
        (FEVER, ROWS - 1, None, f"has {ROWS} rows and the data {ROWS - 1}"),
        (FEVER[:2], ROWS, None, "2 columns"),
        (FEVER, 2, [0, ROWS], f"no row for id {ROWS}"),
        (FEVER, 2, [5, 5], "1 different"),
    ]:
        with pytest.raises(DataError, match=says):
            load_log_probs(claim_only, labels, n, ids)
    np.save(tmp_path / "p.npy", np.exp(load_log_probs(claim_only, FEVER, ROWS)))
    with pytest.raises(DataError, match="p.npy holds probabilities"):
        load_log_probs(tmp_path / "p.npy", FEVER, ROWS)
    assert (
        load_log_probs(claim_only, FEVER, 2, [7, 0]) == np.load(claim_only, allow_pickle=False)[[7, 0]]
    ).all()


def test_overlap_calls_every_pair_of_hans_entailment(real):
    task = load_task("mnli-subset", "local")
    sets = {"matched": task.splits["matched"]} | ood_sets(task, ["hans-regenerated"])
    entailment = task.labels.index("entailment")
    for recipe, matched in [
        (BiasRecipe("lexical"), 0.52),
        (BiasRecipe("lexical", one_against="entailment"), 0.42),
    ]:
        own, model, table = bias_model(task, recipe, sets)
        accuracy = table.set_index("set").accuracy
        assert (
            abs(accuracy["matched"] - matched) < 0.02 and abs(accuracy["train"] - accuracy["matched"]) < 0.03
        ), table
        assert (model.log_probs(sets["hans-regenerated"]).argmax(1) == entailment).all() and accuracy[
            "hans-regenerated"
        ] == 0.5
        assert abs(np.exp(own).sum(1) - 1).max() < 1e-6 and own.shape == (15891, 3)


def test_hypothesis_only_knows_something_and_by_heart_all(real):
    task = load_task("mnli-subset", "local")
    rows, recipe = task.splits["train"].select(range(4000))[:], BiasRecipe("second_text", folds=2)
    given = {
        "cross-fitted": train_log_probs(recipe, rows, task.labels),
        "seen": train_log_probs(BiasRecipe("second_text", folds=0), rows, task.labels),
    }
    accuracy = accuracies(given, dict.fromkeys(given, rows)).set_index("set").accuracy
    assert 0.37 < accuracy["cross-fitted"] < 0.55 and accuracy["seen"] > 0.9, accuracy


def test_claims_of_the_symmetric_set_tell_nothing(real):
    symmetric = load_task("FEVER-Symmetric-v2", "local")
    dev, test = symmetric.splits["dev"][:], symmetric.splits["test"][:]
    model = fit_bias_model(BiasRecipe("first_text"), dev, symmetric.labels)
    table = accuracies(
        {n: model.log_probs(r) for n, r in [("dev", dev), ("test", test)]}, {"dev": dev, "test": test}
    )
    assert table.accuracy.tolist() == [0.5, 0.5], "every claim stands there once with each label"
    fitted = train_log_probs(BiasRecipe("first_text"), dev, symmetric.labels)
    assert all(
        (fitted[i] == fitted[j]).all()
        for claim in set(dev["text_a"])
        for i, j in [[k for k, c in enumerate(dev["text_a"]) if c == claim]]
    )


def test_stored_predictions_find_their_rows_by_id_and_their_columns_by_name(tmp_path, monkeypatch):
    "QQP as its public file is: ids with gaps and in any order, a short row. The table has the columns the other way round."
    for name, value in {"SIEVE_DATA": tmp_path, "SIEVE_OUTPUTS": tmp_path / "out"}.items():
        monkeypatch.setenv(name, str(value))
    (folder := tmp_path / "glue" / "QQP").mkdir(parents=True)
    ids = [9, 4, 7, 2]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text(
            "id\tquestion1\tquestion2\tis_duplicate\n3\tshort\n"
            + "".join(f"{i}\tWhy {i}?\tHow {i}?\t{i % 2}\n" for i in ids)
        )
    table = {i: np.log([0.1 * i, 1 - 0.1 * i]).tolist() for i in range(1, 10)}
    (tmp_path / "qqp.json").write_text(json.dumps(table))
    code = [c for c in nbformat.read(notebook_path("bias_model"), 4).cells if c.cell_type == "code"]
    cells = [c for c in code if "checks" not in c.metadata.get("tags", [])][:4]

    def read(**given):
        scope = {}
        for cell in cells:
            exec(cell.source, scope)  # noqa: S102
            if "parameters" in cell.metadata.get("tags", []):
                scope |= {"task": "QQP", "source": "local", "stored": "qqp.json", **given}
        return np.exp(scope["log_probs"]), scope["data"].labels

    found, labels = read()
    assert np.allclose(found[:, 0], [0.9, 0.4, 0.7, 0.2]) and np.allclose(
        read(stored_labels=labels[::-1])[0], found[:, ::-1]
    )
    with pytest.raises(DataError, match="not the task's labels"):
        read(stored_labels=["yes", "no"])
    (tmp_path / "qqp.json").write_text(json.dumps({i: table[i] for i in (9, 2)}))
    with pytest.raises(DataError, match="no row for id 4, the first of 2 that are missing"):
        read()
