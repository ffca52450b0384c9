"""Runs: what one costs beyond its own work, two workers beside one, planning, doing nothing, collecting."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, Row, emit
from made_runs import made

SIEVE = [sys.executable, "-c", "from lib.commands.cli import main; main()"]
DRAWS = "title: Drawing\nstages:\n  draw: {notebook: draw_masks, grid: {seed: [SEEDS]}}\n"
TRAININGS = """title: Training
set: {settings: {train: 3000, dev: 300, ood: 300}, max_length: 64}
stages:
  tune: {notebook: finetune, set: {model: tiny, tiny: {layers: 4, width: 128, heads: 4}, max_steps: 120, lr: 1.0e-3}, grid: {seed: [SEEDS]}}
"""


def sieve(*args: str, outputs: Path) -> tuple[float, float]:
    "Seconds of the clock and of the processor that a command and all below it take"
    env = os.environ | {"SIEVE_OUTPUTS": str(outputs), "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*SIEVE, *args], env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-1500:] + done.stderr[-1500:])
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def sweep(folder: Path, text: str, runs: int) -> Path:
    "A sweep of so many runs"
    path = folder / f"sweep-{runs}.yaml"
    path.write_text(text.replace("SEEDS", ", ".join(map(str, range(runs)))))
    return path


def work_of_a_draw() -> float:
    "Processor seconds of what the notebook itself calls, with everything imported"
    from lib.models.architectures import random_model
    from lib.models.speed import random_units

    model = random_model("bert")
    random_units(model, 0.5, 0.5)
    began = time.process_time()
    random_units(model, 0.5, 0.5)
    return time.process_time() - began


def overhead_rows(folder: Path) -> None:
    "Rows 8 and 11"
    took = {
        n: sieve("run", str(sweep(folder, DRAWS, n)), "-j", "2", outputs=folder / f"draws-{n}")
        for n in (4, 24)
    }
    cpu = (took[24][1] - took[4][1]) / 20
    note = f"a drawing computes for {work_of_a_draw():.2f} s; the start of a sweep, {took[4][1] - 4 * cpu:.1f} s CPU, not counted"
    emit(
        Row("8", "cost of a run beyond its own work: one more drawing of masks", cpu, 1.5, "s CPU", note=note)
    )
    path = sweep(folder, DRAWS, 100)
    os.environ["SIEVE_OUTPUTS"] = str(folder / "draws-100")
    made(100)
    wall, _ = sieve("run", str(path), "-j", "2", outputs=folder / "draws-100")
    emit(Row("11", "sweep of 100 finished runs: nothing to do", wall, 2.0, "s"))


def plan_row(folder: Path) -> None:
    "Row 11: until the first job could start"
    wall, _ = sieve("run", str(sweep(folder, DRAWS, 1000)), "--dry-run", outputs=folder / "none")
    emit(Row("11", "plan of 1,000 missing runs", wall, 5.0, "s"))


def worker_row(folder: Path) -> None:
    "Row 9"
    path = sweep(folder, TRAININGS, 4)
    one, two = (sieve("run", str(path), "-j", j, outputs=folder / f"trained-{j}")[0] for j in "12")
    emit(
        Row(
            "9",
            "two workers / one: four trainings of seconds",
            one / two,
            1.85,
            more=True,
            note=f"{one:.0f} s and {two:.0f} s",
        )
    )


def collect_row(folder: Path) -> None:
    "Row 18: 500 runs with ten metric rows"
    os.environ["SIEVE_OUTPUTS"] = str(folder / "made")
    made(500)
    import pandas as pd

    from lib.core.runs import runs

    pd.DataFrame([{"imported": 1}])
    time.sleep(2.1)  # what was written this instant is hashed again: it may still change
    began = time.process_time()
    assert len(runs("draw_masks")) == 5000
    emit(Row("18", "collect finished runs", (time.process_time() - began) / 500 * 1000, 0.5, "ms CPU a run"))


def demo_row(folder: Path) -> None:
    "Row 10"
    wall, _ = sieve("run", "nbs/sweeps/demo.yaml", "-j", "2", outputs=folder / "demo")
    report, _ = sieve("report", "nbs/sweeps/demo.yaml", outputs=folder / "demo")
    emit(Row("10", "`make demo` after installation, 2 cores", (wall + report) / 60, 4.0, "min"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        parts = {"overhead": overhead_rows, "plan": plan_row, "workers": worker_row, "collect": collect_row}
        parts |= {"demo": demo_row}
        for name in sys.argv[1:] or [name for name in parts if name != "demo"]:
            parts[name](Path(place))
