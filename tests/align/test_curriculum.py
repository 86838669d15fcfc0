"""Entropy, levels, and the dataset that `rank` writes."""

import math

import pyarrow.parquet as pq
import pytest
import torch

from mfpo.align.curriculum import RankSettings, cut_levels, rank, stages
from mfpo.errors import MfpoError, SettingError
from mfpo.models import load_model, load_processor
from mfpo.records import column, read_dataset


@pytest.fixture(scope="module")
def ranked(tiny_llava, preference_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("rank") / "ranked"
    return out, rank(preference_data, tiny_llava, out, RankSettings(batch_size=4))


def test_entropy_is_the_sum_over_the_chosen_answer_of_minus_p_log_p(ranked, tiny_llava):
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    dataset = read_dataset(ranked[0])
    for record in dataset.select([0, 5, 13]):
        question, answer = record["prompt"][0]["content"], record["chosen"][0]["content"]
        prompt = f"USER: <image>\n{question} ASSISTANT:"
        start = processor(text=prompt, images=record["images"], return_tensors="pt")["input_ids"].shape[1]
        inputs = processor(text=f"{prompt} {answer}</s>", images=record["images"], return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**inputs).logits[0].double().softmax(dim=-1)
        ids = inputs["input_ids"][0].tolist()
        ps = [float(probabilities[i - 1, ids[i]]) for i in range(start, len(ids))]
        assert len(ps) == len(f" {answer}") + 1
        assert record["entropy"] == pytest.approx(-sum(p * math.log(p) for p in ps), rel=1e-5)


def test_rank_adds_two_columns_and_changes_no_other(ranked, preference_data):
    for shard in sorted(preference_data.glob("*.parquet")):
        before, after = pq.read_table(shard), pq.read_table(ranked[0] / shard.name)
        assert after.column_names == [*before.column_names, "entropy", "level"]
        assert after.drop_columns(["entropy", "level"]).equals(before)


def test_levels_are_equal_parts_by_ascending_entropy(ranked):
    dataset = read_dataset(ranked[0])
    by_entropy = sorted(zip(column(dataset, "entropy"), column(dataset, "level"), strict=True))
    assert [level for _, level in by_entropy] == ["easy"] * 5 + ["medium"] * 5 + ["hard"] * 4
    assert ranked[1]["records"] == 14
    assert ranked[1]["levels"]["easy"]["mean_entropy"] < ranked[1]["levels"]["hard"]["mean_entropy"]


def test_ranked_data_opens_with_plain_datasets(ranked):
    import datasets

    dataset = datasets.load_dataset("parquet", data_files=str(ranked[0] / "*.parquet"), split="train")
    assert dataset.features["images"].feature == datasets.Image()
    assert dataset.features["level"].dtype == "string"


def test_ranking_again_replaces_the_columns(ranked, tiny_llava, tmp_path):
    rank(ranked[0], tiny_llava, tmp_path / "again", RankSettings())
    table = pq.read_table(tmp_path / "again" / "data-00000.parquet")
    assert table.column_names.count("entropy") == 1


def test_equal_entropies_are_ordered_by_id():
    assert cut_levels([1.0, 1.0, 1.0], ["b", "c", "a"]) == ["medium", "hard", "easy"]


def test_stages_go_from_easy_to_hard_and_leave_out_empty_levels():
    assert stages(["hard", "easy", "hard"]) == [("easy", [1]), ("hard", [0, 2])]


def test_unknown_level_is_an_error():
    with pytest.raises(MfpoError, match="'Easy', but must be one of easy, medium, hard"):
        stages(["Easy"])


def test_cut_answers_are_counted(tiny_llava, preference_data, tmp_path):
    model_input = 16 + len("USER: \nWhat is there? ASSISTANT:")
    summary = rank(preference_data, tiny_llava, tmp_path / "cut", RankSettings(max_length=model_input + 20))
    answers = [record[0]["content"] for record in column(read_dataset(preference_data), "chosen")]
    expected = sum(len(f" {answer}") + 1 > 20 for answer in answers)
    assert 0 < expected < 14
    assert summary["cut_answers"] == expected


def test_settings_are_checked():
    with pytest.raises(SettingError, match="batch_size=0"):
        RankSettings(batch_size=0)
