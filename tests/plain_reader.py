"Run by test_export in a process without Sieve: opens folders with transformers alone, and writes down what they answer."

import copy
import io
import json
import pickle
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

logging.set_verbosity_error()
try:
    import lib  # noqa: F401
except ImportError:
    pass
else:
    raise SystemExit("Sieve is here")

top, *folders = map(Path, sys.argv[1:])
generate = json.loads((top / "generate.json").read_text())
for folder in folders:
    given = load_file(folder / "given.st")
    said = json.loads((folder / "config.json").read_text())
    task = (
        "Seq2SeqLM"
        if said.get("is_encoder_decoder") or "ForConditional" in said["architectures"][0]
        else "SequenceClassification"
    )
    task = "Seq2SeqLM" if said["architectures"][0].endswith("MTModel") else task
    auto = getattr(transformers, f"AutoModelFor{task}")
    own = "auto_map" in said
    model = auto.from_pretrained(folder, **({"trust_remote_code": True} if own else {}))
    assert not model.training and type(model).__name__ == said["architectures"][0]
    inputs = {k: v for k, v in given.items() if not k.startswith("asked.")}
    asked = {k.removeprefix("asked."): v for k, v in given.items() if k.startswith("asked.")}

    def logits(model):
        with torch.no_grad():
            return model(**inputs).logits

    found = {"logits": logits(model)}
    for name, how in generate.items() if task == "Seq2SeqLM" else ():
        torch.manual_seed(0)
        found[name] = model.generate(**asked, suppress_tokens=[0], **how)
    found["deepcopy"] = logits(copy.deepcopy(model))
    found["pickle"] = logits(pickle.loads(pickle.dumps(model)))
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    found["torch"] = logits(torch.load(file, weights_only=False))
    model.save_pretrained(again := top / "again" / folder.name)
    assert ("auto_map" in json.loads((again / "config.json").read_text())) == own
    found["again"] = logits(auto.from_pretrained(again, **({"trust_remote_code": True} if own else {})))
    save_file({k: v.clone().contiguous() for k, v in found.items()}, folder / "found.st")
