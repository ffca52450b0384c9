"""What attribution costs. Timed when asked for (`make test-slow`); medians of interleaved repetitions, so that other load hits both sides alike."""

import time
from statistics import median

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from lib.attribution.importance import importance


def a_model():
    "A BERT of middling size: large enough that arithmetic, not overhead, is timed"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=2000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        num_labels=2,
    )
    return AutoModelForSequenceClassification.from_config(config)


def some_batches(n=3, size=32, tokens=64):
    return [
        {
            "input_ids": torch.randint(5, 2000, (size, tokens)),
            "attention_mask": torch.ones(size, tokens, dtype=torch.long),
            "labels": torch.randint(0, 2, (size,)),
        }
        for _ in range(n)
    ]


def train(model, data):
    "Forward and backward of ordinary training, without the optimiser's step"
    model.train()
    for batch in data:
        model(**batch).loss.backward()
        model.zero_grad()


def ratio(one, other, repetitions=9):
    "Median time of `one` over median time of `other`, taken in turn"
    times = ([], [])
    for _ in range(repetitions):
        for call, taken in zip((one, other), times):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return median(times[0]) / median(times[1])


@pytest.mark.slow
def test_importance_costs_at_most_three_quarters_of_training():
    torch.set_num_threads(1)
    model, data = a_model(), some_batches()
    train(model, data[:1]), importance(model, data[:1])  # warm up
    found = ratio(lambda: importance(model, data), lambda: train(model, data))
    print(f"importance of all heads and MLPs / training forward+backward: {found:.3f}")
    assert found <= 0.75
