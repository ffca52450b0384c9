"What each kind of run hands on: magnitude pruning, drawn masks, a debiased language model, and a model of one's own that the mask was made for."

import json

import pytest
import torch
from toys import made

from lib.commands.export import export_run
from lib.core.folders import find_run
from lib.models.masks import run_mask
from lib.models.shrink import load
from lib.models.units import attach

SMALL = {"settings": {"train": 96, "dev": 40, "ood": 20}, "batch_size": 16, "max_length": 48}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The key of a fine-tuned tiny model, in outputs of its own"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIEVE_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield made("finetune", max_steps=4, **SMALL)["run"].key


def model_of(key):
    return find_run(key).path("model/config.json").parent


def answers(model, head="logits"):
    ids = torch.arange(5, 17)[None] % model.config.vocab_size
    with torch.no_grad():
        return model.double().eval()(input_ids=ids, attention_mask=torch.ones_like(ids))[head]


def same_as_masked(key, base, folder):
    "The export of a run answers as its base under the run's mask; the mask"
    net, mask = load(base).double(), run_mask(key)
    with attach(net, mask):
        wanted = answers(net)
    assert (answers(load(folder)) - wanted).abs().max() < 1e-6
    return mask


def test_magnitude_and_what_is_drawn_from_it(whole, tmp_path):
    good = made("magnitude", model=whole, max_steps=2, step=0.3, threshold=0.1, **SMALL)["run"].key
    bad = made("draw_masks", kind="bad", mask=good)["run"].key
    for key in (good, bad):
        said = export_run(key, tmp_path / key, "masked")
        mask = same_as_masked(key, model_of(whole), tmp_path / key)
        zeros = sum(int((m == 0).sum()) for m in mask.values())
        assert (
            zeros > 0 and said["parameters"] == said["before"]
        )  # single weights are zeros, none is taken out
    card = (tmp_path / bad / "README.md").read_text()
    assert whole in card and "masked" in json.loads((tmp_path / bad / "sieve.json").read_text())["form"]


def test_a_folder_of_ones_own(whole, tmp_path):
    key = made("magnitude", model=str(model_of(whole)), max_steps=2, step=0.3, threshold=0.1, **SMALL)[
        "run"
    ].key
    export_run(key, tmp_path / "out", "masked")
    same_as_masked(key, model_of(whole), tmp_path / "out")


def test_a_language_model(whole, tmp_path):
    key = made("masked_lm", steps=2, focus_steps=2)["run"].key
    export_run(key, tmp_path / "out", "masked")
    assert torch.equal(answers(load(tmp_path / "out")), answers(load(model_of(key))))
    assert "fill-mask" in (tmp_path / "out" / "README.md").read_text()
