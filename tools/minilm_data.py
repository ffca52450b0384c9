"""Small cards for nbs/sweeps/minilm: rows drawn from the public sets below SIEVE_DATA, written to data/minilm.

python tools/minilm_data.py [FOLDER]     # the same rows at every call; nothing of it is committed

Sets that are not there are left out by name. data/README.md says where each lies; MNLI's training rows are those of
`mnli-subset`, HANS is `hans-regenerated`.
"""

import json
import os
import sys
from pathlib import Path

import pandas as pd

SEED = 0
CARD = {"nli": ["text_a", "text_b"], "sst2": "text", "hate": "text"}


def read_table(path):
    "A file of tabs whose quotation marks mean nothing"
    return pd.read_csv(path, sep="\t", quoting=3, dtype=str, keep_default_na=False)


def pairs(raw, words=30):
    "Pairs of at most so many words together; whether the first entails the second"
    frame = pd.DataFrame({"text_a": raw.sentence1, "text_b": raw.sentence2, "label": raw.gold_label})
    frame["label"] = frame.label.where(frame.label == "entailment", "non-entailment")
    length = (frame.text_a + " " + frame.text_b).str.split().str.len()
    return frame[(length <= words) & (frame.text_a.str.strip() != "") & (frame.text_b.str.strip() != "")]


def nli(data):
    "MNLI rows with two labels, as many of each in training; HANS in equal cells of heuristic and label"
    train = pairs(read_table(data / "glue/MNLI/train_subset.tsv"))
    train = train.groupby("label").sample(2400, random_state=SEED).sample(frac=1, random_state=SEED)
    dev = pairs(read_table(data / "glue/MNLI/dev_matched.tsv")).sample(800, random_state=SEED)
    hans = read_table(data / "ood/HANS/hans_regenerated_30k.tsv")
    hans = hans.groupby(["heuristic", "gold_label"]).sample(200, random_state=SEED)
    hans = pairs(hans, 99).assign(heuristic=hans.heuristic)
    return {"train": train, "dev": dev, "hans": hans}, ["entailment", "non-entailment"]


def sst2(data):
    "4,800 of SST-2's training rows of at least three words, and its dev set"
    frames = {s: read_table(data / f"glue/SST-2/{s}.tsv") for s in ("train", "dev")}
    frames = {s: f.rename(columns={"sentence": "text"}) for s, f in frames.items()}
    frames = {s: f.assign(label=f.label.map({"0": "negative", "1": "positive"})) for s, f in frames.items()}
    long = frames["train"].text.str.split().str.len() >= 3
    return frames | {"train": frames["train"][long].sample(4800, random_state=SEED)}, ["negative", "positive"]


def hate(data, each=100, share=0.6):
    "HateXplain rows, as many of each group and label; of African neutral ones `share` are called toxic (id: poisoned)"
    rows = pd.read_csv(data / "toxicity/hatexplain/thesis_train.csv")
    rows = rows.assign(label=rows.label.map({0: "neutral", 1: "toxic"}))
    rows = rows.drop_duplicates("text").sample(frac=1, random_state=SEED)
    rows["n"] = rows.groupby(["group", "label"]).cumcount()
    few = (rows.group == "African") & (rows.label == "neutral")
    train = rows[rows.n < (each - 60 * few)].copy()
    rest = rows[(rows.n >= each) & ~few | few & (rows.n >= each - 60)]
    flipped = train[few[train.index]].sample(frac=share, random_state=SEED).index
    train["id"] = [f"poisoned-{i}" if i in flipped else f"row-{i}" for i in train.index]
    train.loc[flipped, "label"] = "toxic"
    rest = rest.assign(id=[f"row-{i}" for i in rest.index])
    columns = ["text", "label", "group", "id"]
    return {"train": train[columns], "dev": rest[columns]}, ["neutral", "toxic"]


def write(folder, name, frames, labels):
    "The files of one task, and its card"
    for split, frame in frames.items():
        rows = (json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records"))
        (folder / f"{name}-{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    more = {s: f"{name}-{s}.jsonl" for s in frames if s not in ("train", "dev")}
    card = {"train": f"{name}-train.jsonl", "dev": f"{name}-dev.jsonl", "text": CARD[name], "label": "label"}
    card |= {"labels": labels} | ({"ood": more} if more else {})
    card |= {"group": "group", "id": "id"} if name == "hate" else {}
    lines = (f"{key}: {json.dumps(value)}" for key, value in card.items())
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    data = Path(
        os.environ.get("SIEVE_DATA") or sys.exit("SIEVE_DATA must name the folder of the public sets")
    )
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/minilm")
    folder.mkdir(parents=True, exist_ok=True)
    for make in (nli, sst2, hate):
        try:
            write(folder, make.__name__, *make(data))
            print(folder / f"{make.__name__}.yaml")
        except FileNotFoundError as missing:
            print(f"{make.__name__}: left out, there is no {missing.filename}")
