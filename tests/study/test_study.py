"""A study of a few pairs and scenes: what is trained and scored once is found again, and the tables are right."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import yaml
from rich.console import Console

from mfpo.build.keywords import rank_keywords
from mfpo.build.settings import BuildSettings
from mfpo.dataset import read_dataset
from mfpo.errors import SettingError
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.chair import chair
from mfpo.evaluate.figures import Tally
from mfpo.models import load_model
from mfpo.picturebook.corrections import absent_kinds
from mfpo.picturebook.scenes import make_scene
from mfpo.picturebook.source import PictureBookSource
from mfpo.probe.dependence import pair_logps
from mfpo.probe.distortion import WHERE
from mfpo.probe.gradients import image_pull
from mfpo.probe.settings import DistortionSettings
from mfpo.processors import load_processor
from mfpo.records import answer_text
from mfpo.study import figures, gradients, picturebook, questions
from mfpo.study.counts import counts_of
from mfpo.study.experiments import BASE, load_experiments, mfpo, terms
from mfpo.study.figures import MARGINS, REWARDS
from mfpo.study.paper import PAPER, PaperTable
from mfpo.study.picturebook import SEEN_THEMES, PictureBookScale
from mfpo.study.render import READING, cells, markdown, notes_of, sentences, write_html
from mfpo.study.results import LOWER_IS_BETTER, Claim, Result, Table, Verdict, claim, fill
from mfpo.study.statistics import LOGPS, Estimate, estimate
from mfpo.study.study import NotOnScale, Study
from mfpo.study.trials import Data, Trial, trained
from mfpo.truth import load_annotations

FEW = Data(pairs=8)
EXPERIMENTS = load_experiments()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Study]:
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picturebook, "_SCORED_PAIRS", 4)
        scale = PictureBookScale(out / "picturebook", scenes=12, pairs=16)
        yield Study(out, scale, [0, 1], Console(quiet=True))


@pytest.fixture(scope="module")
def scored(study):
    return {"base": study.scores(BASE), "MFPO": study.scores(mfpo(FEW))}


def test_scores_are_those_of_the_answers(study, scored):
    for seed, own in zip(study.seeds, scored["base"], strict=True):
        assert {name: len(counts) for name, counts in own.items() if name in ("chair_s", "length")} == {
            "chair_s": 12,
            "length": 12,
        }
        (captions,) = study.scale.folder.glob(f"answers/{BASE.key(study.scale.context, seed)}/captions.jsonl")
        words = [len(json.loads(line)["text"].split()) for line in captions.read_text().splitlines()]
        assert own["length"][:, 0].tolist() == words
        truth = load_annotations(study.scale.folder / "scenes" / f"heldout-{seed}-12" / "annotations.jsonl")
        official = chair(read_answers(captions), truth).figures
        for ours, theirs in (("chair_s", "chair_s"), ("chair_i", "chair_i"), ("cover", "recall")):
            assert estimate([own], ours).mean == pytest.approx(official[theirs].value)
        assert len({official[name].value for name in ("chair_s", "chair_i", "recall")}) == 3
        drop = own["logp_chosen"] - own["logp_rejected_image"]
        np.testing.assert_allclose(own["image_dependence"][:, 0], drop[:, 0], atol=1e-3)
        # What noise leaves of the regions is seen, and the base sees well.
        assert own["image_dependence_inpainted"][:, 0].mean() > 5 * drop[:, 0].mean()


def test_a_trial_is_trained_and_scored_once(study, scored, monkeypatch):
    monkeypatch.setattr("mfpo.study.study.train", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr(study.scale, "score", lambda *args: pytest.fail("scored again"))
    again = study.scores(mfpo(FEW))
    for before, after in zip(scored["MFPO"], again, strict=True):
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_what_was_made_with_other_defaults_is_refused(study, scored, monkeypatch):
    before = Study.settings
    monkeypatch.setattr(Study, "settings", lambda *given: replace(before(*given), beta=0.2))
    for again in (study.scores, lambda trial: study.run(trial, 0)):
        with pytest.raises(SettingError, match=r"has other defaults: (train.)?beta was 0.1 and is 0.2; remove it"):
            again(mfpo(FEW))


def test_scores_of_other_defaults_before_the_training_are_refused(study, scored, monkeypatch):
    monkeypatch.setattr("mfpo.study.study.BuildSettings", partial(BuildSettings, top_k=4))
    with pytest.raises(SettingError, match=r"has other defaults: build.top_k was 3 and is 4; remove it"):
        study.scores(BASE)


def test_steps_are_those_of_the_trainings(study, scored):
    for trial in (mfpo(FEW), mfpo(FEW, curriculum=False), mfpo(Data(pairs=8, noises=3), epochs=1)):
        run = study.run(trial, 0)
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert questions.steps_of(study, trial) == last["step"]


def test_opera_is_compared_with_the_base_on_its_own_scenes(study, monkeypatch):
    def made_up(trial):
        scenes = [[1.0, 1.0]] * 6 if trial.decode == "opera" else [[0.0, 1.0]] * 6 + [[1.0, 1.0]] * 6
        return [dict.fromkeys(study.scale.figures, np.array(scenes))] * 2

    monkeypatch.setattr(study, "scores", made_up)
    (note,) = (note for note in EXPERIMENTS["table1"](study).notes if "OPERA describes" in note)
    assert "first 6 scenes of each seed; less the base on the same: CHAIR_s +100.0 (+100.0 to +100.0), Cover" in note
    assert not any(verdict.claim.worse == "+ OPERA" for verdict in EXPERIMENTS["table1"](study).table.verdicts)


def test_scenes_that_all_have_need_no_note(study, monkeypatch):
    monkeypatch.setattr(study, "scores", lambda trial: random_scores(study, trial))
    result = EXPERIMENTS["table1"](study)
    assert not [note for note in result.notes if "OPERA describes" in note]
    assert any("+ OPERA" in (verdict.claim.worse, verdict.claim.better) for verdict in result.table.verdicts)


def counted(hits: int, of: int = 12) -> np.ndarray:
    """A figure of 12 scenes, `hits` of which have it."""
    return np.stack([np.repeat([1.0, 0.0], [hits, of - hits]), np.ones(of)], axis=1)


def test_seen_and_unseen_themes_are_told_apart(study, monkeypatch):
    seen = [np.array(study.scale.is_seen(seed), dtype=float) for seed in study.seeds]

    def made_up(trial):  # the base hallucinates where themes are seen, what is trained where they are not
        hits = [1 - one if trial.method else one for one in seen]
        return [dict.fromkeys(questions._BY_SCENE, np.stack([one, np.ones(12)], axis=1)) for one in hits]

    monkeypatch.setattr(study, "scores", made_up)
    table = EXPERIMENTS["carry-over"](study).table
    found = {row: table.rows[row]["chair_s"].mean for row in table.rows}
    assert (found["base, seen themes"], found["base, unseen themes"]) == (100, 0)
    assert (found["MFPO, seen themes"], found["MFPO, unseen themes"]) == (0, 100)
    gains = {(one.claim.better, one.claim.worse): one.gain.mean for one in table.verdicts}
    assert gains["MFPO, seen themes", "base, seen themes"] == 100
    assert gains["MFPO, unseen themes", "base, unseen themes"] == -100
    assert gains["MFPO, unseen themes", "text + margin, unseen themes"] == 0


def test_the_image_loss_is_compared_with_the_better_part(study, monkeypatch):
    hits = {"text + margin": 6, "image + margin": 3, "joint": 4}

    def made_up(trial):
        given = dict(trial.settings)
        kind = {(1, 0): "text + margin", (0, 1): "image + margin"}.get(
            (given.get("text_weight", 1), given.get("image_weight", 1)), "joint"
        )
        counts = {name: counted(hits[kind]) for name in study.scale.figures}
        return [counts | {name: np.stack([np.ones(12), np.ones(12)], axis=1) for name in LOGPS}] * 2

    monkeypatch.setattr(study, "scores", made_up)
    notes = EXPERIMENTS["image-loss"](study).notes
    assert notes[0] == (
        "text + image + margin, less the better of its two parts: "
        "at 16 pairs CHAIR_s +8.3 (+0.0 to +25.0), Cover +8.3 (+0.0 to +25.0)."
    )


def test_targets_are_ratios_of_the_trials_that_they_name(study, monkeypatch):
    of = {None: 12, "dpo": 4, "mdpo": 2, "mfpo": 3}

    def made_up(trial):
        hits = 7 if dict(trial.settings).get("image_weight") == 0.2 else of[trial.method]
        counts = np.stack([np.full(12, hits), np.full(12, 12)], axis=1) / 12
        return [dict.fromkeys((*study.scale.figures, "existence_accuracy"), counts)] * 2

    monkeypatch.setattr(study, "scores", made_up)
    chair_s, chair_i, dependence, light, *_ = EXPERIMENTS["targets"](study).notes
    assert chair_s.startswith("CHAIR_s of MFPO divided by the base's: 0.25 (")
    assert chair_i.startswith("CHAIR_i of MFPO divided by the base's: 0.25 (")
    assert dependence.startswith("Image dependence of MFPO divided by DPO's: 0.75 (")
    assert light.startswith("Image dependence of MFPO, image weight 0.2, divided by DPO's: 1.75 (")
    assert [note.rpartition("; ")[2] for note in (chair_s, chair_i, dependence, light)] == [
        "reached.",
        "reached.",
        "not reached.",
        "reached.",
    ]


@pytest.mark.parametrize(
    ("side", "low", "high", "word"),
    [
        ("at least", 1.6, 2.0, "reached"),
        ("at least", 1.2, 2.2, "reached by the mean, not settled"),
        ("at least", 1.0, 1.8, "not reached"),
        ("at most", 1.0, 1.4, "reached"),
        ("at most", 1.0, 1.8, "reached by the mean, not settled"),
        ("at most", 1.4, 2.0, "not reached"),
    ],
)
def test_a_target_is_reached_by_its_interval_or_its_mean(side, low, high, word):
    one = Estimate((low + high) / 2, None, low, high, 3)
    assert questions._reached("A", one, side, 1.5).endswith(f"wanted: {side} 1.5; {word}.")


def test_the_best_rate_has_few_hallucinations_and_much_cover(study, monkeypatch):
    def made_up(trial):  # silence hallucinates least, the highest rate covers most, the one between is best
        rate = dict(trial.settings).get("learning_rate")
        hallucinated, covered = {1e-6: (0, 1), 3e-6: (4, 8), 1e-5: (3, 8), 3e-5: (9, 12)}.get(rate, (6, 6))
        counts = dict.fromkeys(study.scale.figures, counted(6))
        return [counts | {"chair_s": counted(hallucinated), "cover": counted(covered)}] * 2

    monkeypatch.setattr(study, "scores", made_up)
    notes = EXPERIMENTS["rates"](study).notes
    assert "dpo: 1e-05 is best; the tables use 1e-05." in notes
    assert all(": 1e-05 is best; the tables use " in note for note in notes[:-2])


def test_rewards_are_of_log_ratios_to_the_base(study, monkeypatch):
    def made_up(trial):
        logps = dict.fromkeys(LOGPS, -50.0)
        if trial.method:
            logps = {"logp_chosen": -40.0, "logp_rejected": -70.0, "logp_rejected_image": -45.0}
        counts = {name: np.stack([np.full(12, value), np.ones(12)], axis=1) for name, value in logps.items()}
        return [dict.fromkeys(study.scale.figures, counted(6)) | counts] * 2

    monkeypatch.setattr(study, "scores", made_up)
    monkeypatch.setattr(figures, "_logged", lambda *given: None)
    rows = EXPERIMENTS["figure6"](study).table.rows
    assert {name: rows["with margin"][name].mean for name in REWARDS} == pytest.approx(
        {"chosen": 1.0, "rejected": -2.0, "rejected_image": 0.5}
    )
    assert not REWARDS.keys() & rows["base"].keys()


def test_gradients_are_of_small_models(study, monkeypatch):
    monkeypatch.setattr(gradients, "_LARGEST_PULLED", 1 << 20)
    with pytest.raises(NotOnScale, match="three gradients of all weights"):
        EXPERIMENTS["image-gradients"](study)


def test_a_stage_is_scored_without_training_again(study, scored, monkeypatch):
    monkeypatch.setattr("mfpo.study.study.train", lambda *args: pytest.fail("trained again"))
    assert study.model(mfpo(FEW, stage="easy"), 0).name == "0-easy"
    assert (study.model(mfpo(FEW, stage="easy"), 0) / "config.json").exists()


@pytest.mark.parametrize(
    "other",
    [
        mfpo(Data(pairs=9)),
        mfpo(FEW, **terms("text", "image")),
        mfpo(Data(pairs=8, corruption="global")),
        trained("mfpo", FEW, learning_rate=1e-6),
        Trial(),
    ],
)
def test_another_trial_has_another_key(other):
    assert other.key() != mfpo(FEW).key()


def test_pairs_of_a_size_are_the_first_of_the_larger_one_and_some_themes_are_kept(study):
    eight, four = (list(read_dataset(study.scale.data(Data(pairs=size), 0))["id"]) for size in (8, 4))
    assert set(four) < set(eight)
    seen = read_dataset(study.scale.data(Data(pairs=4, themes="some"), 0))["id"]
    assert {make_scene(int(one.removeprefix("scene-"))).theme for one in seen} <= set(SEEN_THEMES)
    is_seen = study.scale.is_seen(0)
    captions = study.scale.folder / "scenes" / "heldout-0-12" / "captions.jsonl"  # scores are in its order
    images = [json.loads(line)["image"] for line in captions.read_text().splitlines()]
    themes = [make_scene(int(image.removeprefix("scene-").removesuffix(".png"))).theme for image in images]
    assert is_seen == [theme in SEEN_THEMES for theme in themes]
    assert 0 < sum(is_seen) < 12
    with pytest.raises(NotOnScale, match=r"of 16 pairs only \d+ have the themes kept, not 16"):
        study.scale.data(Data(pairs=16, themes="some"), 0)


def test_a_pair_comes_with_several_noises(study):
    once, thrice = (read_dataset(study.scale.data(Data(pairs=4, noises=times), 0)) for times in (1, 3))
    assert sorted(thrice["id"]) == sorted(f"{one}#{number}" for one in once["id"] for number in range(3))
    for number in range(0, 12, 3):
        same = thrice.sort("id").select(range(number, number + 3))
        assert len({str(record["chosen"]) for record in same}) == 1
        assert len({record["rejected_images"][0].tobytes() for record in same}) == 3


def test_regions_are_those_of_what_only_the_chosen_answer_names(study):
    differing = 0
    for record in read_dataset(study.scale.data(Data(pairs=16, differing=True), 0)):
        rejected = answer_text(record["rejected"]).lower()
        named = [keyword["text"] for keyword in record["keywords"]]
        own = [text for text in named if text.split()[-1] not in rejected]
        assert own == named or not own
        differing += bool(own)
    assert differing


def test_ranked_pairs_prefer_the_sample_that_names_nothing_absent(study):
    scale = PictureBookScale(study.out / "picturebook", pairs=4)
    records = read_dataset(scale.data(Data(source="ranked"), 0))
    assert len(records) == 4
    for record in records:
        scene = make_scene(int(record["id"].removeprefix("scene-")))
        assert not absent_kinds(answer_text(record["chosen"]), scene)
        assert absent_kinds(answer_text(record["rejected"]), scene)


def test_people_turn_round_a_share_of_the_ranked_pairs(monkeypatch):
    monkeypatch.setattr("mfpo.picturebook.source._BATCH", 24)
    ranked, human = (list(PictureBookSource(6, kind=kind)) for kind in ("ranked", "human"))
    turned = [one | {"chosen": one["rejected"], "rejected": one["chosen"]} for one in ranked]
    assert all(one in (as_ranked, round_) for one, as_ranked, round_ in zip(human, ranked, turned, strict=True))
    assert 0 < sum(one == round_ for one, round_ in zip(human, turned, strict=True)) < 4


def test_fewer_hallucinations_and_more_cover_are_gains(study, monkeypatch):
    def made_up(hallucinated: int, covered: int):
        counts = {"chair_s": hallucinated, "cover": covered, "length": 1}
        return {name: np.array([[part, 10]] * 12, dtype=float) for name, part in counts.items()}

    better, worse = mfpo(FEW), BASE
    monkeypatch.setattr(study, "scores", lambda trial: [made_up(1, 9) if trial == better else made_up(4, 7)] * 2)
    figures = ("chair_s", "cover", "image_dependence")
    claims = [Claim("a", "b", "chair_s"), Claim("a", "b", "cover"), Claim("b", "a", "chair_s")]
    columns = {name: name for name in figures}
    table = fill(study, {"a": better, "b": worse}, columns=columns, claims=claims)
    assert [verdict.gain.mean for verdict in table.verdicts] == pytest.approx([30, 20, -30])
    assert [verdict.word for verdict in table.verdicts] == ["as in the paper", "as in the paper", "against the paper"]
    assert {name: one.mean for name, one in table.rows["a"].items()} == pytest.approx({"chair_s": 10, "cover": 90})


def test_verdicts_are_told_in_order_and_by_their_interval():
    def verdict(low: float, high: float, *, is_papers: bool = True, seeds: int = 3) -> Verdict:
        return Verdict(Claim("a", "b", is_papers=is_papers), Estimate((low + high) / 2, None, low, high, seeds))

    verdicts = [verdict(-5, -1, is_papers=False), verdict(1, 3), verdict(-1, 3), verdict(4, 6, seeds=1)]
    table = Table({}, {"chair_s": "CHAIR_s"}, verdicts=[*verdicts, verdict(-3, -1)])
    assert sentences(Result("", table)) == [
        "against the paper: in CHAIR_s, a is 2.0 worse than b (-3.0 to -1.0)",
        "one seed: in CHAIR_s, a is 5.0 better than b (4.0 to 6.0)",
        "not settled: in CHAIR_s, a is 1.0 better than b (-1.0 to 3.0)",
        "as in the paper: in CHAIR_s, a is 2.0 better than b (1.0 to 3.0)",
        "settled: in CHAIR_s, a is 3.0 worse than b (-5.0 to -1.0)",
    ]


def test_pages_have_the_papers_numbers_beside_ours(tmp_path):
    rows = {"MFPO": {"chair_s": Estimate(43.42, 1.0, 40.0, 46.0, 3)}, "mine": {"cover": Estimate(90, None, 89, 91, 1)}}
    papers = {"base": {"mmhal_rate": 0.59, "chair_s": 53.6}, "MFPO": {"mmhal_rate": 0.5, "chair_s": 13.4}}
    doubts = {"A <slip>.": frozenset({("base", "chair_s")})}
    paper = PaperTable(("mmhal_rate", "chair_s"), papers, doubts)
    table = Table(rows, {"chair_s": "CHAIR_s", "cover": "Cover"}, paper)
    result = Result("Table <1>", table, notes=["One note.", "Another <1>."])
    assert cells(result) == (
        ["row", "paper: MMHal rate", "paper: CHAIR_s", "ours: CHAIR_s", "ours: Cover"],
        [
            ["base", "0.59", "53.6†", "", ""],
            ["MFPO", "0.50", "13.4", "43.4 ± 1.0 (40.0 to 46.0)", ""],
            ["ours: mine", "", "", "", "90.0 (89.0 to 91.0)"],
        ],
    )
    assert cells(result, intervals=False)[1] == [["MFPO", "13.4", "43.4 ± 1.0", ""], ["ours: mine", "", "", "90.0"]]
    text = markdown(result, "mfpo reproduce table1", {"torch": "2"})
    assert "| MFPO | 0.50 | 13.4 | 43.4 ± 1.0 (40.0 to 46.0) |  |" in text
    assert (
        "\n† As printed; no verdict relies on it: A <slip>.\n\nWithout a number of ours: base.\n\nOne note.\n" in text
    )
    write_html(result, tmp_path / "page.html", "mfpo reproduce table1", {"torch": "2"})
    html = (tmp_path / "page.html").read_text()
    assert "Table &lt;1&gt;" in html
    assert "<td>13.4</td><td>43.4 ± 1.0<br><small>(40.0 to 46.0)</small></td>" in html
    assert "Another &lt;1&gt;.</p>" in html


def test_a_small_difference_of_the_paper_is_told_as_such():
    claim = Claim("a", "b", gain=2.6)
    table = Table({}, {"chair_s": "CHAIR_s"}, verdicts=[Verdict(claim, Estimate(-2, None, -3, -1, 3))])
    assert sentences(Result("", table)) == [
        "against the paper: in CHAIR_s, a is 2.0 worse than b (-3.0 to -1.0); in the paper 2.6 better"
    ]
    reading, note = notes_of(Result("", table))
    assert reading == READING
    assert "differs by about 8 from paper to paper" in note
    large = replace(table, verdicts=[replace(table.verdicts[0], claim=replace(claim, gain=8.3))])
    assert notes_of(Result("", large)) == [READING]


def test_what_is_in_doubt_is_no_claim_of_the_paper():
    assert claim("table4", "text + margin", "text + image + margin") == Claim(
        "text + image + margin", "text + margin", gain=8.5
    )
    assert claim("table8", "random 20 %", "global", "mmhal_score") == Claim(
        "global", "random 20 %", "mmhal_score", gain=0.11
    )
    for row in ("+ DPO", "+ mDPO"):
        assert claim("table1", "LLaVA-v1.5-7B + MFPO", row) == Claim("LLaVA-v1.5-7B + MFPO", row, is_papers=False)
    assert claim("table1", "LLaVA-v1.5-7B + MFPO", "+ DPO", "mmhal_score").is_papers


def test_every_number_of_the_paper_stands_on_a_page(study, reference_data, monkeypatch):
    file = reference_data.parent / "paper" / "tables.yaml"
    if not file.is_file():
        pytest.skip(f"{file} is not at hand")
    printed = yaml.safe_load(file.read_text())
    monkeypatch.setattr(study, "scores", lambda trial: random_scores(study, trial))
    tables = [name for name in printed if name.startswith("table")]
    assert len(tables) == 9
    for name in tables:
        header, rows = cells(EXPERIMENTS[name](study))
        papers = [number for number, title in enumerate(header) if title.startswith("paper: ")]
        sections = printed[name]["rows"]
        sections = list(sections.values()) if name == "table1" else [sections]
        expected = [row for section in sections for row in section.values()]
        shown = [[row[number].rstrip("†") for number in papers] for row in rows[: len(expected)]]
        assert [[float(cell) if cell else None for cell in row] for row in shown] == expected, name
    shares = {name: float(re.findall(r"\d+", words)[0]) for name, words in printed["accuracies"].items()}
    regions = PAPER["regions"].rows
    assert shares == {
        "keywords": PAPER["keywords"].rows["keywords"]["right"],
        "sam": regions["SAM"]["mapped"],
        "lisa": regions["LISA"]["mapped"],
    }
    assert sum("†" in cell for row in cells(EXPERIMENTS["table1"](study))[1] for cell in row) == 1 + 4 + 8 + 2


# They look into trainings, or at pairs.
LOOKING = ("figure1", "figure2", "figure6", "figure7", "keywords", "regions")

# Claims that the paper makes without numbers: see the notes of their pages.
WITHOUT_NUMBERS = ("figure2", "figure8")


def random_scores(study: Study, trial: Trial) -> list[dict[str, np.ndarray]]:
    """Random counts in place of a trial's scores, others for each trial."""
    random = np.random.default_rng(list(trial.key().encode()))
    kinds = ("accuracy", "present", "random", "popular", "adversarial")
    names = [*study.scale.figures, *(f"existence_{kind}" for kind in kinds), *LOGPS, "norm", "text", "margin"]
    return [{name: np.stack([random.random(12), np.ones(12)], axis=1) for name in names} for _ in study.seeds]


# Of each kind of row one or two, with the trial whose scores should be in it.
SMALL = Data(pairs=30)
TRIALS = {
    "table1": {
        "+ VCD": Trial(decode="vcd"),
        "+ OPERA": Trial(decode="opera"),
        "+ HA-DPO": trained("ha-dpo"),
        "+ mDPO": trained("mdpo"),
        "LLaVA-v1.5-7B + MFPO": mfpo(),
    },
    "table2": {"LLaVA-v1.5-7B": BASE, "+ MFPO": mfpo(), "mDPO": trained("mdpo", Data(corruption="crop"))},
    "table3": {
        "+ VLFeedback": trained("dpo", Data(source="ranked")),
        "+ Human-Preference": trained("dpo", Data(source="human")),
        "+ RLHF-V": trained("dpo"),
        "Ours (MFPO)": mfpo(),
    },
    "table4": {
        "text + margin": mfpo(image_weight=0.0),
        "image + margin": mfpo(text_weight=0.0),
        "image": mfpo(text_weight=0.0, margin_weight=0.0),
    },
    "table5": {"eta 0": mfpo(), "eta 0.2": mfpo(eta=0.2), "eta 0.4": mfpo(eta=0.4)},
    "table6": {"5 : 1 : 1": mfpo(text_weight=5.0), "1 : 5 : 1": mfpo(image_weight=5.0), "1 : 1 : 1": mfpo()},
    "table7": {"end to end": mfpo(curriculum=False), "easy to hard": mfpo()},
    "table8": {"global": mfpo(Data(corruption="global")), "random 20 %": mfpo(Data(corruption="random"))},
    "table9": {"mDPO (RLHF-V)": trained("mdpo"), "MFPO (Silkie)": mfpo(Data(source="ranked"))},
    "figure5": {"after easy": mfpo(stage="easy"), "after medium": mfpo(stage="medium"), "after hard": mfpo()},
    "figure8": {
        "whole image, step 100": mfpo(Data(noise_step=100, corruption="global")),
        "whole image, step 500": mfpo(Data(corruption="global")),
        "regions, step 900": mfpo(Data(noise_step=900)),
    },
    "data-size": {"DPO, 30 pairs": trained("dpo", SMALL), "text + image + margin, 30 pairs": mfpo(SMALL)},
    "image-loss": {
        "image weight 0.2, 30 pairs": mfpo(SMALL, image_weight=0.2),
        "text + image + margin, 600 pairs": mfpo(),
    },
    "targets": {"DPO": trained("dpo"), "MFPO": mfpo(), "MFPO, image weight 0.2": mfpo(image_weight=0.2)},
    "rates": {"dpo, 1e-05": trained("dpo", learning_rate=1e-5), "mfpo, 3e-06": mfpo(learning_rate=3e-6)},
    "figure6": {"with margin": mfpo(), "without margin": mfpo(margin_weight=0.0)},
    "figure7": {"easy to hard": mfpo(), "end to end": mfpo(curriculum=False)},
}


def check(name: str, result: Result, study: Study) -> None:
    """All rows, claims and plots name what is there, and rows have the scores of their trials."""
    assert TRIALS.keys() < EXPERIMENTS.keys()
    for row, trial in TRIALS.get(name, {}).items():
        shown = result.table.rows[row]
        for figure in shown.keys() - MARGINS.keys() - REWARDS.keys():
            assert shown[figure] == estimate(random_scores(study, trial), figure), row
    header, rows = cells(result)
    assert {len(row) for row in rows} == {len(header)}
    table, paper = result.table, result.table.paper
    ours = [number for number, title in enumerate(header) if number and not title.startswith("paper: ")]
    assert len(ours) == len(table.columns)
    blank = {figure for row in table.rows.values() for figure in table.columns.keys() - row.keys()}
    assert blank <= MARGINS.keys() | REWARDS.keys()  # which the base has none of
    filled = [row for row in rows if row[0].removeprefix("ours: ") in table.rows]
    assert len(filled) == len(table.rows)
    assert all(row[number] for row in filled if not blank or "base" not in row[0] for number in ours)
    assert [row[0] for row in rows][: len(paper.rows)] == list(paper.rows)
    for said in (verdict.claim for verdict in table.verdicts):
        assert {said.better, said.worse} <= set(table.rows)
        better, worse = (paper.number(row, said.figure) for row in (said.better, said.worse))
        if said.is_papers and name not in WITHOUT_NUMBERS:
            assert said.gain == pytest.approx((worse - better) * (1 if said.figure in LOWER_IS_BETTER else -1))
            assert said.gain > 0
    assert len(sentences(Result("", table))) == len(table.verdicts)
    assert markdown(result, "command", {}).count("\n| ") == len(rows) + 2  # header and line


@pytest.mark.parametrize(
    "name", sorted(EXPERIMENTS.keys() - {*LOOKING, "rounds", "look", "look-context", "look-bases"})
)
def test_every_experiment_fills_its_table(study, name, monkeypatch):
    monkeypatch.setattr(study, "scores", lambda trial: random_scores(study, trial))
    monkeypatch.setattr(gradients, "_pull", lambda study, data, trial, seed: random_scores(study, trial)[0])
    monkeypatch.setattr(study.scale, "pairs", 600)
    check(name, EXPERIMENTS[name](study), study)


FEW_STEPS = partial(DistortionSettings, steps=(0, 500, 999), max_new_tokens=8)


class Looking(Study):
    """Trainings without scores."""

    def scores(self, trial):
        return random_scores(self, trial)


@pytest.fixture(scope="module")
def looking(study):
    """A study of a few steps, and the figures that look into its trainings."""
    scale = PictureBookScale(study.out / "picturebook", scenes=12, pairs=6)
    scale.train_settings = lambda: ["save_steps=1000", "epochs=1"]
    few = Looking(study.out, scale, [0], study.console)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DistortionSettings", FEW_STEPS)
        return few, {name: EXPERIMENTS[name](few) for name in LOOKING}


def test_figures_have_the_curves_of_their_trainings(looking):
    few, found = looking
    run = few.run(mfpo(), 0)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses, rewards, margins = (found[name].plots for name in ("figure7", "figure6", "figure2"))
    assert losses[0].lines["image"].raw == [row["loss/image"] for row in logged]
    assert rewards[0].lines["rejected image"].raw == [row["rewards/image_rejected"] for row in logged]
    assert [one.title for one in margins] == ["text", "text + cropped image", "text + region image"]
    assert all(len(line.y) == len(logged) for one in margins for line in one.lines.values())


def test_the_balance_is_that_of_the_margins(looking):
    for row in looking[1]["figure2"].table.rows.values():
        assert row["balance"].mean == pytest.approx(row["image_margin"].mean / row["text_margin"].mean)


@pytest.mark.parametrize("name", LOOKING)
def test_figures_that_look_into_trainings_fill_their_tables(looking, name):
    check(name, looking[1][name], looking[0])


def test_figure_1_shows_what_its_probes_measured(looking):
    few, found = looking
    figure = found["figure1"]
    assert len(figure.table.rows) == 3 * 2 * 2  # models, places, steps
    measured = {}
    for path in (few.out / "probes").glob("*/results.json"):
        measured[path.parent.name.split("-")[0]] = json.loads(path.read_text())["figures"]
    plots = {one.title: one.lines for one in figure.plots}
    for where, title in WHERE.items():
        same = [
            row["same"]["value"] for row in measured["distortion"] if (row["model"], row["where"]) == ("MFPO", where)
        ]
        assert len(same) == 3
        assert plots[title]["MFPO"].y == same
    preference = [row["preference"]["value"] for row in measured["attention"] if row["model"] == "DPO"]
    assert plots["attention on the image inside the object"]["DPO"].y == preference


def test_keywords_are_right_when_the_scene_has_what_they_name(looking):
    few, found = looking
    right = asked = 0
    for row in few.scale.checked(0).pairs:
        words = [one["text"].split()[-1] for one in rank_keywords(row["chosen"], BuildSettings())]
        kinds = {kind.split()[-1] for kind in make_scene(row["scene"]).kinds}
        right, asked = right + sum(word in kinds for word in words), asked + len(words)
    rows = found["keywords"].table.rows
    assert asked >= 12
    assert rows["keywords"]["right"].mean == pytest.approx(100 * right / asked)
    assert found["regions"].table.rows["the scene's own masks"]["mapped"].mean == 100


def test_probes_are_not_run_again(looking, monkeypatch):
    few, found = looking
    monkeypatch.setattr(figures, "DistortionSettings", FEW_STEPS)
    monkeypatch.setattr(figures, "probe_distortion", lambda *given, **settings: pytest.fail("probed again"))
    monkeypatch.setattr(figures, "probe_attention", lambda *given, **settings: pytest.fail("probed again"))
    monkeypatch.setattr(few, "run", lambda trial, seed: pytest.fail("trained again"))
    monkeypatch.setattr(few.scale, "checked", lambda seed: pytest.fail("checked again"))
    for name in LOOKING:
        assert EXPERIMENTS[name](few).table == found[name].table


def test_accuracy_is_counted_scene_by_scene(study, scored):
    (asked,) = study.scale.folder.glob("scenes/heldout-0-*/existence-150.jsonl")
    questions = [json.loads(line) for line in asked.read_text().splitlines()]
    images = {question["image"] for question in questions}
    own = scored["base"][0]
    assert len(own["existence_accuracy"]) == len(images)
    assert own["existence_accuracy"][:, 1].sum() == len(questions)
    of_kinds = [own[name] for name in study.scale.question_types]
    np.testing.assert_array_equal(sum(one.sum(0) for one in of_kinds), own["existence_accuracy"].sum(0))


def test_gradients_are_those_of_the_pairs_that_are_trained_on(study, monkeypatch):
    monkeypatch.setattr(gradients, "_PULLED", 4)
    pull = gradients._pull(study, FEW, BASE, 0)
    assert {name: own.shape for name, own in pull.items()} == dict.fromkeys(("norm", "text", "margin"), (1, 2))
    model, processor = load_model(study.scale.base), load_processor(study.scale.base)
    model.get_encoder(modality="image").requires_grad_(False)
    four = read_dataset(study.scale.data(FEW, 0)).select(range(4))
    expected = image_pull(model, processor, four, pair_logps(model, processor, four))
    assert [own[0, 0] for own in pull.values()] == pytest.approx(expected[0].tolist(), abs=1e-5)
    monkeypatch.setattr(gradients, "image_pull", lambda *given: pytest.fail("computed again"))
    again = gradients._pull(study, FEW, BASE, 0)
    assert all(np.array_equal(again[name], own) for name, own in pull.items())


def test_more_pairs_than_there_are_is_an_error(study):
    with pytest.raises(SettingError, match="there are 16 pairs, fewer than 30"):
        study.run(mfpo(Data(pairs=30)), 0)


def test_a_unit_without_counts_keeps_the_others_in_place():
    counts = counts_of({"a": Tally({"x": (1, 2), "z": (3, 4)}), "b": Tally({"y": (5, 6)})}, ["x", "y", "z"])
    assert counts["a"].tolist() == [[1, 2], [0, 0], [3, 4]]
    assert counts["b"].tolist() == [[0, 0], [5, 6], [0, 0]]
