"""Write the README's two tables from nbs/sweeps: `python tools/readme.py` (or `make readme`). A test compares them."""
import re
from pathlib import Path

from lib.sweeps import read_yaml

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
    rows = [[f"`{name}`", *(s.get(c, "") for c in COLUMNS)] for name, sweep in sweeps().items() if (s := sweep.get("system"))]
    return table(["sweep", *COLUMNS], rows)


def covered() -> dict:
    "Command id -> (what it is, [sweep: stage, ...]), or (reason, None) for one left out."
    found = {}
    for name, sweep in sweeps().items():
        said = sweep.get("commands", {})
        for stage, raw in sweep["stages"].items():
            for i in raw.get("covers", []): found.setdefault(i, (said.get(i, ""), []))[1].append(f"`{name.removesuffix('.yaml')}`: {stage}")
        for i, places in sweep.get("elsewhere", {}).items(): found[i] = (said.get(i, ""), [places])
        for i, reason in sweep.get("left_out", {}).items(): found[i] = (said.get(i, ""), [f"left out: {reason}"])
    for name, sweep in sweeps().items(): found = {i: (sweep.get("commands", {}).get(i, what), places) for i, (what, places) in found.items()}
    return found


def commands() -> str:
    "One row per published command."
    order = lambda i: (i[0], int(re.search(r"\d+", i)[0]), i)
    return table(["id", "published command or analysis", "stage"], [[i, covered()[i][0], "; ".join(covered()[i][1])] for i in sorted(covered(), key=order)])


def filled(text: str) -> str:
    "The README with both tables as they should be."
    for name, body in (("systems", systems()), ("commands", commands())):
        text = re.sub(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.S)  # noqa: B023
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
