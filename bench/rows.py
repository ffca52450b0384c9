"""Attribution: importance of heads beside training, features of training rows, TRAK, EK-FAC; beside their peers."""

import contextlib
import copy
import gc
import tempfile
import time
import warnings

import numpy as np
import torch
from common import Row, batch, bert, emit, peak_gib, peer, seconds

from lib.attribution.importance import Importance, importance
from lib.attribution.influence import _Rows, _stacked, _task, kronfluence_influence
from lib.attribution.per_example import Projector, RowData, set_features
from lib.data.tasks import load_task
from lib.training.loading import load_models


def training(model, data: list) -> None:
    "Forward and backward of ordinary training, without the optimiser's step"
    model.train()
    for one in data:
        model(**one).loss.backward()
        model.zero_grad()


RAW = Importance("example", layer_norm=False, min_max=False)  # as the gradients say it


def heads_one_by_one(model, data: list) -> torch.Tensor:
    "Michel's loop: a gate that all examples share, and so a backward pass for each example"
    rows = [{k: v[i : i + 1] for k, v in one.items()} for one in data for i in range(len(one["labels"]))]
    return torch.stack([importance(model, [row], RAW)["head"] for row in rows]).sum(0)


def importance_rows(rounds: int) -> None:
    "Row 4"
    model, data = bert(256, 4, labels=2), [batch(32, labels=2) for _ in range(2)]
    calls = {"ours": lambda: importance(model, data), "training": lambda: training(model, data)}
    found = seconds(calls, rounds)
    what = "importance, exact per example / training forward + backward"
    emit(Row("4", what, found["ours"] / found["training"], 0.55))
    few = [{k: v[:8] for k, v in data[0].items()}]
    ours, loop = importance(model, few, RAW)["head"], heads_one_by_one(model, few)
    assert torch.allclose(ours, loop, rtol=1e-4, atol=1e-9), "the importances differ"
    calls = {"ours": lambda: importance(model, few, RAW), "loop": lambda: heads_one_by_one(model, few)}
    found = seconds(calls, 3)
    what = "importance, exact per example / a backward pass for each example (Michel's loop)"
    emit(Row("4", what, found["ours"] / found["loop"], None))
    captum_row(model, few)


def captum_row(model, data: list) -> None:
    "Captum's ablation of the same heads: a forward pass for each"
    what = "importance of 16 heads, all at once / captum's feature ablation"
    captum = peer("captum", "captum.attr", "4", what)
    if captum is None:
        return
    from lib.models.units import attach

    def loss(mask):
        with torch.no_grad(), attach(model, {"head": mask.view(4, 4)}):
            return model(**data[0]).loss[None]

    ablation = captum.FeatureAblation(loss)
    model.eval()
    ones = torch.ones(1, 16)
    left_out = loss(torch.cat([torch.zeros(1, 1), torch.ones(1, 15)], 1)) - loss(ones)
    assert torch.allclose(-ablation.attribute(ones)[0, 0], left_out, atol=1e-6), "the ablations differ"
    found = seconds({"ours": lambda: importance(model, data), "captum": lambda: ablation.attribute(ones)}, 3)
    emit(Row("4", what, found["ours"] / found["captum"], None))


def feature_rows(rounds: int) -> None:
    "Row 5"
    model, data = bert(256, 4, dropout=0.0, labels=2).eval(), batch(32, labels=2)
    projector = Projector(model, 512)

    def backward():
        model.zero_grad()
        model(**data).loss.backward()

    found = seconds({"ours": lambda: projector(data), "backward": backward}, rounds)
    emit(
        Row(
            "5",
            "row features of 512 directions / forward and backward of the batch",
            found["ours"] / found["backward"],
            0.75,
        )
    )


def two_sides() -> tuple:
    "A BERT for us, the same for the peer, and a batch"
    model = bert(256, 2, dropout=0.0, labels=2).eval()
    return model, copy.deepcopy(model), batch(8, labels=2)


def dattri_row(rounds: int) -> None:
    "LoGra collects, with hooks as ours, a product of two projections for each linear layer"
    what = "row features of 256 directions, all linear layers / dattri's LoGra"
    if peer("dattri", "dattri.algorithm.logra", "19", what, 1.0) is None:
        return
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask

    model, theirs, data = two_sides()
    names = [n for n, m in theirs.named_modules() if isinstance(m, torch.nn.Linear) and "pooler" not in n]
    rows = [{k: v[i] for k, v in data.items()} for i in range(8)]
    loader = torch.utils.data.DataLoader(rows, batch_size=8)
    task = AttributionTask(lambda m, one, device: m(**one).loss * 8, theirs, [theirs.state_dict()])
    logra = LoGraAttributor(task, names, hessian="Identity", proj_dim=256)
    ours = Projector(model, 256, patterns=[f"^{n}$" for n in names])
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it writes where one stands
        logra.cache(loader)  # its projections are made once, as ours
        calls = {"ours": lambda: ours(data, "loss"), "theirs": lambda: logra.cache(loader)}
        found = seconds(calls, rounds, warmup=0)
    emit(Row("19", what, found["ours"] / found["theirs"], 1.0))


def bergson_row(rounds: int) -> None:
    "Its collector hooks the same linear layers and projects each gradient from both sides, 16 x 16"
    what = "row features of 256 directions, all linear layers / bergson's collector"
    if peer("bergson", "bergson.collector.in_memory_collector", "19", what, 1.0) is None:
        return
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    model, theirs, data = two_sides()
    theirs.requires_grad_(False)
    theirs.get_input_embeddings().requires_grad_(True)  # as its own driver has it
    layers = theirs.base_model.encoder
    names = [f"encoder.{n}" for n, m in layers.named_modules() if isinstance(m, torch.nn.Linear)]
    rows = Dataset.from_dict({"input_ids": data["input_ids"].tolist()})
    how = GradientProcessor(projection_dim=16)

    def collected():
        setting = IndexConfig(run_path="unused", projection_dim=16)
        own = dict(data=rows, cfg=setting, processor=how, target_modules=set(names))
        collector = InMemoryCollector(model=theirs.base_model, **own)
        with collector:
            losses = torch.nn.functional.cross_entropy(
                theirs(**data).logits, data["labels"], reduction="none"
            )
            losses.sum().backward()
            collector.process_batch(list(range(8)), losses=losses)
        collector.teardown()
        return torch.cat([g.float() for g in collector.gradients.values()], 1)

    ours = Projector(model, 256, patterns=[f"^{model.base_model_prefix}.{n}$" for n in names])
    grams = [f @ f.T for f in (ours(data, "loss")[0] * 8, collected())]
    alike = torch.corrcoef(torch.stack([g.flatten() for g in grams]))[0, 1]
    assert alike > 0.9, f"inner products of rows agree to {alike:.2f} only"
    found = seconds({"ours": lambda: ours(data, "loss"), "theirs": collected}, rounds)
    emit(Row("19", what, found["ours"] / found["theirs"], 1.0, note=f"inner products agree to {alike:.2f}"))


def trak_memory() -> None:
    "Row 12"
    code = """
import numpy as np
from lib.attribution.trak import trak
rng = np.random.default_rng(0)
train, query = (rng.standard_normal((n, 1024), np.float32) for n in (10_000, 1_000))
assert trak([train], [query], [np.ones(10_000)], 10**6).shape == (10_000, 1_000)"""
    what = "TRAK scores, 10,000 x 1,000 rows in 1,024 directions: peak memory"
    emit(Row("12", what, peak_gib(code), 0.6, "GiB"))


def traker_rows(rounds: int) -> None:
    "Row 19: projections of the same gradients, 491,000 parameters and 512 directions"
    what = "`normal` features of 512 rows, 491,520 parameters, 512 directions / traker's projector"
    trak = peer("traker", "trak.projectors", "19", what, 1.0)
    if trak is None:
        return
    p, k = 491_520, 512
    net = torch.nn.Linear(p // 480, 480, bias=False)
    net.device, grads = torch.device("cpu"), torch.randn(32, p)
    ours = Projector(net, k, "normal", patterns=[""])
    theirs = trak.BasicProjector(p, k, 0, trak.ProjectionType.normal, "cpu")
    calls = {"ours": lambda: ours._dense("weight", grads), "theirs": lambda: theirs.project(grads, 0)}
    began = time.perf_counter()
    a = calls["ours"]()  # draws its projection, 1 GiB, and keeps it
    drawn, b = time.perf_counter() - began, calls["theirs"]()
    lengths = [float((x**2).sum(1).mean() / (grads**2).sum(1).mean() / k) for x in (a, b)]
    assert all(abs(length - 1) < 0.1 for length in lengths), f"lengths are not kept: {lengths}"
    found, batches = seconds(calls, rounds, warmup=0), 16
    ratio = (drawn + (batches - 1) * found["ours"]) / (batches * found["theirs"])
    note = f"drawn once in {drawn:.1f} s, then {found['ours']:.2f} s a batch; traker {found['theirs']:.2f} s a batch"
    emit(Row("19", what, ratio, 1.0, note=note))


class Free:
    "A projector that computes nothing: what is left is reading, tokenising, batching and storing"

    def __init__(self, model, k: int):
        self.model, self.k, self.kind, self.seed, self.names = model, k, "free", 0, []

    def __call__(self, one: dict, start: int = 0):
        n = len(one["labels"])
        return torch.zeros(n, self.k), torch.zeros(n, self.model.config.num_labels)


def overhead_row() -> None:
    "Row 19a"
    task = load_task("synthetic-nli", settings={"train": 8000, "dev": 100, "ood": 100})
    (model,), tokenizer = load_models(["tiny"], task, 0)
    began = time.process_time()
    set_features(
        Free(model, 512), RowData(tokenizer, task.splits["train"], task.splits["dev"]), task.splits["train"]
    )
    took = time.process_time() - began
    emit(
        Row(
            "19a",
            "TRAK features of 8,000 short rows: all but the gradients and projections",
            took,
            1.0,
            "s CPU",
        )
    )


def kronfluence_alone(model, data: RowData, patterns, frozen: bool) -> np.ndarray:
    "The same scores by kronfluence's own calls, with or without the collector frozen"
    from kronfluence import Analyzer, FactorArguments, ScoreArguments, prepare_model
    from kronfluence.utils.dataset import DataLoaderKwargs

    from lib.attribution.influence import _counted, _linear_names

    net = copy.deepcopy(model).float().eval()
    names = _linear_names(net, patterns)
    task = _task(names, _counted(net, names))
    if frozen:
        gc.collect()
        gc.freeze()
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        tempfile.TemporaryDirectory() as folder,
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(data.seed)
        own = dict(cpu=True, disable_tqdm=True, output_dir=folder)
        analyzer = Analyzer("scores", prepare_model(net, task), task, **own)
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=_stacked))
        train, query = _Rows(data, data.train), _Rows(data, data.query)
        size = data.batch_size
        analyzer.fit_all_factors(
            "f", train, per_device_batch_size=size, factor_args=FactorArguments(strategy="ekfac")
        )
        sizes = dict(per_device_train_batch_size=size, per_device_query_batch_size=size)
        settings = ScoreArguments(damping_factor=None)
        analyzer.compute_pairwise_scores("p", "f", query, train, **sizes, score_args=settings)
        found = analyzer.load_pairwise_scores("p")["all_modules"].T.float().numpy()
    if frozen:
        gc.unfreeze()
    return found


def kronfluence_rows(rounds: int) -> None:
    "Rows 13 and 14"
    if peer("kronfluence", "kronfluence", "13", "EK-FAC: our wrapper / kronfluence alone", 1.0) is None:
        return
    task = load_task("synthetic-nli", settings={"train": 128, "dev": 32, "ood": 30})
    (model,), tokenizer = load_models(["tiny"], task, 0)
    data = RowData(tokenizer, task.splits["train"], task.splits["dev"], max_length=48)
    for number, what, patterns in (("13", "all layers", None), ("14", "of the classifier alone", "own")):
        calls = {
            "ours": lambda p=patterns: kronfluence_influence(model, data, "ekfac", p),
            "alone": lambda p=patterns: kronfluence_alone(model, data, p, False),
            "frozen": lambda p=patterns: kronfluence_alone(model, data, p, True),
        }
        first, *others = (call() for call in calls.values())
        assert all(np.array_equal(first, other) for other in others), "the scores differ"
        found = seconds(calls, rounds, warmup=0)
        fastest = min(found["alone"], found["frozen"])
        note = f"kronfluence alone {found['alone']:.2f} s, with the garbage collector frozen {found['frozen']:.2f} s"
        emit(
            Row(
                number,
                f"EK-FAC, {what}: our wrapper / the faster of kronfluence's two",
                found["ours"] / fastest,
                1.0,
                note=note,
            )
        )


def watching_row(rounds: int) -> None:
    "Row 20, from the seconds of a step and of a watched row at MiniLM's size"
    model, one = bert(), batch(32)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        optimiser.zero_grad()
        model.train()(**one).loss.backward()
        optimiser.step()

    def look():
        with torch.no_grad():
            model.eval()(**one)

    found, steps, looks = seconds({"step": step, "look": look}, rounds), 300, 7

    def share(rows: int) -> float:
        spent = looks * rows / 32 * found["look"]
        return spent / (spent + steps * found["step"])

    budget = max(1000, steps // looks * 32)
    what = f"watching sets during a search of 300 steps, 7 looks at {budget:,} rows: share of the time"
    emit(
        Row(
            "20",
            what,
            share(budget),
            0.25,
            note=f"computed from a step and a row; of 41,000 rows {share(41_000):.2f}",
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    importance_rows(7)
    feature_rows(7)
    trak_memory()
    traker_rows(3)
    overhead_row()
    kronfluence_rows(3)
    watching_row(5)
    dattri_row(3)
    bergson_row(3)
