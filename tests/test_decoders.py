"""Decoders and today's encoders through everything that BERT goes through: tasks, masks, importance, attribution, tests of bias; tiny models of random weights."""

import copy

import numpy as np
import pytest
import torch
from toys import made
from transformers import AutoConfig, AutoModelForMaskedLM

from lib.attribution.importance import IMPORTANCE_FORMS, Importance, importance
from lib.attribution.per_example import RowData
from lib.attribution.scores import SCORES, row_scores
from lib.core.base import DataError
from lib.core.folders import find_run
from lib.data.tasks import load_task
from lib.losses.objectives import Objective
from lib.maskers.iterative import prune_model
from lib.maskers.maskers import make_masker
from lib.maskers.passes import masked
from lib.metrics.bias_scores import sentence_vectors, synthetic_bias
from lib.models.architectures import parts
from lib.models.masks import load_mask
from lib.models.units import attach, ones
from lib.training.causal_text import TextTokenizer, causal_text, text_criterion
from lib.training.loading import load_model, tiny_model
from lib.training.masked_words import load_masked_lm
from lib.training.recipes import batches, classification, predict, summed_loss
from lib.training.trainer import Optim, ScoreOptim, train

SIZE = dict(layers=2, width=32, heads=4, vocab=300, length=48)
GROUPED = SIZE | {"type": "llama", "key_heads": 2}
KINDS = {"llama": GROUPED} | {k: SIZE | {"type": k} for k in ("gpt2", "gpt_neox", "qwen2", "modernbert")}
MASKERS = {  # masker, units -> options; and how many units stay of 8 heads, or None: a share of the weights
    ("mask_training", "weight"): (dict(sparsity=0.5), None),
    ("movement", "head"): (dict(sparsity=0.5), 4),
    ("dsp", "head"): (dict(k=4, cooldown=1), 4),
    ("straight_through", "head"): (dict(k=4), 4),
    ("hard_concrete", "head"): (dict(k=4), 4),
}


@pytest.fixture(autouse=True)
def outputs(monkeypatch, tmp_path_factory):
    "A folder of their own for all runs of a test"
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))


@pytest.fixture(scope="module")
def nli():
    return load_task("synthetic-nli", settings={"train": 64, "dev": 20, "ood": 10})


@pytest.fixture(scope="module")
def texts():
    return load_task("synthetic-gender", settings={"train": 64, "dev": 20})


def model_of(kind, what, nli, texts):
    "(model, tokenizer, task, recipe) of a classifier or of a causal language model"
    if what == "classifier":
        model, tokenizer = load_model("tiny", nli, 0, tiny=KINDS[kind])
        return model, tokenizer, nli, classification(tokenizer, nli, max_length=48)
    model, tokenizer = load_masked_lm("tiny", texts, 0, tiny=KINDS[kind], head="causal_lm")
    tokenizer = TextTokenizer(tokenizer)
    return model, tokenizer, texts, causal_text(tokenizer, texts, max_length=48)


PAIRS = [(k, "classifier") for k in KINDS if k != "qwen2"] + [("llama", "causal"), ("gpt2", "causal")]


@pytest.mark.parametrize("kind, what", PAIRS)
def test_every_masker_trains_and_keeps_what_it_was_asked_for(kind, what, nli, texts):
    base, _, _, recipe = model_of(kind, what, nli, texts)
    before = {n: p.clone() for n, p in base.named_parameters()}
    for (name, units), (options, kept) in MASKERS.items():
        model = copy.deepcopy(base)
        masker = make_masker(name, model, steps=3, units=units, **options)
        start = {n: p.detach().clone() for n, p in masker.named_parameters()}
        done = train(model, recipe, Optim(max_steps=3, batch_size=8), masker=masker, scores=ScoreOptim(0.1))
        assert any(not torch.equal(p, start[n]) for n, p in masker.named_parameters()), (
            name,
            "no score moved",
        )
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())  # frozen
        if kept:
            assert int(done.mask["head"].sum()) == kept, name
        else:
            left = sum(float(m.float().mean()) * m.numel() for m in done.mask.values())
            assert abs(left / sum(m.numel() for m in done.mask.values()) - 0.5) < 0.02, name


@pytest.mark.parametrize("kind, what", PAIRS)
def test_importance_is_the_gradient_of_a_gate(kind, what, nli, texts):
    model, tokenizer, task, _ = model_of(kind, what, nli, texts)
    model = model.double()
    cut = list(batches(model, tokenizer, task.splits["dev"], 7, 48))
    for form in IMPORTANCE_FORMS:
        kinds = ("head",) if form.startswith("context") else ("head", "mlp")
        found = importance(model, cut, Importance(form, kinds))
        assert all(v.isfinite().all() and v.max() > v.min() for v in found.values()), form
    raw = importance(model, cut, Importance("signed", layer_norm=False, min_max=False))["head"]
    step, close = (0.05, 0.02) if kind == "llama" else (1e-5, 1e-4)  # RMSNorm computes in single precision
    for at in [(0, 0), (1, 3)]:  # central differences of the loss summed over all rows
        values = []
        for sign in (1, -1):
            mask = ones(model, "head")["head"].double()
            mask[at] += sign * step
            with attach(model, {"head": mask}), torch.no_grad():
                values.append(sum(float(summed_loss(model, b)) for b in cut))
        slow = (values[0] - values[1]) / (2 * step)
        assert abs(raw[at] - slow) < close * abs(raw[at]) + 1e-6, (kind, what, at)


@pytest.mark.parametrize("kind", KINDS)
def test_product_of_experts_and_iterative_pruning(kind, nli, texts):
    model, tokenizer, _, _ = model_of(kind, "classifier", nli, texts)
    loss = Objective("poe")
    bias = np.log(np.full((64, 2), 0.5, np.float32))
    recipe = classification(tokenizer, nli, max_length=48, loss=loss, columns={"bias": bias})
    masker = make_masker("fixed", model, units="weight", unit_options={"classifier": False})
    with masked(model, masker, freeze=False):
        for _ in range(2):
            prune_model(masker, 0.5)
    left = {k: float(v.float().mean()) for k, v in masker.final().items()}
    assert left and all(abs(v - 0.25) < 0.02 for v in left.values())
    before = {n: p.clone() for n, p in model.named_parameters()}
    train(model, recipe, Optim(lr=1e-3, max_steps=4, batch_size=8), masker=masker.final())
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_decoder_learns_a_rule_and_a_text(nli, texts):
    task = load_task("synthetic-nli", settings={"train": 1000, "dev": 100, "ood": 20})
    model, tokenizer = load_model("tiny", task, 0, tiny=GROUPED)
    train(model, classification(tokenizer, task, max_length=48), Optim(lr=3e-3, max_steps=60))
    answers = predict(model, tokenizer, task.splits["dev"], max_length=48).argmax(1)
    assert (answers == np.asarray(task.splits["dev"]["label"])).mean() > 0.8
    model, tokenizer, _, recipe = model_of("llama", "causal", nli, texts)
    before = text_criterion(model, tokenizer, texts.splits["dev"], texts, 48)
    train(model, recipe, Optim(lr=5e-3, max_steps=40))
    assert text_criterion(model, tokenizer, texts.splits["dev"], texts, 48) > before + 2  # nats a token


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoders_answer_does_not_hang_on_the_padding(side, nli, tmp_path):
    model, tokenizer = tiny_model(nli, 0, GROUPED)
    tokenizer.padding_side = side
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), nli, 0)
    rows = nli.splits["dev"].select(range(6))
    whole = predict(model, tokenizer, rows, batch_size=6, max_length=48)
    single = np.concatenate(
        [predict(model, tokenizer, rows.select([i]), batch_size=1, max_length=48) for i in range(6)]
    )
    assert np.abs(whole - single).max() < 1e-5 and np.ptp(whole[:, 0]) > 0


@pytest.mark.parametrize("what", ["classifier", "causal"])
def test_every_score_of_rows(what, nli, texts):
    model, tokenizer, task, _ = model_of("gpt_neox", what, nli, texts)
    few = dict(train=task.splits["train"].select(range(12)), query=task.splits["dev"].select(range(3)))
    data = RowData(tokenizer, **few, batch_size=4, max_length=30)
    for name, row in SCORES.items():
        slow = name in ("diagonal", "kfac") or (what == "causal" and name == "ekfac")  # as identity, ekfac
        refused = what == "causal" and name in ("last_layer", "ekfac_cg")  # there every word is a class
        if row.item != "row" or slow or refused:
            continue
        options = dict(k=6) if name == "trak" else {}
        scores = row_scores(name, [model], data, **options)
        assert scores.shape == (12, 3) and np.ptp(scores) > 0, name


def test_heads_of_grouped_keys_are_the_query_heads(nli):
    model, _ = tiny_model(nli, 0, GROUPED)
    assert parts(model).heads == 4 and ones(model, "head")["head"].shape == (2, 4)


def test_the_first_token_of_a_decoder_is_no_sentence(texts):
    model, tokenizer = load_masked_lm("tiny", texts, 0, tiny=KINDS["gpt2"], head="causal_lm")
    some = texts.splits["dev"]["text_a"][:4]
    with torch.no_grad():
        first = [model.base_model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0, 0] for t in some]
    assert all(torch.equal(f, first[0]) for f in first)  # one vector for all: what `cls` would have been
    with pytest.raises(DataError, match="sees only itself.*Valid: mean"):
        sentence_vectors(model, tokenizer, some, "cls")
    assert np.ptp(sentence_vectors(model, tokenizer, some, "mean"), axis=0).max() > 0


@pytest.mark.parametrize("kind", ["deberta-v2", "mpnet", "xlm-roberta", "albert", "modernbert"])
def test_encoders_are_asked_with_the_attention_that_they_have(kind, texts, tmp_path):
    _, tokenizer = tiny_model(texts, 0, SIZE)
    if kind in ("mpnet", "modernbert"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    sizes |= dict(
        vocab_size=len(tokenizer) + 4, max_position_embeddings=60, type_vocab_size=2, pad_token_id=0
    )
    AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_masked_lm(str(tmp_path), texts, 0)
    only = kind in ("deberta-v2", "mpnet")
    assert model.config._attn_implementation == ("eager" if only else "sdpa")
    found = {r["metric"]: r["value"] for r in synthetic_bias(model, tokenizer)}
    assert set(found) == {"seat", "ss", "lm", "icat", "crows", "log_odds"}
    assert all(np.isfinite(v) for v in found.values())


def test_through_the_notebooks():
    small = {
        "settings": {"train": 96, "dev": 40, "ood": 20},
        "max_steps": 4,
        "batch_size": 16,
        "max_length": 48,
    }
    tuned = made("finetune", tiny=GROUPED, lr=1e-3, pretrain_steps=2, **small)["run"].key
    bias = made("bias_model", settings=small["settings"])["run"].key
    given = dict(model=tuned, task="synthetic-nli", masker="mask_training", sparsity=0.5, bias=bias)
    run = made("train_mask", loss="poe", evaluate_every=2, **given, **small)["run"]
    removed = [r["value"] for r in find_run(run.key).result["metrics"] if r["metric"] == "removed"]
    assert abs(removed[0] - 0.5) < 0.02
    given = dict(head="causal_lm", task="synthetic-gender", masker="dsp", k=3, masker_options={"cooldown": 2})
    own = small | {"settings": {"train": 64, "dev": 20}, "max_length": 32, "tiny": GROUPED}
    run = made("train_mask", **given, **own)["run"]
    result = find_run(run.key).result
    assert load_mask(run.artefact("mask.safetensors"))["head"].sum() == 3
    assert {"perplexity", "text_loss"} <= {r["metric"] for r in result["metrics"]}
    assert result["identity"]["loss"] == "causal_lm"


@pytest.mark.parametrize(
    "notebook, given, says",
    [
        ("bias_tests", dict(tiny=GROUPED), "a tiny llama is no masked language model"),
        ("bias_tests", dict(head="causal_lm"), "a tiny bert is no causal language model"),
        ("train_mask", dict(head="causal_lm", tiny=GROUPED, loss="poe"), "texts are trained on with loss ce"),
        ("train_mask", dict(head="masked_lm", tiny=GROUPED, loss="debiasing"), "head causal_lm"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_starts(notebook, given, says):
    with pytest.raises(ValueError, match=says):
        made(notebook, **given)
