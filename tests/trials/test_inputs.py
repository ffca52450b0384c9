"""Bad sweeps, parameters and command lines, drawn by seed: no traceback, and one clear line where an input is refused."""

import contextlib
import io
import os
import random
import re
import signal
import time

import pytest
from toys import STUDY

from lib.commands.cli import main
from lib.core.base import ROOT
from lib.core.keys import parameters

SECONDS = 20  # after which an input counts as hanging
VALUES = [  # refused wherever a number, a name or a list of numbers is asked for
    *".nan .inf -.inf 2:00:00 1:30 010 08 0x1f 0b11 1_000 2026-01-02 2026-13-45 1e400 ~ yes".split(),
    *("9" * n for n in (20, 400, 5000)),
    *("!!set {a, b}", "!!omap [a: 1]", "!!binary aGk=", "!!int x", "!!float x", "!!timestamp x", "!!bool x"),
    *("!!map [a]", "!!python/object:os.system x", "!foo x", "&a [*a]", "&a {b: *a}", "*none"),
    *(
        '"\\ud800"',
        '"a\\0b"',
        "{[1]: 2}",
        "{a: 1, a: 2}",
        "{<<: 3}",
        "{.nan: 1}",
        "{a: [.nan]}",
        "{a: 2026-01-02}",
    ),
    *("[" * 60 + "]" * 60, "[" * 4000, "'", '"', "{", "}", "]", "- -", "? :", "@", "`", "%", "\t"),
]
PLACES = [  # where a value stands
    "stages: {draw: {notebook: draw, set: {seed: VALUE}}}",
    "stages: {draw: {notebook: draw, set: {wait: VALUE}}}",
    "stages: {draw: {notebook: draw, grid: {seed: [1, VALUE]}}}",
    "stages: {draw: {notebook: draw, grid: {seed: VALUE}}}",
    "stages: {draw: {notebook: draw, resources: {runtime: VALUE}}}",
    "stages: {draw: {notebook: draw, resources: {mem_mb: VALUE}}}",
    "stages: {draw: {notebook: draw, resources: {gpus: VALUE}}}",
    "stages: {draw: {notebook: draw, grid: {seed: [1]}, where: {seed: VALUE}}}",
    "stages: {draw: {notebook: draw, grid: {seed: [1]}, where: {seed: {not: VALUE}}}}",
    "stages: {draw: {notebook: draw, grid: {seed: [1]}, per: {seed: {1: {threads: VALUE}}}}}",
    "stages: {draw: {notebook: draw, grid: {seed: [1]}, per: {seed: VALUE}}}",
    "stages: {draw: {notebook: VALUE}}",
    "stages: {draw: VALUE}",
    "stages: VALUE",
    "set: VALUE\nstages: {draw: {notebook: draw}}",
    "set: {seed: VALUE}\nstages: {draw: {notebook: draw}}",
    "stages:\n  draw: {notebook: draw}\n  double: {notebook: double, from: {draw: VALUE}}",
    "stages:\n  draw: {notebook: draw}\n  double: {notebook: double, from: VALUE}",
    "stages:\n  double: {notebook: double}\n  sum: {notebook: sum, over: {runs: VALUE}}",
    "stages:\n  double: {notebook: double}\n  sum: {notebook: sum, over: {runs: double}, by: [VALUE]}",
]
KEYS = [
    "1",
    "~",
    "yes",
    "2026-01-02",
    "''",
    "a b",
    "a/b",
    "'a{b}'",
    '"a\\nb"',
    "x" * 61,
    "[a]",
    "{a: b}",
    ".nan",
    "1.5",
]
SMOKE = [
    *("{skip: [draw, double, sum]}", "{skip: VALUE}", "{set: {seed: VALUE}}", "{grid: {seed: VALUE}}"),
    *("{stages: VALUE}", "{stages: {draw: {set: {seed: VALUE}}}}", "{resources: {gpus: VALUE}}", "VALUE"),
]
WORDS = [  # of command lines
    *(["-j", value] for value in ("-1", "0", "1.5", "x", "", "010", "1e3", "9" * 30)),
    *(
        ["--set-resource", value]
        for value in ("gpus=-1", "gpus=yes", "gpu=1", "gpus", "=1", "runtime=2:00:00", "mem_mb=0")
    ),
    *(
        ["--account", "a b"],
        ["--partition", "a;b"],
        ["--partition", "{x}"],
        ["--profile", "nope"],
        ["--profile", "/"],
    ),
    *(["--nonsense"], ["--smoke", "--smok3"], ["another.yaml"]),
]


def sweeps(draw: random.Random, n: int) -> list[tuple[bytes, list]]:
    "(file, more arguments) of n bad sweeps: a value in a place, a name of a stage, a smoke block, a text that was cut or stained."
    study, found = STUDY.replace("WAIT", "0"), []
    whole, smoke = study[: study.index("smoke:")], ["--smoke"]
    for _ in range(n):
        kind = draw.choices(["place", "key", "smoke", "cut", "stain"], [10, 2, 3, 2, 2])[0]
        value, more = draw.choice(VALUES), []
        if kind == "place":
            text = draw.choice(PLACES).replace("VALUE", value).encode("utf-8", "surrogatepass")
        elif kind == "key":
            text = f"stages:\n  {draw.choice(KEYS)}: {{notebook: draw}}".encode()
        elif kind == "smoke":
            text, more = f"{whole}smoke: {draw.choice(SMOKE).replace('VALUE', value)}\n".encode(), smoke
        else:
            at = draw.randrange(20, len(study))
            text = (
                study[:at].encode()
                if kind == "cut"
                else study[:at].encode() + draw.randbytes(3) + study[at:].encode()
            )
        found.append((text, more))
    return found


def values_of(kind: str, draw: random.Random) -> str:
    "A value, as YAML, that a parameter of this type should not have."
    small = [
        "-1",
        "0",
        "-0.5",
        "1000000000",
        "3.5",
        "''",
        "[]",
        "{}",
        "nonsense",
        "[1, a]",
        "{a: 1}",
        "../../x",
        "*",
        "%s",
    ]
    return draw.choice(
        [*VALUES[:18], *small, *(["[0, 0]", "[-1]", "['']"] if kind.startswith("list") else [])]
    )


@contextlib.contextmanager
def alarm():
    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(arguments: list) -> tuple[str, str]:
    "(planned, refused, or what went wrong; what was said)"
    out, err = io.StringIO(), io.StringIO()
    try:
        with alarm(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*arguments, "--dry-run"])
    except BaseException as e:  # a traceback, an exit, or a hang
        return f"{type(e).__name__}: {e}"[:200], err.getvalue()
    said = err.getvalue()
    if code == 0:
        return "planned", out.getvalue()
    clear = code == 2 and said.startswith("sieve: ") and said.count("\n") == 1 and 20 < len(said) < 2000
    unforeseen = re.search(r"stage \w+: [A-Z]\w*(Error|Exception): ", said)
    return ("refused" if clear and not unforeseen else "unclear"), said


def told(wrong: list) -> str:
    return "\n".join(f"{what}\n  of {given}\n  said {said[-300:]}" for what, said, given in wrong)


def try_sweeps(project, seed: int, n: int) -> dict:
    counts, wrong = {}, []
    path = project.folder / "bad.yaml"
    for text, more in sweeps(random.Random(seed), n):
        path.write_bytes(text)
        what, said = outcome(["run", str(path), *more])
        counts[what] = counts.get(what, 0) + 1
        if what not in ("planned", "refused"):
            wrong.append((what, said, text[:300]))
    assert not wrong, told(wrong)
    assert not project.outputs.exists() or not list(project.outputs.glob("[!.]*"))
    return counts


def test_a_sample_of_bad_sweeps_and_command_lines(project):
    began, counts = time.time(), try_sweeps(project, 1, 30)
    assert counts["refused"] >= 25 and time.time() - began < 10, counts
    for words in WORDS:
        what, said = outcome(["run", project.sweep, *words])
        assert what == "refused", (words, what, said)


@pytest.mark.parametrize(
    "place", [p for p in PLACES if "{seed: VALUE}" in p or "[1, VALUE]" in p or "resources" in p]
)
def test_no_value_that_can_be_read_in_two_ways_is_planned(project, place):
    path = project.folder / "bad.yaml"
    for value in VALUES[: VALUES.index("~")]:
        path.write_text(place.replace("VALUE", value))
        what, said = outcome(["run", str(path)])
        assert what == "refused" and str(path) in said, (value, what, said)


@pytest.mark.slow
def test_bad_sweeps(project):
    counts = try_sweeps(project, 2, 260)
    print(counts)
    assert counts["refused"] >= 220, counts


@pytest.mark.slow
def test_bad_values_of_every_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / "outputs"))
    books = sorted(
        p.stem for folder in ("experiments", "analyses") for p in (ROOT / "nbs" / folder).glob("*.ipynb")
    )
    draw, counts, wrong = random.Random(3), {}, []
    for i in range(120):
        book = books[i % len(books)]
        name, p = draw.choice(sorted(parameters(book).items()))
        text = f"stages: {{one: {{notebook: {book}, set: {{{name}: {values_of(p.type, draw)}}}}}}}"
        (tmp_path / "bad.yaml").write_text(text)
        what, said = outcome(["run", str(tmp_path / "bad.yaml")])
        counts[what] = counts.get(what, 0) + 1
        if what not in ("planned", "refused"):
            wrong.append((what, said, text[:300]))
    print(counts)
    assert not wrong, told(wrong)
    assert not os.path.exists(tmp_path / "outputs") or not list((tmp_path / "outputs").glob("[!.]*"))
