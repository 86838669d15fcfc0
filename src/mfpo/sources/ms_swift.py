"""ms-swift's preference format: `messages` end with the chosen answer; `rejected_response` or `rejected_messages`."""

from typing import Any

from mfpo.errors import RecordError
from mfpo.records import Message
from mfpo.sources import source
from mfpo.sources.rows import check_prompt, read_answer, read_messages
from mfpo.sources.table import Pair, TableSource


@source("ms-swift")
class MsSwiftSource(TableSource):
    columns = ("messages", "rejected_response or rejected_messages", "images")

    def pair(self, row: dict[str, Any]) -> Pair:
        prompt, chosen = _split(row, "messages")
        if row.get("rejected_messages") is None:
            return Pair(prompt, chosen, read_answer(row, "rejected_response or rejected_messages"))
        other, rejected = _split(row, "rejected_messages")
        if other != prompt:
            raise RecordError("'messages' and 'rejected_messages' differ before the answer, so they cannot be compared")
        return Pair(prompt, chosen, rejected)


def _split(row: dict[str, Any], column: str) -> tuple[list[Message], str]:
    """The prompt and the answer that ends a conversation."""
    *prompt, answer = read_messages(row, column, role="user") or [Message(role="user", content="")]
    if answer["role"] != "assistant" or not answer["content"]:
        raise RecordError(f"column {column!r} must end with an answer of the assistant")
    return check_prompt(prompt, column), answer["content"]
