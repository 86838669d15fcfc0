"""Reference log-probabilities: what is kept beside a dataset, what a change invalidates, several writers at once."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fixtures.runs import BRIEF, Killed
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError
from mfpo.images import encode_image
from mfpo.logprobs.cells import TEXT, TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import collate, encode, sequence_logps
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train import reference as reference_module
from mfpo.train.objectives import objective
from mfpo.train.reference import find_reference, read_reference, reference_key, sequence_hashes, write_reference
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings


@dataclasses.dataclass
class Case:
    model: object
    pairs: Pairs
    hashes: list[list[str]]

    def find(self, kept: Path, **options) -> dict:
        autocast = torch.autocast("cpu", enabled=False)
        return find_reference(self.model, self.pairs, self.hashes, kept, batch_size=4, autocast=autocast, **options)


@pytest.fixture(scope="module")
def model(tiny_llava):
    return load_model(tiny_llava)


@pytest.fixture
def make(model, tiny_llava):
    def make(data: Path, *, cells: tuple[str, ...] = TEXT_AND_IMAGE) -> Case:
        dataset = read_dataset(data)
        pairs = Pairs(dataset, load_processor(tiny_llava), cells=cells, max_length=999)
        return Case(model, pairs, sequence_hashes(dataset, pairs.names))

    return make


@pytest.fixture
def counted(monkeypatch) -> list[list[int]]:
    """The rows that the model is asked for, call by call."""
    calls = []
    compute = reference_module.reference_logps

    def count(model, pairs, rows, **kwargs):
        calls.append(list(rows))
        return compute(model, pairs, rows, **kwargs)

    monkeypatch.setattr(reference_module, "reference_logps", count)
    return calls


def changed(data: Path, folder: Path, row: int, **columns) -> Path:
    """A copy of the dataset in which `row` of the first shard has other values."""
    shutil.copytree(data, folder)
    shard = folder / "data-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[row] |= columns
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    return folder


def test_log_probabilities_are_those_of_each_sequence_alone(make, model, tiny_llava, preference_data, tmp_path):
    found = make(preference_data).find(tmp_path / "kept.parquet")
    dataset, processor = read_dataset(preference_data), load_processor(tiny_llava)
    assert sorted(found) == list(range(14))
    for row in (0, 13):
        record = dataset[row]
        for number, (images, answer) in enumerate(
            (("images", "chosen"), ("images", "rejected"), ("rejected_images", "chosen"))
        ):
            one = encode(processor, record[images], record["prompt"], [record[answer]], max_length=999)
            with torch.no_grad():
                expected = sequence_logps(model, collate([one], 0)).item()
            assert found[row][number] == (pytest.approx(expected, abs=1e-4), 0)


def test_second_run_computes_nothing_and_reads_the_same(make, preference_data, tmp_path, counted):
    kept = tmp_path / ".reference" / "kept.parquet"
    first = make(preference_data).find(kept)
    assert make(preference_data).find(kept) == first
    assert counted == [list(range(14))]
    assert [path.name for path in kept.parent.iterdir()] == ["kept.parquet"]


def test_killed_pass_goes_on_behind_the_last_block(make, preference_data, tmp_path, monkeypatch):
    compute, calls = reference_module.reference_logps, []

    def die_in_the_third(model, pairs, rows, **kwargs):
        calls.append(list(rows))
        if len(calls) == 3:
            raise Killed
        return compute(model, pairs, rows, **kwargs)

    monkeypatch.setattr(reference_module, "reference_logps", die_in_the_third)
    with pytest.raises(Killed):
        make(preference_data).find(tmp_path / "kept.parquet", block=4)
    found = make(preference_data).find(tmp_path / "kept.parquet", block=4)
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11], [12, 13]]
    assert found == make(preference_data).find(tmp_path / "none.parquet"), "to the last bit"


def test_dpo_reads_what_mfpo_left(make, preference_data, tmp_path, counted):
    whole = make(preference_data).find(tmp_path / "kept.parquet")
    text = make(preference_data, cells=TEXT).find(tmp_path / "kept.parquet")
    assert len(counted) == 1
    assert text == {row: values[:2] for row, values in whole.items()}


def noise(seed: int) -> dict:
    pixels = torch.randint(0, 256, (40, 48, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return encode_image(Image.fromarray(pixels.numpy()))


@pytest.mark.parametrize(
    "columns",
    [
        {"chosen": [{"role": "assistant", "content": "I see a carpet."}]},
        {"rejected": [{"role": "assistant", "content": "I see a car."}]},
        {"prompt": [{"role": "user", "content": "What is there"}]},
        {"images": [noise(1)]},
        {"rejected_images": [noise(1)]},
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_a_change_invalidates_its_record_only(columns, make, preference_data, tmp_path, counted):
    kept = tmp_path / "kept.parquet"
    before = make(preference_data).find(kept)
    after = make(changed(preference_data, tmp_path / "data", 5, **columns)).find(kept)
    assert counted[1] == [5]
    assert {row for row in before if before[row] != after[row]} == {5}


def test_what_a_sequence_does_not_hold_leaves_it_valid(preference_data, tmp_path):
    other = changed(preference_data, tmp_path / "data", 5, id="renamed", keywords=[{"text": "dog", "score": 1.0}])
    assert sequence_hashes(read_dataset(other), TEXT_AND_IMAGE) == sequence_hashes(
        read_dataset(preference_data), TEXT_AND_IMAGE
    )


def test_hashes_differ_where_images_and_answers_are_only_swapped(preference_data):
    hashes = sequence_hashes(read_dataset(preference_data), TEXT_AND_IMAGE)
    assert len({own for record in hashes for own in record}) == 42


def test_key_changes_with_model_length_precision_and_code(tmp_path):
    given = {"model": "a", "max_length": 2048, "bf16": False}
    keys = {reference_key(**given), *(reference_key(**given | {name: "other"}) for name in given)}
    assert len(keys) == 4
    code = Path(reference_module.__file__).parents[1]
    shutil.copytree(code, tmp_path / "mfpo", ignore=shutil.ignore_patterns("*.safetensors"))
    assert reference_key(package=tmp_path / "mfpo", **given) in keys
    for name in ("logprobs/prefix.py", "train/policy.py", "train/methods/ddpo.py", "models.py", "processors.py"):
        code = (tmp_path / "mfpo" / name).read_bytes()
        (tmp_path / "mfpo" / name).write_text("other code")
        assert reference_key(package=tmp_path / "mfpo", **given) not in keys
        (tmp_path / "mfpo" / name).write_bytes(code)


def test_dataset_that_cannot_be_written_to_is_no_hindrance(make, preference_data, tmp_path, capsys):
    (tmp_path / ".reference").write_text("in the way")
    found = make(preference_data).find(tmp_path / ".reference" / "kept.parquet")
    assert len(found) == 14
    assert "so only this run keeps the reference" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".reference"]


def test_broken_file_is_computed_again(make, preference_data, tmp_path, counted, capsys):
    kept = tmp_path / "kept.parquet"
    kept.write_bytes(b"PAR1 and no more")
    make(preference_data).find(kept)
    assert "cannot be read" in capsys.readouterr().err
    make(preference_data).find(kept)
    assert counted == [list(range(14))]


def test_several_writers_at_once_leave_a_whole_file(tmp_path):
    kept = tmp_path / ".reference" / "kept.parquet"

    def add(writer: int) -> None:
        for part in range(5):
            reference_module.add_known(kept, {f"{writer}-{part}-{n}": (float(n), 0) for n in range(200)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    known = reference_module.read_known(kept)
    assert len(known) >= 200
    assert all(value == (float(name.split("-")[2]), 0) for name, value in known.items())
    assert [path.name for path in kept.parent.iterdir()] == ["kept.parquet"]


def test_kept_file_of_a_run_reads_back_by_row(make, preference_data, tmp_path):
    pairs = make(preference_data).pairs
    rows = [9, 2, 11]
    logps = {row: [(-1.0 * row, 0), (-2.0 * row, 3), (-0.5, 0)] for row in rows}
    write_reference(tmp_path / "kept.parquet", pairs, logps)
    reference = read_reference(tmp_path / "kept.parquet", pairs, rows)
    assert reference[9].tolist() == [-9.0, -18.0, -0.5]
    assert reference[11].tolist() == [-11.0, -22.0, -0.5]
    assert reference.isnan().all(dim=1).sum() == 11


def test_training_uses_what_another_run_kept(tiny_llava, preference_data, tmp_path, counted):
    data = tmp_path / "data"
    shutil.copytree(preference_data, data, ignore=shutil.ignore_patterns(".reference"))

    def summary(name: str, **settings) -> dict:
        train(data, tiny_llava, tmp_path / name, TrainSettings(**BRIEF, curriculum=False, **settings))
        return json.loads((tmp_path / name / "summary.json").read_text())

    assert summary("mfpo") == summary("dpo", method="dpo") == {"records": 14, "cut_answers": 0}
    assert counted == [list(range(14))]
    cut = summary("short", method="dpo", max_length=60)
    assert 0 < cut["cut_answers"] <= 28
    assert summary("short again", method="dpo", max_length=60) == cut, "counted where the reference was kept, too"
    assert counted[1:] == [list(range(14))]
    assert len(datasets.load_dataset("parquet", data_dir=str(data))["train"]) == 14, "the folder is still a dataset"


def test_model_with_broken_weights_is_refused_before_the_first_step(tiny_llava, preference_data, tmp_path):
    model = load_model(tiny_llava)
    model.lm_head.weight.data[5] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    load_processor(tiny_llava).save_pretrained(tmp_path / "broken")
    with pytest.raises(MfpoError, match="record 'r00' has no finite log p; the model's weights are broken"):
        train(preference_data, tmp_path / "broken", tmp_path / "run", TrainSettings(method="dpo"))


def halved(prompt_ids, answers):
    return tuple(torch.full((len(answer),), 0.5) for answer in answers)


@objective("halved", terms=("text",), weigh=halved)
def of_halves(ratios):
    return {"text": -(ratios.chosen - ratios.rejected)}


def test_a_reference_by_weights_of_ones_own_is_kept_in_the_run_alone(tiny_llava, preference_data, tmp_path):
    """Their code, which may change from run to run, has no part in the name of what is kept beside the dataset."""
    data = tmp_path / "data"
    shutil.copytree(preference_data, data, ignore=shutil.ignore_patterns(".reference"))
    train(data, tiny_llava, tmp_path / "run", TrainSettings(**BRIEF, method="halved"))
    assert not (data / ".reference").exists()
