"""What all measurements share: a row of the table, medians of calls taken in turn, and the models that are timed."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from lib.models.speed import in_turn

ROOT = Path(__file__).parents[1]
VOCABULARY = 2000  # small: embeddings are fine-tuned but never masked, and would flatter the mask


@dataclass
class Row:
    "A row of the table; `value` None where it could not be measured, and then `note` says why."

    number: str
    what: str
    value: float | None
    goal: float | None
    unit: str = ""  # a ratio where empty
    more: bool = False  # more is better
    note: str = ""


def emit(*rows: Row) -> None:
    "One line of JSON a row, which `run.py` reads"
    for row in rows:
        print("ROW " + json.dumps(asdict(row)), flush=True)


def seconds(calls: dict, rounds: int = 5, warmup: int = 1) -> dict[str, float]:
    "Median seconds of each call, taken in turn, so that other load hits all sides alike"
    return {name: median(taken) for name, taken in in_turn(calls, rounds, warmup).items()}


def peer(name: str, module: str, number: str, what: str, goal: float | None = None):
    "The module of a peer; None, and a row that says so, where it is not installed or does not import"
    try:
        return importlib.import_module(module)
    except Exception as error:  # an old peer may fail in any way on today's Python
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        why = "not installed" if missing else f"does not import: {type(error).__name__}: {error}"[:120]
        emit(Row(number, what, None, goal, note=f"{name} {why}"))
        return None


def bert(width: int = 384, layers: int = 6, dropout: float = 0.1, labels: int = 3, **more):
    "A BERT of random weights, of middling size: arithmetic, not overhead, is timed"
    torch.manual_seed(0)
    heads = dict(num_attention_heads=max(1, width // 64), num_hidden_layers=layers, num_labels=labels)
    drop = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    size = dict(vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width)
    return AutoModelForSequenceClassification.from_config(BertConfig(**size | heads | drop | more))


def batch(rows: int = 16, tokens: int = 64, labels: int = 3) -> dict:
    "Random tokens without padding, and labels"
    torch.manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (rows, tokens))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(0, labels, (rows,)),
    }


def peak_gib(code: str) -> float:
    "Peak memory of a Python process of its own, GiB"
    tail = "\nimport resource; print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    said = subprocess.run([sys.executable, "-c", code + tail], cwd=ROOT, capture_output=True, text=True)
    if said.returncode:
        raise RuntimeError(said.stderr[-2000:])
    return float(re.search(r"PEAK (\S+)", said.stdout)[1])
