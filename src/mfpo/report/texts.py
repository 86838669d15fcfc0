"""Which words of an answer are marked, and how: keywords, differences, objects that are there or are not."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from mfpo.objects import mentions

# Chinese and Japanese have no spaces: there, each character is a word.
_HAN = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = rf"[^\W{_HAN}]"
_WORD = rf"[{_HAN}]|{_LETTER}+(?:['’-]{_LETTER}+)*"
# Words of an answer that are compared with the other's: the time grows with the cube of their number.
_COMPARED = 500


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of a text get the CSS class `mark`, and `title` when pointed at."""

    start: int
    end: int
    mark: str
    title: str = ""


@dataclass(frozen=True)
class Piece:
    """A stretch of text that looks the same throughout; `marks` are CSS classes."""

    text: str
    marks: str
    title: str


def cut(text: str, spans: Iterable[Span]) -> list[Piece]:
    """`text` in pieces, a new one wherever a span begins or ends; overlapping spans add up.

    >>> [(piece.text, piece.marks) for piece in cut("a red car", [Span(2, 9, "k0"), Span(2, 5, "differs")])]
    [('a ', ''), ('red', 'k0 differs'), (' car', 'k0')]
    """
    spans = list(spans)
    bounds = sorted({0, len(text), *(span.start for span in spans), *(span.end for span in spans)})
    pieces = []
    for start, end in pairwise(bounds):
        here = [span for span in spans if span.start <= start and end <= span.end]
        titles = ", ".join(dict.fromkeys(span.title for span in here if span.title))
        pieces.append(Piece(text[start:end], " ".join(dict.fromkeys(span.mark for span in here)), titles))
    return pieces


def keyword_spans(text: str, marks: Mapping[str, str]) -> list[Span]:
    """Every whole-word occurrence of the keywords, each with its mark; where two overlap, the longer one wins.

    >>> keyword_spans("A car on a carpet.", {"car": "k0"})
    [Span(start=2, end=5, mark='k0', title='car')]
    """
    longest_first = sorted((keyword for keyword in marks if keyword.strip()), key=lambda word: (-len(word), word))
    if not longest_first:
        return []
    alternatives = "|".join("(" + r"\s+".join(map(re.escape, keyword.split())) + ")" for keyword in longest_first)
    spans = []
    for match in re.finditer(rf"(?<!{_LETTER})(?:{alternatives})(?!{_LETTER})", text, re.IGNORECASE):
        keyword = longest_first[(match.lastindex or 1) - 1]
        spans.append(Span(*match.span(), marks[keyword], keyword))
    return spans


def difference_spans(text: str, other: str) -> list[Span]:
    """The runs of words of `text` that `other` does not have in the same order; capitals do not count.

    The first 500 words of each are compared.
    """
    words = list(islice(re.finditer(_WORD, text), _COMPARED))
    others = islice(re.finditer(_WORD, other), _COMPARED)
    ours, theirs = ([match.group().lower() for match in matches] for matches in (words, others))
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)  # which drops words that come often
    return [
        Span(words[first].start(), words[last - 1].end(), "differs")
        for kind, first, last, _, _ in matcher.get_opcodes()
        if kind in ("replace", "delete")
    ]


_VERDICTS = {"true": "present", "false": "absent", "unknown": "unsure"}


def claim_spans(text: str, claims: Iterable[Mapping[str, Any]]) -> list[Span]:
    """Each claim of an answer by its verdict: `present`, `absent` or `unsure`."""
    return [
        Span(claim["start"], claim["end"], _VERDICTS[claim["verdict"]], f"{claim['object']}: {claim['verdict']}")
        for claim in claims
        if 0 <= claim["start"] < claim["end"] <= len(text) and claim["verdict"] in _VERDICTS
    ]


def object_spans(text: str, objects: Collection[str]) -> list[Span]:
    """Every COCO object that `text` names: `present` when it is one of the image's `objects`, otherwise `absent`."""
    spans = []
    for mention in mentions(text):
        if mention.category in objects:
            spans.append(Span(mention.start, mention.end, "present", f"{mention.category}: in the image"))
        else:
            spans.append(Span(mention.start, mention.end, "absent", f"{mention.category}: not in the image"))
    return spans
