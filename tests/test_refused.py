"""Bad values of every notebook's parameters: what a sweep refuses while it is planned, before a kernel starts."""

import json

import pytest

from lib.core.base import notebooks_dir
from lib.core.sweeps import SweepError, check_inputs, load_sweep

KEYS = ["aaaaaaaaaa", "bbbbbbbbbb"]
TRAINED = [  # what every training takes
    *({"lr": v} for v in (0, -1e-3, ".inf")),
    *({"epochs": v} for v in (0, -1)),
    {"max_steps": -2},
    {"batch_size": 0},
    {"max_length": 0},
    {"seed": -1},
    {"threads": -1},
    {"precision": "fp8"},
    {"task": "synthetic-nlp"},
]
SETS = [{"settings": {part: 0}} for part in ("train", "dev", "ood")]
ROWS = [{"settings": {part: 0}} for part in ("train", "dev", "test")]
TINY = [{"tiny": {"layers": 0}}, {"tiny": {"width": 30, "heads": 4}}, {"tiny": {"layer": 2}}]
DSP = {"masker": "dsp", "units": "head"}
BAD = {
    "finetune": [
        *TRAINED,
        {"keep_model": "last_and_moments", "max_steps": 0},
        *SETS,
        *TINY,
        {"model": ""},
        {"accumulation": 0},
        {"warmup_steps": -1},
        {"stop_at": 9, "max_steps": 5},
        {"look_rows": 0},
        {"weight_decay": -0.5},
        {"smoothing": 1.0},
        {"sparsity": 1.0},
        {"sparsity": 0.5},
        {"metric": "acuracy"},
        {"sets": ["repotr"]},
        {"sets": ["report", "report"]},
        {"loss": "poe"},
        {"loss": "pow"},
        {"keep_model": "first"},
    ],
    "train_mask": [
        *TRAINED,
        *SETS,
        *TINY,
        {"max_steps": 0},
        {"k": 3.5},
        {"k": -3, **DSP},
        {"masker_options": {"k": 3.5}, **DSP},
        {"masker_options": {"initial": 0}, "k": 4, **DSP},
        {"masker_options": {"initial": -1.0}, "k": 4, **DSP},
        {"masker_options": {"initial": 1.0, "final": 2.0}, "k": 4, **DSP},
        {"masker_options": {"cooldown": -1}, "k": 4, **DSP},
        {"masker_options": {"cooldown": 100}, "max_steps": 50, "k": 4, **DSP},
        {"masker_options": {"update_every": 0}},
        {"masker_options": {"sparsity": 1.5}},
        {"masker_options": {"sparseness": 0.5}},
        {"masker_options": {"initial": 0.1, "rise_until": 2.0}, "max_steps": 50},
        {"masker": "movement", "masker_options": {"warmup_steps": 9}, "max_steps": 20},
        {"masker": "moovement"},
        {"sparsity": -0.5},
        {"sparsity": 0.5, "masker": "dsp"},
        {"units": "neuron"},
        {"draw": 1},
        {"start_ratio": -0.5},
        {"evaluate_every": -1},
        {"evaluation_rows": 0},
        {"held_out": 0},
        {"loss": "debiasing", "tests": ["synthetik"]},
        {"metric": "acuracy"},
        {"head": "encoder"},
    ],
    "select_units": [
        {"remove": {"head": 1}},
        {"remove": {"head": -0.5}},
        {"remove": {"head": True}},
        {"remove": {"heads": 0.5}},
        {"remove": {}},
        {"remove": {"mlp": 0.5}, "scope": "layer"},
        {"scope": "all"},
        {"scores": KEYS[:1]},
        {"task": "synthetic-nlp"},
    ],
    "iterative_pruning": [*TRAINED, *SETS, *TINY, {"max_steps": 0}, {"turns": 1}, {"scope": "all"}],
    "masked_lm": [
        *TRAINED[:3],
        *TRAINED[6:],
        {"model": ""},
        {"dropout": 1.0},
        {"dropout": -0.5},
        {"steps": -1},
    ],
    "importance": [
        *SETS,
        *TINY,
        *({name: 0} for name in ("per_step", "amount", "threshold", "rows", "batch_size", "max_length")),
        {"scores": "exemple"},
        {"at_least": -1},
        {"task": "STS-B", "procedure": "rank"},
    ],
    "magnitude": [*SETS, {"step": 0}, {"step": 1}, {"threshold": 1.1}, {"max_steps": 0}, {"scores": "size"}],
    "evaluate": [*SETS, *TINY, {"draws": 0}, {"beams": 0}, {"batch_size": 0}, {"masks": KEYS[:1] * 2}],
    "draw_masks": [
        {"task": "MRCP"},
        {"kind": "goood"},
        {"kind": "super_good", "mask": "x"},
        {"kind": "bad", "runs": ["x", "y"]},
        {"runs": KEYS[:1] * 2, "kind": "super_good"},
    ],
    "bias_model": [
        *SETS,
        {"folds": 1},
        {"folds": -1},
        {"few": -2},
        {"stored_labels": ["a"]},
        {"kind": "lexicle"},
    ],
    "bias_tests": [{"tests": []}, {"tests": ["seet"]}, {"tests": ["seat"], "seat": []}, {"max_length": 0}],
    "classify_heads": [*SETS, {"sentences": 0}, {"gallery": -1}, {"classifiers": KEYS[:1] * 2}],
    "draw_maps": [*SETS, {"tasks": []}, {"tasks": ["MRCP"]}, {"seeds": []}, {"each": 0}, {"seeds": [1, 1]}],
    "pattern_classifier": [
        {"settings": {"train": 0}},
        {"settings": {"low": 40, "high": 16}},
        {"epochs": -1},
        {"held_out": 0},
    ],
    "data_removal": [
        *TRAINED,
        *ROWS,
        {"model": ""},
        {"ks": []},
        {"ks": [5]},
        {"remove": "random", "ks": [5, 5]},
        {"remove": "random", "ks": [-2]},
        {"attribution": "x"},
        {"keep": "last_and_moments", "keep_model": False},
    ],
    "attribution": [
        *ROWS,
        {"method": "track"},
        {"options": {"ridge": 1}},
        {"options": {"output": "accuracy"}},
        {"options": {"normaliser": "adam"}},
        {"batch_size": 0},
        {"models": KEYS[:1] * 2},
    ],
    "retrain_subsets": [*TRAINED, *ROWS, {"m": 2}, {"share": 1.0}, {"seeds": 0}, {"model": ""}],
    "speed": [
        {"batch_sizes": [0]},
        {"lengths": []},
        {"repetitions": 0},
        {"keep_heads": 1.5},
        {"masks": KEYS[:1] * 2},
    ],
    "heatmap": [{"runs": KEYS[:1] * 2}, {"runs": KEYS, "top": 0}, {"released": "x", "family": ""}, {}],
    "overlap": [{"runs": KEYS, "families": []}, {"runs": []}],
    "results": [{"runs": KEYS, "resamples": 0}, {"runs": KEYS[:1] * 2}],
    "attention_patterns": [{"runs": KEYS, "draws": 0}, {"runs": KEYS, "pictures": 0}],
    "sparsity_curves": [{"runs": KEYS, "reference": ""}],
    "head_curves": [{"runs": KEYS, "reference": ""}, {"runs": KEYS, "share": 0}],
    "bias_map": [{"runs": KEYS, "reference": ""}],
    "data_debiasing": [{"runs": KEYS, "reference": ""}, {"runs": KEYS, "examples": 0}],
}
CASES = [(notebook, values) for notebook, some in BAD.items() for values in some]


def planned(notebook, values, folder):
    "Plan a sweep of one stage; no kernel starts."
    path = folder / "s.yaml"
    path.write_text(json.dumps({"stages": {"one": {"notebook": notebook, "set": values}}}))
    check_inputs(load_sweep(path).planned, path)


@pytest.mark.parametrize("notebook, values", CASES, ids=lambda v: v if isinstance(v, str) else json.dumps(v))
def test_a_bad_value_is_one_line_when_the_sweep_is_planned(notebook, values, tmp_path):
    with pytest.raises(SweepError) as error:
        planned(notebook, values, tmp_path)
    assert "stage one" in str(error.value) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize("notebook", BAD)
def test_the_defaults_can_be_planned(notebook, tmp_path):
    if any("runs" in values for values in BAD[notebook]) and notebook not in ("draw_masks",):
        pytest.skip("an analysis needs runs")
    planned(notebook, {}, tmp_path)


SYNTHETIC = [
    "attention",
    "d3m",
    "d3m-synthetic",
    "srnets-synthetic",
    "demo",
    "gender",
    "gender-synthetic",
    "head_gates",
    "lottery",
    "srnets",
]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_no_study_holds_such_a_value(name):
    path = notebooks_dir() / "sweeps" / f"{name}.yaml"
    check_inputs(load_sweep(path, smoke=True).planned, path)


def test_there_are_enough_of_them():
    assert len(CASES) >= 100 and len({json.dumps(case) for case in CASES}) == len(CASES)
