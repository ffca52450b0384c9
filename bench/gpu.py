"""Unit costs on a GPU at BERT-base's size, in under eight minutes: python bench/gpu.py, then docs/gpu.md holds the table.

Without a GPU it says so and measures nothing; `--tiny` runs all of it on the CPU at toy size, to test the script."""

import copy
import json
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median

import torch
from common import ROOT, batch, bert
from steps import gate, learned

from lib.attribution.importance import importance
from lib.attribution.influence import kronfluence_influence
from lib.attribution.per_example import Projector, RowData
from lib.data.tasks import load_task
from lib.maskers.passes import masked
from lib.models.shrink import shrink
from lib.models.speed import in_turn, random_units
from lib.training.loading import load_models

LIMIT = 440  # seconds for all: what comes later is left out


def size(tiny: bool) -> dict:
    "Width, layers, rows, tokens"
    return (
        dict(width=64, layers=2, rows=4, tokens=16)
        if tiny
        else dict(width=768, layers=12, rows=32, tokens=128)
    )


class Step:
    "A training step in bf16 or float32: all weights, a mask, or gates alone"

    def __init__(self, sizes: dict, device: str, masker=None, bf16: bool = True):
        self.model, self.held = bert(sizes["width"], sizes["layers"]).to(device).train(), ExitStack()
        self.masker, trained = masker and masker(self.model).to(device), self.model
        if self.masker is not None:
            self.held.enter_context(masked(self.model, self.masker, freeze=True))
            trained = self.masker
        self.optimiser = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], fused=True)
        self.batch = {k: v.to(device) for k, v in batch(sizes["rows"], sizes["tokens"]).items()}
        self.half = lambda: torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()

    def __call__(self):
        self.optimiser.zero_grad()
        with self.half():
            loss = self.model(**self.batch).loss
        (loss if self.masker is None else loss + self.masker.penalty()).backward()
        self.optimiser.step()


def medians(calls: dict, rounds: int, device: str) -> dict[str, float]:
    "Median seconds of each, taken in turn"
    return {n: median(t) for n, t in in_turn(calls, rounds, 2, device == "cuda").items()}


def steps(sizes: dict, device: str, rounds: int) -> dict[str, float]:
    "Fine-tuning in both precisions, a learned mask, gates"
    few_heads = gate if sizes["layers"] == 12 else lambda model: _few(model)
    made = {
        "fine-tuning, bf16": Step(sizes, device),
        "fine-tuning, float32": Step(sizes, device, bf16=False),
        "mask training, bf16": Step(sizes, device, learned),
        "gates alone, bf16": Step(sizes, device, few_heads),
    }
    return medians(made, rounds, device)


def _few(model):
    from lib.maskers.maskers import make_masker

    return make_masker("dsp", model, steps=100, k=1, cooldown=100)


def passes(sizes: dict, device: str, rounds: int) -> dict[str, float]:
    "Importance, features of rows, a forward pass of the whole and of half a model"
    model = bert(sizes["width"], sizes["layers"], dropout=0.0).to(device).eval()
    one = {k: v.to(device) for k, v in batch(sizes["rows"], sizes["tokens"]).items()}
    small, projector = (
        shrink(model, random_units(model, 0.5, 0.5)),
        Projector(model, 64 if device == "cpu" else 512),
    )

    def forward(net):
        with torch.inference_mode():
            net(**one)

    calls = {
        "importance of a batch": lambda: importance(model, [one]),
        "row features of a batch": lambda: projector(one),
    }
    calls |= {
        "forward pass": lambda: forward(model),
        "forward pass of half the model": lambda: forward(small),
    }
    return medians(calls, rounds, device)


def influence(sizes: dict, device: str, rounds: int) -> dict[str, float]:
    "EK-FAC of all layers of a small classifier"
    task = load_task("synthetic-nli", settings={"train": 64, "dev": 16, "ood": 20})
    (model,), tokenizer = load_models(["tiny"], task, 0)
    data = RowData(tokenizer, task.splits["train"], task.splits["dev"], max_length=48)
    model = copy.deepcopy(model).to(device)
    return medians(
        {"EK-FAC, 64 x 16 rows": lambda: kronfluence_influence(model, data, "ekfac", None)}, 1, device
    )


def measure(tiny: bool, device: str) -> dict:
    "All seconds; operations a second of a bf16 fine-tuning step"
    sizes, rounds, began, found = size(tiny), 1 if tiny else 10, time.monotonic(), {}
    for part in (steps, passes, influence):
        if time.monotonic() - began < LIMIT:
            found |= part(sizes, device, rounds)
            print(json.dumps(found), flush=True)
    weights = 12 * sizes["layers"] * sizes["width"] ** 2
    work = 6 * weights * sizes["rows"] * sizes["tokens"]
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"device": name, "seconds": found, "operations": work / found["fine-tuning, bf16"], "sizes": sizes}


def table(found: dict) -> str:
    "docs/gpu.md"
    plain = found["seconds"]["fine-tuning, bf16"]
    rows = "".join(f"| {n} | {s * 1000:.1f} | {s / plain:.2f} |\n" for n, s in found["seconds"].items())
    head = (
        f"# Unit costs on a GPU\n\n{found['device']}; {found['sizes']}; written by `python bench/gpu.py`.\n\n"
    )
    return head + "| what | ms | of a bf16 fine-tuning step |\n|---|---|---|\n" + rows


def main(tiny: bool, folder: Path) -> None:
    if not tiny and not torch.cuda.is_available():
        sys.exit("no GPU here: nothing was measured (--tiny tests the script on a CPU)")
    found = measure(tiny, "cuda" if torch.cuda.is_available() and not tiny else "cpu")
    (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "gpu.md").write_text(table(found))


if __name__ == "__main__":
    asked = [a for a in sys.argv[1:] if a != "--tiny"]
    main("--tiny" in sys.argv, Path(asked[0]) if asked else ROOT / "bench")
