"""Sweeps: whatever is wrong with a file is refused before anything starts, with the place and the valid choices."""

import functools

import pytest
from toys import STUDY

from lib.core.base import ROOT
from lib.core.keys import parameters
from lib.core.strict_yaml import read_yaml
from lib.core.sweeps import load_sweep

planned = functools.cache(load_sweep)  # of the project's own studies, which take seconds


REFUSED = {  # what is changed in the study: (old, new, words of the message)
    "top level key": ("stages:", "stagse:", "unknown key 'stagse', did you mean 'stages'"),
    "stage key": ("from: {draw", "form: {draw", "stage double: unknown key 'form', did you mean 'from'"),
    "notebook": (
        "notebook: double",
        "notebook: duoble",
        "stage double: no notebook 'duoble'",
        "did you mean 'double'?",
    ),
    "stage": ("{draw: draw}", "{draw: drew}", "stage double: draw: no stage 'drew', did you mean 'draw'?"),
    "parameter in set": (
        "set: {wait: WAIT}, grid",
        "set: {wiat: 0}, grid",
        "stage draw: set: no parameter of draw is called 'wiat', did you mean 'wait'?",
    ),
    "parameter in grid": (
        "{seed: [1",
        "{sede: [1",
        "stage draw: grid: no parameter of draw is called 'sede', did you mean 'seed'?",
    ),
    "parameter in from": (
        "{draw: draw}",
        "{drwa: draw}",
        "stage double: from: no parameter of double is called 'drwa', did you mean 'draw'",
    ),
    "parameter in over": (
        "{runs: double}",
        "{rnus: double}",
        "stage sum: over: no parameter of sum is called 'rnus', did you mean 'runs'?",
    ),
    "type in grid": ("[1, 2, 3, 4]", "[1, two]", "stage draw: grid: seed takes int, not 'two' (str)"),
    "boolean for a number": ("[1, 2, 3, 4]", "[yes]", "stage draw: grid: seed takes int, not True (bool)"),
    "type in set": (
        "set: {wait: WAIT}, grid",
        "set: {wait: long}, grid",
        "stage draw: set: wait takes float, not 'long' (str)",
    ),
    "empty grid": ("[1, 2, 3, 4]", "[]", "stage draw: grid: seed must be a list of at least one value"),
    "single value in grid": (
        "[1, 2, 3, 4]",
        "7",
        "stage draw: grid: seed must be a list of at least one value, not 7",
    ),
    "group name": (
        "{runs: double}",
        "{runs: double}, by: [sead]",
        "stage sum: by (runs of stage double): no label 'sead', did you mean 'seed'?",
    ),
    "where name": (
        "{runs: double}",
        "{runs: double}, where: {sead: 1}",
        "stage sum: where: no label 'sead', did you mean 'seed'?",
    ),
    "where value": (
        "{runs: double}",
        "{runs: double}, where: {seed: 9}",
        "stage sum: where: no run has seed 9",
    ),
    "circle": (
        "set: {wait: WAIT}, grid",
        "from: {fail: double}, grid",
        "stage draw: fail takes int; `from` needs str",
    ),
    "duplicate key": ("  sum:", "  draw: {notebook: draw}\n  sum:", "line 6: key 'draw' stands twice"),
    "resource": (
        "{runs: double}",
        "{runs: double}, resources: {memory: 1}",
        "stage sum: resources: unknown key 'memory'",
    ),
    "twice": (
        "set: {wait: WAIT}, grid",
        "set: {seed: 1}, grid",
        "stage draw: seed stands in both set and grid",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_place_and_choices(project, case, capsys):
    from lib.commands.cli import main

    old, new, *words = REFUSED[case]
    path = project.write(STUDY.replace(old, new, 1).replace("WAIT", "0"), "wrong.yaml")
    assert main(["run", path]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sieve: {path}: ") and said.count("\n") == 1
    for word in words:
        assert word in said, said
    assert not list(project.outputs.glob("[!.]*")) and not (project.outputs / ".engine").exists()


def test_smoke_refuses_what_no_stage_has(project):
    for old, new, word in [
        ("{seed: [1]}", "{sede: [1]}", "smoke: grid: no grid of any stage has 'sede', did you mean 'seed'?"),
        ("grid: {seed: [1]}", "set: {wiat: 1}", "smoke: set: no parameter of any stage 'wiat'"),
        ("grid: {seed: [1]}", "skip: [dbl]", "smoke: skip: no stage 'dbl'"),
    ]:
        head, tail = STUDY.replace("WAIT", "0").split("smoke:")
        with pytest.raises(Exception, match=word.replace("?", r"\?")):
            load_sweep(project.write(head + "smoke:" + tail.replace(old, new)), smoke=True)


def test_smoke_has_the_same_stages_and_fewer_runs(project):
    full, small = load_sweep(project.sweep), load_sweep(project.sweep, smoke=True)
    assert (len(full.runs), len(small.runs)) == (9, 3)
    assert list(full.stages) == list(small.stages)


def test_a_change_upstream_changes_every_key_below(project):
    keys = lambda path: [r.key for r in load_sweep(path).planned]
    before, after = (
        keys(project.sweep),
        keys(
            project.write(
                STUDY.replace("WAIT", "0").replace(
                    "{seed: [1, 2, 3, 4]}", "{seed: [1, 2, 3, 4], threads: [2]}"
                )
            )
        ),
    )
    assert not set(before) & set(after)
    assert keys(project.write(STUDY.replace("WAIT", "9.0"))) == before  # wait is not in the key


def test_one_value_has_one_key_however_it_is_written(project):
    wheres = [
        load_sweep(project.write(STUDY.replace("WAIT", "0").replace("[1, 2, 3, 4]", values))).planned[0].key
        for values in ("[1]", "[1.0]", "['1']", "[1e0]")
    ]
    assert len(set(wheres)) == 1


def test_what_only_the_data_can_tell_is_asked_before_anything_starts(project, capsys):
    from lib.commands.cli import main
    from lib.core.testing import write_notebook

    write_notebook(
        project.folder / "experiments" / "task.ipynb",
        'task: str = "synthetic-nli"  #\nsource: str = "auto"  #',
        "raise SystemExit",
        checks="from lib.data.tasks import check_source\n\ncheck_source(task, source)",
    )
    cases = [("synthetic-nil", "auto", "synthetic-nli"), ("RTE", "local", "RTE")]
    for task, source, word in cases:
        path = project.write(
            f"stages:\n  one: {{notebook: task, set: {{task: {task}, source: {source}}}}}\n", "task.yaml"
        )
        assert main(["run", path]) == 2
        said = capsys.readouterr().err
        assert f"{path}: stage one: " in said and word in said
    assert not list(project.outputs.glob("[!.]*"))


@pytest.mark.parametrize("smoke", [False, True], ids=["full", "smoke"])
@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_can_be_planned(path, smoke):
    sweep = planned(path, smoke)
    assert sweep.runs and all(set(r.upstream) <= set(sweep.runs) for r in sweep.planned)


def test_mask_training_of_the_robust_study_looks_as_often_as_published():
    sweep, often = (
        planned(ROOT / "nbs" / "sweeps" / "srnets.yaml", False),
        {"MNLI": 1000, "QQP": 1000, "FEVER": 500},
    )
    looks = {
        (r.stage, r.params["task"]): r.params["evaluate_every"]
        for r in sweep.planned
        if r.notebook == "train_mask"
    }
    assert len(looks) > 40 and {k: n for k, n in looks.items() if n != often[k[1]]} == {}


def test_every_run_of_the_robust_study_is_read_by_an_analysis():
    sweep = planned(ROOT / "nbs" / "sweeps" / "srnets.yaml", False)
    curves = [r for r in sweep.planned if r.notebook == "sparsity_curves"]
    read, start = {u for r in curves for u in r.upstream}, {u for r in sweep.planned for u in r.upstream}
    unread = {
        r.stage
        for r in sweep.planned
        if str(r) not in read and r.notebook in ("finetune", "train_mask", "iterative_pruning")
    }
    assert unread <= {"full_stopped", "imp_rewound"} and all(
        str(r) in start for r in sweep.planned if r.stage in unread
    )
    assert (
        len(curves) >= 5
        and [r.labels for r in curves if not any(u.startswith("bias_model/") for u in r.upstream)] == []
    )


def test_every_loss_of_the_library_is_trained_in_the_robust_study():
    from lib.losses.objectives import LOSSES

    losses = lambda smoke: {
        r.params["loss"]
        for r in planned(ROOT / "nbs" / "sweeps" / "srnets.yaml", smoke).planned
        if r.notebook == "finetune"
    }
    assert losses(False) == set(LOSSES) and losses(True) == set(LOSSES) - {"permuted_confreg"}


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_trainings_of_paper_scale_can_be_resumed(path):
    raw = read_yaml(path)
    large = any(stage.get("resources", {}).get("gpus") for stage in raw["stages"].values())
    saves = any("save_steps" in parameters(stage["notebook"]) for stage in raw["stages"].values())
    assert not (large and saves) or 100 <= raw["set"]["save_steps"] <= 1000
