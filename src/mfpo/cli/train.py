"""The commands `mfpo train` and `mfpo merge`."""

from pathlib import Path
from typing import Annotated

import typer

from mfpo.cli.console import Config, Data, Model, Out, Overrides, console
from mfpo.errors import MfpoError
from mfpo.folders import check_new, check_shards
from mfpo.picturebook import model_folder
from mfpo.settings import read_settings
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.settings import TrainSettings

_OTHERS = [name for name in OBJECTIVES if name != "mfpo"]


def train(
    data: Data,
    model: Model,
    out: Out,
    method: Annotated[str | None, typer.Option(help=f"mfpo (the default), {', '.join(_OTHERS)}, or your own.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, its memory and the first batch; then stop.")
    ] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Train on preferences (paper, 3.2 and 3.3). `mfpo settings train` lists every KEY=VALUE.

    Example: mfpo train data/ranked --model llava-hf/llava-1.5-7b-hf --out runs/mfpo lora_rank=128
    """
    settings = read_settings(TrainSettings, config, overrides or [], method=method)
    for folder in (data, *([Path(settings.eval)] if settings.eval else [])):
        check_shards(folder)
    base = model_folder(model)
    if not dry_run:
        check_new(out)
    from mfpo.train.processes import processes  # seconds of imports: a mistake is told before them
    from mfpo.train.run import run

    if dry_run:
        from mfpo.cli.dry_run import show
        from mfpo.train.dry_run import dry_run as look_ahead

        preview = look_ahead(data, base, out, settings)
        if processes().is_main_process:
            show(preview)
        return
    run(data, base, out, settings)
    if processes().is_main_process:
        console.print(f"{out / 'model'} is trained; see it with `mfpo report {out}`")


def merge(
    run: Annotated[
        Path, typer.Argument(help="Folder written by `mfpo train` with lora_rank above 0, or an adapter's.")
    ],
    out: Out,
) -> None:
    """Merge a run's adapter, or any other, into its base model.

    Example: mfpo merge runs/mfpo --out models/llava-mfpo
    """
    adapter = run if (run / "adapter_config.json").exists() else run / "model"
    if not adapter.exists():
        raise MfpoError(f"{run}: holds neither an adapter nor a run of `mfpo train`; give the folder of one")
    if not (adapter / "adapter_config.json").exists():
        raise MfpoError(f"{adapter}: holds no adapter to merge; lora_rank=0 trains the model itself")
    check_new(out)
    import torch  # seconds of imports: a mistake is told before them

    from mfpo.folders import whole_folder
    from mfpo.models import in_precision, load_model, quiet, stored_dtype
    from mfpo.processors import load_processor

    # Added up in float32 and rounded once, to the precision of the base.
    model = in_precision(load_model(adapter, dtype=torch.float32), stored_dtype(adapter))
    with quiet(), whole_folder(out, {"command": "merge", "run": run}) as folder:
        model.save_pretrained(folder)
        load_processor(adapter).save_pretrained(folder)
    console.print(f"{out} holds the merged model")
