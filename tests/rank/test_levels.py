"""Entropy, levels, and the dataset that `rank` writes."""

import json
import math
import shutil
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ByT5Tokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

from fixtures.killed_runs import rank_one_shard
from fixtures.processes import start
from mfpo.dataset import column, read_dataset
from mfpo.demo import build_pairs
from mfpo.errors import MfpoError, SettingError
from mfpo.models import load_model
from mfpo.picturebook import WEIGHTS
from mfpo.processors import load_processor
from mfpo.rank import run
from mfpo.rank.levels import cut_levels, stages
from mfpo.rank.run import rank, rank_into
from mfpo.rank.settings import RankSettings
from mfpo.settings import from_mapping


@pytest.fixture(scope="module")
def ranked(tiny_llava, preference_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("rank") / "ranked"
    return out, rank_into(preference_data, tiny_llava, out, RankSettings(batch_size=4))


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


def test_a_dataset_and_a_model_in_memory_are_ranked_alike(ranked, tiny_llava, preference_data, tmp_path):
    data = read_dataset(preference_data)
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    with pytest.raises(MfpoError, match="needs its processor"):
        rank(data, model, tmp_path / "out", RankSettings(batch_size=4))
    with pytest.raises(MfpoError, match="a folder brings its processor"):
        rank(data, tiny_llava, tmp_path / "out", processor=processor)
    again = rank(data, model, tmp_path / "out", RankSettings(batch_size=4), processor=processor)
    assert column(again, "level") == column(read_dataset(ranked[0]), "level")
    tables = [pq.read_table(file) for file in sorted(ranked[0].glob("*.parquet"))]
    table = pq.read_table(tmp_path / "out" / "train-00000.parquet")
    assert table.drop_columns("entropy").equals(pa.concat_tables(tables).drop_columns("entropy"))
    assert column(again, "entropy") == pytest.approx(column(read_dataset(ranked[0]), "entropy"), rel=1e-5)


def test_ranking_again_replaces_the_columns(ranked, tiny_llava, tmp_path):
    rank_into(ranked[0], tiny_llava, tmp_path / "again", RankSettings())
    table = pq.read_table(tmp_path / "again" / "data-00000.parquet")
    assert table.column_names.count("entropy") == 1


def test_equal_entropies_are_ordered_by_id():
    assert cut_levels([1.0, 1.0, 1.0], ["b", "c", "a"]) == ["medium", "hard", "easy"]


def test_stages_go_from_easy_to_hard_and_leave_out_empty_levels():
    assert stages(["hard", "easy", "hard"]) == [("easy", [1]), ("hard", [0, 2])]


def test_other_numbers_of_levels_have_numbers_as_names_and_come_in_their_order():
    levels = cut_levels([float(i) for i in range(22)], [f"r{i:02}" for i in range(22)], 11)
    assert levels[:3] == ["level-1", "level-1", "level-2"]
    assert stages(levels) == [(f"level-{i + 1}", [2 * i, 2 * i + 1]) for i in range(11)]
    assert stages(cut_levels([2.0, 1.0], ["a", "b"], 1)) == [("level-1", [0, 1])]


def test_more_levels_than_records_leave_some_empty():
    assert stages(cut_levels([2.0, 1.0], ["a", "b"])) == [("easy", [1]), ("medium", [0])]
    assert stages(cut_levels([2.0, 1.0], ["a", "b"], 5)) == [("level-1", [1]), ("level-3", [0])]


@pytest.mark.parametrize("levels", [["Easy"], ["easy", "level-2"], ["level-0"], ["level-1", "level-2b"], ["level-٣"]])
def test_unknown_level_is_an_error(levels):
    with pytest.raises(
        MfpoError, match=f"{levels[-1]!r}, but must be one of easy, medium, hard, or level-1, level-2, ... in all rows"
    ):
        stages(levels)


def test_cut_answers_are_counted(tiny_llava, preference_data, tmp_path):
    model_input = 16 + len("USER: \nWhat is there? ASSISTANT:")
    summary = rank_into(preference_data, tiny_llava, tmp_path / "cut", RankSettings(max_length=model_input + 20))
    answers = [record[0]["content"] for record in column(read_dataset(preference_data), "chosen")]
    expected = sum(len(f" {answer}") + 1 > 20 for answer in answers)
    assert 0 < expected < 14
    assert summary["cut_answers"] == expected


def entropies_of(folder):
    dataset = read_dataset(folder)
    return dict(zip(column(dataset, "id"), column(dataset, "entropy"), strict=True))


def test_predictive_entropy_is_of_the_whole_distribution(tiny_llava, preference_data, tmp_path):
    summary = rank_into(preference_data, tiny_llava, tmp_path / "out", RankSettings(entropy="predictive", batch_size=4))
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    dataset = read_dataset(tmp_path / "out")
    for record in dataset.select([0, 5, 13]):
        prompt = f"USER: <image>\n{record['prompt'][0]['content']} ASSISTANT:"
        start = processor(text=prompt, images=record["images"], return_tensors="pt")["input_ids"].shape[1]
        whole = f"{prompt} {record['chosen'][0]['content']}</s>"
        with torch.no_grad():
            logits = model(**processor(text=whole, images=record["images"], return_tensors="pt")).logits[0]
        table = logits[start - 1 : -1].double().softmax(dim=-1)
        assert record["entropy"] == pytest.approx(float(-(table * table.log()).sum(dim=-1).mean()), rel=1e-5)
    assert summary["cut_answers"] == 0


@pytest.fixture(scope="module")
def always_entails(tmp_path_factory):
    """A folder with a random NLI model, one token a byte, whose answer is always "entailment"."""
    folder = tmp_path_factory.mktemp("nli")
    ByT5Tokenizer().save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    config = DebertaV2Config(**shape, vocab_size=384, type_vocab_size=0, id2label=labels)
    model = DebertaV2ForSequenceClassification(config)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([0.0, 0.0, 1.0])
    model.save_pretrained(folder)
    return folder


SEMANTIC = {"entropy": "semantic", "samples": 3, "max_new_tokens": 4}


def test_semantic_entropy_with_an_nli_model(tiny_llava, preference_data, always_entails, tmp_path, capsys):
    settings = RankSettings(**SEMANTIC, nli_model=str(always_entails))
    summary = rank_into(preference_data, tiny_llava, tmp_path / "one", settings)
    assert set(entropies_of(tmp_path / "one").values()) == {0.0}
    # A random model ends an answer of four bytes now and then.
    assert 0 < summary["cut_answers"] <= 42
    assert "all entropies are equal, so the levels follow the ids" in capsys.readouterr().err
    assert column(read_dataset(tmp_path / "one"), "level") == ["easy"] * 5 + ["medium"] * 5 + ["hard"] * 4

    note = json.loads((always_entails / "config.json").read_text())
    never = tmp_path / "never"
    shutil.copytree(always_entails, never)
    note |= {"id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"}}
    (never / "config.json").write_text(json.dumps(note))
    rank_into(preference_data, tiny_llava, tmp_path / "all", RankSettings(**SEMANTIC, nli_model=str(never)))
    entropies = list(entropies_of(tmp_path / "all").values())
    # Three meanings, weighed by the answers' probabilities a token.
    assert 0 < min(entropies) < max(entropies) < math.log(3)
    assert "equal" not in capsys.readouterr().err


def test_semantic_entropy_by_objects_on_the_picture_book(tmp_path):
    """A trained model names objects: answers to one prompt name several sets of them, and order plays no part."""
    data = tmp_path / "data"
    build_pairs(data, 6, 0, "pairs")
    settings = RankSettings(entropy="semantic", samples=4, max_new_tokens=40)
    rank_into(data, WEIGHTS, tmp_path / "out", settings)
    entropies = entropies_of(tmp_path / "out")
    assert 0 < max(entropies.values()) <= math.log(4)

    backwards = tmp_path / "backwards"
    backwards.mkdir()
    tables = [pq.read_table(shard) for shard in sorted(data.glob("*.parquet"))]
    table = pa.concat_tables(tables)
    pq.write_table(table.take(list(reversed(range(len(table))))), backwards / "data.parquet")
    rank_into(backwards, WEIGHTS, tmp_path / "out2", settings)
    assert entropies_of(tmp_path / "out2") == entropies


def test_a_killed_run_goes_on_behind_its_last_whole_shard(ranked, tiny_llava, preference_data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed = start(rank_one_shard, preference_data, tiny_llava, out, RankSettings(batch_size=4))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not out.exists()
    measured = []

    def measure(records, *arguments):
        measured.append(column(records, "id"))
        return of_shard(records, *arguments)

    of_shard = run._of_shard
    monkeypatch.setattr(run, "_of_shard", measure)
    assert rank_into(preference_data, tiny_llava, out, RankSettings(batch_size=4)) == ranked[1]
    assert measured == [[f"r{i:02}" for i in range(8, 14)]]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in ranked[0].iterdir())
    for shard in ranked[0].glob("*.parquet"):
        assert (out / shard.name).read_bytes() == shard.read_bytes()


def test_a_processor_without_a_chat_template_is_refused(tiny_llava, preference_data, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_llava, bare, ignore=shutil.ignore_patterns("chat_template*"))
    for settings in (RankSettings(), RankSettings(**SEMANTIC)):
        with pytest.raises(MfpoError, match="the model's processor has no chat template"):
            rank_into(preference_data, bare, tmp_path / "out", settings)


def test_broken_weights_are_named_by_record(tiny_llava, preference_data, tmp_path):
    model = load_model(tiny_llava)
    model.lm_head.weight.data[5] = math.nan
    shutil.copytree(tiny_llava, tmp_path / "broken")
    model.save_pretrained(tmp_path / "broken")
    for settings in (RankSettings(), RankSettings(entropy="predictive"), RankSettings(**SEMANTIC)):
        with pytest.raises(MfpoError, match="record 'r00' has no finite entropy"):
            rank_into(preference_data, tmp_path / "broken", tmp_path / "out", settings)


def test_settings_are_checked():
    with pytest.raises(SettingError, match=r"levels is 0.*samples is 1, but must be 2 or more; batch_size is 0"):
        RankSettings(levels=0, samples=1, batch_size=0)
    with pytest.raises(SettingError, match="temperature is nan"):
        RankSettings(temperature=math.nan)
    with pytest.raises(SettingError, match="nli_model compares sampled answers, but entropy is token"):
        RankSettings(nli_model="some/model")
    with pytest.raises(SettingError, match="entropy is 'tokens', but must be one of token, predictive, semantic"):
        from_mapping(RankSettings, {"entropy": "tokens"})
