"""The studies as a user runs them: every stage at smoke size, the report in a browser, and what is refused before anything starts."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from toys import command

from lib.core.folders import Run
from lib.core.sweeps import load_sweep

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "nbs" / "sweeps"
SIEVE = Path(sys.executable).parent / "sieve"
BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


def cold(*args, outputs, **env):
    "The command as a process of its own"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [SIEVE, *map(str, args)],
        cwd=ROOT,
        env=os.environ | offline | {"SIEVE_OUTPUTS": str(outputs)} | env,
        capture_output=True,
        text=True,
    )


def sieve(*args, outputs, **env):
    return command(*args, SIEVE_OUTPUTS=outputs, **env)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "Every stage of the lottery study at smoke size."
    outputs = tmp_path_factory.mktemp("lottery")
    done = sieve("run", SWEEPS / "lottery.yaml", "--smoke", "-j", "2", outputs=outputs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return outputs


def test_every_stage_and_so_every_covered_command_has_run(study, monkeypatch):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(study))
    sweep = load_sweep(SWEEPS / "lottery.yaml", smoke=True)
    finished = {r.stage for r in sweep.planned if Run(r.notebook, r.key).finished()}
    assert finished == set(sweep.stages) and all(Run(r.notebook, r.key).finished() for r in sweep.planned)
    covered = {i for name in finished for i in sweep.stages[name].covers}
    assert covered >= {
        "L6",
        "L7a",
        "L7b",
        "L7c",
        "L7d",
        "L7e",
        "L8a",
        "L8b",
        "L8c",
        "L9",
        *(f"L{i}" for i in (12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 26, 27, 28, 29, 30, 31)),
    }


def test_nothing_is_done_twice(study):
    began = time.time()
    again = sieve("run", SWEEPS / "lottery.yaml", "--smoke", outputs=study)
    assert again.returncode == 0 and "to make" not in again.stdout
    assert time.time() - began < 30  # a guard; the measured time of a second `make demo` is in the README


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine: the report was not opened in a browser")
def test_report_opens_offline_without_a_script_error(study, tmp_path):
    made = sieve("report", SWEEPS / "lottery.yaml", "--smoke", outputs=study)
    assert made.returncode == 0, made.stderr
    page = next((study / "reports").glob("*.html"))
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text), "the report must not load anything"
    seen = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "</html>" in seen.stdout and seen.stdout.count("<img") + seen.stdout.count("<svg") >= 8
    assert not re.search(r"CONSOLE.*(Uncaught|Error|ERR_)", seen.stderr), seen.stderr[-2000:]


CASES = {  # what is mistyped -> (change of lottery-mrpc.yaml, words of the message)
    "parameter": (
        lambda s: s["stages"]["heads_mlps"]["set"].update(amuont=0.2),
        ["heads_mlps", "amuont", "amount"],
    ),
    "stage": (
        lambda s: s["stages"]["magnitude"].update({"from": {"model": "fintune"}}),
        ["magnitude", "fintune", "finetune"],
    ),
    "notebook": (
        lambda s: s["stages"]["magnitude"].update(notebook="magnitud"),
        ["magnitude", "magnitud", "magnitude"],
    ),
    "task": (lambda s: s["stages"]["start"]["grid"].update(task=["MRCP"]), ["start", "MRCP", "MRPC"]),
    "type in a grid": (
        lambda s: s["stages"]["finetune"]["grid"].update(seed=["one"]),
        ["finetune", "seed", "int", "one"],
    ),
    "empty grid": (lambda s: s["stages"]["finetune"]["grid"].update(seed=[]), ["finetune", "seed"]),
    "source": (lambda s: s["set"].update(source="loacl"), ["loacl", "local"]),
    "architecture": (
        lambda s: s["stages"]["start"]["set"].update(model="MODEL/bloom"),
        ["'bloom'", "bert", "roberta", "electra", "distilbert"],
    ),
    "model without weights": (
        lambda s: s["stages"]["start"]["set"].update(model="MODEL/gpt2"),
        ["gpt2", "no weights", "model.safetensors"],
    ),
}


@pytest.fixture
def world(tmp_path):
    "A data folder with tiny MRPC and RTE, a model folder of an architecture without a row, and one without weights."
    for task, header, row in [
        ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{}\t1\t2\ta b\ta c"),
        ("RTE", "index\tsentence1\tsentence2\tlabel", "0\ta b\ta c\t{}"),
    ]:
        (tmp_path / "data" / "glue" / task).mkdir(parents=True)
        values = ["1", "0"] if task == "MRPC" else ["entailment", "not_entailment"]
        for split in ("train", "dev"):
            (tmp_path / "data" / "glue" / task / f"{split}.tsv").write_text(
                "\n".join([header, *(row.format(v) for v in values * 4)]) + "\n"
            )
    for kind in ("bloom", "gpt2"):
        (tmp_path / "MODEL" / kind).mkdir(parents=True)
        (tmp_path / "MODEL" / kind / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    return tmp_path


def refused(world, change=lambda sweep: None, sieve=sieve):
    raw = yaml.safe_load((SWEEPS / "lottery-mrpc.yaml").read_text())
    change(raw)
    (world / "study.yaml").write_text(
        yaml.safe_dump(raw, sort_keys=False).replace("MODEL", str(world / "MODEL"))
    )
    done = sieve("run", world / "study.yaml", outputs=world / "outputs", SIEVE_DATA=str(world / "data"))
    assert done.returncode != 0 and not list((world / "outputs").glob("[!.]*/*")), "something was run"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_message_before_any_run(world, case):
    change, words = CASES[case]
    message = refused(world, change)
    assert all(word in message for word in words), message


def test_missing_data_folder(world):
    shutil.rmtree(world / "data")
    message = refused(world, sieve=cold)
    assert "MRPC" in message and str(world / "data") in message


def test_label_file_with_a_wrong_column(world):
    dev = world / "data" / "glue" / "RTE" / "dev.tsv"
    dev.write_text(dev.read_text().replace("label", "lable"))
    message = refused(world)
    assert "dev.tsv" in message and "label" in message and "lable" in message


def test_label_file_with_a_wrong_label(world):
    dev = world / "data" / "glue" / "RTE" / "dev.tsv"
    dev.write_text(dev.read_text().replace("not_entailment", "neutral", 1))
    message = refused(world)
    assert "dev.tsv" in message and "neutral" in message and "not_entailment" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "lottery-mrpc", "srnets", "srnets-synthetic"])
def test_other_studies_at_smoke_size(name, tmp_path):
    done = sieve("run", SWEEPS / f"{name}.yaml", "--smoke", "-j", "2", outputs=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
