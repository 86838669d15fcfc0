"""The picture book: drawn scenes whose objects are known exactly, and a tiny LLaVA that was trained on them.

It is a source, a segmenter and a model for `mfpo demo`, the tests and the docs; the rest of the package does not know
it.
"""
