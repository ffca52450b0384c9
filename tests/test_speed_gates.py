"""What gates over heads cost beside plain fine-tuning. Timed when asked for (`make test-slow`); medians of interleaved repetitions, so that other load hits all sides alike."""

from contextlib import ExitStack

import pytest
import torch
from test_speed_masks import VOCABULARY, times
from transformers import AutoModelForSequenceClassification, BertConfig

from lib.maskers.maskers import make_masker
from lib.maskers.passes import masked
from lib.training.loading import first_token


class Step:
    "One training step of a BERT of 6 layers, 384 wide: all weights, all weights and gates, or gates alone"

    def __init__(self, gates=False, joint=True):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=6,
            intermediate_size=1536,
            num_labels=3,
        )
        self.model, self.held = AutoModelForSequenceClassification.from_config(config).train(), ExitStack()
        groups = [{"params": list(self.model.parameters()), "lr": 5e-5}] if joint else []
        if gates:
            gate = make_masker("dsp", self.model, steps=100, k=18, cooldown=100)
            gate.number = 1.0
            self.held.enter_context(masked(self.model, gate, freeze=not joint))
            if not joint:
                self.held.enter_context(first_token(self.model))
            groups.append({"params": list(gate.parameters()), "lr": 0.5})
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0)
        self.batch = {
            "input_ids": torch.randint(5, VOCABULARY, (16, 64)),
            "attention_mask": torch.ones(16, 64, dtype=torch.long),
            "labels": torch.randint(0, 3, (16,)),
        }

    def __call__(self):
        self.optimiser.zero_grad()
        self.model(**self.batch).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        self.optimiser.step()


@pytest.mark.slow
def test_gates_cost_little_and_gates_alone_less_than_fine_tuning():
    torch.set_num_threads(1)
    found = times(
        {"fine-tuning": Step(), "joint": Step(gates=True), "gates only": Step(gates=True, joint=False)}, 7
    )
    ratios = {name: t / found["fine-tuning"] for name, t in found.items()}
    print(
        *(f"{r:.3f}  {name}" for name, r in ratios.items()),
        f"{found['fine-tuning']:.2f} s per step",
        sep="\n",
    )
    assert ratios["gates only"] <= 0.65 and ratios["joint"] <= 1.03
