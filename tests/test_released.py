"""The released masks and scores of the published lottery-ticket study, through the functions that the analyses use, against the published numbers.

The study's files are not part of this repository; without them these tests are skipped. Set SIEVE_DATA to the folder that holds `lottery`.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.core.base import ROOT, data_dir
from lib.metrics.agreement import (
    agreement_table,
    common_core,
    overlap_table,
    pair_alphas,
    super_table,
    survival_counts,
    top_important,
)
from lib.metrics.scores import majority_baseline
from lib.study.released_lottery import published_lottery, released_scores, stsb_random_baseline
from lib.study.subnetworks import CRITERION, main_scores, mask_tables

TASKS = "CoLA MNLI MRPC QNLI QQP RTE SST-2 STS-B WNLI".split()
HANS = "HANS HANS_MNLI MNLI_TWO MNLI_TWO_HALF".split()
PLACES = [data_dir(), ROOT.parent / "shared" / "data"]
DATA = (
    next((p for p in PLACES if (p / "lottery").is_dir()), None)
    if not os.environ.get("SIEVE_DATA")
    else data_dir()
)
FOLDER = DATA and DATA / "lottery"
pytestmark = pytest.mark.skipif(
    FOLDER is None or not FOLDER.is_dir(),
    reason="no released lottery-ticket study: set SIEVE_DATA to the folder that holds `lottery`",
)


def masks(family, kind, tasks=None):
    "A mask table, as the analyses read it."
    table = mask_tables([], str(FOLDER), [family])[family, kind]
    return table[table.task.isin(tasks)] if tasks else table


def numbers(name):
    "The numbers with two decimals in a published figure, in reading order."
    pypdf = pytest.importorskip("pypdf")
    text = pypdf.PdfReader(FOLDER / "experiment_analysis" / name).pages[0].extract_text()
    return [
        word
        for word in text.split()
        if word.replace("-", "").replace(".", "").isdigit() and word[-3:-2] == "."
    ]


def printed(frame):
    "The means of a frame, each followed by its sd if any is above 0, with two decimals."
    columns = ["mean", "sd"] if frame.sd.fillna(0).any() else ["mean"]
    return [f"{v:.2f}" for v in frame[columns].to_numpy().ravel()]


def by_task(frame, *columns):
    return {r["task"]: tuple(r[c] for c in columns) for r in frame.to_dict("records")}


# ------------------------------------------------------------------------------------------------------------------ figures

MATRICES = {
    "heads_separate": ("heads", "head"),
    "heads_together": ("heads_mlps", "head"),
    "heads_together_super": ("super", "head"),
    "mlps_separate": ("mlps", "mlp"),
    "mlps_together": ("heads_mlps", "mlp"),
    "mlps_together_super": ("super", "mlp"),
}


def test_overlap_figures():
    compared = 0
    for name, (family, kind) in MATRICES.items():
        ours, theirs = (
            printed(overlap_table(masks(family, kind))),
            numbers(f"common_components/task_v_task_{name}.pdf"),
        )
        assert ours == theirs, name
        compared += len(ours)
    assert compared == 450


HEATMAPS = {
    "head_heatmap_separate": ("heads", "head"),
    "head_heatmap_together": ("heads_mlps", "head"),
    "train_subset/head_heatmap_together_train_subset": ("heads_mlps_on_train", "head"),
    "mlp_heatmap_separate": ("mlps", "mlp"),
    "mlp_heatmap_together": ("heads_mlps", "mlp"),
    "train_subset/mlps_heatmap_together_train_subset": ("heads_mlps_on_train", "mlp"),
}


def test_heatmap_figures():
    compared = 0
    for name, (family, kind) in HEATMAPS.items():
        ours, theirs = (
            printed(survival_counts(masks(family, kind))),
            numbers(f"heatmaps/all_tasks/{name}.pdf"),
        )
        assert ours == theirs, name
        compared += len(ours)
    assert compared == 936


def test_heatmap_figures_per_task():
    compared, files = (
        0,
        {
            ("heads_mlps", task, kind): f"task_specific/importance_pruning/{task}_{part}_heatmap_together.pdf"
            for task in TASKS
            for kind, part in [("head", "head"), ("mlp", "mlps")]
        },
    )
    files |= {
        ("heads_mlps_hans", task, kind): f"hans/{task}_{kind}_heatmap_together_hans.pdf"
        for task in HANS
        for kind in ("head", "mlp")
    }
    for (family, task, kind), name in files.items():
        cells = survival_counts(masks(family, kind, [task]))
        ours = [f"{v:.2f}" for v in cells[["mean", "sd"]].to_numpy().ravel()]
        assert ours == numbers(f"heatmaps/{name}"), name
        compared += len(ours)
    assert compared == 13 * (288 + 24)


# -------------------------------------------------------------------------------------------------- sizes and survivors (3.1)

# task: heads kept (seeds 1337 166 42 71 86), sd, all, any, MLPs kept, sd, all, any
SIZES = {
    "CoLA": ([95, 67, 81, 102, 116], 18.913, 34, 136, [11, 10, 12, 11, 10], 0.837, 9, 12),
    "MNLI": ([95, 95, 102, 88, 95], 4.950, 40, 137, [9, 8, 9, 7, 9], 0.894, 4, 12),
    "MRPC": ([88, 102, 81, 81, 95], 9.127, 28, 137, [8, 9, 9, 9, 11], 1.095, 4, 12),
    "QNLI": ([81, 88, 95, 74, 88], 7.981, 31, 127, [9, 8, 9, 9, 9], 0.447, 5, 12),
    "QQP": ([67, 67, 67, 102, 88], 16.115, 23, 134, [8, 8, 9, 9, 9], 0.548, 3, 12),
    "RTE": ([18, 88, 116, 74, 74], 35.693, 11, 126, [11, 9, 11, 8, 7], 1.789, 2, 12),
    "SST-2": ([88, 46, 74, 60, 67], 15.652, 19, 115, [8, 7, 7, 9, 8], 0.837, 2, 12),
    "STS-B": ([74, 67, 74, 88, 81], 7.981, 24, 135, [8, 9, 7, 5, 8], 1.517, 1, 11),
    "WNLI": ([0, 0, 0, 0, 144], 64.399, 0, 144, [0, 0, 0, 0, 0], 0, 0, 0),
}
ALONE = {
    "CoLA": [116, 88, 88, 102, 130],
    "MNLI": [88, 74, 60, 60, 74],
    "MRPC": [60, 60, 74, 74, 74],
    "QNLI": [88, 60, 88, 88, 60],
    "QQP": [60, 60, 46, 46, 60],
    "RTE": [32, 74, 74, 18, 46],
    "SST-2": [32, 60, 46, 32, 32],
    "STS-B": [32, 32, 46, 32, 32],
    "WNLI": [12, 12, 12, 88, 12],
}
SEEDS = [1337, 166, 42, 71, 86]


def kept(table):
    "Units kept per task, in the order of `SEEDS`."
    sums = {(r.task, int(r.seed)): int(r.mask.sum()) for r in table.itertuples()}
    return {task: [sums[task, seed] for seed in SEEDS] for task in dict.fromkeys(table.task)}


@pytest.mark.parametrize("kind, at", [("head", 0), ("mlp", 4)])
def test_sizes_and_survivors(kind, at):
    table = masks("heads_mlps", kind)
    assert kept(table) == {task: row[at] for task, row in SIZES.items()}
    for row in agreement_table(table).to_dict("records"):
        values, sd, everyone, anyone = SIZES[row["task"]][at : at + 4]
        assert (row["all"], row["any"], row["seeds"]) == (everyone, anyone, 5)
        assert row["mean"] == pytest.approx(np.mean(values)) and row["sd"] == pytest.approx(sd, abs=5.1e-4)


def test_sizes_alone():
    assert kept(masks("heads", "head")) == ALONE
    means = agreement_table(masks("mlps", "mlp")).set_index("task")["mean"]
    assert means[TASKS].round(6).tolist() == [10.6, 7.6, 9.0, 6.4, 5.2, 8.8, 7.2, 6.6, 0]


def test_super_masks_are_the_product_over_seeds():
    for kind in ("head", "mlp"):
        ours = super_table(masks("heads_mlps", kind)).set_index("task")["mask"]
        released = masks("heads_mlps_super", kind)
        assert len(released) == 45 and all(
            np.array_equal(ours[r.task], r.mask) for r in released.itertuples()
        )


def test_no_common_core():
    for kind in ("head", "mlp"):
        for family in ("heads_mlps", "heads" if kind == "head" else "mlps"):
            for tasks in (TASKS, TASKS[:-1]):
                counts = np.sum(list(masks(family, kind, tasks)["mask"]), axis=0)
                assert 0 < counts.min() and counts.max() < 5 * len(tasks)
    heads, mlps = (masks("heads_mlps", kind, TASKS[:-1]) for kind in ("head", "mlp"))
    counts = np.sum(list(heads["mask"]), axis=0)
    assert counts[3, 0] == counts.max() == 39
    assert np.sum(list(mlps["mask"]), axis=0)[[4, 5]].tolist() == [35, 35]
    assert common_core(heads).units.tolist() == [52, 34, 31, 9, 8, 7, 1, 2, 0]
    n = np.sum(list(super_table(heads)["mask"]), axis=0)
    assert np.argwhere(n == 7).tolist() == [[3, 0], [5, 8]]


def test_super_mlps():
    told = {
        "CoLA": [0, *range(2, 10)],
        "MNLI": [0, 7, 8, 9],
        "MRPC": [4, 5, 9, 11],
        "QNLI": [4, 5, 6, 7, 8],
        "QQP": [4, 5, 9],
        "RTE": [0, 7],
        "SST-2": [8, 9],
        "STS-B": [5],
        "WNLI": [],
    }
    assert {
        r.task: np.flatnonzero(r.mask).tolist() for r in super_table(masks("heads_mlps", "mlp")).itertuples()
    } == told


# -------------------------------------------------------------------------------------------------------- heatmap summaries (3.2)


@pytest.mark.parametrize(
    "family, kind, mean, sd, stable",
    [
        ("heads", "head", 3.658333333333333, 1.0641955424246758, 28),
        ("heads_mlps", "head", 4.768055555555556, 1.3005987701062531, 60),
        ("mlps", "mlp", 5.116666666666666, 1.0339959170447022, 7),
        ("heads_mlps", "mlp", 5.8500000000000005, 1.1201931650253287, 8),
        ("heads_mlps_on_train", "head", 5.1597223, 1.3214682, 76),
        ("heads_mlps_on_train", "mlp", 6.2, 0.8877882, 10),
    ],
)
def test_heatmap_summaries(family, kind, mean, sd, stable):
    cells = survival_counts(masks(family, kind))
    assert cells["mean"].mean() == pytest.approx(mean, abs=1e-6) and cells.sd.mean() == pytest.approx(
        sd, abs=1e-6
    )
    assert (cells["mean"] > 5).sum() == stable


PER_TASK = {  # heads: mean, sd, stable; MLPs: mean, sd, stable
    "CoLA": (0.6402778, 0.3530712, 34, 0.9, 0.1118034, 9),
    "MNLI": (0.6597222, 0.3333551, 40, 0.7, 0.3400211, 4),
    "MRPC": (0.6208333, 0.3720188, 28, 0.7666667, 0.3400211, 4),
    "QNLI": (0.5916667, 0.3337394, 31, 0.7333333, 0.3111291, 5),
    "QQP": (0.5430556, 0.3914917, 23, 0.7166667, 0.3856647, 3),
    "RTE": (0.5138889, 0.4025184, 11, 0.7666667, 0.4061810, 2),
    "SST-2": (0.4652778, 0.3330413, 19, 0.65, 0.4229325, 2),
    "STS-B": (0.5333333, 0.3845119, 24, 0.6166667, 0.4229325, 1),
    "WNLI": (0.2, 0.4472136, 0, 0, 0, 0),
}


@pytest.mark.parametrize("kind, at", [("head", 0), ("mlp", 3)])
def test_heatmap_summaries_per_task(kind, at):
    for task, row in PER_TASK.items():
        cells = survival_counts(masks("heads_mlps", kind, [task]))
        assert (cells["mean"].mean(), cells.sd.mean()) == pytest.approx(row[at : at + 2], abs=1e-7), (
            task
        )  # the original summed in float32
        assert (cells["mean"] == 1).sum() == row[at + 2], task


def test_hans_summaries():
    heads, mlps = (
        agreement_table(masks("heads_mlps_hans", kind)).set_index("task") for kind in ("head", "mlp")
    )
    cells = {task: survival_counts(masks("heads_mlps_hans", "head", [task])) for task in HANS}
    assert [cells[t]["mean"].mean() for t in HANS] == pytest.approx(
        [0.4361111, 0.5527778, 0.4847222, 0.5625], abs=6e-8
    )
    assert [cells[t].sd.mean() for t in HANS] == pytest.approx(
        [0.4135450, 0.3479421, 0.3658780, 0.3561769], abs=6e-8
    )
    assert heads.ratio[HANS].tolist() == pytest.approx([0.0555556, 0.2265625, 0.125, 0.2015504], abs=6e-8)
    assert mlps.ratio[HANS].tolist() == pytest.approx([0.3636364, 0.4166667, 0.3333333, 0.4545455], abs=6e-8)


def test_most_important_heads():
    cells = survival_counts(top_important(masks("heads_mlps", "head"), 10))
    assert (round(cells["mean"].mean(), 7), round(cells.sd.mean(), 7), int((cells["mean"] > 5).sum())) == (
        0.5694444,
        0.4142155,
        0,
    )


def test_means_per_layer():
    by_layer = lambda family, kind: (
        survival_counts(masks(family, kind)).groupby("layer")["mean"].mean().tolist()
    )
    assert by_layer("heads_mlps", "head") == pytest.approx(
        [5.550, 5.167, 4.933, 4.917, 4.8, 5.083, 5.1, 5.233, 4.483, 3.8, 3.667, 4.483], abs=5.1e-4
    )
    assert by_layer("heads_mlps", "mlp") == pytest.approx(
        [5.0, 3.6, 5.8, 4.8, 7.0, 7.0, 6.2, 6.8, 6.8, 6.8, 5.4, 5.0]
    )
    assert by_layer("heads", "head") == pytest.approx(
        [4.183, 3.95, 3.367, 3.683, 3.967, 3.75, 3.517, 3.833, 3.65, 2.883, 3.267, 3.85], abs=5.1e-4
    )
    assert by_layer("mlps", "mlp") == pytest.approx(
        [5.2, 3.0, 4.2, 5.4, 6.6, 6.8, 6.2, 6.6, 5.8, 4.8, 4.0, 2.8]
    )
    cells = survival_counts(masks("heads_mlps", "head"))
    best = cells.loc[cells["mean"].idxmax()]
    assert cells["mean"].min() == 1 and tuple(best[["layer", "head", "mean"]]) == (3, 0, 8)


# -------------------------------------------------------------------------------------------------------- seed correlation (3.6)

# task: heads Q, p, pairs, alpha, kappa; MLPs p, pairs, alpha
SEED = {
    "CoLA": (55.8906, "2.113894e-11", 3, 0.229206, 0.228134, 0.323240, 9, 0.453704),
    "MNLI": (4.0833, "3.948454e-01", 9, 0.258604, 0.257573, 0.822416, 10, 0.180556),
    "MRPC": (12.5263, "1.383791e-02", 7, 0.216371, 0.215281, 0.683371, 9, 0.038043),
    "QNLI": (10.4856, "3.299597e-02", 6, 0.302494, 0.301524, 0.982477, 10, 0.161932),
    "QQP": (35.9446, "2.970583e-07", 4, 0.192348, 0.191225, 0.973501, 10, 0.031464),
    "RTE": (172.7458, "2.692222e-36", 2, 0.181062, 0.179923, 0.254773, 9, -0.099379),
    "SST-2": (40.4959, "3.417832e-08", 2, 0.325458, 0.324520, 0.897916, 10, 0.063492),
    "STS-B": (9.1326, "5.786884e-02", 9, 0.222621, 0.221540, 0.472054, 10, 0.098707),
    "WNLI": (576.0, "2.421514e-123", 0, -0.248264, -0.25, np.nan, 0, np.nan),
    "HANS": (14.9767, "4.750", 7, 0.151192, 0.150011, 0.959491, 10, 0.341363),
    "HANS_MNLI": (28.3281, "1.070142e-05", 4, 0.281875, 0.280876, 0.978679, 10, 0.318357),
    "MNLI_TWO": (9.5431, "4.8870", 8, 0.258671, 0.257640, 0.831293, 10, 0.280488),
    "MNLI_TWO_HALF": (7.5969, "1.07512", 8, 0.272969, 0.271958, 0.524931, 9, 0.431964),
}


def all_masks(kind):
    return pd.concat([masks("heads_mlps", kind), masks("heads_mlps_hans", kind)], ignore_index=True)


def test_seed_correlation():
    heads, mlps = (agreement_table(all_masks(kind)).set_index("task") for kind in ("head", "mlp"))
    compared = 0
    for task, (q, p, pairs, alpha, kappa, p_mlp, pairs_mlp, alpha_mlp) in SEED.items():
        row, mlp = heads.loc[task], mlps.loc[task]
        digits = p.partition("e")[0]
        assert f"{row.p:.{len(digits) - 2}e}".startswith(digits) and ("e" not in p or f"{row.p:.6e}" == p), (
            task
        )
        assert (row.Q, row.alpha, row.kappa) == (
            pytest.approx(q, abs=5.1e-5),
            pytest.approx(alpha, abs=5.1e-7),
            pytest.approx(kappa, abs=9e-7),
        ), task
        assert (row.not_rejected, mlp.not_rejected, row.pairs) == (pairs, pairs_mlp, 10), task
        assert (mlp.p, mlp.alpha) == (
            pytest.approx(p_mlp, abs=5.1e-7, nan_ok=True),
            pytest.approx(alpha_mlp, abs=5.1e-7, nan_ok=True),
        ), task
        compared += 8
    assert compared == 13 * 8
    assert heads.ratio["MNLI"] == 0.291970802919708
    assert mlps.kappa[["CoLA", "MNLI", "QNLI"]].tolist() == pytest.approx(
        [0.444444, 0.166667, 0.147727], abs=5.1e-7
    )
    jaccard = {
        "CoLA": 0.5615,
        "MNLI": 0.5965,
        "MRPC": 0.5409,
        "QNLI": 0.5557,
        "QQP": 0.4585,
        "RTE": 0.4104,
        "SST-2": 0.4649,
        "STS-B": 0.4668,
    }
    assert heads.jaccard[list(jaccard)].to_dict() == pytest.approx(jaccard, abs=5.1e-5)


def alpha_of_counts(kept, raters):
    "Nominal alpha of complete 0/1 ratings from the number of ones per unit: a second implementation, by coincidences."
    ones, n = kept.sum(), len(kept) * raters
    o01 = (kept * (raters - kept)).sum() / (raters - 1)  # coincidences of 0 with 1
    return 1 - (n - 1) * o01 / (ones * (n - ones)) if 0 < ones < n else np.nan


def test_alphas_of_all_task_pairs():
    compared = 0
    for kind in ("head", "mlp"):
        table = all_masks(kind)
        counts = {
            task: np.sum([m.ravel() for m in part], axis=0, dtype=float)
            for task, part in table.groupby("task")["mask"]
        }
        for pair in pair_alphas(table).itertuples():
            second = alpha_of_counts(counts[pair.task] + counts[pair.other], 10)
            assert pair.alpha == pytest.approx(second, abs=1e-12, nan_ok=True), pair
            compared += 1
    assert compared == 156


# ------------------------------------------------------------------------------------------------------------- scores (3.5, 3.7)


def test_evaluation_table():
    scores = main_scores(released_scores(str(FOLDER)))
    both = published_lottery().merge(scores, on=["task", "family", "kind", "state"])
    assert len(both) == 180
    assert [f"{v:.4f}" for v in both["mean"]] == [f"{v:.4f}" for v in both.published]
    assert np.allclose(both.sd, both.population_sd * np.sqrt(5 / 4), rtol=1e-15)


def test_mean_over_eight_tasks():
    told = {"full": 0.8142, "good": 0.7403, "random": 0.5888, "bad": 0.5131}
    scores = main_scores(released_scores(str(FOLDER)))
    scores = scores[
        (scores.task != "WNLI")
        & scores.family.isin(["none", "heads_mlps"])
        & scores.state.isin(["none", "pruned"])
    ]
    assert {k: round(scores[scores.kind == k]["mean"].mean(), 4) for k in told} == told


def test_good_subnetworks_keep_nine_tenths():
    scores = (
        main_scores(released_scores(str(FOLDER)), CRITERION)
        .set_index(["family", "kind", "state", "task"])["mean"]
        .sort_index()
    )
    ratio = scores["heads_mlps", "good", "pruned"] / scores["none", "full", "none"]
    told = {
        "CoLA": 0.9122,
        "MNLI": 0.9046,
        "MRPC": 0.9182,
        "QNLI": 0.9055,
        "QQP": 0.9138,
        "RTE": 0.9075,
        "SST-2": 0.9096,
        "STS-B": 0.9086,
    }
    assert {task: round(ratio[task], 4) for task in told} == told


def test_majority_baseline():
    # development sets as (task, accuracy, examples): the counts of the most frequent label follow from the published accuracies
    released = main_scores(released_scores(str(FOLDER))).query("kind == 'majority'").set_index("task")["mean"]
    told = {
        "MNLI": 0.354457,
        "MRPC": 0.683824,
        "QNLI": 0.505400,
        "QQP": 0.631833,
        "RTE": 0.527076,
        "SST-2": 0.509174,
        "WNLI": 0.563380,
    }
    sizes = {"MNLI": 9815, "MRPC": 408, "QNLI": 5463, "QQP": 40430, "RTE": 277, "SST-2": 872, "WNLI": 71}
    for task, accuracy in told.items():
        most = round(accuracy * sizes[task])
        rest = sizes[task] - most
        counts = [most, rest] if task != "MNLI" else [most, rest // 2, rest - rest // 2]
        ours = majority_baseline(np.repeat(range(len(counts)), counts), ["accuracy", "mcc"])
        assert (
            round(ours["accuracy"], 6) == accuracy
            and ours["mcc"] == 0
            and ours["accuracy"] == pytest.approx(released[task])
        )


def test_stsb_random_baseline():
    file = Path(DATA) / "glue" / "STS-B" / "dev.tsv"
    if not file.is_file():
        pytest.skip(f"no {file}")
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8-sig").splitlines()]
    labels = np.array([float(line[lines[0].index("score")]) for line in lines[1:]])
    assert (
        len(labels) == 1500
        and labels.mean() == pytest.approx(2.3639075556, abs=1e-10)
        and labels.std() == pytest.approx(1.4999854043, abs=1e-10)
    )
    assert {k: round(v, 6) for k, v in stsb_random_baseline(labels).items()} == {
        "pearson": 0.024254,
        "spearman": 0.020099,
        "corr": 0.022176,
    }
