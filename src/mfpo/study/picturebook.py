"""The study's small scale: pairs, scenes and truth of the picture book, minutes a trial on a CPU."""

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from rich.progress import track

from mfpo.answer.run import answer
from mfpo.answer.settings import AnswerSettings
from mfpo.build.pipeline import build
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.chair import chair
from mfpo.evaluate.existence import existence, load_questions
from mfpo.evaluate.figures import Tally
from mfpo.folders import write_json, write_text
from mfpo.models import model_files
from mfpo.picturebook import model_folder
from mfpo.picturebook.book import ASKED_SCENES, FIGURES, draw_book
from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.instances import coco_instances
from mfpo.picturebook.pretrain import pretrain
from mfpo.picturebook.pretrain_settings import SETTINGS
from mfpo.picturebook.rates import RATES
from mfpo.picturebook.scenes import THEMES, Scene
from mfpo.picturebook.source import Chosen, PictureBookSource
from mfpo.picturebook.splits import scene_seeds
from mfpo.records import SourceRecord
from mfpo.study.counts import counts_of, pair_figures
from mfpo.study.statistics import Array
from mfpo.study.study import CHECKED_PAIRS, Checked, NotOnScale
from mfpo.study.training_data import ranked_pairs
from mfpo.study.trials import Data, PairSource, Trial
from mfpo.truth import load_annotations

# The themes of `Data.themes`: "some" of them, so that the scenes of the others are unseen.
SEEN_THEMES = tuple(THEMES)[:4]

# OPERA takes 1.5 s a caption, and so describes only the first scenes.
_OPERA_SCENES = 200

# Pairs that show how much an answer rests on its image.
_SCORED_PAIRS = 150

# What scores of the base are kept under: the hash of its files before its tensors got the names that the Hub's LLaVAs
# have. Their values are the same, so the scores still hold.
BASE_FILES = ["f8ec2f82d57c57e82d0c5ced5aa6fb265e2d2b65129cdb90ff4001b185c7dad3"]


class PictureBookScale:
    """Data and scores of a picture book, kept below `folder`.

    `book` is the one that pairs and scenes are of, the base is its model, which has been pretrained with seed 0, or one
    that is `pretrained` here with another. `split` is that of the scored scenes, `heldout` to report or `validation` to
    choose by; `scenes` is how many there are, `pairs` how many to train on.
    """

    stands_for = "LLaVA-v1.5-7B"
    sources: Collection[PairSource] = get_args(PairSource)
    others: Mapping[str, Trial] = {}
    checked_on: Mapping[str, Any] = {"pairs": CHECKED_PAIRS}
    figures: Mapping[str, str] = FIGURES
    question_types: Mapping[str, str] = {
        "existence_present": "present",
        "existence_random": "random",
        "existence_popular": "popular",
        "existence_adversarial": "adversarial",
    }

    def __init__(
        self,
        folder: Path,
        *,
        book: str = "picturebook",
        split: str = "heldout",
        scenes: int = 1_000,
        pairs: int = 600,
        pretrained: int = 0,
    ) -> None:
        self.book, self._pretrained = BOOKS[book], pretrained
        if pretrained:
            base = [f"{book}, pretrained with seed {pretrained}"]
        else:
            base = BASE_FILES if book == "picturebook" else model_files(model_folder(book))
        # All that is kept is made by the base model, or for it.
        self.folder = folder / Trial().key(base)
        self.split, self.scenes, self.pairs = split, scenes, pairs
        self.trained_on: Mapping[str, Any] = {"base": base, "pairs": pairs}
        asked, opera = min(ASKED_SCENES, scenes), min(_OPERA_SCENES, scenes)
        self.scored_on = (
            f"{scenes} scenes (existence on {asked}, OPERA on {opera}), image dependence on {_SCORED_PAIRS} pairs; "
            "MMHal-Bench, AMBER and LLaVA-Bench need a real model, Cover is measured on the scenes, not on AMBER"
        )
        self.context: Mapping[str, Any] = {"split": split, "scenes": scenes, **self.trained_on}

    @cached_property
    def base(self) -> Path:
        """The folder of the base model; pretrained now unless it is shipped or has been before."""
        if not self._pretrained:
            return model_folder(self.book.name)
        folder = self.folder / "base"
        if not folder.exists():
            pretrain(folder, SETTINGS[self.book.name](seed=self._pretrained), self.book.name)
        return folder

    def rate(self, method: str) -> float:
        """The validated rate of a method."""
        return RATES[method]

    def train_settings(self) -> list[str]:
        """What else trainings are told: to write no checkpoints, as they take two minutes."""
        return ["save_steps=1000"]

    def data(self, data: Data, seed: int) -> Path:
        """The folder of the pairs, with rejected images and ranked from easy to hard."""
        out = self.folder / "data" / f"{Trial(data=data).key(self.trained_on)}-{seed}"
        return ranked_pairs(self._pairs(data, seed), out, data, seed=seed, regions="dataset", model=self.base)

    def _pairs(self, data: Data, seed: int) -> "KeptPairs":
        """The first pairs of a pool that is drawn once for each source and seed."""
        path = self.folder / "pools" / f"{data.source}-{seed}-{self.pairs}.jsonl"
        if not path.exists():
            source = PictureBookSource(self.pairs, seed=seed, kind=data.source, book=self.book.name, model=self.base)
            drawn = track(source, "drawing pairs")
            write_text(path, "".join(json.dumps(row) + "\n" for row in drawn), is_shared=True)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if data.themes == "some":
            rows = [row for row in rows if self.book.make_scene(row["scene"]).theme in SEEN_THEMES]
            if len(rows) < (data.pairs or 0):
                raise NotOnScale(
                    f"of {self.pairs} pairs only {len(rows)} have the themes kept, not {data.pairs}; raise --pairs"
                )
        return KeptPairs(rows[: data.pairs], seed=seed, kind=data.source, book=self.book.name)

    def score(self, model: Path, trial: Trial, seed: int) -> dict[str, Array]:
        """The counts of each figure, scene by scene in the order of the book."""
        book = self._book(seed)
        answers = self.answers_folder(trial, seed)
        tallies: dict[str, Tally] = {}
        captions = book / ("captions.jsonl" if trial.decode != "opera" else f"captions-{_OPERA_SCENES}.jsonl")
        truth = load_annotations(book / "annotations.jsonl")
        described = self._answers(model, captions, answers, trial.decode)
        of_captions = chair(described, truth).tallies
        tallies |= {name: of_captions[name] for name in ("chair_s", "chair_i", "length")}
        tallies["cover"] = of_captions["recall"]
        if trial.decode == "greedy":
            questions = book / f"existence-{ASKED_SCENES}.jsonl"
            asked = self._answers(model, questions, answers, trial.decode)
            accuracy = existence(asked, load_questions(questions)).tallies["accuracy"]
            tallies |= _by_scene(accuracy, questions)
        counts = counts_of(tallies)
        return counts | (pair_figures(model, self.scored_pairs(seed)) if trial.decode == "greedy" else {})

    def answers_folder(self, trial: Trial, seed: int) -> Path:
        """Where the answers of a trial's model are."""
        return self.folder / "answers" / trial.key(self.context, seed)

    def _answers(self, model: Path, questions: Path, folder: Path, decode: str) -> Any:
        out = folder / f"{questions.stem}.jsonl"
        if not out.exists():
            folder.mkdir(parents=True, exist_ok=True)
            settings = AnswerSettings(decode=decode, batch_size=64, max_new_tokens=128)
            answer(questions, model, questions.parent, out, settings)
        return read_answers(out)

    def _book(self, seed: int) -> Path:
        """The scenes to score on, with the questions that are asked."""
        book = self.folder / "scenes" / f"{self.split}-{seed}-{self.scenes}"
        if not book.exists():
            draw_book(book, count=self.scenes, seed=seed, split=self.split, book=self.book.name)
        for all_of, scenes in (("captions", _OPERA_SCENES), ("existence", ASKED_SCENES)):
            some = book / f"{all_of}-{scenes}.jsonl"
            if not some.exists():
                lines = (book / f"{all_of}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
                images = set(list(dict.fromkeys(json.loads(line)["image"] for line in lines))[:scenes])
                write_text(some, "".join(line for line in lines if json.loads(line)["image"] in images))
        return book

    def scored_pairs(self, seed: int) -> Path:
        """The folder of pairs on scenes that nobody trained on, with the default rejected images."""
        out = self.folder / "data" / f"{self.split}-pairs-{seed}-{_SCORED_PAIRS}"
        if not out.exists():
            source = PictureBookSource(_SCORED_PAIRS, seed=seed, split=self.split, book=self.book.name, model=self.base)
            build(
                source, out, BuildSettings(seed=seed), DatasetRegions(), progress=lambda rows: track(rows, "building")
            )
        return out

    def checked(self, seed: int) -> Checked:
        """The first pairs that are trained on, and the instances of their scenes."""
        rows = list(PictureBookSource(min(CHECKED_PAIRS, self.pairs), seed=seed, book=self.book.name))
        pairs = NamedPairs(rows, seed=seed, kind="corrected", book=self.book.name)
        path = self.folder / "scenes" / f"instances-{seed}-{len(rows)}.json"
        write_json(
            path, coco_instances({f"{pairs.id(row, 0)}.png": self.book.make_scene(row["scene"]) for row in rows})
        )
        return Checked(pairs, path, {"the scene's own masks": "dataset"})

    def is_seen(self, seed: int) -> list[bool]:
        """Whether each scored scene has one of the themes that `Data.themes` keeps."""
        return [scene.theme in SEEN_THEMES for scene in self.scored_scenes(seed)]

    def scored_scenes(self, seed: int) -> list[Scene]:
        """The scenes to score on, in order."""
        return [self.book.make_scene(number) for number in islice(scene_seeds(self.split, seed), self.scenes)]


def _by_scene(accuracy: Tally, questions: Path) -> dict[str, Tally]:
    """The accuracy on all questions, on those for what is there, and on the others by how these were chosen."""
    figures: dict[str, dict[str, tuple[float, ...]]] = {}
    for row in map(json.loads, questions.read_text(encoding="utf-8").splitlines()):
        right, asked = accuracy.units[row["question_id"]]
        for kind in ("accuracy", row["negative"] or "present"):
            scenes = figures.setdefault(f"existence_{kind}", {})
            before = scenes.get(row["image"], (0, 0))
            scenes[row["image"]] = (before[0] + right, before[1] + asked)
    return {name: Tally(scenes) for name, scenes in figures.items()}


class KeptPairs(PictureBookSource):
    """Pairs of the picture book that were drawn before."""

    def __init__(self, rows: list[dict[str, Any]], *, seed: int, kind: Chosen, book: str) -> None:
        super().__init__(len(rows), seed=seed, kind=kind, book=book)
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class NamedPairs(KeptPairs):
    """The same with a file name for each image, by which COCO's instances know it."""

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        record = super().record(row, number)
        record["images"][0]["path"] = f"{record['id']}.png"
        return record
