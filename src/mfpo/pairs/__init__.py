"""A model's own answers, checked claim by claim and paired: preference data from images alone."""

from mfpo.calls import make_callable

make_callable(__name__, "mfpo.pairs.run", "pairs")
