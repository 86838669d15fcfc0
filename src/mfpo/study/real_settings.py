"""The settings of the study's large scale: a model, data and benchmarks, from a YAML file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpo.errors import SettingError, brief
from mfpo.picturebook import model_folder
from mfpo.settings import Settings, read_settings, setting
from mfpo.train.settings import TrainSettings

# What the study's files of answers are called.
BENCHMARKS = ("objhal", "amber", "mmhal", "llava_bench")

# How `others` says where the answers of a model come from.
_WAYS = ({"answers"}, {"model"}, {"endpoint", "model"})

# Settings of trainings that rows of the tables differ in, or that have a line of their own.
_DECIDED = frozenset(
    {"method", "seed", "learning_rate", "keep_stages", "curriculum", "beta", "eta"}
    | {f"{term}_weight" for term in ("text", "image", "margin")}
)


@dataclass(frozen=True, kw_only=True)
class RealSettings(Settings):
    """Settings read by `mfpo reproduce --scale paper --config FILE`."""

    model: str = setting("llava-hf/llava-1.5-7b-hf", "folder or Hub name of the base model")
    stands_for: str = setting("LLaVA-v1.5-7B", "row of Table 1 for the base model; its + MFPO row is for MFPO")
    others: dict[str, Any] | None = setting(None, "models of Tables 1 and 2 that are not trained here, by row")
    source: str = setting("openbmb/RLHF-V-Dataset", "preference data of corrected answers, as for `mfpo build`")
    ranked_source: str | None = setting(
        None, "preference data of ranked answers, such as VLFeedback, for Tables 3 and 9"
    )
    human_source: str | None = setting(None, "preference data of answers that people compared, such as LLaVA-RLHF's")
    images: str | None = setting(None, "folder that the sources' image paths are relative to")
    regions: str = setting("grounded-sam", "segmenter, as for `mfpo build --regions`")
    instances: str | None = setting(None, "COCO instances JSON of the source's images, for `keywords` and `regions`")
    checked_regions: str | None = setting(None, "segmenters to check, separated by spaces; null: the one of regions")
    held_out: int = setting(100, "number of last rows of the source held out for measuring", least=1)
    learning_rate: float = setting(
        5e-6, "learning rate of every method, as in published LoRA trainings on RLHF-V's data", above=0
    )
    train: str = setting("lora_rank=128", "other settings of `mfpo train`, as KEY=VALUE, separated by spaces")
    batch_size: int = setting(32, "questions per batch", least=1)
    objhal_questions: str | None = setting(None, "Object HalBench's questions")
    objhal_images: str | None = setting(None, "folder of its images")
    objhal_truth: str | None = setting(None, "CHAIR's ground truth for them, from `mfpo eval truth`")
    amber: str | None = setting(None, "AMBER's data folder")
    amber_images: str | None = setting(None, "folder of its images")
    mmhal: str | None = setting(None, "MMHal-Bench's template file; needs a judge")
    mmhal_images: str | None = setting(None, "folder of its images")
    llava_bench: str | None = setting(None, "LLaVA-Bench's (COCO) folder, for Table 3; needs a judge")
    llava_bench_images: str | None = setting(None, "folder of its images")
    judge: str | None = setting(None, "judge model; without one, Object HalBench uses rules")
    judge_endpoint: str | None = setting(None, "endpoint of the judge")

    def faults(self) -> list[str]:
        faults = []
        if not (self.objhal_questions or self.amber or self.mmhal or self.llava_bench):
            faults.append("no benchmark is named; give objhal_questions, amber, mmhal or llava_bench")
        for name in ("objhal_questions", "amber", "mmhal", "llava_bench"):
            images = f"{name.removesuffix('_questions')}_images"
            if getattr(self, name) and not getattr(self, images):
                faults.append(f"{name} needs the folder of its images; give {images} too")
        if self.objhal_questions and not self.objhal_truth:
            faults.append("objhal_questions needs CHAIR's truth; give objhal_truth, as `mfpo eval truth` writes it")
        faults += [
            f"{name} needs a judge; give judge too"
            for name in ("mmhal", "llava_bench")
            if getattr(self, name) and not self.judge
        ]
        faults += [fault for name, other in (self.others or {}).items() if (fault := _fault_of_other(name, other))]
        decided = _DECIDED & {word.partition("=")[0] for word in self.train.split()}
        if decided:
            faults.append(f"train sets {', '.join(sorted(decided))}, which the experiments decide; leave it out")
        if not faults:
            from mfpo.train.objectives import OBJECTIVES  # seconds of imports: a mistake is told before them

            for method in OBJECTIVES:
                read_settings(TrainSettings, None, self.train.split(), method=method, learning_rate=self.learning_rate)
        return faults


def _fault_of_other(name: str, other: Any) -> str | None:
    """What is wrong with an entry of `others`."""
    if isinstance(other, Mapping) and set(other) in _WAYS and all(isinstance(value, str) for value in other.values()):
        return None
    return f"others has {name}: {brief(other)}, but must give answers, or model, or endpoint and model"


def check_paths(settings: RealSettings) -> None:
    """Raises MfpoError for a model, file or folder that is not there, or no truth, before hours are spent on others."""
    model_folder(settings.model)
    for name, other in (settings.others or {}).items():
        if set(other) == {"model"}:
            model_folder(other["model"])
        if "answers" in other and not any(
            (Path(other["answers"]) / f"{benchmark}.jsonl").exists() for benchmark in BENCHMARKS
        ):
            files = ", ".join(f"{benchmark}.jsonl" for benchmark in BENCHMARKS)
            raise SettingError(
                f"others has {name}: {other['answers']} has none of {files}, as `mfpo answer` writes them"
            )
    benchmarks = ("objhal_questions", "objhal_truth", "amber", "mmhal", "llava_bench")
    for name in (
        "images",
        "instances",
        *benchmarks,
        *(f"{benchmark}_images" for benchmark in BENCHMARKS),
    ):
        path = getattr(settings, name)
        if path and not Path(path).exists():
            raise SettingError(f"{name} is {path}, which does not exist; give an existing file or folder")
    if settings.objhal_truth:
        from mfpo.truth import load_annotations  # a mistake above is told before it is imported

        load_annotations(Path(settings.objhal_truth))
