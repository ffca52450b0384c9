"""A throw-away project for tests of the run system: toy notebooks that draw, double and sum numbers."""

import atexit
import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
import pytest

from lib.commands.cli import main
from lib.core.base import ROOT
from lib.core.engine import _warm_manager, lasting_forge
from lib.core.keys import notebook_path
from lib.core.testing import write_notebook

BEGIN = "import os, time\nfrom lib.core.folders import find_run; from lib.core.runs import start\nrun = start('{}', globals())\nopen(os.environ.get('TOY_LOG', os.devnull), 'a').write(f'{run}\\n')"
READ = "read = lambda key: find_run(key).result['metrics'][0]['value']"
NOTEBOOKS = {
    "draw": [
        "seed: int = 0  # of the draw\nwait: float = 0.0  # seconds; not in key\nfail: int = -1  # seed that fails\nthreads: int = 1  # of torch",
        BEGIN,
        "time.sleep(wait)\nassert seed != fail, 'asked to fail'",
        "run.path('n.txt').write_text(str(seed * 10))\nrun.finish([{'metric': 'n', 'value': seed * 10}])",
    ],
    "double": [
        "draw: str = ''  # run of draw\ntimes: int = 2  # factor\nwait: float = 0.0  # seconds; not in key",
        BEGIN,
        READ,
        "time.sleep(wait)\nvalue = times * read(draw)\nrun.finish([{'metric': 'n', 'value': value}])",
    ],
    "sum": [
        "runs: list[str] = []  # runs of double",
        BEGIN,
        READ,
        "value = sum(map(read, runs))\nprint('the sum is', value)\nrun.finish([{'metric': 'sum', 'value': value}])",
    ],
}
STUDY = """
title: Toys
stages:
  draw: {notebook: draw, set: {wait: WAIT}, grid: {seed: [1, 2, 3, 4]}}
  double: {notebook: double, set: {wait: WAIT}, from: {draw: draw}}
  sum: {notebook: sum, over: {runs: double}}
smoke:
  grid: {seed: [1]}
"""


def made(notebook, **given):
    "What is left of a notebook that was run with these parameters in this process"
    scope = {"display": print}
    for cell in nbformat.read(notebook_path(notebook), 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, scope)  # noqa: S102
            if "parameters" in cell.metadata.get("tags", []):
                scope |= given
    return scope


OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
OFFLINE |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}


@functools.cache
def warm() -> str:
    "The socket of a forge for all runs of this process's tests: a kernel that is its copy has imported everything."
    working = contextlib.ExitStack()
    folder = tempfile.mkdtemp(prefix="forge-", dir="/tmp" if len(tempfile.gettempdir()) > 40 else None)
    working.callback(shutil.rmtree, folder, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        for name in ("SIEVE_NBS", "SIEVE_FORGE"):
            patch.delenv(name, raising=False)
        place = working.enter_context(lasting_forge(Path(folder) / "s"))
    atexit.register(working.close)
    return place


@contextlib.contextmanager
def surroundings(cwd, env: dict):
    "This process as it would be as one of its own, started there with these variables."
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (OFFLINE | {"SIEVE_FORGE": warm()} | env).items():
            patch.setenv(name, str(value))
        patch.chdir(cwd)
        yield


def command(*arguments, cwd=ROOT, **env) -> subprocess.CompletedProcess:
    "What `sieve` says, in this process; its runs are made by copies of a warm one."
    out, err, code = io.StringIO(), io.StringIO(), 0
    with surroundings(cwd, env), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())


def execute(notebook, out, given: dict, cwd=ROOT, **env) -> None:
    "What `papermill` does with a notebook; its kernel is a copy of a warm process."
    own = {"kernel_name": "python3", "progress_bar": False, "kernel_manager_class": _warm_manager(warm())}
    with surroundings(cwd, env):
        papermill.execute_notebook(str(notebook_path(notebook)), str(out), given, **own)


class Project:
    "Folders, the environment that points there, and the command."

    def __init__(self, folder: Path, wait: float = 0, study: str = STUDY):
        self.folder, self.outputs, self.log = folder, folder / "outputs", folder / "log"
        self.env = os.environ | {
            "SIEVE_OUTPUTS": str(self.outputs),
            "SIEVE_NBS": str(folder),
            "SIEVE_DATA": str(folder / "data"),
            "TOY_LOG": str(self.log),
            "OMP_NUM_THREADS": "1",
        }
        folder.mkdir(exist_ok=True)
        for name, cells in NOTEBOOKS.items():
            part = folder / ("analyses" if name == "sum" else "experiments")
            write_notebook(part / f"{name}.ipynb", *(c.replace("'{}'", repr(name)) for c in cells))
        self.sweep = self.write(study.replace("WAIT", str(wait)))

    def write(self, text: str, name: str = "toys.yaml") -> str:
        "Write a sweep file; its path."
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def popen(self, *arguments: str) -> subprocess.Popen:
        "Start `sieve`, as from a terminal: a shell's background jobs ignore interrupts, and their children inherit it."
        command = [
            sys.executable,
            "-P",  # as the installed command: the working directory is not on its path
            "-c",
            "import sys; from lib.commands.cli import main; sys.exit(main())",
            *arguments,
        ]
        return subprocess.Popen(
            command,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def sieve(self, *arguments: str) -> tuple[str, int]:
        "What `sieve` says, and its exit code."
        process = self.popen(*arguments)
        return process.communicate(timeout=300)[0], process.returncode

    def results(self) -> dict[str, bytes]:
        "notebook/key -> the bytes of result.json."
        return {
            f"{p.parent.parent.name}/{p.parent.name}": p.read_bytes()
            for p in sorted(self.outputs.glob("*/*/result.json"))
        }

    def made(self) -> list[str]:
        "Every making of a run, in order."
        return self.log.read_text().split() if self.log.exists() else []
