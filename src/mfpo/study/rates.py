"""The learning rate of each method: its own best of the same few, on validation scenes that no table reports."""

from mfpo.study.study import Study
from mfpo.study.tables import Table, fill
from mfpo.study.trials import Trial, trained

CANDIDATES = (3e-6, 1e-5, 3e-5, 1e-4)

# What `mfpo reproduce rates` chose; docs/reproduce/rates.md has its table.
RATES = {
    "dpo": 1e-5,
    "mdpo": 3e-5,
    "ddpo": 3e-5,
    "ha-dpo": 1e-5,
    "povid": 1e-5,
    "halva": 1e-5,
    "eos": 3e-5,
    "hacl": 3e-5,
    "mfpo": 3e-5,
}


def validate(study: Study) -> tuple[Table, dict[str, float]]:
    """Every method at every rate, and the rate of each that is best: the harmonic mean of 100 - CHAIR_s and Cover, so
    that silence does not win."""
    trials = {"base": Trial()}
    names = {(method, rate): f"{method}, {rate:g}" for method in RATES for rate in CANDIDATES}
    trials |= {name: trained(method, rate) for (method, rate), name in names.items()}
    table = fill(study, trials)

    def harmonic_mean(method: str, rate: float) -> float:
        row = table.rows[names[method, rate]]
        right, cover = 100 - row["chair_s"].mean, row["cover"].mean
        return 2 * right * cover / (right + cover)

    return table, {method: max(CANDIDATES, key=lambda rate: harmonic_mean(method, rate)) for method in RATES}
