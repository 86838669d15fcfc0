"""The learning rate of each method: its own best of the same few, on validation scenes that no table reports."""

CANDIDATES = (3e-6, 1e-5, 3e-5, 1e-4)

# Chosen as `mfpo reproduce rates` does.
RATES = {
    "dpo": 1e-5,
    "mdpo": 1e-4,
    "ddpo": 1e-5,
    "ha-dpo": 1e-4,
    "povid": 1e-5,
    "halva": 3e-5,
    "eos": 3e-5,
    "hacl": 1e-4,
    "mfpo": 3e-5,
}
