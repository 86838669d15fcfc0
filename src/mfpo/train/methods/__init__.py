"""The preference methods, a file each; importing this package registers all of them."""

from mfpo.train.methods import ddpo, dpo, eos, ha_dpo, hacl, halva, mdpo, mfpo, povid

__all__ = ["ddpo", "dpo", "eos", "ha_dpo", "hacl", "halva", "mdpo", "mfpo", "povid"]
