"""How the constants of the network were chosen: least sum of absolute errors of scaling, over a grid.

    python -m bench.scaling.fitting

Only series that are marked `fitted` have a part in it. Absolute errors let a single odd row weigh no more than others.
"""

from __future__ import annotations

import itertools
import math

import click

from bench.scaling.networks import Fitted
from bench.scaling.published import Series, published, runs_of
from bench.scaling.step import step_time
from tutelage_advisor.catalog import Catalog, load

SHARES = tuple(round(0.4 + 0.05 * step, 2) for step in range(13))
WAITINGS = tuple(round(0.001 * step, 3) for step in range(16))


def misfit(series: Series, catalog: Catalog, fitted: Fitted) -> float:
    """Sum of the absolute logarithms of predicted over measured scaling."""
    predicted = [step_time(run).per_gpu for run in runs_of(series, catalog, fitted)]
    measured = [row[3] for row in series.rows]
    pairs = zip(predicted[1:], measured[1:], strict=True)
    return sum(abs(math.log(found / predicted[0]) - math.log(real / measured[0])) for found, real in pairs)


def fit(catalog: Catalog) -> Fitted:
    """The constants that fit best."""
    series = [each for each in published().series if each.fitted]
    grid = (Fitted(*values) for values in itertools.product(SHARES, WAITINGS))
    return min(grid, key=lambda each: sum(misfit(one, catalog, each) for one in series))


@click.command()
def main() -> None:
    """Print the constants that fit best."""
    found = fit(load())
    click.echo(f"NETWORK_SHARE {found.share}, WAITING {found.waiting}")


if __name__ == "__main__":
    main()
