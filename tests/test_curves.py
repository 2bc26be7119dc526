"""
The scaling curves: laws that are known are found again, losses are what the formula says, rows are run once.
"""
import argparse
import math

import numpy as np
import pytest
import torch

from common import save_table
from experiments.bases import answer
from experiments.curves import (KS, few_runs, missing, name, plan_loss, rl_runs, size_runs, step_flops,
                                step_runs)
from experiments.laws import compute_optimal, fit_sizes, gains, near_best
from model import GPT, GPTConfig
from scripts import run_here, table
from verify import TASKS, encode, make_problems


def law(budget, parameters):
    """A loss whose lowest point is at 1000 FLOPs^0.4, where it is 5 FLOPs^-0.3."""
    lowest, flops = 1000 * budget ** 0.4, budget * 1e12
    return {"budget": budget, "flops": flops, "parameters": parameters, "depth": parameters,
            "plan_loss": 5 * budget ** -0.3 * math.exp(0.1 * math.log(parameters / lowest) ** 2)}


def rows_of(budgets, sizes, noise=0.0):
    rng = np.random.default_rng(0)
    rows = [law(budget, size) | {"seed": seed} for budget in budgets for size in sizes for seed in range(3)]
    return [row | {"plan_loss": row["plan_loss"] * math.exp(noise * rng.normal())} for row in rows]


SIZES = [500, 1000, 2000, 4000, 8000]


def test_lowest_points_and_exponents_are_found_again():
    rows = rows_of([5, 10, 20, 40], SIZES)
    flops, parameters, loss = compute_optimal(rows)
    assert np.allclose(flops, np.array([5, 10, 20, 40]) * 1e12)
    assert np.allclose(parameters, 1000 * (flops / 1e12) ** 0.4)
    assert np.allclose(loss, 5 * (flops / 1e12) ** -0.3)
    of_parameters, of_loss = fit_sizes(rows, n_draws=20)
    assert of_parameters["fitted"] == pytest.approx(0.4) and of_loss["fitted"] == pytest.approx(0.3)
    assert of_loss["low"] == pytest.approx(0.3) and of_loss["high"] == pytest.approx(0.3)


def test_noise_widens_the_intervals_and_they_hold_the_truth():
    of_parameters, of_loss = fit_sizes(rows_of([5, 10, 20, 40], SIZES, noise=0.03), n_draws=200)
    assert of_parameters["low"] < 0.4 < of_parameters["high"] and of_loss["low"] < 0.3 < of_loss["high"]
    assert of_loss["low"] < of_loss["fitted"] < of_loss["high"]


def test_a_seed_that_lacks_a_budget_is_in_no_interval():
    rows = [row for row in rows_of([5, 10, 20, 40], SIZES, noise=0.03) if row["seed"] < 2]
    lacking = [row for row in rows if row["seed"] == 0 or row["budget"] < 20]
    assert all(math.isnan(law["low"]) and law["fitted"] > 0 for law in fit_sizes(lacking, n_draws=20))
    assert all(law["low"] < law["high"] for law in fit_sizes(rows, n_draws=20))


def test_a_budget_with_one_size_is_predicted_and_not_fitted():
    held_out = [row | {"plan_loss": 99.0} for row in rows_of([80], [6000])]
    laws = fit_sizes(rows_of([5, 10, 20, 40], SIZES) + held_out, n_draws=20)
    assert laws[2]["quantity"] == "loss at 80 TFLOP" and laws[2]["measured"] == 99.0
    assert laws[2]["fitted"] == pytest.approx(5 * 80 ** -0.3)
    assert laws[1]["fitted"] == pytest.approx(0.3)


def test_a_lowest_point_is_within_the_sizes_that_were_tried():
    too_small = [100, 200, 400]
    assert compute_optimal(rows_of([10], too_small))[1] == pytest.approx(400)
    upside_down = [row | {"plan_loss": 1 / row["plan_loss"]} for row in rows_of([10], SIZES)]
    assert compute_optimal(upside_down)[1] == pytest.approx(500)


def test_only_sizes_near_the_best_are_fitted():
    """Models that are far too large for a budget do not lie on any parabola, and do not bend it."""
    rows = rows_of([10], SIZES)
    spoilt = [row | {"plan_loss": 99.0} if row["parameters"] == 64_000 else row
              for row in rows + rows_of([10], [16_000, 32_000, 64_000])]
    assert {row["parameters"] for row in near_best(spoilt)} == {500, 1000, 2000, 4000, 8000}
    assert np.allclose(compute_optimal(spoilt), compute_optimal(rows))
    at_the_edge = [row for row in spoilt if row["parameters"] >= 4000]
    assert {row["parameters"] for row in near_best(at_the_edge)} == {4000, 8000, 16_000}


def test_the_loss_of_a_plan_by_hand():
    problems, solutions = make_problems("countdown", 3, 20, np.random.default_rng(0))
    lengths = [len(encode(TASKS["countdown"].hard_part(solution))) for solution in solutions]
    model = GPT(GPTConfig(1, 2, 16))        # its output layer starts at zero: all tokens are equally likely
    assert plan_loss(model, problems, solutions) == pytest.approx(np.mean(lengths) * math.log(64))
    with torch.no_grad():
        model.lm_head.weight.normal_()
        together = plan_loss(model, problems, solutions)
        nll = 0.0
        for problem, solution in zip(problems, solutions):
            prompt, part = encode(problem.prompt), encode(TASKS["countdown"].hard_part(solution))
            logprobs = model(torch.tensor([prompt + part]))[0].log_softmax(-1)[0]
            nll -= sum(logprobs[len(prompt) + i - 1, token].item() for i, token in enumerate(part))
    assert together == pytest.approx(nll / 20, rel=1e-4)


def test_steps_of_each_size_cost_the_same():
    args = argparse.Namespace(seeds=[0], budgets=[10], depths=[1, 3, 6])
    steps = [about["steps"] for about, _, _ in size_runs(args)]
    assert steps[1] == round(10e12 / 5.9e9) and steps[0] > 5 * steps[1] and steps[2] < steps[1] / 3


def test_solutions_with_and_without_a_chain_of_thought_cost_the_same():
    args = argparse.Namespace(seeds=[0], budgets=[4.0])
    found = {(about["kind"], about["level"]): about["steps"] for about, _, _ in step_runs(args)}
    assert len(found) == 16 and found["with steps", 1] == found["direct", 1]   # one operator: one line
    assert all(found["direct", level] > 1.3 * found["with steps", level] for level in range(2, 9))
    whole, last = step_flops(4, lambda solution: solution), step_flops(4, answer)
    assert found["with steps", 4] == round(4e12 / whole) and found["direct", 4] == round(4e12 / last)


def test_rl_and_search_start_from_the_same_few_solutions():
    args = argparse.Namespace(seeds=[0], budgets=[4.0], base=20, examples=[100, 1000], out="out/curves",
                              experiment="few")
    runs = {(about["kind"], about["examples"]): commands for about, commands, _ in few_runs(args)}
    assert len(runs) == 6 and len(missing(list(few_runs(args)), {}, args)) == 6
    assert "--kind few --solutions 100 " in runs["SFT", 100][0]
    for kind in ("then RL", "then search"):
        assert "--init out/curves/few/kindSFT_examples1000_budget0.0_seed0/sft.pt" in runs[kind, 1000][0]
    assert "--sft-coef 0 " in runs["then RL", 1000][0]                  # fresh solutions would be no few
    find, learn = runs["then search", 1000]
    assert "--save {out}/found.jsonl" in find and "--data {out}/found.jsonl" in learn
    assert f"--n-problems {round(4e12 / 0.9e9)} " in find
    every = {name(about): about for about, _, _ in few_runs(args) if about != {
        "kind": "then RL", "examples": 1000, "budget": 4.0, "seed": 0}}
    assert [name(about) for about, _, _ in missing(list(few_runs(args)), every, args)] == [
        "kindSFT_examples1000_budget0.0_seed0", "kindthen_RL_examples1000_budget4.0_seed0"]


def test_rows_are_run_once_and_tables_hold_all(tmp_path, capsys):
    flags = ["sizes", "--budgets", "0.02", "--depths", "1", "2", "--n-problems", "8",
             "--out", tmp_path / "runs", "--results", tmp_path]
    run_here("experiments.curves", *flags, "--seeds", "0")
    first = table(tmp_path / "sizes.csv")
    assert [row["depth"] for row in first] == ["1", "2"] and all(float(row["plan_loss"]) for row in first)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("sft.pt")}
    run_here("experiments.curves", *flags, "--seeds", "0")
    assert table(tmp_path / "sizes.csv") == first
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("sft.pt")}
    # What the table has is not run again without the folders either, and is kept beside what is new
    elsewhere = [*flags, "--out", tmp_path / "elsewhere"]
    run_here("experiments.curves", *elsewhere, "--seeds", "0")
    assert table(tmp_path / "sizes.csv") == first and not list((tmp_path / "elsewhere").rglob("sft.pt"))
    run_here("experiments.curves", *elsewhere, "--seeds", "1", "--depths", "1")
    assert table(tmp_path / "sizes.csv")[:2] == first and len(table(tmp_path / "sizes.csv")) == 3


def test_a_base_without_checkpoint_is_made_again_if_a_run_needs_it(tmp_path):
    args = argparse.Namespace(seeds=[0, 1], budgets=[1.0], base=40, out=str(tmp_path), experiment="rl")
    runs = list(rl_runs(args))
    every = {name(about): about for about, _, _ in runs}
    assert missing(runs, every, args) == []
    del every["kindRL_budget1.0_seed1"]
    assert [name(about) for about, _, _ in missing(runs, every, args)] == [
        "kindbase_budget0.0_seed1", "kindRL_budget1.0_seed1"]
    (tmp_path / "rl" / "kindbase_budget0.0_seed1").mkdir(parents=True)
    (tmp_path / "rl" / "kindbase_budget0.0_seed1" / "sft.pt").touch()
    assert len(missing(runs, every, args)) == 1


def test_gains_over_the_base_are_paired():
    """
    Problems differ much, RL and its base on each of them little: so the interval is narrow. RL makes one in
    four, solved by 64 of 256 samples, twice as easy, and forgets one in four, solved by one of them.
    """
    before, after = [0, 64, 1, 256] * 50, [0, 128, 0, 256] * 50
    rows = [{"kind": kind, "budget": budget, "seed": seed, "right": " ".join(map(str, right))}
            for seed in (0, 1) for kind, budget, right in (("base", 0, before), ("RL", 1, after))]
    rows.append({"kind": "RL", "budget": 1, "seed": 2, "right": "256"})             # its base is not there
    first, last = gains(rows, (1, 256), 256)
    assert first["gain"] == pytest.approx((0.25 - 1 / 256) / 4) and last["gain"] == pytest.approx(-0.25)
    for row in (first, last):
        assert row["low"] < row["gain"] < row["high"]
        assert row["high"] - row["low"] < 0.15                          # of the last 0.18, were it not paired
    assert last["high"] < 0 < first["low"]
    same = [row | {"right": rows[0]["right"]} for row in rows[:4]]
    assert {(row["gain"], row["low"], row["high"]) for row in gains(same, (1, 256), 256)} == {(0, 0, 0)}


def test_pictures_are_drawn_of_what_is_there(tmp_path):
    rows = [row | {"seed": 0} for row in rows_of([5, 10], SIZES) + rows_of([80], [6000])]
    save_table(tmp_path / "sizes.csv", rows)
    of_rl = [{"kind": kind, "budget": budget, "seed": 0, "flops": 4e13 + budget * 1e12, "single_best_t": 0.8,
              "right": "0 128 256", **{f"pass{k}": 0.7 for k in KS}}
             for kind, budget in (("base", 0), ("RL", 1), ("RL", 3), ("more SFT", 1))]
    save_table(tmp_path / "rl.csv", of_rl)
    save_table(tmp_path / "steps.csv", [
        {"kind": kind, "level": level, "budget": 4, "seed": 0, "greedy": 0.5, "majority": 0.6}
        for kind in ("with steps", "direct") for level in (1, 2)])
    save_table(tmp_path / "few.csv", [
        {"kind": kind, "examples": n, "budget": 4, "seed": 0, "sampled": 0.5, "pass16": 0.6}
        for kind in ("SFT", "then RL", "then search") for n in (100, 1000)])
    ran = run_here("experiments.plot_curves", tmp_path)
    assert ran.returncode == 0, ran.stderr
    for picture in ("sizes.png", "rl.png", "steps.png", "few.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "rl.csv").write_text("a,b\n1,2\n")
    refused = run_here("experiments.plot_curves", tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "rl.csv" in refused.stderr
    assert run_here("experiments.plot_curves", tmp_path / "none").returncode == 2
