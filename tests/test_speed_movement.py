"""What movement pruning costs beside plain fine-tuning, and a scheduled threshold beside sorting. Timed when asked for (`make test-slow`); medians of interleaved repetitions, so that other load hits all sides alike."""

from contextlib import ExitStack

import pytest
import torch
from test_speed_masks import VOCABULARY, times
from transformers import AutoModelForSequenceClassification, BertConfig

from lib.maskers.maskers import make_masker
from lib.maskers.passes import masked
from lib.maskers.thresholds import CUTS


class Step:
    "One training step of a BERT of 6 layers, 384 wide: all weights, or the scores alone"

    def __init__(self, rule=None, final=0.1, initial=0.0, rows=16, **granularity):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=6,
            intermediate_size=1536,
            num_labels=3,
        )
        self.model, self.held, self.masker, self.step = (
            AutoModelForSequenceClassification.from_config(config).train(),
            ExitStack(),
            None,
            0,
        )
        if rule:
            ends = {"sparsity": 1 - final} if rule == "topk" else {"initial": initial, "final": final}
            own = dict(rule=rule, init="uniform", init_scale=0.01, regulariser="l1", **ends)
            self.masker = make_masker("movement", self.model, steps=100, unit_options=granularity, **own)
            self.held.enter_context(masked(self.model, self.masker, freeze=True))
        groups = [{"params": list(self.masker.parameters()), "lr": 1e-2}] if rule else self.model.parameters()
        self.optimiser = torch.optim.AdamW(groups, lr=5e-5, weight_decay=0)
        self.batch = {
            "input_ids": torch.randint(5, VOCABULARY, (rows, 64)),
            "attention_mask": torch.ones(rows, 64, dtype=torch.long),
            "labels": torch.randint(0, 3, (rows,)),
        }

    def __call__(self):
        self.optimiser.zero_grad()
        if self.masker:
            self.masker.advance(self.step)
        loss, self.step = self.model(**self.batch).loss, self.step + 1
        if self.masker:
            loss = loss + self.masker.penalty()
        loss.backward()
        self.optimiser.step()


def by_sorting(scores, p, minimum=0.0):
    "topk as it is mostly written: sort all, and fill by index"
    order, kept = (
        scores.detach().flatten().sort(descending=True).indices,
        torch.zeros(scores.numel(), dtype=torch.bool),
    )
    kept[order[: int(p * scores.numel())]] = True
    return kept.view(scores.shape)


@pytest.mark.slow
def test_a_scheduled_threshold_is_twice_as_fast_as_sorting(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setitem(CUTS, "topk", by_sorting)
    weights = {
        "rows": 8,
        "block": (1, 1),
        "ffn": "default",
    }  # sorting costs the same for any batch: the larger the batch, the less it shows
    found = times(
        {
            "sorting": Step("topk", 0.5, 1.0, **weights),
            "threshold": Step("threshold", 0.01, -0.01, **weights),
            "sigmoid threshold": Step("sigmoid_threshold", **weights),
        },
        5,
    )
    print(*(f"{t:.3f} s  {name}" for name, t in found.items()), sep="\n")
    assert found["sorting"] >= 2 * max(found["threshold"], found["sigmoid threshold"])


@pytest.mark.slow
def test_a_step_of_block_scores_costs_no_more_than_a_fine_tuning_step():
    torch.set_num_threads(1)
    found = times(
        {
            "fine-tuning": Step(),
            **{f"{b} x {b}": Step("sigmoid_threshold", block=(b, b)) for b in (32, 64)},
            "heads": Step("sigmoid_threshold", block="head"),
            "topk 32 x 32": Step("topk", 0.5, 1.0, block=(32, 32)),
        },
        7,
    )
    print(
        *(f"{t / found['fine-tuning']:.3f}  {name}" for name, t in found.items()),
        f"{found['fine-tuning']:.2f} s per step",
        sep="\n",
    )
    assert all(t <= 1.10 * found["fine-tuning"] for t in found.values())
