"""Runs: what one notebook cannot say, because it takes two processes, a crash, or a thousand folders."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from toys import Project

from lib.core.base import ROOT
from lib.core.files import write_json
from lib.core.folders import IDENTITY, CorruptRun, Run, _sealed, _sealed_params, find_run
from lib.core.keys import run_key
from lib.core.runs import runs, start
from lib.core.testing import write_notebook


def finished(**scope):
    run = start("draw", scope)
    run.path("n.txt").write_text("1011")
    run.finish([{"metric": "n", "value": 1, "split": "dev"}])
    return run


MAKER = "import sys, time; from lib.core.runs import start; run = start('draw', {'seed': 1}); print('started', flush=True); time.sleep(float(sys.argv[1])); run.finish([])"


def maker(project, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(seconds)],
        env=project.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n", process.stderr.read()
    return process


def test_a_second_maker_waits_and_does_not_make_it_again(project):
    first = maker(project, 5)  # longer than the second takes to import
    second = subprocess.run(
        [sys.executable, "-c", MAKER, "0"], env=project.env, capture_output=True, text=True
    )
    assert first.wait() == 0
    assert "AlreadyFinished: draw/" in second.stderr and "started" not in second.stdout


def test_a_killed_maker_lets_go(project):
    first = maker(project, 60)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert find_error(run_key("draw", {"seed": 1})) == "not finished"
    assert maker(project, 0).wait() == 0
    assert find_run(run_key("draw", {"seed": 1})).finished()


def find_error(key):
    with pytest.raises(CorruptRun) as e:
        find_run(key)
    return str(e.value).split(": ")[-1]


def test_a_result_cut_anywhere_is_never_read(project):
    run = finished(seed=1)
    path = run.folder / "result.json"
    whole = path.read_bytes()
    for cut in range(len(whole) - 1):  # the last byte is a newline
        path.write_bytes(whole[:cut])
        assert run.result is None and not run.finished()
    for at in range(0, len(whole) - 1, 3):
        if not chr(whole[at]).isalnum():
            continue
        path.write_bytes(whole[:at] + (b"7" if whole[at : at + 1] != b"7" else b"8") + whole[at + 1 :])
        assert run.result is None, whole[at - 20 : at + 20]
    path.write_bytes(whole)
    assert run.finished()


@pytest.mark.parametrize(
    "content, message",
    [(None, "n.txt is missing"), (b"101", "n.txt has 3 bytes, not 4"), (b"1010", "n.txt was altered")],
)
def test_a_damaged_artefact_is_named_and_never_read(project, content, message):
    run = finished(seed=1)
    (run.folder / "n.txt").unlink()
    if content is not None:
        (run.folder / "n.txt").write_bytes(content)
    with pytest.raises(CorruptRun, match=message):
        run.artefact("n.txt")
    with pytest.raises(CorruptRun, match=message):
        find_run(run.key)
    with pytest.warns(UserWarning, match=message):
        assert runs().empty


def test_damaged_parameters_are_noticed(project):
    run = finished(seed=1)
    (run.folder / "params.json").write_text('{"parameters": {"seed"')
    assert find_error(run.key) == "params.json is missing, cut short or altered"


def test_a_run_begun_again_is_not_finished_until_its_end(project):
    run = finished(seed=1)
    (run.folder / "checkpoints").mkdir()
    again = start("draw", {"seed": 1})
    assert not again.finished() and not (run.folder / "n.txt").exists()
    assert (run.folder / "checkpoints").exists()  # same code: training may go on
    code = run.provenance | {"code": {"notebook": "other"}}
    write_json(run.folder / "params.json", _sealed_params(code))
    start("draw", {"seed": 1})
    assert not (run.folder / "checkpoints").exists()  # other code: it may not


def test_two_processes_write_the_same_bytes(project):
    assert maker(project, 0).wait() == 0
    first = project.results()
    (project.outputs / next(iter(first)) / "result.json").unlink()
    assert maker(project, 0).wait() == 0
    assert project.results() == first


def test_papermill_alone_makes_the_same_run(project):
    from_here = finished(seed=5).key
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(project.folder / "experiments" / "draw.ipynb"),
        str(project.folder / "out.ipynb"),
        "-p",
        "seed",
        "5",
    ]
    subprocess.run(command, env=project.env, check=True, capture_output=True, cwd=project.folder.parent)
    identity = dict.fromkeys(IDENTITY) | {"seed": 5}
    assert find_run(from_here).result["metrics"] == [identity | {"metric": "n", "value": 50}]


def fake(n):
    "So many finished runs, as `finish` would leave them, without their making."
    model = finished(seed=0)
    made, result = model.provenance, model.result
    for seed in range(1, n):
        key, params = run_key("draw", {"seed": seed}), {"seed": seed, "fail": -1, "threads": 1}
        folder = Run("draw", key).folder
        folder.mkdir()
        (folder / "n.txt").write_text("1011")
        own = _sealed_params(made | {"key": key, "parameters": made["parameters"] | params})
        (folder / "params.json").write_text(json.dumps(own))
        rows = [row | {"seed": seed} for row in result["metrics"]] * 3
        own = result | {"seed": seed, "parameters": params, "metrics": rows, "made_by": own["made_by"]}
        (folder / "result.json").write_text(json.dumps(_sealed(own)))


def test_a_thousand_finished_runs_are_collected_in_five_seconds(project):
    fake(1000)
    began = time.time()
    table = runs()
    seconds = time.time() - began
    assert (
        len(table) == 1 + 999 * 3 and sorted(set(table.seed)) == list(range(1000)) and not table.stale.any()
    )
    assert seconds <= 5, f"{seconds:.1f} s"
    print(f"1,000 runs in {seconds:.2f} s")


def seconds_of(project, *command):
    "Processor seconds of `sieve`, with its start, and what it says: other processes do not count."
    before = os.times()
    said, code = project.sieve(*command)
    after = os.times()
    assert code == 0, said
    return sum(after[2:4]) - sum(before[2:4]), said


@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_ten_thousand_finished_runs_are_looked_through_in_seconds(project, n):
    fake(n)
    sweep = project.write(
        f"stages:\n  draw: {{notebook: draw, grid: {{seed: [{', '.join(map(str, range(n)))}]}}}}", "many.yaml"
    )
    for bound, command in [(3, ["status"]), (10, ["run", sweep, "--dry-run"])]:
        seconds, said = seconds_of(project, *command)
        print(f"{n} runs, {command[0]}: {seconds:.2f} s")
        room = bound if n == 10_000 else 1.2 + bound / 10  # with the start of the process
        assert str(n) in said and seconds <= room, f"{seconds:.2f} s"


def mortal():
    "Before a process starts: root too obeys the permissions of files."
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_somebody_elses_outputs_are_read_and_never_written(project):
    run = finished(seed=1)
    (run.folder / "checkpoints").mkdir()  # for gc
    finished(seed=2)
    sweep = project.write("stages: {draw: {notebook: draw, grid: {seed: [1, 2, 3]}}}")
    verbs = [["status"], ["show", run.key], ["run", sweep, "--dry-run"], ["run", sweep], ["gc"]]
    code = f"from lib.commands.cli import main; print([main(verb) for verb in {verbs}]); "
    code += "from lib.core.folders import find_run; from lib.core.runs import runs; from lib.core.runs import start; "
    code += f"print(len(runs()), find_run('{run.key}').artefact('n.txt').read_text()); start('draw', {{'seed': 9}})"
    places = [project.outputs, *project.outputs.rglob("*")]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    (Run("draw", run_key("draw", {"seed": 2})).folder / "n.txt").chmod(0)
    command = [sys.executable, "-c", code]
    options = dict(env=project.env, preexec_fn=mortal, capture_output=True, text=True)
    told = subprocess.run(command, **options, cwd=project.folder)
    for place in places:
        place.chmod(0o755 if place.is_dir() else 0o644)
    assert "[0, 0, 0, 2, 2]\n1 1011\n" in told.stdout, told.stdout + told.stderr
    assert (
        "damaged, made again: draw/" in told.stdout
        and "n.txt cannot be read: permission denied" in told.stdout
    )
    assert told.stderr.count("cannot be written; set SIEVE_OUTPUTS to a folder of your own") == 3
    assert told.stderr.split("Traceback")[0].count("sieve: Permission denied: ") == 2


KILLER = """import os, signal
from lib.core.runs import start
run = start('killer', globals())
made = run.part('a', lambda place: (place / 'n.txt').write_text(str(os.getpid())))
run.path('n.txt').write_text((made / 'n.txt').read_text())
run.finish([])
if not os.path.exists(once):
    open(once, 'w').close()
    os.kill(os.getppid(), signal.SIGKILL)"""


@pytest.mark.slow
def test_a_job_killed_just_after_finish_leaves_no_half_notebook(project):
    once = "once: str = ''  # a file: where it is not, the job dies; not in key"
    write_notebook(project.folder / "analyses" / "killer.ipynb", once, KILLER, "print('the end')")
    params, run = {"once": str(project.folder / "once")}, Run("killer", run_key("killer", {}))
    entry = {"stage": "a", "params": params, "threads": 1, "resources": {}, "upstream": [], "group": 0}
    plan = {"runs": {str(run): entry}, "gpus": [], "redo": False, "helps": False, "places": {}}
    write_json(project.folder / "plan.json", plan)
    command = [sys.executable, "-c", f"from lib.core.engine import job; job('{run}')"]
    options = dict(env=project.env, cwd=project.folder, capture_output=True, text=True)
    assert subprocess.run(command, **options).returncode == -signal.SIGKILL
    kept = (run.folder / "checkpoints" / "a" / "n.txt").read_text()
    assert run.problem() == "not finished" and (project.folder / "once").exists()
    done = subprocess.run(command, **options)
    assert done.returncode == 0 and run.problem() == "", done.stderr
    assert run.artefact("n.txt").read_text() == kept  # what was finished is not made again
    assert "the end" in str(json.loads((run.folder / "run.ipynb").read_text())["cells"][-1]["outputs"])
    assert {p.name for p in run.folder.iterdir()} == {"n.txt", "params.json", "result.json", "run.ipynb"}
    assert not list((project.outputs / ".locks").iterdir())


@pytest.mark.slow
def test_gc_beside_a_sweep_harms_nothing(tmp_path):
    project = Project(tmp_path, wait=0.3)
    sweep, asked = project.popen("run", project.sweep, "-j", "2"), []
    while sweep.poll() is None:
        asked.append(project.sieve("gc"))
    assert sweep.returncode == 0, sweep.communicate()[0]
    assert len(asked) > 5 and [said for said, code in asked if code] == []
    assert len(project.results()) == len(project.made()) == len(set(project.made())) == 9
    assert not list((project.outputs / ".locks").iterdir())


def test_folders_do_not_depend_on_the_working_directory(project):
    code = "from lib.core.base import ROOT, outputs, data_dir; print(ROOT, outputs(), data_dir())"
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIEVE_")} | {"SIEVE_DATA": "somewhere"}
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=place, env=env, capture_output=True, text=True
        ).stdout
        for place in (project.folder, project.folder.parent)
    }
    assert len(said) == 1 and "somewhere" in said.pop()


FIRST = Path(sysconfig.get_path("purelib"), "sieve_lib_first.pth")


@pytest.mark.skipif(
    not FIRST.exists(), reason=f"no {FIRST.name} in this environment: `make setup` puts it there"
)
@pytest.mark.parametrize("place", ["/", "own", "project"])
def test_lib_is_ours_wherever_one_stands(tmp_path, place):
    folder = {"/": Path("/"), "own": tmp_path, "project": ROOT}[place]
    (tmp_path / "lib" / "core").mkdir(parents=True)
    for name in ("lib/__init__.py", "lib/core/__init__.py", "lib/core/base.py"):
        (tmp_path / name).touch()
    code = f"import lib, lib.core.base as base; print(base.ROOT); assert lib.__file__ == {str(ROOT)!r} + '/lib/__init__.py'"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    python = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert python.stdout == f"{ROOT}\n", python.stderr
    write_notebook(tmp_path / "nb.ipynb", "x: int = 1  # nothing", code)
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(tmp_path / "nb.ipynb"),
        str(tmp_path / "out.ipynb"),
        "-k",
        "python3",
    ]
    kernel = subprocess.run(
        command, cwd=folder, env=env | {"JUPYTER_PREFER_ENV_PATH": "1"}, capture_output=True, text=True
    )
    assert kernel.returncode == 0, kernel.stderr[-2000:]
