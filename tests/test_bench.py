"""The scripts of bench/: the table they write, the fits, the GPU's script at toy size; and, when asked for, the limits that no change may break."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import common
import gpu
import run
import scale
import steps

ROOT = Path(__file__).parents[1]


def test_the_page_is_that_of_what_was_found():
    if run.FOUND.exists():
        assert run.PAGE.read_text() == run.table(json.loads(run.FOUND.read_text()))
    row = dict(
        number="12", what="memory", value=0.7, goal=0.6, unit="GiB", more=False, note="", script="rows"
    )
    assert run.line(row) == "| 12 | memory | 0.7 GiB | 0.6 GiB | **missed** |\n"
    assert "missed" not in run.line(row | {"value": 0.6}) and "missed" in run.line(
        row | {"value": 0.5, "more": True}
    )
    assert run.line(row | {"value": None, "note": "traker not installed"}).endswith(
        "| - | 0.6 GiB | traker not installed |\n"
    )
    assert sorted(({"number": n} for n in ("19a", "2", "", "19")), key=run.order)[0]["number"] == "2"


def test_a_script_that_fails_says_so_and_keeps_what_it_found(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    said = 'print(\'ROW {"number": "1", "what": "w", "value": 1.0, "goal": 2.0, "unit": "", "more": false, "note": ""}\')'
    (tmp_path / "bench" / "rows.py").write_text(f"{said}\nraise ValueError('no such row')")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    first, last = run.measured("rows", [], 60)
    assert first["value"] == 1.0 and last["value"] is None and "no such row" in last["note"]


def test_a_peer_that_is_not_there_is_a_row(capsys):
    assert common.peer("nobody", "nobody_at_all", "2", "what") is None
    assert json.loads(capsys.readouterr().out.removeprefix("ROW "))["note"] == "nobody not installed"


def test_a_fit_finds_the_power():
    fit = scale.Fit([100, 400, 1600], [3 * n**1.25 for n in (100, 400, 1600)])
    assert fit.power == pytest.approx(1.25) and fit.at(20_000) == pytest.approx(3 * 20_000**1.25)


def test_the_arithmetic_of_a_run_by_hand():
    from types import SimpleNamespace

    tuned = SimpleNamespace(
        notebook="finetune", params=dict(task="MRPC", epochs=3.0, max_steps=-1, batch_size=32, max_length=128)
    )
    assert scale.operations(tuned) == pytest.approx(6 * scale.BASE * 128 * 3668 * (3 + 0.1 / 3))
    tuned.params["max_steps"] = 10
    assert scale.operations(tuned) == pytest.approx(6 * scale.BASE * 128 * (320 + 366.8 / 3))


def linear(counts: tuple, most: float) -> None:
    for name, fit in scale.run_fits(counts).items():
        print(f"{name}: {fit.seconds} s, power {fit.power:.2f}")
        assert fit.power <= most, name


def test_planning_status_and_collecting_are_linear_in_the_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))  # put back afterwards
    linear((40, 120, 360), 1.35)


@pytest.mark.slow
def test_they_are_linear_up_to_twenty_thousand_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path))
    linear((1000, 5000, 20_000), 1.15)


def test_the_script_for_a_gpu_runs_on_a_cpu_at_toy_size(tmp_path):
    gpu.main(True, tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["seconds"]) == 9 and min(found["seconds"].values()) > 0 and found["operations"] > 0
    assert (tmp_path / "gpu.md").read_text().count("\n| ") == 10
    with pytest.raises(SystemExit, match="nothing was measured"):
        gpu.main(False, tmp_path) if not torch.cuda.is_available() else sys.exit("nothing was measured")


LIMITS = {  # (script, beginning of what a row measures) -> the most; of shares of an ideal, the least
    "steps": {
        "mask-training step / fine-tuning step: threshold fixed": 1.05,
        "mask-training step / fine-tuning step: threshold estimated": 1.10,
        "movement step, threshold / by sorting": 0.5,
        "block movement 32 x 32": 1.10,
        "gates alone": 0.65,
        "gates and weights": 1.03,
    },
    "rows": {
        "importance, exact per example / training": 0.75,
        "row features of 512": 1.0,
        "TRAK scores": 0.7,
    },
    "shapes": {"half the heads and neurons: share of the ideal speed-up, batch 16": 0.9, "save a mask": 5.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("script", LIMITS)
def test_no_change_breaks_a_limit(script):
    found = {row["what"]: row for row in run.measured(script, [], 900)}
    for what, limit in LIMITS[script].items():
        (row,) = [r for name, r in found.items() if name.startswith(what)]
        print(f"{row['what']}: {row['value']:.3f}")
        assert row["value"] >= limit if row["more"] else row["value"] <= limit, row


@pytest.mark.slow
def test_an_estimated_threshold_is_cheaper_than_sorting_and_blocks_cost_no_more_than_a_step():
    torch.set_num_threads(1)
    makes = {
        name: steps.Step(steps.learned, move=steps.moved(how, **given))
        for name, how, given in (
            ("estimated", steps.estimated_level, {}),
            ("sort", steps.exact_level, {"method": "sort"}),
        )
    }
    blocks = {"64 x 64": {"block": (64, 64)}, "heads": {"block": "head"}}
    makes |= {
        name: steps.Step(steps.movement("sigmoid_threshold", **block), lr=1e-2)
        for name, block in blocks.items()
    }
    makes |= {
        "top-k 32 x 32": steps.Step(steps.movement("topk", block=(32, 32)), lr=1e-2),
        "plain": steps.Step(),
    }
    found = common.seconds(makes, 5)
    print({name: round(t / found["plain"], 3) for name, t in found.items()})
    assert found["sort"] > found["estimated"]
    assert all(found[name] <= 1.10 * found["plain"] for name in (*blocks, "top-k 32 x 32"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in the unit of Linux")
def test_a_mask_training_step_needs_little_more_memory():
    code = "import sys; sys.path.insert(0, 'bench'); from steps import Step, learned; step = Step({}); [step() for _ in range(3)]"
    base = common.peak_gib("import sys; sys.path.insert(0, 'bench'); import steps")
    plain, mask = (
        common.peak_gib(code.format(kind)) - base for kind in ("", "learned, move=lambda masker: None")
    )
    print(f"{mask / plain:.2f}")
    assert mask <= 1.3 * plain


def test_make_bench_installs_what_the_requirements_name():
    said = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "bench/run.py" in said and "-r bench/requirements.txt" in said
    pins = [line for line in (ROOT / "bench" / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert all("==" in pin for pin in pins) and not any(
        pin.startswith(("torch=", "torchvision")) for pin in pins
    )
