"""The books: how the scenes of each are made, and what usually goes together in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.menus import BOOK as CONTEXT
from mfpo.picturebook.menus import make_fair_scene, make_menu_scene, menu_colours
from mfpo.picturebook.scenes import PARTNERS, Scene, make_scene


@dataclass(frozen=True)
class Book:
    """Scenes by their seeds: those that its model learns from, and those of pairs and questions.

    `popular` are the kinds of the most scenes of pairs and questions, `partners` what is often beside what.
    `usual_colours` gives the colour that each kind mostly has in scenes of a theme.
    """

    name: str
    make_pretraining_scene: Callable[[int], Scene]
    make_scene: Callable[[int], Scene]
    popular: tuple[str, ...]
    partners: Mapping[str, str]
    usual_colours: Callable[[str], Mapping[str, str]]


def _commonest_colours(theme: str) -> Mapping[str, str]:
    """In which captions name what is only there from habit."""
    return {kind.name: kind.colours[0] for kind in KINDS.values()}


# A test counts the popular kinds.
_POPULAR = ("bird", "book", "clock", "bicycle", "person", "truck", "dog")

BOOKS = {
    book.name: book
    for book in (
        Book("picturebook", make_scene, make_scene, _POPULAR, PARTNERS, _commonest_colours),
        Book(CONTEXT, make_menu_scene, make_fair_scene, (*_POPULAR, "cat"), {}, menu_colours),
    )
}
