"""Robust subnetworks: the chain of experiments on a synthetic task, as papermill runs it; what is saved is what was scored; what is refused."""

import json

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from toys import execute

from lib.core.folders import find_run
from lib.core.keys import notebook_path, run_key
from lib.core.runs import runs
from lib.core.sweeps import SweepError, check_inputs, load_sweep
from lib.data.ood import chosen_sets
from lib.data.tasks import load_task
from lib.losses.loss_columns import bias_column
from lib.maskers.rules import topk_mask
from lib.maskers.thresholds import removed_count
from lib.models.masks import load_mask, mask_info, run_mask
from lib.models.units import attach
from lib.training.loading import load_head, load_model
from lib.training.recipes import score_sets, watched_rows

pytestmark = pytest.mark.slow  # minutes: every notebook of the chain is run
TASK_SETTINGS = {"train": 320, "dev": 100, "ood": 100}
SHORT = {"settings": TASK_SETTINGS, "lr": 2e-3, "epochs": 2.0, "max_length": 64, "sets": ["report", "ood"]}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    "A folder of results, offline and with one thread, for this process and for kernels."
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("robust")
        for name, value in {
            "SIEVE_OUTPUTS": str(folder),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }.items():
            patch.setenv(name, value)
        torch.set_num_threads(1)
        yield folder


def made(folder, notebook, **given):
    "The key of a run that papermill makes."
    execute(notebook, folder / "out.ipynb", given)
    return run_key(notebook, given)


def here(notebook, **given):
    "Run a notebook's cells in this process; all the names that it leaves."
    scope = {"display": print}
    for cell in nbformat.read(notebook_path(notebook), 4).cells:
        if cell.cell_type != "code":
            continue
        exec(cell.source, scope)  # noqa: S102
        if "parameters" in cell.metadata.get("tags", []):
            scope |= given
    return scope


@pytest.fixture(scope="module")
def chain(outputs):
    "Keys of: bias model, fine-tuned model, mask against the bias, the same mask trained alone, iterative pruning with rewinding, one of its masks trained alone, evaluation, training with a teacher."
    go = lambda notebook, **given: made(outputs, notebook, **given)
    bias = here("bias_model", settings=TASK_SETTINGS)["run"].key
    model = go("finetune", **SHORT)
    mask = go(
        "train_mask",
        model=model,
        bias=bias,
        loss="poe",
        sparsity=0.5,
        score_lr=SHORT["lr"],
        evaluate_every=5,
        masker_options={"initial": 0.3},
        train_classifier=True,
        **SHORT,
    )
    alone = go("finetune", mask=mask, sparsity=0.5, bias=bias, loss="poe", **SHORT)
    imp = go("iterative_pruning", model=model, bias=bias, loss="poe", rewind=True, keep_weights=True, **SHORT)
    of_imp = go("finetune", mask=imp, sparsity=0.3, **SHORT)
    evaluation = here(
        "evaluate", model=model, masks=[mask], sets=["train", "report"], settings=TASK_SETTINGS, max_length=64
    )["run"].key
    taught = here(
        "finetune", loss="confreg", bias=bias, teacher=evaluation, stop_at=4, clip="tensor", **SHORT
    )["run"].key
    return dict(
        bias=bias,
        model=model,
        mask=mask,
        alone=alone,
        imp=imp,
        of_imp=of_imp,
        evaluation=evaluation,
        taught=taught,
    )


def rows(key, **wanted):
    "Metric rows of a run as a frame, filtered."
    frame = pd.DataFrame(find_run(key).result["metrics"])
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def test_every_run_says_what_it_measured(chain):
    table = runs(keys=list(chain.values()))
    assert set(table.key) == set(chain.values()) and {
        "metric",
        "value",
        "split",
        "n",
        "task",
        "source",
        "loss",
        "bias",
        "sparsity",
        "rewind",
        "stop_at",
    } <= set(table)
    table = table[table.metric != "size"]
    assert (
        (table.task == "synthetic-nli").all()
        and (table.source == "synthetic").all()
        and table.value.notna().all()
        and table.n.notna().all()
    )
    assert list(rows(chain["imp"], metric="accuracy", split="ood").sparsity) == [k / 10 for k in range(1, 10)]
    assert set(rows(chain["mask"]).metric) >= {"accuracy", "removed", "removed_encoder"} and set(
        rows(chain["mask"]).sparsity
    ) == {0.5}
    assert (
        set(rows(chain["alone"]).sparsity) == {0.5}
        and set(rows(chain["of_imp"]).sparsity) == {0.3}
        and set(rows(chain["model"]).sparsity) == {0.0}  # nothing was removed
    )
    assert (
        list(rows(chain["bias"], metric="accuracy").split) == ["train", "dev", "ood"]
        and rows(chain["bias"], metric="accuracy", split="ood").value.item() < 0.3
    )


def measured(run, like):
    "The run's metric rows with the columns that the rows `like` have: without those that say what the run is."
    rows = [r for r in run.result["metrics"] if not r["metric"].startswith("removed")]
    return [{name: r[name] for name in like[0]} for r in rows]


def test_the_mask_evaluated_is_the_mask_saved(chain, outputs):
    "From the model's folder, the mask and the classifier alone, in this process."
    task, found = load_task("synthetic-nli", settings=TASK_SETTINGS), find_run(chain["mask"])
    net, words = load_model(chain["model"], task, 0)
    start = net.classifier.weight.clone()
    load_head(net, found.artefact("head.safetensors"))
    assert not torch.equal(net.classifier.weight, start), "the classifier was to be trained"
    with attach(net, run_mask(chain["mask"])):
        again, answers = score_sets(
            net, words, chosen_sets(task, ["report", "ood"]), task, max_length=64, sparsity=0.5
        )
    assert again == measured(found, again)
    pd.testing.assert_frame_equal(answers, pd.read_parquet(found.artefact("predictions.parquet")))
    table, curve = (
        pd.read_parquet(found.artefact("zeros.parquet")),
        pd.read_parquet(found.artefact("curve.parquet")),
    )
    assert (
        curve.chosen.sum() == 1
        and curve.step[curve.chosen].item()
        == mask_info(found.artefact("mask.safetensors"))["provenance"]["step"]
        >= 14
        and not any("classifier" in m for m in table.index)
    )
    share = curve.sparsity[curve.chosen].item()
    assert all(z == removed_count(n, share) for z, n in zip(table.zeros, table.entries)) and rows(
        chain["mask"], metric="removed"
    ).value.item() == pytest.approx(table.zeros.sum() / table.entries.sum())
    there = rows(
        chain["evaluation"], mask=chain["mask"], metric="accuracy", split="dev"
    )  # 27 puts the kept classifier on, too
    assert there.value.item() == rows(chain["mask"], metric="accuracy", split="dev").value.item()


def test_what_was_trained_alone_has_the_mask_in_its_weights(chain):
    task = load_task("synthetic-nli", settings=TASK_SETTINGS)
    for key, mask in (
        (chain["alone"], run_mask(chain["mask"])),
        (chain["of_imp"], run_mask(chain["imp"], 0.3)),
    ):
        net, _ = load_model(key, task, 0)
        for name, value in mask.items():
            assert (
                not net.get_parameter(name.removeprefix("weight/"))[~value].any()
                and 0.2 < (~value).float().mean() < 0.6
            )


def test_iterative_pruning_keeps_what_it_scored(chain):
    from safetensors.torch import load_file

    task, found = load_task("synthetic-nli", settings=TASK_SETTINGS), find_run(chain["imp"])
    net, words = load_model(chain["model"], task, 0)
    net.load_state_dict(load_file(found.artefact("weights/0.7.safetensors")))
    again, answers = score_sets(
        net, words, chosen_sets(task, ["report", "ood"]), task, max_length=64, sparsity=0.7
    )
    assert again == [r for r in measured(found, again) if r["sparsity"] == 0.7]
    kept = pd.read_parquet(found.artefact("predictions.parquet"))
    pd.testing.assert_frame_equal(answers, kept[kept.sparsity == 0.7].reset_index(drop=True))
    assert watched_rows({"step": 1}, {}, task) == [] and all(
        not net.get_parameter(n.removeprefix("weight/"))[~m].any()
        for n, m in run_mask(chain["imp"], 0.7).items()
    )


def test_a_stopped_training_has_the_full_schedule(chain):
    log = pd.read_parquet(find_run(chain["taught"]).artefact("loss.parquet"))
    assert list(log.step) == [1, 2, 3, 4] and log.learning_rate.iloc[-1] == pytest.approx(2e-3 * (1 - 3 / 20))


REFUSED = [
    ("finetune", dict(loss="poe"), "loss poe needs bias, a run of bias_model"),
    ("train_mask", dict(loss="peo"), "did you mean 'poe'|poe"),
    ("train_mask", dict(metric="f2"), "no metric 'f2'"),
    ("train_mask", dict(metric="bleu"), "no metric 'bleu'"),
    ("finetune", dict(metric="bleu"), "no metric 'bleu'"),
    ("train_mask", dict(loss="poe", bias="{bias}", ood_training=True), "choose ce"),
    ("finetune", dict(mask="{imp}", sparsity=0.25), "no mask at sparsity 0.25: choose 0.1, 0.2"),
    ("finetune", dict(mask="{mask}", sparsity=0.7), "choose 0.5"),
    (
        "iterative_pruning",
        dict(loss="poe", bias="{bias}", settings={"train": 64, "dev": 20, "ood": 20}),
        "'train': 320",
    ),
    ("finetune", dict(loss="poe", bias="{model}"), "is no bias model"),
    ("finetune", dict(loss="distill", teacher="{model}"), r"sets \[train\]"),
    ("finetune", dict(stop_at=999), "beyond the training's"),
    (
        "train_mask",
        dict(train_classifier=True, unit_options={"classifier": True}),
        "masked or trained, not both",
    ),
    ("bias_model", dict(stored="nowhere.npy"), "no file"),
    ("bias_model", dict(one_against="entialment"), "entailment"),
]


@pytest.mark.parametrize(
    "case",
    range(len(REFUSED)),
    ids=[f"{n.split('_')[0]} {next(iter(g))} {words[:12]}" for n, g, words in REFUSED],
)
def test_refused_before_work(chain, case):
    notebook, given, words = REFUSED[case]
    given = {"settings": TASK_SETTINGS} | {
        k: v.format(**chain) if isinstance(v, str) else v for k, v in given.items()
    }
    with pytest.raises(Exception, match=words):
        here(notebook, **given)
    with pytest.raises(Exception, match="not finished|no run"):
        find_run(run_key(notebook, given))


def test_refused_when_planned(tmp_path):
    for notebook, wrong, words in [
        ("finetune", {"loss": "peo"}, "poe"),
        ("train_mask", {"loss": "poe"}, "bias_model"),
        ("bias_model", {"stored": "nowhere.npy"}, "no file"),
    ]:
        (path := tmp_path / "study.yaml").write_text(
            f"stages:\n  one: {{notebook: {notebook}, set: {json.dumps(wrong)}}}\n"
        )
        with pytest.raises(SweepError, match=f"stage one: .*{words}"):
            check_inputs(load_sweep(path).planned, path)


def test_controls(outputs, monkeypatch, tmp_path):
    "Frozen scores give the mask of the smallest magnitudes; a shuffled bias model has the same numbers in other rows; the published pruning is cross-entropy without rewinding."
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    short = {"settings": {"train": 64, "dev": 20, "ood": 20}}
    frozen = here("train_mask", model="tiny", score_lr=0.0, sparsity=0.4, **short)
    assert frozen["ratio"] == 0 and all(
        torch.equal(
            m,
            topk_mask(
                frozen["net"].get_parameter(n.removeprefix("weight/")).detach().abs(),
                m.numel() - removed_count(m.numel(), 0.4),
            ),
        )
        for n, m in frozen["mask"].items()
    )
    plain, shuffled = (here("bias_model", shuffled=s, **short)["run"].key for s in (False, True))
    a, b = (bias_column(key, load_task("synthetic-nli", **short)) for key in (plain, shuffled))
    assert not np.array_equal(a, b) and np.array_equal(np.sort(a, 0), np.sort(b, 0))
    short |= {"epochs": 5.0, "lr": 1e-3}
    ce, old = (
        here("iterative_pruning", **given, **short)
        for given in (dict(loss="ce"), dict(loss="poe", bias=plain, rewind=True, legacy=True))
    )
    assert ce["run"].key != old["run"].key and all(
        torch.equal(ce["found"].masks[s][k], m) for s in (0.1, 0.9) for k, m in old["found"].masks[s].items()
    )


def test_rows_out_of_distribution_and_a_whole_ranking(outputs, monkeypatch, tmp_path):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    small = {"settings": {"train": 64, "dev": 20, "ood": 20}, "ood_training": True, "lr": 1e-3}
    found = here(
        "train_mask",
        masker_options={"scope": "global", "rise": "stepwise", "initial": 0.1, "init": "soft"},
        unit_options={"pooler": False},
        score_lr=1e-3,
        evaluate_every=8,
        **small,
    )
    assert (
        len(found["studied"].splits["train"]) == 84
        and len(set(found["zeros"].zeros / found["zeros"].entries)) > 1
        and "weight/bert.pooler.dense.weight" not in found["mask"]
    )
    assert len(here("finetune", **small)["studied"].splits["train"]) == 84
    pruned = here("iterative_pruning", scope="global", epochs=5.0, **small)
    assert load_mask(pruned["run"].artefact("masks/0.9.safetensors")).keys() == pruned["saved"][0.9].keys()
