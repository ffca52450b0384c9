"""Write the generated tables of README.md and docs/: `python tools/readme.py` (or `make readme`). A test compares them."""

import json
import re
import tomllib
from pathlib import Path

from lib.core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
COLUMNS = ["paper", "units", "scores", "rule", "schedule", "loss", "data"]
ROOMS = {
    "core": "what a run is, and how many are made",
    "data": "rows with names: tasks (`08_tasks`), sets out of distribution such as HANS and PAWS (`09_ood`), groups",
    "models": "slices of parameters; put a mask on, take units out, save",
    "metrics": "numbers and their intervals; WEAT and SEAT (`5_bias`), StereoSet and CrowS-Pairs of a model (`6_bias_scores`)",
    "maskers": "scores -> mask: top-k, threshold; mask training, movement, DSP, hard concrete",
    "losses": "what is trained for (PoE, reweighting, confidence regularisation), and bias models",
    "training": "one loop, and recipes for it",
    "attribution": "how much each unit, and each training row, matters: importance, TRAK, EK-FAC, LDS",
    "study": "one tidy frame of what runs found; every figure a function of a frame",
    "commands": "the `sieve` command: what each of its verbs does",
    "experiments": "named by operation: compute, export nothing",
    "analyses": "read finished runs, never train; each ends in figures",
}


def sweeps() -> dict:
    "Every sweep file by name, as a dict."
    return {p.name: read_yaml(p) for p in sorted((ROOT / "nbs" / "sweeps").glob("*.yaml"))}


def table(header: list, rows: list) -> str:
    "A Markdown table."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(x) for x in row) + " |" for row in lines)


def title(notebook: Path) -> str:
    "A notebook's first heading."
    first = "".join(json.loads(notebook.read_text())["cells"][0]["source"])
    return first.splitlines()[0].lstrip("# ")


def subtitle(notebook: Path) -> str:
    "What a notebook says of itself below its title."
    first = "".join(json.loads(notebook.read_text())["cells"][0]["source"])
    quoted = [line.lstrip("> ").strip() for line in first.splitlines() if line.startswith(">")]
    return " ".join(quoted) or next((x for x in first.splitlines()[1:] if x.strip()), "")


def order() -> list[str]:
    "The folders of notebooks, in the order of reading."
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sieve"]["rooms"]
    return [*(room for line in lines for room in line), "experiments", "analyses"]


def notebooks() -> str:
    "One row per notebook: where it stands, and what it says of itself."
    books = [p for room in ["", *order()] for p in sorted((ROOT / "nbs" / room).glob("*.ipynb"))]
    place = lambda p: p.relative_to(ROOT / "nbs").as_posix()  # noqa: E731
    link = lambda p: f"[`{place(p).removesuffix('.ipynb')}`](../nbs/{place(p)})"  # noqa: E731
    return table(
        ["notebook", "title", "what"], [[link(p), title(p), subtitle(p).replace("|", "/")] for p in books]
    )


def rooms() -> str:
    "One row per folder of notebooks: what it is for."
    return table(["room", "what for"], [[f"`{room}`", ROOMS[room]] for room in order()])


def systems() -> str:
    "One row per system: the sweep's `system` block."
    rows = [
        [f"`{name}`", *(s.get(c, "") for c in COLUMNS)]
        for name, sweep in sweeps().items()
        if (s := sweep.get("system"))
    ]
    return table(["sweep", *COLUMNS], rows)


def covered() -> dict:
    "Command id -> (what it is, [sweep: stage, or where else, or why it is left out])."
    said, found = {}, {}
    for name, sweep in sweeps().items():
        said |= sweep.get("commands", {})
        for stage, raw in sweep["stages"].items():
            for i in raw.get("covers", []):
                found.setdefault(i, []).append(f"`{name.removesuffix('.yaml')}`: {stage}")
        for i, place in sweep.get("elsewhere", {}).items():
            found.setdefault(i, []).append(place)
        for i, why in sweep.get("left_out", {}).items():
            found.setdefault(i, []).append(f"left out: {why}")
    return {i: (said.get(i, ""), places) for i, places in found.items()}


def commands() -> str:
    "One row per published command."
    order = lambda i: (i[0], int(re.search(r"\d+", i)[0]), i)  # noqa: E731
    found = covered()
    rows = [[i, found[i][0], "; ".join(found[i][1])] for i in sorted(found, key=order)]
    return table(["id", "published command or analysis", "stage"], rows)


TABLES = {
    "README.md": {"rooms": rooms},
    "docs/sweeps.md": {"systems": systems},
    "docs/commands.md": {"commands": commands},
    "docs/notebooks.md": {"notebooks": notebooks},
}


def _between(body: str):
    "What re.sub puts between the marks of a table."
    return lambda m: f"{m[1]}{body}\n{m[2]}"


def filled(page: str) -> str:
    "A page with its tables as they should be."
    text = (ROOT / page).read_text()
    for name, make in TABLES[page].items():
        opening, closing = rf"<!-- {name}:[^\n]*-->\n", rf"<!-- /{name} -->"
        text = re.sub(f"({opening}).*?({closing})", _between(make()), text, flags=re.S)
    return text


if __name__ == "__main__":
    for page in TABLES:
        (ROOT / page).write_text(filled(page))
