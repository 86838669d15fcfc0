"""The paper's numbers (Jiang et al., IJCAI 2025), as it prints them: one for each row, without a spread.

Figures 2 and 5 have numbers only in the version that a reading note of arXiv:2410.15334v2 quotes (2026-05-21).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mfpo.evaluate.mmhal import TYPES

Number = float | None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: numbers by row and figure, in its order; hallucination rates are fractions.

    `doubts` are sentences on what does not add up, with the rows and figures that each is about: these numbers are
    shown as printed, marked, and no verdict rests on them.
    """

    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, float]]
    doubts: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)

    def is_doubted(self, row: str, figure: str) -> bool:
        return any((row, figure) in cells for cells in self.doubts.values())

    def number(self, row: str, figure: str) -> Number:
        """A number to compare with: None where the paper has none, or one in doubt."""
        return None if self.is_doubted(row, figure) else self.rows.get(row, {}).get(figure)


# Of what the paper has not asked.
NOT_IN_PAPER = PaperTable((), {})


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[Number]]) -> PaperTable:
    numbers = {row: dict(zip(columns, values, strict=True)) for row, values in rows.items()}
    known = {
        row: {name: number for name, number in values.items() if number is not None} for row, values in numbers.items()
    }
    return PaperTable(columns, known)


def _doubted(table: PaperTable, doubts: Mapping[str, tuple[str, Sequence[str]]]) -> PaperTable:
    """The table with doubts, each about some figures of a row."""
    cells = {words: frozenset((row, name) for name in figures) for words, (row, figures) in doubts.items()}
    return PaperTable(table.columns, table.rows, cells)


# What tables call the paper's columns.
TITLES = {
    "mmhal_score": "MMHal score",
    "mmhal_rate": "MMHal rate",
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "amber_chair": "AMBER CHAIR",
    "cover": "Cover",
    "amber_hal": "Hal",
    "amber_cog": "Cog",
    **{f"mmhal_{kind}": kind for kind in TYPES},
    "llava_bench_conversation": "conversation",
    "llava_bench_captioning": "captioning",
    "text_margin": "text margin",
    "image_margin": "image margin",
}

# By how much CHAIR_s of one method differs between papers; docs/reproduce.md has the sources.
BETWEEN_PAPERS = 8

_AMBER = ("amber_chair", "cover", "amber_hal", "amber_cog")
_SHORT = ("mmhal_score", "mmhal_rate", "chair_s", "chair_i")
_NONE = (None, None, None, None)

# MFPO's row of every table but the first.
_MFPO = (2.69, 0.49, 13.4, 6.6)

_TABLE1 = _table(
    (*_SHORT, *_AMBER),
    {
        "LLaVA-v1.6-7B": (2.46, 0.52, 16.4, 9.4, 9.1, 61.7, 50.2, 4.7),
        "LLaVA-v1.5-7B": (2.07, 0.59, 53.6, 25.2, 7.8, 51.0, 36.4, 4.2),
        "+ HACL": (2.13, 0.50, None, None, *_NONE),
        "+ POVID": (2.08, 0.56, 48.1, 24.4, *_NONE),
        "+ OPERA": (2.15, 0.54, 45.1, 22.3, *_NONE),
        "+ VCD": (2.04, 0.58, 48.0, 22.3, *_NONE),
        "+ DPO": (2.14, 0.65, 49.0, 13.0, 6.5, 55.5, 34.5, 2.3),
        "+ mDPO": (2.39, 0.54, 35.7, 9.8, 4.4, 52.4, 24.5, 2.4),
        "+ EOS": (2.03, 0.59, 40.3, 17.8, 5.1, 49.1, 22.7, 2.0),
        "+ HA-DPO": (1.97, 0.59, 39.9, 19.9, 6.7, 49.8, 30.9, 3.3),
        "+ HALVA": (2.08, 0.60, 46.6, 53.0, 6.6, 53.0, 33.2, 3.4),
        "LLaVA-v1.5-7B + MFPO": (*_MFPO, 4.1, 55.7, 22.5, 1.9),
        "LLaVA-v1.6-7B + MFPO": (2.89, 0.45, 10.6, 5.1, 3.1, 58.8, 18.7, 1.1),
        "GPT-4V": (3.49, 0.28, 13.6, 7.3, 4.6, 67.1, 30.7, 2.6),
        "MiniGemini-34B": (3.08, 0.38, 14.5, 8.0, *_NONE),
        "Qwen-VL-Chat": (2.89, 0.43, 36.0, 21.3, 6.6, 53.2, 31.0, 2.9),
        "LLaVA-v1.5-13B": (2.42, 0.53, 46.3, 22.6, 7.8, 51.0, 36.4, 4.2),
        "+ RLHF-V": (2.81, 0.49, 12.2, 7.5, 6.3, 46.1, 25.1, 2.1),
        "+ HALVA (13B)": (2.84, 0.48, None, None, 6.4, 52.6, 30.4, 3.2),
        "LLaVA-v1.5-13B + MFPO": (2.94, 0.42, 11.4, 4.6, 3.4, 56.1, 19.4, 1.4),
    },
)

_TABLE1_DOUBTS = {
    "HALVA's CHAIR_i (7B) is above its CHAIR_s and the same as its Cover: a slip, it seems.": ("+ HALVA", ["chair_i"]),
    "LLaVA-v1.5-13B's AMBER figures are those of the 7B model, all four: a slip, it seems.": ("LLaVA-v1.5-13B", _AMBER),
    "mDPO was trained on Silkie's data here (Table 9 has the same CHAIR), so only Table 9 compares it with MFPO on the "
    "same data.": ("+ mDPO", _TABLE1.columns),
    "DPO on RLHF-V's pairs ends at CHAIR_s 14.0 and CHAIR_i 5.0 in a later paper (TARS, ECCV 2026), far below the 49.0 "
    "and 13.0 here.": ("+ DPO", ["chair_s", "chair_i"]),
}

PAPER: dict[str, PaperTable] = {
    "table1": _doubted(_TABLE1, _TABLE1_DOUBTS),
    "table2": _table(
        ("mmhal_score", *(f"mmhal_{kind}" for kind in TYPES)),
        {
            "LLaVA-RLHF-7B": (2.05, 2.92, 1.83, 2.42, 1.92, 2.25, 2.25, 1.75, 1.08),
            "LLaVA-RLHF-13B": (2.53, 3.33, 2.67, 1.75, 2.25, 2.33, 3.25, 2.25, 2.42),
            "LLaVA-v1.5-7B": (2.07, 3.08, 1.08, 2.58, 2.25, 2.0, 3.0, 1.42, 1.33),
            "+ MFPO": (2.69, 3.33, 3.67, 2.42, 2.25, 2.75, 3.42, 2.00, 1.83),
        },
    ),
    "table3": _table(
        ("llava_bench_conversation", "llava_bench_captioning"),
        {
            "LLaVA-1.5": (53.3, 53.4),
            "+ VLFeedback": (51.3, 49.3),
            "+ Human-Preference": (49.6, 43.3),
            "+ RLHF-V": (55.8, 56.1),
            "Ours (MFPO)": (65.8, 60.0),
        },
    ),
    "table4": _table(
        _SHORT,
        {
            "text + margin": (2.46, 0.53, 21.9, 10.9),
            "image + margin": (2.34, 0.56, 24.4, 13.1),
            "text + image": (2.61, 0.50, 16.9, 7.9),
            "text + image + margin": _MFPO,
        },
    ),
    "table5": _table(_SHORT, {"eta 0": _MFPO, "eta 0.2": (2.58, 0.50, 15.7, 7.1), "eta 0.4": (2.63, 0.52, 16.0, 7.9)}),
    "table6": _table(
        _SHORT,
        {
            "1 : 1 : 1": _MFPO,
            "1 : 5 : 1": (2.66, 0.50, 13.9, 6.9),
            "5 : 1 : 1": (2.59, 0.55, 15.6, 8.2),
            "1 : 1 : 5": (2.62, 0.52, 14.5, 7.0),
        },
    ),
    "table7": _table(_SHORT, {"easy to hard": _MFPO, "end to end": (2.53, 0.53, 16.0, 8.0)}),
    "table8": _table(
        _SHORT, {"global": (2.56, 0.56, 21.7, 10.3), "random 20 %": (2.45, 0.52, 16.5, 8.5), "region": _MFPO}
    ),
    "table9": _table(
        _SHORT,
        {
            "mDPO (RLHF-V)": (2.42, 0.56, 29.3, 9.2),
            "MFPO (RLHF-V)": _MFPO,
            "mDPO (Silkie)": (2.39, 0.54, 35.7, 9.8),
            "MFPO (Silkie)": (2.67, 0.46, 14.7, 7.1),
        },
    ),
    "figure2": _table(
        ("text_margin", "image_margin"),
        {"text": (2.03, 0.35), "text + cropped image": (2.87, 1.13), "text + region image": (4.05, 3.80)},
    ),
    "figure5": _table(("mmhal_score",), {"after easy": (2.37,), "after medium": (2.55,), "after hard": (2.69,)}),
    # Section 4.3: 86 of 100 keywords, SAM above 90 and LISA above 95 of 100 images, judged by hand.
    "keywords": _table(("right",), {"keywords": (86,)}),
    "regions": _table(("mapped",), {"SAM": (90,), "LISA": (95,)}),
}
