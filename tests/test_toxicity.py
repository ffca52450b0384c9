"""ToxiGen and HateXplain as they really are: the published counts, disjoint parts; and synthetic toxicity in a trained model."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.attribution.alignment import (
    group_alignment,
    random_row_scores,
    recovery,
    retain_rows,
    train_on,
)
from lib.core.base import DataError
from lib.data.groups import (
    BIASED_GROUPS,
    GROUP_SIZES,
    GROUP_SPLITS,
    RawRows,
    Sampling,
    cell_sizes,
    hate_rows,
    hate_sample,
    read_posts,
    same_text,
    toxigen_annotated,
)
from lib.data.tasks import group_counts, load_task
from lib.metrics.groups import group_losses, group_metrics

CELLS = {  # published, neutral / toxic
    "dev": {"African": (18, 292), "Islam": (24, 180), "Refugee": (31, 46), "Women": (26, 125)},
    "test": {"African": (21, 294), "Islam": (21, 173), "Refugee": (32, 53), "Women": (21, 126)},
}


@pytest.fixture
def local(real_data, monkeypatch):
    "The folder of toxicity data, found by the library too."
    folder = real_data("toxicity")
    monkeypatch.setenv("SIEVE_DATA", str(folder.parent))
    return folder


def texts(task):
    return {s: set(same_text(pd.Series(task.splits[s]["text_a"]))) for s in GROUP_SPLITS}


@pytest.mark.parametrize(
    "split, official, qualify, several, total, biased",
    [("dev", 1922, 693, 48, 174, BIASED_GROUPS["hatexplain"]), ("test", 1924, 690, 49, 168, ())],
)
def test_hatexplain_cells_are_the_published_ones(local, split, official, qualify, several, total, biased):
    posts = read_posts(RawRows("hatexplain", local / "hatexplain"), split)
    rows = hate_rows(posts)
    named = rows.id.str.split("/").str[0].value_counts()
    assert (len(posts), len(named), (named > 1).sum()) == (official, qualify, several) and rows.id.is_unique
    assert {g: (cell_sizes(rows)[g, 0], cell_sizes(rows)[g, 1]) for g in CELLS[split]} == CELLS[split]
    assert len(hate_rows(posts, ties="neutral")) == len(rows)  # no post of these is tied
    assert len(hate_sample(rows, split, biased)) == total


def test_toxigen_annotated_cells(local):
    raw = pd.read_csv(local / "toxigen" / "annotated.csv")
    rows = toxigen_annotated(raw)
    assert len(rows) == 8960 and rows.group.nunique() == 13 and rows.id.is_unique
    assert min(cell_sizes(rows).items(), key=lambda x: x[1]) == (("latino", 0), 256)
    assert not rows.text_a.str.startswith(("b'", 'b"')).any() and (
        toxigen_annotated(raw, cut=True).text_a == rows.text_a
    ).mean() == pytest.approx(0.9515, abs=1e-4)


@pytest.mark.parametrize(
    "name, size, cell, small", [("toxigen", 9200, 400, 100), ("hatexplain", 1544, 213, 53)]
)
def test_the_published_training_sets(local, name, size, cell, small):
    task = load_task(name, "local")
    rows = task.splits["train"].to_pandas()
    assert len(rows) == size and rows.id.is_unique
    assert all(
        n == (small if y == 0 and g in BIASED_GROUPS[name] else cell)
        for (g, y), n in cell_sizes(rows).items()
    )


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("toxigen", None),
        ("toxigen", dict(align=50, select=50, test=100)),
        ("hatexplain", None),
        ("hatexplain", dict(align=10, select=10, test=30)),
    ],
)
@pytest.mark.parametrize("seed", [42, 0, 1])
def test_parts_share_no_text_and_are_in_equal_cells(local, name, sizes, seed):
    task = load_task(name, "local", sampling=Sampling(sizes, seed=seed))
    found = texts(task)
    assert not any(found[a] & found[b] for i, a in enumerate(GROUP_SPLITS) for b in GROUP_SPLITS[:i])
    table = group_counts(task).set_index("split")
    wanted = GROUP_SIZES[name] | (sizes or {})
    for split in GROUP_SPLITS[1:]:
        assert len({*table.loc[split].neutral, *table.loc[split].toxic}) == 1
        if wanted[split]:
            assert set(table.loc[split].neutral) == {wanted[split] // 2}
    again = load_task(name, sampling=Sampling(sizes, seed=seed))
    assert all(task.splits[s][:] == again.splits[s][:] for s in GROUP_SPLITS) and len(task.files) == (
        2 if name == "toxigen" else 3
    )


def test_the_published_protocol(local):
    "Targets are the reported rows, and selection rows of ToxiGen are training rows of three groups."
    task = load_task("toxigen", "local", sampling=Sampling(protocol="thesis"))
    assert [len(task.splits[s]) for s in GROUP_SPLITS] == [9200, 650, 1840, 650] and task.splits["align"][
        :
    ] == task.splits["test"][:]
    assert pd.Series(task.splits["select"]["group"]).value_counts().to_dict() == {
        "physical_dis": 800,
        "native_american": 540,
        "women": 500,
    }  # 80 % of 1000, 675, 625
    assert set(task.splits["select"]["id"]) <= set(task.splits["train"]["id"])
    task = load_task("hatexplain", "local", sampling=Sampling(protocol="thesis"))
    assert [len(task.splits[s]) for s in GROUP_SPLITS] == [1544, 168, 174, 168] and task.splits["align"][
        :
    ] == task.splits["test"][:]


def test_texts_that_stand_in_two_sets(local):
    "Why the parts are made free of training texts."
    train, rows = (
        pd.read_csv(local / "toxigen" / "thesis_train.csv"),
        toxigen_annotated(pd.read_csv(local / "toxigen" / "annotated.csv")),
    )
    assert train.text.duplicated().sum() == 28 and rows.text_a.isin(set(train.text)).sum() == 121
    assert same_text(rows.text_a).isin(set(same_text(train.text))).sum() >= 218


@pytest.mark.parametrize(
    "name, sizes, words",
    [
        ("toxigen", dict(test=600), "group 'latino' has"),
        ("hatexplain", dict(test=60), "group 'African' has"),
        ("toxigen", dict(train=100), "no file train.csv"),
        ("hatexplain", dict(train=100), "no file train.jsonl or dataset.json"),
    ],
)
def test_what_is_not_there_is_named(local, name, sizes, words):
    with pytest.raises(DataError, match=words) as caught:
        load_task(name, "local", sampling=Sampling(sizes))
    assert "\n" not in str(caught.value)


def trained(task, seed, steps=300):
    "A tiny model of the task's training rows, its tokenizer, and the accuracy of each group on test."
    from lib.training.loading import load_model
    from lib.training.recipes import classification, predict
    from lib.training.trainer import Optim, train

    net, tokenizer = load_model("tiny", task, seed, tiny=dict(layers=2, width=64, heads=4))
    optim = Optim(lr=2e-3, max_steps=steps, batch_size=32, seed=seed, more={"disable_tqdm": True})
    train(net, classification(tokenizer, task, max_length=48), optim)
    rows = task.splits["test"]
    table = group_metrics(predict(net, tokenizer, rows, max_length=48), rows["label"], rows["group"])
    return net, tokenizer, table[table.group != "total"].set_index("group").accuracy


def last_layer(net, tokenizer, rows):
    "Inputs of the last layer with a one, and gradient of the loss by the logits: their products are the layer's gradients."
    from lib.training.recipes import batches, head_input

    found = []
    for batch in batches(net, tokenizer, rows, 64, 48):
        with torch.no_grad(), head_input(net, into := {}):
            logits = net(**batch).logits
        wrong = logits.softmax(1) - torch.nn.functional.one_hot(batch["labels"], 2)
        found.append((torch.nn.functional.pad(into["hidden"], (0, 1), value=1), wrong, logits))
    return [torch.cat(part).double().numpy() for part in zip(*found)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_poison_makes_the_worst_group_and_its_removal_mends_it(seed):
    "Removal of the poisoned rows mends, that of random rows does not, and low alignment finds the poison."
    task = load_task("synthetic-toxicity", sampling=Sampling())
    train, align = task.splits["train"], task.splits["align"]
    yes = np.array(train["poisoned"]) == "yes"
    net, tokenizer, base = trained(task, seed)
    (h, wrong, _), (at, missed, logits) = last_layer(net, tokenizer, train), last_layer(net, tokenizer, align)
    scores = (wrong @ missed.T) * (h @ at.T)
    ranked = group_alignment(scores, align["group"], group_losses(logits, align["label"], align["group"]))
    assert recovery(ranked, train["poisoned"]).auc[0] > 0.7
    out = {
        "poison": {"row": ~yes},
        "random": retain_rows(random_row_scores(len(yes), 0, seed), int(yes.sum())),
        "lowest": retain_rows({"row": ranked}, int(yes.sum())),
    }
    found = {k: trained(train_on(task, stay["row"]), seed)[2] for k, stay in out.items()}
    assert (
        base.idxmin() == found["random"].idxmin() == "vorin"
        and base.min() < 0.65
        and found["random"].min() < 0.65
    )
    assert (
        found["poison"].min() > 0.9
        and base.drop("vorin").min() > 0.9
        and found["lowest"].min() > base.min() + 0.1
    )
