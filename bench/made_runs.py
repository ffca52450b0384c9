"""Finished runs without their work: for measuring what grows with the number of runs."""

from lib.core.keys import parameters
from lib.core.runs import start


def made(runs: int, first: int = 0, rows: int = 10) -> None:
    "So many finished runs of `draw_masks` under SIEVE_OUTPUTS, each with an artefact and metric rows"
    defaults = {p.name: p.default for p in parameters("draw_masks").values()}
    for seed in range(first, first + runs):
        run = start("draw_masks", defaults | {"seed": seed})
        run.path("drawn.txt").write_text(str(seed))
        run.finish([{"metric": "accuracy", "value": seed / 7, "split": "dev", "n": i} for i in range(rows)])
