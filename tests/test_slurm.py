"""A real Slurm without accounting: a small sweep, what it refuses, a failing job, a time limit, a driver that is stopped or killed."""

import os
import re
import signal
import time

import pytest
from slurm import Slurm, missing
from toys import STUDY, Project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
ONE = "stages: {{draw: {{notebook: draw, set: {{seed: {seed}, wait: {wait}, fail: 2}}}}}}"
SMALL = ["--profile", "slurm", "--set-resource", "mem_mb=400", "--set-resource", "runtime={}"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


@pytest.fixture
def project(slurm, tmp_path):
    project = Project(tmp_path)
    project.env |= slurm.env
    return project


def small(minutes=5):
    return [word.format(minutes) for word in SMALL]


def begun(project, sweep):
    "A driver whose first run is being made."
    process = project.popen("run", sweep, *small())
    while not project.made() and process.poll() is None:
        time.sleep(0.2)
    return process


def test_a_sweep_is_made_though_there_is_no_accounting(project):
    said, code = project.sieve("run", project.sweep, "--smoke", *small())
    assert code == 0 and re.search(r"\[3/3\] sum/\w{10}  sum", said) and len(project.results()) == 3, said


def test_the_schedulers_own_words_are_shown(project):
    said, code = project.sieve("run", project.sweep, "--smoke", "--profile", "slurm")  # 16 GB of a 2 GB node
    assert code == 1 and "the scheduler refused: sbatch: error: Memory specification can not" in said
    said, code = project.sieve("run", project.sweep, "--smoke", *small(), "--partition", "nope")
    assert code == 1 and "invalid partition specified: nope" in said and said.count("\n") <= 4


def test_a_failing_job_is_told_as_anywhere(project):
    said, code = project.sieve("run", project.write(ONE.format(seed=2, wait=0)), *small())
    assert code == 1 and "AssertionError: asked to fail" in said and "1 failed" in said


def test_a_time_limit_is_named(project):
    said, code = project.sieve("run", project.write(ONE.format(seed=3, wait=300)), *small(1))
    assert code == 1 and "of the cluster: its time was over (resources: runtime)" in said, said
    assert "process was killed" not in said


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_driver_leaves_nothing_in_the_queue(project, slurm, name):
    process = begun(project, project.write(ONE.format(seed=4, wait=300)))
    os.kill(process.pid, getattr(signal, name))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "its jobs on the cluster are cancelled\nstopped" in said
    deadline = time.time() + 20
    while slurm.queue() and time.time() < deadline:
        time.sleep(0.2)
    assert slurm.queue() == []


def test_after_a_killed_driver_the_same_command_goes_on(project):
    sweep = project.write(STUDY.replace("WAIT", "8").replace("[1, 2, 3, 4]", "[1]"))
    process = begun(project, sweep)
    process.kill()
    process.communicate(timeout=60)
    said, code = project.sieve("run", sweep, *small())
    assert code == 0 and len(project.results()) == 3, said
    assert len(project.made()) == 3  # the job in flight went on to its end, and was not made twice
