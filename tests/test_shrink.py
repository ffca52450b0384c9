"""Shrunken models beyond one notebook: read by another process, used by a pipeline, at full size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, MarianConfig, pipeline

from lib.data.tasks import tiny_tokenizer
from lib.models.architectures import ARCHITECTURES, model_class, parts, random_inputs, random_model
from lib.models.shrink import load, shrink
from lib.models.units import attach, ones

ROOT = Path(__file__).parents[1]


def random_mask(model, seed, share=0.5):
    "Units kept at random; the first layer of every stack (so the decoder's first self-attention) has no head, the second no neuron, the last no MLP."
    g, p = torch.Generator().manual_seed(seed), parts(model)
    mask = {
        k: (torch.rand(ones(model, k)[k].shape, generator=g) < share).float() for k in ("head", "ffn", "mlp")
    }
    for kind in dict.fromkeys(p.kinds):
        mask["head"][p.kinds.index(kind)] = 0
    mask["ffn"][len(p.ffn) > 1], mask["mlp"][len(p.ffn) > 1], mask["mlp"][-1] = 0, 1, 0
    return mask


def logits(model, given):
    with torch.no_grad():
        return model(**given).logits


def words(model, given, **kw):
    "Beam search of 5, with the cache unless told otherwise; the ids, without padding (of which m2m_100 counts no positions)"
    given = {k: v for k, v in given.items() if k != "decoder_input_ids"}
    return model.generate(
        **given,
        num_beams=5,
        max_new_tokens=16,
        min_new_tokens=16,
        no_repeat_ngram_size=1,
        suppress_tokens=[0],
        **kw,
    )


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_it_equals_the_masked_model(kind, attn):
    for seed in range(3):
        m = random_model(
            kind,
            seed,
            layers=2 + seed,
            heads=2 + seed,
            head_size=4 + 2 * seed,
            ffn=10 + seed,
            attn=attn,
            dtype=torch.float64,
        )
        mask, given = random_mask(m, seed), random_inputs(m, seed, batch=2 + seed)
        small = shrink(m, mask)
        with attach(m, mask):
            masked = logits(m, given)
        assert (logits(small, given) - masked).abs().max() < 1e-12
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in m.parameters())
        small(**given).logits.sum().backward()
        assert not [
            n for n, p in small.named_parameters() if p.requires_grad and p.numel() and p.grad is None
        ]  # it can be trained


READER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging
from lib.models.shrink import load
logging.set_verbosity_error()
for folder in map(Path, sys.argv[1:]):
    model, given = load(folder), load_file(folder / "given.st")
    with torch.no_grad(): found = {"logits": model(**given).logits}
    given.pop("decoder_input_ids", None)
    ask = dict(num_beams=5, max_new_tokens=16, min_new_tokens=16, no_repeat_ngram_size=1, suppress_tokens=[0])
    if model.config.is_encoder_decoder: found |= {"cached": model.generate(**given, **ask), "uncached": model.generate(**given, use_cache=False, **ask)}
    save_file({k: v.contiguous() for k, v in found.items()}, folder / "found.st")
    print(type(model).__name__)
"""


def test_another_process_reads_what_was_saved(tmp_path):
    expected, names = {}, []
    for seed, kind in enumerate(ARCHITECTURES):
        m = random_model(kind, seed, layers=3, heads=3, dtype=torch.float64)
        mask, given = random_mask(m, seed), random_inputs(m, seed)
        shrink(m, mask).save_pretrained(tmp_path / kind)
        save_file(given, tmp_path / kind / "given.st")
        with attach(m, mask):
            expected[kind] = {"logits": logits(m, given)}
            if m.config.is_encoder_decoder:
                expected[kind] |= {"cached": words(m, given), "uncached": words(m, given, use_cache=False)}
        names.append(type(m).__name__)
    done = subprocess.run(
        [sys.executable, "-c", READER, *(tmp_path / kind for kind in ARCHITECTURES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.split() == names, done.stderr[-2000:]
    for kind, wanted in expected.items():
        found = load_file(tmp_path / kind / "found.st")
        assert found.keys() == wanted.keys() and (found["logits"] - wanted["logits"]).abs().max() < 1e-12, (
            kind
        )
        if "cached" in wanted:
            assert torch.equal(wanted["cached"], wanted["uncached"]) and all(
                torch.equal(found[k], wanted[k]) for k in ("cached", "uncached")
            ), kind
        assert len(list((tmp_path / kind).glob("*.safetensors"))) == 1 and not list(
            (tmp_path / kind).glob("*.bin")
        )


def test_a_pipeline_takes_it(tmp_path):
    tokenizer = tiny_tokenizer(["the cat sat on the mat", "dogs never sleep"] * 5, 50, 32)
    m = random_model("bert", 3)
    mask = random_mask(m, 3)
    shrink(m, mask).save_pretrained(tmp_path)
    text = ["the cat", "dogs sleep on the mat"]
    with attach(m, mask):
        wanted = pipeline("text-classification", model=m, tokenizer=tokenizer, device="cpu")(text)
    found = pipeline("text-classification", model=load(tmp_path), tokenizer=tokenizer, device="cpu")(text)
    assert [f["label"] for f in found] == [w["label"] for w in wanted] and [
        f["score"] for f in found
    ] == pytest.approx([w["score"] for w in wanted], abs=1e-6)


def full_size(config, seed=0):
    torch.manual_seed(seed)
    return model_class(config)._from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.slow
def test_bert_base_in_float32():
    m = full_size(BertConfig(num_labels=2))
    mask, g = random_mask(m, 0), torch.Generator().manual_seed(0)
    given = {
        "input_ids": torch.randint(1000, 30000, (8, 128), generator=g),
        "attention_mask": torch.ones(8, 128, dtype=torch.long),
    }
    given["attention_mask"][-1, 70:] = 0
    with attach(m, mask):
        masked = logits(m, given)
    off = (logits(shrink(m, mask), given) - masked).abs().max()
    print(f"BERT-base, float32: logits differ by {off:.1e}")
    assert off < 1e-5


@pytest.mark.slow
def test_the_translation_model_of_the_head_pruning_study_in_float32(tmp_path):
    m = full_size(
        MarianConfig(
            vocab_size=8848,
            decoder_vocab_size=6632,
            d_model=512,
            encoder_layers=6,
            decoder_layers=6,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=1024,
            decoder_ffn_dim=1024,
            activation_function="relu",
            scale_embedding=True,
            share_encoder_decoder_embeddings=False,
            pad_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )
    g = torch.Generator().manual_seed(0)
    for p in m.parameters():
        if p.dim() == 1:
            p.data += 0.1 * torch.randn(p.shape, generator=g)
    given = {
        "input_ids": torch.randint(3, 8000, (8, 32), generator=g),
        "attention_mask": torch.ones(8, 32, dtype=torch.long),
        "decoder_input_ids": torch.randint(3, 6000, (8, 30), generator=g),
    }
    given["attention_mask"][-1, 20:] = 0
    mask = random_mask(m, 1) | {"ffn": ones(m, "ffn")["ffn"]}
    shrink(m, mask).save_pretrained(tmp_path)
    small = load(tmp_path)
    with attach(m, mask):
        masked, said = logits(m, given), words(m, given)
    off = (logits(small, given) - masked).abs().max()
    print(
        f"encoder-decoder, {int(mask['head'].sum())} of 72 heads, float32: logits differ by {off:.1e} on a scale of {masked.abs().max():.1f}"
    )
    assert (
        off < 1e-5 and small.model.decoder.layers[0].self_attn.num_heads == 1 and not mask["head"][12].any()
    )
    assert torch.equal(words(small, given), said) and torch.equal(words(small, given, use_cache=False), said)
