"""What every analysis must do, read from its cells: begin with its page, show everything through it, and end on it."""

import ast
from pathlib import Path

import nbformat
import pytest

from lib.core.sweeps import SweepError, load_sweep

ANALYSES = sorted((Path(__file__).parents[1] / "nbs" / "analyses").glob("*.ipynb"))
THROUGH = (
    "page.",
    "display(page.table(",
    "print(page.table(",
    "curves(",
    "figures(",
)  # the last two draw with it
PUBLISHED = "means.pivot_table('published'"  # printed figures are no examples


def cells(path):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def shown(tree):
    "What the cell shows: its last expression, and whatever is displayed or printed on the way."
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    found = [ast.unparse(n) for n in calls if n.func.id in ("display", "print")]
    last = tree.body[-1]
    return [*found, *([ast.unparse(last)] if isinstance(last, ast.Expr) else [])]


@pytest.mark.parametrize("path", ANALYSES, ids=lambda p: p.stem)
def test_everything_is_shown_and_stored_through_the_page(path):
    after = [c for c in cells(path) if "checks" not in c.metadata.get("tags", [])]
    begins = [i for i, c in enumerate(after) if f'page = begin("{path.stem}", globals())' in c.source]
    assert len(begins) == 1 and after[-1].source.rstrip().splitlines()[-1].startswith(
        ("_ = page.finish(", ")")
    )
    for cell in after[begins[0] :]:
        for text in shown(ast.parse(cell.source)):
            assert text.startswith((*THROUGH, PUBLISHED)), text
        assert not any(
            word in cell.source for word in ("save_figure", "to_csv(", "run.finish", "escape=False")
        )


def test_a_sweep_gives_its_analyses_runs(tmp_path):
    path = tmp_path / "s.yaml"
    for stage, words in (
        ("{notebook: overlap}", "give `over: {runs: [...]}`"),
        ("{notebook: bias_map}", "runs"),
    ):
        path.write_text(f"stages:\n  look: {stage}\n")
        with pytest.raises(SweepError, match="an analysis in a sweep") as error:
            load_sweep(path)
        assert words in str(error.value)
    path.write_text("stages:\n  look: {notebook: overlap, set: {released: lottery}}\n")
    assert len(load_sweep(path).planned) == 1
