"""Paper, section 3.1: rejected images with corrupted key regions."""

from mfpo.calls import make_callable

make_callable(__name__, "mfpo.build.pipeline", "build")
