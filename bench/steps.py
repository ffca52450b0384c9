"""Steps of training: a learned mask, movement scores and gates beside fine-tuning; bf16 beside float32."""

from contextlib import ExitStack, nullcontext

import torch
from common import Row, batch, bert, emit, peer, seconds

from lib.maskers.maskers import make_masker
from lib.maskers.passes import masked
from lib.maskers.thresholds import CUTS, estimated_level, exact_level
from lib.training.loading import first_token


class Step:
    "One training step, as often as it is called: all weights, all weights and a masker, or the masker alone"

    def __init__(self, masker=None, joint=False, rows=16, lr=5e-5, move=None, bf16=False, first=False):
        self.model, self.held, self.done, self.move, self.bf16 = bert().train(), ExitStack(), 0, move, bf16
        self.masker = masker and masker(self.model)
        groups = []
        if self.masker is None or joint:
            groups.append({"params": list(self.model.parameters()), "lr": 5e-5})
        if self.masker is not None:
            self.held.enter_context(masked(self.model, self.masker, freeze=not joint))
            groups.append({"params": list(self.masker.parameters()), "lr": lr})
        if first:
            self.held.enter_context(first_token(self.model))
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0, fused=True)
        self.batch = batch(rows)

    def __call__(self):
        self.optimiser.zero_grad()
        if self.masker is not None and self.move is None:
            self.masker.advance(min(self.done, 99))
        self.done += 1
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            loss = self.model(**self.batch).loss
        if self.masker is not None:
            loss = loss + self.masker.penalty()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        self.optimiser.step()
        if self.move:
            self.move(self.masker)


def moved(how, **given):
    "masker -> the threshold of every matrix where the sparsity wants it"

    def move(masker):
        for key, s in masker.named_scores().items():
            masker.set_level(key, how({key: s.detach()}, masker.level(key), 0.5, **given))

    return move


def learned(model):
    "Mask training at half the weights"
    return make_masker("mask_training", model, sparsity=0.5, init="soft")


def movement(rule: str, **options):
    "model -> movement scores over blocks, single weights, or heads"
    ends = {"sparsity": 0.5} if rule == "topk" else {"initial": 0.0, "final": 0.1}
    own = dict(rule=rule, init="uniform", init_scale=0.01, regulariser="l1", **ends)
    return lambda model: make_masker("movement", model, steps=100, unit_options=options, **own)


def gate(model):
    "A gate on every head, exactly 18 open"
    made = make_masker("dsp", model, steps=100, k=18, cooldown=100)
    made.number = 1.0
    return made


def by_sorting(scores, p, minimum=0.0):
    "Top-k as it is mostly written, also in nn_pruning: sort all, fill by index"
    order = scores.detach().flatten().sort(descending=True).indices
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[order[: int(p * scores.numel())]] = True
    return kept.view(scores.shape)


class Sorting(Step):
    "A step whose top-k sorts"

    def __call__(self):
        ours, CUTS["topk"] = CUTS["topk"], by_sorting
        try:
            super().__call__()
        finally:
            CUTS["topk"] = ours


def mask_rows(rounds: int) -> None:
    "Rows 1 and 7"
    still = lambda masker: None  # the threshold stays where it is
    found = seconds(
        {
            "plain": Step(),
            "fixed": Step(learned, move=still),
            "estimated": Step(learned, move=moved(estimated_level)),
            "exact": Step(learned, move=moved(exact_level)),
            "bf16": Step(bf16=True),
        },
        rounds,
    )
    plain, native = found["plain"], native_bf16()
    note = f"a fine-tuning step takes {plain:.2f} s"
    for name, goal in (("fixed", 0.95), ("estimated", 0.95), ("exact", 1.0)):
        what = f"mask-training step / fine-tuning step: threshold {name}{' each step' * (name != 'fixed')}"
        emit(Row("1", what, found[name] / plain, goal, note=note))
    note = "" if native else "this processor has no matrix units for bf16: `precision: auto` is float32 here"
    emit(Row("7", "bf16 step / float32 step, width 384", found["bf16"] / plain, 0.45, note=note))


def native_bf16() -> bool:
    "Whether `precision: auto` means bf16 on this processor for a model of width 384"
    from lib.training.trainer import gains_by_bf16

    return gains_by_bf16(bert(layers=1))


def movement_rows(rounds: int) -> None:
    "Rows 2 and 15"
    weights = dict(block=(1, 1), ffn="default")
    found = seconds(
        {
            "plain": Step(),
            "32 x 32": Step(movement("sigmoid_threshold", block=(32, 32)), lr=1e-2),
            "top-k": Step(movement("topk", **weights), lr=1e-2),
            "plain, 8 rows": Step(rows=8),
            "sigmoid, 8 rows": Step(movement("sigmoid_threshold", **weights), rows=8, lr=1e-2),
            "sorting, 8 rows": Sorting(movement("topk", **weights), rows=8, lr=1e-2),
        },
        rounds,
    )
    share = found["sigmoid, 8 rows"] / found["sorting, 8 rows"]
    emit(Row("2", "movement step, threshold / by sorting all scores, unstructured", share, 1 / 2.8))
    emit(Row("15", "block movement 32 x 32 / plain step", found["32 x 32"] / found["plain"], 1.0))
    emit(Row("15", "unstructured top-k movement / plain step", found["top-k"] / found["plain"], 1.05))


def peer_rows(rounds: int) -> None:
    "Row 2 beside nn_pruning's own binarizer, in the same model, with the same masks"
    what = "movement step, top-k / with nn_pruning's binarizer, unstructured, same masks"
    theirs = peer("nn_pruning", "nn_pruning.modules.binarizer", "2", what, 1 / 3)
    if theirs is None:
        return
    scores = torch.rand(384, 1536)
    for share in (0.1, 0.5, 0.9):
        found = theirs.TopKBinarizer.apply(scores, share).bool()
        assert torch.equal(found, CUTS["topk"](scores, share)), "the masks differ"

    class Theirs(Step):
        def __call__(self):
            ours, CUTS["topk"] = (
                CUTS["topk"],
                lambda s, p, minimum=0.0: theirs.TopKBinarizer.apply(s, p).bool(),
            )
            try:
                super().__call__()
            finally:
                CUTS["topk"] = ours

    weights = dict(block=(1, 1), ffn="default")
    made = {
        name: kind(movement("topk", **weights), rows=8, lr=1e-2)
        for name, kind in (("ours", Step), ("theirs", Theirs))
    }
    found = seconds(made, rounds)
    emit(Row("2", what, found["ours"] / found["theirs"], 1 / 3))


def gate_rows(rounds: int) -> None:
    "Row 3"
    found = seconds(
        {"plain": Step(), "joint": Step(gate, joint=True, lr=0.5), "alone": Step(gate, lr=0.5, first=True)},
        rounds,
    )
    emit(Row("3", "gates alone / fine-tuning step", found["alone"] / found["plain"], 0.55))
    emit(Row("3", "gates and weights / fine-tuning step", found["joint"] / found["plain"], 1.0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    mask_rows(5)
    movement_rows(5)
    peer_rows(3)
    gate_rows(5)
