"""What `train` refuses before the first step, in one line."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError, RecordError
from mfpo.hub import check_model_files
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train import run as run_module
from mfpo.train.data import open_data
from mfpo.train.plan import plan_stages
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings


def refused(data: Path, model: Path, tmp_path: Path, **settings) -> str:
    with pytest.raises(MfpoError) as error:
        train(data, model, tmp_path / "refused", TrainSettings(**settings))
    assert "\n" not in str(error.value)
    return str(error.value)


def without(column: str, data: Path, folder: Path) -> Path:
    folder.mkdir()
    for shard in data.glob("*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns([column]), folder / shard.name)
    return folder


def test_data_without_rejected_images_is_refused_unless_the_method_needs_none(tiny_llava, ranked, tmp_path):
    data = without("rejected_images", ranked, tmp_path / "data")
    assert "rejected_images is missing; run `mfpo build`" in refused(data, tiny_llava, tmp_path)
    assert len(open_data(data, TrainSettings(method="dpo").resolved())) == 14


def test_curriculum_without_levels_is_refused(tiny_llava, preference_data, tmp_path):
    assert "level is missing; run `mfpo rank`" in refused(preference_data, tiny_llava, tmp_path)


def test_mdpo_on_noised_regions_is_refused(tiny_llava, preference_data, tmp_path):
    message = refused(preference_data, tiny_llava, tmp_path, method="mdpo")
    assert "needs rejected images of kind crop, but these are region" in message


def test_mdpo_on_data_without_a_corruption_is_refused(tiny_llava, preference_data, tmp_path):
    data = without("corruption", preference_data, tmp_path / "data")
    assert "column corruption is missing" in refused(data, tiny_llava, tmp_path, method="mdpo")


def with_processor(tiny_llava, folder: Path, change) -> Path:
    """The model with a processor that was changed."""
    load_model(tiny_llava).save_pretrained(folder)
    processor = load_processor(tiny_llava)
    change(processor)
    processor.save_pretrained(folder)
    return folder


def _more_image_tokens(processor):
    processor.patch_size = 4


def _larger_images(processor):
    processor.image_processor.crop_size = {"height": 64, "width": 64}
    processor.image_processor.size = {"shortest_edge": 64}


def _longer_vocabulary(processor):
    processor.tokenizer.add_tokens(["USER"])


@pytest.mark.parametrize("change", [_more_image_tokens, _larger_images, _longer_vocabulary])
def test_processor_of_another_model_is_refused(change, tiny_llava, ranked, tmp_path):
    model = with_processor(tiny_llava, tmp_path / "model", change)
    message = refused(ranked, model, tmp_path)
    assert "the model cannot read what the processor beside it makes of record 'r00' (" in message


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"], indirect=True)
def test_processor_of_another_family_is_refused(family, tiny_llava, preference_data, tmp_path):
    """As many kinds of error as there are families."""
    family.model.save_pretrained(tmp_path / "model")
    load_processor(tiny_llava).save_pretrained(tmp_path / "model")
    message = refused(preference_data, tmp_path / "model", tmp_path, method="dpo")
    assert "the model cannot read what the processor beside it makes of record 'r00' (" in message


def test_processor_with_another_image_token_is_refused(tiny_llava, ranked, tmp_path):
    model = with_processor(tiny_llava, tmp_path / "model", lambda processor: None)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"image_token_index": 1}))
    assert "the model cannot read what the processor beside it makes" in refused(ranked, model, tmp_path)


def with_column(name: str, values: list, data: Path, folder: Path) -> Path:
    folder.mkdir()
    for shard, start in zip(sorted(data.glob("*.parquet")), (0, 8), strict=True):
        table = pq.read_table(shard)
        column = pa.array(values[start : start + len(table)])
        pq.write_table(table.set_column(table.column_names.index(name), name, column), folder / shard.name)
    return folder


def test_level_without_records_is_refused(tiny_llava, ranked, tmp_path):
    data = with_column("level", ["easy"] * 7 + ["hard"] * 7, ranked, tmp_path / "data")
    assert "level medium has no records" in refused(data, tiny_llava, tmp_path)
    data = with_column("level", ["level-1"] * 7 + ["level-4"] * 7, ranked, tmp_path / "four")
    assert "level level-2, level-3 has no records" in refused(data, tiny_llava, tmp_path)


def test_equal_entropies_are_refused_for_a_curriculum_only(tiny_llava, ranked, tmp_path):
    data = with_column("entropy", [1.5] * 14, ranked, tmp_path / "data")
    assert "all records have the same entropy" in refused(data, tiny_llava, tmp_path)
    settings = TrainSettings(method="dpo").resolved()
    assert plan_stages(open_data(data, settings), settings, "data") == [("all", list(range(14)))]


def test_4_bit_weights_need_bitsandbytes(tiny_llava, ranked, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "find_spec", lambda name: None)
    assert "run `pip install 'mfpo[qlora]'`" in refused(ranked, tiny_llava, tmp_path, lora_rank=2, quantize_4bit=True)


def test_tracker_that_is_not_installed_is_refused(tiny_llava, ranked, tmp_path):
    assert "report_to is 'wandbb', but no such tracker is installed" in refused(
        ranked, tiny_llava, tmp_path, report_to="wandbb"
    )


def test_folder_without_model_is_refused(tiny_llava, ranked, tmp_path):
    load_processor(tiny_llava).save_pretrained(tmp_path / "none")
    assert f"{tmp_path / 'none'}: no model there" in refused(ranked, tmp_path / "none", tmp_path)
    assert f"{tmp_path / 'absent'}: no such folder" in refused(ranked, tmp_path / "absent", tmp_path)


def test_model_without_processor_is_refused(tiny_llava, ranked, tmp_path):
    load_model(tiny_llava).save_pretrained(tmp_path / "bare")
    assert "no processor there" in refused(ranked, tmp_path / "bare", tmp_path)


def test_model_that_sees_no_images_is_refused(tiny_llava, ranked, tmp_path):
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    load_processor(tiny_llava).save_pretrained(tmp_path / "text")
    assert "a 'llama' model does not take images" in refused(ranked, tmp_path / "text", tmp_path)


def test_pickled_weights_are_refused(tiny_llava, ranked, tmp_path):
    model = load_model(tiny_llava)
    (tmp_path / "pickled").mkdir()
    model.config.save_pretrained(tmp_path / "pickled")
    load_processor(tiny_llava).save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    assert "no *.safetensors there" in refused(ranked, tmp_path / "pickled", tmp_path)


def test_lora_targets_that_match_nothing_are_refused(tiny_llava, ranked, tmp_path):
    message = refused(ranked, tiny_llava, tmp_path, lora_rank=2, lora_targets=r".*\.qproj")
    assert "matches none of the linear layers, such as" in message


def test_adapter_on_an_adapter_is_refused(lora_run, ranked, tmp_path):
    assert "merge it first" in refused(ranked, lora_run / "model", tmp_path, lora_rank=2)


def test_existing_run_is_not_overwritten(plain_run, tiny_llava, ranked):
    with pytest.raises(MfpoError, match="exists already"):
        train(ranked, tiny_llava, plain_run, TrainSettings())


def test_a_refused_run_is_not_in_the_way_of_its_mended_command(tiny_llava, preference_data, tmp_path, capsys):
    message = refused(preference_data, tiny_llava, tmp_path, method="dpo", attention="flex_attention")
    assert message.endswith("set attention=sdpa")
    mended = TrainSettings(method="dpo", attention="sdpa", max_steps=1)
    train(preference_data, tiny_llava, tmp_path / "refused", mended)
    assert "refused.partial: belongs to a run with other settings; starting over" in capsys.readouterr().err


def test_image_that_cannot_be_read_names_the_record(tiny_llava, preference_data, tmp_path):
    rows = read_dataset(preference_data).with_format("arrow")[:]["images"].to_pylist()
    rows[3] = [{"bytes": b"junk", "path": None}]
    (tmp_path / "data").mkdir()
    for shard, start in zip(sorted(preference_data.glob("*.parquet")), (0, 8), strict=True):
        table = pq.read_table(shard)
        images = pa.array(rows[start : start + len(table)], table.schema.field("images").type)
        place = table.column_names.index("images")
        pq.write_table(table.set_column(place, table.schema.field("images"), images), tmp_path / "data" / shard.name)
    message = refused(tmp_path / "data", tiny_llava, tmp_path, method="dpo")
    assert message.startswith("record 'r03': one of its images cannot be read (")


def test_sharded_adapters_are_refused(tiny_llava, ranked, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "train adapters with ddp.yaml" in refused(ranked, tiny_llava, tmp_path, lora_rank=2)


def test_prompt_too_long_names_the_record(tiny_llava, ranked, tmp_path):
    with pytest.raises(RecordError, match=r"record 'r00': the prompt with its images has \d+ tokens"):
        train(ranked, tiny_llava, tmp_path / "run", TrainSettings(max_length=20))


def test_the_folder_of_a_run_is_told_where_its_model_is(tiny_llava, ranked, tmp_path):
    shutil.copytree(tiny_llava, tmp_path / "run" / "model")
    assert f"{tmp_path / 'run'}: is the folder of a run; give its model, {tmp_path / 'run' / 'model'}" in refused(
        ranked, tmp_path / "run", tmp_path
    )
    shutil.copytree(tiny_llava, tmp_path / "run", dirs_exist_ok=True)
    check_model_files(tmp_path / "run")  # a model beside which there is another
