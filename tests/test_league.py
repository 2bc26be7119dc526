"""The league: its command lines are ones the scripts take, rows are measured from the tables they wrote, and none is run twice."""
import csv
import os
import re
import subprocess
import sys

import pytest

import league
from sample import wilson
from search import METHODS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_every_command_has_flags_that_its_script_knows():
    commands = {league.BASE} | {command for _, commands, _, _ in league.ROWS.values() for command in commands}
    for script in {command.split()[0] for command in commands}:
        said = subprocess.run([sys.executable, os.path.join(ROOT, script), "--help"], capture_output=True, text=True).stdout
        for command in commands:
            if command.startswith(script):
                assert all(f"{flag} " in said for flag in re.findall(r"--[a-z-]+", command)), command
    assert set(league.OWN + league.OWN_VERDICTS + league.VERIFIED) <= set(METHODS)


def write(path, row):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, row[0] if isinstance(row, list) else row)
        writer.writeheader()
        writer.writerows(row if isinstance(row, list) else [row])


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Commands are kept, not run; what they would write is a stand-in whose figures grow from command to command."""
    commands = []

    def run(command, log, **names):
        command = command.format(**names)
        commands.append(command)
        out = re.search("--out ([^ ]+)", command)
        trained = {"step": 6800, "flops": 1e12 * len(commands), "greedy": 0.5, "sampled": 0.4, "pass16": 0.9, "value_auc": 0.8}
        if command.startswith("train"):
            name = command[6:].split(".")[0]
            write(f"{out[1]}/{name}.csv", trained)
            open(f"{out[1]}/{name}.pt", "w").close()
        elif "--methods greedy" in command:
            write(f"{out[1]}/search.csv", [{"method": method, "budget": budget, "accuracy": 0.6 if method == "vote (value)" else 0.5 + budget / 1e5,
                                           "tokens_per_problem": 27} for method in ["greedy", *league.OWN, *league.VERIFIED] for budget in league.BUDGETS])
    monkeypatch.setattr(league, "run", run)
    return commands


def league_main(monkeypatch, tmp_path, *flags):
    monkeypatch.setattr("sys.argv", ["league.py", "--out", str(tmp_path / "work"), "--results", str(tmp_path / "results"), *flags])
    league.main()
    return league.read_table(tmp_path / "results" / "league.csv")


def test_a_league_is_a_table_of_all_rows_and_goes_on_where_it_was(monkeypatch, tmp_path, ran):
    names = ["base", "REINFORCE", "guidance: search, distil"]
    table = league_main(monkeypatch, tmp_path, "--seeds", "0", "--rows", *names)
    assert [row["row"] for row in table] == names
    assert ran[0].startswith("train_sft.py") and sum("--steps 6800" in command for command in ran) == 1     # one base
    rounds = [command for command in ran if "guidance" in command and "train_sft.py" in command]
    assert len(rounds) == league.ROWS[names[2]][2] and all(f"round{r}/sft.pt" in rounds[r] for r in range(1, len(rounds)))     # each from the one before
    assert table[0]["own256"] == "0.6" and table[0]["own256_method"] == "vote (value)" and table[0]["verified1024_method"] in league.VERIFIED
    assert float(table[0]["train_flops"]) == 0 and float(table[1]["train_flops"]) > 0
    n = len(ran)
    table = league_main(monkeypatch, tmp_path, "--seeds", "0", "1", "--rows", *names[:2])
    assert len(table) == 5 and len(ran) > n and not any("seed0" in command for command in ran[n:])
    text = (tmp_path / "results" / "league.md").read_text()
    assert text.count("\n") == 2 + 3 and "| REINFORCE | 50.0 ± " in text


def test_another_level_has_longer_searches_and_a_folder_of_its_own(monkeypatch, tmp_path, ran):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["league.py", "--level", "4", "--seeds", "0", "--rows", "filter: sample, imitate", "guidance: search, distil"])
    league.main()
    assert ran[0].startswith("train_sft.py --level 4 ") and "--budgets 320 " in ran[1] and os.path.exists("out/league_level4/league.md")
    assert any("mcts" in command and "--budgets 300 " in command for command in ran)
    monkeypatch.setattr("sys.argv", ["league.py", "--results", "out/league_level4"])
    with pytest.raises(SystemExit) as stopped:                          # three numbers in the same table
        league.main()
    assert stopped.value.code == 2


def test_interval_is_wilsons():
    low, high = wilson(800, 1000)
    mean, half = league.with_interval([0.7, 0.9], 1000).split(" ± ")
    assert mean == "80.0" and half == "2.5" and float(half) == pytest.approx(50 * (high - low), abs=0.06)


def test_a_command_that_fails_ends_the_league(tmp_path, capfd):
    with pytest.raises(SystemExit) as end:
        league.run("train_sft.py --steps 0", str(tmp_path / "log.txt"))
    said = capfd.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "log.txt" in said and "--steps" in (tmp_path / "log.txt").read_text()
