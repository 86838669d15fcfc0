"""Answers under any image: their log p, their reference, and the methods that read them, through the trainer."""

import json
import math
from functools import partial

import datasets
import pytest
import torch

from fixtures.runs import PLAIN, metrics_of
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError
from mfpo.logprobs.cells import CELLS, TEXT_AND_IMAGE, ByCell
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import collate, encode, sequence_logps
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train import reference as reference_module
from mfpo.train.data import open_data
from mfpo.train.methods.chip import weigh_segments
from mfpo.train.objectives import OBJECTIVES, LogRatios, total
from mfpo.train.reference import find_reference, sequence_hashes
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings

NEW = ("symmpo", "s-vco", "counterfactual")


def alone(model, processor, record: dict, name: str) -> float:
    """log p of a cell in a batch of its own."""
    images = record[CELLS[name].images] if CELLS[name].images else []
    prompt = record["prompt"]
    if not images:
        prompt = [{"role": turn["role"], "content": turn["content"].replace("<image>", "").strip()} for turn in prompt]
    answer = record[CELLS[name].answer]
    row = encode(processor, [image.convert("RGB") for image in images], prompt, [answer], max_length=999)
    with torch.no_grad():
        return sequence_logps(model, collate([row], 0)).item()


@pytest.fixture(scope="module")
def model(tiny_llava):
    return load_model(tiny_llava)


@pytest.fixture(scope="module")
def processor(tiny_llava):
    return load_processor(tiny_llava)


@pytest.fixture(scope="module")
def dataset(counter_data) -> datasets.Dataset:
    return read_dataset(counter_data)


def test_every_cell_has_a_value_of_its_name():
    assert [*ByCell.__dataclass_fields__] == [*CELLS]
    assert len({(cell.answer, cell.images) for cell in CELLS.values()}) == 9


def test_every_cell_is_its_sequence_alone(model, processor, dataset):
    """A row an image or an answer; also where the image has a place in the prompt."""
    placed = [{"role": "user", "content": "Look at <image> here."}]
    records = [dataset[0], dataset[9] | {"prompt": placed}]
    pairs = Pairs(
        datasets.Dataset.from_list(records, features=dataset.features), processor, cells=CELLS, max_length=999
    )
    batch = [pairs[0], pairs[1]]
    assert pairs.names == (
        *("chosen", "rejected", "counter"),
        *("rejected_image", "counter_rejected_image", "rejected_rejected_image"),
        *("chosen_blind", "counter_blind", "rejected_blind"),
    )
    expected = [[alone(model, processor, record, name) for name in pairs.names] for record in records]
    assert len({round(logp, 3) for record in expected for logp in record}) == 18
    for shared, rows in ((True, 6), (False, 18)):
        inputs = pairs.collate(batch, shared=shared)
        inputs.pop("rows")
        assert len(inputs["input_ids"]) == rows
        with torch.no_grad():
            logps = sequence_logps(model, inputs).view(2, 9)
        torch.testing.assert_close(logps, torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_an_answer_has_its_weights_under_any_image(processor, dataset):
    cells = (*TEXT_AND_IMAGE, "chosen_blind", "counter")
    pairs = Pairs(dataset, processor, cells=cells, max_length=999, weigh=partial(weigh_segments, gamma=3.0))
    weights = dict(zip(pairs.names, (one for prompt in pairs[3].prompts for one in prompt.weights), strict=True))
    assert torch.equal(weights["chosen"], weights["rejected_image"])
    assert torch.equal(weights["chosen"], weights["chosen_blind"])
    assert set(weights["rejected"].tolist()) == {1.0, 3.0}
    assert set(weights["counter"].tolist()) == {1.0}


def test_a_run_of_another_method_computes_the_missing_cells_alone(model, processor, dataset, tmp_path, monkeypatch):
    compute, asked = reference_module.reference_logps, []

    def count(model, pairs, rows, *, cells, **options):
        asked.append((cells, len(rows)))
        return compute(model, pairs, rows, cells=cells, **options)

    monkeypatch.setattr(reference_module, "reference_logps", count)

    def find(method: str, kept: str) -> tuple[Pairs, dict]:
        pairs = Pairs(dataset, processor, cells=OBJECTIVES[method].cells, max_length=999)
        hashes, autocast = sequence_hashes(dataset, pairs.names), torch.autocast("cpu", enabled=False)
        return pairs, find_reference(model, pairs, hashes, tmp_path / kept, batch_size=4, autocast=autocast)

    find("mfpo", "kept")
    pairs, found = find("symmpo", "kept")
    assert asked == [(TEXT_AND_IMAGE, 14), (("counter", "counter_rejected_image"), 14)]
    find("counterfactual", "kept")
    find("dpo", "kept")
    assert len(asked) == 2
    assert find("s-vco", "kept")[0].names[-2:] == asked[2][0] == ("chosen_blind", "counter_blind")
    for row in (0, 13):
        expected = [alone(model, processor, dataset[row], name) for name in pairs.names]
        assert [logp for logp, _ in found[row]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", NEW)
def test_losses_of_the_trainer_are_those_of_single_sequences(method, model, processor, counter_data, open_trainer):
    settings = TrainSettings(method=method).resolved()
    names, dataset = OBJECTIVES[method].cells, read_dataset(counter_data)
    logps = {name: torch.tensor([alone(model, processor, dataset[row], name) for row in (3, 5)]) for name in names}
    ratios = LogRatios(**{name: 3.0 * number - 4 + logp * 0 for number, (name, logp) in enumerate(logps.items())})
    reference = torch.zeros(14, len(names))
    trainer = open_trainer(counter_data, settings, reference)
    for number, name in enumerate(trainer.pairs.names):
        reference[[3, 5], number] = logps[name] - getattr(ratios, name)
    with torch.no_grad():
        batch = trainer.collate([trainer.train_dataset[i] for i in (0, 1)])
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=2)
    expected = total(OBJECTIVES[method].losses(ratios)).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_run_without_the_rejected_answer_logs_what_is_there(tiny_llava, counter_data, tmp_path):
    settings = TrainSettings(**PLAIN | {"method": "s-vco"}, eval=str(counter_data), eval_steps=4)
    run = train(counter_data, tiny_llava, tmp_path / "run", settings)
    lines = metrics_of(run)
    first, last = lines[0], next(line for line in reversed(lines) if "loss" in line)
    assert first["loss"] == pytest.approx(4 * math.log(2), abs=1e-5)
    assert last["loss"] != pytest.approx(first["loss"], abs=1e-3)
    rewards = {"chosen", "image_rejected", "counter", "counter_rejected_image", "chosen_blind", "counter_blind"}
    assert {name.removeprefix("logps/") for name in first if name.startswith("logps/")} == rewards
    margins = {"image_margins", "image_accuracies"}
    assert {name.removeprefix("rewards/") for name in first if name.startswith("rewards/")} == rewards | margins
    held_out = next(line for line in lines if "eval/loss" in line)
    assert {"eval/rewards/margins", "eval/rewards/image_margins", "eval/image_dependence"} <= held_out.keys()
    assert json.loads((run / "summary.json").read_text()) == {"records": 14, "cut_answers": 0}
    assert "rewards/image_margins" in (run / "model" / "README.md").read_text()


def test_chip_starts_at_its_reference_and_moves_away(tiny_llava, preference_data, tmp_path):
    run = train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**PLAIN | {"method": "chip"}))
    first, *_, last = metrics_of(run)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["loss"] != pytest.approx(first["loss"], abs=1e-3)


@pytest.mark.parametrize("method", NEW)
def test_data_without_the_counter_is_refused_with_the_way_to_get_it(method, preference_data):
    with pytest.raises(MfpoError, match=r"row 0: column counter is empty; .* `mfpo build` with corruption=given"):
        open_data(preference_data, TrainSettings(method=method).resolved())
    without = read_dataset(preference_data).remove_columns("counter")
    with pytest.raises(MfpoError, match=r"column counter is missing; .* with corruption=counterfactual"):
        open_data(without, TrainSettings(method=method).resolved())
