"""
Results computed from the rows of experiments/curves.py. The law of sizes: at each budget the size at which a
plan's loss is lowest, and power laws through these points (approach 2 of Hoffmann et al. 2022). And what RL
gains over its base, with paired intervals, as both are measured on the same problems.
"""
import numpy as np

from metrics import pass_at_k


def by_budget(rows):
    """Those budgets that are fitted, with three sizes or more, and the others: two dicts of their rows."""
    fitted, predicted = {}, {}
    for budget in sorted({row["budget"] for row in rows}):
        members = [row for row in rows if row["budget"] == budget]
        enough = len({row["depth"] for row in members}) > 2
        (fitted if enough else predicted)[budget] = members
    return fitted, predicted


def column(rows, key):
    return np.array([row[key] for row in rows])


def mean_losses(members):
    """The sizes there are, and the mean loss of each."""
    sizes = np.unique(column(members, "parameters"))
    return sizes, [column([row for row in members if row["parameters"] == size], "plan_loss").mean()
                   for size in sizes]


def near_best(members):
    """The rows of the best size and of up to two sizes on either side, of three sizes at least."""
    sizes, losses = mean_losses(members)
    best = int(np.argmin(losses))
    first = min(max(0, best - 2), len(sizes) - 3)
    return [row for row in members if row["parameters"] in sizes[first:max(best, first) + 3]]


def parabola(near):
    """log(loss) as a polynomial of log(parameters), of rows near the best size: farther away it is none."""
    return np.polyfit(np.log(column(near, "parameters")), np.log(column(near, "plan_loss")), 2)


def power_law(x, y):
    """(exponent, factor) of y = factor x^exponent."""
    exponent, height = np.polyfit(np.log(x), np.log(y), 1)
    return exponent, np.exp(height)


def flops_of(budgets):
    """The mean FLOPs of the runs of each budget."""
    return np.array([column(members, "flops").mean() for members in budgets.values()])


def compute_optimal(rows):
    """
    For each budget that is fitted, its FLOPs, the parameters at the lowest point of the parabola, kept within
    the sizes that it was fitted to, and the loss there: three arrays.
    """
    found = []
    for members in by_budget(rows)[0].values():
        near = near_best(members)
        x, curve = np.log(column(near, "parameters")), parabola(near)
        a, b, _ = curve
        lowest = np.clip(-b / (2 * a), x.min(), x.max()) if a > 0 else x[np.argmin(np.polyval(curve, x))]
        found.append((column(members, "flops").mean(), np.exp(lowest), np.exp(np.polyval(curve, lowest))))
    return np.array(found).reshape(-1, 3).T


def fit_sizes(rows, n_draws=1000):
    """
    The exponents of parameters ~ FLOPs^a and loss ~ FLOPs^-b along the lowest points, and the loss that they
    predict for budgets that were not fitted, as they have fewer than three sizes: rows of a table. The 95 %
    intervals come from drawing the seeds again, those that have all budgets; with one such seed there is
    none (nan).
    """
    fitted, predicted = by_budget(rows)
    rng, seeds = np.random.default_rng(0), sorted({row["seed"] for row in rows})
    complete = [seed for seed in seeds
                if by_budget([row for row in rows if row["seed"] == seed])[0].keys() == fitted.keys()]

    def quantities(drawn):
        flops, parameters, loss = compute_optimal(drawn)
        exponent, factor = power_law(flops, loss)
        return [power_law(flops, parameters)[0], -exponent, *factor * flops_of(predicted) ** exponent]

    def draw():
        return [row for seed in rng.choice(complete, len(complete)) for row in rows if row["seed"] == seed]

    low = high = [np.nan] * (2 + len(predicted))
    if len(complete) > 1:
        low, high = np.percentile([quantities(draw()) for _ in range(n_draws)], (2.5, 97.5), axis=0)
    names = ["exponent of parameters", "exponent of loss"]
    names += [f"loss at {budget} TFLOP" for budget in predicted]
    measured = ["", "", *(min(mean_losses(members)[1]) for members in predicted.values())]
    return [dict(zip(("quantity", "fitted", "low", "high", "measured"), line))
            for line in zip(names, quantities(rows), low, high, measured)]


# ------------------------------------------------------------------------------------------------------------
# RL over its base

def gains(rows, ks, n_samples, n_draws=1000):
    """
    By how much pass@k is above the base's, for each kind and budget: rows of a table. The 95 % intervals come
    from drawing seeds and problems again, the same ones for a run and its base, as a problem that is hard is
    hard for both (a paired bootstrap).
    """
    right = {(row["kind"], row["budget"], row["seed"]): np.array(str(row["right"]).split(), dtype=int)
             for row in rows}               # (problems,), of n_samples how many are right
    # What each such number comes to
    passes = {k: np.array([pass_at_k(n_samples, n, k) for n in range(n_samples + 1)]) for k in ks}
    seeds_of, rng, table = {}, np.random.default_rng(0), []
    for kind, budget, seed in right:
        if kind != "base" and ("base", 0, seed) in right:
            seeds_of.setdefault((kind, budget), []).append(seed)
    for (kind, budget), seeds in seeds_of.items():
        after = np.stack([right[kind, budget, seed] for seed in seeds])                 # (seeds, problems)
        before = np.stack([right["base", 0, seed] for seed in seeds])
        n_seeds, n_problems = after.shape
        drawn = (rng.integers(n_seeds, size=(n_draws, n_seeds, 1)),
                 rng.integers(n_problems, size=(n_draws, 1, n_problems)))
        for k in ks:
            gain = passes[k][after] - passes[k][before]
            low, high = np.percentile(gain[drawn].mean((1, 2)), (2.5, 97.5))
            table.append({"kind": kind, "budget": budget, "k": k, "gain": gain.mean(),
                          "low": low, "high": high})
    return table
