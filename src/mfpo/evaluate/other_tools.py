"""Answers in the result files of lmms-eval and VLMEvalKit, under our names."""

from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from mfpo.errors import MfpoError, first_line
from mfpo.files import read_rows

Rows = list[tuple[str, dict[str, Any]]]

# What VLMEvalKit writes where no answer came.
_FAILED = "Failed to obtain answer"


def read_result_rows(path: Path) -> Rows:
    """The rows of a file of answers, each with where it stands; those of other tools with our keys.

    lmms-eval's samples (JSONL) and VLMEvalKit's predictions (JSON, TSV, XLSX) get `question_id`, `prompt`, `text`, and
    `label` where the answer asked for is yes or no. Raises MfpoError as `read_rows`.
    """
    rows = _read_table(path) if path.suffix in (".tsv", ".xlsx") else list(read_rows(path))
    rows = [(where, _translated(row)) for where, row in rows]
    # MME has two questions of one id, all of POPE three, and lmms-eval numbers its rows besides. HallusionBench's ids
    # count within a set.
    ids = Counter(str(row.get("question_id")) for _, row in rows if "doc_id" in row and "set_id" not in row)
    return [
        (where, row | {"question_id": row["doc_id"]} if ids[str(row.get("question_id"))] > 1 else row)
        for where, row in rows
    ]


def _translated(row: dict[str, Any]) -> dict[str, Any]:
    if "filtered_resps" in row and "doc_id" in row:
        responses = row["filtered_resps"]
        # The figures of a row hold what the task's figures need of its question.
        question: dict[str, Any] = next((part for part in row.values() if _is_question(part)), {})
        text = responses[0] if isinstance(responses, list) and len(responses) == 1 else responses
        translated = {"question_id": row["doc_id"]} | question | {"doc_id": row["doc_id"], "text": text}
        translated["target"] = row.get("target")
        return translated | _asked(row.get("input"), row.get("target"))
    if "prediction" in row and "index" in row:
        text = row["prediction"]
        failed = isinstance(text, str) and text.startswith(_FAILED)
        translated = {"index": row["index"], "question_id": row["index"], "text": text}
        translated["error"] = text if failed else None
        translated |= {"category": row.get("category"), "image": row.get("image_path") or None}
        return translated | _asked(row.get("question"), row.get("answer"))
    return row


def _is_question(part: Any) -> bool:
    return isinstance(part, dict) and "question_id" in part


def _asked(prompt: Any, label: Any) -> dict[str, Any]:
    """The prompt where it is a text, and the label where it is yes or no."""
    is_label = isinstance(label, str) and label.lower() in ("yes", "no")
    return {"prompt": prompt if isinstance(prompt, str) else None, "label": label if is_label else None}


def _read_table(path: Path) -> Rows:
    import pandas  # type: ignore[import-untyped]

    try:
        options: Any = {"dtype": str, "keep_default_na": False}
        table = (
            pandas.read_csv(path, sep="\t", **options) if path.suffix == ".tsv" else pandas.read_excel(path, **options)
        )
    except ImportError:
        raise MfpoError(
            f"{path}: reading XLSX needs openpyxl; run `pip install openpyxl`, or give TSV or JSON"
        ) from None
    except (OSError, ValueError, BadZipFile) as error:
        raise MfpoError(
            f"{path}: cannot be read ({first_line(error)}); give VLMEvalKit's file of predictions"
        ) from None
    return [(f"{path}, row {number}", row) for number, row in enumerate(table.to_dict("records"), start=1)]
