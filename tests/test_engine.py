"""The engine and the command: crashes, two at once, damage, failure, dry runs, the report."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from toys import STUDY, Project, command

from lib.core import engine
from lib.core.testing import write_notebook
from lib.core.warm import client_command

TRUE = [("sum", 200)] + [
    ("n", value) for value in (10, 20, 30, 40, 20, 40, 60, 80)
]  # of the study, undisturbed


def numbers(project):
    rows = [json.loads(content)["metrics"][0] for content in project.results().values()]
    return Counter((row["metric"], row["value"]) for row in rows)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("undisturbed") / "its own folder")
    for name in (
        "random",
        "snakemake",
        "papermill",
        "numpy",
    ):  # a stranger's folder, in which the command is given
        project.write(f"open({str(project.folder / 'executed')!r}, 'a').write(__name__)", f"{name}.py")
    said, code = project.sieve("run", project.sweep, "-j", "2")
    assert code == 0, said
    return project, said


def test_a_sweep_from_end_to_end(undisturbed):
    project, said = undisturbed
    assert numbers(project) == Counter(TRUE)
    assert re.search(r"\[9/9\] sum/[0-9a-f]{10}  sum", said) and said.count("\n") == 10
    assert len(project.made()) == len(set(project.made())) == 9
    assert not list((project.outputs / ".engine").iterdir())


def test_no_process_executes_a_file_of_the_working_directory(undisturbed):
    assert not (undisturbed[0].folder / "executed").exists()


def test_the_second_time_nothing_is_started(undisturbed):
    project, _ = undisturbed
    began = time.time()
    said, code = project.sieve("run", project.sweep)
    assert (said, code) == ("toys: 9 runs, 9 finished\n", 0) and time.time() - began < 5
    assert len(project.made()) == 9


def test_the_report_is_one_file(undisturbed):
    project, _ = undisturbed
    said, code = project.sieve("report", project.sweep)
    page = (project.outputs / "reports" / "toys.html").read_text()
    assert code == 0 and said.strip().endswith("reports/toys.html")
    assert "the sum is 200" in page and "<title>Toys</title>" in page and "<summary>Code</summary>" in page
    assert not re.search(r"<script|<link|<iframe|src=[\"']?http|@import", page, re.I)


def test_status_show_du(undisturbed):
    project, _ = undisturbed
    assert re.search(r"draw +4 +0 +0 +0 +0\n", project.sieve("status")[0])
    name = next(name for name in project.results() if name.startswith("draw/"))
    said, code = project.sieve("show", name)
    assert code == 0 and name in said and "finished" in said and "n.txt = 2 bytes" in said
    assert re.search(r"double +4 ", project.sieve("du")[0])


def test_a_forge_that_outlasts_invocations_makes_the_runs(project, monkeypatch):
    def no_other_way(place, kind, args, instead):
        return client_command(place, kind, args, ["/bin/false"])

    monkeypatch.setattr(engine, "client_command", no_other_way)
    monkeypatch.setattr(engine, "forge", None)  # one of its own cannot be started
    done = command("run", project.sweep, "-j", "2", cwd=project.folder)
    assert done.returncode == 0 and "[9/9]" in done.stdout, done.stdout + done.stderr
    assert numbers(project) == Counter(TRUE)


def test_a_dry_run_starts_nothing(tmp_path):
    project = Project(tmp_path)
    said, code = project.sieve("run", project.sweep, "--smoke", "--dry-run")
    assert (
        code == 0
        and "toys: 3 runs, 0 finished, 3 to make" in said
        and len(re.findall("(draw|double|sum) seed=1|  sum", said)) == 3
    )
    assert not project.results() and not project.made()


def test_slurm_jobs_ask_for_what_their_stage_says(tmp_path):
    study = STUDY.replace(
        "grid: {seed: [1, 2, 3, 4]}",
        "grid: {seed: [1]}, resources: {runtime: 30, mem_mb: 4000, gpus: 1, partition: short}",
    )
    project = Project(tmp_path, study=study)
    said, code = project.sieve("run", project.sweep, "--profile", "slurm", "--dry-run")
    assert code == 0, said
    asked = re.findall(r"resources: (.*)", said)
    assert any(
        all(word in line for word in ("runtime=30", "mem_mb=4000", "gpu=1", "slurm_partition=short"))
        for line in asked
    ), said
    assert (
        sum("runtime=240" in line and "mem_mb=16000" in line and "gpu" not in line for line in asked) == 3
    ), said  # the others get the profile's own
    assert not project.results() and not list((project.outputs / ".engine").iterdir())
    assert (
        "no profile 'slrum'; there are slurm" in project.sieve("run", project.sweep, "--profile", "slrum")[0]
    )


def test_a_failure_is_short_and_the_rest_goes_on(tmp_path):
    project = Project(tmp_path, study=STUDY.replace("set: {wait: WAIT}, grid", "set: {fail: 2}, grid"))
    said, code = project.sieve("run", project.sweep, "-j", "2")
    assert code != 0
    failed = said[said.index("FAILED") :].split("\n[")[0].split("\n")
    assert len(failed) <= 10
    for word in (
        "draw/",
        "seed=2",
        "cell 4: assert seed != fail, 'asked to fail'",
        "AssertionError: asked to fail",
        "run.ipynb",
    ):
        assert word in said
    assert (
        "7 of 9 runs made" not in said and "6 of 9 runs made, 1 failed, 2 not started" in said
    )  # three draws and what is below them
    kept = re.search(r"notebook: (.*run.ipynb)", said)[1]
    assert "asked to fail" in open(kept).read()
    again, _ = project.sieve("run", project.sweep)
    assert "6 finished, 3 to make" in again


def test_damage_is_named_and_made_again(tmp_path):
    project = Project(tmp_path)
    assert project.sieve("run", project.sweep, "--smoke")[1] == 0
    before = project.results()
    double, draw, total = before  # by name
    (project.outputs / draw / "n.txt").write_text("11")
    (project.outputs / double / "result.json").write_bytes(before[double][:100])
    said, code = project.sieve("run", project.sweep, "--smoke")
    assert (
        code == 0
        and f"damaged, made again: {draw}: n.txt was altered" in said
        and f"damaged, made again: {double}: result.json is cut short" in said
    )
    assert project.results() == before and Counter(project.made()) == {draw: 2, double: 2, total: 1}


def test_stale_runs_are_kept_counted_and_made_again_when_asked(tmp_path):
    project = Project(tmp_path)
    project.sieve("run", project.sweep, "--smoke")
    book = json.loads((tmp_path / "experiments" / "double.ipynb").read_text())
    book["cells"][-1]["source"] += "\nprint('another line')"
    (tmp_path / "experiments" / "double.ipynb").write_text(json.dumps(book))
    said, code = project.sieve("run", project.sweep, "--smoke")
    assert code == 0 and "1 stale runs kept (notebook changed)" in said and len(project.made()) == 3
    said, code = project.sieve("run", project.sweep, "--smoke", "--stale")
    assert code == 0 and [run.split("/")[0] for run in project.made()[3:]] == ["double", "sum"]
    assert project.sieve("run", project.sweep, "--smoke", "--stale")[0] == "toys: 3 runs, 3 finished\n"


def test_two_at_once_share_the_work(tmp_path):
    project = Project(tmp_path, wait=1)
    both = [project.popen("run", project.sweep, "-j", "1") for _ in range(2)]
    said = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert numbers(project) == Counter(TRUE)
    assert Counter(project.made()).most_common(1)[0][1] == 1  # none was made twice
    assert all("made by another process" in text for text in said), said  # each made some


def family(process):
    "The jobs and kernels below a sieve."
    below = []
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
    named = {"job": [], "kernel": []}
    for child in below:
        with contextlib.suppress(psutil.Error):
            line = " ".join(child.cmdline())
            if "lib.core.engine import job" in line and "snakemake" not in line and "bash" not in line:
                named["job"].append(child)
            if "ipykernel_launcher" in line:
                named["kernel"].append(child)
    return named


def kill_when(project, process, ended, whom):
    "SIGKILL the processes named in `whom` once `ended` runs are finished and another is in flight; runs finished by then."
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        below = family(process)
        if (
            len(project.results()) >= ended
            and len(project.made()) > len(project.results())
            and below["kernel"]
        ):
            if "driver" in whom:
                process.kill()
            for name in whom:
                for child in below.get(name, []):
                    with contextlib.suppress(psutil.Error):
                        child.kill()
            return
        time.sleep(0.02)
    raise AssertionError("the moment did not come")


def check_recovery(project, undisturbed, ended, whom):
    process = project.popen("run", project.sweep, "-j", "2")
    kill_when(project, process, ended, whom)
    process.communicate(timeout=120)
    finished, attempted = set(project.results()), Counter(project.made())
    said, code = project.sieve("run", project.sweep, "-j", "2")
    assert code == 0, said
    assert numbers(project) == Counter(TRUE)
    again = Counter(project.made()) - attempted
    assert not set(again) & finished, "a finished run was made again"
    assert all(n <= 2 for n in Counter(project.made()).values())
    assert sum(n == 2 for n in Counter(project.made()).values()) <= 2, (
        "more was made again than was in flight"
    )
    values = {json.dumps(json.loads(content), sort_keys=True) for content in project.results().values()}
    assert values == {
        json.dumps(json.loads(content), sort_keys=True) for content in undisturbed[0].results().values()
    }
    assert not list((project.outputs / ".locks").iterdir())  # every lock file went with its owner
    books = [Path(project.outputs, name, "run.ipynb") for name in project.results()]
    assert all(
        json.loads(p.read_text())["metadata"]["papermill"]["end_time"] for p in books
    )  # written to the end


def test_killed_and_started_again(tmp_path, undisturbed):
    check_recovery(Project(tmp_path, wait=0.5), undisturbed, 3, ["driver", "job"])


@pytest.mark.slow
@pytest.mark.parametrize("whom", [["driver"], ["job"], ["driver", "job"], ["kernel"]], ids="+".join)
@pytest.mark.parametrize("ended", [0, 1, 3, 5, 7])
def test_killed_at_five_moments(tmp_path, undisturbed, ended, whom):
    check_recovery(Project(tmp_path, wait=0.5), undisturbed, ended, whom)


@pytest.mark.slow
def test_overhead_over_bare_papermill(tmp_path):
    study = "stages:\n  draw: {notebook: draw, grid: {seed: [" + ", ".join(map(str, range(12))) + "]}}\n"
    project = Project(tmp_path, study=study)
    began = time.time()
    one = f"{sys.executable} -m papermill {tmp_path}/experiments/draw.ipynb {tmp_path}/out{{}}.ipynb -p seed {{}}"
    subprocess.run(
        ["bash", "-c", f"seq 100 111 | xargs -P 2 -I{{}} {one}"],
        env=project.env,
        check=True,
        capture_output=True,
    )
    bare = time.time() - began
    began = time.time()
    said, code = project.sieve("run", project.sweep, "-j", "2")
    sieve = time.time() - began
    assert code == 0, said
    print(
        f"12 runs by 2 workers: papermill {bare:.1f} s, sieve {sieve:.1f} s, {(sieve - bare) / 12:.2f} s per run"
    )
    assert (sieve - bare) / 12 <= 1


@pytest.mark.parametrize(
    "name", ["SIGINT", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGTERM", "SIGHUP"))]
)
def test_stopping_the_driver_stops_the_jobs(tmp_path, name):
    project = Project(tmp_path, wait=30)
    process = project.popen("run", project.sweep, "-j", "1")
    while not project.made():
        time.sleep(0.05)
    below = family(process)
    os.kill(process.pid, getattr(signal, name))
    said, _ = process.communicate(timeout=60)
    by = "" if name == "SIGINT" else f" by {name}"
    assert process.returncode == 2 and f"stopped{by}; the same command goes on" in said
    psutil.wait_procs(below["job"] + below["kernel"], timeout=15)
    assert not any(
        p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below["job"] + below["kernel"]
    )


@pytest.mark.slow
def test_a_full_disk_is_named(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        project = Project(tmp_path / "project", wait=3)
        project.env["SIEVE_OUTPUTS"] = str(disk / "outputs")
        process = project.popen("run", project.sweep, "--smoke")
        while not project.made() and process.poll() is None:
            time.sleep(0.05)
        with contextlib.suppress(OSError), open(disk / "rest", "wb") as rest:
            while True:
                rest.write(bytes(4096))
                rest.flush()
        said, _ = process.communicate(timeout=120)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert process.returncode and "no space left on device" in said.lower() and "was killed" not in said, said


def test_kernels_that_begin_as_copies_show_figures(tmp_path):
    project = Project(tmp_path, study="stages: {look: {notebook: look, grid: {seed: [1, 2]}}}")
    draw = "import matplotlib.pyplot as plt\nfrom lib.core.runs import start\nrun = start('look', globals())"
    show = "figure, axes = plt.subplots()\naxes.plot([seed, 2])\ndisplay(figure)\nplt.close()\nrun.finish([])"
    write_notebook(tmp_path / "experiments" / "look.ipynb", "seed: int = 0  # of all", draw, show)
    said, code = project.sieve("run", project.sweep, "-j", "2")
    assert code == 0, said
    for book in project.outputs.glob("look/*/run.ipynb"):
        outputs = [o for cell in json.loads(book.read_text())["cells"] for o in cell.get("outputs", [])]
        assert sorted(outputs[0]["data"]) == ["image/png", "text/plain"]
