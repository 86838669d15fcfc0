"""What a row of HallusionBench's file is called."""

from collections.abc import Mapping
from typing import Any

_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")


def is_hallusion(row: Mapping[str, Any]) -> bool:
    """Whether it is a row of that file."""
    return all(key in row for key in (*_KEYS, "filename"))


def hallusion_id(row: Mapping[str, Any]) -> str:
    """The name of a question in HallusionBench's script.

    >>> row = {"category": "VD", "subcategory": "illusion", "set_id": "0", "figure_id": "1", "question_id": "2"}
    >>> hallusion_id(row)
    'VD_illusion_0_1_2'
    """
    return "_".join(str(row.get(key)).strip() for key in _KEYS)
