"""A stage's checkpoints and lines of metrics, from which a killed run resumes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpo.folders import write_text


@dataclass(frozen=True)
class StageLog:
    """Appends the metrics of one stage to `metrics.jsonl`, which counts steps over all stages."""

    path: Path
    stage: str
    first_step: int

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Append a line: the metrics at `step` of this stage."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": self.first_step + step, **metrics}) + "\n")

    def forget_after(self, step: int) -> None:
        """Remove what a killed run wrote after its checkpoint at `step` of this stage, 0 if there is none."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        write_text(self.path, "".join(line for line in whole if self._is_before(json.loads(line), step)))

    def _is_before(self, line: dict[str, Any], step: int) -> bool:
        """Whether it is of the checkpoint at `step`, or earlier; `eval_on_start` writes a line of its step 0."""
        return line["step"] <= self.first_step + step and (step > 0 or line["stage"] != self.stage)


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest checkpoint that was written to its end, and its step; None and 0 where there is none."""
    steps = [
        int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*/trainer_state.json")
    ]
    for step in sorted(steps, reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        try:  # written last, and not in one go: a kill may have cut it
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            continue
        return checkpoint, step
    return None, 0
