"""The study's large scale: a real model, preference data and benchmarks, as a YAML file names them."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from mfpo.answer.judge_settings import JudgeSettings
from mfpo.answer.run import answer
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import MfpoError, SettingError
from mfpo.evaluate.amber import amber_file
from mfpo.evaluate.benchmark import score
from mfpo.evaluate.figures import Tally
from mfpo.evaluate.llava_bench import load_llava_bench
from mfpo.evaluate.mmhal import TYPES
from mfpo.files import read_rows
from mfpo.folders import fingerprint
from mfpo.image_names import image_key
from mfpo.models import model_files
from mfpo.picturebook import model_folder
from mfpo.picturebook.book import FIGURES
from mfpo.settings import read_settings
from mfpo.sources import Source, open_source
from mfpo.study.counts import counts_of, pair_figures
from mfpo.study.real_settings import BENCHMARKS, RealSettings
from mfpo.study.statistics import Array
from mfpo.study.study import CHECKED_PAIRS, Checked, NotOnScale
from mfpo.study.training_data import Rows, ranked_pairs
from mfpo.study.trials import Data, PairSource, Trial


class RealScale:
    """Data and scores of a real model, kept in `folder`."""

    def __init__(self, folder: Path, settings: RealSettings) -> None:
        self.folder, self.settings = folder, settings
        self.stands_for = settings.stands_for
        self._sources: Mapping[PairSource, str | None] = {
            "corrected": settings.source,
            "ranked": settings.ranked_source,
            "human": settings.human_source,
        }
        self.sources = tuple(kind for kind, name in self._sources.items() if name is not None)
        # A mistake in one is told now, and not at Table 9.
        self._counts = {name: self._trained_rows(name) for name in filter(None, self._sources.values())}
        self.pairs = self._counts[settings.source]
        self.base = model_folder(settings.model)
        self.figures: Mapping[str, str] = _columns(settings)
        self.scored_on = f"the benchmarks, {settings.model}"
        self.question_types: Mapping[str, str] = (
            {"mmhal_score": "overall", **{f"mmhal_{kind}": kind for kind in TYPES}} if settings.mmhal else {}
        )
        named = ("source", "ranked_source", "human_source", "images", "regions", "held_out")
        masks = [name for name in settings.regions.partition("=")[2].split(",") if Path(name).exists()]
        self.built_on = {
            "base": model_files(self.base),
            **{name: getattr(settings, name) for name in named},
            "contents": [content(name) for name in (*self._sources.values(), *masks) if name],
        }
        self.trained_on: Mapping[str, Any] = {**self.built_on, "train": settings.train}
        asked = (settings.objhal_questions, settings.objhal_truth, settings.amber, settings.mmhal, settings.llava_bench)
        benchmarks = {"benchmarks": [content(name) for name in asked if name]}
        # What is no matter of a row's scores.
        scored = replace(
            settings, others=None, instances=None, checked_regions=None, batch_size=RealSettings.batch_size
        )
        self.context: Mapping[str, Any] = {**self.trained_on, **asdict(scored), **benchmarks}
        self.checked_on: Mapping[str, Any] = {
            "instances": settings.instances and content(settings.instances),
            "segmenters": settings.checked_regions,
        }
        self.others: Mapping[str, Trial] = {
            name: Trial(other=(("name", name), *sorted(other.items()), *_contents(other)))
            for name, other in (settings.others or {}).items()
        }
        endpoint = {"endpoint": settings.judge_endpoint} if settings.judge_endpoint else {}
        self.judge = (
            read_settings(JudgeSettings, None, [], model=settings.judge, **endpoint) if settings.judge else None
        )

    def rate(self, method: str) -> float:
        """One rate for every method, as the paper has."""
        return self.settings.learning_rate

    def train_settings(self) -> list[str]:
        """What else trainings are told."""
        return self.settings.train.split()

    def data(self, data: Data, seed: int) -> Path:
        """The folder of the pairs, with rejected images and ranked from easy to hard."""
        if data.themes != "all":
            raise NotOnScale("carry-over needs themes, which only the picture book has")
        return self._ranked(data, Trial(data=data).key(self.built_on), seed, held_out=False)

    def scored_pairs(self, seed: int) -> Path:
        """The held-out rows of the source with the default rejected images."""
        return self._ranked(Data(), f"held-out-{Trial().key(self.built_on)}", seed, held_out=True)

    def checked(self, seed: int) -> Checked:
        """The first rows of the source, with COCO's masks; every seed has the same."""
        s = self.settings
        if s.instances is None:
            raise NotOnScale("instances is not given; name COCO's instances of the source's images")
        choices = (s.checked_regions or s.regions).split()
        names = {choice: choice.partition("=")[0] for choice in choices}
        segmenters = {{"grounded-sam": "SAM", "lisa": "LISA"}.get(names[choice], choice): choice for choice in choices}
        return Checked(Rows(self._open(s.source), 0, CHECKED_PAIRS), Path(s.instances), segmenters)

    def is_seen(self, seed: int) -> list[bool]:
        """Raises NotOnScale, as there are no themes."""
        raise NotOnScale("carry-over needs themes, which only the picture book has")

    def _ranked(self, data: Data, name: str, seed: int, *, held_out: bool) -> Path:
        rows, out = self._rows(data, held_out=held_out), self.folder / "data" / f"{name}-{seed}"
        return ranked_pairs(rows, out, data, seed=seed, regions=self.settings.regions, model=self.base)

    def _trained_rows(self, source: str) -> int:
        """How many rows of a source are trained on."""
        count = sum(1 for _ in self._open(source))
        if count <= self.settings.held_out:
            raise SettingError(f"held_out is {self.settings.held_out}, but {source} has {count} rows; lower it")
        return count - self.settings.held_out

    def _open(self, source: str) -> Source:
        return open_source(source, images=Path(self.settings.images) if self.settings.images else None)

    def _rows(self, data: Data, *, held_out: bool) -> Rows:
        name = self._sources[data.source]
        if name is None:
            raise NotOnScale(f"{data.source}_source is not given; name the preference data of such answers")
        end = self._counts[name]
        if held_out:
            return Rows(self._open(name), end, end + self.settings.held_out)
        return Rows(self._open(name), 0, min(end, data.pairs or end))

    def score(self, model: Path, trial: Trial, seed: int) -> dict[str, Array]:
        """The counts of each figure, question by question; of `trial.other` those that it has answers for."""
        # First, as a segmenter that is not there should be told before hours of answers.
        pairs = self.scored_pairs(seed) if trial.decode == "greedy" and not trial.other else None
        counts: dict[str, Array] = {}
        for name, (questions, images) in self.asked.items():
            answers = self._answers(name, questions, images, model, trial, seed)
            if answers:
                counts |= getattr(self, f"_{name}")(answers)
        return counts | (pair_figures(model, pairs) if pairs else {})

    @property
    def asked(self) -> dict[str, tuple[Path, str]]:
        """The questions of each benchmark that is named, and the folder of their images."""
        s = self.settings
        questions = {"objhal": s.objhal_questions and Path(s.objhal_questions), "mmhal": s.mmhal and Path(s.mmhal)}
        questions["amber"] = s.amber and amber_file(Path(s.amber), "query_generative.json")
        questions["llava_bench"] = s.llava_bench and Path(s.llava_bench) / "qa90_questions.jsonl"
        return {name: (of, str(getattr(s, f"{name}_images"))) for name in BENCHMARKS if (of := questions[name])}

    def _answers(self, name: str, questions: Path, images: str, model: Path, trial: Trial, seed: int) -> Path | None:
        """The file of the answers to a benchmark, asked for now unless they have been; None where an other has none."""
        other, out = dict(trial.other), self.answer_file(name, trial, seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        if "answers" in other:
            ready_file = Path(other["answers"]) / f"{name}.jsonl"
            return Path(shutil.copy(ready_file, out)) if ready_file.exists() else None
        if "endpoint" in other:
            self._ask(other, questions, Path(images), out)
        elif not out.exists():
            settings = AnswerSettings(decode=trial.decode, batch_size=self.settings.batch_size)
            answer(questions, model_folder(other["model"]) if other else model, Path(images), out, settings)
        return out

    def answer_file(self, name: str, trial: Trial, seed: int) -> Path:
        """Where the answers to a benchmark are; what is not trained answers alike with every seed."""
        questions, images = self.asked[name]
        key = trial.key(self.trained_on, content(str(questions)), images, seed if trial.method else None)
        return self.folder / "answers" / f"{name}-{key}.jsonl"

    def questions(self) -> dict[str, int]:
        """How many questions each benchmark has that is named."""
        return {name: sum(1 for _ in read_rows(file)) for name, (file, _) in self.asked.items()}

    def _ask(self, other: Mapping[str, Any], questions: Path, images: Path, out: Path) -> None:
        """Ask an endpoint, what failed before too. Raises MfpoError when questions fail again."""
        is_done = out.exists() and not any("error" in row for _, row in read_rows(out))
        if is_done:
            return
        answers = answer(questions, other["model"], images, out, endpoint=other["endpoint"], retry_failed=out.exists())
        failed = sum("error" in line for line in answers)
        if failed:
            raise MfpoError(f"{other['name']}: {failed} questions failed at the endpoint; run again to ask them again")

    def _objhal(self, answers: Path) -> dict[str, Array]:
        questions = Path(str(self.settings.objhal_questions))
        truth = Path(str(self.settings.objhal_truth))
        tallies = score("object-halbench", answers, truth, judge=self.judge, questions=questions).tallies
        # What no judge could read is in no tally.
        images = (image_key(str(row["image"])) for _, row in read_rows(questions))
        return counts_of({"chair_s": tallies["chair_s_refined"], "chair_i": tallies["chair_i"]}, images)

    def _amber(self, answers: Path) -> dict[str, Array]:
        tallies = score("amber", answers, Path(str(self.settings.amber))).tallies
        counts = counts_of({name: tallies[f"generative.{key}"] for name, key in _AMBER.items()})
        clean, all_of = counts["amber_hal"].T
        return counts | {"amber_hal": np.stack([all_of - clean, all_of], axis=1)}  # the tally counts what is right

    def _mmhal(self, answers: Path) -> dict[str, Array]:
        tallies = score("mmhal", answers, Path(str(self.settings.mmhal)), judge=self.judge).tallies
        overall = {"mmhal_score": tallies["score"], "mmhal_rate": tallies["hallucination_rate"]}
        return counts_of(overall | {f"mmhal_{kind}": tallies[f"{kind}.score"] for kind in TYPES})

    def _llava_bench(self, answers: Path) -> dict[str, Array]:
        folder = Path(str(self.settings.llava_bench))
        tallies = score("llava-bench", answers, folder, judge=self.judge).tallies
        questions = load_llava_bench(folder).questions
        counts: dict[str, Array] = {}
        for kind, name in _LLAVA_BENCH.items():
            # What the judge's words could not be read of is in no tally.
            asked = [number for number, question in questions.items() if question.category == kind]
            counts |= counts_of({name: tallies.get(kind, Tally({}))}, asked)
        return counts


def _contents(other: Mapping[str, str]) -> list[tuple[str, Any]]:
    return [("content", content(other["answers"]))] if "answers" in other else []


@cache
def content(name: str) -> str | None:
    """A hash of the file or folder `name`; None for a dataset of the hub, which its name stands for."""
    path = Path(name)
    if not path.exists():
        return None
    return fingerprint(path, "**/*") if path.is_dir() else fingerprint(path.parent, escape(path.name))


_AMBER = {"amber_chair": "chair", "cover": "cover", "amber_hal": "hal", "amber_cog": "cog"}
_LLAVA_BENCH = {
    "conv": "llava_bench_conversation",
    "detail": "llava_bench_captioning",
    "complex": "llava_bench_reasoning",
}


def _columns(s: RealSettings) -> dict[str, str]:
    """The columns of the tables: those of the benchmarks that are named."""
    columns = {"chair_s": "CHAIR_s", "chair_i": "CHAIR_i"} if s.objhal_questions else {}
    columns |= (
        {"amber_chair": "AMBER CHAIR", "cover": "Cover", "amber_hal": "Hal", "amber_cog": "Cog"} if s.amber else {}
    )
    columns |= {"mmhal_score": "MMHal score", "mmhal_rate": "MMHal rate"} if s.mmhal else {}
    columns |= {name: f"LLaVA-Bench {name.split('_')[-1]}" for name in _LLAVA_BENCH.values()} if s.llava_bench else {}
    return columns | {name: title for name, title in FIGURES.items() if name.startswith("image_dependence")}
