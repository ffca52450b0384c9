"""Row scores as an explainer of quanda. The slow test runs two of its metrics where quanda is installed; the quick one the same class on a stand-in of its base class."""

import importlib.util
import sys
import types
from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.attribution.per_example import RowData
from lib.attribution.scores import row_scores
from lib.core.base import ROOT
from lib.data.tasks import load_task, tokenized
from lib.training.loading import tiny_model
from lib.training.recipes import classification
from lib.training.trainer import Optim, train

OPTIONS = {"trak": {"k": 16}, "last_layer": {"damping": 1e-3}}


class Base(ABC):
    "What quanda documents: tasks that are accepted, the model and its device, and `explain`"

    def __init__(self, model, train_dataset, task="image_classification", checkpoints=None, **more):
        assert task in self.accepted_tasks
        self.model, self.train_dataset, self.device = (
            model,
            train_dataset,
            str(next(model.parameters()).device),
        )

    @abstractmethod
    def explain(self, test_data, targets): ...


def adapter(base=None):
    "The adapter's module, on quanda or on a stand-in"
    if base:  # the module is a stand-in too
        sys.modules["quanda.explainers"].Explainer = base
    spec = importlib.util.spec_from_file_location(
        "quanda_explainer", ROOT / "adapters" / "quanda_explainer.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "(model, tokenizer, texts of training rows with some labels flipped, their positions, queries)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIEVE_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        task = load_task("synthetic-nli", settings={"train": 80, "dev": 20, "ood": 10})
        model, tokenizer = tiny_model(task, 0, dict(layers=1, width=16, heads=2, vocab=200, length=48))
        rows, flipped = task.splits["train"], list(range(0, 80, 10))
        labels = [1 - y if i in flipped else y for i, y in enumerate(rows["label"][:])]
        rows = rows.remove_columns("label").add_column("label", labels, new_fingerprint="flipped")
        dev, task = task.splits["dev"], replace(task, splits={"train": rows})
        train(model, classification(tokenizer, task), Optim(lr=1e-2, max_steps=60))
        yield model.eval(), tokenizer, rows, flipped, dev


def padded(rows, tokenizer):
    "(inputs, labels) of a batch"
    found = dict(
        tokenizer.pad({"input_ids": rows["input_ids"][:], "token_type_ids": rows["token_type_ids"][:]})
    )
    return {n: torch.tensor(v) for n, v in found.items()}, torch.tensor(rows["labels"][:])


def check(explainers, trained, method):
    model, tokenizer, rows, _, dev = trained
    numbers, asked = tokenized(rows, tokenizer), tokenized(dev, tokenizer)
    one = explainers.SieveExplainer(model, numbers, tokenizer, method, OPTIONS[method])
    found = one.explain(*padded(asked, tokenizer))
    ours = row_scores(method, [model], RowData(tokenizer, rows, dev), **OPTIONS[method])
    assert found.shape == (20, 80)
    assert np.allclose(found.T.numpy(), ours, rtol=1e-3, atol=1e-5 * np.abs(ours).max())
    own = row_scores(method, [model], RowData(tokenizer, rows, rows), **OPTIONS[method])
    ranks = np.unique(own.diagonal(), return_inverse=True)[1]
    assert np.array_equal(np.unique(one.self_influence().numpy(), return_inverse=True)[1], ranks)
    return one


@pytest.mark.parametrize("method", OPTIONS)
def test_on_the_documented_interface(method, trained, monkeypatch):
    for name in ("quanda", "quanda.explainers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    explainers = adapter(Base)
    check(explainers, trained, method)
    with pytest.raises(ValueError, match="trak has no option"):
        explainers.SieveExplainer(trained[0], None, trained[1], "trak", {"damping": 1})
    with pytest.raises(AssertionError):
        explainers.SieveExplainer(trained[0], None, trained[1], task="causal_lm")


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_two_of_its_metrics(method, trained):
    if not importlib.util.find_spec("quanda"):
        pytest.skip(
            "quanda is not installed: pip install -r adapters/requirements.txt, into an environment of its own"
        )
    from quanda.metrics.downstream_eval import ClassDetectionMetric, MislabelingDetectionMetric

    model, tokenizer, rows, flipped, dev = trained
    one, numbers = check(adapter(), trained, method), tokenized(rows, tokenizer)
    inputs, labels = padded(tokenized(dev, tokenizer), tokenizer)
    metric, found = ClassDetectionMetric(model, numbers, s=5), one.explain(inputs, labels)
    metric.update(found, labels)
    best = found.topk(5, 1).indices
    by_hand = (torch.tensor(rows["label"][:])[best] == labels[:, None]).double().mean()
    assert metric.compute()["score"] == pytest.approx(float(by_hand), abs=1e-6)
    metric = MislabelingDetectionMetric(
        model, numbers, flipped, precomputed_self_influence=one.self_influence()
    )
    score = metric.compute()["score"]
    own = row_scores(method, [model], RowData(tokenizer, rows, rows), **OPTIONS[method]).diagonal()
    order = np.argsort(-own, kind="stable").tolist()
    curve = np.cumsum([i in flipped for i in order]) / len(flipped)
    assert score == pytest.approx(np.trapezoid(curve) / 80, abs=1e-6)
