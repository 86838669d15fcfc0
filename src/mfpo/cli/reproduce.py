"""The command `mfpo reproduce`: nothing but parsing, calls and tables."""

import difflib
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mfpo.cli.console import console
from mfpo.errors import SettingError, brief
from mfpo.folders import check_readable
from mfpo.settings import read_settings
from mfpo.study import NAMES

# The seed of the pairs and scenes that learning rates are chosen on; those of tables are below it.
_VALIDATION_SEED = 90


def reproduce(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="table1, figure2, ..., all, or rates; a wrong one lists them.")],
    out: Annotated[Path, typer.Option(help="Folder of trainings, scores and pages; goes on with what is there.")],
    seeds: Annotated[int, typer.Option(help="Seeds of pairs, trainings and scored scenes.", min=1, max=90)] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.", min=0, max=89)] = 0,
    scenes: Annotated[int, typer.Option(help="Scenes of the picture book to score on, for each seed.", min=10)] = 1_000,
    pairs: Annotated[int, typer.Option(help="Pairs of the picture book to train on.", min=6)] = 600,
    scale: Annotated[str, typer.Option(help="picturebook, or paper with --config.")] = "picturebook",
    config: Annotated[Path | None, typer.Option(help="YAML that names a real model, its data, benchmarks.")] = None,
) -> None:
    """Make tables and figures of the paper, its numbers beside ours, as pages in OUT/pages/html.

    Example: mfpo reproduce table4 table8 --seeds 3 --out runs/study
    """
    unknown = [name for name in names if name not in ("all", *NAMES)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are all, {', '.join(NAMES)}"
        raise SettingError(f"no experiment is named {brief(unknown[0])}; {hint}")
    if set(names) == {"rates"} and {"--seeds", "--first-seed"} & {*_options(context)}:
        raise SettingError("rates are chosen with a seed of their own; leave out --seeds and --first-seed")
    if out.exists() and not out.is_dir():
        raise SettingError(f"--out {out} is a file; give a folder")
    if scale == "paper" and {"--scenes", "--pairs"} & {*_options(context)}:
        raise SettingError("--scenes and --pairs are of the picture book; the paper's scale has those of its files")
    if first_seed + seeds > _VALIDATION_SEED:
        raise SettingError(f"seeds end before {_VALIDATION_SEED}, with which rates are chosen; give fewer")
    check_readable(config)
    from mfpo.study import figures, questions  # seconds of imports: a mistake is told before them
    from mfpo.study.experiments import EXPERIMENTS
    from mfpo.study.study import NotOnScale, Study

    del figures, questions  # importing them has registered their experiments
    every = [name for name in EXPERIMENTS if name != "rates"]
    chosen = list(dict.fromkeys(one for name in names for one in (every if name == "all" else [name])))
    # Before the first of them, so that a mistake is told before hours of work.
    scales = {kind: _scale(scale, config, out, scenes, pairs, kind) for kind in dict.fromkeys(map(_kind, chosen))}
    is_incomplete = False
    for name in chosen:
        run_seeds = [_VALIDATION_SEED] if name == "rates" else range(first_seed, first_seed + seeds)
        study = Study(out, scales[_kind(name)], run_seeds, console)
        try:
            result = EXPERIMENTS[name](study)
        except NotOnScale as error:
            console.print(f"{name} is left out: {error}")
            is_incomplete |= name in names
            continue
        _write(study, name, result, shlex.join(["mfpo", "reproduce", name, *_options(context, name)]))
    if is_incomplete:
        raise typer.Exit(1)


def _kind(name: str) -> str:
    """What decides the scenes of an experiment: rates have their own."""
    return "rates" if name == "rates" else "tables"


def _options(context: typer.Context, experiment: str = "") -> list[str]:
    """The options that were given and matter to the experiment, for the command that its page shows."""
    unused = {"names"} | ({"seeds", "first_seed"} if experiment == "rates" else set())
    words = []
    for one in context.command.params:
        name = str(one.name)
        source = context.get_parameter_source(name)
        if name not in unused and source is not None and source.name == "COMMANDLINE":
            words += [one.opts[0], str(context.params[name])]
    return words


def _scale(scale: str, config: Path | None, out: Path, scenes: int, pairs: int, kind: str) -> Any:
    """The picture book, half as many of whose validation scenes are for the rates, or what a file names."""
    if scale == "picturebook" and config is None:
        from mfpo.study.picturebook import PictureBookScale

        if kind == "rates":
            return PictureBookScale(out / "picturebook", split="validation", scenes=scenes // 2, pairs=pairs)
        return PictureBookScale(out / "picturebook", scenes=scenes, pairs=pairs)
    if scale == "paper" and config is not None and kind != "rates":
        from mfpo.study.real import RealScale, RealSettings

        return RealScale(out / "paper", read_settings(RealSettings, config, []))
    raise SettingError("--scale is picturebook, without --config, or paper, with it; rates are of the picture book")


def _write(study: Any, name: str, result: Any, command: str) -> None:
    from mfpo.folders import versions, write_text
    from mfpo.study.page import markdown, sentences, terminal, write_html

    pages = study.out / "pages"
    html = pages / "html" / f"{name}.html"  # not beside the Markdown, of which a site makes NAME.html
    seeds = ", ".join(map(str, study.seeds))
    made_with = {package: " and ".join(sorted(found)) for package, found in study.versions.items()} or versions()
    facts = {"pairs": str(study.scale.pairs), "seeds": seeds, "scored on": study.scale.scored_on, **made_with}
    write_text(pages / f"{name}.md", markdown(result, name, command, facts))
    write_html(result, html, command, facts)
    console.print(terminal(result))
    for sentence in [*sentences(result.table), *result.notes]:
        console.print(sentence)
    console.print(f"open {html}")
