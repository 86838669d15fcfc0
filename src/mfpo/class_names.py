"""Map other datasets' class names to COCO's, such as "hot_dog" or VOC's "diningtable"."""

import re
from functools import lru_cache

from mfpo.coco_words import CATEGORIES

_ONE_WORD = {category.replace(" ", ""): category for category in CATEGORIES} | {
    # PASCAL VOC's other words, and one by which COCO's misspelt class is often named.
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
    "hairdryer": "hair drier",
}
# Of LVIS, where the last word says another thing than the name, and the class is not the last word.
_WHOLE = {"remotecontrol": "remote", "televisionset": "tv", "microwaveoven": "microwave"}


@lru_cache(maxsize=10_000)
def plain_name(name: str) -> str:
    """The name as in running text: lower case, spaces for underscores, no sense in parentheses.

    >>> plain_name("hot_dog"), plain_name("bat_(animal)"), plain_name("Hair dryer")
    ('hot dog', 'bat', 'hair dryer')
    """
    without = re.sub(r"\([^()]*\)", " ", name.replace("_", " "))
    return " ".join((without.strip() or name).lower().split())


def coco_class(name: str) -> str | None:
    """The COCO class with this name, in any spelling.

    >>> coco_class("hot_dog"), coco_class("pottedplant"), coco_class("Aeroplane"), coco_class("puppy")
    ('hot dog', 'potted plant', 'airplane', None)
    """
    return _ONE_WORD.get(re.sub(r"[\s-]", "", plain_name(name)))


@lru_cache(maxsize=10_000)
def class_of(name: str) -> str | None:
    """The COCO class of things with this name; a dog collar is not a dog.

    >>> class_of("polar_bear"), class_of("hot_dog"), class_of("dog_collar")
    ('bear', 'hot dog', None)
    """
    from mfpo.objects import mentions  # with textblob, which takes a second

    plain = plain_name(name)
    objects = mentions(plain)
    last = objects[-1].category if objects and objects[-1].end == len(plain) else None
    return coco_class(name) or _WHOLE.get(plain.replace(" ", "")) or last
