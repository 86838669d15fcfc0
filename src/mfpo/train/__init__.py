"""Paper, sections 3.2 and 3.3: preference training, from easy to hard."""

from mfpo.calls import make_callable

make_callable(__name__, "mfpo.train.run", "train")
