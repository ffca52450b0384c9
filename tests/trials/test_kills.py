"""A study is killed at seeded moments and started again: its results are those of an undisturbed one, byte by byte, nothing finished is made again and nothing is left behind."""

import contextlib
import json
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from toys import Project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    said, code = project.sieve("run", project.sweep, "-j", "2")
    assert code == 0, said
    return project.results()


def below(process) -> list:
    "The processes below a `sieve`, in the order of their ages."
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def gone(processes, seconds: float = 15) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def kill_once(project, rng: random.Random) -> list:
    "The processes that were there at the kill."
    process = project.popen("run", project.sweep, "-j", "2")
    time.sleep(rng.uniform(0.5, 8))
    everyone, how = below(process), rng.choice([signal.SIGKILL, signal.SIGTERM])
    whom = rng.choice(["driver", "any", "all"])
    if whom == "driver" or not everyone:
        process.send_signal(how)
    else:
        for victim in everyone if whom == "all" else [rng.choice(everyone)]:
            with contextlib.suppress(psutil.Error):
                victim.send_signal(how)
    process.communicate(timeout=180)
    return everyone


def left_behind(project) -> list[str]:
    "Names of what a finished study leaves but its runs."
    engine = project.outputs / ".engine"
    found = [str(p) for p in engine.glob("*")] + [str(p) for p in project.outputs.glob("*/*/*.part")]
    own = Path(project.env["TMPDIR"])
    return found + [str(p) for p in own.glob("*")]


def trial(folder: Path, undisturbed: dict, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="trial-") as own:
        rng, project = random.Random(seed), Project(folder, wait=0.3)
        project.env |= {"TMPDIR": own}
        kill_and_go_on(project, rng, undisturbed, seed)


def kill_and_go_on(project, rng: random.Random, undisturbed: dict, seed: int) -> None:
    everyone = kill_once(project, rng)
    finished, attempted = project.results(), Counter(project.made())
    for run in finished:
        book = project.outputs / run / "run.ipynb"
        assert not book.exists() or json.loads(book.read_text())["cells"], (
            f"seed {seed}: half a notebook in {run}"
        )
    said, code = project.sieve("run", project.sweep, "-j", "2")
    assert code == 0, said
    assert gone(everyone), f"seed {seed}: somebody lives on"
    again = Counter(project.made()) - attempted
    assert not set(again) & set(finished), f"seed {seed}: a finished run was made again"
    bodies = {json.dumps(json.loads(content), sort_keys=True) for content in project.results().values()}
    assert bodies == {json.dumps(json.loads(content), sort_keys=True) for content in undisturbed.values()}
    assert all(project.results()[run] == content for run, content in finished.items())
    assert project.sieve("run", project.sweep)[1] == 0  # nothing to make: it only tidies up
    assert left_behind(project) == [], f"seed {seed}"


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_and_started_again(tmp_path, undisturbed, seed):
    trial(tmp_path, undisturbed, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 50))
def test_killed_at_many_moments(tmp_path, undisturbed, seed):
    trial(tmp_path, undisturbed, seed)


def test_gc_in_a_loop_harms_nothing(tmp_path):
    project = Project(tmp_path, wait=0.3)
    process, cleanings = project.popen("run", project.sweep, "-j", "2"), 0
    while process.poll() is None:
        said, code = project.sieve("gc", "--yes")
        assert code == 0, said
        cleanings += 1
    said = process.communicate()[0]
    assert process.returncode == 0 and cleanings > 2, said
    assert Counter(Counter(project.made()).values()) == {1: 9}, "a run was made twice"
