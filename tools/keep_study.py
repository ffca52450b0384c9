"""Keep the executed analyses of finished sweeps: `python tools/keep_study.py nbs/sweeps/minilm/robust.yaml ...`.

Written is docs/studies/<sweep>/<stage>.ipynb, for each analysis that is finished: what it showed, without places and times
of this machine; links lead where they did. Nothing is computed. 1 if a sweep has no finished analysis.
"""

import json
import os
import re
import sys
from pathlib import Path

from lib.core.base import notebooks_dir
from lib.core.folders import Run
from lib.core.keys import is_analysis, notebook_path
from lib.core.sweeps import load_sweep
from outputs import ROOT, saved, stored, text

KEPT = ROOT / "docs" / "studies"
LARGEST = 1_000_000  # bytes of a notebook
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s]+)(?=\))")


def _cell(cell: dict, source: Path, target: Path) -> dict:
    "A cell as it is kept."
    words = text("".join(cell["source"]))
    kept = {"cell_type": cell["cell_type"], "id": cell["id"], "metadata": {}}
    if cell["cell_type"] == "markdown":
        moved = lambda m: os.path.relpath(source.parent / m[1], target.parent)
        return kept | {"source": LINK.sub(moved, words)}
    tags = [t for t in cell["metadata"].get("tags", []) if t in ("parameters", "injected-parameters")]
    kept["metadata"] = {"tags": tags} if tags else {}
    found = [o | {"metadata": {}} if "data" in o else o for o in saved(cell["outputs"])]
    for output in found:  # the picture is enough
        output.get("data", {}).pop("image/svg+xml", None)
    return kept | {"source": words, "outputs": list(map(stored, found)), "execution_count": None}


def keep(run: Run, target: Path) -> int:
    "Write what an analysis showed; its bytes."
    book = json.loads((run.folder / "run.ipynb").read_text())
    for cell in book["cells"]:
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = "".join(output["text"])
            data = output.get("data", {})
            data.update({k: "".join(v) for k, v in data.items() if isinstance(v, list)})
    cells = [_cell(c, notebook_path(run.notebook), target) for c in book["cells"]]
    about = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    whole = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    written = json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    if len(written.encode()) > LARGEST:
        raise SystemExit(
            f"{target.name} of {run} would have {len(written) >> 10} KiB; {LARGEST >> 10} are allowed"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(written)
    return len(written.encode())


def main(sweeps: list[str]) -> int:
    "Keep what is finished of each sweep."
    missing = 0
    for name in sweeps:
        sweep = load_sweep(Path(name))
        folder = Path(name).resolve().relative_to(notebooks_dir() / "sweeps").with_suffix("")
        runs = [(p.stage, Run(p.notebook, p.key)) for p in sweep.planned if is_analysis(p.notebook)]
        done = [(stage, run) for stage, run in runs if run.finished()]
        missing += not done
        for i, (stage, run) in enumerate(done):
            more = f"-{i}" * (sum(s == stage for s, _ in done) > 1)
            target = KEPT / str(folder).replace("/", "-") / f"{stage}{more}.ipynb"
            print(f"{target.relative_to(ROOT)}: {keep(run, target) >> 10} KiB")
        print(f"{name}: {len(done)} of {len(runs)} analyses kept")
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
