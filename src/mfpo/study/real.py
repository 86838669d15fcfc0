"""The study's large scale: a real model, preference data and benchmarks, as a YAML file names them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mfpo.answer.generate import answer
from mfpo.errors import SettingError
from mfpo.evaluate.amber import amber_file
from mfpo.evaluate.benchmark import score
from mfpo.evaluate.figures import Tally
from mfpo.evaluate.llava_bench import load_llava_bench
from mfpo.evaluate.mmhal import TYPES
from mfpo.evaluate.settings import JudgeSettings
from mfpo.evaluate.truth import load_annotations
from mfpo.files import read_rows
from mfpo.folders import fingerprint
from mfpo.image_names import image_key
from mfpo.models import model_files
from mfpo.picturebook import model_folder
from mfpo.settings import read_settings, setting
from mfpo.sources import Source, open_source
from mfpo.study.counts import counts_of, pair_figures
from mfpo.study.pairs import ranked_pairs
from mfpo.study.statistics import Array
from mfpo.study.study import NotOnScale
from mfpo.study.trials import Data, Trial
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.settings import TrainSettings

# Settings of trainings that rows of the tables differ in, or that have a line of their own.
_DECIDED = frozenset(
    {"method", "seed", "learning_rate", "keep_stages", "curriculum", "beta", "eta"}
    | {f"{term}_weight" for term in ("text", "image", "margin")}
)


@dataclass(frozen=True, kw_only=True)
class RealSettings:
    """What `mfpo reproduce --scale paper --config FILE` reads. Raises SettingError when no benchmark is named."""

    model: str = setting("llava-hf/llava-1.5-7b-hf", "folder or hub name of the base model")
    source: str = setting("openbmb/RLHF-V-Dataset", "preference data of corrected answers, as for `mfpo build`")
    ranked_source: str | None = setting(None, "preference data of ranked answers, such as VLFeedback, for Table 9")
    images: str | None = setting(None, "folder that image paths of the sources start from")
    regions: str = setting("grounded-sam", "segmenter, as for `mfpo build --regions`")
    held_out: int = setting(100, "last rows of the source, which are not trained on but measured on")
    learning_rate: float = setting(5e-6, "of every method, as peers train LoRA on RLHF-V's data")
    train: str = setting("lora_rank=128", "other settings of `mfpo train`, as KEY=VALUE, apart by blanks")
    batch_size: int = setting(32, "questions at a time")
    objhal_questions: str | None = setting(None, "Object HalBench's questions")
    objhal_images: str | None = setting(None, "folder of its images")
    objhal_truth: str | None = setting(None, "CHAIR's truth on them, from `mfpo eval truth`")
    amber: str | None = setting(None, "AMBER's data folder")
    amber_images: str | None = setting(None, "folder of its images")
    mmhal: str | None = setting(None, "MMHal-Bench's template file; needs a judge")
    mmhal_images: str | None = setting(None, "folder of its images")
    llava_bench: str | None = setting(None, "LLaVA-Bench's (COCO) folder, for Table 3; needs a judge")
    llava_bench_images: str | None = setting(None, "folder of its images")
    judge: str | None = setting(None, "model that judges; Object HalBench goes by rules without one")
    judge_endpoint: str | None = setting(None, "endpoint of the judge")

    def __post_init__(self) -> None:
        if not (self.objhal_questions or self.amber or self.mmhal or self.llava_bench):
            raise SettingError("no benchmark is named; give objhal_questions, amber, mmhal or llava_bench")
        for name in ("objhal_questions", "amber", "mmhal", "llava_bench"):
            images = f"{name.removesuffix('_questions')}_images"
            if getattr(self, name) and not getattr(self, images):
                raise SettingError(f"{name} needs the folder of its images; give {images} too")
        if self.objhal_questions and not self.objhal_truth:
            raise SettingError(
                "objhal_questions needs CHAIR's truth; give objhal_truth, as `mfpo eval truth` writes it"
            )
        for name in ("mmhal", "llava_bench"):
            if getattr(self, name) and not self.judge:
                raise SettingError(f"{name} needs a judge; give judge too")
        decided = _DECIDED & {one.partition("=")[0] for one in self.train.split()}
        if decided:
            raise SettingError(f"train says {', '.join(sorted(decided))}, which the experiments decide; leave it out")
        for name in ("held_out", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}, but must be 1 or more")
        for method in OBJECTIVES:
            read_settings(TrainSettings, None, self.train.split(), method=method, learning_rate=self.learning_rate)


class RealScale:
    """Data and scores of a real model, kept in `folder`."""

    def __init__(self, folder: Path, settings: RealSettings) -> None:
        self.folder, self.settings = folder, settings
        _check_paths(settings)
        self.pairs = self._trained_rows(settings.source)
        self.has_ranked = settings.ranked_source is not None
        if settings.ranked_source:
            self._trained_rows(settings.ranked_source)  # a mistake in it is told now, and not at Table 9
        self.base = model_folder(settings.model)
        self.figures: Mapping[str, str] = _columns(settings)
        self.scored_on = "the benchmarks"
        self.question_types: Mapping[str, str] = {f"mmhal_{kind}": kind for kind in TYPES} if settings.mmhal else {}
        named = ("source", "ranked_source", "images", "regions", "held_out")
        masks = [name for name in settings.regions.partition("=")[2].split(",") if Path(name).exists()]
        self.built_on = {
            "base": model_files(self.base),
            **{name: getattr(settings, name) for name in named},
            "contents": [content(name) for name in (settings.source, settings.ranked_source, *masks) if name],
        }
        self.trained_on: Mapping[str, Any] = {**self.built_on, "train": settings.train}
        asked = (settings.objhal_questions, settings.objhal_truth, settings.amber, settings.mmhal, settings.llava_bench)
        benchmarks = {"benchmarks": [content(name) for name in asked if name]}
        self.context: Mapping[str, Any] = {**self.trained_on, **asdict(settings), **benchmarks}
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

    def _rows(self, data: Data, *, held_out: bool) -> "Rows":
        name = self.settings.source if data.source == "corrected" else self.settings.ranked_source
        if name is None:
            raise NotOnScale("ranked_source is not given; name the preference data of ranked answers")
        end = self._trained_rows(name)
        if held_out:
            return Rows(self._open(name), end, end + self.settings.held_out)
        return Rows(self._open(name), 0, min(end, data.pairs or end))

    def score(self, model: Path, trial: Trial, seed: int) -> dict[str, Array]:
        """The counts of each figure, question by question."""
        s = self.settings
        # First, as a segmenter that is not there should be told before hours of answers.
        pairs = self.scored_pairs(seed) if trial.decode == "greedy" else None

        def answers(name: str, questions: Path, images: str | None) -> Path:
            # What is not trained answers alike with every seed.
            key = trial.key(self.trained_on, content(str(questions)), images, seed if trial.method else None)
            out = self.folder / "answers" / f"{name}-{key}.jsonl"
            if not out.exists():
                out.parent.mkdir(parents=True, exist_ok=True)
                answer(questions, model, Path(str(images)), out, strategy=trial.decode, batch_size=s.batch_size)
            return out

        counts: dict[str, Array] = {}
        if s.objhal_questions:
            questions = Path(s.objhal_questions)
            counts |= self._objhal(answers("objhal", questions, s.objhal_images), questions)
        if s.amber:
            queries = amber_file(Path(s.amber), "query_generative.json")
            counts |= self._amber(answers("amber", queries, s.amber_images), Path(s.amber))
        if s.mmhal:
            counts |= self._mmhal(answers("mmhal", Path(s.mmhal), s.mmhal_images), Path(s.mmhal))
        if s.llava_bench:
            folder = Path(s.llava_bench)
            asked = answers("llava_bench", folder / "qa90_questions.jsonl", s.llava_bench_images)
            counts |= self._llava_bench(asked, folder)
        return counts | (pair_figures(model, pairs) if pairs else {})

    def _objhal(self, answers: Path, questions: Path) -> dict[str, Array]:
        truth = Path(str(self.settings.objhal_truth))
        tallies = score("object-halbench", answers, truth, judge=self.judge, questions=questions).tallies
        # What no judge could read is in no tally.
        images = (image_key(str(row["image"])) for _, row in read_rows(questions))
        return counts_of({"chair_s": tallies["chair_s_refined"], "chair_i": tallies["chair_i"]}, images)

    def _amber(self, answers: Path, folder: Path) -> dict[str, Array]:
        tallies = score("amber", answers, folder).tallies
        counts = counts_of({name: tallies[f"generative.{key}"] for name, key in _AMBER.items()})
        clean, all_of = counts["amber_hal"].T
        return counts | {"amber_hal": np.stack([all_of - clean, all_of], axis=1)}  # the tally counts what is right

    def _mmhal(self, answers: Path, template: Path) -> dict[str, Array]:
        tallies = score("mmhal", answers, template, judge=self.judge).tallies
        kept = {"mmhal_score": tallies["score"], "mmhal_rate": tallies["hallucination_rate"]}
        return counts_of(kept | {f"mmhal_{kind}": tallies[f"{kind}.score"] for kind in TYPES})

    def _llava_bench(self, answers: Path, folder: Path) -> dict[str, Array]:
        tallies = score("llava-bench", answers, folder, judge=self.judge).tallies
        questions = load_llava_bench(folder).questions
        counts: dict[str, Array] = {}
        for kind, name in _LLAVA_BENCH.items():
            # What the judge's words could not be read of is in no tally.
            asked = [number for number, question in questions.items() if question.category == kind]
            counts |= counts_of({name: tallies.get(kind, Tally({}))}, asked)
        return counts


def _check_paths(s: RealSettings) -> None:
    """Raises MfpoError for a file or folder that is not there or no truth, before hours are spent on the others."""
    benchmarks = ("objhal_questions", "objhal_truth", "amber", "mmhal", "llava_bench")
    for name in ("images", *benchmarks, *(f"{one}_images" for one in ("objhal", "amber", "mmhal", "llava_bench"))):
        path = getattr(s, name)
        if path and not Path(path).exists():
            raise SettingError(f"{name} is {path}, and nothing is there; give an existing file or folder")
    if s.objhal_truth:
        load_annotations(Path(s.objhal_truth))


@cache
def content(name: str) -> str | None:
    """A hash of the file or folder `name`; None for a dataset of the hub, which its name stands for."""
    path = Path(name)
    if not path.exists():
        return None
    return fingerprint(path, "**/*") if path.is_dir() else fingerprint(path.parent, escape(path.name))


class Rows:
    """The rows `start` to `stop` of a source."""

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self.source, self.start, self.stop = source, start, stop
        self.name = source.name

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return islice(iter(self.source), self.start, self.stop)

    def id(self, row: dict[str, Any], number: int) -> str:
        return self.source.id(row, self.start + number)

    def record(self, row: dict[str, Any], number: int) -> Any:
        return self.source.record(row, self.start + number)


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
    return columns | {"image_dependence": "image dependence"}
