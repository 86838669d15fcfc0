"""Questions about images to answers: local models, vLLM or an endpoint; greedily, or by VCD or OPERA."""

from mfpo.calls import make_callable

make_callable(__name__, "mfpo.answer.run", "answer")
