"""Combinations of masker, units and loss that no study ran, each a smoke test of the one experiment; and a masker of one's own, by name."""

import json
import sys

import pytest
import torch
from toys import made

from lib.core.folders import find_run
from lib.core.sweeps import load_sweep
from lib.maskers.maskers import MASKERS, MaskerRow
from lib.maskers.passes import Policy
from lib.models.masks import load_mask

SMALL = {"settings": {"train": 96, "dev": 40, "ood": 20}, "max_steps": 4, "batch_size": 16, "max_length": 64}
SMALL |= {"tiny": {"layers": 2, "width": 32, "heads": 4, "vocab": 500, "length": 64}}
GENDER = SMALL | {"task": "synthetic-gender", "settings": {"train": 300, "dev": 30}, "max_length": 32}
GENDER |= {"tiny": {"layers": 1, "width": 32, "heads": 2, "vocab": 400, "length": 32}}


@pytest.fixture(autouse=True)
def outputs(monkeypatch, tmp_path_factory):
    "A folder of their own for all runs of a test"
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))


def who(run):
    return find_run(run.key).result["identity"]


@pytest.fixture
def bias():
    return made("bias_model", settings=SMALL["settings"])["run"].key


def test_product_of_experts_with_heads_of_a_differentiable_subset(bias):
    given = dict(masker="dsp", k=3, masker_options={"cooldown": 4}, model="tiny", frozen=False, score_lr=0.5)
    run = made("train_mask", loss="poe", bias=bias, **given, **SMALL)["run"]
    assert load_mask(run.artefact("mask.safetensors"))["head"].sum() == 3
    assert who(run)["loss"] == "poe" and who(run)["units"] == "head" and who(run)["sparsity"] == 5 / 8


def test_movement_blocks_with_confidence_regularisation(bias):
    model = made("finetune", lr=1e-3, **SMALL)["run"].key
    teacher = made("evaluate", model=model, sets=["train"], settings=SMALL["settings"], max_length=64)[
        "run"
    ].key
    given = dict(masker="movement", unit_options={"block": "8x8"}, sparsity=0.25, score_lr=0.05)
    run = made("train_mask", loss="confreg", bias=bias, teacher=teacher, model=model, **given, **SMALL)["run"]
    mask = load_mask(run.artefact("mask.safetensors"))
    matrices = [m for n, m in mask.items() if n.endswith("query.weight")]
    assert matrices and all(m.sum() * 4 == 3 * m.numel() for m in matrices)


def test_mask_training_against_gender():
    given = dict(loss="debiasing", head="masked_lm", loss_options={"alpha": 0.8, "beta": 0.2}, score_lr=0.05)
    scope = made("train_mask", masker="mask_training", sparsity=0.5, keep="last", **given, **GENDER)
    mask = load_mask(scope["run"].artefact("mask.safetensors"))
    assert all(int((m == 0).sum()) == m.numel() // 2 for m in mask.values())
    assert {"log_odds", "projection", "removed"} <= {r["metric"] for r in scope["result"]["metrics"]}


def test_a_search_that_moves_nothing_says_so(recwarn):
    for rate, void in (
        (1e-6, True),
        (0.05, False),
        (0.0, False),
    ):  # frozen scores are a control, and asked for
        recwarn.clear()
        made("train_mask", masker="mask_training", sparsity=0.5, score_lr=rate, **SMALL)
        assert any("the search is void" in str(w.message) for w in recwarn) == void, rate


def test_hard_concrete_over_neurons():
    given = dict(masker="hard_concrete", units="ffn", masker_options={"penalty": 0.1}, score_lr=0.05)
    scope = made("train_mask", **given, **SMALL)
    mask = load_mask(scope["run"].artefact("mask.safetensors"))["ffn"]
    assert mask.shape == (2, 128) and 0 < mask.sum() < mask.numel(), mask.sum()
    assert who(scope["run"])["rule"] == "hard_concrete"


class Above(Policy):
    "Units whose scores are above their mean"

    def begin(self, masker, generator):
        return {k: torch.randn(s, generator=generator) for k, s in masker.layout.scores.items()}

    def decide(self, masker):
        return {k: s > s.mean() for k, s in masker.named_scores().items()}


def test_a_masker_of_ones_own(monkeypatch, tmp_path):
    from dataclasses import dataclass

    monkeypatch.setitem(MASKERS, "above", MaskerRow(dataclass(frozen=True)(Above)))
    for units, more in (("head", {}), ("weight", {"loss": "ce"})):
        run = made("train_mask", masker="above", units=units, keep="last", **more, **SMALL)["run"]
        assert who(run)["units"] == units and 0 < who(run)["sparsity"] < 1
    sys.modules["mine"] = type(sys)("mine")
    sys.modules["mine"].row = MASKERS["above"]
    run = made("train_mask", masker="mine:row", units="head", keep="last", **SMALL)["run"]
    assert load_mask(run.artefact("mask.safetensors"))["head"].sum() > 0
    (path := tmp_path / "study.yaml").write_text(
        f"stages:\n  one: {{notebook: train_mask, set: {json.dumps({'masker': 'mine:row', 'units': 'head'})}}}\n"
    )
    assert load_sweep(path).planned[0].params["masker"] == "mine:row"


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(masker="dsp", units="weight", k=3), "takes head, ffn, mlp, and not weight"),
        (dict(masker="dsp", sparsity=0.5, k=3), "dsp has no sparsity"),
        (dict(masker="dps"), "did you mean 'dsp'"),
        (dict(masker="dsp", k=3), "trains gates on a model that was fine-tuned|cooldown 25000"),
        (dict(masker="mask_training", loss="peo"), "poe"),
        (dict(head="masked_lm"), "only loss debiasing"),
        (dict(draw=1), "draw tells random masks apart"),
        (dict(masker="movement", unit_options={"blok": "8x8"}), "did you mean 'block'"),
    ],
)
def test_refused_before_anything_is_read(given, words):
    if given.get("masker") == "dsp" and given.get("k") == 3 and len(given) == 2:
        given = given | {"model": "tiny"}
    with pytest.raises(Exception, match=words):
        made("train_mask", **(SMALL | given))
