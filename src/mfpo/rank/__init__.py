"""Paper, section 3.3: records from easy to hard, by the model's entropy."""

from mfpo.calls import make_callable

make_callable(__name__, "mfpo.rank.run", "rank")
