"""Ask a model questions about images and write its answers down as they come."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from mfpo.errors import MfpoError, RecordError
from mfpo.evaluate.answers import read_id, read_rows
from mfpo.folders import fingerprint, write_json
from mfpo.models import encode_questions, load_model, load_processor
from mfpo.records import decode_image, load_image


def answer(
    questions: Path,
    model_path: Path,
    images: Path,
    out: Path,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 512,
) -> int:
    """Answer each question of a JSONL file (`question_id`, `image`, `text`) greedily; return how many there were.

    `out` gets a line an answer, with `question_id, image, prompt, text, model, decode`. A killed run goes on where it
    stopped, if questions, model and settings are the same. Raises MfpoError when a question lacks a key, an id comes
    twice, or an image cannot be read, before anything is generated.
    """
    rows = _read_questions(questions, images)
    if out.exists():
        raise MfpoError(f"{out} exists already; give another --out or remove it")
    model, processor = load_model(model_path), load_processor(model_path)
    decode = {"strategy": "greedy", "max_new_tokens": max_new_tokens}
    partial = out.with_name(out.name + ".partial")
    note = out.with_name(out.name + ".made_by.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _finished(partial, note, {"questions": rows, "model": fingerprint(model_path, "*"), "decode": decode})
    left = [row for row in rows if row["question_id"] not in done]
    with partial.open("a", encoding="utf-8") as file:
        starts = range(0, len(left), batch_size)
        for start in track(starts, f"answering {len(left)} questions", disable=not left):
            batch = left[start : start + batch_size]
            texts = generate(model, processor, batch, images, max_new_tokens=max_new_tokens)
            for row, text in zip(batch, texts, strict=True):
                kept = {"question_id": row["question_id"], "image": row["image"], "prompt": row["text"], "text": text}
                kept |= {"model": str(model_path), "decode": decode}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
            file.flush()
    os.replace(partial, out)
    note.unlink()
    return len(rows)


@torch.inference_mode()
def generate(
    model: Any, processor: Any, rows: Sequence[dict[str, Any]], images: Path, *, max_new_tokens: int
) -> list[str]:
    """The greedy answers to one batch of questions."""
    opened = [decode_image(load_image(images, row["image"])) for row in rows]
    batch = encode_questions(processor, [row["text"] for row in rows], opened).to(model.device, model.dtype)
    # A model's own generation settings may penalise repetitions; greedy means the likeliest token.
    output = model.generate(
        **batch, do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=max_new_tokens
    )
    texts = processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _read_questions(path: Path, images: Path) -> list[dict[str, Any]]:
    """The questions of a file, checked, with their ids as texts."""
    questions: dict[str, dict[str, Any]] = {}
    for where, row in read_rows(path):
        question_id = read_id(row, ("question_id",), where)
        if question_id is None or not isinstance(row.get("text"), str) or not row["text"].strip():
            raise MfpoError(f"{where}: a question is question_id, image and text, none of them empty")
        if question_id in questions:
            raise MfpoError(f"{where}: question_id {question_id} comes a second time; give each question its own")
        try:
            decode_image(load_image(images, row.get("image")))
        except RecordError as error:
            raise MfpoError(f"{where}: {error}") from None
        text = row["text"].replace("<image>", "").strip()  # LLaVA's files write it; the chat template does so again
        questions[question_id] = {"question_id": question_id, "image": row["image"], "text": text}
    return list(questions.values())


def _finished(partial: Path, note: Path, made_by: dict[str, Any]) -> set[str]:
    """The questions that a killed run of the same kind answered; a line that was broken off is removed."""
    if not partial.exists() or not note.exists() or json.loads(note.read_text(encoding="utf-8")) != made_by:
        partial.unlink(missing_ok=True)
        write_json(note, made_by)
        return set()
    # Not splitlines(), which also cuts where a model wrote one of Unicode's other line ends.
    lines = partial.read_text(encoding="utf-8").split("\n")[:-1]
    whole = partial.with_name(partial.name + ".whole")
    whole.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    whole.replace(partial)
    return {json.loads(line)["question_id"] for line in lines}
