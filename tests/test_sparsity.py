"""The analysis of sparsity curves, on runs of every kind of the robust-subnetwork study that are written without training."""

import numpy as np
import pandas as pd
import pytest
from toys import execute

from lib.core.base import outputs
from lib.core.folders import find_run
from lib.core.runs import start, start_of
from lib.core.testing import write_notebook
from lib.study.robust import (
    arranged,
    beside_published,
    frontier,
    plane_points,
    robust_differences,
    robust_scores,
    robust_table,
    timing_curves,
)
from lib.study.study import study

SEEDS, SETS = [1, 2, 3], {"matched": 0.84, "mismatched": 0.845, "HANS": 0.62}
FULL = {"ce": (0, 0), "poe": (-0.02, 0.07), "reweight": (-0.015, 0.06), "confreg": (0, 0.05)}


def sparsity_scores(keys):
    "The scores of runs, as the analysis reads them."
    return robust_scores(study(keys))


def identity_of_run(notebook, p):
    "What a run of this study says of itself."
    model = p.get("model", "")
    who = {
        "loss": p.get("loss", "ce") + ", OOD rows" * p.get("ood_training", False),
        "start": start_of(model),
    }
    if notebook in ("finetune", "bias_model"):
        early = f"until step {p['stop_at']}" if p.get("stop_at") else ""
        role = "full" if notebook == "finetune" else "test"
        return who | {"units": "", "scores": "", "rule": "", "schedule": early, "role": role, "sparsity": 0.0}
    who |= {"units": "weight", "role": "good", "sparsity": p.get("sparsity"), "schedule": ""}
    if notebook == "iterative_pruning":
        return who | {"scores": "magnitude", "rule": "imp" + ", rewound" * p.get("rewind", False)}
    grows = f"{p['initial']:g} -> {p['sparsity']:g} cubic" if "initial" in p else ""
    return who | {
        "scores": "learned" + ", soft scores" * (p.get("init") == "soft"),
        "rule": "mask_training",
        "schedule": grows,
    }


class Study:
    "Writes finished runs on MNLI, and remembers their keys."

    def __init__(self):
        self.keys, self.rng = [], np.random.default_rng(0)

    def rows(self, seed, own, other, **labels):
        noise = np.random.default_rng(seed).normal(0, 0.004, 3) + self.rng.normal(0, 0.002, 3)
        return [
            {
                "metric": "accuracy",
                "value": float(v + (other if s == "HANS" else own) + e),
                "split": s,
                "n": 100,
                **labels,
            }
            for (s, v), e in zip(SETS.items(), noise)
        ]

    def make(self, notebook, rows, **params):
        options = {n: params[n] for n in ("initial", "init") if n in params and notebook == "train_mask"}
        given = {n: v for n, v in params.items() if n not in options}
        given |= {"masker_options": options} if options else {}
        run = start(notebook, {"task": "MNLI", "seed": 0, "source": "local", **given})
        who = identity_of_run(notebook, params)
        if params.get("mask"):  # what was searched, and how it was tuned afterwards
            who, loss = find_run(params["mask"]).result["identity"] | {"seed": params["seed"]}, params["loss"]
            rows = [r | {"tuned": loss} for r in rows]
        if notebook == "train_mask":
            pd.DataFrame(
                [
                    {
                        "step": k,
                        "selection": 0,
                        **{r["split"]: r["value"] - 1 / k for r in rows if r["split"]},
                    }
                    for k in (10, 20)
                ]
            ).to_parquet(run.path("evaluations.parquet"))
        run.finish(rows, identity=who)
        self.keys.append(run.key)
        return run.key

    def full(self, seed, loss="ce", own=0, other=0, **params):
        return self.make(
            "finetune",
            self.rows(seed, own, other, mask=""),
            seed=seed,
            loss=loss,
            **{"model": "bert-base-uncased", "bias": self.bias if loss != "ce" else "", **params},
        )

    def mask(self, seed, model, loss, sparsity, own=0, other=0, notebook="train_mask", **params):
        rows = [
            *self.rows(
                seed, own - 0.2 * sparsity**4, other + 0.05 * sparsity - 0.1 * sparsity**5, sparsity=sparsity
            ),
            {"metric": "removed", "value": sparsity, "split": "", "n": 9, "sparsity": sparsity},
        ]
        return self.make(
            notebook,
            rows,
            seed=seed,
            model=model,
            loss=loss,
            sparsity=sparsity,
            **{"bias": self.bias if loss != "ce" else "", **params},
        )

    def imp(self, seed, model, loss, own=0, other=0, **params):
        rows = [
            r
            for k in range(1, 10)
            for r in self.rows(seed, own - 0.3 * (k / 10) ** 4, other + 0.02 * k / 10, sparsity=k / 10)
        ]
        return self.make("iterative_pruning", rows, seed=seed, model=model, loss=loss, **params)

    def alone(self, seed, mask, loss, own, other, sparsity):
        return self.make(
            "finetune",
            self.rows(seed, own, other, mask=mask, sparsity=sparsity),
            seed=seed,
            model="bert-base-uncased",
            loss=loss,
            mask=mask,
            sparsity=sparsity,
        )


def written():
    "A study with every kind of system"
    s = Study()
    s.bias = s.make(
        "bias_model",
        [
            {"metric": m, "value": v, "split": split, "n": 9}
            for split, level in [("train", 0.6), ("matched", 0.6), ("HANS", 0.3)]
            for m, v in [("accuracy", level), ("majority", 0.35), ("confidence", 0.5)]
        ],
    )
    for seed in SEEDS:
        full = {loss: s.full(seed, loss, *levels) for loss, levels in FULL.items()}
        masks = {
            (start_, loss, p): s.mask(seed, m, loss, p, FULL[loss][0] * 0.5, FULL[loss][1])
            for start_, m, losses in [
                ("CE", full["ce"], FULL),
                ("PoE", full["poe"], ["poe"]),
                ("pre", "bert-base-uncased", ["ce", "poe"]),
            ]
            for loss in losses
            for p in (0.2, 0.5, 0.7, 0.9)
        }
        for model, loss in [(full["ce"], "ce"), (full["ce"], "poe"), (full["poe"], "poe")]:
            s.imp(seed, model, loss, other=FULL[loss][1] * 0.6)
        rewound = s.imp(seed, "bert-base-uncased", "poe", rewind=True)
        for p in (0.2, 0.5, 0.7, 0.9):
            for loss in ("ce", "poe"):
                s.alone(seed, masks["CE", "poe", p], loss, -0.01, 0.02 + FULL[loss][1], p)
                s.alone(seed, rewound, loss, -0.02, FULL[loss][1], p)
            s.mask(seed, full["ce"], "ce", p, 0, 0.3, ood_training=True)
        early = [s.full(seed, stop_at=step, own=-0.01) for step in (5000, 10000)]
        for i, model in enumerate(early):
            s.mask(seed, model, "poe", 0.7, -0.01, 0.04 + 0.02 * i)
        s.mask(seed, full["ce"], "poe", 0.9, 0.04, 0.02, initial=0.7, init="soft")
        s.mask(seed, full["ce"], "poe", 0.9, -0.02, -0.02, epochs=2.0)  # like another one, but for its epochs
    return s.keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    "The study, once for all tests"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIEVE_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield written()


def test_every_kind_of_run_has_a_name(keys):
    scores = sparsity_scores(keys)
    assert (
        not scores.duplicated(["label", "sparsity", "seed", "split", "metric"]).any()
        and set(scores.split) == set(SETS)
        and set(scores.model) == {"bert-base-uncased"}
    )
    assert scores.groupby("label").sparsity.nunique().to_dict() == {
        "full model, CE": 1,
        "full model, PoE": 1,
        "full model, reweighting": 1,
        "full model, confidence reg.": 1,
        "full model, CE (until step 5000)": 1,
        "full model, CE (until step 10000)": 1,
        "mask training, CE, from CE-tuned": 4,
        "mask training, reweighting, from CE-tuned": 4,
        "mask training, confidence reg., from CE-tuned": 4,
        "mask training, PoE, from CE-tuned (epochs 3)": 4,
        "mask training, PoE, from CE-tuned (epochs 2)": 1,
        "mask training, PoE, from PoE-tuned": 4,
        "mask training, CE, from pre-trained": 4,
        "mask training, PoE, from pre-trained": 4,
        "mask training, CE, from CE-tuned (OOD training data)": 4,
        "mask training, PoE, from CE-tuned (0.7 -> 0.9 cubic, soft scores)": 1,
        "mask training, PoE, from CE-tuned (from step 5000)": 1,
        "mask training, PoE, from CE-tuned (from step 10000)": 1,
        "IMP, CE, from CE-tuned": 9,
        "IMP, PoE, from CE-tuned": 9,
        "IMP, PoE, from PoE-tuned": 9,
        "IMP, rewound, PoE, from pre-trained": 9,
        **{
            f"in isolation: {m}; tuned with {t}": 4
            for m in ("mask training, PoE, from CE-tuned", "IMP, rewound, PoE, from pre-trained")
            for t in ("CE", "PoE")
        },
    }


def test_tables_against_a_count_by_hand(keys):
    scores = sparsity_scores(keys)
    table, pairs = robust_table(scores), robust_differences(scores)
    name, s = "mask training, reweighting, from CE-tuned", 0.7
    mine, full = (
        scores[(scores.label == l) & (scores.sparsity == p) & (scores.split == "HANS")]
        .sort_values("seed")
        .value.to_numpy()
        for l, p in [(name, s), ("full model, CE", 0)]
    )
    row = pairs[(pairs.label == name) & (pairs.sparsity == s) & (pairs.split == "HANS")].iloc[0]
    d = mine - full
    half = 4.302652729696142 * d.std(ddof=1) / np.sqrt(3)
    assert (
        (row.difference, row.low, row.high) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
        and row.beyond == (abs(d.mean()) > half)
        and row.p == 0.25
    )
    at = table[table.split == "matched"].set_index(["label", "sparsity"])["mean"]
    found = table.set_index(["label", "sparsity", "split"])
    assert found.kept[name, s, "HANS"] == pytest.approx(at[name, s] / at["full model, CE", 0])
    assert (found.counts == (found.kept >= 0.95)).all() and not found.counts.all()
    points = plane_points(table, "matched", "HANS")
    assert (
        len(points) == len(at)
        and points.frontier.tolist() == frontier(points.x, points.y).tolist()
        and points.frontier.sum() > 1
    )


def test_searches_while_they_train(keys):
    scores = sparsity_scores(keys)
    found = timing_curves(scores, arranged(robust_table(scores)))
    assert (
        list(dict.fromkeys(found.short))
        == ["pre-trained", "from step 5000", "from step 10000", "from the end (epochs 3)"]
        and set(found.sparsity) == {0.7}
        and set(found.n) == {3}
    )
    for name, label in [
        ("from step 5000", "mask training, PoE, from CE-tuned (from step 5000)"),
        ("pre-trained", "mask training, PoE, from pre-trained"),
    ]:
        ends = scores[(scores.label == label) & (scores.sparsity == 0.7) & (scores.split == "HANS")].value
        at = found[(found.short == name) & (found.row == "HANS (OOD), accuracy")].set_index("step")
        half = 4.302652729696142 * ends.std() / np.sqrt(3)
        assert at["mean"].to_dict() == pytest.approx(
            {k: ends.mean() - 1 / k for k in (10, 20)}
        ) and np.allclose(at.high - at["mean"], half)


def test_published_figures_stand_beside_their_own_rows(keys):
    beside = beside_published(robust_table(sparsity_scores(keys)))
    liu = (
        beside[beside.source.str.startswith("Liu") & (beside.split == "matched")]
        .set_index("label")
        .published.to_dict()
    )
    assert liu == {
        "mask training, PoE, from CE-tuned (epochs 3)": 0.7209,
        "mask training, PoE, from CE-tuned (epochs 2)": 0.7209,
        "mask training, PoE, from CE-tuned (0.7 -> 0.9 cubic, soft scores)": 0.7684,
    }
    assert set(beside[beside.label == "full model, reweighting"].published) == {0.6919}


def test_evaluations_are_of_what_they_evaluate(keys):
    mask = next(k for k in keys if find_run(k).notebook == "train_mask")
    p, s = find_run(mask).params, Study()
    about = find_run(mask).result["identity"] | {"subject": mask, "mask": mask}
    more = s.make(
        "evaluate",
        [
            {"metric": "accuracy", "value": 0.5, "split": "hans-regenerated", "n": 9} | about,
            {"metric": "accuracy", "value": 0.6, "split": "matched", "n": 9} | about,
            {
                "metric": "accuracy",
                "value": 0.3,
                "split": "matched",
                "n": 9,
                "role": "majority",
                "subject": "",
            },
        ],
        model=p["model"],
        masks=[mask],
    )
    assert 0.6 not in set(sparsity_scores([mask, more]).value)  # the search's own score is taken once
    rows = sparsity_scores([more])[lambda f: f.split == "hans-regenerated"]
    assert rows[["label", "seed", "sparsity", "split", "subject"]].values.tolist() == [
        ["mask training, CE, from CE-tuned", 1, 0.2, "hans-regenerated", mask]
    ]


def test_bias_models_are_told_apart(keys):
    table = study(keys)[lambda f: f.role == "test"]
    assert len(table) == 9 and set(table.split) == {"train", "matched", "HANS"} and set(table.apart) == {""}
    rows = [{"metric": "accuracy", "value": 0.5, "split": "matched", "n": 9}]
    other = Study().make("bias_model", rows, shuffled=True)
    both = study([*keys, other])[lambda f: f.role == "test"]
    assert set(both.apart) == {"shuffled False", "shuffled True"}


def test_the_notebook_reads_them_all(keys, tmp_path):
    execute("sparsity_curves", tmp_path / "out.ipynb", {"runs": keys})
    run = find_run(next((outputs() / "sparsity_curves").glob("*")).name)
    figures = {n for n in run.result["artefacts"] if n.endswith(".svg")}
    assert {
        "searches_MNLI_bert-base-uncased.svg",
        "isolated_MNLI_bert-base-uncased.svg",
        "variants_MNLI_bert-base-uncased.svg",
        "timing_MNLI_bert-base-uncased_0.7.svg",
        "plane_searches_MNLI_bert-base-uncased.svg",
        "training_MNLI_bert-base-uncased_0.7.svg",
    } <= figures
    claims = pd.read_csv(run.artefact("claims.csv")).fillna("")
    assert (
        claims.better[claims.label == "mask training, CE, from CE-tuned (OOD training data)"] == "HANS"
    ).all()


def test_an_experiment_that_nobody_knows_stands_in_the_figures(keys, tmp_path, monkeypatch):
    "A notebook written tomorrow: its rows say what they are, and no line of the library names it."
    parameters = 'model: str = ""  # run\ntask: str = ""  # task\nseed: int = 0  # seed'
    write_notebook(tmp_path / "nbs" / "experiments" / "tomorrow.ipynb", parameters)
    monkeypatch.setenv("SIEVE_NBS", str(tmp_path / "nbs"))
    s, new = Study(), []
    full = [
        k for k in keys if (p := find_run(k).params) and find_run(k).notebook == "finetune" and not p["mask"]
    ]
    for seed in SEEDS:
        model = next(k for k in full if find_run(k).params["seed"] == seed)
        run = start("tomorrow", {"model": model, "task": "MNLI", "seed": seed})
        who = {"units": "ffn", "scores": "learned", "rule": "my_masker", "schedule": "", "loss": "my_loss"}
        rows = s.rows(seed, -0.01, 0.2)
        run.finish(rows, identity=who | {"start": start_of(model), "role": "good", "sparsity": 0.4})
        new.append(run.key)
    scores = sparsity_scores([*full, *new])
    name = "my masker, my loss, from CE-tuned"
    assert (scores.label == name).sum() == 9 and set(scores.model) == {"bert-base-uncased"}
    main = arranged(robust_table(scores))
    assert set(main.figure[main.label == name]) == {"searches"}
    pairs = robust_differences(scores)
    assert pairs.beyond[(pairs.label == name) & (pairs.split == "HANS")].all()
    monkeypatch.delenv("SIEVE_NBS")
    execute("sparsity_curves", tmp_path / "out.ipynb", {"runs": [*full, *new]})
    made = [find_run(p.name).result for p in (outputs() / "sparsity_curves").glob("*")]
    labels = [{m.get("label") for m in r["metrics"]} for r in made]
    assert any(name in found for found in labels)
    figures = next(r["artefacts"] for r, found in zip(made, labels) if name in found)
    assert "searches_MNLI_bert-base-uncased.svg" in figures
