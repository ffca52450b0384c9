"""What a learned mask costs beside plain fine-tuning. Timed when asked for (`make test-slow`); medians of interleaved repetitions, so that other load hits all sides alike."""

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from lib.maskers.maskers import make_masker
from lib.maskers.passes import masked
from lib.maskers.thresholds import estimated_level, exact_level
from lib.models.units import attach

ROOT = Path(__file__).parents[1]
VOCABULARY = 2000  # small: embeddings are fine-tuned but never masked, and would flatter the mask


def moved(how, **given):
    "masker -> the threshold of every matrix where the sparsity wants it"

    def move(masker, sparsity):
        for key, s in masker.named_scores().items():
            masker.set_level(key, how({key: s.detach()}, masker.level(key), sparsity, **given))

    return move


class Step:
    "One training step, as often as it is called: fine-tuning, or learning a mask over the encoder's matrices"

    def __init__(self, with_mask=True, move=None, plain_path=False, sparsity=0.5):
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
        self.masker = (
            make_masker("mask_training", self.model, sparsity=sparsity, init="soft") if with_mask else None
        )
        self.move, self.plain_path, self.sparsity = move, plain_path, sparsity
        if plain_path:
            self.model.requires_grad_(False)
        elif with_mask:
            self.held.enter_context(masked(self.model, self.masker, freeze=True))
        trained = self.masker.parameters() if with_mask else self.model.parameters()
        self.optimiser = torch.optim.AdamW([p for p in trained if p.requires_grad], lr=5e-5, weight_decay=0)
        self.batch = {
            "input_ids": torch.randint(5, VOCABULARY, (16, 64)),
            "attention_mask": torch.ones(16, 64, dtype=torch.long),
            "labels": torch.randint(0, 3, (16,)),
        }

    def __call__(self):
        self.optimiser.zero_grad()
        with attach(self.model, self.masker()) if self.plain_path else ExitStack():
            self.model(**self.batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], 1.0)
        self.optimiser.step()
        if self.move:
            self.move(self.masker, self.sparsity)


def times(calls, repetitions):
    "Median time of each, taken in turn"
    taken = {name: [] for name in calls}
    for round_ in range(repetitions + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_:
                taken[name].append(time.perf_counter() - start)  # the first is a warm-up
    return {name: median(t) for name, t in taken.items()}


@pytest.mark.slow
def test_a_mask_training_step_costs_little_more_than_a_fine_tuning_step():
    torch.set_num_threads(1)
    methods = {
        f"exact threshold at every step, {m}": Step(move=moved(exact_level, method=m))
        for m in ("partition", "kthvalue", "sort")
    }
    found = times(
        {
            "fine-tuning": Step(with_mask=False),
            "mask": Step(),
            "estimated threshold at every step": Step(move=moved(estimated_level)),
            **methods,
            "mask by the plain path": Step(plain_path=True),
        },
        5,
    )
    ratios = {name: t / found["fine-tuning"] for name, t in found.items()}
    print(
        *(f"{r:.3f}  {name}" for name, r in ratios.items()),
        f"{found['fine-tuning']:.2f} s per step",
        sep="\n",
    )
    assert ratios["mask"] <= 1.05 and ratios["estimated threshold at every step"] <= 1.10
    assert ratios["exact threshold at every step, sort"] > ratios["estimated threshold at every step"]


def peak(masked):
    "Peak memory of a process that makes three steps, in MiB above what importing takes"
    code = (
        "import re, sys; sys.path.insert(0, 'tests'); import torch; torch.set_num_threads(1); from test_speed_masks import Step\n"
        r"used = lambda: int(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read()).group(1)) / 1024"
        "\n"
        f"before, step = used(), Step(with_mask={masked})\nfor _ in range(3): step()\nprint(used() - before)"
    )
    return float(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in the unit of Linux")
def test_a_mask_training_step_needs_little_more_memory():
    found = {name: peak(masked) for name, masked in [("fine-tuning", False), ("mask", True)]}
    print(found, f"{found['mask'] / found['fine-tuning']:.2f}")
    assert found["mask"] <= 1.3 * found["fine-tuning"]
