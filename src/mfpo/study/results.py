"""An experiment's result: a table, the paper's numbers next to ours, and whether ours agree with the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mfpo.report.plots import Line
from mfpo.study.paper import NOT_IN_PAPER, PAPER, PaperTable
from mfpo.study.statistics import Estimate, Scores, difference, estimate
from mfpo.study.study import Study
from mfpo.study.trials import Trial

# Figures of which less is better.
LOWER_IS_BETTER = frozenset({"chair_s", "chair_i", "amber_chair", "amber_hal", "amber_cog", "mmhal_rate"})


@dataclass(frozen=True)
class Claim:
    """Row `better` is better than row `worse` in `figure`; `is_papers` says whether the paper says so, or we ask it.

    `gain` is how much better it is in the paper, where both numbers are printed.
    """

    better: str
    worse: str
    figure: str = "chair_s"
    is_papers: bool = True
    gain: float | None = None


def claim(name: str, one: str, other: str, figure: str = "chair_s") -> Claim:
    """What the paper's table `name` says of two of its rows.

    Where a number is missing or in doubt, we ask whether `one` is better.
    """
    first, second = (PAPER[name].number(row, figure) for row in (one, other))
    if first is None or second is None or first == second:
        return Claim(one, other, figure, is_papers=False)
    is_better = (first < second) == (figure in LOWER_IS_BETTER)
    better, worse = (one, other) if is_better else (other, one)
    return Claim(better, worse, figure, gain=round(abs(first - second), 2))


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim: `gain` is how much better the row is here, with its interval."""

    claim: Claim
    gain: Estimate

    @property
    def word(self) -> str:
        """Whether the whole interval speaks for the claim, or against it; one seed settles nothing."""
        if self.gain.seeds == 1:
            return "one seed"
        if self.gain.low <= 0 <= self.gain.high:
            return "not settled"
        if not self.claim.is_papers:
            return "settled"
        return "as in the paper" if self.gain.low > 0 else "against the paper"


@dataclass(frozen=True)
class Table:
    """Estimates by row and figure, the paper's table with the same rows and more, and the verdicts on its claims."""

    rows: Mapping[str, Mapping[str, Estimate]]
    columns: Mapping[str, str]
    paper: PaperTable = NOT_IN_PAPER
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True)
class Plot:
    """Lines by name, drawn into one plot; `log_x` gives its x axis a logarithmic scale."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Line]
    log_x: bool = False


@dataclass(frozen=True)
class Result:
    """An experiment's result; `lead` are the sentences that its page begins with, `notes` those that it ends with."""

    title: str
    table: Table
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()
    lead: Sequence[str] = ()


def fill(
    study: Study,
    trials: Mapping[str, Trial],
    *,
    columns: Mapping[str, str] | None = None,
    paper: PaperTable = NOT_IN_PAPER,
    claims: Sequence[Claim] = (),
) -> Table:
    """Score the trials, row by row; `columns` are figures by key, those of the scale if not given.

    Columns that no row has are left out, and so are claims of figures and rows of preference data that the scale does
    not have.
    """
    columns = study.scale.figures if columns is None else columns
    trials = {row: trial for row, trial in trials.items() if trial.data.source in study.scale.sources}
    scores = {row: study.scores(trial) for row, trial in trials.items()}
    known = [
        claim
        for claim in claims
        if claim.figure in study.scale.figures and {claim.better, claim.worse} <= scores.keys()
    ]
    return replace(table_of(scores, columns, known), paper=paper)


def table_of(scores: Mapping[str, Sequence[Scores]], columns: Mapping[str, str], claims: Sequence[Claim] = ()) -> Table:
    """The estimates of each row's scores, and the verdicts on the claims.

    Scores that were kept before a figure came into being lack it.
    """
    rows = {
        row: {figure: estimate(by_seed, figure) for figure in columns if all(figure in counts for counts in by_seed)}
        for row, by_seed in scores.items()
    }
    shown = {figure: title for figure, title in columns.items() if any(figure in figures for figures in rows.values())}
    return Table(rows, shown, verdicts=judge(claims, scores))


def worth(figures: Mapping[str, Estimate]) -> float:
    """The harmonic mean of 100 - CHAIR_s and Cover, by which rates are chosen: silence does not win."""
    right, cover = 100 - figures["chair_s"].mean, figures["cover"].mean
    return 2 * right * cover / (right + cover)


def judge(claims: Sequence[Claim], scores: Mapping[str, Sequence[Scores]]) -> list[Verdict]:
    """The verdicts on the claims, from the rows' scores."""
    verdicts = []
    for claim in claims:
        better, worse = scores[claim.better], scores[claim.worse]
        if claim.figure in LOWER_IS_BETTER:
            better, worse = worse, better
        verdicts.append(Verdict(claim, difference(better, worse, claim.figure)))
    return verdicts


def add_columns(table: Table, columns: Mapping[str, str], scores: Mapping[str, Sequence[Scores]]) -> Table:
    """The table with more figures, of the rows that have `scores` of them."""
    rows = {
        row: {**shown, **{figure: estimate(scores[row], figure) for figure in columns if row in scores}}
        for row, shown in table.rows.items()
    }
    return replace(table, rows=rows, columns={**table.columns, **columns})


def line(table: Table, points: Mapping[float, str], figure: str) -> Line:
    """A figure of the rows in `points`, x -> row, as a line with its intervals."""
    return line_of(list(points), [table.rows[row][figure] for row in points.values()])


def line_of(x: Sequence[float], estimates: Sequence[Estimate]) -> Line:
    """Estimates over x as a line with its intervals."""
    means, lows, highs = ([getattr(each, end) for each in estimates] for end in ("mean", "low", "high"))
    return Line(x=x, y=means, low=lows, high=highs)
