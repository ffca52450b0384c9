"Every row of the table through every mechanism, from tiny models of odd sizes; each family's ablation is written out here without the table."

import copy
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lib.models.architectures import ARCHITECTURES, UnitError, parts, random_inputs, random_model
from lib.models.shrink import load, shrink
from lib.models.speed import Shape, Timing, benchmark, flops
from lib.models.units import attach, bake, gates, ones, subnetwork_size, weight_scope

OWN_SIZE = dict(heads=6, key_heads=3, head_size=4, width=12)  # width / heads is 2
ODD = {"llama": OWN_SIZE, "qwen3": OWN_SIZE, "gemma3_text": OWN_SIZE}
ODD |= {"mistral": OWN_SIZE | {"key_heads": 1}, "gemma2": OWN_SIZE | {"key_heads": 1}}
ODD |= {"qwen2": dict(heads=6, key_heads=2, head_size=6), "olmo2": dict(heads=6, key_heads=2, head_size=4)}
EVERY, CAUSAL = [*ARCHITECTURES], [k for k, row in ARCHITECTURES.items() if row.kinds == ("causal",)]


def model_of(kind, seed=0, **more):
    size = ODD.get(kind, dict(heads=3, head_size=6)) | {"layers": 3, "ffn": 10} | more
    return random_model(kind, seed, dtype=torch.float64, **size)


def logits(model, seed=0):
    with torch.no_grad():
        return model(**random_inputs(model, seed)).logits


def masks(model, seed):
    "Units kept at random; the first layer of each sort loses its heads, another half a group, one its neurons, one its MLP"
    g, p = torch.Generator().manual_seed(seed), parts(model)
    mask = {k: (torch.rand(p.shape(k), generator=g) < 0.6).float() for k in ("head", "ffn", "mlp")}
    for kind in dict.fromkeys(p.kinds):
        mask["head"][p.kinds.index(kind)] = 0
    mask["head"][-1, : p.heads // 2], mask["head"][-1, -1] = 0, 1
    mask["ffn"][len(p.ffn) // 2], mask["mlp"][0], mask["mlp"][-1] = 0, 0, 1
    return mask


def smaller(model, mask):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OLMo-2's heads go by the layer
        return shrink(model, mask)


# Of each family: output projections in the order of a head mask's rows, and whether a matrix is kept as (in, out).
LAYERS = {
    **dict.fromkeys(
        ("bert", "roberta", "electra", "xlm-roberta", "camembert"), "encoder.layer.{}.attention.output.dense"
    ),
    **dict.fromkeys(("deberta-v2", "deberta-v3"), "encoder.layer.{}.attention.output.dense"),
    "distilbert": "transformer.layer.{}.attention.out_lin",
    "albert": "encoder.albert_layer_groups.{}.albert_layers.0.attention.dense",
    "mpnet": "encoder.layer.{}.attention.attn.o",
    "modernbert": "layers.{}.attn.Wo",
    "gpt2": "h.{}.attn.c_proj",
    "gpt_neox": "layers.{}.attention.dense",
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text"), "layers.{}.self_attn.o_proj"
    ),
}
BART = (
    "encoder.layers.{}.self_attn.out_proj",
    "decoder.layers.{}.encoder_attn.out_proj",
    "decoder.layers.{}.self_attn.out_proj",
)
T5 = (
    "encoder.block.{}.layer.0.SelfAttention.o",
    "decoder.block.{}.layer.1.EncDecAttention.o",
    "decoder.block.{}.layer.0.SelfAttention.o",
)


def outputs(model, kind):
    patterns = T5 if kind.startswith("t5") else BART if model.config.is_encoder_decoder else (LAYERS[kind],)
    layers = 1 if kind == "albert" else 3
    return [model.base_model.get_submodule(p.format(i)) for p in patterns for i in range(layers)]


@pytest.mark.parametrize("kind", EVERY)
def test_an_ablation_by_hand_is_the_head_mask(kind):
    m = model_of(kind)
    mask = masks(m, 1)["head"]
    with attach(m, {"head": mask}):
        wanted = logits(m)
    assert not torch.equal(wanted, logits(m))
    baked, silent = bake(copy.deepcopy(m), {"head": mask}), copy.deepcopy(m)
    for layer, row in zip(outputs(silent, kind), mask, strict=True):
        columns = layer.weight.data if kind == "gpt2" else layer.weight.data.T  # (inputs, outputs)
        for h in range(len(row)):
            size = columns.shape[0] // len(row)
            columns[h * size : (h + 1) * size] *= row[h]
    assert torch.equal(logits(silent), wanted) and torch.equal(logits(baked), wanted)
    with gates(m, 3, {"head": mask}, ("head",)):
        assert (logits(m) - wanted).abs().max() < (1e-12 if "gemma" not in kind else 1e-6)


@pytest.mark.parametrize("kind", EVERY)
def test_ones_change_nothing_and_zeros_do(kind):
    m = model_of(kind)
    plain = logits(m)
    for unit in ("head", "ffn", "mlp", "weight", "block"):
        full = ones(m, unit, (2, 2) if unit == "block" else None)
        with attach(m, full):
            assert torch.equal(logits(m), plain), unit
        with attach(m, {k: torch.zeros_like(v) for k, v in full.items()}):
            assert (logits(m) - plain).abs().max() > 1e-3, unit
    names = weight_scope(m)
    assert len(names) == len(set(names)) and all(m.get_parameter(n).numel() for n in names)


@pytest.mark.parametrize("kind", EVERY)
def test_a_gate_is_a_removal_in_logits_sizes_and_operations(kind, tmp_path):
    m = model_of(kind, 1)
    mask = masks(m, 2)
    small = smaller(m, mask)
    with attach(m, mask):
        wanted = logits(m)
    assert (logits(small) - wanted).abs().max() < 1e-12
    small.save_pretrained(tmp_path)
    assert (logits(load(tmp_path)) - wanted).abs().max() < 1e-12
    size, extra = subnetwork_size(m, mask), 0
    if not kind.startswith("t5"):  # which get tables of their own
        p = parts(m)
        for layer in (small.get_submodule(row["out"].path) for row in p.attention):
            extra += m.config.hidden_size * (layer.weight.numel() == 0 and layer.bias is not None)
        if m.config.is_encoder_decoder:  # whose published count has no silent head
            extra += silent_head(small, p.attention[p.spare.index(True)])
        assert sum(q.numel() for q in small.parameters()) == size["parameters"] + extra
    assert size["masked"] <= size["parameters"] < size["total"]
    one = small.requires_grad_(False)
    one.set_attn_implementation("eager")
    given = {k: v for k, v in random_inputs(one).items() if k != "attention_mask"}
    with FlopCounterMode(display=False) as counted:
        one(**given)
    target = given["decoder_input_ids"].shape[1] if "decoder_input_ids" in given else 0
    assert flops(one, *given["input_ids"].shape, target) == counted.get_total_flops()


def silent_head(small, row):
    "Numbers of the head that stays in a decoder's first layer"
    sizes = [small.get_parameter(f"{row[part].path}.weight").numel() for part in ("q", "k", "v", "out")]
    biases = [getattr(small.get_submodule(row[part].path), "bias", None) for part in ("q", "k", "v", "out")]
    return sum(sizes) + sum(b.numel() for b in biases if b is not None)


GENERATE = {
    "greedy": {},
    "beam": dict(num_beams=3),
    "sampled": dict(do_sample=True),
    "uncached": dict(use_cache=False),
}


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_decoder_writes_the_same(kind):
    config = copy.deepcopy(model_of(kind).config)
    config.tie_word_embeddings, config.architectures = True, None
    torch.manual_seed(0)
    m = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    for p in m.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64) * 0.4
    mask = masks(m, 3)
    small = smaller(m, mask)
    head, table = small.get_output_embeddings().weight, small.get_input_embeddings().weight
    assert head is table and m.config.tie_word_embeddings
    given = {"input_ids": torch.randint(2, 50, (2, 5)), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    for how in GENERATE.values():
        ask = dict(max_new_tokens=7, min_new_tokens=7, pad_token_id=0, **how)
        with attach(m, mask):
            torch.manual_seed(1)
            wanted = m.generate(**given, **ask)
        torch.manual_seed(1)
        assert torch.equal(small.generate(**given, **ask), wanted), how


@pytest.mark.parametrize("kind", EVERY)
def test_half_precision_keeps_its_types(kind):
    m = model_of(kind).to(torch.bfloat16)
    small = smaller(m, masks(m, 4))
    there = {n: p.dtype for n, p in m.named_parameters()}
    assert all(p.dtype == there.get(n, torch.bfloat16) for n, p in small.named_parameters())
    assert logits(small).isfinite().all()


def test_what_cannot_be_is_refused_by_name():
    albert = random_model("albert", layers=4)
    with pytest.raises(UnitError, match=r"its 4 layers share their parameters.*calls=True"):
        attach(albert, {"head": torch.ones(4, 4)}).__enter__()
    with gates(albert, 3, calls=True) as live:
        assert live["head"].shape == (3, 4, 4) and logits(albert).isfinite().all()
    for kind, says in (
        ("olmo2", "all heads of a layer go together"),
        ("llama", "2 heads with one key head go together"),
    ):
        m = random_model(kind, heads=4, key_heads=2)
        with pytest.warns(UserWarning, match=says):
            small = shrink(m, mask := {"head": torch.tensor([[1, 0, 1, 1]] * 2)})
        size = subnetwork_size(m, mask)
        assert (
            size["masked"] < size["parameters"] == size["total"] == sum(p.numel() for p in small.parameters())
        )


def test_a_head_can_go_where_all_share_one_key():
    m = model_of("mistral", layers=1)
    mask = {"head": torch.tensor([[1, 0, 1, 1, 0, 1]])}
    small = shrink(m, mask)
    with attach(m, mask):
        assert (logits(small) - logits(m)).abs().max() < 1e-12
    attention = small.model.layers[0].self_attn
    assert attention.q_proj.out_features == 16 and attention.k_proj.out_features == 4
    assert subnetwork_size(m, mask)["parameters"] == sum(p.numel() for p in small.parameters())


@pytest.mark.slow
def test_half_of_a_small_decoder(capsys):
    "SmolLM2-135M's shape with random weights: 30 layers of 9 heads, 3 key heads; half of the groups and of the FFNs"
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, tie_word_embeddings=True, max_position_embeddings=2048, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    m, g = LlamaForCausalLM(config).eval(), torch.Generator().manual_seed(0)
    groups = torch.rand(30, 3, generator=g).argsort(1).argsort(1)
    mask = {"head": (groups < torch.arange(30)[:, None] % 2 + 1).float().repeat_interleave(3, 1)}  # 1.5 of 3
    mask["ffn"] = (torch.rand(30, 1536, generator=g).argsort(1).argsort(1) < 768).float()
    small = shrink(m, mask)
    given = {"input_ids": torch.randint(1, 49152, (2, 64), generator=g)}
    with torch.no_grad(), attach(m, mask):
        wanted = m(**given).logits
    with torch.no_grad():
        off = (small(**given).logits - wanted).abs().max()
    frame = benchmark({"whole": m, "shrunken": small}, Shape(2, 64), Timing(3, 1))
    size = subnetwork_size(m, mask)
    with capsys.disabled():
        print(f"\nlogits differ by {off:.1e} on a scale of {wanted.abs().max():.1f}; {size}")
        print(frame[["form", "parameters", "flops", "weight_bytes", "peak_bytes", "seconds"]].to_string())
    assert off < 1e-4 and size["parameters"] == size["masked"] == sum(p.numel() for p in small.parameters())
    assert int(mask["head"].sum()) == 30 * 9 // 2 and frame.flops[1] < frame.flops[0]
