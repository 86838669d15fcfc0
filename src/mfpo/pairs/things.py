"""The things that an answer says are there, whatever their class, with their places."""

import re

from mfpo.build.words import INVISIBLE, SECONDARY
from mfpo.objects import in_singular, is_denied
from mfpo.pairs.sentences import words

_NOUNS = re.compile("N*S|N+")


def named_things(text: str) -> list[tuple[int, int, str]]:
    """Start, end and name, in singular, of each visible thing that `text` names and does not deny.

    Places, clothes and words for whole kinds are left out (`build.words.SECONDARY`): what shows them is hard to tell.

    >>> named_things("Two old dogs on a red couch, and no cat.")
    [(8, 12, 'dog'), (22, 27, 'couch')]
    """
    tokens = words(text)
    things = []
    for match in _NOUNS.finditer("".join(word.letter for word in tokens)):
        some = tokens[match.start() : match.end()]
        last = some[-1].text if some[-1].letter != "S" else in_singular(some[-1].text)
        start, end = some[0].start, some[-1].end
        if last not in INVISIBLE and last not in SECONDARY and not is_denied(text, start, end):
            things.append((start, end, " ".join([*(word.text for word in some[:-1]), last])))
    return things
