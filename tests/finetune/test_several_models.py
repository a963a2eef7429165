"""An array of several models: each trial gets what it gets in a study of its model alone."""

from types import SimpleNamespace

import chats
import pytest
import tagged
import tiny
import torch
import two_models
from trials import MIXED, SPACE

from hpo.config import study_spec
from hpo.core.errors import ModelError
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune.several_models import SeveralModels, refuse_incomparable
from hpo.tasks.registry import TASKS

TRIALS = [{"model": two_models.MODELS[number % 2], **params} for number, params in enumerate(MIXED[:4])]


def open_array(folder, **overrides):
    raw = two_models.study(folder, **{"space": SPACE, **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


def curves(array, trials, folder):
    """Run trials through the array, refilling slots; return trial -> its evaluations, and then its best weights."""
    waiting, occupied, found = list(range(len(trials))), {}, {}
    while waiting or occupied:
        for slot in range(array.slots):
            if slot not in occupied and waiting:
                number = occupied[slot] = waiting.pop(0)
                array.load(slot, TrialSpec(number, trials[number], 100 + number))
                found[number] = []
        for slot, outcome in array.advance().items():
            number = occupied[slot]
            assert isinstance(outcome, Evaluation), outcome
            found[number].append((outcome.at, outcome.value, dict(outcome.metrics)))
            if outcome.last:
                assert array.save_weights(slot, folder / str(number))
                file = next((folder / str(number)).glob("*.safetensors"))
                found[number].append({"weights": torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)})
                array.unload(slot)
                del occupied[slot]
    return found


@pytest.mark.parametrize(
    ("more", "changes"),
    [
        ({}, {"slots": 1}),
        ({}, {"slots": 2, "threads": 2}),
        ({}, {"slots": 2, "fold": True}),
        ({"frozen_layers": 1}, {"slots": 2, "threads": 2, "space": {**SPACE, "frozen_layers": 1}}),
        ({"lora_rank": 2}, {"slots": 2, "space": {**SPACE, "lora_rank": [1, 2]}}),
    ],
    ids=["one by one", "side by side", "folded", "frozen", "adapters"],
)
def test_trials_of_two_models_get_what_they_get_in_studies_of_one_model(tmp_path, more, changes):
    trials = [{**each, **more} for each in TRIALS]
    array = open_array(tmp_path, **changes)
    found = curves(array, trials, tmp_path / "both")
    for model in two_models.MODELS:
        alone = open_array(tmp_path, model=model, **changes)
        numbers = [number for number, params in enumerate(trials) if params["model"] == model]
        own = [{name: value for name, value in trials[number].items() if name != "model"} for number in numbers]
        for number, params in zip(numbers, own, strict=True):
            alone.load(0, TrialSpec(number, params, 100 + number))
            expected = []
            while not expected or not expected[-1].last:
                expected.append(alone.advance()[0])
            assert [(e.at, e.value, dict(e.metrics)) for e in expected] == found[number][:-1]
            assert alone.save_weights(0, tmp_path / model / str(number))
            alone.unload(0)
            file = next((tmp_path / model / str(number)).glob("*.safetensors"))
            assert file.read_bytes() == bytes(found[number][-1]["weights"].numpy())


def test_a_trial_goes_on_from_its_checkpoint_in_another_slot_beside_the_other_model(tmp_path):
    array = open_array(tmp_path, slots=2)
    whole = curves(array, TRIALS[:1], tmp_path / "whole")[0]
    array.load(0, TrialSpec(0, TRIALS[0], 100))
    assert array.advance()[0].value == whole[0][1]
    kept = array.save(0)
    array.unload(0)
    assert array.seen(0) is None
    array.load(0, TrialSpec(1, TRIALS[1], 101))
    array.load(1, TrialSpec(0, TRIALS[0], 100, kept))
    assert array.seen(1) == (kept.state["seen"], 120)
    assert array.advance()[1].value == whole[1][1]
    with pytest.raises(KeyError, match="distilbert"):  # a checkpoint of the other model; the runner begins anew
        open_array(tmp_path, slots=2).load(0, TrialSpec(0, {**TRIALS[0], "model": "characters"}, 100, kept))


def test_a_request_to_stop_reaches_all_models(tmp_path):
    array = open_array(tmp_path, slots=2)
    array.load(0, TrialSpec(0, TRIALS[0], 100))
    array.load(1, TrialSpec(1, TRIALS[1], 101))
    array.stop_request = StopRequest()
    array.stop_request.set()
    assert not any(array.advance().values())
    assert [array.seen(slot)[0] for slot in (0, 1)] == [0, 0]


def test_facts_that_differ_are_told_by_model_and_handed_back(tmp_path):
    array = open_array(tmp_path, slots=2, threads=2)
    facts = array.facts
    alone = {model: open_array(tmp_path, model=model, slots=2, threads=2).facts for model in two_models.MODELS}
    assert facts["weights"] == {model: each["weights"] for model, each in alone.items()}
    assert {name for name, value in facts.items() if isinstance(value, dict)} == {"weights"}
    assert facts.keys() == alone["words"].keys()
    array.resume_with({**facts, "threads": {"words": 2, "characters": 1}})
    assert array.facts["threads"] == {"words": 2, "characters": 1}
    assert array.notes[-1].startswith("words: trials have 2 threads each, as the study was begun")


def test_the_array_has_as_few_slots_as_the_model_with_the_fewest(tmp_path):
    array = open_array(tmp_path, slots=3, fold=True)
    array.models["words"].slots = 2  # as after a lack of memory
    assert array.slots == 2
    array.slots = 1
    assert [each.slots for each in array.models.values()] == [1, 1]


@pytest.mark.parametrize(("slots", "fold", "said"), [(2, False, "side by side"), (2, True, "one after the other")])
def test_the_note_says_how_trials_of_different_models_train(tmp_path, slots, fold, said):
    notes = open_array(tmp_path, slots=slots, fold=fold).notes
    assert any("2 models are in memory" in note and said in note for note in notes)
    assert "trial 0, the published default, is of model words" in notes


# ---------------------------------------------------------------- limits and refusals


def test_each_model_has_the_limits_of_its_own_trials(tmp_path):
    space = {
        "batch_size": 16,
        "epochs": {"values": [1, 5], "when": {"model": "characters"}},
        "frozen_layers": {"values": [0, 1], "when": {"model": "words"}},
    }
    array = open_array(tmp_path, space=space)
    assert [each.horizon // array.segment for each in array.models.values()] == [6, 10]  # 3 epochs, the default; 5
    assert array.horizon == array.models["characters"].horizon
    assert [each.setup.frozen_layers for each in array.models.values()] == [[0, 1], [0]]


def test_all_models_that_cannot_be_loaded_are_told_at_once(tmp_path):
    for name in ("empty", "broken"):
        tiny.save_model(tmp_path / name)
    (tmp_path / "empty" / "model.safetensors").unlink()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError) as caught:
        open_array(tmp_path, model=["empty", "words", "broken"])
    first, second = str(caught.value).splitlines()
    assert first.startswith("model 'empty': its weights cannot be loaded")
    assert second.startswith("model 'broken': its tokenizer cannot be loaded")


def test_models_whose_windows_differ_in_number_are_refused(tmp_path):
    two_models.save(tmp_path)
    raw = tagged.study(tmp_path, model=two_models.MODELS, max_length=12, data={"stride": 3}, space=SPACE)
    with pytest.raises(ModelError, match=r"\d+ of words, \d+ of characters. .* raise max_length"):
        trial_arrays.open_array(study_spec.build(raw, "test", tmp_path))


def setup(ids, metric, prune_on=None, emits_tokens=True):
    """Return a setup of a task whose models give out tokens, as far as it is compared."""
    tokens = SimpleNamespace(ids=torch.tensor(ids), lengths=torch.tensor([len(ids)]).numpy())
    return SimpleNamespace(
        train_rows=1,
        metric=metric,
        task=SimpleNamespace(emits_tokens=emits_tokens, example="text"),
        data=SimpleNamespace(task="causal_lm"),
        config=SimpleNamespace(prune_on=prune_on),
        tokens={"validation": tokens},
    )


@pytest.mark.parametrize(
    ("ids", "changes", "refused"),
    [
        ([1, 2], {"metric": "loss"}, None),  # the same tokens
        ([2, 1], {"metric": "loss"}, "loss of models"),
        ([1], {"metric": "loss"}, "loss of models"),
        ([2, 1], {"metric": "perplexity"}, "perplexity of models"),
        ([2, 1], {"metric": "token_accuracy"}, "token_accuracy of models"),
        ([2, 1], {"metric": "bits_per_byte"}, None),
        ([2, 1], {"metric": "bits_per_byte", "prune_on": "loss"}, "loss of models"),
        ([2, 1], {"metric": "loss", "emits_tokens": False}, None),  # a loss of labels
    ],
)
def test_scores_of_different_tokens_are_refused(ids, changes, refused):
    setups = {"a": setup([1, 2], **changes), "b": setup(ids, **changes)}
    if refused is None:
        refuse_incomparable(setups)
    else:
        with pytest.raises(ModelError, match=rf"{refused} .*; write metric: bits_per_byte, and leave prune_on out"):
            refuse_incomparable(setups)


def test_causal_language_models_are_compared_by_bits_per_byte_or_have_one_tokenizer(tmp_path):
    names = ["llama", "gpt2"]
    for name in names:
        chats.save_model(tmp_path / name, name)

    def opened(**changes):
        raw = chats.study(tmp_path, model=names, trials=2, **changes)
        return trial_arrays.open_array(study_spec.build(raw, "test", tmp_path))

    array = opened(slots=2, threads=2)  # the loss, of one tokenizer
    for slot, model in enumerate(names):
        params = {"model": model, "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}
        array.load(slot, TrialSpec(slot, params, slot))
    assert all(isinstance(outcome, Evaluation) for outcome in array.advance().values())
    assert array.of({"model": "gpt2"}).untuned("test").units.sum() > 0
    chats.tokenizer(special=chats.SPECIAL[::-1]).save_pretrained(tmp_path / "gpt2")
    for changes in ({}, {"metric": "perplexity"}, {"metric": "bits_per_byte", "prune_on": "loss"}):
        with pytest.raises(ModelError, match=r"different tokenizers .* write metric: bits_per_byte"):
            opened(**changes)
    assert opened(metric="bits_per_byte").models.keys() == set(names)


def test_one_model_has_one_array(tmp_path):
    array = open_array(tmp_path, model="words")
    assert not isinstance(array, SeveralModels)
    assert array.models == {"words": array}
    assert array.of({}) is array
    assert array.setup.task is TASKS["single_label"]
