"A shrunken model where Sieve is not: every architecture and unit kind, opened by transformers alone, used, trained, copied and saved again."

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.data.tasks import tiny_tokenizer
from lib.models.architectures import ARCHITECTURES, parts, random_inputs, random_model
from lib.models.masks import removable
from lib.models.shrink import is_shrunken, load, shrink
from lib.models.units import attach, bake, ones

KINDS = "head", "ffn", "mlp", "all", "weight", "block", "equal"
READER = (Path(__file__).parent / "plain_reader.py").read_text()


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


def answers(model, seed=0):
    "Logits, and of an encoder-decoder what it generates"
    with torch.no_grad():
        found = {"logits": model(**random_inputs(model, seed)).logits}
        for name, how in GENERATE.items() if model.config.is_encoder_decoder else ():
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
    command = [sys.executable, "-c", READER, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Folders <architecture>-<kind>, what the masked originals answer, and what another process read from them"
    top, expected, memory = tmp_path_factory.mktemp("saved"), {}, {}
    for seed, arch in enumerate(ARCHITECTURES):
        for kind in KINDS:
            m = random_model(arch, seed, ffn=16, dtype=torch.float64)
            mask = mask_of(m, kind, seed)
            with attach(m, mask):
                expected[arch, kind] = answers(m)
            if kind in ("weight", "block"):
                bake(m, mask)
                mask = removable(m, {})
                assert not mask["head"].all()
            small = shrink(m, mask)
            memory[arch, kind] = answers(small)
            folder = top / "models" / f"{arch}-{kind}"
            small.save_pretrained(folder)
            save_file(
                random_inputs(m, 0) | {f"asked.{k}": v for k, v in asked(m).items()}, folder / "given.st"
            )
    (top / "generate.json").write_text(json.dumps(GENERATE))
    done = elsewhere(top, top, *sorted((top / "models").iterdir()))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return top, expected, memory


def alike(found, wanted):
    assert found.keys() >= wanted.keys()
    for name, value in wanted.items():
        if name == "logits":
            assert (found[name] - value).abs().max() < 1e-12
        else:
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_answers_the_same_everywhere(saved, arch, kind):
    top, expected, memory = saved
    folder, wanted = top / "models" / f"{arch}-{kind}", expected[arch, kind]
    alike(memory[arch, kind], wanted)
    back = load(folder)
    alike(answers(back), wanted)
    found = load_file(folder / "found.st")
    alike(found, wanted)
    for copy in ("deepcopy", "pickle", "torch", "again"):
        assert (found[copy] - wanted["logits"]).abs().max() < 1e-12, copy
    own = is_shrunken(back.config)
    assert own == bool([*folder.glob("modeling_*.py")]) and not (own and kind == "equal")
    if ARCHITECTURES[arch].kinds != ("causal",) and arch != "albert":  # whose layers differ, and share no keys
        assert own == (kind != "equal")
    said = json.loads((folder / "config.json").read_text())
    assert own == ("auto_map" in said) and said["model_type"] == "shrunken-" * own + back.config.model_type
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".st", ".py"}
