"""The commands of `mfpo picturebook`."""

from typing import Annotated

import typer

from mfpo.cli.console import Config, Out, Overrides, console
from mfpo.errors import SettingError, brief
from mfpo.folders import check_new
from mfpo.picturebook import NAMES as BOOKS
from mfpo.settings import read_settings

Book = Annotated[str, typer.Option(help="picturebook, or picturebook-context, whose model reads the context.")]

book_app = typer.Typer(help="The picture book: drawn scenes and the tiny LLaVA trained on them.", no_args_is_help=True)


@book_app.command("pretrain")
def picturebook_pretrain(
    out: Out, book: Book = "picturebook", config: Config = None, overrides: Overrides = None
) -> None:
    """Retrain a book's model from a seed; takes about half an hour on two cores.

    Example: mfpo picturebook pretrain --out runs/picturebook seed=0
    """
    _check_book(book)
    from mfpo.picturebook.pretrain_settings import SETTINGS

    settings = read_settings(SETTINGS[book], config, overrides or [])
    check_new(out)
    from mfpo.picturebook.pretrain import pretrain  # seconds of imports: a mistake is told before them

    pretrain(out, settings, book)
    console.print(f"{out} holds the model")


@book_app.command("draw")
def picturebook_draw(
    out: Out,
    count: Annotated[int, typer.Option(help="Number of scenes.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="A different seed draws different scenes.")] = 0,
    split: Annotated[str, typer.Option(help="heldout or validation.")] = "heldout",
    book: Book = "picturebook",
) -> None:
    """Draw held-out scenes with ground truth and questions, to evaluate a model.

    Example: mfpo picturebook draw --count 500 --out data/heldout
    """
    _check_book(book)
    from mfpo.picturebook.book import draw_book

    draw_book(out, count=count, seed=seed, split=split, book=book)
    console.print(f"{out} holds {count} scenes, annotations.jsonl, captions.jsonl and existence.jsonl")


def _check_book(book: str) -> None:
    """Raises SettingError for an unknown book."""
    if book not in BOOKS:
        raise SettingError(f"no book is named {brief(book)}; give --book {' or '.join(BOOKS)}")
