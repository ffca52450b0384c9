"""Smaller models and masks as files: what shrinking saves in time, what it costs, and saving a mask."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import Row, bert, emit, peer, seconds
from transformers import BertConfig, BertForSequenceClassification

from lib.models.masks import load_mask, save_mask
from lib.models.shrink import load, shrink
from lib.models.speed import Shape, Timing, benchmark, random_units


def saving_rows() -> None:
    "Row 6"
    whole = bert(attn_implementation="sdpa").eval()
    models = {"whole": whole, "shrunken": shrink(whole, random_units(whole, 0.5, 0.5))}
    for size, rounds, goal in ((16, 11, 1.0), (1, 40, 0.95)):
        frame = benchmark(models, Shape(size, 64), Timing(rounds, warmup=3))
        what = f"half the heads and neurons: share of the ideal speed-up, batch {size}"
        emit(Row("6", what, float(frame.ideal_share.iloc[1]), goal, more=True))


def by_torch_pruning(tp, model, example: dict):
    "Half of the heads and of the neurons of every layer by Torch-Pruning's dependency graph"
    heads = {m.query: 12 for m in model.modules() if hasattr(m, "query") and hasattr(m, "key")}
    heads |= {m.key: 12 for m in model.modules() if hasattr(m, "query") and hasattr(m, "key")}
    heads |= {m.value: 12 for m in model.modules() if hasattr(m, "query") and hasattr(m, "key")}
    rates = {layer.intermediate.dense: 0.5 for layer in model.bert.encoder.layer}
    options = dict(importance=tp.importance.RandomImportance(), pruning_ratio=0.0, num_heads=heads)
    options |= dict(pruning_ratio_dict=rates, prune_num_heads=True, head_pruning_ratio=0.5)
    options |= dict(ignored_layers=[model.classifier], output_transform=lambda out: out.logits.sum())
    tp.pruner.BasePruner(model, example, **options).step()
    for layer in model.bert.encoder.layer:
        own = layer.attention.self
        own.num_attention_heads = own.query.out_features // own.attention_head_size
        own.all_head_size = own.query.out_features
    return model


def pruning_rows(rounds: int) -> None:
    "Row 16"
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig()).eval()
    units, what = random_units(base, 0.5, 0.5), "shrink BERT-base to half / Torch-Pruning's time"
    small = shrink(base, units)
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        again = load(folder, dtype=torch.float32)
        inputs = {"input_ids": torch.arange(5, 37)[None]}
        with torch.inference_mode():
            assert torch.equal(small(**inputs).logits, again(**inputs).logits), (
                "it does not open as it was saved"
            )
    ours = seconds({"shrink": lambda: shrink(base, units)}, rounds)["shrink"]
    emit(
        Row(
            "16",
            "shrink BERT-base to half of its heads and neurons; the result saves and loads",
            ours,
            None,
            "s",
        )
    )
    tp = peer("Torch-Pruning", "torch_pruning", "16", what, 1.0)
    if tp is None:
        return
    import copy

    models = [copy.deepcopy(base) for _ in range(rounds + 1)]  # it prunes in place: a fresh one each time
    calls = {
        "ours": lambda: shrink(base, units),
        "theirs": lambda: by_torch_pruning(tp, models.pop(), inputs),
    }
    kept = copy.deepcopy(base)
    theirs = by_torch_pruning(tp, kept, inputs)
    size = [sum(p.numel() for p in m.parameters()) for m in (small, theirs)]
    found, note = seconds(calls, rounds), f"{size[0] / 1e6:.1f} and {size[1] / 1e6:.1f} M parameters are left"
    emit(Row("16", what, found["ours"] / found["theirs"], 1.0, note=note))


def mask_row(rounds: int) -> None:
    "Row 17"
    torch.manual_seed(0)
    with torch.device("meta"):
        base = BertForSequenceClassification(BertConfig())
    shapes = {n: p.shape for n, p in base.named_parameters() if p.dim() == 2 and ".layer." in n}
    mask = {f"weight/{n}": torch.rand(shape) > 0.5 for n, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = Path(folder, "mask.safetensors"), Path(folder, "mask.npz")

        def packed():
            np.savez(plain, **{name.replace("/", "|"): np.packbits(v.numpy()) for name, v in mask.items()})

        calls = {"ours": lambda: save_mask(mask, ours, "base"), "npz": packed}
        found = seconds(calls, rounds)
        assert all(torch.equal(mask[k], v) for k, v in load_mask(ours).items()), "it is not what was saved"
    n = sum(v.numel() for v in mask.values()) / 1e6
    what = f"save a mask of {n:.0f} M weights / packed npz"
    emit(Row("17", what, found["ours"] / found["npz"], 3.0, note=f"{found['ours']:.3f} s"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    saving_rows()
    pruning_rows(5)
    mask_row(7)
