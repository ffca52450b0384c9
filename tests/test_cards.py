"""Task cards: what is wrong with a card or a file of one's own is told in one line before anything starts, and what is right is read alike from all forms of file."""

import gzip
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pandas as pd
import pytest

import lib.commands.cli
from lib.commands.cli import main
from lib.core.base import DataError, RunError, outputs
from lib.core.runs import start
from lib.core.sweeps import check_inputs, load_sweep
from lib.data import cards, tasks
from lib.data.ood import check_sets, chosen_sets, ood_sets
from lib.metrics.scores import METRICS

CARD = "train: a.csv\ntext: text\nlabel: label\nlabels: [bad, good]\n"
ROWS = "text,label\n" + "".join(f"text {i},{('bad', 'good')[i % 2]}\n" for i in range(30))
JSON = "".join(f'{{"text": "text {i}", "label": "{("bad", "good")[i % 2]}"}}\n' for i in range(30))


def frame(**columns):
    "Thirty good rows with some columns replaced, as parquet."
    rows = {"text": [f"text {i}" for i in range(30)], "label": [("bad", "good")[i % 2] for i in range(30)]}
    return pd.DataFrame(rows | columns)


def more(card, /, **values):
    "The good card with keys added or replaced (None: taken away)."
    lines = [line for line in card.splitlines() if line.split(":")[0] not in values]
    return "\n".join([*lines, *(f"{k}: {v}" for k, v in values.items() if v is not None), ""])


def grouped(row="x,good,m,1"):
    return (
        "text,label,who,id\n"
        + "".join(f"text {i},{('bad', 'good')[i % 2]},f,r{i}\n" for i in range(30))
        + row
        + "\n"
    )


BAD_CARDS = [  # (what, the card, words of the message); the file of rows is sound
    (
        "unknown key",
        CARD.replace("text:", "txt:"),
        "card.yaml, line 2, column 1: unknown key 'txt', did you mean 'text'? Valid: train",
    ),
    (
        "unknown option",
        more(CARD, format="{heeder: true}"),
        "line 5, column 10: unknown key 'heeder', did you mean 'header'? Valid: header, delimiter",
    ),
    ("no text", more(CARD, text=None), "line 1: no text: it must be a column's name"),
    ("no label", more(CARD, label=None), "line 1: no label: it must be a column's name"),
    ("no train", more(CARD, train=None), "line 1: no train: it must be the name of a file"),
    (
        "no labels",
        more(CARD, labels=None),
        "line 3, column 1: neither labels nor regression",
        "regression: true",
    ),
    ("labels of a regression", more(CARD, regression="true"), "labels and regression exclude each other"),
    (
        "labels that YAML reads as true and false",
        more(CARD, labels="[no, yes]"),
        "line 4, column 1: labels must be names",
        "in quotes",
        "[False, True]",
    ),
    ("one label", more(CARD, labels="[good]"), "line 4, column 1: labels must be names", "not ['good']"),
    ("one value", more(CARD, labels="{good: good}"), "line 4, column 1: one label only"),
    ("a label twice", more(CARD, labels="[good, bad, good]"), "label 'good' stands twice"),
    ("two values of a name", more(CARD, labels="{bad: x, good: x}"), "label 'x' stands twice"),
    (
        "a label of nothing",
        more(CARD, labels="[good, '']"),
        "line 4, column 1: label '' stands twice or is empty",
    ),
    ("labels as text", more(CARD, labels="good"), "line 4, column 1: labels must be names", "not 'good'"),
    (
        "a number for a name",
        more(CARD, label="2"),
        "line 4, column 1: label: 2: columns are named by the first line",
    ),
    ("column 0", more(CARD, text="0", format="{header: false}"), "text must be a column's name, or", "not 0"),
    (
        "three texts",
        more(CARD, text="[a, b, c]"),
        "text must be a column's name",
        "or a list of two of them",
        "['a', 'b', 'c']",
    ),
    ("no column of text", more(CARD, text="[]"), "text must be a column's name", "not []"),
    (
        "label and text",
        more(CARD, text="label"),
        "line 4, column 1: column 'label' stands twice, for label and text".replace("line 4", "line 2"),
    ),
    (
        "group and label",
        more(CARD, group="label"),
        "line 5, column 1: column 'label' stands twice, for group and label",
    ),
    (
        "a group twice",
        more(CARD, group="[who, who]"),
        "line 5, column 1: column 'who' stands twice, for group",
    ),
    (
        "unknown metric",
        more(CARD, metrics="[accuracy, acc_f1]"),
        "line 5, column 21: no metric 'acc_f1' of 2 labels, did you mean 'acc_and_f1'? Valid: accuracy",
    ),
    (
        "f1 of three",
        more(CARD, labels="[a, b, c]", metrics="[f1]"),
        "no metric 'f1' of 3 labels",
        "Valid: accuracy, mcc, f1_weighted",
    ),
    (
        "accuracy of numbers",
        more(CARD, labels=None, regression="true", metrics="[accuracy]"),
        "no metric 'accuracy' of numbers. Valid: corr, pearson, spearman",
    ),
    ("a metric twice", more(CARD, metrics="[mcc, mcc]"), "line 5, column 16: metric 'mcc' stands twice"),
    (
        "metrics as text",
        more(CARD, metrics="mcc"),
        "line 5, column 1: metrics must be a list of names, not 'mcc'",
    ),
    (
        "a spreadsheet",
        more(CARD, train="a.xlsx"),
        "column 1: 'a.xlsx' ends in none of .csv, .tsv, .txt, .jsonl, .parquet",
    ),
    (
        "a file that is not there",
        more(CARD, train="b.csv"),
        "no file",
        "b.csv, did you mean 'a.csv'? Valid: a.csv",
    ),
    ("no dev file", more(CARD, dev="dev.tsv"), "line 5, column 1: no file", "dev.tsv. Valid: a.csv"),
    ("no set out of distribution", more(CARD, ood="{shop: b.jsonl}"), "line 5, column 7: no file", "b.jsonl"),
    ("one file twice", more(CARD, dev="a.csv"), "line 5, column 1: dev and train are one file, a.csv"),
    (
        "one file twice, by another path",
        more(CARD, ood="{x: ./a.csv}"),
        "line 5, column 7: x and train are one file",
    ),
    (
        "a set named as a split",
        more(CARD, ood="{select: b.csv}"),
        "line 5, column 7: a set",
        "cannot be called select",
    ),
    (
        "a set named as a task",
        more(CARD, ood="{HANS: b.csv}"),
        "line 5, column 7: a set",
        "cannot be called HANS",
    ),
    ("a set without a name", more(CARD, ood="{'a b': b.csv}"), "ood must be names of sets with their files"),
    (
        "sets in a list",
        more(CARD, ood="[b.csv]"),
        "line 5, column 1: ood must be names of sets with their files, as {name: file}",
    ),
    (
        "dev of nearly all rows",
        more(CARD, dev="0.9"),
        "line 5, column 1: dev must be the name of a file, or the share",
        "not 0.9",
    ),
    ("dev of no rows", more(CARD, dev="0"), "dev must be the name of a file, or the share", "not 0"),
    (
        "a configuration of files",
        more(CARD, configuration="en"),
        "line 5, column 1: configuration is of a data set on the hub",
    ),
    (
        "a revision of files",
        more(CARD, revision="v1"),
        "line 5, column 1: revision is of a data set on the hub",
    ),
    (
        "no name of a data set",
        more(CARD, hub="org/a/b"),
        "line 5, column 1: hub must be the name of a data set on the hub, as org/name",
    ),
    ("a split twice", more(CARD, hub="org/a", train="t", dev="t"), "dev and train are one split, t"),
    (
        "a table's option on the hub",
        more(CARD, hub="org/a", format="{header: true}"),
        "column 10: header is of tables",
    ),
    (
        "two characters",
        more(CARD, format="{delimiter: '::'}"),
        "line 5, column 10: delimiter must be one character",
        "'::'",
    ),
    (
        "no encoding",
        more(CARD, format="{encoding: latin1x}"),
        "no encoding 'latin1x', did you mean 'latin-1'? Valid: utf-8",
    ),
    (
        "an encoding of two bytes",
        more(CARD, format="{encoding: utf-16}"),
        "line 5, column 10: no encoding 'utf-16'",
    ),
    ("names without a header", more(CARD, format="{header: false}"), "text: 'text': columns are numbered"),
    ("header as text", more(CARD, format="{header: 'no'}"), "header must be true or false, not 'no'"),
    (
        "a delimiter of JSON",
        more(CARD, train="a.jsonl", format="{delimiter: ';'}"),
        "delimiter is of tables (.csv, .tsv, .txt), and there is none",
    ),
    (
        "JSON without names",
        more(CARD, train="a.jsonl", text="1", label="2", format="{header: false}"),
        "header is of tables",
    ),
    (
        "options in a list",
        more(CARD, format="[header]"),
        "line 5, column 1: format must be a dict of header, delimiter",
    ),
    (
        "regression as text",
        more(CARD, labels=None, regression="'true'"),
        "regression must be true or false, not 'true'",
    ),
    ("no YAML", CARD + "metrics: [mcc\n", "card.yaml: while parsing a flow sequence", "(line 6)"),
    ("a key twice", CARD + "text: b\n", "card.yaml: line 5: key 'text' stands twice"),
    ("a tab", CARD + "\tid: x\n", "card.yaml: while scanning", "(line 5)"),
    ("nothing", "", "card.yaml: holds no dict of keys and values"),
    ("a list", "- train: a.csv\n", "card.yaml: holds no dict"),
    (
        "a date for a file",
        more(CARD, train="2026-01-01"),
        "card.yaml: line 4: 2026-01-01 is a date to YAML: quote it",
    ),
    ("not UTF-8", CARD.encode() + b"id: \xff\n", "card.yaml: is not UTF-8 text"),
]
WHO = more(CARD, group="who", id="id")
NUMBER = more(CARD, labels=None, regression="true")
LINES, PARQUET = more(CARD, train="a.jsonl"), more(CARD, train="a.parquet")
BAD_FILES = [  # (what, the card, name of the file, what is in it, words of the message)
    ("another column", CARD, "a.csv", ROWS.replace("text,", "txt,", 1), "a.csv, line 1: no column 'text', did you mean 'txt'? Valid: txt, label"),
    ("another delimiter", CARD, "a.csv", ROWS.replace(",", ";"), "a.csv, line 1: no column 'text'", "Valid: text;label"),
    ("a comma too many", CARD, "a.csv", ROWS + "one, two,good\n", "a.csv, line 32: 3 fields, not 2 as in the first; a text with ',' in it must be quoted"),
    ("a field too few", CARD, "a.csv", ROWS + "\n\none\n", "a.csv, line 34: 1 fields, not 2 as in the first"),
    ("another label", CARD, "a.csv", ROWS + '"two\nlines",good\nx,ugly\n', "a.csv, line 34, column label: label 'ugly' is not one of bad, good"),
    ("a label in capitals", CARD, "a.csv", ROWS + "x,Good\n", "line 32, column label: label 'Good' is not one of bad, good"),
    ("a label with a space", CARD, "a.csv", ROWS + "x, good\n", "line 32, column label: label ' good' is not one of"),
    ("no label", CARD, "a.csv", ROWS + "x,\n", "line 32, column label: label '' is not one of bad, good"),
    ("an empty text", CARD, "a.csv", ROWS + ",good\n", "a.csv, line 32, column text: an empty text", "{empty: true}"),
    ("empty texts", CARD, "a.csv", ROWS + ",good\n  ,good\n", "line 32, column text: the first of 2 empty texts"),
    ("a column twice", CARD, "a.csv", ROWS.replace("label", "text", 1), "a.csv, line 1: column 'text' stands twice"),
    ("only a header", CARD, "a.csv", "text,label\n", "a.csv: no rows"),
    ("nothing", CARD, "a.csv", "", "a.csv: no rows"),
    ("not UTF-8", CARD, "a.csv", ROWS.encode() + b"caf\xe9,good\n", "a.csv, line 32: not UTF-8 text"),
    ("UTF-16", CARD, "a.csv", ROWS.encode("utf-16"), "a.csv, line 1: UTF-16 text: save it as UTF-8"),
    ("ASCII is said", more(CARD, format="{encoding: ascii}"), "a.csv", ROWS + "café,good\n", "a.csv, line 32: not ASCII text"),
    ("an open quotation mark", CARD, "a.csv", ROWS + '"x,good\n', "a.csv, line 32: a quotation mark is never closed"),
    ("a lonely quotation mark", CARD, "a.csv", ROWS + '5" pipe,good\n6" pipe,bad\n', "a.csv, line 32: a quotation mark in a field that is not quoted", "quoting: false"),
    ("line ends of an old Macintosh", CARD, "a.csv", ROWS.replace("\n", "\r"), "a.csv, line 1: no column 'label'"),
    ("a null character", CARD, "a.csv", ROWS + "a\0b,good\n", "line 32, column text: 'a\\x00b' is no text"),
    ("no gzip", more(CARD, train="a.csv.gz"), "a.csv.gz", ROWS, "a.csv.gz, after line 0: not a whole gzip file"),
    ("gzip cut short", more(CARD, train="a.csv.gz"), "a.csv.gz", gzip.compress(ROWS.encode())[:-9], "not a whole gzip file"),
    ("one label only", CARD, "a.csv", ROWS.replace("bad", "good"), "a.csv: all 30 rows have the label good: there is nothing to learn"),
    ("too few rows for a dev set", CARD, "a.csv", "text,label\na,bad\nb,good\n", "a.csv: 2 training rows are too few to draw a dev set from"),
    ("no such number of a column", more(CARD, text="1", label="3", format="{header: false}"), "a.csv", ROWS, "a.csv, line 1: no column number 3. Valid: text, label"),
    ("a header that is said to be none", more(CARD, text="1", label="2", format="{header: false}"), "a.csv", ROWS, "a.csv, line 1, column number 2: label 'label' is not one of"),
    ("no group column", WHO, "a.csv", ROWS, "a.csv, line 1: no column 'who'. Valid: text, label"),
    ("no group", WHO, "a.csv", grouped("x,good,,1"), "a.csv, line 32, column who: no group"),
    ("an id twice", WHO, "a.csv", grouped("x,good,m,r7"), "a.csv, line 32, column id: id 'r7' stands in line 9 too"),
    ("no id", WHO, "a.csv", grouped("x,good,m,"), "a.csv, line 32, column id: no id"),
    ("the sign that joins groups", more(CARD, group="[who, id]"), "a.csv", grouped("x,good,m & f,1"), "line 32, column who: 'm & f' has the & in it"),
    ("not a number", NUMBER, "a.csv", "text,label\na,1\nb,two\n", "a.csv, line 3, column label: 'two' is not a number"),
    ("NaN", NUMBER, "a.csv", "text,label\na,1\nb,nan\n", "a.csv, line 3, column label: 'nan' is not a number"),
    ("infinity", NUMBER, "a.csv", "text,label\na,1\nb,-inf\n", "a.csv, line 3, column label: '-inf' is not a number"),
    ("a comma for a point", more(NUMBER, format="{delimiter: ';'}"), "a.csv", "text;label\na;1,5\nb;2\n", "line 2, column label: '1,5' is not a number"),
    ("one number only", NUMBER, "a.csv", "text,label\n" + "".join(f"t{i},3\n" for i in range(30)), "all 30 rows have the label 3"),
    ("no JSON", LINES, "a.jsonl", JSON + "{text: x}\n", "a.jsonl, line 31: not JSON"),
    ("a list of rows", LINES, "a.jsonl", json.dumps([json.loads(r) for r in JSON.splitlines()]), "a.jsonl, line 1: no JSON object"),
    ("a line without the key", LINES, "a.jsonl", JSON + '{"text": "x"}\n', "a.jsonl, line 31: no column 'label'. Valid: text"),
    ("null for a text", LINES, "a.jsonl", JSON + '{"text": null, "label": "bad"}\n', "a.jsonl, line 31, column text: nothing is no text"),
    ("a number for a text", LINES, "a.jsonl", JSON + '{"text": 3, "label": "bad"}\n', "a.jsonl, line 31, column text: 3 is no text"),
    ("a list of labels", LINES, "a.jsonl", JSON + '{"text": "x", "label": ["bad"]}\n', "line 31, column label: label \"['bad']\" is not one of"),
    ("NaN in JSON", LINES, "a.jsonl", JSON + '{"text": "x", "label": NaN}\n', "a.jsonl, line 31, column label: label '' is not one of bad, good"),
    ("no parquet", PARQUET, "a.parquet", ROWS, "a.parquet: not a whole parquet file"),
    ("no column of parquet", PARQUET, "a.parquet", frame().rename(columns={"text": "txt"}), "a.parquet: no column 'text', did you mean 'txt'?"),
    ("no value in parquet", PARQUET, "a.parquet", frame(text=[None, *"abcdefghijklmnopqrstuvwxyzABC"]), "a.parquet, row 1, column text: nothing is no text"),
    ("a broken number for a label", more(PARQUET, labels="[0, 1]"), "a.parquet", frame(label=[0.0, 1.0] * 15), "a.parquet, row 1, column label: label '0.0' is not one of 0, 1"),
    ("another label in dev", more(CARD, dev="b.tsv"), "b.tsv", "text\tlabel\nx\tso so\n", "b.tsv, line 2, column label: label 'so so' is not one of"),
    ("another label out of distribution", more(CARD, ood="{shop: b.tsv}"), "b.tsv", "text\tlabel\nx\tso so\n", "b.tsv, line 2, column label: label 'so so'"),
    ("no rows out of distribution", more(CARD, ood="{shop: b.tsv}"), "b.tsv", "text\tlabel\n", "b.tsv: no rows"),
]  # fmt: skip


def write(path, content):
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder of its own outside of the data folder, which is empty; nothing may be made."

    def made(*args, **kwargs):
        raise AssertionError("runs are made")

    (tmp_path / "own").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("SIEVE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(lib.commands.cli, "make", made)
    return tmp_path / "own"


def planned(folder, card, capsys, **files):
    "What `sieve run` says of a sweep that names the card."
    for name, content in {"a.csv": ROWS, "card.yaml": card, **files}.items():
        write(folder / name, content)
    sweep = {"stages": {"tune": {"notebook": "finetune", "set": {"task": "card.yaml", "max_steps": 1}}}}
    (folder / "study.yaml").write_text(json.dumps(sweep))
    code = main(["run", str(folder / "study.yaml"), "--jobs", "1"])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("card, words", [(c, w) for _, c, *w in BAD_CARDS], ids=[c[0] for c in BAD_CARDS])
def test_a_bad_card_is_one_line_and_nothing_starts(folder, capsys, card, words):
    code, said = planned(folder, card, capsys)
    assert code == 2 and all(w in said for w in words), said
    assert said.count("\n") == 1 and str(folder / "card.yaml") in said and not outputs().exists()


@pytest.mark.parametrize(
    "card, name, content, words",
    [(c, n, f, w) for _, c, n, f, *w in BAD_FILES],
    ids=[c[0] for c in BAD_FILES],
)
def test_a_bad_file_is_one_line_and_nothing_starts(folder, capsys, card, name, content, words):
    code, said = planned(folder, card, capsys, **{name: content})
    assert code == 2 and all(w in said for w in words), said
    assert said.count("\n") == 1 and str(folder) in said and not outputs().exists()


def test_there_are_sixty_of_them():
    assert len({c[0] for c in BAD_CARDS}) >= 50 and len({c[0] for c in BAD_FILES}) >= 45


def test_a_card_that_is_not_there(folder, capsys):
    (folder / "study.yaml").write_text(
        json.dumps({"stages": {"tune": {"notebook": "finetune", "set": {"task": "cart.yaml"}}}})
    )
    assert main(["run", str(folder / "study.yaml")]) == 2
    said = capsys.readouterr().err
    assert "no task card cart.yaml. Looked for: " in said and said.count("\n") == 1 and not outputs().exists()


def test_metrics_of_cards_are_those_that_there_are():
    known = {*cards._OF_NUMBERS, *cards._OF_LABELS, *cards._OF_TWO}
    assert known == set(METRICS)


HARD = ["plain", "a, b", "tab\tin it", "two\nlines", 'say "no"', " spaces ", "naïve café", "\u2028 x", "1"]


def hard_rows():
    "Texts that files have trouble with, with labels, groups and ids."
    n = 4 * len(HARD)
    rows = {
        "id": range(n),
        "text": [f"{HARD[i % len(HARD)]} {i}" for i in range(n)],
        "label": [i % 3 for i in range(n)],
    }
    return pd.DataFrame(rows | {"who": [("m", "f, old")[i % 2] for i in range(n)]})


def columns(name, split="train"):
    "The columns of a split without its own numbers."
    return tasks.load_task(str(name)).splits[split].remove_columns("idx")[:]


def test_all_forms_of_file_give_the_same_rows(folder):
    rows, card = hard_rows(), "text: text\nlabel: label\nlabels: {0: a, 1: b, 2: c}\ngroup: who\nid: id\n"
    rows.to_csv(folder / "a.csv", index=False)
    rows.to_csv(folder / "b.tsv", index=False, sep="\t")
    rows.to_json(folder / "c.jsonl", orient="records", lines=True)
    rows.to_parquet(folder / "d.parquet")
    (folder / "e.csv.gz").write_bytes(gzip.compress((folder / "a.csv").read_bytes()))
    (folder / "f.csv").write_bytes(
        b"\xef\xbb\xbf"
        + (folder / "a.csv").read_bytes().replace(b"\n", b"\r\n").replace(b"two\r\n", b"two\n")
    )
    rows.to_csv(folder / "g.txt", index=False, sep=";", encoding="latin-1", errors="replace")
    forms = ["a.csv", "b.tsv", "c.jsonl", "d.parquet", "e.csv.gz", "f.csv"]
    read = {}
    for name in forms:
        (folder / "card.yaml").write_text(f"train: {name}\n{card}")
        read[name] = columns(folder / "card.yaml"), columns(folder / "card.yaml", "dev")
    assert all(read[name] == read["a.csv"] for name in forms)
    both = [x + y for x, y in zip(*(part["id"] for part in read["a.csv"]))] and sum(
        (part["id"] for part in read["a.csv"]), []
    )
    assert sorted(map(int, both)) == list(range(len(rows)))
    train = read["a.csv"][0]
    assert train["text_a"] == [rows.text[int(i)] for i in train["id"]] and set(train["group"]) == {
        "m",
        "f, old",
    }
    assert train["label"] == [int(i) % 3 for i in train["id"]]


def test_a_card_of_a_built_in_task_gives_its_rows_tokens_and_training(folder, tmp_path):
    from lib.training.loading import load_model
    from lib.training.recipes import classification
    from lib.training.trainer import Optim, train

    (place := tmp_path / "data" / "glue" / "SST-2").mkdir(parents=True)
    for name, n in (("train", 40), ("dev", 12)):
        rows = [f'{"a good" if i % 2 else "a bad"} film, "number {i}\t{i % 2}\n' for i in range(n)]
        (place / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    card = f"train: {place}/train.tsv\ndev: {place}/dev.tsv\ntext: sentence\nlabel: label\n"
    (folder / "mine.yaml").write_text(card + "labels: {0: negative, 1: positive}\n")
    found = []
    for name in ("SST-2", str(folder / "mine.yaml")):
        data = tasks.load_task(name)
        net, tokenizer = load_model(
            "tiny", data, 3, tiny=dict(layers=1, width=16, heads=2, vocab=200, length=16)
        )
        recipe = classification(tokenizer, data, max_length=16)
        done = train(
            net, recipe, Optim(lr=1e-3, max_steps=4, batch_size=8, seed=3), folder=tmp_path / "training"
        )
        tokens = tasks.tokenized(data.splits["dev"], tokenizer, 16)[:]
        rows = {s: data.splits[s][:] for s in data.splits}
        found.append((data.labels, data.metrics, rows, tokens, done.losses, net.state_dict()))
    for mine, theirs in zip(found[0][:5], found[1][:5]):
        assert mine == theirs
    weights = [state.values() for _, *_, state in found]
    assert all((a == b).all() for a, b in zip(*weights, strict=True))


def test_pairs_numbers_groups_and_other_sets(folder):
    rows = [f"p {i};h {i};{i / 10};{'mf'[i % 2]};{'old young'.split()[i % 3 > 0]}\n" for i in range(20)]
    (folder / "a.csv").write_text("premise;hypothesis;score;sex;age\n" + "".join(rows))
    (folder / "b.jsonl").write_text('{"premise": "x", "hypothesis": "y", "score": 3}\n' * 2)
    card = "train: a.csv\ntest: c.csv\nood: {far: b.jsonl}\ntext: [premise, hypothesis]\nlabel: score\nregression: true\n"
    (folder / "c.csv").write_text("premise;hypothesis;score;sex;age\n" + "".join(rows[:4]))
    (folder / "pairs.yaml").write_text(card + "group: [sex, age]\nformat: {delimiter: ';'}\ndev: 0.2\n")
    task = tasks.load_task(str(folder / "pairs.yaml"))
    assert task.labels == [] and task.metrics == ["corr", "pearson", "spearman"] and task.criterion == "corr"
    assert {s: len(task.splits[s]) for s in task.splits} == {"train": 16, "dev": 4, "test": 4, "far": 2}
    assert task.splits["test"][3] == {
        "text_a": "p 3",
        "text_b": "h 3",
        "label": pytest.approx(0.3),
        "group": "f & old",
        "idx": 3,
    }
    assert task.splits["far"].column_names == ["text_a", "text_b", "label", "idx"]
    check_sets(task.name, sets=["ood", "report"])
    assert list(chosen_sets(task, ["select", "far", "train"])) == ["select", "far", "train"]
    assert list(ood_sets(task)) == ["far"] and len(ood_sets(task)["far"]) == 2
    with pytest.raises(DataError, match="has no training rows out of distribution"):
        check_sets(task.name, ood_training=True)


def test_tables_without_a_header_without_quoting_and_in_latin_1(folder):
    (folder / "a.txt").write_bytes("".join(f'{i % 2}|caf\xe9 "{i}\n' for i in range(20)).encode("latin-1"))
    options = "{header: false, delimiter: '|', quoting: false, encoding: latin-1}"
    (folder / "a.yaml").write_text(f"train: a.txt\ntext: 2\nlabel: 1\nlabels: [0, 1]\nformat: {options}\n")
    assert sorted(
        columns(folder / "a.yaml")["text_a"] + columns(folder / "a.yaml", "dev")["text_a"]
    ) == sorted(f'café "{i}' for i in range(20))
    (folder / "b.csv").write_text("text,label\n" + "".join(f",{i % 2}\n" for i in range(4)))
    (folder / "b.yaml").write_text(
        "train: b.csv\ndev: c.csv\ntext: text\nlabel: label\nlabels: [0, 1]\nformat: {empty: true}\n"
    )
    (folder / "c.csv").write_text("text,label\nx,1\n")
    assert columns(folder / "b.yaml") == {"text_a": [""] * 4, "label": [0, 1, 0, 1]}


def test_an_mnli_like_card_is_evaluated_on_sets_of_the_table(folder, tmp_path):
    (place := tmp_path / "data" / "ood" / "HANS").mkdir(parents=True)
    hans = "gold_label\tsentence1\tsentence2\theuristic\nnon-entailment\ta\tb\tx\nentailment\tc\td\ty\n"
    (place / "heuristics_evaluation_set.txt").write_text(hans)
    (folder / "a.csv").write_text("p,h,y\n" + "".join(f"p{i},h{i},{'nce'[i % 3]}\n" for i in range(30)))
    labels = "{e: entailment, n: neutral, c: contradiction}"
    (folder / "nli.yaml").write_text(f"train: a.csv\ntext: [p, h]\nlabel: y\nlabels: {labels}\n")
    task = tasks.load_task(str(folder / "nli.yaml"))
    check_sets(task.name, sets=["HANS"])
    one = chosen_sets(task, ["HANS"])["HANS"]
    assert one["label"][:] == [2, 0] and one.collapse == {1: 2}
    (folder / "nli.yaml").write_text("train: a.csv\ntext: [p, h]\nlabel: y\nlabels: [e, n, c]\n")
    with pytest.raises(DataError, match="has no evaluation set 'HANS'"):
        check_sets(task.name, sets=["HANS"])


def made(task):
    "A finished run of a card, that trained nothing."
    run = start("finetune", {"task": task, "max_steps": 0})
    run.uses(tasks.load_task(run.params["task"]).files)
    run.finish([{"metric": "accuracy", "value": 0.5}])
    return run


def test_a_run_is_stale_when_its_card_or_rows_change(folder, monkeypatch):
    write(folder / "a.csv", ROWS)
    (folder / "shop.csv").write_text(ROWS)
    write(card := folder / "card.yaml", more(CARD, ood="{shop: shop.csv}"))
    monkeypatch.chdir(folder)
    run = made("card.yaml")
    assert run.params["task"] == str(card) and run.stale_because() == []
    monkeypatch.chdir(folder.parent)  # found again from elsewhere
    assert run.stale_because() == []
    (folder / "shop.csv").write_text(ROWS.replace("text 3,good", "text 3,bad"))
    assert run.stale_because() == ["data file shop.csv changed"]
    (folder / "shop.csv").write_text(ROWS)
    assert run.stale_because() == []
    card.write_text(card.read_text() + "# a remark\n")
    assert run.stale_because() == ["data file card.yaml changed"]
    card.unlink()
    assert run.stale_because() == [f"data file card.yaml is not in {folder}"]
    for read in (tasks.load_task, tasks.label_names, tasks.check_source):
        with pytest.raises(DataError, match=f"no task card {card}. Looked for: {card}"):
            read(run.params["task"])


def test_the_key_does_not_know_where_the_data_folder_is(folder, tmp_path, monkeypatch):
    keys = []
    for home in ("one", "two"):
        (own := tmp_path / home / "mine").mkdir(parents=True)
        write(own / "a.csv", ROWS)
        write(own / "card.yaml", CARD)
        monkeypatch.setenv("SIEVE_DATA", str(tmp_path / home))
        for name in ("mine/card.yaml", str(own / "card.yaml")):
            run = made(name)
            keys.append(run.key)
            assert set(run.provenance["data"]) == {"mine/card.yaml", "mine/a.csv"}
    assert len(set(keys)) == 1


def test_a_sweep_names_a_card_beside_it(folder, monkeypatch):
    write(folder / "a.csv", ROWS)
    write(folder / "card.yaml", CARD)
    write(folder / "other.yaml", CARD)
    sweep = """
stages:
  tune: {notebook: finetune, grid: {task: [card.yaml, other.yaml, synthetic-nli], seed: [0, 1]}, per: {task: {card.yaml: {max_steps: 3}}}}
  look: {notebook: evaluate, from: {model: tune}, where: {task: [card.yaml]}}
"""
    (folder / "study.yaml").write_text(sweep)
    plan = load_sweep(folder / "study.yaml")
    check_inputs(plan.planned, folder / "study.yaml")
    tuned = {(r.labels["task"], r.params["max_steps"]) for r in plan.planned if r.stage == "tune"}
    mine, other = (str(folder / name) for name in ("card.yaml", "other.yaml"))
    assert tuned == {(mine, 3), (other, -1), ("synthetic-nli", -1)}
    assert {r.params["task"] for r in plan.planned if r.stage == "look"} == {mine}
    monkeypatch.chdir(folder)
    assert {r.key for r in load_sweep(Path("study.yaml")).planned} == {r.key for r in plan.planned}
    (folder / "sweeps").mkdir()
    for name in ("study.yaml", "card.yaml"):
        os.link(folder / name, folder / "sweeps" / name)
    with pytest.raises(RunError, match="give its whole path"):
        load_sweep(folder / "sweeps" / "study.yaml")


def test_a_bias_model_of_pairs_is_not_planned_for_single_texts(folder, capsys):
    write(folder / "a.csv", ROWS)
    write(folder / "card.yaml", CARD)
    for kind, code in (("lexical", 2), ("weak", 0)):
        stage = {"notebook": "bias_model", "set": {"task": "card.yaml", "kind": kind, "sets": ["report"]}}
        (folder / "study.yaml").write_text(json.dumps({"stages": {"one": stage}}))
        assert main(["run", str(folder / "study.yaml"), "--dry-run"]) == code
    assert (
        "card.yaml has single texts, and bias model lexical needs pairs. Valid: " in capsys.readouterr().err
    )


PAGE = Path(__file__).parents[1] / "docs" / "own_data.md"


def blocks():
    "(language, name of a file or nothing, text) of every block of the page."
    return re.findall(r"(?ms)^```(\w+) ?([\w.]*)\n(.*?)^```$", PAGE.read_text())


def execute(kind, name, text, capsys):
    "Do what a block says; what it prints."
    if name:
        Path(name).write_text(text)
    elif kind == "python":
        exec(compile(text, "<page>", "exec"), {})
    elif kind == "sh":
        for line in text.splitlines():
            assert line.startswith("sieve ") and main(shlex.split(line)[1:]) == 0
    return capsys.readouterr().out.replace(f"{Path.cwd()}/", "")


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_page_on_own_data_does_what_it_says(folder, monkeypatch, capsys, whole):
    monkeypatch.chdir(folder)
    if whole:
        monkeypatch.undo()
        monkeypatch.setenv("SIEVE_OUTPUTS", str(folder.parent / "outputs"))
        monkeypatch.setenv("SIEVE_DATA", str(folder.parent / "data"))
        monkeypatch.chdir(folder)
    said, kinds = "", []
    for kind, name, text in blocks():
        kinds.append(kind)
        if kind == "text":
            assert [line.rstrip() for line in said.splitlines()] == text.splitlines()
        else:
            text = text if whole else text.replace("sieve run study.yaml --jobs 1\n", "")
            said = execute(kind, name, text, capsys)
    assert {kind: kinds.count(kind) for kind in kinds} == dict(csv=1, sh=3, text=2, yaml=2, json=1, python=1)
    assert ("finetune/" in said) if not whole else len(list(outputs().glob("*/*/result.json"))) == 2


def test_the_page_names_every_key():
    rows = re.findall(r"(?m)^\| (`.*?) \|", PAGE.read_text())
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert named | {"configuration", "revision"} == set(cards._Card.model_fields)
    assert all(
        f"`{key}" in PAGE.read_text() or f"`{key}:" in PAGE.read_text() for key in cards._Options.model_fields
    )


COMMITS = {"main": "a" * 40, "v1": "b" * 40}
ASK = """
import json, sys
from lib.core.base import DataError
from lib.data.tasks import check_source, load_task
for name in sys.argv[1:]:
    try:
        check_source(name)
        task = load_task(name)
        rows = {s: task.splits[s].remove_columns("idx")[:] for s in task.splits}
        print(json.dumps([task.source, sorted(task.files.values()), rows]))
    except DataError as error:
        print(json.dumps(str(error)))
"""


class Hub(BaseHTTPRequestHandler):
    "What the clients ask of a data set: its commit, the names of its files, and the files."

    files: dict = {}  # commit -> name -> bytes
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body, code=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entries(self, commit):
        sums = {n: hashlib.sha1(body).hexdigest() for n, body in self.files[commit].items()}
        return [
            {"type": "file", "path": n, "size": len(self.files[commit][n]), "oid": s} for n, s in sums.items()
        ]

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0].strip("/").split("/")
        if path[:4] == ["api", "datasets", "org", "set"]:
            commit = COMMITS.get(path[5], path[5]) if len(path) > 5 else COMMITS["main"]
            if commit not in self.files:
                return self.answer({}, 404, X_Error_Code="RevisionNotFound")
            if path[4:5] == ["tree"]:
                below = "/".join([*path[6:], ""]) if len(path) > 6 else ""
                return self.answer([e for e in self.entries(commit) if e["path"].startswith(below)])
            if path[4:5] == ["paths-info"]:
                return self.answer(self.entries(commit))
            names = [{"rfilename": n} for n in self.files[commit]]
            return self.answer({"id": "org/set", "sha": commit, "siblings": names, "tags": []})
        if path[:4] == ["datasets", "org", "set", "resolve"]:
            commit = COMMITS.get(path[4], path[4])
            body = self.files.get(commit, {}).get("/".join(path[5:]))
            if body is not None:
                return self.answer(body, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(body).hexdigest()}"')
            return self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        self.answer(
            {}, 200 if not path[0] or path[:2] == ["api", "models"] else 404, X_Error_Code="RepoNotFound"
        )

    do_HEAD = do_POST = do_GET


def stored(texts, names):
    "A data set of two splits in the form that the hub stores, labels by number."
    label = datasets.ClassLabel(names=names)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": label, "who": datasets.Value("string")}
    )
    files = {}
    for split, n in (("train", 20), ("dev", 4)):
        rows = {
            "text": [f"{texts} {split} {i}" for i in range(n)],
            "label": [i % 2 for i in range(n)],
            "who": ["a", "b"] * (n // 2),
        }
        datasets.Dataset.from_dict(rows, features).to_parquet(out := io.BytesIO())
        files[f"data/{split}.parquet"] = out.getvalue()
    listed = "".join(f"  - split: {s}\n    path: data/{s}.parquet\n" for s in ("train", "dev"))
    return files | {
        "README.md": f"---\nconfigs:\n- config_name: small\n  data_files:\n{listed}---\n".encode()
    }


@pytest.mark.slow  # a process of its own, whose imports are most of it
def test_a_card_of_the_hub_is_read_at_its_revision(folder, tmp_path):
    Hub.files = {
        COMMITS["main"]: stored("new", ["good", "bad"]),
        COMMITS["v1"]: stored("old", ["bad", "good"]),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    card = "hub: org/set\nconfiguration: small\ndev: dev\ntext: text\nlabel: label\nlabels: [bad, good]\ngroup: who\n"
    faults = {
        "other": "labels: [bad, fair]",
        "none": "revision: v2",
        "set": "hub: org/none",
        "split": "test: test",
        "text": "text: txt",
    }
    write(folder / "main.yaml", card)
    write(folder / "v1.yaml", card + "revision: v1\n")
    for name, line in faults.items():
        write(folder / f"{name}.yaml", more(card, **dict([line.split(": ")])))
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    home = Path(__file__).parents[1]
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}
    env |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(home)}
    names = ["main", "v1", *faults]
    command = [sys.executable, "-c", ASK, *(str(folder / f"{n}.yaml") for n in names)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    server.shutdown()
    said = dict(zip(names, map(json.loads, filter(lambda line: line[:1] in '["', done.stdout.splitlines()))))
    assert list(said) == names, done.stderr[-3000:] + done.stdout
    assert isinstance(said["main"], list), said
    (place, new, rows), (_, old, before) = said["main"], said["v1"]
    assert place == "hub" and len(new) == len(old) == 3 and not set(new) & set(old)
    assert rows["train"]["text_a"][0] == "new train 0" and before["dev"]["text_a"] == [
        f"old dev {i}" for i in range(4)
    ]
    assert rows["train"]["label"] == [1, 0] * 10 and before["train"]["label"] == [0, 1] * 10  # by name
    assert rows["dev"]["group"] == ["a", "b"] * 2
    words = {
        "other": "labels good, bad are not bad, fair",
        "none": "org/set (small) on the hub",
        "set": "org/none (small) on the hub",
    }
    words |= {"split": "line 8, column 1: org/set has no split 'test'. Valid: ", "text": "no column 'txt', did you mean 'text'?"}
    assert all(isinstance(said[n], str) and w in said[n] and "\n" not in said[n] for n, w in words.items()), (
        said
    )
