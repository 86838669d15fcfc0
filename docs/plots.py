"""Make docs/reproduce/html, the study's pages with plots, from the kept scores: `make docs` does it before the site.

The pages themselves are in the repository, as `mfpo reproduce` writes them; each says with which command it was made.
"""

import re
import shlex
import tempfile
from pathlib import Path
from zipfile import ZipFile

from rich.console import Console

from mfpo.errors import MfpoError
from mfpo.study.experiments import load_experiments
from mfpo.study.picturebook import PictureBookScale
from mfpo.study.render import facts_of, write_html
from mfpo.study.study import Study, describe
from mfpo.study.trials import Trial

PAGES = Path(__file__).parent / "reproduce"


class Kept(Study):
    """A study that trains nothing."""

    def run(self, trial: Trial, seed: int) -> Path:
        raise MfpoError(f"seed {seed} of {describe(trial)} is not kept; run the page's command")

    model = run


def main() -> None:
    experiments, console = load_experiments(), Console()
    with tempfile.TemporaryDirectory() as out:
        with ZipFile(PAGES / "scores.zip") as kept:
            kept.extractall(out)
        scale = PictureBookScale(Path(out) / "picturebook")
        with_plots = ("figure*", "data-size", "image-loss", "look*", "rounds")
        for page in sorted(path for name in with_plots for path in PAGES.glob(f"{name}.md")):
            command = re.findall(r"^mfpo reproduce .*", page.read_text(encoding="utf-8"), re.MULTILINE)[0]
            words = shlex.split(command)
            study = Kept(Path(out), scale, range(int(words[words.index("--seeds") + 1])), console)
            try:
                result = experiments[page.stem](study)
            except MfpoError as error:
                console.print(f"{page.stem} has no plots: {error}")
                continue
            write_html(result, PAGES / "html" / f"{page.stem}.html", command, facts_of(study))


if __name__ == "__main__":
    main()
