"""Ask a model questions about images and write its answers down as they come."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from mfpo.errors import MfpoError, RecordError
from mfpo.evaluate.answers import read_rows
from mfpo.models import load_model, load_processor
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
    stopped. Raises MfpoError when a question lacks a key or its image cannot be read, before anything is generated.
    """
    rows = [_checked(row, where, images) for where, row in read_rows(questions)]
    if out.exists():
        raise MfpoError(f"{out} exists already; give another --out or remove it")
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _finished(partial)
    left = [row for row in rows if str(row["question_id"]) not in done]
    model, processor = load_model(model_path), load_processor(model_path)
    decode = {"strategy": "greedy", "max_new_tokens": max_new_tokens}
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
    return len(rows)


@torch.inference_mode()
def generate(
    model: Any, processor: Any, rows: Sequence[dict[str, Any]], images: Path, *, max_new_tokens: int
) -> list[str]:
    """The greedy answers to one batch of questions, left-padded to one length."""
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["text"]}]}] for row in rows]
    batch = processor(
        text=processor.apply_chat_template(chats, add_generation_prompt=True),
        images=[[decode_image(load_image(images, row["image"]))] for row in rows],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    ).to(model.device, model.dtype)
    output = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens)
    texts = processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _checked(row: dict[str, Any], where: str, images: Path) -> dict[str, Any]:
    for key in ("question_id", "image", "text"):
        if key not in row:
            raise MfpoError(f"{where}: has no {key!r}; a question is question_id, image, text")
    try:
        load_image(images, row["image"])
    except RecordError as error:
        raise MfpoError(f"{where}: {error}") from None
    return row


def _finished(partial: Path) -> set[str]:
    """The questions that a killed run answered; its last line, if broken off, is removed."""
    if not partial.exists():
        return set()
    lines = [line for line in partial.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    partial.write_text("".join(lines), encoding="utf-8")
    return {str(json.loads(line)["question_id"]) for line in lines}
