"""The decoders that `mfpo answer --decode` chooses from."""

from collections.abc import Callable

from mfpo.registry import Registry

# (model, processor, questions, images, max_new_tokens, *, own settings) -> a text a question
Decoder = Callable[..., list[str]]

DECODERS: Registry[Decoder] = Registry("decoder", "mfpo.answer", ("greedy", "vcd", "opera"))


def decoder(name: str) -> Callable[[Decoder], Decoder]:
    """Register a function as `mfpo answer --decode NAME`.

    It gets a model and its processor, a batch of questions (dicts with `question_id` and `text`), an opened image for
    each, and the maximum number of new tokens; it returns one text per question, in inference mode. Its keyword
    arguments annotated with `about` are its settings.
    """
    return DECODERS.register(name)
