"""Claims by a judge, divided and conquered as in RLAIF-V: each claim a yes/no question about the image."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mfpo.answer.openai_client import OPENAI, check_client
from mfpo.errors import RecordError
from mfpo.pairs.check import FALSE, TRUE, UNKNOWN, Checked, Claim, Shown, Tools, checker
from mfpo.settings import about

if TYPE_CHECKING:
    from mfpo.answer.judge import Verdict

_SPLIT = """Here is a description of an image:

{text}

List every claim that it makes about what can be seen, each on its own: things, their number, colour, place, action. \
Leave out what it denies, opinions and guesses. For each claim copy the words of the description that make it, and ask \
a question that can be answered with yes if the claim is true. Reply with a JSON list and nothing else, such as \
[{{"words": "a red car", "question": "Is there a red car in the image?"}}]; reply with [] if there is no claim.
"""
_REWRITE = """Here is a description of an image:

{text}

These parts of it are wrong:

{false}

Write the description again without what is wrong. Change as little as you can, keep every other word, and add \
nothing. Reply with the description and nothing else.
"""
# A judge's list, not the brackets that other words have around them.
_LIST = re.compile(r"\[\s*(?:\{.*\}\s*)?\]", re.DOTALL)
_YES_NO = "{question} Look at the image and answer with yes or no."


@checker("judge")
def open_judge(
    where: str,
    tools: Tools,
    *,
    judge_endpoint: Annotated[str, about("judge=NAME: URL of an OpenAI-compatible API")] = OPENAI,
    attempts: Annotated[int, about("judge=NAME: requests before a verdict counts as unreadable", least=1)] = 3,
) -> Any:
    """The model NAME behind an endpoint, or without a name the model that was asked, which transformers must run."""
    return EndpointJudge(where, tools, judge_endpoint, attempts) if where else LocalJudge(tools)


class EndpointJudge:
    """Keeps every verdict in a file beside the pairs, so that a second run costs nothing."""

    def __init__(self, model: str, tools: Tools, endpoint: str, attempts: int) -> None:
        from mfpo.answer.judge import Judge
        from mfpo.answer.judge_settings import JudgeSettings

        settings = JudgeSettings(
            model=model,
            endpoint=endpoint,
            attempts=attempts,
            concurrency=tools.settings.concurrency,
            retries=tools.settings.retries,
            timeout=tools.settings.timeout,
        )
        check_client(endpoint)
        self._judge = Judge(settings, tools.verdicts)
        self._tokens = tools.settings.max_new_tokens
        self.provenance = {"judge": model, "endpoint": endpoint}

    def __call__(self, answers: Sequence[Shown]) -> list[tuple[Claim, ...] | RecordError]:
        """The claims of each answer; one whose answer is unreadable, after all attempts, is unknown.

        A RecordError for an answer about which the endpoint refuses a request: its image is too large, for example.
        """
        from mfpo.answer.by_endpoint import chat_about

        names = [f"{answer.asked.id}, answer {number}" for number, answer in enumerate(answers)]
        rows = {name: answer.asked.id for name, answer in zip(names, answers, strict=True)}
        prompts = {
            name: [_message(_SPLIT.format(text=answer.text))] for name, answer in zip(names, answers, strict=True)
        }
        split = self._judge.ask(prompts, _read_claims, temperature=0.0, max_tokens=2 * self._tokens + 512, rows=rows)
        asked = {}
        for name, answer in zip(names, answers, strict=True):
            for place, (_, question) in enumerate(split[name].reading or []):
                asked[name, place] = chat_about(answer.asked.image, _YES_NO.format(question=question))
        keys = {key: f"{key[0]}, claim {key[1]}" for key in asked}
        # At temperature 0 the reply begins with the likelier of the two words.
        verdicts = self._judge.ask(
            {keys[key]: chat for key, chat in asked.items()},
            _read_verdict,
            temperature=0.0,
            max_tokens=64,
            rows={keys[key]: rows[key[0]] for key in asked},
        )
        return [
            _claims(answer.text, split[name], [verdicts[keys[key]] for key in keys if key[0] == name])
            for name, answer in zip(names, answers, strict=True)
        ]

    def rewrite(self, answers: Sequence[tuple[Any, Checked]]) -> list[str | RecordError]:
        """Each answer as the judge puts it right; "" where it does not, a RecordError where it refuses."""
        prompts, rows = {}, {}
        for number, (asked, answer) in enumerate(answers):
            false = "\n".join(f"- {claim.object}" for claim in answer.claims if claim.verdict == FALSE)
            rows[f"{asked.id}, rewriting {number}"] = asked.id
            prompts[f"{asked.id}, rewriting {number}"] = [_message(_REWRITE.format(text=answer.text, false=false))]
        written = self._judge.ask(
            prompts, lambda text: text.strip() or None, temperature=0.0, max_tokens=2 * self._tokens, rows=rows
        )
        return [_refusal(verdict) or verdict.reading or "" for verdict in written.values()]


class LocalJudge:
    """The asked model itself: it is asked for each thing that the answer names, and p(yes) is compared with p(no)."""

    provenance = "the model itself"

    def __init__(self, tools: Tools) -> None:
        self._asker, self._batch = tools.asker, tools.settings.batch_size

    def __call__(self, answers: Sequence[Shown]) -> list[tuple[Claim, ...] | RecordError]:
        """The things that each answer names; equal questions about one image are asked once."""
        from mfpo.pairs.things import named_things

        things = [named_things(answer.text) for answer in answers]
        asked = {
            (answer.asked.id, name): answer.asked
            for answer, named in zip(answers, things, strict=True)
            for _, _, name in named
        }
        verdicts: dict[tuple[str, str], str] = {}
        keys = list(asked)
        for start in range(0, len(keys), 4 * self._batch):
            some = keys[start : start + 4 * self._batch]
            batch_verdicts = self._tell([asked[key] for key in some], [name for _, name in some])
            verdicts |= dict(zip(some, batch_verdicts, strict=True))
        return [
            tuple(Claim(start, end, name, verdicts[answer.asked.id, name]) for start, end, name in named)
            for answer, named in zip(answers, things, strict=True)
        ]

    def _tell(self, asked: Sequence[Any], names: Sequence[str]) -> list[str]:
        """Whether each thing is in its image: by the likelier of the tokens with which yes and no begin."""
        import torch

        from mfpo.answer.together import parts
        from mfpo.images import decode_image
        from mfpo.processors import encode_questions

        asker = self._asker()
        model, processor = asker.model, asker.processor
        questions = [f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the image?" for name in names]
        images = [decode_image(question.image) for question in asked]
        rows = []
        with torch.inference_mode():
            for part in parts(model, processor, questions, images):
                batch = encode_questions(processor, questions[part], images[part]).to(model.device, model.dtype)
                rows.append(model(**batch).logits[:, -1].float())
        logits, tokenizer = torch.cat(rows), processor.tokenizer
        sure, unsure = (logits[:, _tokens_of(word, tokenizer)].amax(dim=1) for word in ("yes", "no"))
        return [TRUE if is_there else FALSE for is_there in (sure > unsure).tolist()]


def _tokens_of(word: str, tokenizer: Any) -> list[int]:
    """The tokens that are `word` in one of its spellings; which one a model uses depends on its template.

    Where a tokenizer has none of them whole, those with which they begin.
    """
    spellings = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in spellings]
    return sorted({some[0] for some in ids if len(some) == 1} or {some[0] for some in ids})


def _refusal(*verdicts: "Verdict[Any]") -> RecordError | None:
    fault = next((verdict.fault for verdict in verdicts if verdict.fault), None)
    return RecordError(f"the judge refuses ({fault})") if fault else None


def _claims(
    text: str, split: "Verdict[list[tuple[str, str]]]", verdicts: Sequence["Verdict[str]"]
) -> tuple[Claim, ...] | RecordError:
    """The claims of an answer, in the order of their places; `verdicts` holds one for each that `split` names.

    An answer that the judge did not split is one claim, which is unknown.
    """
    if fault := _refusal(split, *verdicts):
        return fault
    if split.reading is None:
        return (Claim(0, len(text), text, UNKNOWN),)
    return tuple(
        sorted(
            Claim(*_place(text, words), words, verdict.reading or UNKNOWN)
            for (words, _), verdict in zip(split.reading, verdicts, strict=True)
        )
    )


def _message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _read_claims(reply: str) -> list[tuple[str, str]] | None:
    """The words and the question of each claim in a judge's JSON list, None where it cannot be read.

    >>> _read_claims('[1]: [{"words": "a dog", "question": "Is there a dog?"}]'), _read_claims("Sorry.")
    ([('a dog', 'Is there a dog?')], None)
    """
    found = _LIST.search(reply)
    if found is None:
        return None
    try:
        claims = json.loads(found.group())
        return [(str(claim["words"]), str(claim["question"])) for claim in claims]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _read_verdict(reply: str) -> str | None:
    from mfpo.answer.replies import begins_with

    return {"yes": TRUE, "no": FALSE, None: None}[begins_with(reply)]


def _place(text: str, words: str) -> tuple[int, int]:
    """Where the words of a claim stand in the answer; the whole answer where the judge changed them."""
    spaced = r"\s+".join(map(re.escape, words.split()))
    found = re.search(rf"(?<!\w){spaced}(?!\w)", text, re.IGNORECASE) if spaced else None
    return found.span() if found else (0, len(text))
