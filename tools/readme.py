"""Write the README's two tables from nbs/sweeps: `python tools/readme.py` (or `make readme`). A test compares them."""

import re
from pathlib import Path

from lib.core.sweeps import read_yaml

ROOT = Path(__file__).parents[1]
COLUMNS = ["paper", "units", "scores", "rule", "schedule", "loss", "data"]


def sweeps() -> dict:
    "Every sweep file by name, as a dict."
    return {p.name: read_yaml(p) for p in sorted((ROOT / "nbs" / "sweeps").glob("*.yaml"))}


def table(header: list, rows: list) -> str:
    "A Markdown table."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(x) for x in row) + " |" for row in lines)


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
        stages = [
            (i, f"`{name.removesuffix('.yaml')}`: {stage}")
            for stage, raw in sweep["stages"].items()
            for i in raw.get("covers", [])
        ]
        others = [
            *sweep.get("elsewhere", {}).items(),
            *((i, f"left out: {why}") for i, why in sweep.get("left_out", {}).items()),
        ]
        for i, place in stages + others:
            found.setdefault(i, []).append(place)
    return {i: (said.get(i, ""), places) for i, places in found.items()}


def commands() -> str:
    "One row per published command."
    order = lambda i: (i[0], int(re.search(r"\d+", i)[0]), i)
    found = covered()
    return table(
        ["id", "published command or analysis", "stage"],
        [[i, found[i][0], "; ".join(found[i][1])] for i in sorted(found, key=order)],
    )


def filled(text: str) -> str:
    "The README with both tables as they should be."
    for name, body in (("systems", systems()), ("commands", commands())):
        text = re.sub(
            rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)",
            lambda m: f"{m[1]}{body}\n{m[2]}",
            text,
            flags=re.S,
        )  # noqa: B023
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
