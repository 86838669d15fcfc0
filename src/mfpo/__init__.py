"""Modality-Fair Preference Optimization (Jiang et al., IJCAI 2025) for vision-language models."""

__version__ = "0.1.0"
