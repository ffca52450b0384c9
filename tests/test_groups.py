"""Attribution, removal and analysis of rows for any task with labels, groups known or found; worst groups in every evaluation."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.core.base import ROOT

TINY = {"layers": 1, "width": 32, "heads": 2, "vocab": 300, "length": 32}
SIZE = {"tiny": TINY, "max_length": 32}
LABELS = ["agrees", "neither", "denies"]
WORDS = {"agrees": "gladly", "neither": "perhaps", "denies": "never"}
PLACES = "harbour mill bridge tower garden square".split()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("SIEVE_DATA", str(tmp_path / "data"))


def execute(kind, notebook, **params):
    "Run the notebook's code cells in this process with other parameters; its run."
    scope = {"__name__": "__main__"}
    for cell in json.loads((ROOT / "nbs" / kind / f"{notebook}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
            scope |= params if "parameters" in cell["metadata"].get("tags", []) else {}
    return scope["page"].run if "page" in scope else scope["run"]


def values(run, **where):
    "metric -> value of a run's rows"
    rows = [r for r in run.result["metrics"] if all(r.get(c) == v for c, v in where.items())]
    assert len({r["metric"] for r in rows}) == len(rows)
    return {r["metric"]: r["value"] for r in rows}


def pair(i, label, who):
    "A premise and a hypothesis of which one word says the label"
    place = PLACES[i % len(PLACES)]
    return f"The {who} waited at the {place} number {i}.", f"The {who} {WORDS[label]} went to the {place}."


def card_of_pairs(folder):
    "A card of pairs with three labels and a column of groups; a third of the millers' training rows are wrong."
    rng = np.random.default_rng(0)
    for split, n in (("train", 180), ("dev", 72), ("test", 90), ("ood", 36)):
        rows = []
        for i in range(n):
            label, who = LABELS[i % 3], "miller" if i % 9 < 3 else "sailor"
            wrong = split == "train" and who == "miller" and i % 2
            said = LABELS[(i + 1) % 3] if wrong else label
            first, second = pair(i + 1000 * len(split) + 7 * n, label, who)
            rows.append((f"{split}{i}", first, second, said, who))
        rng.shuffle(rows)
        frame = pd.DataFrame(rows, columns=["name", "said", "asked", "answer", "trade"])
        frame.to_csv(folder / f"{split}.csv", index=False)
    (folder / "pairs.yaml").write_text(
        "train: train.csv\ndev: dev.csv\ntest: test.csv\nood: {elsewhere: ood.csv}\n"
        f"text: [said, asked]\nlabel: answer\nlabels: [{', '.join(LABELS)}]\ngroup: trade\nid: name\n"
    )
    return str(folder / "pairs.yaml")


def by_hand(answers, groups):
    "The metrics by group of predictions with logits: written out again"
    logits = answers[[c for c in answers if c.startswith("logit_")]].to_numpy(float)
    label, said = answers.label.to_numpy(), logits.argmax(1)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    loss = -np.log(shifted[np.arange(len(label)), label] / shifted.sum(1))
    own = {g: np.asarray(groups) == g for g in sorted(set(groups))}
    right = {g: (said == label)[rows].mean() for g, rows in own.items()}
    found = {f"accuracy/{g}": v for g, v in right.items()} | {
        f"loss/{g}": loss[r].mean() for g, r in own.items()
    }
    found |= {
        "accuracy/worst": min(right.values()),
        "accuracy/gap": max(right.values()) - min(right.values()),
    }

    def gap(rates):
        rates = [r for r in rates if r is not None]
        return max(rates) - min(rates) if len(rates) > 1 else 0

    def share(rows, c):
        return (said == c)[rows].mean() if rows.any() else None

    classes = range(logits.shape[1])
    found["parity/gap"] = max(gap([share(rows, c) for rows in own.values()]) for c in classes)
    found["odds/gap"] = max(
        gap([share(rows & ((label == c) == inside), c) for rows in own.values()])
        for c in classes
        for inside in (True, False)
    )
    return found


def chain(methods, groups, ks, **task):
    "Base model, scores by some methods, removal by each and at random, and the analysis of all"
    fit = SIZE | {"lr": 3e-3, "max_steps": 60, "batch_size": 16} | task
    whole = execute("experiments", "data_removal", **fit)
    scored = {
        m: execute("experiments", "attribution", **SIZE, **task, models=[whole.key], method=m, groups=groups)
        for m in methods
    }
    drop = fit | {"ks": ks, "keep_model": False}
    gone = [
        execute("experiments", "data_removal", **drop, remove="alignment", attribution=run.key)
        for run in scored.values()
    ]
    gone.append(execute("experiments", "data_removal", **drop, remove="random"))
    runs = [r.key for r in (whole, *scored.values(), *gone)]
    return whole, scored, gone, execute("analyses", "data_debiasing", runs=runs)


def test_pairs_of_three_labels_with_a_group_column(tmp_path):
    card = card_of_pairs(tmp_path)
    whole, scored, gone, analysis = chain(["gradient_dot", "bm25_signed"], "known", [0, 20], task=card)
    answers = pd.read_parquet(whole.artefact("predictions.parquet"))
    assert set(answers.split) == {"test", "elsewhere"} and sorted(
        answers[answers.split == "test"].id
    ) == sorted(
        pd.read_csv(tmp_path / "test.csv").name
    )  # no row of the test set is dropped, and each keeps its own name
    for split, part in answers.groupby("split"):
        found = values(whole, split=split)
        assert {m: found[m] for m in by_hand(part, part.group)} == pytest.approx(by_hand(part, part.group))
        assert "fpr" not in found and found["accuracy"] == pytest.approx(
            (part.label == part.filter(like="logit").to_numpy().argmax(1)).mean()
        )
    for run in scored.values():
        rows, queries = (pd.read_parquet(run.artefact(f"{n}.parquet")) for n in ("rows", "queries"))
        assert set(rows.label_name) == set(LABELS) and rows.alignment.notna().all() and len(rows) == 180
        assert queries.member.tolist() == queries.group.tolist() and set(queries.group) == {
            "miller",
            "sailor",
        }
        assert set(queries.id) < set(pd.read_csv(tmp_path / "dev.csv").name)
    assert all(
        values(r, split="test", k=20)["accuracy/worst"] <= values(r, split="test", k=20)["accuracy"]
        for r in gone
    )
    table = pd.read_csv(analysis.artefact("removal.csv"))
    assert set(table.metric) >= {"accuracy", "accuracy/worst", "odds/gap", "parity/gap"}
    assert {name.rpartition(", ")[2] for name in set(table.task)} >= {
        "elsewhere"
    } and table.task.nunique() == 2
    assert any(name.startswith("curves_") for name in analysis.result["artefacts"])


def test_pairs_without_groups_have_them_found(tmp_path):
    settings = {"train": 240, "dev": 160, "ood": 40, "strength": 0.8}
    whole, scored, gone, analysis = chain(
        ["gradient_dot", "last_layer"], "auto", [0, 30], task="synthetic-nli", settings=settings
    )
    assert set(values(whole, split="test")) == {
        "accuracy",
        "loss",
        "fpr",
        "fnr",
        "auc",
    }  # no group, none said
    assert {r["split"] for r in whole.result["metrics"]} == {"test", "ood"}
    for run in scored.values():
        queries = pd.read_parquet(run.artefact("queries.parquet"))
        assert {m[:-1] for m in queries.member} == {"entailment", "not_entailment"}
        assert (queries.member.str[:-1] == queries.label.map({0: "entailment", 1: "not_entailment"})).all()
        assert run.result["identity"]["scores"].endswith("pseudo-groups")
    assert pd.read_csv(analysis.artefact("removal.csv")).metric.isin(["accuracy"]).any()
    assert values(gone[0], k=30, split="test")["accuracy"] > 0
