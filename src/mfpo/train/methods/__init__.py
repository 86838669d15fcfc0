"""The preference methods, a file each, named in `mfpo.train.objectives` and imported when asked for."""
