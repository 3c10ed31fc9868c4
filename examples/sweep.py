"""
A sweep over rho and m
======================

SAM's radius must be chosen, and the best one is not the same for every m. :mod:`lowland.sweeps` makes all
runs of a grid, each once, keeps them in a directory, and goes on where it was stopped. ``lowland sweep`` is
the same as a command.
"""

# %%
# The grid
# --------
# Each option has a list of values, and every combination is a run. An option that a run would not read is
# left out of it: ERM has no m, so that it is one kind of run and not two.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from lowland.deep import Place
from lowland.sweeps import Here, Study, carried_out, grid, mean_and_deviation, points

plt.style.use("lowland.figures.lowland")

options = {
    "dataset": ["digits"],
    "frac_train": [0.44],
    "p_label_noise": [0.4],
    "model": ["fc"],
    "model_width": [128],
    "batch_size": [64],
    "epochs": [15],
    "sam_rho": [0.0, 0.1, 0.2, 0.4],
    "m": [16, 64],
    "seed": [0, 1],
}
folder = tempfile.TemporaryDirectory()
study = Study.of(grid(options), Path(folder.name))
print(len(study.tasks), "runs; swept:", ", ".join(study.grid.swept))

# %%
# Carried out
# -----------
# ``Here()`` makes one run after the other. ``Processes(jobs=8)`` makes eight at once, below ``if __name__ ==
# "__main__":`` in a script, and :class:`lowland.sweeps.ray.Ray` spreads them over machines.
# What is there already is not run again. ``watch=`` is told of progress, and what is returned says why a run failed.

place = Place("cpu", threads=1)
failures = carried_out(study.tasks, study.store, Here(), place=place)

# %%
# What was found
# --------------
# Runs that differ in the seed only are one point. The radius of each m is chosen by the validation error (its
# labels are as wrong as those that are trained on); the test error chooses nothing.

found = points(study.rows("test_error", "last"), study.grid.swept)
print("   ρ     m    test error (%)   validation error (%)")
for point in found:
    rho, m = point.options["sam_rho"], point.options["m"]
    (test, spread), (validation, _) = (
        mean_and_deviation(point.values),
        mean_and_deviation(point.validation),
    )
    chosen = "chosen" if point.is_chosen and point.rivals else ""
    print(
        f"{rho:4} {m or '-':>5} {100 * test:9.1f} ± {100 * spread:3.1f} {100 * validation:17.1f}  {chosen}"
    )

figure, ax = plt.subplots(figsize=(6, 3.2))
for m, marker in zip(options["m"], "os", strict=True):
    own = [point for point in found if point.options["m"] == m]
    rhos = [point.options["sam_rho"] for point in own]
    means, spreads = zip(
        *(mean_and_deviation(point.values) for point in own), strict=True
    )
    (line, *_) = ax.errorbar(
        rhos,
        [100 * v for v in means],
        [100 * v for v in spreads],
        marker=marker,
        capsize=3,
        label=f"m = {m}",
    )
    for point in own:
        if point.is_chosen:
            best = point.options["sam_rho"], 100 * mean_and_deviation(point.values)[0]
            ax.plot(
                *best, marker, color=line.get_color(), markersize=11, fillstyle="none"
            )
erm = next(point for point in found if not point.options["sam_rho"])
ax.axhline(
    100 * mean_and_deviation(erm.values)[0], color="k", linestyle="--", label="ERM"
)
ax.set(
    xscale="log",
    xlabel="ρ (rings: chosen by validation)",
    ylabel="test error (%)",
    yscale="log",
)
ax.set_yticks((5, 10, 20, 50, 100), (5, 10, 20, 50, 100))
ax.set_xticks(options["sam_rho"][1:], options["sam_rho"][1:])
ax.minorticks_off()
_ = ax.legend(ncols=2)
folder.cleanup()

# %%
# What can be seen: a radius that is too large ruins training, and it does so sooner for small m. What cannot:
# which of the others is best. 130 validation examples, two fifths of them with wrong labels, hardly tell one
# from another, and the choice need not fall on the lowest test error. To choose better takes more seeds or
# more validation data; to choose by the test error would not be fair. Nor do two seeds show a difference
# between the two m.
