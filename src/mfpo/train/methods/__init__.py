"""The preference methods, one file each, named in `mfpo.train.objectives` and imported on first use."""
