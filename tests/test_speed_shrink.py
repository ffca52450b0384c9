"""What shrinking saves in time beside what it saves in operations. Timed when asked for (`make test-slow`); medians of interleaved repetitions, so that other load hits both sides alike."""

import pytest
import torch
from transformers import BertConfig

from lib.models.architectures import model_class
from lib.models.shrink import shrink
from lib.models.speed import Shape, Timing, benchmark, random_units


@pytest.fixture(scope="module")
def models():
    "A BERT of middling size, and one with half the heads and half the neurons of every layer"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = BertConfig(
        vocab_size=2000,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=1536,
        num_labels=3,
    )
    whole = model_class(config)._from_config(config, attn_implementation="sdpa").eval()
    return {"whole": whole, "shrunken": shrink(whole, random_units(whole, 0.5, 0.5))}


@pytest.mark.slow
@pytest.mark.parametrize("batch, repetitions, least", [(16, 15, 0.9), (1, 60, 0.8)])
def test_most_of_the_saving_in_operations_is_saved_in_time(models, batch, repetitions, least):
    frame = benchmark(models, Shape(batch, 64), Timing(repetitions, warmup=3))
    whole, small = frame.to_dict("records")
    print(
        f"batch {batch} x 64 tokens: {1000 * whole['seconds']:.1f} ms -> {1000 * small['seconds']:.1f} ms, {small['speedup']:.2f} times as fast; operations {whole['flops'] / small['flops']:.2f} times fewer; "
        f"share of the ideal speed-up {small['ideal_share']:.3f}; parameters {small['parameters'] / whole['parameters']:.2f}, peak memory {small['peak_bytes'] / whole['peak_bytes']:.2f}"
    )
    assert small["ideal_share"] >= least
