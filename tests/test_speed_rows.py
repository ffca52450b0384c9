"""What attribution of training rows costs: features beside an ordinary backward pass; memory of many scores."""

import statistics
import subprocess
import sys
import time

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lib.attribution.per_example import Projector

ROUNDS = 7


def model_and_batch(rows=32, tokens=64):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=2000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config).eval()
    return model, {
        "input_ids": torch.randint(0, 2000, (rows, tokens)),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
        "labels": torch.randint(0, 2, (rows,)),
    }


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.slow
def test_features_cost_no_more_than_a_backward_pass():
    model, batch = model_and_batch()
    projector = Projector(model, 512)

    def backward():
        model.zero_grad()
        model(**batch).loss.backward()

    projector(batch)
    backward()
    seconds = {"features": [], "backward": []}
    for _ in range(ROUNDS):
        for name, work in (("features", lambda: projector(batch)), ("backward", backward)):
            seconds[name].append(timed(work))
    ratio = statistics.median(seconds["features"]) / statistics.median(seconds["backward"])
    print(f"\nper-row features (512 directions) / forward and backward of the batch: {ratio:.2f}")
    assert ratio <= 1.0


@pytest.mark.slow
def test_ten_thousand_rows_by_a_thousand_queries_stay_below_two_gib():
    code = """
import resource, numpy as np
from lib.attribution.trak import trak
rng = np.random.default_rng(0)
train, query = rng.normal(size=(10_000, 1024)).astype(np.float32), rng.normal(size=(1_000, 1024)).astype(np.float32)
assert trak([train], [query], [np.ones(10_000)], 10**6).shape == (10_000, 1_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    peak = float(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
    )
    print(f"\npeak memory of 10,000 x 1,000 scores in 1,024 directions: {peak:.2f} GiB")
    assert peak < 2
