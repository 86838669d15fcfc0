"""What a model's reply says: without its thoughts, and whether it begins with yes or no."""

import re

# "Yes or no", as in an instruction, and "yes/no" say neither.
_BOTH = r"[\s*_\"']*(?:[/|]|,?\s*or\b|and\b)[\s*_\"']*"
EITHER = re.compile(rf"\b(?:yes{_BOTH}no|no{_BOTH}yes)\b", re.IGNORECASE)
# What may stand before an answer: marks, "1.", "(A)", "Answer:", "The final answer is", and the question, repeated.
_LEAD = re.compile(
    r"(?:[\W_]|(?:\d+|[a-z])[.):\]]|(?:(?:the|my|final|correct)\s+)*answer(?: is)?\b|question\b|assistant\b"
    rf"|{EITHER.pattern}|(?:is|are|was|were|do|does|did|can|could|has|have)(?:n['’]t)?\b[^.!?\n]*\?)*",
    re.IGNORECASE,
)
_YES_NO = re.compile(r"(?:yes|yep|yeah|yup|(no|nope|nah))(?![^\W_])", re.IGNORECASE)

# The tags around a model's thoughts, in the spellings of several models; the group is what marks the closing one.
_THINK = re.compile(
    r"(?:[<◁]|\[(?=(?-i:/?THINK\])))\|?\s*(?:(/|end_of_)\s*)?(?:begin_of_|seed:)?(?:think(?:ing)?|thoughts?|reasoning)"
    r"(?:\s+\w+\s*=[^<>]*)?\s*\|?[>▷\]]",
    re.IGNORECASE,
)


def without_thoughts(text: str) -> str:
    """An answer without the model's reasoning, which is between `<think>` and `</think>`, or similar tags.

    If only the end tag is present, the model's template opened it; if only the start tag, the reasoning was truncated.

    >>> [without_thoughts(text) for text in ("<think>A dog?</think> Yes.", "A dog?</think> Yes.", "<think>A dog?")]
    ['Yes.', 'Yes.', '']
    """
    answer, *rest = _THINK.split(text)
    thinks = False
    for slash, part in zip(rest[::2], rest[1::2], strict=True):
        if slash and not thinks:
            answer = ""
        thinks = not slash
        answer += "" if thinks else part
    return answer.strip() if rest else text


def without_lead(text: str) -> str:
    """What an answer begins with, without list numbers, marks, words that only announce it and the question.

    >>> [without_lead(text) for text in ("1. Yes", "**Answer:** (B) No.", "Yes or no? A dog.", "3 dogs")]
    ['Yes', 'No.', 'A dog.', '3 dogs']
    """
    return _LEAD.sub("", text, count=1)


def begins_with(text: str) -> str | None:
    """The "yes" or "no" that an answer begins with, if it does; `without_lead` says what may stand before."""
    match = _YES_NO.match(without_lead(text))
    return ("no" if match.group(1) else "yes") if match else None
