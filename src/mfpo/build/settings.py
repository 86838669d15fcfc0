"""The settings of `mfpo build`: of keywords, of regions, of the noise."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal

from mfpo.build.corruptions import CORRUPTIONS
from mfpo.errors import SettingError
from mfpo.settings import ChosenSettings, Settings, setting

Schedule = Literal["sigmoid", "linear", "cosine"]

STEPS = 1000
# spaCy's own English pipelines, the most accurate first.
_PIPELINES = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")


@dataclass(frozen=True, kw_only=True)
class KeywordSettings(Settings):
    """The graph's free parameters. The paper gives none of their values.

    `phi`, `decay` and `secondary` are set so that the best keyword is usually an object visible in the image
    (figures: docs/keywords.md).
    """

    top_k: int = setting(3, "keywords of an answer to look for in the image (K)", least=1)
    tagger: str = setting("textblob", "finds the nouns: textblob, a spaCy pipeline, or auto for the best installed")
    phi: float = setting(0.25, "how fast two phrases' link weakens with distance in words (phi)", least=0)
    vectors: str | None = setting(None, "vectors for gamma: model=MODEL, sentence=SENTENCE_TRANSFORMER, or null")
    gamma: float = setting(0.1, "weight of meaning relative to proximity; no effect without vectors (gamma)", least=0)
    alpha: float = setting(
        1.1, "how much the first phrase of a topic gains from the topic's other phrases (alpha)", least=0
    )
    decay: float = setting(0.05, "how fast phrases lose weight, per word before their first mention (lambda)", least=0)
    secondary: float = setting(
        0.1, "weight of places, clothes, kinds (street, shirt, animal) relative to things; paper: 1", least=0
    )
    damping: float = setting(0.85, "share of a score that comes from the neighbours in the graph (a)", least=0, below=1)

    def faults(self) -> list[str]:
        try:
            resolve_tagger(self.tagger)
        except SettingError as error:
            return [*super().faults(), str(error)]
        return super().faults()


@dataclass(frozen=True, kw_only=True)
class RegionSettings(Settings):
    """Size and confidence limits of a region."""

    # Less than a patch hardly reaches the vision tower; nearly all would be global noise under another name.
    smallest_region: float = setting(
        1 / 576, "minimum share of the image for a region; default: one LLaVA patch", least=0, most=1
    )
    largest_region: float = setting(0.8, "maximum share of the image for a region", least=0, most=1)
    box_threshold: float | None = setting(
        None,
        "minimum score of a box; null: 0.3 for Grounding DINO, 0.1 for OWLv2, 0.5 for SAM 3",
        least=0,
        most=1,
    )
    text_threshold: float = setting(
        0.25, "minimum score for a Grounding DINO box to belong to a keyword", least=0, most=1
    )
    mask_threshold: float = setting(0.5, "minimum probability for a pixel to belong to a model's mask", least=0, most=1)
    region_batch: int = setting(8, "images, or pairs of image and keyword, per forward pass of the segmenter", least=1)

    def faults(self) -> list[str]:
        smallest, largest = self.smallest_region, self.largest_region
        wrong = [f"smallest_region {smallest} is above largest_region {largest}"] if smallest > largest else []
        return [*super().faults(), *wrong]


@dataclass(frozen=True, kw_only=True)
class BuildSettings(KeywordSettings, RegionSettings, ChosenSettings):
    """Settings of `build`: the general ones below, and the corruption's own."""

    choice = "corruption"
    known = CORRUPTIONS

    differing: bool = setting(False, "use only keywords that the rejected answer does not name, if there are any")
    corruption: str = setting("region", "how the rejected image is made: region (paper), global, random, crop, ...")
    schedule: Schedule = setting("sigmoid", "noise schedule: sigmoid (VCD's), linear (DDPM's) or cosine")
    noise_step: int = setting(
        500, "diffusion step of the noise; 500 of 1000 is the paper's best (Figure 8)", least=0, most=STEPS - 1
    )
    mask_dilate: int = setting(0, "pixels by which regions are dilated on each side before corruption", least=0)
    image_format: Literal["webp", "png"] = setting("webp", "lossless format of rejected images")
    seed: int = setting(0, "seed of the noise, combined with each record's id", least=0)
    shard_size: int = setting(256, "source rows per shard; a killed run resumes after its last complete shard", least=1)

    @classmethod
    def brought(cls, name: str) -> tuple[tuple[Callable[..., Any], ...], tuple[str, ...]]:
        """The function of a corruption."""
        return (CORRUPTIONS[name].function,), ()

    def faults(self) -> list[str]:
        faults = super().faults()
        if self.seed >= 2**63:  # as many as a column of the dataset holds
            faults.append(f"seed is {self.seed}, but must be below 2^63")
        return faults

    @property
    def needs_regions(self) -> bool:
        return CORRUPTIONS[self.corruption].needs_regions


@dataclass(frozen=True, kw_only=True)
class CommandSettings(BuildSettings):
    """KEY=VALUE settings of `mfpo build`: those of the build, and those of `open_source`."""

    split: str | None = setting(None, "split of the source to read, if it has several; null: train")
    subset: str | None = setting(None, "subset (configuration) of the source to read, if it has several")


def resolve_tagger(name: str) -> str:
    """The tagger that the setting `tagger` means here: `textblob`, or the name of an installed spaCy pipeline.

    `auto` is the best installed English pipeline, else TextBlob. Raises SettingError if the pipeline is not installed.
    """
    if name == "textblob":
        return name
    installed = {entry.name for entry in entry_points(group="spacy_models")}
    if name == "auto":
        ranked = [pipeline for pipeline in _PIPELINES if pipeline in installed]
        return next(iter([*ranked, *sorted(n for n in installed if n.startswith("en_"))]), "textblob")
    if name not in installed:
        there = ", ".join(["auto", "textblob", *sorted(installed)])
        raise SettingError(
            f"tagger is {name!r}, which is not installed (available: {there}); for a spaCy pipeline run "
            "`pip install 'mfpo[spacy]'` and `python -m spacy download en_core_web_sm`"
        )
    return name
