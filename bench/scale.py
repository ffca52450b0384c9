"""What the studies cost at paper scale: unit costs measured here at three sizes, and the runs that the sweeps plan.

python bench/scale.py    writes docs/scale.md; a minute. A GPU's speed is taken from bench/gpu.json where `gpu.py` made it."""

import json
import math
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import ROOT, batch, bert
from made_runs import made

from lib.core.engine import make_plan
from lib.core.runs import run_folders, runs
from lib.core.sweeps import load_sweep
from lib.models.masks import save_mask

ROWS = {  # training rows of the data sets as they are published
    "CoLA": 8_551, "SST-2": 67_349, "MRPC": 3_668, "STS-B": 5_749, "QQP": 363_846, "MNLI": 392_702,
    "QNLI": 104_743, "RTE": 2_490, "WNLI": 635, "FEVER": 242_911, "hatexplain": 15_383, "toxigen": 8_960,
}  # fmt: skip
BASE = 85_054_464  # weights of BERT-base's encoder, through which every token passes
WHOLE = 109_482_240  # all of its parameters
GPU = 100e12  # operations a second that a GPU is taken to reach in bf16, where none was measured
STUDIES = ("lottery", "srnets", "d3m")


@dataclass
class Fit:
    "seconds = a * size ** power, by least squares in logarithms"

    sizes: list
    seconds: list
    power: float = field(init=False)

    def __post_init__(self):
        self.power, self.log = np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)

    def at(self, size: float) -> float:
        return math.exp(self.log) * size**self.power


def processor_seconds(call) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def step_fit(widths=(128, 256, 512), rows: int = 16, tokens: int = 64) -> Fit:
    "Processor seconds of a training step, by its operations (6 for each weight and token)"
    sizes, taken = [], []
    for width in widths:
        model = bert(width, 4)
        optimiser, one = torch.optim.AdamW(model.parameters(), fused=True), batch(rows, tokens)

        def step(model=model, optimiser=optimiser, one=one):
            optimiser.zero_grad()
            model.train()(**one).loss.backward()
            optimiser.step()

        step()
        sizes.append(6 * rows * tokens * 12 * 4 * width**2)
        taken.append(min(processor_seconds(step) for _ in range(3)))
    return Fit(sizes, taken)


def run_fits(counts=(100, 400, 1600)) -> dict[str, Fit]:
    "Processor seconds of planning, looking for what is missing, and collecting, by the number of runs"
    taken = {"plan": [], "what is missing": [], "collect": []}
    text = "title: Drawing\nstages:\n  draw: {notebook: draw_masks, grid: {seed: [SEEDS]}}\n"
    with tempfile.TemporaryDirectory() as place:
        os.environ["SIEVE_OUTPUTS"] = place
        path, done = Path(place, "sweep.yaml"), 0
        for n in counts:
            path.write_text(text.replace("SEEDS", ", ".join(map(str, range(n)))))
            made(n - done, done, rows=3)
            done = n
            assert len(run_folders()) == n
            taken["plan"].append(processor_seconds(partial(load_sweep, path)))
            sweep = load_sweep(path)
            make_plan(sweep)  # what was written this instant is hashed again
            taken["what is missing"].append(processor_seconds(partial(make_plan, sweep)))
            taken["collect"].append(processor_seconds(runs))
    return {name: Fit(list(counts), seconds) for name, seconds in taken.items()}


def mask_fit(sides=(256, 512, 1024)) -> Fit:
    "Bytes of a mask's file by its weights"
    sizes = []
    with tempfile.TemporaryDirectory() as place:
        for side in sides:
            path = Path(place, f"{side}.safetensors")
            save_mask({f"weight/{i}": torch.rand(side, side) > 0.5 for i in range(12)}, path, "base")
            sizes.append(path.stat().st_size)
    return Fit([12 * side**2 for side in sides], sizes)


def operations(run) -> float:
    "Arithmetic of a planned run, every row at its full length: an upper bound"
    p, rows = run.params, ROWS.get(run.params.get("task"), 0)
    tokens = p.get("max_length", 128)
    passed = 6 * BASE * tokens
    if run.notebook in ("finetune", "train_mask", "iterative_pruning", "bias_model", "data_removal"):
        steps = p.get("max_steps", -1)
        seen = steps * p["batch_size"] if steps >= 0 else p.get("epochs", 3) * rows
        return passed * seen + passed / 3 * 0.1 * rows
    if run.notebook in ("importance", "attribution", "retrain_subsets"):
        times = {"retrain_subsets": p.get("subsets", 100) * p.get("epochs", 1)}.get(run.notebook, 1)
        return passed * rows * times
    return passed / 3 * 0.1 * rows  # looks at a tenth as many rows, forward only


def stored(run, mask_bytes: float) -> float:
    "Bytes that stay of a planned run"
    kept = {"finetune": 4 * WHOLE, "train_mask": mask_bytes, "iterative_pruning": 9 * mask_bytes}
    kept |= {"attribution": 4 * 512 * ROWS.get(run.params.get("task"), 0), "draw_masks": mask_bytes}
    return kept.get(run.notebook, 0) + 2**20  # and the executed notebook, parameters, result


def study_line(name: str, rate: float, mask_bytes: float) -> str:
    "A line of the table"
    planned = list(load_sweep(ROOT / "nbs" / "sweeps" / f"{name}.yaml").runs.values())
    hours = sum(map(operations, planned)) / rate / 3600
    disk = sum(stored(run, mask_bytes) for run in planned) / 2**30
    common = ", ".join(f"{n} {book}" for book, n in Counter(r.notebook for r in planned).most_common(3))
    return f"| `{name}.yaml` | {len(planned):,} | {common} | {hours:,.0f} | {disk:,.0f} | {6 * len(planned):,} |\n"


def memory_lines() -> str:
    "Memory of the largest steps"
    step = (
        16 * WHOLE + 4 * 32 * 128 * 768 * 12 * 34
    )  # weights, gradients, two moments; activations of a batch
    query, train = 1_000, ROWS["MNLI"]
    scores = 8 * (train * 1024 + train * query + query * 1024)
    sizes = {"a training step of BERT-base, 32 x 128 tokens, float32": step}
    sizes["mask training of the same (a score for each weight, no moments of the weights)"] = (
        step - 8 * WHOLE + 12 * BASE
    )
    sizes[f"TRAK scores of all {train:,} rows of MNLI for {query:,} queries, 1,024 directions"] = scores
    return "".join(f"| {what} | {size / 2**30:.1f} |\n" for what, size in sizes.items())


def page() -> str:
    "docs/scale.md"
    step, of_runs, masks = step_fit(), run_fits(), mask_fit()
    gpu = ROOT / "bench" / "gpu.json"
    rate = json.loads(gpu.read_text())["operations"] if gpu.exists() else GPU
    whence = "measured by bench/gpu.py" if gpu.exists() else "assumed, for no GPU was at hand: 100 T in bf16"
    cpu = step.sizes[-1] / step.seconds[-1]
    lines = "".join(study_line(name, rate, masks.at(BASE)) for name in STUDIES)
    grows = {"a training step, by its operations": step, "a mask's file, by its weights (bytes)": masks}
    grows |= {f"{name}, by runs": fit for name, fit in of_runs.items()}
    fits = "".join(
        f"| {n} | {', '.join(f'{s:,.3g}' for s in f.sizes)} | {', '.join(f'{s:.3g}' for s in f.seconds)} | {f.power:.2f} |\n"
        for n, f in grows.items()
    )
    at = {name: fit.at(20_000) for name, fit in of_runs.items()}
    end = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in at.items())
    return f"""# What the studies cost at paper scale

Computed by `python bench/scale.py` from the runs that the sweeps plan and from unit costs measured at three sizes on one
thread of this machine. Every row counts at its full length, so hours are an upper bound (texts are about a third of it).
A GPU's {rate / 1e12:.0f} T operations a second are {whence}; one thread here reaches {cpu / 1e9:.0f} G in float32.

| study | runs | most of them | GPU hours, at most | GiB kept | files |
|---|---|---|---|---|---|
{lines}
## Memory of the largest steps

| step | GiB |
|---|---|
{memory_lines()}
## What grows how

Cost = a x size^power, fitted to three sizes (processor seconds, or bytes).

| what | sizes | cost | power |
|---|---|---|---|
{fits}
Carried on to 20,000 runs: {end}.

## Where one machine ends

One GPU makes a study in its hours above; a study of more than a week (168 h) wants a cluster (`--profile slurm`, [cluster](cluster.md)).
One disk of a terabyte holds any of the three. Memory ends first with TRAK: its scores grow with rows x queries, and all of
MNLI wants the table's figure at once. Planning and collecting are linear in the runs and end nowhere near these studies.
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    (ROOT / "docs" / "scale.md").write_text(page())
