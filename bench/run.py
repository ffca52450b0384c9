"""Every measurement, one after the other, each script in a process of its own; then the table in docs/speed.md.

python bench/run.py            measure all (`make bench`); --table: only write the table anew from bench/speed.json
python bench/run.py steps      these scripts only; what the others found stays in the table"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOUND, PAGE = ROOT / "bench" / "speed.json", ROOT / "docs" / "speed.md"
PEERS = ROOT / ".venv-bench" / "bin" / "python"
SCRIPTS = {"steps": [], "rows": [], "shapes": [], "engine": [], "demo": ["demo"]}  # name -> arguments
SECONDS = 600  # for all; what does not fit is said to be left out
DEMO = 240  # what the demo may need
HEAD = """# Speed

{cpu}, {cores} cores, one thread a measurement; {date}, {took:.0f} s in all. `make bench` measures all of it and writes this page:
medians of calls taken in turn, so that other load hits both sides alike, and equal results asserted first where both
sides give the same. Peers run on the same torch, in an environment of their own (`bench/requirements.txt`).
A ratio is ours divided by the other side's: below 1 we are faster.

| row | what | measured | goal | note |
|---|---|---|---|---|
"""


def measured(name: str, args: list[str], seconds: float) -> list[dict]:
    "Rows of one script; a row that says why where it failed"
    python = str(PEERS) if PEERS.exists() else sys.executable
    script = "engine" if name == "demo" else name
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable if script == "engine" else python,
        "-u",
        str(ROOT / "bench" / f"{script}.py"),
        *args,
    ]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=max(1, seconds)
        )
        said, problem = done.stdout, done.stderr.strip().split("\n")[-1] if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        said, problem = (late.stdout or b"").decode(), "left out: no time was left"
    rows = [json.loads(line) for line in re.findall(r"^ROW (.*)$", said, re.M)]
    if problem:
        rows.append({"number": "", "what": f"the rest of bench/{script}.py", "value": None, "goal": None})
        rows[-1] |= {"unit": "", "more": False, "note": problem[:200].replace("|", "/")}
    return [row | {"script": name} for row in rows]


def cpu() -> str:
    "The processor's name, where the system says it"
    known = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", known.read_text()) if known.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


def shown(number: float | None, unit: str) -> str:
    "A number for people"
    if number is None:
        return "-"
    return f"{number:.3g}{' ' * bool(unit)}{unit}" if unit else f"{number:.2f}"


def line(row: dict) -> str:
    "A line of the table; a goal that is missed says so"
    value, goal = row["value"], row["goal"]
    missed = None not in (value, goal) and (value < goal if row["more"] else value > goal)
    note = "; ".join(filter(None, ["**missed**" * missed, row["note"]]))
    cells = (row["number"], row["what"], shown(value, row["unit"]), shown(goal, row["unit"]), note)
    return f"| {' | '.join(cells)} |\n"


def order(row: dict) -> tuple:
    "By number, 19a behind 19, what failed last"
    number = re.match(r"(\d+)(\w*)", row["number"])
    return (int(number[1]), number[2]) if number else (1000, "")


def table(found: dict) -> str:
    "The page"
    lines = "".join(map(line, sorted(found["rows"], key=order)))
    return HEAD.format(**found["machine"]) + (lines or "\nNothing has been measured yet.\n")


def main(asked: list[str]) -> None:
    began, known = time.monotonic(), json.loads(FOUND.read_text()) if FOUND.exists() else {"rows": []}
    rows = [row for row in known["rows"] if asked and row["script"] not in asked]
    for name in asked or SCRIPTS:
        left = SECONDS - (time.monotonic() - began)
        own = measured(name, SCRIPTS[name], left - DEMO * (not asked and name != "demo"))
        rows += own
        print(f"{name}: {len(own)} rows, {time.monotonic() - began:.0f} s so far", flush=True)
        print("".join(map(line, own)), flush=True)
    machine = {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "date": str(date.today()),
        "took": time.monotonic() - began,
    }
    if not any(row["value"] is not None for row in rows):
        raise SystemExit("nothing was measured: the page stays as it is")
    FOUND.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--table"]:
        main(sys.argv[1:])
    PAGE.write_text(table(json.loads(FOUND.read_text())))
