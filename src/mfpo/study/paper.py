"""The paper's reported numbers (Jiang et al., IJCAI 2025), as far as we know them.

The numbers are second-hand: from a public reading note of arXiv:2410.15334v2 (dated 2026-05-21), not from the paper's
own tables, which were not at hand; a number that the note does not quote is missing here, never guessed. All are for
LLaVA-1.5-7B, and so to be compared with ours in direction, not in size.
"""

from collections.abc import Mapping

# Columns of Table 1: MMHal-Bench score and hallucination rate; Object HalBench; AMBER.
TABLE1_COLUMNS = {
    "mmhal_score": "MMHal score",
    "mmhal_rate": "MMHal rate",
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "amber_chair": "AMBER CHAIR",
    "amber_cover": "Cover",
    "amber_hal": "Hal",
    "amber_cog": "Cog",
}

# The note's CHAIR_i of HALVA, 53.0, is that of its Cover and above its CHAIR_s: a slip, so it is left out.
_TABLE1 = {
    "base": (2.07, 59, 53.6, 25.2, 7.8, 51.0, 36.4, 4.2),
    "DPO": (2.14, 65, 49.0, 13.0, 6.5, 55.5, 34.5, 2.3),
    "mDPO": (2.39, 54, 35.7, 9.8, 4.4, 52.4, 24.5, 2.4),
    "HA-DPO": (1.97, 59, 39.9, 19.9, 6.7, 49.8, 30.9, 3.3),
    "HALVA": (2.08, 60, 46.6, None, 6.6, 53.0, 33.2, 3.4),
    "POVID": (2.08, 56, 48.1, 24.4, None, None, None, None),
    "MFPO": (2.69, 49, 13.4, 6.6, 4.1, 55.7, 22.5, 1.9),
}

# Table or figure -> row -> figure -> number.
PAPER: dict[str, dict[str, Mapping[str, float]]] = {
    "table1": {
        row: {name: value for name, value in zip(TABLE1_COLUMNS, values, strict=True) if value is not None}
        for row, values in _TABLE1.items()
    },
    "table3": {
        "base": {"llava_bench_conversation": 53.3, "llava_bench_captioning": 53.4},
        "MFPO": {"llava_bench_conversation": 65.8, "llava_bench_captioning": 60.0},
    },
    "table4": {
        "text + margin": {"chair_s": 21.9},
        "image + margin": {"mmhal_score": 2.34},
        "text + image": {"mmhal_score": 2.61},
        "text + image + margin": {"mmhal_score": 2.69, "chair_s": 13.4},
    },
    "table5": {"eta 0": {"mmhal_score": 2.69, "chair_s": 13.4}},
    "table6": {"1 : 1 : 1": {"mmhal_score": 2.69, "chair_s": 13.4}},
    "table7": {
        "easy to hard": {"mmhal_score": 2.69, "chair_s": 13.4},
        "end to end": {"mmhal_score": 2.53, "chair_s": 16.0},
    },
    "table8": {"region": {"chair_s": 13.4}, "random 20 %": {"chair_s": 16.5}, "global": {"chair_s": 21.7}},
    "table9": {
        "mDPO": {"mmhal_score": 2.39, "chair_s": 35.7},
        "MFPO": {"mmhal_score": 2.67, "chair_s": 14.7},
    },
    "figure2": {
        "text": {"text_margin": 2.03, "image_margin": 0.35},
        "text + cropped image": {"text_margin": 2.87, "image_margin": 1.13},
        "text + region image": {"text_margin": 4.05, "image_margin": 3.80},
    },
    "figure5": {
        "after easy": {"mmhal_score": 2.37},
        "after medium": {"mmhal_score": 2.55},
        "after hard": {"mmhal_score": 2.69},
    },
}
