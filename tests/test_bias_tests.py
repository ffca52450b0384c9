"""Bias tests on their public files: published figures, counts, and every gender test of SEAT on a small encoder."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from toys import command

from lib.core.sweeps import load_sweep
from lib.data.tasks import load_task, tiny_tokenizer
from lib.metrics.bias import (
    GENDER_TESTS,
    association_tests,
    read_crows,
    read_stereoset,
    stereo_score,
    stored_scores,
)
from lib.metrics.bias_scores import bias_rows
from lib.training.masked_words import load_masked_lm

ROOT = Path(__file__).parents[1]
PUBLISHED = {  # (model, domain) -> LM, SS, ICAT
    ("bert-base-cased", "race"): (83.82409779, 56.29627560, 73.26850537)
}


def stored(folder, model):
    items = read_stereoset(folder / "stereoset" / "dev_intrasentence_gender_race_religion.jsonl")
    return stored_scores(items, pd.read_csv(folder / "stereoset" / "intrasentence_scores.csv"), model)


def test_published_scores_from_stored_predictions(real_data):
    folder = real_data("bias")
    found = {
        (m, d): stereo_score(part)
        for m in ("bert-base-cased", "roberta-base", "gpt2")
        for d, part in stored(folder, m).groupby("bias_type")
    }
    print(json.dumps({f"{m} {d}": v for (m, d), v in found.items()}, indent=1))
    for key, wanted in PUBLISHED.items():
        assert all(abs(found[key][m] - w) < 1e-8 for m, w in zip(("lm", "ss", "icat"), wanted))
    assert round(found["bert-base-cased", "gender"]["ss"], 2) == 62.03  # published with two more items: 61.48


@pytest.mark.parametrize("model", ["bert-base-cased", "roberta-base", "gpt2"])
def test_stored_predictions_counted_by_hand(real_data, model):
    for domain, part in (table := stored(real_data("bias"), model)).groupby("bias_type"):
        terms = {
            t: [
                (r.stereotype > r.anti, (r.stereotype > r.unrelated) + (r.anti > r.unrelated))
                for r in table.itertuples()
                if (r.target, r.bias_type) == (t, domain)
            ]
            for t in set(part.target)
        }
        ss = sum(sum(100 * s for s, _ in rows) / len(rows) for rows in terms.values()) / len(terms)
        lm = sum(sum(50 * u for _, u in rows) / len(rows) for rows in terms.values()) / len(terms)
        assert np.allclose(
            [ss, lm, lm * min(ss, 100 - ss) / 50],
            [stereo_score(part)[m] for m in ("ss", "lm", "icat")],
            atol=1e-10,
        ), domain


def test_counts(real_data):
    folder = real_data("bias")
    items = pd.DataFrame(
        read_stereoset(folder / "stereoset" / "dev_intrasentence_gender_race_religion.jsonl")
    )
    assert items.bias_type.value_counts().to_dict() == {"race": 962, "gender": 253, "religion": 79}
    pairs = pd.DataFrame(read_crows(folder / "crows_pairs_anonymized.csv"))
    assert len(pairs) == 1508 and pairs[pairs.bias_type == "gender"].direction.value_counts().to_dict() == {
        "stereo": 159,
        "antistereo": 103,
    }
    tests = association_tests(GENDER_TESTS, str(folder / "seat"))
    sizes = {n: (len(t["X"]), len(t["Y"]), len(t["A"]), len(t["B"])) for n, t in tests.items()}
    assert sizes["6"] == (64, 64, 101, 112) or sizes["6"] == (64, 64, 112, 101), sizes
    assert all(a == b for a, b, _, _ in sizes.values()) and len(sizes) == 6


def test_every_public_test_runs_on_a_small_encoder(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    folder = real_data("bias")
    task = load_task("synthetic-gender", settings={"train": 200, "dev": 10})
    model, tokenizer = load_masked_lm(
        "tiny", task, 0, tiny=dict(layers=1, width=32, heads=2, vocab=300, length=64)
    )
    tests = association_tests(GENDER_TESTS, str(folder / "seat"))
    items = read_stereoset(folder / "stereoset" / "dev_intrasentence_gender_race_religion.jsonl")
    pairs = read_crows(folder / "crows_pairs_anonymized.csv")[:40]
    asked = {"associations": tests, "choices": items, "pairs": pairs}
    rows = pd.DataFrame(bias_rows(model, tokenizer, asked, limit=500))
    print(rows[["metric", "split", "value", "low", "high", "n", "p"]].round(3).to_string())
    assert (
        set(rows[rows.metric == "seat"].split) == {f"{n}, cls" for n in GENDER_TESTS}
        and rows.value.notna().all()
        and rows[rows.metric == "seat"].p.between(0, 1).all()
    )
    assert {"ss", "lm", "icat", "crows"} <= set(rows.metric)


SIZES = dict(
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)
SWEEP = """
set: {task: synthetic-gender, settings: {train: 300, dev: 20}, seat: ["6"]}
stages:
"""
STAGES = {
    "albert": "{notebook: train_mask, set: {masker: none, loss: debiasing, head: masked_lm, model: FOLDER/albert, tests: [synthetic, seat], max_steps: 4, max_length: 32, keep_model: true, lr: 1.0e-3}, grid: {loss_options: [{layers: all}]}}",
    "asked": "{notebook: bias_tests, set: {tests: [seat, synthetic], encoder: cls}, from: {model: albert}}",
    "electra": "{notebook: train_mask, set: {masker: none, loss: debiasing, head: encoder, model: FOLDER/electra, tests: [seat], max_steps: 4, max_length: 32, keep_model: true, lr: 1.0e-3}, grid: {loss_options: [{layers: intermediate}]}}",
    "bare": "{notebook: bias_tests, set: {tests: [seat], head: encoder, encoder: cls}, from: {model: electra}}",
    "pruned": "{notebook: train_mask, set: {masker: random, sparsity: 0.3, loss: debiasing, head: encoder, model: FOLDER/electra, tests: [seat], max_steps: 12, max_length: 32, units: block, unit_options: {block: 8x8}}}",
    "masked": "{notebook: bias_tests, set: {tests: [seat], head: encoder, encoder: cls, model: FOLDER/electra}, from: {mask: pruned}}",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    "Models without a row in the table of architectures, or without a head that fills in words; and one of SEAT's tests."
    folder, texts = (
        tmp_path_factory.mktemp("checkpoints"),
        load_task("synthetic-gender", settings={"train": 300, "dev": 20}).splits["train"]["text_a"][:],
    )
    tokenizer = tiny_tokenizer(texts, 400)
    torch.manual_seed(0)
    for name, model in {
        "albert": transformers.AlbertForMaskedLM(
            transformers.AlbertConfig(vocab_size=len(tokenizer), **SIZES)
        ),
        "electra": transformers.ElectraForPreTraining(
            transformers.ElectraConfig(vocab_size=len(tokenizer), **SIZES)
        ),
    }.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "data" / "bias" / "seat").mkdir(parents=True)
    (folder / "data" / "bias" / "seat" / "sent-weat6.jsonl").write_text(
        json.dumps(
            {k: {"examples": texts[i : i + 6]} for i, k in enumerate(("targ1", "targ2", "attr1", "attr2"))}
        )
    )
    return folder


def run(folder, stages, *more):
    (folder / "s.yaml").write_text(
        (SWEEP + "".join(f"  {name}: {row}\n" for name, row in stages.items())).replace("FOLDER", str(folder))
    )
    env = {"SIEVE_OUTPUTS": folder / "outputs", "SIEVE_DATA": folder / "data"}
    done = command("run", folder / "s.yaml", "-j", "1", *more, **env)
    return done, lambda: {
        r.stage: json.loads((folder / "outputs" / r.notebook / r.key / "result.json").read_text())["metrics"]
        for r in load_sweep(folder / "s.yaml").planned
    }


@pytest.mark.parametrize(
    "first, again",
    [
        ("pruned", "masked"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("albert", "asked"), ("electra", "bare"))),
    ],
)
def test_models_without_masks_or_heads_are_debiased_and_what_is_kept_tests_the_same(
    checkpoints, first, again
):
    done, made = run(checkpoints, {n: STAGES[n] for n in (first, again)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    made = made()
    at = lambda state: {
        (r["metric"], r["split"]): r["value"]
        for r in made[first]
        if r.get("state") == state and r["metric"] in ("seat", "log_odds")
    }
    now = {(r["metric"], r["split"]): r["value"] for r in made[again] if r["metric"] in ("seat", "log_odds")}
    after = {k: v for k, v in at("after").items() if k in now}
    assert (
        now
        and now.keys() == after.keys()
        and all(abs(after[k] - v) < 1e-5 for k, v in now.items())
        and any(at("before")[k] != v for k, v in after.items())
    )


def test_what_a_model_cannot_do_is_said_before_anything_runs(checkpoints):
    (checkpoints / "rembert").mkdir()
    (checkpoints / "rembert" / "config.json").write_text('{"model_type": "rembert"}')
    stage = (
        STAGES["albert"].replace("masker: none", "masker: random").replace("FOLDER/albert", "FOLDER/rembert")
    )
    done, _ = run(checkpoints, {"albert": stage}, "--dry-run")
    assert done.returncode != 0 and "unknown architecture 'rembert'" in done.stdout + done.stderr
