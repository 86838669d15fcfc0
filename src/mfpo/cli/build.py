"""The command `mfpo build`: only parsing, calls and the closing report."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mfpo.build.regions import NAMES as OUR_SEGMENTERS
from mfpo.build.regions import SEGMENTERS, check_choice, open_segmenter
from mfpo.build.settings import CommandSettings
from mfpo.cli.console import ROWS_SET_ASIDE, Config, Overrides, console, counted, say_set_aside
from mfpo.errors import MfpoError, SettingError, brief
from mfpo.folders import check_new, check_readable
from mfpo.hub import is_hub_name
from mfpo.picturebook import scene_count
from mfpo.settings import read_settings, with_options
from mfpo.sources import SOURCES, open_source


def build(
    source: Annotated[
        str,
        typer.Argument(
            help="Parquet, JSONL or JSON file, folder of them, name on the Hub, `picturebook:N` or "
            "`picturebook-context:N`."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write (an image file with --preview).")] = None,
    format: Annotated[str | None, typer.Option(help="A format from docs/sources.md; detected by default.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to.")] = None,
    regions: Annotated[
        str, typer.Option(help="dataset, coco=FILE, grounded-sam, sam3, clipseg or lisa=MODEL; docs/regions.md.")
    ] = "dataset",
    corruption: Annotated[str | None, typer.Option(hidden=True)] = None,
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
    workers: Annotated[int, typer.Option(help="Threads, or segmenter actors with --engine ray.")] = 1,
    engine: Annotated[str, typer.Option(help="local or ray (the cluster at RAY_ADDRESS).")] = "local",
    check_regions: Annotated[
        Path | None, typer.Option(help="COCO instances to check the regions against; builds nothing.")
    ] = None,
    preview: Annotated[
        str | None,
        typer.Option(help="Id of a record to draw at rising noise, in --out FILE.png; builds nothing."),
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Build image preferences (paper, 3.1): find what the chosen answer mentions and corrupt only that.

    Exits with status 3 if rows were set aside; the others are written.

    Example: mfpo build pairs.jsonl --images photos --regions coco=instances.json --out data/photos corruption=region
    """
    if scene_count(source):
        import mfpo.picturebook.edits  # noqa: F401 - registers the corruptions that only drawings can have
    settings = _read_settings(regions, config, overrides or [], corruption=corruption, seed=seed)
    if engine not in ("local", "ray"):
        raise SettingError(f"no engine is named {brief(engine)}; give --engine local or ray")
    if workers < 1:
        raise SettingError(f"workers is {workers}, but must be 1 or more")
    _check_arguments(source, format, images, regions, check_regions, out, preview)
    rows = _open_rows(source, format, images, settings, is_shared=engine == "ray")
    if check_regions:
        _show_mapping(rows, regions, check_regions, settings)
    elif out and preview is not None:
        _draw_preview(rows, preview, settings, regions, out)
    elif out:
        _build(rows, out.resolve() if engine == "ray" else out, settings, regions, engine, workers)


def _read_settings(regions: str, config: Path | None, overrides: list[str], **options: Any) -> Any:
    """The settings, including those of the user's own segmenter."""
    check_choice(regions)
    name = regions.partition("=")[0]
    settings = CommandSettings if name in OUR_SEGMENTERS else with_options(CommandSettings, SEGMENTERS[name])
    return read_settings(settings, config, overrides, **options)


def _check_arguments(
    source: str,
    format: str | None,
    images: Path | None,
    regions: str,
    check_regions: Path | None,
    out: Path | None,
    preview: str | None,
) -> None:
    """Raises MfpoError if a named file, folder or format is missing, or the output exists."""
    if not (Path(source).exists() or is_hub_name(source) or scene_count(source)):
        raise MfpoError(f"{source}: no such file; give an existing .jsonl, .json or .parquet file, or a folder of them")
    if images is not None and not images.is_dir():
        raise MfpoError(f"{images}: no such folder; give the image folder with --images")
    name, _, file = regions.partition("=")
    check_readable(Path(file) if name == "coco" else None)
    check_readable(check_regions)
    if format is not None and format not in SOURCES:
        raise MfpoError(f"no format is named {brief(format)}; give --format {', '.join(SOURCES)}")
    if out is None and not check_regions:
        what = "folder" if preview is None else "image file"
        raise SettingError(f"--out is missing; give the {what} to write")
    if out is not None and not check_regions:
        check_new(out)
    if out is not None and preview is not None:
        if out.suffix.lower() not in (".png", ".webp", ".jpg", ".jpeg"):
            raise SettingError(f"--out {out} is not an image file name; with --preview give a file such as strip.png")
        if not out.parent.is_dir():
            raise SettingError(f"{out.parent}: no such folder; give --out in an existing one")


def _open_rows(source: str, format: str | None, images: Path | None, settings: Any, *, is_shared: bool) -> Any:
    """The source that the command line names; absolute if it `is_shared` with workers in other folders."""
    if count := scene_count(source):
        if images or format:
            raise SettingError(
                "the picture book brings its images and needs no format; leave out --images and --format"
            )
        if settings.split or settings.subset:
            raise SettingError(
                "split and subset choose files of a dataset, and the picture book has none; leave them out"
            )
        from mfpo.picturebook.source import PictureBookSource

        return PictureBookSource(count, seed=settings.seed, book=source.partition(":")[0])
    if is_shared:
        source = str(Path(source).resolve()) if Path(source).exists() else source
        images = images and images.resolve()
    return open_source(source, format=format, images=images, split=settings.split, subset=settings.subset)


def _build(rows: Any, out: Path, settings: Any, regions: str, engine: str, workers: int) -> None:
    """Build, and report what was written and set aside; rows set aside give an exit status of their own."""
    from mfpo.build.pipeline import build_into

    segmenter: Any = None
    if engine == "local":
        from mfpo.build.engine import Threads

        run_by: Any = Threads(workers)
        segmenter = open_segmenter(regions, settings) if settings.needs_regions else None
    else:
        from mfpo.build.ray_engine import OpenedByActor, RayData

        run_by = RayData(workers)
        is_file = regions.partition("=")[0] in ("dataset", "coco")
        opener = open_segmenter if is_file else OpenedByActor
        segmenter = opener(regions, settings) if settings.needs_regions else None
    summary = build_into(rows, out, settings, segmenter, engine=run_by, progress=lambda rows: counted(rows, "building"))
    _report(out, summary)


def _report(out: Path, summary: Any) -> None:
    """Report what was written and set aside; rows set aside give an exit status of their own."""
    console.print(f"{out}: {summary['written']} records, {summary['fallback']} of them without a region")
    if summary["left_out"]:
        console.print(
            f"left out: {', '.join(summary['left_out'])}; choose with split=NAME or subset=NAME, or give a file"
        )
    say_set_aside(out, summary, "rows", summary["read"])


def _draw_preview(source: Any, id: str, settings: Any, regions: str, out: Path) -> None:
    """Write the noise levels of the record `id` to the picture file `out`."""
    from mfpo.build.preview import preview
    from mfpo.build.steps import build_record

    row = next((source.record(row, number) for number, row in enumerate(source) if source.id(row, number) == id), None)
    if row is None:
        raise MfpoError(f"no row of {source.name} has the id {brief(id)}; `mfpo inspect` shows the ids")
    segmenter = open_segmenter(regions, settings) if settings.needs_regions else None
    record, _ = build_record(row, settings, segmenter)
    preview(row, record["regions"], settings).save(out)
    console.print(f"open {out}")


def _show_mapping(source: Any, regions: str, annotations: Path, settings: Any) -> None:
    """Print the mapping accuracy of a segmenter."""
    from mfpo.build.mapping import check_regions
    from mfpo.build.regions.coco import CocoRegions

    segmenter = open_segmenter(regions, settings)
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
