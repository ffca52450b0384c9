"A shrunken model where Sieve is not: every architecture and unit kind, opened by transformers alone, used, trained, copied and saved again."

import copy
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from lib.core.base import DataError
from lib.data.tasks import tiny_tokenizer
from lib.models.architectures import ARCHITECTURES, parts, random_inputs, random_model
from lib.models.masks import removable
from lib.models.shrink import is_shrunken, load, shrink
from lib.models.units import attach, bake, ones
from lib.training.loading import check_model, load_model, save_model
from lib.training.masked_words import load_masked_lm

KINDS = "head", "ffn", "mlp", "all", "weight", "block", "equal"
QUICK = "all", "weight", "equal"  # the others are slow: each saves and opens a model of every row
COPIED = "all", "equal"  # of which copies are tested, and what they generate
READER = Path(__file__).parent / "plain_reader.py"


def mask_of(model, kind, seed):
    "A mask of a kind; of `all`, one layer of each stack loses all heads, one all neurons, one its MLP"
    g, p = torch.Generator().manual_seed(seed), parts(model)
    if kind in ("weight", "block"):
        full = ones(model, kind, (4, 4) if kind == "block" else None)
        mask = {k: torch.rand(v.shape, generator=g) < 0.6 for k, v in full.items()}
        step = 4 if kind == "block" else 1
        for s, lines in ((p.attention[0]["out"], p.head_size * p.group), (p.ffn[-1]["down"], 4)):
            here = mask[f"{kind}/{s.path}.weight"]
            here.movedim(s.dim, 0)[: lines // step] = (
                False  # a head (of a group, all) and neurons that say nothing
            )
        return mask
    if kind == "equal":
        gone = torch.stack([torch.randperm(p.neurons, generator=g) for _ in p.ffn]) < p.neurons // 2
        return {"ffn": 1 - gone.float()}
    kinds = ("head", "ffn", "mlp") if kind == "all" else (kind,)
    mask = {k: (torch.rand(p.shape(k), generator=g) < 0.6).float() for k in kinds}
    for k, at in (("head", slice(0, None, 2)), ("ffn", slice(1, 2)), ("mlp", slice(-1, None))):
        if k in mask:
            mask[k][at] = 0
    return mask


def asked(model):
    return {k: v for k, v in random_inputs(model, 1).items() if k != "decoder_input_ids"}


GENERATE = {
    "greedy": dict(max_new_tokens=8, min_new_tokens=8),
    "beam": dict(num_beams=3, max_new_tokens=8, min_new_tokens=8),
    "sampled": dict(do_sample=True, max_new_tokens=8, min_new_tokens=8),
    "uncached": dict(max_new_tokens=8, min_new_tokens=8, use_cache=False),
}


def answers(model, kind):
    "Logits, and of an encoder-decoder what it generates"
    with torch.no_grad():
        found = {"logits": model(**random_inputs(model, 0)).logits}
        for name, how in GENERATE.items() if model.config.is_encoder_decoder and kind in COPIED else ():
            torch.manual_seed(0)
            found[name] = model.generate(**asked(model), suppress_tokens=[0], **how)
    return found


def environment(folder: Path) -> dict:
    "Of a process that has no Sieve and no hub"
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['lib'] = None\n")
    own = {"PYTHONPATH": str(folder / "site"), "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    return {k: v for k, v in os.environ.items() if k != "HF_MODULES_CACHE"} | own


def elsewhere(folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, READER, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory, request):
    "Folders <architecture>-<kind>, what the masked originals answer, and what another process read from them"
    top, expected, memory = tmp_path_factory.mktemp("saved"), {}, {}
    kinds = QUICK if "not slow" in request.config.option.markexpr else KINDS
    for seed, arch in enumerate(ARCHITECTURES):
        for kind in kinds:
            m = random_model(arch, seed, ffn=16, dtype=torch.float64)
            mask = mask_of(m, kind, seed)
            with attach(m, mask):
                expected[arch, kind] = answers(m, kind)
            if kind in ("weight", "block"):
                bake(m, mask)
                mask = removable(m, {})
                assert not mask["head"].all()
            small = shrink(m, mask)
            memory[arch, kind] = answers(small, kind)
            folder = top / "models" / f"{arch}-{kind}"
            small.save_pretrained(folder)
            save_file(
                random_inputs(m, 0) | {f"asked.{k}": v for k, v in asked(m).items()}, folder / "given.st"
            )
    (top / "generate.json").write_text(json.dumps(GENERATE))
    done = elsewhere(top, "answer", top, *sorted((top / "models").iterdir()))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return top, expected, memory


def alike(found, wanted):
    assert found.keys() >= wanted.keys()
    for name, value in wanted.items():
        if name == "logits":
            assert (found[name] - value).abs().max() < 1e-12
        else:
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_answers_the_same_everywhere(saved, arch, kind):
    top, expected, memory = saved
    folder, wanted = top / "models" / f"{arch}-{kind}", expected[arch, kind]
    alike(memory[arch, kind], wanted)
    back = load(folder)
    alike(answers(back, kind), wanted)
    found = load_file(folder / "found.st")
    alike(found, wanted)
    for how in ("deepcopy", "pickle", "torch", "again") if kind in COPIED else ():
        assert (found[how] - wanted["logits"]).abs().max() < 1e-12, how
    own = is_shrunken(back.config)
    assert own == bool([*folder.glob("modeling_*.py")]) and not (own and kind == "equal")
    if (
        ARCHITECTURES[arch].kinds != ("causal",) and arch != "albert"
    ):  # whose layers differ, and share no keys
        assert own == (kind != "equal")
    said = json.loads((folder / "config.json").read_text())
    assert own == ("auto_map" in said) and said["model_type"] == "shrunken-" * own + back.config.model_type
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".st", ".py"}


def small_bert(seed=1):
    m = random_model("bert", seed)
    mask = mask_of(m, "all", seed)
    return shrink(m, mask)


def mixed(model, own, to):
    "The model in bfloat16 or float16, some of its parameters in another type"
    model = model.to(own)
    for name, p in model.named_parameters():
        p.data = (
            p.data.to(to)
            if name.endswith(("LayerNorm.weight", "layer_norm.weight", "classifier.bias"))
            else p.data
        )
    return model


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    "What another process without Sieve said of one classifier, of types and tied tensors"
    top = tmp_path_factory.mktemp("used")
    tokenizer = tiny_tokenizer(["the cat sat on the mat", "dogs never sleep"] * 5, 50, 32)
    small = small_bert()
    save_model(small, tokenizer, top / "classifier")
    save_file(given := random_inputs(small), top / "given.st")
    types = {}
    for name, own in (
        ("bert", torch.bfloat16),
        ("bart", torch.float16),
        ("t5", torch.bfloat16),
        ("t5", torch.float16),
    ):
        m = random_model(name)
        m = mixed(m, own, torch.float32)
        if own == torch.float16 and name == "t5":
            for block in (*m.encoder.block, *m.decoder.block):
                block.layer[-1].DenseReluDense.wo.float()
        small_one = shrink(m, mask_of(m, "head", 3))
        small_one.save_pretrained(top / "types" / f"{name}-{own}")
        types[f"{name}-{own}"] = {n: str(p.dtype) for n, p in small_one.named_parameters()}
        assert len(set(types[f"{name}-{own}"].values())) == 2
        assert {
            n: str(p.dtype) for n, p in load(top / "types" / f"{name}-{own}").named_parameters()
        } == types[f"{name}-{own}"]
    m = random_model("marian")
    shrink(m, mask_of(m, "all", 1)).save_pretrained(top / "tied")
    done = elsewhere(top, "use", top)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return top, small, tokenizer, given, types, json.loads(done.stdout.splitlines()[-1])


def close(found, model, given):
    with torch.no_grad():
        return torch.allclose(torch.tensor(found), model(**given).logits, atol=1e-5)


def test_it_is_used_like_any_other(used):
    "Pipeline, tokenizer, a spawned worker, a plain Trainer, other heads"
    top, small, tokenizer, given, _, found = used
    ours = pipeline("text-classification", model=small, tokenizer=tokenizer, device="cpu")(
        ["the cat", "dogs sleep"]
    )
    assert [f["label"] for f in found["pipeline"]] == [o["label"] for o in ours]
    assert [f["score"] for f in found["pipeline"]] == pytest.approx([o["score"] for o in ours], abs=1e-5)
    assert found["words"] == tokenizer("the cat")["input_ids"] and close(found["spawned"], small, given)


def test_without_leave_transformers_says_what_to_do(used):
    said = used[-1]["refused"]
    assert said.keys() == {"config", "model", "plain"}
    assert all("trust_remote_code=True" in text and "custom code" in text for text in said.values())


def test_every_tensor_keeps_its_type_and_tied_ones_their_tie(used):
    assert used[-1]["types"] == used[-2]
    assert used[-1]["same"] and "lm_head.weight" in used[-1]["tied"]


def test_a_whole_model_is_read_by_a_process_that_has_not_opened_its_folder(used):
    top, small, _, given, *_ = used
    done = elsewhere(top, "torch", top)
    assert done.returncode == 0, done.stderr[-2000:]
    assert close(json.loads(done.stdout), small, given)


def worker(model, given, queue):
    queue.put(model(**given).logits.tolist())


def test_it_is_copied_here_too(tmp_path):
    small = small_bert()
    given = random_inputs(small)
    torch.save(small, tmp_path / "whole.pt")
    read = torch.load(tmp_path / "whole.pt", weights_only=False)  # written by the line above
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), read):
        assert type(other) is type(small) and close(other(**given).logits.tolist(), small, given)
    t5 = random_model("t5").double()
    t5 = shrink(t5, mask_of(t5, "all", 0))
    again = pickle.loads(pickle.dumps(t5))
    with torch.no_grad():
        assert (again(**random_inputs(t5)).logits - t5(**random_inputs(t5)).logits).abs().max() < 1e-12
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=worker, args=(small, given, queue := context.Queue()))
    process.start()
    assert close(queue.get(timeout=120), small, given)
    process.join()


def test_sieve_reads_it_and_runs_nothing_of_the_folder(tmp_path):
    tokenizer = tiny_tokenizer(["the cat sat on the mat", "dogs never sleep"] * 5, 50, 32)
    small = small_bert()
    small.config.id2label = {0: "a", 1: "b", 2: "c"}
    small.config.label2id = {"a": 0, "b": 1, "c": 2}
    save_model(small, tokenizer, tmp_path)
    (tmp_path / "modeling_shrunken_bert.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit('run')\n"
    )
    task = SimpleNamespace(name="three", labels=["c", "a", "b"])
    net, words = load_model(str(tmp_path), task, 0)
    with torch.no_grad():
        given = random_inputs(small)
        assert torch.allclose(net.cpu()(**given).logits, small(**given).logits[:, [2, 0, 1]], atol=1e-6)
    assert check_model(str(tmp_path)).model_type == "bert" and len(words) == len(tokenizer)
    assert load(tmp_path, dtype=torch.float32).config.sieve_edits == small.config.sieve_edits
    net, _ = load_masked_lm(str(tmp_path), task, 0, head="encoder")
    assert type(net).__name__ == "BertModel" and not (tmp_path / "ran").exists()
    # another repository's own code stays refused, in one line
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sieve_edits"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="code of its own, which is never run"):
        load_model(str(tmp_path), task, 0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "edits, says",
    [
        ([["widen", "encoder", 1]], "unknown edit 'widen'"),
        ([["resize", "encoder.layer.7", [1, 1]]], "no module 'encoder.layer.7'"),
        ([["resize", "encoder.layer.0.output.dense", [999, 1]]], "asks for"),
        ([["set", "encoder.layer.0", {"forward": 1}]], "'forward'"),
        ([["drop", "encoder.layer.0.output.dense", "weight"]], "valid: bias"),
        ([["dtype", "encoder.layer.0.output.dense", ["load", {}]]], "the type 'load'"),
        ({"a": 1}, "cannot be loaded"),
        ([7], "cannot be loaded"),
    ],
)
def test_damaged_edits_are_one_line(tmp_path, edits, says):
    tokenizer = tiny_tokenizer(["the cat sat on the mat", "dogs never sleep"] * 5, 50, 32)
    save_model(small_bert(), tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"sieve_edits": edits}
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {0: "a", 1: "b", 2: "c"}}))
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        load_model(str(tmp_path), SimpleNamespace(name="three", labels=["a", "b", "c"]), 0)
    assert "\n" not in str(caught.value)
