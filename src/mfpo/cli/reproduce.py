"""The command `mfpo reproduce`: only parsing, calls and tables."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mfpo.cli.console import console
from mfpo.errors import SettingError, brief, nearest
from mfpo.folders import check_readable
from mfpo.settings import read_settings
from mfpo.study import NAMES, VALIDATION_SEED

# What `all` leaves out: it is not reported, or takes hours of its own.
_APART = ("rates", "rounds", "look", "look-context", "look-bases")


def reproduce(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="table1, ..., or all (without rates, rounds and look*).")],
    out: Annotated[Path, typer.Option(help="Folder for models, scores and pages; existing results are reused.")],
    seeds: Annotated[int, typer.Option(help="Seeds of pairs, trainings and scored scenes.", min=1, max=90)] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.", min=0, max=89)] = 0,
    scenes: Annotated[int, typer.Option(help="Picture-book scenes to score on, per seed.", min=10)] = 1_000,
    pairs: Annotated[int, typer.Option(help="Picture-book pairs to train on.", min=6)] = 600,
    scale: Annotated[str, typer.Option(help="picturebook, or paper with --config.")] = "picturebook",
    config: Annotated[Path | None, typer.Option(help="YAML file with a real model, its data and benchmarks.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --config: print the costs, and stop.")] = False,
) -> None:
    """Reproduce tables and figures of the paper, its numbers next to ours, as pages in OUT/pages/html.

    Example: mfpo reproduce table4 table8 --seeds 3 --out runs/study
    """
    _check_names(names)
    _check_options({*_options(context)}, names, out, first_seed + seeds, scale, config)
    if dry_run and not config:
        raise SettingError("--dry-run is for the paper's scale; on the picture book a trial takes about five minutes")
    settings = _real_settings(config) if config else None
    from mfpo.study.experiments import load_experiments  # seconds of imports: a mistake is told before them
    from mfpo.study.study import NotOnScale, Study

    experiments = load_experiments()
    chosen = dict.fromkeys(n for name in names for n in (experiments if name == "all" else [name]))
    for name in {*_APART} - {*names}:
        chosen.pop(name, None)
    # Before the first of them, so that a mistake is told before hours of work.
    scales = {kind: _scale(settings, out, scenes, pairs, kind) for kind in dict.fromkeys(map(_kind, chosen))}
    run_seeds = {"rates": [VALIDATION_SEED], "tables": range(first_seed, first_seed + seeds)}
    if config:
        _tell_cost(Study(out, scales["tables"], run_seeds["tables"], console), [experiments[name] for name in chosen])
    if dry_run:
        return
    is_incomplete = False
    for name in chosen:
        study = Study(out, scales[_kind(name)], run_seeds[_kind(name)], console)
        try:
            result = experiments[name](study)
        except NotOnScale as error:
            console.print(f"{name} is left out: {error}")
            is_incomplete |= name in names
            continue
        _write(study, name, result, shlex.join(["mfpo", "reproduce", name, *_options(context, name)]))
    if is_incomplete:
        raise typer.Exit(1)


def _check_names(names: list[str]) -> None:
    """Raises SettingError for the first unknown name, with the nearest known one."""
    for name in names:
        if name not in ("all", *NAMES):
            raise SettingError(f"no experiment is named {brief(name)}; {nearest(name, ['all', *NAMES])}")


def _check_options(options: set[str], names: list[str], out: Path, end: int, scale: str, config: Path | None) -> None:
    """Raises SettingError for options that exclude each other; seeds are below `end`."""
    if set(names) == {"rates"} and {"--seeds", "--first-seed"} & options:
        raise SettingError("rates are chosen with a seed of their own; leave out --seeds and --first-seed")
    above = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not above.is_dir():
        raise SettingError(f"--out {out}: {above} is a file; give a folder")
    if scale == "paper" and {"--scenes", "--pairs"} & options:
        raise SettingError("--scenes and --pairs are for the picture book; the paper's scale uses those of its files")
    if end > VALIDATION_SEED:
        raise SettingError(f"seeds must stay below {VALIDATION_SEED}, the seed that rates are chosen with; give fewer")
    if scale not in ("picturebook", "paper") or (scale == "paper") != (config is not None):
        raise SettingError("--scale must be picturebook without --config, or paper with it")
    if scale == "paper" and "rates" in names:
        raise SettingError("rates exist only for the picture book; leave out --scale paper")


def _kind(name: str) -> str:
    """The kind of scenes of an experiment: rates have their own."""
    return "rates" if name == "rates" else "tables"


def _options(context: typer.Context, experiment: str = "") -> list[str]:
    """The given options that affect the experiment, for the command shown on its page."""
    unused = {"names"} | ({"seeds", "first_seed"} if experiment == "rates" else set())
    words = []
    for option in context.command.params:
        name = str(option.name)
        source = context.get_parameter_source(name)
        if name not in unused and source is not None and source.name == "COMMANDLINE":
            words += [option.opts[0], str(context.params[name])]
    return words


def _real_settings(config: Path) -> Any:
    """The settings in the file, after checking that it and the files that it names exist."""
    check_readable(config)
    from mfpo.study.real_settings import RealSettings, check_paths

    settings = read_settings(RealSettings, config, [])
    check_paths(settings)
    return settings


def _scale(settings: Any, out: Path, scenes: int, pairs: int, kind: str) -> Any:
    """The picture book (with half as many validation scenes for the rates), or the scale of a file."""
    if settings is not None:
        from mfpo.study.real import RealScale

        return RealScale(out / "paper", settings)
    from mfpo.study.picturebook import PictureBookScale

    if kind == "rates":
        return PictureBookScale(out / "picturebook", split="validation", scenes=scenes // 2, pairs=pairs)
    return PictureBookScale(out / "picturebook", scenes=scenes, pairs=pairs)


def _tell_cost(study: Any, experiments: list[Any]) -> None:
    from mfpo.study.cost import cost

    console.print(str(cost(study, study.scale, experiments)))


def _write(study: Any, name: str, result: Any, command: str) -> None:
    from mfpo.folders import write_text
    from mfpo.study.render import facts_of, markdown, notes_of, sentences, terminal, write_html

    pages, facts = study.out / "pages", facts_of(study)
    html = pages / "html" / f"{name}.html"  # not beside the Markdown, of which a site makes NAME.html
    write_text(pages / f"{name}.md", markdown(result, command, facts))
    write_html(result, html, command, facts)
    console.print(terminal(result))
    for sentence in [*sentences(result), *notes_of(result)]:
        console.print(sentence)
    console.print(f"open {html}")
