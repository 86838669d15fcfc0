"""The command `mfpo build`: nothing but parsing, calls and what is said at the end."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mfpo.build.settings import CommandSettings
from mfpo.cli.console import ROWS_SET_ASIDE, Config, Overrides, console, counted
from mfpo.errors import MfpoError, SettingError, brief
from mfpo.folders import check_readable
from mfpo.hub import is_hub_name
from mfpo.settings import read_settings


def build(
    source: Annotated[
        str, typer.Argument(help="Parquet, JSONL or JSON file, folder of them, name on the hub, or `picturebook:N`.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write (a picture with --preview).")] = None,
    format: Annotated[str | None, typer.Option(help="As in docs/sources.md; found out otherwise.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    regions: Annotated[
        str, typer.Option(help="dataset, coco=FILE, grounded-sam, sam3, clipseg or lisa=MODEL; docs/regions.md.")
    ] = "dataset",
    corruption: Annotated[str | None, typer.Option(help="region, global, random, crop, blur or black.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keywords a record.")] = None,
    noise_step: Annotated[int | None, typer.Option(help="Diffusion step of the noise, 0 to 999.")] = None,
    schedule: Annotated[str | None, typer.Option(help="sigmoid, linear or cosine.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise (and of the picture book's scenes).")] = None,
    workers: Annotated[int, typer.Option(help="Threads, or actors that search regions with --engine ray.")] = 1,
    engine: Annotated[str, typer.Option(help="local or ray (a cluster that RAY_ADDRESS names).")] = "local",
    check_regions: Annotated[
        Path | None, typer.Option(help="COCO instances to judge the regions by; builds nothing.")
    ] = None,
    preview: Annotated[
        str | None, typer.Option(help="Id of a record to show at rising noise, in --out FILE.png; builds nothing.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Build image preferences (paper, 3.1): find what the chosen answer names in the image and destroy just that.

    Exit status 3 says that rows were set aside; the others are written.

    Example: mfpo build pairs.jsonl --images photos --regions coco=instances.json --out data/photos
    """
    given = {"corruption": corruption, "top_k": top_k, "noise_step": noise_step, "schedule": schedule, "seed": seed}
    chosen = read_settings(CommandSettings, config, overrides or [], **given)
    _check_paths(source, images, regions, check_regions)
    if out is None and not check_regions:
        raise SettingError("--out is missing; give the folder to write")
    from mfpo.build.pipeline import build as run  # seconds of imports: a mistake is told before them
    from mfpo.build.regions import open_segmenter
    from mfpo.sources import open_source

    if engine == "ray":  # whose workers may stand in other folders
        source = str(Path(source).resolve()) if Path(source).exists() else source
        out, images = out and out.resolve(), images and images.resolve()
    opened = _picturebook(source, chosen) or open_source(
        source, format=format, images=images, split=chosen.split, subset=chosen.subset
    )
    # Opened here even where a cluster's actors open their own, so that a mistake is found before the first row.
    segmenter = open_segmenter(regions, chosen) if chosen.needs_regions or check_regions else None
    if check_regions:
        _show_mapping(opened, segmenter, check_regions, chosen)
        return
    assert out is not None
    if preview is not None:
        _draw_preview(opened, preview, chosen, segmenter, out)
        return
    run_by = _engine(engine, workers)
    if engine == "ray" and segmenter is not None and regions.partition("=")[0] not in ("dataset", "coco"):
        from mfpo.build.ray_engine import OpenedByActor

        segmenter = OpenedByActor(regions, chosen)
    made_by: dict[str, Any] = {"command": "build", "source": source, "format": format, "images": images}
    made_by |= {"regions": regions, "state": _state(source) + _state_of(regions) + _state_of(chosen.vectors or "")}
    summary = run(
        opened,
        out,
        chosen,
        segmenter,
        engine=run_by,
        made_by=made_by,
        progress=lambda rows: counted(rows, "building"),
    )
    _report_build(out, summary)


def _check_paths(source: str, images: Path | None, regions: str, check_regions: Path | None) -> None:
    """Raises MfpoError when a file or folder that is named is not there."""
    if not (Path(source).exists() or is_hub_name(source) or source.startswith("picturebook:")):
        raise MfpoError(f"{source}: no such file; give an existing .jsonl, .json or .parquet file, or a folder of them")
    if images is not None and not images.is_dir():
        raise MfpoError(f"{images}: no such folder; give the image folder with --images")
    name, _, file = regions.partition("=")
    check_readable(Path(file) if name == "coco" and file else None)
    check_readable(check_regions)


def _picturebook(source: str, settings: Any) -> Any:
    """The source that `picturebook:N` names, or None for any other name."""
    name, colon, count = source.partition(":")
    if name != "picturebook" or not colon:
        return None
    if not count.isdecimal() or int(count) == 0:
        raise MfpoError(f"{source}: {brief(count)} is no number of records; write picturebook:600")
    if settings.split or settings.subset:
        raise SettingError("split and subset choose files of a dataset, and the picture book has none; leave them out")
    from mfpo.picturebook.source import PictureBookSource

    return PictureBookSource(int(count), seed=settings.seed)


def _engine(name: str, workers: int) -> Any:
    """The engine of `mfpo build` that is called `name`."""
    if name == "local":
        from mfpo.build.pipeline import Threads

        return Threads(workers)
    if name == "ray":
        from mfpo.build.ray_engine import RayData

        return RayData(workers)
    raise SettingError(f"no engine is named {brief(name)}; give --engine local or ray")


def _report_build(out: Path, summary: Any) -> None:
    """Say what was written and what was set aside; the latter ends the command with a status of its own."""
    console.print(f"{out}: {summary['written']} records, {summary['fallback']} of them without a region")
    if summary["left_out"]:
        console.print(
            f"left out: {', '.join(summary['left_out'])}; choose with split=NAME or subset=NAME, or give a file"
        )
    if summary["set_aside"]:
        console.print(f"{summary['set_aside']} of {summary['read']} rows set aside:", style="yellow")
        for reason, count in summary["reasons"].items():
            console.print(f"  {count} x {reason}")
        console.print(f"  each with its reason in {out / 'rejected_rows.jsonl'}")
        raise typer.Exit(ROWS_SET_ASIDE)


def _draw_preview(source: Any, id: str, settings: Any, segmenter: Any, out: Path) -> None:
    """Write the noise levels of the record `id` to the picture file `out`."""
    from mfpo.build.preview import preview
    from mfpo.build.stages import build_record

    if out.suffix.lower() not in (".png", ".webp", ".jpg", ".jpeg"):
        raise SettingError(f"--out {out} is not an image file name; with --preview give a file such as strip.png")
    if out.exists():
        raise MfpoError(f"{out} exists already; give another --out or remove it")
    if not out.parent.is_dir():
        raise SettingError(f"{out.parent}: no such folder; give --out in an existing one")
    row = next((source.record(row, number) for number, row in enumerate(source) if source.id(row, number) == id), None)
    if row is None:
        raise MfpoError(f"no row of {source.name} has the id {brief(id)}; `mfpo inspect` shows the ids")
    regions = build_record(row, settings, segmenter)[0]["regions"]
    preview(row, regions, settings).save(out)
    console.print(f"open {out}")


def _show_mapping(source: Any, segmenter: Any, annotations: Path, settings: Any) -> None:
    """Print the mapping accuracy of a segmenter."""
    from mfpo.build.mapping import check_regions
    from mfpo.build.regions.coco import CocoRegions

    report = check_regions(
        source, segmenter, CocoRegions(annotations), settings, progress=lambda rows: counted(rows, "searching")
    )
    shown = Table("keywords of a COCO class in the image", str(report.keywords))
    for name, count in (
        ("mapping accuracy: IoU 0.5 with an instance of the class", report.one),
        ("IoU 0.5 with all its instances together", report.united),
        ("no region found", report.no_region),
    ):
        shown.add_row(name, f"{count} ({100 * count / report.keywords:.1f} %)" if report.keywords else "none")
    console.print(shown)
    if report.set_aside:
        for row in report.set_aside:
            console.print(f"row {row['row']} set aside: {row['reason']}", style="yellow")
        raise typer.Exit(ROWS_SET_ASIDE)


def _state(source: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the source's files: a killed build goes on only if they are still the same."""
    from mfpo.sources.files import download_dataset

    path = download_dataset(source) if is_hub_name(source) else Path(source)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] * path.exists()
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _state_of(choice: str) -> list[tuple[str, int, int]]:
    """The state of the files that a choice such as `NAME=FILE,FOLDER` names."""
    names = [name for name in choice.partition("=")[2].split(",") if name]
    return [state for name in names if Path(name).exists() for state in _state(name)]
