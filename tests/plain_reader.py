"""Run by test_export in processes without Sieve: opens folders with transformers alone, and writes down what they answer."""

import copy
import io
import json
import multiprocessing
import pickle
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, Trainer, TrainingArguments, pipeline
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
try:
    import lib  # noqa: F401
except ImportError:
    pass
else:
    raise SystemExit("Sieve is here")


def about(folder: Path) -> tuple:
    "(automatic class, options) that open a folder"
    said = json.loads((folder / "config.json").read_text())
    name = said["architectures"][0]
    seq2seq = name.endswith(("MTModel", "ForConditionalGeneration"))
    auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForSequenceClassification
    return auto, {"trust_remote_code": True} if "auto_map" in said else {}


def opened(folder: Path):
    auto, options = about(folder)
    model = auto.from_pretrained(folder, **options)
    assert not model.training
    return model


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def answer(top: Path, folder: Path, generate: dict) -> None:
    "What a folder's model says; of those named `-all` also what its copies say"
    given, model = load_file(folder / "given.st"), opened(folder)
    inputs = {k: v for k, v in given.items() if not k.startswith("asked.")}
    asked = {k.removeprefix("asked."): v for k, v in given.items() if k.startswith("asked.")}
    found = {"logits": logits(model, inputs)}
    if folder.name.endswith(("-all", "-equal")):
        for name, how in generate.items() if model.config.is_encoder_decoder else ():
            torch.manual_seed(0)
            found[name] = model.generate(**asked, suppress_tokens=[0], **how)
        found["deepcopy"] = logits(copy.deepcopy(model), inputs)
        # a model is to survive pickle and torch.save; what is read here, these lines wrote. The library reads no pickle
        found["pickle"] = logits(pickle.loads(pickle.dumps(model)), inputs)
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        found["torch"] = logits(torch.load(file, weights_only=False), inputs)
        model.save_pretrained(again := top / "again" / folder.name)
        assert about(again)[1] == about(folder)[1]
        found["again"] = logits(opened(again), inputs)
    save_file({k: v.clone().contiguous() for k, v in found.items()}, folder / "found.st")


def worker(model, inputs, queue) -> None:
    queue.put(logits(model, inputs).tolist())


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        return {"input_ids": torch.tensor([5, 6 + i, 7]), "labels": i % 2}


def refusals(folder: Path) -> dict:
    "What transformers says to who opens it without leave"
    said = {}
    for name, call in {
        "config": AutoConfig,
        "model": about(folder)[0],
        "plain": transformers.AutoModel,
    }.items():
        try:
            call.from_pretrained(folder)
        except ValueError as error:
            said[name] = str(error)
    return said


def trained(folder: Path, to: Path, inputs: dict) -> None:
    "Fine-tuned by a plain Trainer, saved, and opened again"
    model = opened(folder)
    before = logits(model, inputs)
    sizes = [p.shape for p in model.parameters()]
    options = dict(
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    trainer = Trainer(model, TrainingArguments(to / "work", **options), train_dataset=Rows())
    trainer.train()
    trainer.save_model(to / "tuned")
    after, back = logits(model.eval(), inputs), opened(to / "tuned")
    assert not torch.equal(before, after) and torch.allclose(logits(back, inputs), after, atol=1e-6)
    assert [p.shape for p in back.parameters()] == sizes


def use(top: Path) -> None:
    "One classifier in all the ways that a model is used; types of tensors, tied ones"
    folder, inputs = top / "classifier", load_file(top / "given.st")
    found = {
        "refused": refusals(folder),
        "words": AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"],
    }
    found["pipeline"] = pipeline(
        "text-classification", model=str(folder), trust_remote_code=True, device="cpu"
    )(["the cat", "dogs sleep"])
    model = opened(folder)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=worker, args=(model, inputs, queue := context.Queue()))
    process.start()
    found["spawned"] = queue.get(timeout=120)
    process.join()
    trained(folder, top, inputs)
    torch.save(model, top / "whole.pt")
    for auto in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForTokenClassification"):
        other = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
        ours = dict(model.base_model.named_parameters())
        names = [n for n, _ in other.base_model.named_parameters() if "pooler" not in n]
        assert all(torch.equal(other.base_model.get_parameter(n), ours[n]) for n in names), auto
    found["types"] = {}
    for place in sorted((top / "types").iterdir()):
        tensors = opened(place).named_parameters()
        found["types"][place.name] = {n: str(p.dtype) for n, p in tensors}
    m = opened(top / "tied")
    found["tied"] = [
        n for n, p in m.named_parameters(remove_duplicate=False) if p is m.get_input_embeddings().weight
    ]
    tied = m.lm_head.weight is m.get_input_embeddings().weight
    print(json.dumps(found | {"same": tied}))


if __name__ == "__main__":
    what, top, *folders = sys.argv[1], *map(Path, sys.argv[2:])
    if what == "answer":
        for folder in folders:
            answer(top, folder, json.loads((top / "generate.json").read_text()))
    elif what == "use":
        use(top)
    else:  # a whole model of another process, whose folder this one has not opened
        model = torch.load(top / "whole.pt", weights_only=False)  # the test that called this wrote it
        print(json.dumps(logits(model, load_file(top / "given.st")).tolist()))
