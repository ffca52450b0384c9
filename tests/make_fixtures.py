"""Write tests/fixtures: `lottery`, synthetic masks and scores in the layout of a released lottery-ticket study, `attention`, synthetic shares of patterns,
`sparsity`, synthetic scores of sparse subnetworks in and out of distribution, `heads`, synthetic scores over the number of heads, `rows`, a synthetic study of training rows,
`bias`, one of gender bias, `methods`, shares of heads that several methods leave, and `row_weights`, rows with the weights of a bias model.

Two synthetic tasks, three seeds, a model of 3 layers x 2 heads (attention: 4 x 6). Nothing in it was measured. Run: python tests/make_fixtures.py [FOLDER]
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

TASKS, SEEDS, SHAPE = ["synthetic-nli", "synthetic-nli-plain"], [1, 2, 3], (3, 2)
SETTINGS = {
    "heads_mlps": ("head_mlp", "head_mlp_random", "head_mlp_bad_1"),
    "magnitude": ("global_magnitude", "global_random", "global_bad"),
}
LEVEL = {
    ("good", "pruned"): 0.84,
    ("good", "retrained"): 0.87,
    ("random", "pruned"): 0.70,
    ("random", "retrained"): 0.83,
    ("bad", "pruned"): 0.58,
    ("bad", "retrained"): 0.78,
}


def masks(folder, rng):
    "Masks whose seeds agree in part, with importances; the super masks are their product over seeds."
    for family, kinds in {"heads": ["head"], "mlps": ["mlp"], "heads_mlps": ["head", "mlp"]}.items():
        for task in TASKS:
            for kind in kinds:
                base = rng.random(SHAPE if kind == "head" else SHAPE[:1])
                importance = {
                    s: np.clip(base + 0.25 * rng.normal(size=base.shape), 0, 1).astype("f4") for s in SEEDS
                }
                kept = {
                    s: (v >= np.sort(v, axis=None)[v.size // 3]).astype("f4") for s, v in importance.items()
                }
                for seed in SEEDS:
                    place = folder / "masks" / family / task / f"seed_{seed}"
                    place.mkdir(parents=True, exist_ok=True)
                    np.save(place / f"{kind}_mask.npy", kept[seed])
                    np.save(place / f"{kind}_importance.npy", importance[seed])


def scores(folder, rng):
    "Scores per seed (scores.csv), and their mean and population standard deviation in the released layout."
    rows = [
        (task, "dev", "accuracy", family, kind, state, seed, round(level + 0.02 * rng.normal(), 4))
        for task in TASKS
        for family in SETTINGS
        for (kind, state), level in LEVEL.items()
        for seed in SEEDS
    ]
    rows += [
        (
            task,
            "dev",
            "accuracy",
            "none",
            kind,
            "none",
            seed,
            round(level + 0.01 * rng.normal() * (kind == "full"), 4),
        )
        for task in TASKS
        for kind, level in [("full", 0.9), ("majority", 0.51)]
        for seed in SEEDS
    ]
    frame = pd.DataFrame(
        rows, columns=["task", "split", "metric", "family", "kind", "state", "seed", "value"]
    )
    frame.to_csv(folder / "scores.csv", index=False)
    place = {
        (family, kind, state): name + ("_retrained" if state == "retrained" else "") + "/baseline"
        for family, names in SETTINGS.items()
        for kind, name in zip(["good", "random", "bad"], names)
        for state in ["pruned", "retrained"]
    }
    place |= {("none", "full", "none"): "no_mask/baseline", ("none", "majority", "none"): "freq_baseline"}
    for key, part in frame.groupby(["family", "kind", "state"]):
        table = {task: {"acc": [v.mean(), v.std(ddof=0)]} for task, v in part.groupby("task").value}
        path = folder / "evaluate_masked" / place[key] / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table, indent=1) + "\n")


def predictions(folder, rng, n=16):
    "Answers per example of good and bad subnetworks, pruned."
    rows = []
    for task in TASKS:
        labels = rng.integers(0, 2, n)
        rows += [
            (
                task,
                "dev",
                "heads_mlps",
                kind,
                "pruned",
                seed,
                i,
                y,
                int(y if rng.random() < LEVEL[kind, "pruned"] else 1 - y),
            )
            for kind in ["good", "bad"]
            for seed in SEEDS
            for i, y in enumerate(labels)
        ]
    names = ["task", "split", "family", "kind", "state", "seed", "idx", "label", "prediction"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "predictions.csv", index=False)


def attention(folder, rng, layers=4, heads=6, n=10):
    "Counts of each kind of map per head: survivors of fine-tuned models are more often blocks, those of pre-trained ones nothing in particular."
    kinds, shares, survivors = ["vertical", "diagonal", "mix", "block", "other"], [], []
    places = [(l, h) for l in range(layers) for h in range(heads)]
    base = rng.dirichlet([0.8] * 5, len(places))
    for task in TASKS:
        kept = rng.permutation(len(places)) < len(places) // 3
        for seed, state in [*((s, "fine-tuned") for s in SEEDS), (0, "pre-trained")]:
            run, super_ = f"run {len({s[0] for s in survivors}) + 1}", f"mask {TASKS.index(task) + 1}"
            survivors += [(run, super_, "super", "good", *place, int(k)) for place, k in zip(places, kept)]
            for mask in ["", super_]:
                for place, k, p in zip(places, kept, base):
                    if mask and not k:
                        continue
                    p = 0.5 * p + 0.5 * np.eye(5)[3] if k and state == "fine-tuned" else p
                    shares.append((run, task, seed, state, "raw", mask, *place, n, *rng.multinomial(n, p)))
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(
        shares, columns=["run", "task", "seed", "state", "maps", "mask", "layer", "head", "n", *kinds]
    ).to_csv(folder / "shares.csv", index=False)
    pd.DataFrame(survivors, columns=["run", "mask", "family", "kind", "layer", "head", "kept"]).to_csv(
        folder / "survivors.csv", index=False
    )


TENTHS = [k / 10 for k in range(1, 10)]
FULL = {"units": "", "scores": "", "rule": "", "start": "pre-trained", "role": "full"}
FOUND = {"units": "weight", "start": "ce-tuned", "role": "good"}
TRAINED, PRUNED = (
    FOUND | {"scores": "learned", "rule": "mask_training"},
    FOUND | {"scores": "magnitude", "rule": "imp"},
)
CURVES = [  # identity, [(sparsity, in distribution, out of it)]
    (FULL | {"loss": "ce"}, [(0.0, 0.920, 0.450)]),
    (FULL | {"loss": "poe"}, [(0.0, 0.890, 0.600)]),
    (
        TRAINED | {"loss": "ce"},
        [(0.2, 0.922, 0.455), (0.5, 0.914, 0.462), (0.7, 0.898, 0.458), (0.9, 0.792, 0.440)],
    ),
    (
        TRAINED | {"loss": "poe"},
        [(0.2, 0.916, 0.490), (0.5, 0.908, 0.585), (0.7, 0.892, 0.625), (0.9, 0.742, 0.540)],
    ),
    (PRUNED | {"loss": "ce"}, [(s, 0.921 - 0.25 * s**5, 0.450 + 0.03 * s - 0.06 * s**4) for s in TENTHS]),
]


def sparsity(folder, rng):
    "Scores of full models, mask training and IMP: masks found with PoE beat the full CE model out of distribution at .5 and .7; at .9 too, but not in distribution."
    lift, rows = 0.008 * rng.normal(size=(len(SEEDS), 2)), []  # a seed is good or bad for all of its systems
    for identity, points in CURVES:
        for share, *levels in points:
            noise = 0.008 * rng.normal(size=lift.shape)
            rows += [
                dict(task=TASKS[0], model="tiny", seed=seed, split=split, metric="accuracy", n=100)
                | dict(value=round(level + lift[i, j] + noise[i, j], 4), sparsity=share)
                | identity
                | dict(schedule="", tuned="", state="")
                for i, seed in enumerate(SEEDS)
                for j, (split, level) in enumerate(zip(["dev", "ood"], levels))
            ]
    _tables(folder, scores=rows)


GATES = {"units": "head", "rule": "topk", "loss": "ce", "start": "ce-tuned", "role": "good"}
NEEDS = [  # identity, heads that are needed
    (GATES | {"scores": "learned, joint", "rule": "dsp", "start": "pre-trained"}, 1.5),
    (GATES | {"scores": "learned, joint", "rule": "straight_through", "start": "pre-trained"}, 2),
    (GATES | {"scores": "learned, joint", "rule": "hard_concrete", "start": "pre-trained"}, 2),
    (GATES | {"scores": "learned, gates only", "rule": "dsp"}, 2.5),
    (GATES | {"scores": "importance, absolute"}, 4),
    (GATES | {"scores": "random", "role": "random"}, 7),
]


def heads(folder, rng):
    "Scores over the number of heads of eight: trained gates need two, importance four, random choice nearly all."
    rows = []
    for seed in SEEDS:
        shift = 0.01 * rng.normal()
        score = lambda need, k, shift=shift: round(
            0.5 + 0.4 / (1 + np.exp(1.5 * (need - k))) + shift + 0.008 * rng.normal(), 4
        )
        same = dict(task=TASKS[0], model="tiny", seed=seed, split="dev", metric="accuracy", n=100)
        more = dict(of_head=8, schedule="", tuned="", state="")
        rows += [
            same | dict(kept_head=k, value=score(need, k), sparsity=1 - k / 8) | identity | more
            for identity, need in NEEDS
            for k in (1, 2, 4, 6)
        ]
        whole = dict(kept_head=None, value=score(0, 8), sparsity=0.0, loss="ce") | FULL
        rows.append(same | whole | more)
    _tables(folder, scores=pd.DataFrame(rows).astype({"kept_head": "Int64"}))


def _tables(folder, **tables):
    "A CSV file for each table"
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False)


GROUPS = ["asian", "black", "jewish", "women"]


def _group_scores(gain, k, rng):
    "Metrics of one training: women are served worst, and gain by removal"
    each = {
        g: 0.72 + 0.02 * i + (gain * (k or 100) / 100 - 0.22 if g == "women" else 0) + rng.normal(0, 0.01)
        for i, g in enumerate(GROUPS)
    }
    values = {
        "accuracy": np.mean(list(each.values())),
        "accuracy/worst": min(each.values()),
        **{f"accuracy/{g}": v for g, v in each.items()},
    }
    return values | {
        m: base + rng.normal(0, 0.01)
        for m, base in (("fpr/gap", 0.3 - gain), ("fnr/gap", 0.2), ("auc", 0.8), ("loss", 0.6))
    }


def rows(folder, rng):
    "Removal of training rows: influence helps the worst group most, random removal not at all; every twelfth row is poisoned."
    removal, scored = [], {"rows": [], "matrix": [], "finding": [], "lds": []}
    for seed in SEEDS:
        for method, role, gain, ks in (
            ("", "full", 0, [0]),
            ("random", "random", 0, [50, 100, 200]),
            ("trak", "good", 0.08, [50, 100, 200]),
            ("last_layer", "good", 0.14, [50, 100, 200]),
            ("group sizes", "balanced", 0.03, [0]),
        ):
            for k in ks:
                removed = k or (400 if role == "balanced" else 0)
                same = dict(task="synthetic", model="tiny", split="test", k=k, removed=removed)
                same |= dict(
                    units="row", scores=method, rule="topk" if method else "", schedule="", loss="ce"
                )
                same |= dict(start="pre-trained", role=role, tuned="", state="", sparsity=removed / 600)
                removal += [
                    same | dict(metric=m, value=round(v, 4), n=200, data_seed=seed, seed=0, draw=0)
                    for m, v in _group_scores(gain, k, rng).items()
                ]
    for method, pull, auc, found in (
        ("TRAK", 1, 0.85, 0.3),
        ("influence, last layer", 2, 0.95, 0.4),
        ("random scores", 0, 0.5, 0),
    ):
        same = dict(task="synthetic", method=method, data_seed=SEEDS[0])
        scored["rows"] += [
            same
            | dict(
                id=f"train-{i}",
                text_a=f"made-up text <b>number</b> {i}",
                group=GROUPS[i % 4],
                label=i // 4 % 2,
                alignment=round(rng.normal() - 1.5 * pull * (i % 12 == 0), 4),
                poisoned="yes" if i % 12 == 0 else "no",
            )
            for i in range(60)
        ]
        scored["matrix"] += [
            same | dict(row=a, column=b, value=round(rng.normal(0, 0.3) + pull * (a == b), 4))
            for a in GROUPS
            for b in GROUPS
        ]
        scored["finding"] += [
            same | dict(data_seed=seed, auc=round(auc + rng.normal(0, 0.02), 4)) for seed in SEEDS
        ]
        scored["lds"].append(same | dict(value=found, low=found - 0.05, high=found + 0.05, ceiling=0.8))
    _tables(folder, removal=removal, **scored)


def bias(folder, rng):
    "Gender bias: tests follow a synthetic leaning; movement masks lower it, random ones less, magnitude masks hardly."
    scores, dense, heads = [], [], []
    for seed in SEEDS:
        score = lambda m, v, same, seed=seed: scores.append(
            dict(metric=m, split="synthetic", value=round(v, 3), low=np.nan, high=np.nan)
            | same
            | dict(seed=seed)
        )
        about = dict(task="synthetic", model="tiny", tuned="", schedule="", start="pre-trained")
        none = dict(
            units="", scores="", rule="", loss="masked_lm", role="pre-trained", state="", sparsity=0.0
        )
        for lean in (0.0, 0.4, 0.8):
            for m, v in (
                ("log_odds", 2.2 * lean),
                ("ss", 50 + 50 * min(1, 2 * lean)),
                ("crows", 50 + 45 * min(1, 2 * lean)),
                ("seat", 1.5 * lean),
            ):
                score(m, v + rng.normal(0, 0.1), about | none | dict(target=0.0, goal="", lean=lean))
        for label, scored, drop in (
            ("movement (last, sentence)", "learned", 6.0),
            ("random mask", "random", 1.0),
            ("magnitude mask", "magnitude", 0.3),
        ):
            for target in (0.1, 0.2):
                same = dict(
                    task="synthetic",
                    label=label,
                    block="8x8",
                    target=target,
                    goal=f"{target:.0%} to be removed",
                    lean=0.8,
                )
                learned = scored == "learned"
                identity = dict(units="block 8x8", scores=scored, rule="movement" if learned else "topk")
                identity |= dict(loss="debias, last, sentence" if learned else "")
                identity |= dict(role="random" if scored == "random" else "good", sparsity=target)
                identity |= dict(target=target, goal="sparsity", lean=0.8)
                for state, left in (("before", 1), ("after", 1 - drop * target / 2)):
                    for m, v in (
                        ("log_odds", 2.2 * left),
                        ("ss", 50 + 45 * left),
                        ("seat", 1.4 * left),
                        ("masked_loss", 1.1 + target * (state == "after")),
                    ):
                        score(m, v + rng.normal(0, 0.03), about | identity | dict(state=state))
                for layer in range(2):
                    row = same | dict(seed=seed, layer=layer, kept=0, total=0)
                    dense += [
                        row
                        | dict(
                            level=level,
                            group=group,
                            name=name,
                            density=round(1 - target + rng.normal(0, 0.02), 4),
                        )
                        for level, group, name in [
                            ("layer", "", ""),
                            *(
                                ("matrix", "attention", n)
                                for n in ("query", "key", "value", "out", "up", "down")
                            ),
                        ]
                    ]
                    heads += [
                        same
                        | dict(
                            seed=seed,
                            layer=layer,
                            head=h,
                            kept=float(
                                not (
                                    label.startswith("movement")
                                    and target == 0.2
                                    and layer == 1
                                    and h == seed % 2
                                )
                            ),
                        )
                        for h in range(4)
                    ]
    same = dict(task="synthetic", label="movement (last, sentence)", block="8x8", lean=0.8)
    blocks = [
        same
        | dict(
            target=t,
            goal=f"{t:.0%} to be removed",
            layer=l,
            matrix=m,
            row=r,
            column=c,
            kept=round(rng.binomial(len(SEEDS), 1 - t - 0.3 * (r == l)) / len(SEEDS), 3),
        )
        for t in (0.1, 0.2)
        for l in range(2)
        for m in range(6)
        for r in range(4)
        for c in range(4 if m < 4 else 1)
    ]
    agreement = [
        dict(
            task="synthetic",
            label=label,
            block="8x8",
            target=t,
            goal=f"{t:.0%} to be removed",
            lean=0.8,
            value=v,
            expected=t / (2 - t),
            pairs=3,
        )
        for label, v in (("movement (last, sentence)", 0.4), ("random mask", 0.06))
        for t in (0.1, 0.2)
    ]
    _tables(folder, scores=scores, density=dense, heads=heads, blocks=blocks, agreement=agreement)


def methods(folder, rng, layers=4, heads=6):
    "Shares of every head that four methods leave: two prefer the same heads, one others, and one draws them."
    likes, found = rng.random((2, layers, heads)), []
    kinds = {
        "importance": (0, 0.15),
        "DSP, gates only": (0, 0.3),
        "mask training, PoE": (1, 0.3),
        "random heads": (0, 99),
    }
    for method, (liked, noise) in kinds.items():
        for seed in SEEDS:
            value = likes[liked] + noise * rng.normal(size=(layers, heads))
            share = np.argsort(np.argsort(value, axis=None)).reshape(value.shape) / (value.size - 1)
            places = np.ndindex(*share.shape)
            found += [
                dict(method=method, seed=seed, layer=l, head=h, share=round(share[l, h], 3))
                for l, h in places
            ]
    _tables(folder, heads=found)


def row_weights(folder, rng, n=40):
    "Alignments of rows, and weights of a bias model that surely knows the helpful rows; shuffled, it knows nothing."
    found, hidden = [], rng.normal(size=n)
    weight = np.round(1 / (1 + np.exp(hidden + 0.5 * rng.normal(size=n))), 3)
    for method, pull in {"influence, last layer": 1, "random scores": 0}.items():
        for seed in SEEDS:
            alignment, mixed = pull * hidden + rng.normal(size=n), rng.permutation(n)
            for bias, weights in (("first text", weight), ("first text, shuffled", weight[mixed])):
                same = dict(task="synthetic", method=method, seed=seed, bias=bias)
                found += [
                    same | dict(id=f"train-{i}", alignment=round(alignment[i], 3), weight=weights[i])
                    for i in range(n)
                ]
    _tables(folder, weights=found)


def main(folder):
    "All files below a folder, from one seed."
    rng, folder = np.random.default_rng(0), Path(folder)
    for write in (masks, scores, predictions):
        write(folder / "lottery", rng)
    attention(folder / "attention", np.random.default_rng(1))
    sparsity(folder / "sparsity", np.random.default_rng(2))
    heads(folder / "heads", np.random.default_rng(3))
    rows(folder / "rows", np.random.default_rng(4))
    bias(folder / "bias", np.random.default_rng(5))
    methods(folder / "methods", np.random.default_rng(6))
    row_weights(folder / "row_weights", np.random.default_rng(7))


if __name__ == "__main__":
    main(*sys.argv[1:] or [Path(__file__).parent / "fixtures"])
