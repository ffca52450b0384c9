"""Attribution, removal and analysis of rows for any task with labels, groups known or found; worst groups in every evaluation."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from sklearn.decomposition import PCA

from lib.core.base import ROOT, DataError
from lib.data.groups import Sampling
from lib.data.tasks import load_task

TINY = {"layers": 1, "width": 32, "heads": 2, "vocab": 300, "length": 32}
SIZE = {"tiny": TINY, "max_length": 32}
LABELS = ["agrees", "neither", "denies"]
WORDS = {"agrees": "gladly", "neither": "perhaps", "denies": "never"}
PLACES = "harbour mill bridge tower garden square".split()


@pytest.fixture(autouse=True)
def places(request, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / "outputs"))
    if "real" not in request.fixturenames:
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


def test_found_groups_are_the_known_ones(tmp_path):
    "Of a shortcut that is right for 80 %, Auto-D3M finds the queries that it betrays, and nobody has marked them."
    settings = {"train": 400, "dev": 240, "ood": 40, "strength": 0.8, "rule": 0.6}
    marked = settings | {"group": ["label", "shortcut"]}  # for the report only
    whole, scored, gone, analysis = chain(
        ["gradient_dot", "last_layer"], "auto", [40], task="synthetic-nli", settings=marked, max_steps=120
    )
    assert {r["split"] for r in whole.result["metrics"]} == {"test", "ood"}
    for run in scored.values():
        queries = pd.read_parquet(run.artefact("queries.parquet"))
        label, shortcut = zip(*(g.split(" & ") for g in queries.group))
        assert [m[:-1] for m in queries.member] == list(label)  # a found group is of one class
        betrayed = pd.Series(label) != pd.Series(shortcut)
        share = betrayed.groupby(queries.member).mean()
        assert (
            betrayed.sum() == 12 and ((share > 0.9) | (share < 0.1)).all() and share.max() > 0.9 > share.min()
        )
        vectors = run_scores(run).T
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-5
        for c in set(label):  # found again by another's principal component
            own = np.array(label) == c
            side = vectors[own] @ PCA(1).fit(vectors[own]).components_[0] > 0
            positive = queries.member[own].str.endswith("+").to_numpy()
            assert (side == positive).all() or (side == ~positive).all()
        assert run.result["identity"]["scores"].endswith("pseudo-groups")
    table = pd.read_csv(analysis.artefact("removal.csv")).query("metric == 'accuracy/worst'")
    own = table[table.task == "synthetic-nli"].set_index("label").removed
    assert set(table.task) == {"synthetic-nli", "synthetic-nli, ood"}
    assert own.drop("all rows").tolist() == [40] * 3 and own["all rows"] == 0


def run_scores(run):
    "The scores of a run of attribution (N, Q)"
    return load_file(run.artefact("scores.safetensors"))["scores"].astype(float)


def test_a_task_without_groups(tmp_path):
    few = SIZE | {"task": "synthetic-nli", "settings": {"train": 40, "dev": 32, "ood": 8}}
    quick = {"max_steps": 2, "batch_size": 8, "keep_model": False}
    plain = execute("experiments", "data_removal", **few, **quick)
    assert set(values(plain, split="test")) == {"accuracy", "loss", "fpr", "fnr", "auc"}  # none said
    by_label = few | {"settings": few["settings"] | {"group": "label"}}
    named = execute("experiments", "data_removal", **by_label, **quick, remove="balanced")
    found = values(named, split="test")
    assert found["accuracy/worst"] == min(found["accuracy/entailment"], found["accuracy/not_entailment"])
    assert "odds/gap" not in found and "fpr/gap" not in found  # no two groups share a class
    auto = execute("experiments", "attribution", **few, groups="auto")
    members = set(pd.read_parquet(auto.artefact("queries.parquet")).member)
    assert members <= {f"{label}{side}" for label in ("entailment", "not_entailment") for side in "+-"}
    assert set(pd.read_parquet(auto.artefact("rows.parquet")).group) == {"entailment", "not_entailment"}
    execute("experiments", "retrain_subsets", **few, max_steps=2, batch_size=8, m=3, seeds=1)


@pytest.mark.parametrize(
    "notebook, params, words",
    [
        (
            "attribution",
            {"task": "synthetic-nli", "settings": {}},
            "synthetic-nli has no groups. Valid: the setting",
        ),
        ("data_removal", {"task": "synthetic-nli", "settings": {}, "remove": "balanced"}, "has no groups"),
        ("data_removal", {"task": "STS-B", "settings": {}}, "STS-B asks for a number"),
        ("attribution", {"task": "multi30k", "settings": {}}, "sentence pairs in two languages"),
        ("retrain_subsets", {"task": "FEVER-Symmetric-v1", "settings": {}}, "has only test"),
        ("attribution", {"task": "synthetic-nli", "settings": {"group": "gender"}}, "no column 'gender'"),
        ("attribution", {"task": "synthetic-nli", "settings": {"group": []}}, "setting group = []"),
        (
            "attribution",
            {"task": "synthetic-nli", "settings": {"group": "label"}, "sizes": {"test": 3}},
            "has no sizes",
        ),
        ("finetune", {"task": "synthetic-nli", "settings": {"group": "gender"}}, "no column 'gender'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run(notebook, params, words, tmp_path):
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        execute("experiments", notebook, **params)
    assert "\n" not in str(caught.value) and not (tmp_path / "outputs" / notebook).exists()


def test_a_card_whose_group_is_called_as_a_metric_is_refused(tmp_path):
    card = card_of_pairs(tmp_path)
    file = tmp_path / "dev.csv"
    file.write_text(file.read_text().replace("miller", "worst"))
    with pytest.raises(DataError, match="a group is called 'worst', as a metric is: rename it"):
        execute("experiments", "attribution", task=card)
    assert not (tmp_path / "outputs").exists()


def test_a_csv_of_texts_labels_and_groups(tmp_path):
    "Rows are ranked, the poisoned ones low, and accuracy of the worst group becomes a curve."
    rng = np.random.default_rng(1)
    for split, n in (("train", 160), ("dev", 120)):
        rows = []
        for i in range(n):
            label, who = ("bad", "good")[i % 2], "north" if i % 8 < 2 else "south"
            wrong = split == "train" and who == "north" and i % 16 < 8
            text = f"the {who} {PLACES[rng.integers(6)]} is {'lovely' if label == 'good' else 'dreary'} today {split} {i}"
            rows.append((text, ("bad", "good")[(i + wrong) % 2], who))
        pd.DataFrame(rows, columns=["text", "label", "group"]).to_csv(tmp_path / f"{split}.csv", index=False)
    card = tmp_path / "mine.yaml"
    card.write_text(
        "train: train.csv\ndev: dev.csv\ntext: text\nlabel: label\nlabels: [bad, good]\ngroup: group\n"
    )
    whole, scored, gone, analysis = chain(["gradient_dot"], "known", [0, 10, 20], task=str(card))
    rows = pd.read_parquet(scored["gradient_dot"].artefact("rows.parquet")).sort_values("alignment")
    assert set(rows) >= {"id", "text_a", "label", "label_name", "group", "alignment"} and len(rows) == 160
    number = rows.id.str.removeprefix("train-").astype(int)
    assert sorted(number) == list(range(160))
    poisoned = ((number % 8 < 2) & (number % 16 < 8)).to_numpy()
    assert poisoned.sum() == 20 and poisoned[:40].mean() > 0.3 > poisoned[40:].mean()  # 0.125 of all
    curve = pd.DataFrame(gone[0].result["metrics"]).query("metric == 'accuracy/worst'")
    assert curve.removed.tolist() == [0, 10, 20] and "curve.svg" in gone[0].result["artefacts"]
    drawn = pd.read_csv(analysis.artefact("removal.csv")).query("metric == 'accuracy/worst'")
    assert {*drawn.removed} == {0, 10, 20} and drawn.label.nunique() == 3
    assert any(name.startswith("curves_") for name in analysis.result["artefacts"])


def test_every_evaluation_reports_the_worst_group(tmp_path):
    "Models, masks and what is trained: the rows by group are those computed by hand from the answers."
    card = card_of_pairs(tmp_path)
    few = {"task": card, "max_length": 32, "sets": ["report"]}
    model = execute("experiments", "finetune", **few, tiny=TINY, max_steps=6, lr=1e-3)
    mask = execute("experiments", "train_mask", **few, model=model.key, max_steps=4)
    both = execute("experiments", "evaluate", **few, model=model.key, masks=[mask.key])
    seen = 0
    for run in (model, mask, both):
        answers = pd.read_parquet(run.artefact("predictions.parquet"))
        wanted = ["split", *(c for c in ("mask",) if c in answers)]
        for name, part in answers.groupby(wanted):
            found = values(run, **dict(zip(wanted, name)), **({} if run is both else {}))
            assert {m: found[m] for m in by_hand(part, part.group)} == pytest.approx(
                by_hand(part, part.group)
            )
            seen += 1
    assert seen >= 3 * 3


@pytest.mark.parametrize("name, settings", [("MRPC", {}), ("RTE", {}), ("mnli-subset", {"group": "genre"})])
def test_real_pairs_are_divided_whole(real, name, settings):
    "Every row of the dev set is in one part, under its position, in proportion; nothing else is touched."
    whole, task = load_task(name, "local", settings), load_task(name, "local", settings, sampling=Sampling())
    first = whole.splits[whole.dev_sets[0]]
    texts = {
        f"{whole.dev_sets[0]}-{i}": row
        for i, row in enumerate(zip(first["text_a"], first["text_b"], first["label"]))
    }
    seen = {}
    for split in ("align", "select", "test"):
        part = task.splits[split]
        seen |= {i: row for i, *row in zip(part["id"], part["text_a"], part["text_b"], part["label"])}
        shares = np.bincount(part["label"]) / len(part)
        assert np.allclose(shares, np.bincount(first["label"]) / len(first), atol=0.03)
    assert seen == {i: list(row) for i, row in texts.items()} and len(task.splits["train"]) == len(
        whole.splits["train"]
    )
    pairs = [
        set(zip(task.splits[s]["text_a"], task.splits[s]["text_b"])) for s in ("align", "select", "test")
    ]
    assert not (pairs[0] & pairs[1] or pairs[2] & (pairs[0] | pairs[1]))
    assert list(task.splits)[4:] == whole.dev_sets[1:]


def test_rows_of_mnli_are_removed_and_both_dev_sets_reported(real):
    rows = {"task": "mnli-subset", "settings": {"group": "genre"}, "tiny": TINY, "max_length": 32}
    few = {"train": 48, "align": 12, "select": 12, "test": 60}
    fit = rows | {"sizes": few, "max_steps": 2, "batch_size": 8, "keep_model": False}
    run = execute("experiments", "data_removal", **fit, remove="random", ks=[5])
    answers = pd.read_parquet(run.artefact("predictions.parquet"))
    test = answers[answers.split == "test"]
    found = values(run, split="test")
    assert len(test) == 60 and {m: found[m] for m in by_hand(test, test.group)} == pytest.approx(
        by_hand(test, test.group)
    )
    assert set(values(run, split="mismatched")) == {"accuracy", "loss"}  # its file says nothing of genres


def test_steps_of_adamw_need_a_state_that_the_training_kept():
    "Kept beside the model by data_removal and by finetune, read by attribution; the margin's own scores are others"
    small = SIZE | {"settings": {"train": 60, "dev": 40, "test": 40}, "task": "synthetic-toxicity"}
    adam = {"options": {"normaliser": "adam"}}
    kept, bare = (
        execute("experiments", "data_removal", **small, lr=3e-3, max_steps=40, keep=keep)
        for keep in ("last_and_moments", "last")
    )
    assert "model/second_moments.safetensors" in kept.result["artefacts"]
    assert "model/second_moments.safetensors" not in bare.result["artefacts"]
    weights = [load_file(run.artefact("model/model.safetensors")) for run in (kept, bare)]
    assert all(np.array_equal(weights[0][n], weights[1][n]) for n in weights[0])  # nothing else is changed

    plain, steps = (
        execute("experiments", "attribution", **small, models=[kept.key], **o) for o in ({}, adam)
    )
    scores = [load_file(run.artefact("scores.safetensors"))["scores"] for run in (plain, steps)]
    assert np.isfinite(scores[1]).all() and abs(np.corrcoef(*(s.ravel() for s in scores))[0, 1]) < 0.999
    assert steps.result["identity"]["scores"] == "gradient_dot, AdamW's steps"
    with pytest.raises(DataError, match=f"{bare.key}.*no optimiser state.*keep = last_and_moments"):
        execute("experiments", "attribution", **small, models=[bare.key], **adam)

    nli = {"tiny": TINY, "max_length": 32, "max_steps": 4, "keep_model": "last_and_moments"}
    tuned = execute("experiments", "finetune", **nli)
    given = SIZE | {
        "settings": {"train": 40, "dev": 30, "ood": 10},
        "task": "synthetic-nli",
        "groups": "auto",
    }
    trak = {"method": "trak", "options": {"normaliser": "adam", "k": 16, "output": "correct"}}
    run = execute("experiments", "attribution", **given, models=[str(tuned.folder / "model")], **trak)
    assert run.result["identity"]["scores"] == "trak, pseudo-groups, AdamW's steps, of correct"
