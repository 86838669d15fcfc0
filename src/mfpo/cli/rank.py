"""The command `mfpo rank`."""

from mfpo.cli.console import Data, Model, Out, Overrides, console
from mfpo.settings import read_settings


def rank(data: Data, model: Model, out: Out, overrides: Overrides = None) -> None:
    """Rank records from easy to hard by the model's entropy (paper, 3.3).

    Example: mfpo rank data/photos --model llava-hf/llava-1.5-7b-hf --out data/ranked
    """
    from mfpo.picturebook.model import model_folder
    from mfpo.rank.levels import RankSettings
    from mfpo.rank.levels import rank as run

    summary = run(data, model_folder(model), out, read_settings(RankSettings, None, overrides or []))
    for level, figures in summary["levels"].items():
        console.print(f"{level}: {figures['records']} records, mean entropy {figures['mean_entropy']:.2f} nats")
