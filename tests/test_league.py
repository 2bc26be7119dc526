"""
The league: its command lines are ones the scripts take, rows are measured from the tables they wrote, none is
run twice, and its picture shows what the table says.
"""
import os
import re
import shlex

import matplotlib.pyplot as plt
import pytest

from experiments import league, plot_league
from metrics import wilson
from plot import read
from scripts import ROOT, run_here, table, write_table
from verify import TASKS

NAMES = {"seed": 0, "split": "test", "lr": 0.001, "out": "o u t", "base_dir": "b", "n_problems": 7,
         "level": 3, "base_steps": 5, "n": 2,
         "stream": 99, "sampled": 160, "searched": 150, "model": "m.pt", "r": 1}


def words_of(command):
    """The script of a command line, and the words behind it."""
    words = shlex.split(command.format(**{key: shlex.quote(str(value)) for key, value in NAMES.items()}))
    return (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])


def all_commands(monkeypatch):
    commands = [league.BASE, *(command for _, commands, _, _ in league.ROWS.values() for command in commands)]
    monkeypatch.setattr(league, "run", lambda command, log, **names: commands.append(command))
    for writes_verdicts in (False, True):
        league.search_for_answers("m.pt", writes_verdicts, "log.txt", {})
    return list(dict.fromkeys(commands))


def test_every_command_has_flags_that_its_script_knows(monkeypatch):
    """And values that it takes: with --help at the end a script reads what stands before it, and ends."""
    monkeypatch.setenv("COLUMNS", "100000")                             # no flag broken at its hyphen
    commands = all_commands(monkeypatch)
    scripts = set()
    for command in commands:
        script, words = words_of(command)
        done = run_here(script, *words, "--help")
        assert done.returncode == 0, f"{command}: {done.stderr}"
        flags = [word for word in words if word.startswith("--")]
        assert flags and all(re.search(rf" {flag}[ \n]", done.stdout) for flag in flags), command
        scripts.add(script)
    assert scripts == {"train_sft.py", "train_rl.py", "search.py", "experiments.rewrite",
                       "experiments.rewards", "experiments.judges"}


def test_a_flag_or_a_value_that_a_script_does_not_know_would_be_found():
    assert run_here("search.py", "--methods", "revise", "--help").returncode == 2
    assert run_here("train_rl.py", "--algo", "ppo-exact", "--help").returncode == 2
    assert " --judge " not in run_here("search.py", "--help").stdout


# ------------------------------------------------------------------------------------------------------------
# Rows

@pytest.fixture
def ran(monkeypatch, tmp_path):
    """
    Commands are kept, not run; what they would write is a stand-in, whose FLOPs grow from one to the next,
    and whose samples are best at the lowest learning rate of validation, and on test problems at the highest.
    """
    commands = []

    def run(command, log, **names):
        command = command.format(**names)
        commands.append(command)
        out = re.search("--out ([^ ]+)", command)
        trained = {"step": 6800, "flops": 1e12 * len(commands), "greedy": 0.5, "sampled": 0.4, "pass16": 0.9,
                   "value_auc": 0.8}
        best_lr = {"validation": min(league.RATES), "test": max(league.RATES)}[names["split"]]
        trained["sampled"] += 0.1 * (names.get("lr") == best_lr)
        if command.startswith(("train", "-m experiments.rewards")):
            name = "sft" if command.startswith("train_sft") else "rl"
            write_table(f"{out[1]}/{name}.csv", [trained])
            open(f"{out[1]}/{name}.pt", "w").close()
        elif "--methods greedy" in command:
            methods = [*league.ALONE, *league.OWN, *league.VERIFIED]
            methods += league.OWN_MORE if "experiments.judges" in command else []
            best = {"vote (value)": 0.6, "best-of-n (verdict)": 0.7, "single sample (best T)": 0.45,
                    "heuristic": 0.3}
            write_table(f"{out[1]}/search.csv", [
                {"method": method, "budget": budget, "accuracy": best.get(method, 0.5 + budget / 1e5),
                 "tokens_per_problem": 27} for method in methods for budget in league.BUDGETS])
    monkeypatch.setattr(league, "run", run)
    return commands


def league_main(monkeypatch, tmp_path, *flags):
    folders = ["--out", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", ["league.py", *folders, *flags])
    league.main()
    return table(tmp_path / "results" / "league.csv")


def test_a_league_is_a_table_of_all_rows_and_goes_on_where_it_was(monkeypatch, tmp_path, ran):
    names = ["base", "REINFORCE", "guidance: search, distil"]
    rows = league_main(monkeypatch, tmp_path, "--seeds", "0", "--rows", *names)
    assert [row["row"] for row in rows] == names
    assert ran[0].startswith("train_sft.py")
    assert sum("--steps 6800" in command for command in ran) == 1       # one base
    tried = [command for command in ran if "guidance" in command and "train_sft.py" in command]
    n_rounds = league.ROWS[names[2]][2]
    assert len(tried) == n_rounds * (len(league.RATES) + 1)             # each rate, and once more the best
    assert all("--split validation" in command for command in tried[:-n_rounds])
    assert [sum(f"--lr {lr} " in command for command in tried[:-n_rounds])
            for lr in league.RATES] == [n_rounds] * len(league.RATES)
    rounds = tried[-n_rounds:]
    assert all(f"--lr {min(league.RATES)} " in command and "--split test" in command for command in rounds)
    assert [row["lr"] for row in rows] == ["", *[str(min(league.RATES))] * 2]
    assert rows[1]["sampled"] == "0.4"      # on test problems
    rates = table(tmp_path / "results" / "league_rates.csv")
    assert [(row["row"], float(row["lr"])) for row in rates] == [
        (name, lr) for name in names[1:] for lr in league.RATES]
    assert [float(row["sampled"]) for row in rates] == [0.5 if lr == min(league.RATES) else 0.4
                                                        for _ in names[1:] for lr in league.RATES]
    for r in range(1, len(rounds)):         # each from the one before
        assert f"--init {tmp_path}/work/level3_seed0/guidance__search__distil/round{r}/sft.pt" in rounds[r]
    assert rows[0]["own256"] == "0.6" and rows[0]["own256_method"] == "vote (value)"
    assert rows[0]["verified1024_method"] in league.VERIFIED and rows[0]["single_best_t"] == "0.45"
    assert rows[0]["heuristic1024"] == "0.3" and rows[0]["tokens_greedy"] == "27.0"
    assert float(rows[0]["train_flops"]) == 0 and float(rows[1]["train_flops"]) > 0
    write_table(tmp_path / "results" / "league.csv", [row for row in rows if row["row"] != "REINFORCE"])
    again = league_main(monkeypatch, tmp_path, "--seeds", "0", "--rows", *names)
    assert [row["row"] for row in again] == names       # one made again, and its rates are there once
    assert len(table(tmp_path / "results" / "league_rates.csv")) == len(rates)
    n = len(ran)
    rows = league_main(monkeypatch, tmp_path, "--seeds", "0", "1", "--rows", *names[:2])
    assert len(rows) == 5 and len(ran) > n and not any("seed0" in command for command in ran[n:])
    lines = (tmp_path / "results" / "league.md").read_text().splitlines()
    assert len(lines) == 2 + 3 + 1 and "| REINFORCE | 0.0003 | 50.0 ± " in lines[3]
    assert lines[-1].count("30.0 ± ") == 2 == lines[-1].count("<br>heuristic")
    assert lines[-1].startswith(f"|  | {league.HEURISTIC} |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_model_that_writes_verdicts_may_choose_by_them(monkeypatch, tmp_path, ran):
    names = ["verdicts, outcome labels", "continuations *", "composites *", "PPO, exact process reward *"]
    rows = {row["row"]: row for row in league_main(monkeypatch, tmp_path, "--seeds", "0", "--rows", *names)}
    for name in names[:2]:
        assert rows[name]["own256"] == "0.7" and rows[name]["own256_method"] == "best-of-n (verdict)"
    for name in names[2:]:
        assert rows[name]["own256_method"] == "vote (value)"
    ran = [command for command in ran if "/lr0" not in command]         # without those that choose a rate
    streams = [command for command in ran if "--max-tokens" in command]
    assert len(streams) == 2 and "/continuations" in streams[0] and "/composites" in streams[1]
    assert all(f"--max-tokens {3 * TASKS['countdown'].max_tokens(3)}" in command for command in streams)
    exact, = [command for command in ran if "ppo-exact" in command]
    assert exact.startswith("-m experiments.rewards ")
    searched = [command for command in ran if "PPO__exact" in command and "--methods greedy" in command]
    assert "PPO__exact_process_reward__/rl.pt" in searched[0]           # what RL wrote, not the base


def test_another_level_has_longer_searches_and_a_folder_of_its_own(monkeypatch, tmp_path, ran):
    monkeypatch.chdir(tmp_path)
    names = ["filter: sample, imitate", "guidance: search, distil"]
    monkeypatch.setattr("sys.argv", ["league.py", "--level", "4", "--seeds", "0", "--rows", *names])
    league.main()
    assert ran[0].startswith("train_sft.py --level 4 ") and ran[1].endswith("--budgets 320")
    assert os.path.exists("out/league_level4/league.md")
    assert any("mcts" in command and command.endswith("--budgets 300") for command in ran)
    monkeypatch.setattr("sys.argv", ["league.py", "--results", "out/league_level4"])
    with pytest.raises(SystemExit) as stopped:                          # three numbers in the same table
        league.main()
    assert stopped.value.code == 2


def test_a_quick_league_tries_one_rate(monkeypatch, tmp_path, ran):
    row, = league_main(monkeypatch, tmp_path, "--quick", "--rows", "REINFORCE")
    assert row["lr"] == str(league.RATES[0]) and not any("validation" in command for command in ran)


def test_a_base_that_was_stopped_is_trained_again(monkeypatch, tmp_path, ran):
    stopped = {"step": 3000, "flops": 1.0, "greedy": 0.1, "sampled": 0.1, "pass16": 0.1, "value_auc": 0.5}
    write_table(f"{tmp_path}/work/level3_seed0/base/sft.csv", [stopped])
    row, = league_main(monkeypatch, tmp_path, "--seeds", "0", "--rows", "base")
    assert ran[0].startswith("train_sft.py") and row["greedy"] == "0.5"


def test_interval_is_wilsons():
    low, high = wilson(800, 1000)
    mean, half = league.with_interval([0.7, 0.9], 1000).split(" ± ")
    assert mean == "80.0" and half == "2.5" and float(half) == pytest.approx(50 * (high - low), abs=0.06)


@pytest.mark.parametrize("command", ["train_sft.py --steps 0", "-m experiments.rewards --steps 0"])
def test_a_command_that_fails_ends_the_league(monkeypatch, tmp_path, capfd, command):
    monkeypatch.chdir(tmp_path)             # the scripts are found from anywhere
    with pytest.raises(SystemExit) as end:
        league.run(command, str(tmp_path / "log.txt"))
    said = capfd.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "log.txt" in said and command in said
    assert "argument --steps" in (tmp_path / "log.txt").read_text()


def test_folders_may_have_spaces(monkeypatch, tmp_path):
    """A command line is split into words after the names were put in."""
    kept = []

    class Done:
        def wait(self):
            return 0
    monkeypatch.setattr(league.subprocess, "Popen", lambda words, **others: kept.append(words) or Done())
    league.run(league.SEARCH, str(tmp_path / "log.txt"), **NAMES)
    assert kept[0][1] == os.path.join(ROOT, "search.py") and "o u t/found1.jsonl" in kept[0]
    assert "mcts (verifier)" in kept[0]


# ------------------------------------------------------------------------------------------------------------
# The picture

def test_the_picture_shows_the_means_of_the_seeds(monkeypatch, tmp_path, ran):
    rows = league_main(monkeypatch, tmp_path, "--seeds", "0", "1", "--rows", "base", "REINFORCE")
    for row in rows:
        row["greedy"] = {("base", "0"): 0.2, ("base", "1"): 0.4}.get((row["row"], row["seed"]), 0.8)
    path = tmp_path / "results" / "league.csv"
    write_table(path, rows)
    axis = plt.figure(layout="constrained").add_subplot()
    plot_league.draw_league(axis, read([path.parent], path.name))
    blue = [line for line in axis.get_lines() if line.get_color() == "tab:blue"]
    points, = [line for line in blue if line.get_marker() == "o"]
    assert list(points.get_xdata()) == pytest.approx([30, 80]) and list(points.get_ydata()) == [0, 1]
    spans = [list(line.get_xdata()) for line in blue if line is not points]
    assert spans == [pytest.approx([20, 40]), pytest.approx([80, 80])]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:2] == ["base  0", "REINFORCE  1"] and len(labels) == 3     # and the heuristic
    plt.close("all")
    axis = plt.figure().add_subplot()
    plot_league.draw_sharpening(axis, read([path.parent], path.name))
    shown = {text.get_text(): text.get_position() for text in axis.texts}
    for number, name in enumerate(["base", "REINFORCE"]):
        of_row = [row for row in rows if row["row"] == name]
        means = [sum(float(row[key]) for row in of_row) / 2 for key in ("sampled", "pass16")]
        assert shown[str(number)] == pytest.approx([100 * mean for mean in means])
    plt.close("all")
    done = run_here("experiments.plot_league", path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "league.png").read_bytes().startswith(b"\x89PNG")
