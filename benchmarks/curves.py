"""Draw a column of runs' metrics.csv over their steps, as the means of some rows.

    python benchmarks/curves.py runs/a/metrics.csv:label ... --column psnr \\
        [--rows 5] --out curves.svg

Needs matplotlib (extra "docs").
"""

import argparse
import csv

import matplotlib
import numpy as np

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "videomv"


def main() -> None:
    """Read, average, draw."""
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="FILE:LABEL")
    parser.add_argument("--column", required=True)
    parser.add_argument("--rows", type=int, default=5, help="rows in a mean")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    for run in options.runs:
        path, _, label = run.partition(":")
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        pairs = np.array(
            [[float(row[k]) for k in ("step", options.column)] for row in rows]
        )
        pairs = pairs[: len(pairs) // options.rows * options.rows]
        steps, values = pairs.reshape(-1, options.rows, 2).mean(1).T
        axes.plot(steps, values, label=label or path)
    axes.set(xlabel="step", ylabel=options.column)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
