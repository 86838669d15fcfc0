"""Decoding that is meant to hallucinate less, without training: VCD and OPERA."""
