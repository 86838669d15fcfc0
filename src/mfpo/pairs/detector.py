"""Claims by an open-vocabulary detector: it looks for each thing that an answer names."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from mfpo.errors import RecordError, SettingError
from mfpo.hub import check_kind, find_model
from mfpo.pairs.check import FALSE, TRUE, UNKNOWN, Claim, Shown, Tools, checker
from mfpo.settings import about

DEFAULT = "IDEA-Research/grounding-dino-base"
# What `load_detector` takes.
_KINDS = ("grounding-dino", "owlv2")


@checker("detector")
class DetectorCheck:
    """Grounding DINO or OWLv2. A thing is there above one score, absent below another, and unknown between them.

    Raises SettingError when the scores are the wrong way round, and MfpoError when the model cannot be loaded.
    """

    def __init__(
        self,
        where: str,
        tools: Tools,
        *,
        there: Annotated[float, about("score from which a thing counts as present", least=0, most=1)] = 0.35,
        absent: Annotated[float, about("score below which it counts as absent", least=0, most=1)] = 0.2,
    ) -> None:
        if absent > there:
            raise SettingError(f"absent {absent} is above there {there}")
        # torch takes seconds: what can be told without it is told before.
        check_kind(find_model(where or DEFAULT), _KINDS)
        from mfpo.build.regions.detectors import load_detector
        from mfpo.build.settings import RegionSettings

        self._detect = load_detector(where or DEFAULT, RegionSettings(box_threshold=0.0, text_threshold=0.0))
        self._there, self._absent = there, absent
        self.provenance: Any = {"detector": self._detect.provenance, "there": there, "absent": absent}

    def __call__(self, answers: Sequence[Shown]) -> list[tuple[Claim, ...] | RecordError]:
        """The things that each answer names; each is looked for once in an image. A RecordError for one too narrow."""
        from mfpo.pairs.things import named_things

        things = [named_things(answer.text) for answer in answers]
        asked = {answer.asked.id: answer.asked for answer in answers}
        names: dict[str, list[str]] = {id: [] for id in asked}
        for answer, named in zip(answers, things, strict=True):
            names[answer.asked.id] += [name for _, _, name in named]
        scores = {id: self._scores(asked[id], list(dict.fromkeys(some))) for id, some in names.items()}
        return [self._claims(named, scores[answer.asked.id]) for answer, named in zip(answers, things, strict=True)]

    def _claims(
        self, named: Sequence[tuple[int, int, str]], scores: Mapping[str, float] | RecordError
    ) -> tuple[Claim, ...] | RecordError:
        if isinstance(scores, RecordError):
            return scores
        return tuple(Claim(start, end, name, self._verdict(scores[name])) for start, end, name in named)

    def _scores(self, asked: Any, names: Sequence[str]) -> Mapping[str, float] | RecordError:
        """The best score of each thing in the image of a question, or why it cannot be searched."""
        import numpy as np

        from mfpo.build.regions import Search
        from mfpo.build.regions.vision import inference, too_narrow
        from mfpo.images import decode_image
        from mfpo.records import Keyword

        if not names:
            return {}
        pixels = np.asarray(decode_image(asked.image))
        keywords = [Keyword(text=name, score=1.0) for name in names]
        record: Any = None  # which a detector does not look at
        search = Search(record, 0, pixels, keywords)
        if fault := too_narrow(search):
            return fault
        with inference():
            (detections,) = self._detect([search])
        return {
            name: float(boxes.scores.max()) if len(boxes.scores) else 0.0
            for name, boxes in zip(names, detections, strict=True)
        }

    def _verdict(self, score: float) -> str:
        return TRUE if score >= self._there else FALSE if score < self._absent else UNKNOWN
