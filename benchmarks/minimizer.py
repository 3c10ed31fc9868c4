"""The potential's minimizer for random effective initializations from 1 down to e^-300.

``python benchmarks/minimizer.py [--problems 10000]`` prints how many ended without a warning, how far
the worst is from an interpolator and from its optimality condition, and the median processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np

from lowland.diagonal import kkt_residual, minimum_potential, sparse_regression


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=10_000)
    problems = parser.parse_args().problems
    warnings.simplefilter("error")
    apart, residuals, seconds = [], [], []
    for seed in range(problems):
        problem = sparse_regression(seed=seed, n=20, d=30, sparsity=3, n_test=0)
        alpha = np.exp(-np.random.default_rng(seed).uniform(0.0, 300.0, problem.d))
        start = time.process_time()
        beta = minimum_potential(problem, alpha)
        seconds.append(time.process_time() - start)
        apart.append(np.abs(problem.X @ beta - problem.y).max())
        residuals.append(kkt_residual(beta, alpha, problem.X))
    print(
        f"{len(apart)} problems without a warning, |X beta - y| at most {max(apart):.1e}, "
        f"KKT residual at most {max(residuals):.1e}, {1e3 * statistics.median(seconds):.1f} ms each"
    )


if __name__ == "__main__":
    main()
