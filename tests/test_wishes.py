"""The three commonest wishes, each by one command, from files of one's own in any folder; and what the commands refuse."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from toys import command, made
from transformers import (
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaModel,
)

from lib.commands.cli import main
from lib.core.base import ROOT
from lib.core.folders import Run
from lib.core.keys import fill, run_key
from lib.core.sweeps import load_sweep

GOOD, BAD = "good fine lovely great bright warm".split(), "bad poor awful dull grey cold".split()
FILLER = "the film food room day book was very so quite and it we saw she he".split()
NAMES = ["negative", "positive"]


def sentences(seed, n, wrong=0.0):
    "Texts with one telling word; of the group `south` a share of the negative ones is called positive"
    rng, rows = random.Random(seed), []
    for _ in range(n):
        label, group, words = rng.randrange(2), rng.choice(["north", "south"]), rng.choices(FILLER, k=5)
        words.insert(rng.randrange(6), rng.choice(GOOD if label else BAD))
        words.append("it" if group == "north" else "we")
        flipped = group == "south" and not label and rng.random() < wrong
        rows.append((" ".join(words), NAMES[label or flipped], group, flipped))
    return pd.DataFrame(rows, columns=["sentence", "label", "group", "flipped"])


def write_models(folder):
    "A small encoder, classifiers of these and of other labels, a masked language model; configurations of others"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*GOOD, *BAD, *FILLER})]
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}, model_max_length=32)
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    size |= dict(vocab_size=len(words), max_position_embeddings=32)

    def named(labels):
        return size | dict(id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)})

    models = {
        "encoder": BertModel(BertConfig(**size)),
        "judge": BertForSequenceClassification(BertConfig(**named(NAMES))),
        "other": BertForSequenceClassification(BertConfig(**named(["spam", "ham"]))),
        "unnamed": BertForSequenceClassification(BertConfig(**size)),
        "words": BertForMaskedLM(BertConfig(**size)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    BartConfig().save_pretrained(folder / "bart")
    (folder / "bart" / "model.safetensors").touch()  # refused for what it is, not for what is missing
    tokenizer.save_pretrained(folder / "bart")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    grouped = dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    LlamaModel(LlamaConfig(**size, **grouped)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    config = json.loads((folder / "encoder" / "config.json").read_text())
    (folder / "strange").mkdir()
    (folder / "strange" / "config.json").write_text(json.dumps(config | {"model_type": "yolos"}))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with files of one's own, and the environment of commands typed there"
    folder = tmp_path_factory.mktemp("home")
    sentences(0, 320)[["sentence", "label"]].to_csv(folder / "reviews.tsv", sep="\t", index=False)
    own = {"train": sentences(1, 300, 0.6), "dev": sentences(2, 200)}
    for name, rows in own.items():
        rows[["sentence", "label", "group"]].rename(columns={"sentence": "text"}).to_csv(
            folder / f"{name}.csv", index=False
        )
    card = "train: train.csv\ndev: dev.csv\ntext: text\nlabel: label\nlabels: [negative, positive]\n"
    (folder / "groups.yaml").write_text(card + "group: group\n")
    (folder / "plain.yaml").write_text(card)
    write_models(folder)
    return folder


@pytest.fixture
def env(home, monkeypatch):
    "The same places for commands in this process"
    for name, place in {"SIEVE_OUTPUTS": home / "outputs", "SIEVE_DATA": home / "data"}.items():
        monkeypatch.setenv(name, str(place))
    monkeypatch.chdir(home)
    return home


def sieve(home, *arguments, data="data"):
    "A command typed in that folder: what it prints"
    own = {"SIEVE_OUTPUTS": str(home / "outputs"), "SIEVE_DATA": str(home / data), "PYTHONPATH": str(ROOT)}
    done = command(*arguments, cwd=home, **own)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


QUICK = ["--set", "lr=2.0e-3", "--set", "epochs=6.0"]
PRUNE = ["prune", "encoder", "--task", "reviews.yaml", "--heads", 0.5, "--ffn", 0.25, *QUICK, "--to", "small"]


@pytest.fixture(scope="module")
def pruned(home):
    "What two commands print: a card of a file, and a smaller model"
    sieve(home, "task", "reviews.tsv", "--text", "sentence", "--label", "label")
    return sieve(home, *PRUNE)


PLAIN = """
try:
    import lib
except ImportError:
    pass
else:
    raise SystemExit("Sieve is here")
import json, sys
from transformers import pipeline
ask = pipeline("text-classification", sys.argv[1], trust_remote_code=True)
print(json.dumps(ask(sys.argv[2:])))
"""


def ask_plainly(folder, texts, home):
    "Answers of a plain pipeline in a process that cannot import this repository"
    (blocked := home / "blocked").mkdir(exist_ok=True)
    (blocked / "sitecustomize.py").write_text("import sys\nsys.modules['lib'] = None\n")
    own = {"PYTHONPATH": str(blocked), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf")}
    command = [sys.executable, "-c", PLAIN, str(folder), *texts]
    done = subprocess.run(command, cwd=blocked, capture_output=True, text=True, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_table_and_an_encoder_become_a_smaller_model_that_a_plain_pipeline_opens(home, pruned):
    said = json.loads((home / "small" / "prune.json").read_text())
    assert said["units"] == {"head": {"kept": 4, "of": 8}, "ffn": {"kept": 96, "of": 128}}
    few = sentences(3, 40)
    answers = ask_plainly(home / "small", list(few.sentence), home)
    right = sum(a["label"] == y for a, y in zip(answers, few.label))
    assert right >= 34, "the smaller model has not learned the task"
    assert {p.name for p in (home / "small").iterdir()} >= {
        "prune.png",
        "prune.svg",
        "prune.json",
        "README.md",
    }


def test_what_prune_prints_was_counted_and_measured(home, pruned, env):
    said = json.loads((home / "small" / "prune.json").read_text())
    with safe_open(home / "small" / "model.safetensors", "pt") as file:
        tensors = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    count = sum(pd.Series(shape, dtype=int).prod() for shape in tensors)
    assert said["parameters"]["after"] == count < said["parameters"]["before"]
    assert f"after {count:,}" in pruned and f"before {said['parameters']['before']:,}" in pruned
    run = {stage: Run(*runs[-1].split("/")) for stage, runs in said["runs"].items()}
    table = pd.read_parquet(run["speed"].folder / "measured" / "speed.parquet")
    for form, name in {"whole": "before", "shrunken": "after"}.items():
        [ms] = 1000 * table[(table.form == form) & (table.batch == 1)].seconds
        assert f"{name} {ms:.2f} ms" in pruned
    by_state = {row["state"]: row["value"] for row in said["scores"]}
    evaluated = pd.DataFrame(run["evaluated"].result["metrics"])
    evaluated = evaluated[(evaluated.metric == "accuracy") & (evaluated["mask"] != "majority")]
    whole = evaluated[evaluated["mask"] == ""].value.iloc[0]
    assert by_state["before"] == pytest.approx(whole) and f"before {whole:.4f}" in pruned
    cut = evaluated[evaluated["mask"] == run["selected"].key].value.iloc[0]
    last = [m["value"] for m in run["retrained"].result["metrics"] if m["metric"] == "accuracy"][0]
    assert (by_state["cut"], by_state["retrained"]) == (pytest.approx(cut), pytest.approx(last))


def test_the_same_command_finds_everything_done_and_says_what_it_ran(home, pruned, env):
    for notebook in ("finetune", "importance", "select_units", "evaluate", "speed"):
        assert re.search(rf": {notebook}/[0-9a-f]{{10}}  .*\w+=", pruned), notebook
    before = {p: p.stat().st_mtime_ns for p in (home / "outputs").glob("*/*/result.json")}
    again = sieve(home, *PRUNE)
    assert again.count("(finished)") == 6 and "6 finished" in again and "[1/" not in again
    assert {p: p.stat().st_mtime_ns for p in (home / "outputs").glob("*/*/result.json")} == before
    assert again.splitlines()[-6:] == pruned.splitlines()[-6:]
    sweep = Path(re.search("sweep: (.*)", again)[1])
    assert {str(r) for r in load_sweep(sweep).planned} == {
        str(p.parent.relative_to(home / "outputs")) for p in before
    }
    assert f"{sweep.stem}: 6 runs, 6 finished" in sieve(home, "run", sweep)


def test_the_picture_and_the_sweep_are_of_what_was_asked(home, pruned):
    text = Path(re.search("sweep: (.*)", pruned)[1]).read_text()
    assert "head: 0.5" in text and "ffn: 0.25" in text and str(home / "encoder") in text and "&id" not in text
    assert "without 50% of the heads and 25% of the neurons" in text
    assert (home / "small" / "prune.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def ranked(home):
    options = [
        "--set",
        "lr=3.0e-3",
        "--set",
        "epochs=8.0",
        "--seeds",
        1,
        "--remove",
        "0.1,0.2",
        "--to",
        "ranked",
    ]
    return sieve(home, "rows", "encoder", "--task", "groups.yaml", "--method", "ekfac", *options)


def test_a_table_with_groups_becomes_ranked_rows(home, ranked, env):
    rows, known = pd.read_csv(home / "ranked" / "rows.csv"), sentences(1, 300, 0.6)
    assert [*rows.columns[:6]] == ["id", "text", "label", "group", "alignment", "hurts"]
    assert len(rows) == 300 and rows.alignment.is_monotonic_increasing and rows.id.is_unique
    number = rows.id.str.extract(r"(\d+)$")[0].astype(int)
    first = number.min()  # ids count from 0 or from 1
    own = known.loc[number - first].reset_index(drop=True)
    assert rows.text.tolist() == own.sentence.tolist() and rows.group.tolist() == own.group.tolist()
    assert rows.label.tolist() == own.label.tolist()
    scores = rows.filter(like="score for ")
    assert [*scores.columns] == ["score for north", "score for south"]
    worst = scores.idxmin(axis=1).str.removeprefix("score for ").where(scores.min(axis=1) < 0)
    assert rows.hurts.fillna("").tolist() == worst.fillna("").tolist()


def test_rows_shows_the_worst_group_without_them_and_without_random_ones(home, ranked, env):
    curve = pd.read_csv(home / "ranked" / "curve.csv")
    worst = curve[curve.metric == "accuracy/worst"]
    assert set(worst[worst.k > 0].label) == {"kronfluence, EK-FAC", "random rows"} and set(worst.k) == {
        0,
        30,
        60,
    }
    said = json.loads((home / "ranked" / "rows.json").read_text())
    [removed] = (Run(*name.split("/")) for name in said["runs"]["removed"])
    own = {m["k"]: m["value"] for m in removed.result["metrics"] if m["metric"] == "accuracy/worst"}
    shown = worst[worst.label == "kronfluence, EK-FAC"].set_index("k")["mean"].to_dict()
    assert own == pytest.approx(shown) and "30 removed: accuracy" in ranked
    assert {p.name for p in (home / "ranked").iterdir()} >= {"curve.png", "curve.svg", "alignment.png"}


def test_rows_prints_the_command_that_trains_without_them(home, ranked, env):
    command = shlex.split(ranked.splitlines()[-1])
    given = json.loads(command[-1])
    assert command[0] == "papermill" and Path(command[1]).is_file() and given["ks"] == [30]
    params = fill("data_removal", given)
    said = json.loads((home / "ranked" / "rows.json").read_text())
    [name] = said["runs"]["removed"]
    made = Run(*name.split("/")).params
    assert params["attribution"] == said["runs"]["scores"][0].split("/")[1] and params["keep_model"]
    assert run_key("data_removal", params | {"ks": [30, 60], "keep_model": False}) == run_key(
        "data_removal", made
    )


def test_rows_finds_the_rows_that_were_flipped(home, ranked):
    rows, known = pd.read_csv(home / "ranked" / "rows.csv"), sentences(1, 300, 0.6)
    flipped = rows.text.isin(known.sentence[known.flipped])
    assert flipped[:60].mean() > 2 * flipped.mean()


@pytest.mark.slow
def test_dsp_prunes_a_classifier_that_is_taken_as_it_is(home):
    said = sieve(
        home, "prune", "judge", "--task", "plain.yaml", "--ffn", 0.5, "--heads", 0.25, "--by", "dsp",
        "--no-retrain", "--to", "cut",
    )  # fmt: skip
    assert "it is taken as it is" in said and said.count("train_mask/") >= 2 and "finetune/" not in said
    units = json.loads((home / "cut" / "prune.json").read_text())["units"]
    assert units == {"head": {"kept": 6, "of": 8}, "ffn": {"kept": 64, "of": 128}}
    assert [a["label"] in NAMES for a in ask_plainly(home / "cut", ["the film was good"], home)] == [True]


@pytest.mark.slow
def test_rows_of_a_trained_classifier_are_scored_as_they_are(home):
    said = sieve(
        home,
        "rows",
        "judge",
        "--task",
        "plain.yaml",
        "--method",
        "trak",
        "--group",
        "label",
        "--to",
        "scored",
    )
    assert "there is no curve" in said and "data_removal/" not in said
    rows = pd.read_csv(home / "scored" / "rows.csv")
    assert set(rows.group) == set(NAMES) and not (home / "scored" / "curve.csv").exists()


def test_bias_tests_what_the_model_can_answer(home, real_data):
    said = sieve(home, "bias", "encoder", "--to", "tested", data=real_data("bias").parent)
    tests = pd.read_csv(home / "tested" / "tests.csv")
    assert "no head that fills in words" in said and set(tests.metric) == {"seat"} and len(tests) == 6
    for value in tests.value:
        assert f"{value:9.3f}" in said
    assert (home / "tested" / "associations.png").is_file()


REFUSED = {
    "prune encoder": "--task, --to",
    "prune encoder --task plain.yaml --heads half --to new": "a share from 0 up to, but not, 1, not 'half'",
    "prune encoder --task plain.yaml --heads 1 --to new": "not '1'",
    "prune encoder --task plain.yaml --heads -0.5 --to new": "not '-0.5'",
    "prune encoder --task plain.yaml --heads nan --to new": "not 'nan'",
    "prune encoder --task plain.yaml --to new": "nothing to remove: give --heads or --ffn",
    "prune encoder --task plain.yaml --heads 0.01 --to new": "--heads 0.01 of 8 is no or every unit",
    "prune encoder --task plain.yaml --heads 0.5 --by taste --to new": "invalid choice: 'taste'",
    "prune encoder --task nothing.yaml --heads 0.5 --to new": "nothing.yaml",
    "prune encoder --task synthetic-nlp --heads 0.5 --to new": "did you mean 'synthetic-nli'?",
    "prune encoder --task synthetic-translation --heads 0.5 --to new": "to translate",
    "prune ./nowhere --task plain.yaml --heads 0.5 --to new": "nothing lies at ./nowhere",
    "prune data --task plain.yaml --heads 0.5 --to new": "config.json",
    "prune bart --task plain.yaml --heads 0.5 --to new": "architecture 'bart'",
    "prune strange --task plain.yaml --heads 0.5 --to new": "'yolos'",
    "prune other --task plain.yaml --heads 0.5 --to new": "answers spam, ham, but the labels of",
    "prune unnamed --task plain.yaml --heads 0.5 --to new": "LABEL_0",
    "prune encoder --task plain.yaml --heads 0.5 --to full": "the folder holds mine.txt",
    "prune encoder --task plain.yaml --heads 0.5 --to plain.yaml": "plain.yaml is a file",
    "prune encoder --task plain.yaml --heads 0.5 --set lr --to new": "NAME=VALUE",
    "prune encoder --task plain.yaml --heads 0.5 --set learning=1 --to new": "no parameter of any stage 'learning'",
    "prune encoder --task plain.yaml --heads 0.5 --set lr=-1 --to new": "lr cannot be -1",
    "prune encoder --task plain.yaml --heads 0.5 --jobs 0 --to new": "a number from 1 to 99999",
    "rows encoder --task groups.yaml --method ekfca": "did you mean 'ekfac'?",
    "rows encoder --task groups.yaml --remove 0": "shares above 0",
    "rows encoder --task groups.yaml --remove 0.0001": "of 300 training rows is [0]",
    "rows encoder --task groups.yaml --seeds 0": "invalid choice: 0",
    "rows encoder --task plain.yaml": "has no groups",
    "rows encoder --task STS-B": "asks for a number",
    "rows judge --task groups.yaml --start judge": "has a trained classifier",
    "rows encoder --task groups.yaml --start encoder": "--start is for a MODEL with a trained classifier",
    "bias encoder": "no test of bias below",
    "bias tiny": "a tiny model knows no words",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line_before_anything_starts(line, env, capsys, monkeypatch):
    monkeypatch.setenv("SIEVE_OUTPUTS", str(env / "untouched"))
    (env / "data").mkdir(exist_ok=True)
    (env / "full").mkdir(exist_ok=True)
    (env / "full" / "mine.txt").write_text("mine")
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("sieve: ") and shown.err.count("\n") == 1 and REFUSED[line] in shown.err, (
        shown.err
    )
    assert shown.out == "" and not (env / "new").exists()
    assert not [p for p in (env / "untouched").rglob("*") if p.is_file() and ".cache" not in p.parts]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_select_units_keeps_the_highest_of_each_kind(scope, env):
    shares = {"head": 0.5, "ffn": 0.25}
    found = made("select_units", remove=shares, scope=scope, seed=3)
    for kind, share in shares.items():
        scores, mask = found["made_up"][kind].numpy(), found["mask"][kind].numpy()
        parts = [(scores, mask)] if scope == "global" else [*zip(scores, mask, strict=True)]
        for values, kept in parts:
            order = np.argsort(values, axis=None)[: round(share * values.size)]
            expected = np.ones(values.size)
            expected[order] = 0
            assert (kept.ravel() == expected).all()
    assert found["run"].result["kept"] == {"head": [6, 12], "ffn": [54, 72]}


def test_select_units_refuses_scores_of_several_models_and_of_other_tasks(env):
    small = dict(settings={"train": 40, "dev": 16, "ood": 8}, mode="neurons", rows=8)
    one, other = (made("importance", seed=seed, **small)["run"].key for seed in (0, 1))
    mask = made("select_units", scores=[one], remove={"head": 0.25})["mask"]
    assert int(mask["head"].sum()) == 6 and list(mask) == ["head"]
    with pytest.raises(ValueError, match="two of the runs have scores of head"):
        made("select_units", scores=[one, other], remove={"head": 0.25})
    with pytest.raises(ValueError, match="is of task synthetic-nli, not synthetic-toxicity"):
        made("select_units", scores=[one], task="synthetic-toxicity")
    with pytest.raises(ValueError, match="none of the runs has scores of mlp; there: head"):
        made("select_units", scores=[one], remove={"head": 0.25, "mlp": 0.5})


OWN_MODEL = ROOT / "docs" / "own_model.md"


def test_every_command_of_the_page_on_ones_own_model_plans_what_the_page_shows(
    home, tmp_path, monkeypatch, capsys
):
    for name in ("reviews.tsv", "train.csv", "dev.csv"):
        shutil.copy(home / name, tmp_path)
    shutil.copy(home / "groups.yaml", tmp_path / "comments.yaml")
    for name in ("my-bert", "models/all-MiniLM-L6-v2"):
        shutil.copytree(home / "encoder", tmp_path / name)
    (seat := tmp_path / "data" / "bias" / "seat").mkdir(parents=True)
    sets = {
        name: {"category": name, "examples": ["the film", "a day"]}
        for name in ("targ1", "targ2", "attr1", "attr2")
    }
    for number in ("6", "6b", "7", "7b", "8", "8b"):
        (seat / f"sent-weat{number}.jsonl").write_text(json.dumps(sets))
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("SIEVE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", OWN_MODEL.read_text())
    said, verbs = "", []
    for kind, text in blocks:
        for line in text.splitlines() if kind == "sh" else []:
            words = shlex.split(line, comments=True)
            if words[:1] == ["sieve"]:
                verbs.append(words[1])
                assert main(words[1:] + ["--dry-run"] * (words[1] != "task")) == 0, line
                said = capsys.readouterr().out
        shown = re.findall(r"(?m)^  (\w+): (\w+)/", text) if kind == "" else []
        assert all(f"{stage}: {book}/" in said for stage, book in shown), (text, said)
    assert verbs == ["task", "prune", "rows", "bias"]
    [sweep] = [text for kind, text in blocks if kind == "yaml"]
    (tmp_path / "mine.yaml").write_text(sweep.replace("my-bert}", f"{tmp_path}/my-bert}}"))
    assert len(load_sweep(tmp_path / "mine.yaml").planned) == 6


def test_a_decoder_with_grouped_keys_becomes_smaller_too(home, pruned):
    options = ["--ffn", 0.5, "--set", "lr=5.0e-3", "--set", "epochs=6.0", "--to", "small-llama"]
    sieve(home, "prune", "llama", "--task", "reviews.yaml", *options)
    said = json.loads((home / "small-llama" / "prune.json").read_text())
    assert said["units"] == {"ffn": {"kept": 64, "of": 128}}
    few = sentences(3, 40)
    answers = ask_plainly(home / "small-llama", list(few.sentence), home)
    assert sum(a["label"] == y for a, y in zip(answers, few.label)) >= 34
