"""
What did training change? A page with samples of the same ten problems at each row of a run's table, side by
side: one file that needs nothing else.

    python -m experiments.samples                           # out/sft.pt, out/rl.pt -> out/samples.html
    python -m experiments.samples out/rl.pt --html rl.html

The samples are greedy, so columns differ because the model changed, not by chance.
"""
import html
import os
from string import Template

from common import Parser, open_folder, run_script
from checkpoint import load_checkpoint
from page import check_name, save_page
from traces import standing_lines
from verify import parse_problem, verify

MOST_LINES = 30                             # of a sample that are shown
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What training changed - tinyo1</title>
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1c1e21; --soft: #5a616b; --line: #c9ced6;
        --right: #0a6b2d; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171b; --ink: #e8e8e8; --soft: #9aa1ab; --line: #3a404a; --right: #7bd88f;
          --wrong: #ff8a80; }
}
body { margin: 1.5rem; font: 1rem/1.5 system-ui, sans-serif; background: var(--page); color: var(--ink); }
p { max-width: 50rem; }
.table { overflow: auto; max-height: 85vh; border: 1px solid var(--line); }
table { border-collapse: separate; border-spacing: 0; }
th, td { padding: .4rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; z-index: 1; background: var(--page); white-space: nowrap; }
tbody th { position: sticky; left: 0; background: var(--page); white-space: nowrap; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; }
pre { margin: 0; }
del, i { color: var(--soft); }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
:focus-visible { outline: 3px solid var(--right); outline-offset: 2px; }
</style>
</head>
<body>
<h1>What training changed</h1>
<p>Greedy samples of the same problems, at each row of the tables of $checkpoints.
<del>Struck out</del> is what was taken back, <i>italic</i> where it goes back or judges itself. Above
each sample stands the verifier's verdict.</p>
<div class="table" role="region" aria-label="samples" tabindex="0">
<table>
<thead><tr><th scope="col">problem</th>$head</tr></thead>
<tbody>
$rows
</tbody>
</table>
</div>
</body>
</html>
""")


def cell(prompt, text):
    """A sample line by line, below its verdict; and whether that is right."""
    problem, completion = parse_problem(prompt), text.removesuffix("<|eos|>")
    verdict, standing, shown = verify(problem, completion), standing_lines(problem, completion), []
    ended = completion != text
    *lines, tail = completion.split("\n")
    for number, line in enumerate(lines[:MOST_LINES]):
        tag = "i" if line.startswith(("wait", "?")) else "span" if number in standing else "del"
        shown.append(f"<{tag}>{html.escape(line)}</{tag}>")
    if len(lines) > MOST_LINES:
        shown.append(f"and {len(lines) - MOST_LINES} more lines")
    elif tail:
        shown.append(html.escape(tail))
    reason, right = verdict.reason if ended else "cut off", ended and verdict.correct
    title = f'<strong class="{"right" if right else "wrong"}">{html.escape(reason)}</strong>'
    return f"<td>{title}\n<pre>" + "\n".join(shown) + "</pre></td>", right


def columns_of(path):
    """(title, prompts, cells) for each row of a checkpoint's table. ValueError for any other file."""
    _, checkpoint = load_checkpoint(path, needs=("samples",))
    run, columns = os.path.splitext(os.path.basename(path))[0], []
    try:
        for row in checkpoint["samples"]:
            pairs = zip(row["prompts"], row["completions"], strict=True)
            cells, right = zip(*(cell(prompt, text) for prompt, text in pairs))
            title = f"{run}, step {row['step']}: {sum(right)} of {len(right)} right"
            columns.append((title, row["prompts"], cells))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: its samples are not those of a run ({error})") from None
    if not columns:
        raise ValueError(f"{path} was stopped before the first row of its table: there are no samples yet")
    return columns


def make_page(paths):
    """The page of some checkpoints. ValueError if they were not measured on the same problems."""
    columns = [column for path in paths for column in columns_of(path)]
    prompts = columns[0][1]
    if any(column[1] != prompts for column in columns):
        raise ValueError(f"{', '.join(paths)}: they were measured on different problems")
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title, _, _ in columns)
    rows = []
    for i, prompt in enumerate(prompts):
        cells = "".join(cells[i] for _, _, cells in columns)
        rows.append(f'<tr><th scope="row"><code>{html.escape(prompt.rstrip())}</code></th>{cells}</tr>')
    return PAGE.substitute(checkpoints=html.escape(", ".join(paths)), head=head, rows="\n".join(rows))


def main():
    parser = Parser(description="Write a page: samples of the same problems along training, side by side.")
    parser.add_argument("checkpoints", nargs="*", default=["out/sft.pt", "out/rl.pt"], metavar="FILE",
                        help="of train_sft.py or train_rl.py (default out/sft.pt out/rl.pt)")
    parser.add_argument("--html", default="out/samples.html", metavar="FILE",
                        help="the page (default out/samples.html)")
    args = parser.parse_args()
    with parser.errors():
        check_name(args.html)
        page = make_page(args.checkpoints)
        open_folder(*os.path.split(args.html))
    save_page(args.html, page)


if __name__ == "__main__":
    run_script(main)
