"""Losses, maskers and scores of one's own, by the name of a file: in notebooks and sweeps, from planning to a stale run. The pages that say how to write them are executed."""

import re
import shlex
import subprocess
import sys

import pandas as pd
import papermill
import pytest
from toys import command, made

from lib.core.base import ROOT
from lib.core.engine import make_plan
from lib.core.folders import Run, find_run, run_folders
from lib.core.keys import notebook_path, run_key
from lib.core.sweeps import SweepError, check_inputs, load_sweep
from lib.models.masks import load_mask

SMALL = {"settings": {"train": 96, "dev": 40, "ood": 20}, "max_steps": 4, "batch_size": 16, "max_length": 64}
TEN_LINES = """import torch


def my_loss(logits, labels, gamma=2.0):
    "Cross-entropy of the rows that are not yet learned"
    p = logits.softmax(-1)
    right = p[torch.arange(len(labels)), labels]
    far = (1 - right) ** gamma
    return -(far * right.log()).mean()
"""


@pytest.fixture(autouse=True)
def outputs(monkeypatch, tmp_path_factory):
    "A folder of their own for all runs of a test"
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))


def sieve(*args, cwd):
    done = command(*args, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def papermill_runs(line, folder):
    "Run a page's line, with the folder and the key that it speaks of"
    key = run_folders("bias_model")[0].key
    line = (
        line.replace("/home/me/study", str(folder))
        .replace("KEY", key)
        .replace("out.ipynb", f"{folder}/out.ipynb")
    )
    command = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [run] = run_folders("train_mask")
    assert run.finished() and run.params["loss"] == f"{folder.resolve()}/my_loss.py:my_loss"


def blocks(page):
    "(language, source) of every code block"
    return re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", (ROOT / "docs" / page).read_text())


@pytest.mark.parametrize("page", ["own_loss.md", "own_score.md", "own_masker.md"])
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope, ran = {}, 0
    for language, source in blocks(page):
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", source):
            (tmp_path / named[1]).write_text(source)
        elif language == "sh" and source.startswith("sieve run"):
            assert "failed" not in sieve(*source.split()[1:], cwd=tmp_path)
        elif language == "sh":
            papermill_runs(source, tmp_path)
        else:
            exec(source, scope)  # noqa: S102
            ran += 1
    assert ran and run_folders() and all(run.finished() for run in run_folders())
    said = capsys.readouterr().out
    wanted = {"own_loss.md": "[['my_loss.py changed'], ['my_loss.py changed']]", "own_score.md": "('other',)"}
    assert wanted.get(page, "tensor([[") in said


def test_ten_lines_beside_a_sweep(tmp_path):
    (tmp_path / "my_loss.py").write_text(TEN_LINES)
    (tmp_path / "study.yaml").write_text(
        "set: {settings: {train: 96, dev: 40, ood: 20}, batch_size: 16, max_length: 64}\n"
        "stages:\n"
        "  mask:\n"
        "    notebook: train_mask\n"
        "    set: {loss: my_loss.py:my_loss, masker: mask_training, units: head, keep: last, max_steps: 4}\n"
        "    grid: {seed: [0, 1]}\n"
    )
    sieve("run", "study.yaml", cwd=tmp_path)
    first, second = run_folders("train_mask")  # two: the copies of a warm process
    assert {r.params["seed"] for r in (first, second)} == {0, 1}
    for run in (first, second):
        assert run.finished() and not run.stale()
        assert (
            run.params["loss"] == run.result["identity"]["loss"] == f"{tmp_path.resolve()}/my_loss.py:my_loss"
        )
        assert f"{tmp_path.resolve()}/my_loss.py" in run.provenance["code"]
    before = load_mask(first.artefact("mask.safetensors"))["head"]
    assert before.shape == (2, 2)
    (tmp_path / "my_loss.py").write_text(TEN_LINES.replace("2.0", "0.0"))
    plan = make_plan(load_sweep(tmp_path / "study.yaml"), redo=True)
    assert list(plan.stale.values()) == [["my_loss.py changed"]] * 2 and len(plan.missing) == 2
    trained = [pd.read_parquet(run.artefact("loss.parquet")) for run in (first, second)]
    sieve("run", "study.yaml", "--stale", cwd=tmp_path)
    again = [Run("train_mask", run.key) for run in (first, second)]
    assert not any(run.stale() for run in again)
    for one, before in zip(again, trained):  # -log p for (1 - p)^2 -log p, of p near a half
        now = pd.read_parquet(one.artefact("loss.parquet")).loss
        assert now[0] > 2 * before.loss[0]
    (tmp_path / "my_loss.py").unlink()
    assert first.stale_because() == ["my_loss.py is gone"]
    with pytest.raises(
        SweepError, match="stage mask: train_mask: parameter my_loss.py:my_loss: no file my_loss.py"
    ):
        load_sweep(tmp_path / "study.yaml")


def loss_of(run):
    return find_run(run.key).result["identity"]["loss"]


def test_two_studies_with_a_file_of_the_same_name(tmp_path, monkeypatch):
    keys = {}
    for name, factor in (("a", 1), ("b", 3)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "my_loss.py").write_text(
            "from my_tools import scale\n" + TEN_LINES.replace("-(far", "-scale * (far")
        )
        (folder / "my_tools.py").write_text(f"scale = {factor}\n")
        (folder / "s.yaml").write_text(
            "stages:\n  full:\n    notebook: finetune\n"
            "    set: {loss: my_loss:my_loss, loss_options: {gamma: 0}, settings: {train: 96, dev: 40, ood: 20},\n"
            "          max_steps: 4, batch_size: 16, max_length: 64, keep_model: none}\n"
        )
        planned = load_sweep(folder / "s.yaml").planned[0]
        check_inputs([planned], folder / "s.yaml")
        keys[name] = made("finetune", **planned.params)["run"]
    assert keys["a"].key != keys["b"].key
    a, b = (pd.read_parquet(keys[n].artefact("loss.parquet")).loss for n in "ab")
    assert b[0] == pytest.approx(3 * a[0], rel=1e-5)  # the first step: the same weights
    (tmp_path / "a" / "my_tools.py").write_text("scale = 2\n")
    assert keys["a"].stale_because() == ["my_tools.py changed"] and not keys["b"].stale()
    monkeypatch.chdir(tmp_path / "a")  # the neighbour's change is read in the same process
    again = made(
        "finetune",
        **{**SMALL, "loss": "my_loss.py:my_loss", "loss_options": {"gamma": 0}, "keep_model": "none"},
    )
    assert again["run"].key == keys["a"].key and not again["run"].stale()
    c = pd.read_parquet(again["run"].artefact("loss.parquet")).loss
    assert c[0] == pytest.approx(2 * a[0], rel=1e-5)


def test_without_its_factor_it_trains_as_cross_entropy(tmp_path):
    (tmp_path / "my_loss.py").write_text(TEN_LINES)
    given = dict(loss=f"{tmp_path}/my_loss.py:my_loss", loss_options={"gamma": 0}, keep_model="none")
    own, table = made("finetune", **SMALL, **given), made("finetune", **SMALL, keep_model="none")
    a, b = (scope["curve"].loss.to_numpy() for scope in (own, table))
    assert len(a) and a == pytest.approx(b, rel=1e-5)
    assert own["result"]["identity"]["loss"].endswith("my_loss.py:my_loss")


def test_by_papermill_from_another_directory(tmp_path, monkeypatch):
    (tmp_path / "my_loss.py").write_text(TEN_LINES)
    monkeypatch.chdir(tmp_path)
    given = SMALL | {"loss": "my_loss.py:my_loss", "keep_model": "none"}
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    papermill.execute_notebook(
        str(notebook_path("finetune")), "out.ipynb", given, kernel_name="python3", progress_bar=False
    )
    key = run_key("finetune", given | {"loss": f"{tmp_path}/my_loss.py:my_loss"})
    run = find_run(key)
    assert run.params["loss"] == f"{tmp_path.resolve()}/my_loss.py:my_loss"
    from lib.study.study import study

    assert any("my_loss.py:my_loss" in label for label in study([key]).label)  # of a figure's legend


def test_iterative_pruning_with_a_loss_of_ones_own(tmp_path):
    (tmp_path / "my_loss.py").write_text(TEN_LINES)
    given = SMALL | {"loss": f"{tmp_path}/my_loss.py:my_loss", "turns": 2, "max_steps": 4, "sets": ["report"]}
    run = made("iterative_pruning", **given)["run"]
    assert loss_of(run).endswith("my_loss.py:my_loss") and load_mask(run.artefact("masks/0.5.safetensors"))


REFUSED = {  # what the file holds -> words of the message when the sweep is planned
    "def my_loss(logits, labels:\n": "my_loss.py, line 1",
    "def my_los(z, y): return z.sum()\n": "has no 'my_loss', did you mean 'my_los'",
    "def my_loss(z): return z.sum()\n": "must be a function (logits, labels, ...)",
    "def my_loss(z, y, bais): return z.sum()\n": "needs the option bais",
    "def my_loss(z, y, bias): return z.sum()\n": "needs bias, a run of bias_model",
    "def my_loss(z, y): return z\n": "must give a scalar tensor, not shape",
    "def my_loss(z, y): return z.sum() * float('nan')\n": "it gives nan",
    "def my_loss(z, y): return z.detach().sum()\n": "no gradient at the logits",
    "def my_loss(z, y): return z.sum() + nothing\n": "NameError: name 'nothing' is not defined",
    "import not_there\n": "my_loss.py, line 1: ModuleNotFoundError",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_when_planned(text, tmp_path):
    (tmp_path / "my_loss.py").write_text(text)
    (path := tmp_path / "s.yaml").write_text(
        "stages: {one: {notebook: finetune, set: {loss: 'my_loss.py:my_loss'}}}\n"
    )
    with pytest.raises(SweepError) as caught:
        check_inputs(load_sweep(path).planned, path)
    assert REFUSED[text] in str(caught.value) and "stage one" in str(caught.value)
    assert "\n" not in str(caught.value) and not run_folders()


def test_a_file_below_the_root_has_the_same_key_in_every_clone(monkeypatch):
    given = {"loss": "lib/losses/losses.py:ce"}
    monkeypatch.chdir(ROOT)
    assert run_key("finetune", given) == run_key("finetune", {"loss": str(ROOT / "lib/losses/losses.py:ce")})
    assert run_key("finetune", {}) == run_key("finetune", {"loss": "ce"})


def test_what_lies_beside_the_sweep_comes_before_the_current_directory(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_loss.py").write_text(TEN_LINES)
    monkeypatch.chdir(tmp_path / "here")
    (path := tmp_path / "there" / "s.yaml").write_text(
        "stages: {one: {notebook: finetune, grid: {loss: ['my_loss.py:my_loss', ce]}}}\n"
    )
    one, two = load_sweep(path).planned
    assert (
        one.params["loss"] == f"{tmp_path.resolve()}/there/my_loss.py:my_loss" and two.params["loss"] == "ce"
    )
    assert one.labels == {"loss": "my_loss.py:my_loss"}
