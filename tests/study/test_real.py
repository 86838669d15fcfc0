"""The large scale with a tiny LLaVA, the shared photos as preference data, and their own objects as truth."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from mfpo.answer.judge import Judge, Verdict
from mfpo.cli import main
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError, SettingError
from mfpo.evaluate.amber import amber, load_amber
from mfpo.evaluate.amber_words import open_reading
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.mmhal import TYPES
from mfpo.evaluate.object_halbench import object_halbench
from mfpo.probe.words import UnknownGrid
from mfpo.settings import read_settings
from mfpo.sources import open_source
from mfpo.study import figures
from mfpo.study.cost import cost
from mfpo.study.experiments import BASE, load_experiments, mfpo
from mfpo.study.paper import PAPER
from mfpo.study.real import RealScale, content
from mfpo.study.real_settings import RealSettings, check_paths
from mfpo.study.statistics import LOGPS, estimate
from mfpo.study.study import NotOnScale, Study
from mfpo.study.tables import table1_trials
from mfpo.study.training_data import Rows
from mfpo.study.trials import Data, trained
from mfpo.truth import prepare_truth

EXPERIMENTS = load_experiments()


@pytest.fixture(scope="module")
def study(reference_data, tiny_llava, tmp_path_factory) -> Study:
    out = tmp_path_factory.mktemp("paper")
    photos = reference_data / "photos"
    names = sorted(path.name for path in photos.glob("*.jpg"))[:6]
    questions = [{"question_id": n, "image": name, "text": "Describe it."} for n, name in enumerate(names)]
    (out / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    prepare_truth([photos / "instances.json"], [], out / "truth.jsonl")
    settings = {
        "model": str(tiny_llava),
        "source": str(photos / "preferences.jsonl"),
        "images": str(photos),
        "regions": f"coco={photos / 'instances.json'}",
        "held_out": 4,
        "learning_rate": 1e-3,
        "train": "batch_size=4 epochs=1",
        "objhal_questions": str(out / "questions.jsonl"),
        "objhal_images": str(photos),
        "objhal_truth": str(out / "truth.jsonl"),
    }
    (out / "config.yaml").write_text(yaml.safe_dump(settings))
    scale = RealScale(out / "paper", read_settings(RealSettings, out / "config.yaml", []))
    return Study(out, scale, [0], Console(quiet=True))


def test_the_held_out_rows_are_the_last_and_nobody_trains_on_them(study, reference_data):
    ids = list(read_dataset(study.scale.data(Data(), 0))["id"])
    held_out = list(read_dataset(study.scale.scored_pairs(0))["id"])
    assert not set(ids) & set(held_out)
    source = open_source(reference_data / "photos" / "preferences.jsonl")
    every = [source.id(row, number) for number, row in enumerate(source)]
    assert set(held_out) <= set(every[-4:])
    assert set(ids) <= set(every[:-4])
    assert [Rows(source, 2, 5).id(row, n) for n, row in enumerate(Rows(source, 2, 5))] == every[2:5]


def test_a_method_is_trained_as_the_file_says_and_scored_as_eval_does(study):
    trial = trained("dpo")
    (scores,) = study.scores(trial)
    run = study.run(study.with_rate(trial), 0)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["per_device_train_batch_size"], config["num_train_epochs"], config["learning_rate"]) == (4, 1, 1e-3)
    (answers,) = (study.out / "paper" / "answers").glob("objhal-dpo-*.jsonl")
    result = object_halbench(answers, study.out / "truth.jsonl", allow_missing=True)
    assert len(scores["chair_s"]) == len(result.tallies["chair_s_refined"].units)
    np.testing.assert_array_equal(scores["chair_i"], list(result.tallies["chair_i"].units.values()))
    assert estimate([scores], "image_dependence").seeds == 1
    assert study.scale.figures.keys() == {"chair_s", "chair_i", "image_dependence", "image_dependence_inpainted"}


def test_a_wrong_segmenter_is_told_before_anything_is_answered(study, tmp_path, monkeypatch):
    monkeypatch.setattr("mfpo.study.real.answer", lambda *given, **settings: pytest.fail("answered"))
    scale = RealScale(tmp_path, replace(study.scale.settings, regions="coko=instances.json"))
    with pytest.raises(MfpoError, match="no regions are named"):
        Study(tmp_path, scale, [0], study.console).scores(BASE)


def test_attention_of_other_kinds_of_models_is_left_out(study, monkeypatch):
    def refuse(*given, **settings):
        raise UnknownGrid("a model: the grid of its image tokens is not known")

    monkeypatch.setattr(figures, "probe_attention", refuse)
    monkeypatch.setattr(study, "model", lambda trial, seed: study.scale.base)
    with pytest.raises(NotOnScale, match="grid of its image tokens"):
        EXPERIMENTS["figure1"](study)


def test_three_noises_take_a_third_of_the_epochs_or_have_no_row(study, monkeypatch):
    counts = {name: np.stack([np.ones(12), np.ones(12)], axis=1) for name in (*study.scale.figures, *LOGPS)}
    trials = []
    monkeypatch.setattr(study, "scores", lambda trial: trials.append(trial) or [counts])
    for given in ("epochs=1", "epochs=6", "num_train_epochs=6"):  # that of the file, and others
        trials.clear()
        monkeypatch.setattr(study.scale, "train_settings", lambda given=given: [given])
        EXPERIMENTS["image-loss"](study)
        thrice = [trial for trial in trials if trial.data.noises == 3]
        assert {study.settings(study.with_rate(trial), 0).num_train_epochs for trial in thrice} == (
            {2} if given.endswith("6") else set()
        )


def test_base_is_scored_untrained(study):
    (scores,) = study.scores(BASE)
    assert len(scores["image_dependence"]) == len(read_dataset(study.scale.scored_pairs(0)))


def test_what_the_scale_has_not_is_an_error(study):
    with pytest.raises(SettingError, match="ranked_source is not given"):
        study.scale.data(Data(source="ranked"), 0)
    with pytest.raises(SettingError, match="only the picture book has"):
        study.scale.data(Data(themes="some"), 0)
    with pytest.raises(SettingError, match="no benchmark is named"):
        RealSettings()
    with pytest.raises(SettingError, match="mmhal needs a judge"):
        RealSettings(mmhal="m.json", mmhal_images="images")
    with pytest.raises(SettingError, match="give amber_images too"):
        RealSettings(amber="amber")
    with pytest.raises(SettingError, match="llava_bench needs a judge"):
        RealSettings(llava_bench="folder", llava_bench_images="images")
    with pytest.raises(SettingError, match="lora_rnk"):
        RealSettings(amber="amber", amber_images="images", train="lora_rnk=128")
    with pytest.raises(SettingError, match="train sets image_weight, seed, which the experiments decide"):
        RealSettings(amber="amber", amber_images="images", train="lora_rank=8 seed=7 image_weight=0.2")
    with pytest.raises(SettingError, match="reset_reference"):
        RealSettings(amber="amber", amber_images="images", train="reset_reference=true")
    for given in ({"held_out": 0}, {"batch_size": 0}, {"learning_rate": -1.0}):
        with pytest.raises(SettingError, match="must be"):
            RealSettings(amber="amber", amber_images="images", **given)
    with pytest.raises(SettingError, match="give objhal_truth"):
        RealSettings(objhal_questions="q.jsonl", objhal_images="images")


def test_what_is_not_there_is_told_before_anything_is_scored(study, tmp_path):
    for name in ("objhal_truth", "objhal_images", "images"):
        with pytest.raises(SettingError, match=f"{name} is data/none, which does not exist"):
            check_paths(replace(study.scale.settings, **{name: "data/none"}))
    (tmp_path / "truth.jsonl").write_text("{}\n")
    with pytest.raises(MfpoError, match=r"truth.jsonl, line 1: must be"):
        check_paths(replace(study.scale.settings, objhal_truth=str(tmp_path / "truth.jsonl")))
    with pytest.raises(MfpoError, match="no such file"):
        RealScale(tmp_path, replace(study.scale.settings, source="none.jsonl"))
    with pytest.raises(MfpoError, match=r"none2.jsonl: no such file"):
        RealScale(tmp_path, replace(study.scale.settings, ranked_source="none2.jsonl"))
    with pytest.raises(SettingError, match="held_out is 9999"):
        RealScale(tmp_path, replace(study.scale.settings, held_out=9999))


@pytest.mark.parametrize(
    "name", ["table1", "table4", "table6", "figure5", "figure8", "data-size", "targets", "image-loss"]
)
def test_tables_have_the_columns_that_the_scale_has(study, name, monkeypatch):
    random = np.random.default_rng(0)
    names = [*study.scale.figures, *LOGPS]
    counts = {figure: np.stack([random.random(12), np.ones(12)], axis=1) for figure in names}
    monkeypatch.setattr(study, "scores", lambda trial: [counts])
    result = EXPERIMENTS[name](study)
    assert result.table.columns == {**study.scale.figures, **(figures.MARGINS if name == "image-loss" else {})}
    of_base = {"LLaVA-v1.5-7B", "base"} & result.table.rows.keys()
    assert {row for row, shown in result.table.rows.items() if shown.keys() == study.scale.figures.keys()} >= of_base
    assert all(
        shown.keys() == result.table.columns.keys() for row, shown in result.table.rows.items() if row not in of_base
    )


@pytest.mark.parametrize(("name", "lacks"), [("table2", "types of questions"), ("table3", "general questions")])
def test_a_table_of_what_the_scale_has_not_is_an_error(study, name, lacks):
    with pytest.raises(NotOnScale, match=lacks):
        EXPERIMENTS[name](study)


@pytest.fixture
def judged(reference_data, tiny_llava, tmp_path, monkeypatch) -> Study:
    """All benchmarks of the large scale but Object HalBench, with canned answers and a judge that always says the same.

    AMBER's queries lie where its repository has them.
    """

    def canned(questions, model, images, out, settings):
        text = questions.read_text()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        named = [row.get("id", row.get("question_id", number)) for number, row in enumerate(rows)]
        says = [{"question_id": name, "text": f"A dog and {'a car' if int(name) % 3 else 'grass'}."} for name in named]
        out.write_text("".join(json.dumps(one) + "\n" for one in says))

    def ask(self, prompts, read, **settings):
        replies = {name: "8 10" if "model first" in name else "10 8" for name in prompts}
        replies = {name: reply if "first" in name else "Rating: 4" for name, reply in replies.items()}
        return {name: Verdict((reply,), read(reply)) for name, reply in replies.items()}

    monkeypatch.setattr("mfpo.study.real.answer", canned)
    monkeypatch.setattr("mfpo.study.real.pair_figures", lambda model, pairs: {})
    monkeypatch.setattr(RealScale, "scored_pairs", lambda self, seed: None)
    monkeypatch.setattr(Judge, "ask", ask)
    shutil.copytree(reference_data / "amber", tmp_path / "amber")
    (tmp_path / "amber" / "query").mkdir()
    for path in (tmp_path / "amber").glob("query_*.json"):
        path.rename(tmp_path / "amber" / "query" / path.name)
    benchmarks = {
        "amber": str(tmp_path / "amber"),
        "mmhal": str(reference_data / "mmhal" / "mmhal-bench_answer_template.json"),
        "llava_bench": str(reference_data / "llava_bench"),
    }
    settings = RealSettings(
        model=str(tiny_llava),
        source=str(reference_data / "photos" / "preferences.jsonl"),
        held_out=4,
        judge="judge",
        **benchmarks,
        **{f"{name}_images": str(tmp_path) for name in benchmarks},
    )
    return Study(tmp_path, RealScale(tmp_path / "paper", settings), [0, 1], Console(quiet=True))


def test_scores_of_the_judged_benchmarks_and_of_amber(judged):
    scores, again = judged.scores(BASE)
    found = {name: estimate([scores], name).mean for name in scores}
    assert (found["mmhal_score"], found["mmhal_rate"]) == (4, 0)
    assert {found[f"mmhal_{kind}"] for kind in TYPES} == {4}
    assert {found[name] for name in scores if name.startswith("llava_bench")} == {80}
    benchmark = load_amber(judged.out / "amber")
    (file,) = (judged.out / "paper" / "answers").glob("amber-*.jsonl")  # once for both seeds, as nothing is trained
    details = amber(read_answers(file), benchmark, open_reading(benchmark.words)).descriptions
    assert found["amber_hal"] == pytest.approx(100 * np.mean([bool(one.hallucinated) for one in details.values()]))
    assert 0 < found["amber_hal"] < 100
    assert all(np.array_equal(scores[name], again[name]) for name in scores)


def test_tables_2_and_3_of_the_judged_benchmarks(judged):
    scores = judged.scores(BASE)
    judged.scores = lambda trial: scores
    types = EXPERIMENTS["table2"](judged).table
    assert list(types.columns.values()) == ["overall", *TYPES]
    assert {one.mean for row in types.rows.values() for one in row.values()} == {4}
    for name in ("image-loss", "targets"):
        with pytest.raises(NotOnScale, match="name Object HalBench"):
            EXPERIMENTS[name](judged)
    general = EXPERIMENTS["table3"](judged).table
    assert general.rows.keys() == {"LLaVA-1.5", "+ RLHF-V", "Ours (MFPO)"}  # of the data that is named
    assert general.rows["LLaVA-1.5"]["llava_bench_conversation"].mean == 80
    assert general.paper.rows["LLaVA-1.5"]["llava_bench_conversation"] == 53.3
    assert EXPERIMENTS["table9"](judged).table.rows.keys() == {
        "base",
        *(f"{one} (RLHF-V)" for one in ("DPO", "mDPO", "MFPO")),
    }


def test_other_data_or_training_settings_are_another_run(study):
    trial, before = trained("dpo"), study.scale.trained_on
    for change in ({"train": "lora_rank=8"}, {"held_out": 5}, {"regions": "clipseg"}):
        assert trial.key(before) != trial.key({**before, **change})


def test_what_is_kept_stands_for_the_contents_of_files(study, tmp_path):
    files = {}
    for name in ("source", "objhal_questions", "objhal_truth"):
        files[name] = shutil.copy(getattr(study.scale.settings, name), tmp_path / f"{name}.jsonl")
    before = RealScale(tmp_path, replace(study.scale.settings, **{name: str(file) for name, file in files.items()}))
    for name, changed in (("source", "trained_on"), ("objhal_questions", "context"), ("objhal_truth", "context")):
        with Path(files[name]).open("a") as file:
            file.write("\n")
        content.cache_clear()
        after = RealScale(tmp_path, before.settings)
        assert BASE.key(getattr(before, changed)) != BASE.key(getattr(after, changed))
        assert (BASE.key(before.trained_on) != BASE.key(after.trained_on)) == (changed == "trained_on")
        before = after


def test_the_shipped_files_are_read_and_fill_rows_of_table_1():
    files = sorted((Path(__file__).parents[2] / "configs" / "study").rglob("*.yaml"))
    read = {path.stem: read_settings(RealSettings, path, []) for path in files}
    assert {name: one.stands_for for name, one in read.items()} == {
        "llava-1.5-13b": "LLaVA-v1.5-13B",
        "llava-1.5-7b": "LLaVA-v1.5-7B",
        "llava-1.6-7b": "LLaVA-v1.6-7B",
    }
    for one in read.values():
        assert one.train.startswith("lora_rank=128")
        rows = table1_trials(one.stands_for)
        assert rows[one.stands_for] == BASE
        assert rows[f"{one.stands_for} + MFPO"] == mfpo()
        assert rows.keys() - {"RLHF-V's dense DPO"} <= PAPER["table1"].rows.keys()
    every = {row for one in read.values() for row in table1_trials(one.stands_for)}
    assert PAPER["table1"].rows.keys() - every == {"GPT-4V", "MiniGemini-34B", "Qwen-VL-Chat"}


@pytest.fixture
def asked(study, tmp_path, fake_server, monkeypatch) -> Iterator[Study]:
    """The study with three models that are only asked: at an endpoint, by a file of its answers, and from a folder."""
    pytest.importorskip("openai", reason="endpoints need the openai package: pip install 'mfpo[judge]'")
    monkeypatch.setattr(RealScale, "scored_pairs", lambda self, seed: None)
    with fake_server(lambda prompt: "There is a giraffe.", faults=["bad_request"]) as server:
        others = {
            "GPT-4V": {"endpoint": server.url, "model": "judge-1"},
            "Qwen-VL-Chat": {"answers": str(tmp_path / "given")},
            "mine": {"model": str(study.scale.base)},
        }
        (tmp_path / "given").mkdir()
        settings = replace(study.scale.settings, others=others)
        yield Study(tmp_path, RealScale(tmp_path / "paper", settings), [0], study.console)


def test_models_that_are_only_asked_stand_in_table_1(asked, monkeypatch):
    others = asked.scale.others
    with pytest.raises(MfpoError, match="GPT-4V: 1 questions failed at the endpoint; run again to ask them again"):
        asked.scores(others["GPT-4V"])
    (at_endpoint,) = asked.scores(others["GPT-4V"])
    (answers,) = (asked.scale.folder / "answers").glob("objhal-base-*.jsonl")
    official = object_halbench(answers, Path(asked.scale.settings.objhal_truth))
    assert estimate([at_endpoint], "chair_s").mean == pytest.approx(official["chair_s_refined"])
    shutil.copy(answers, asked.out / "given" / "objhal.jsonl")
    (from_file,) = asked.scores(others["Qwen-VL-Chat"])
    assert from_file.keys() == {"chair_s", "chair_i"}
    assert all(np.array_equal(from_file[name], at_endpoint[name]) for name in from_file)
    (of_base,), (mine,) = asked.scores(BASE), asked.scores(others["mine"])
    assert all(np.array_equal(of_base[name], mine[name]) for name in mine)
    monkeypatch.setattr(Study, "_scores", lambda self, trial, seed, model: at_endpoint if trial.other else of_base)
    rows = EXPERIMENTS["table1"](asked).table.rows
    assert rows["GPT-4V"] == rows["Qwen-VL-Chat"]
    assert rows["GPT-4V"]["chair_s"].mean == estimate([at_endpoint], "chair_s").mean


def test_answers_that_change_are_scored_anew_and_alone(asked):
    before = asked.scale
    (asked.out / "given" / "objhal.jsonl").touch()
    content.cache_clear()
    after = RealScale(before.folder, before.settings)
    changed = [name for name in before.others if before.others[name] != after.others[name]]
    assert changed == ["Qwen-VL-Chat"]
    assert after.context == before.context


def test_faults_of_models_that_are_only_asked_are_told_first(study, tmp_path):
    for other in ({"endpoint": "http://127.0.0.1/v1"}, {"model": 1}, "gpt", {"answers": "a", "model": "b"}):
        with pytest.raises(SettingError, match=r"others has X: .*must give answers, or model, or endpoint and model"):
            replace(study.scale.settings, others={"X": other})
    given = replace(study.scale.settings, others={"X": {"answers": str(tmp_path)}})
    with pytest.raises(SettingError, match=r"others has X: .* has none of objhal.jsonl, amber.jsonl"):
        check_paths(given)


def test_costs_are_those_of_what_is_not_kept(study, tmp_path):
    fresh = Study(tmp_path, RealScale(tmp_path / "paper", study.scale.settings), [0, 1], study.console)
    todo = cost(fresh, fresh.scale, [EXPERIMENTS[name] for name in ("table4", "table7", "figure7")])
    # Six combinations of terms and one training without levels, on two seeds; the base answers once for both.
    pairs = fresh.scale.pairs
    assert (todo.trainings, todo.pairs, todo.judge_calls) == (14, 14 * pairs, 0)
    assert todo.answers == {"objhal": 6 * 15}
    assert str(todo).startswith(f"to do: 90 answers (objhal 90), 14 trainings ({14 * pairs} pairs")
    end_to_end = replace(fresh.with_rate(mfpo(curriculum=False)), stage=None)
    (tmp_path / "runs" / f"{end_to_end.key(fresh.scale.trained_on)}-1").mkdir(parents=True)
    assert cost(fresh, fresh.scale, [EXPERIMENTS["table7"]]).trainings == 3
    assert cost(fresh, fresh.scale, [EXPERIMENTS["figure1"]]).trainings == 2  # it looks into those of the first seed
    assert cost(fresh, fresh.scale, [EXPERIMENTS["image-gradients"]]).trainings == 0  # its first data are not there
    assert not (tmp_path / "paper").exists()


def test_a_dry_run_prints_the_costs_and_stops(study, tmp_path, capsys, monkeypatch):
    command = ["mfpo", "reproduce", "table1", "--scale", "paper", "--config", str(study.out / "config.yaml")]
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "1", "--out", str(tmp_path / "out"), "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert "9 trainings" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_keywords_and_regions_are_checked_on_photos(study, reference_data, tmp_path):
    instances = reference_data / "photos" / "instances.json"
    scale = RealScale(tmp_path / "paper", replace(study.scale.settings, instances=str(instances)))
    photos = Study(tmp_path, scale, [0], study.console)
    right = EXPERIMENTS["keywords"](photos).table.rows
    assert right["best keyword"]["right"].mean == pytest.approx(81.25)  # 13 of 16, as benchmarks/keywords.py counts
    (mapped,) = EXPERIMENTS["regions"](photos).table.rows.values()
    assert mapped["mapped"].mean == 100  # COCO's masks against themselves
    without = Study(tmp_path / "without", RealScale(tmp_path / "paper", study.scale.settings), [0], study.console)
    with pytest.raises(NotOnScale, match="instances is not given"):
        EXPERIMENTS["regions"](without)
