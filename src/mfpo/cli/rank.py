"""The command `mfpo rank`."""

from mfpo.cli.console import Config, Data, Model, Out, Overrides, console
from mfpo.folders import check_new, check_shards
from mfpo.picturebook import model_folder
from mfpo.rank.settings import RankSettings
from mfpo.settings import read_settings


def rank(data: Data, model: Model, out: Out, config: Config = None, overrides: Overrides = None) -> None:
    """Rank records from easy to hard by the model's entropy (paper, 3.3).

    Example: mfpo rank data/photos --model llava-hf/llava-1.5-7b-hf --out data/ranked
    """
    settings = read_settings(RankSettings, config, overrides or [])
    check_shards(data)
    check_new(out)
    folder = model_folder(model)
    from mfpo.rank.run import rank_into  # seconds of imports: a mistake is told before them

    summary = rank_into(data, folder, out, settings)
    for level, figures in summary["levels"].items():
        console.print(f"{level}: {figures['records']} records, mean entropy {figures['mean_entropy']:.2f} nats")
