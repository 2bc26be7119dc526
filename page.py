"""
A page that shows a search step by step: a single file that needs no other, written by

    python ask.py "25 8 7>24" --html tree.html

page.html is the template. Its data is put into it as JSON: rows, which are the nodes of a tree or the lines
of a stream, and steps, each with the number of a row, its value, and the tokens spent so far.
"""
import html
import json
from pathlib import Path

from common import write_whole
from verify import CHECK, NEWLINE, TASKS, decode, replay, state_value, verify

TEMPLATE = Path(__file__).with_name("page.html")
MOST = 1000                                 # steps on a page, at most
WIDEST = 80                                 # characters of a text; so a page stays below 300 KB


def check_name(path):
    """ValueError unless a path ends in .html, so that no other kind of file is overwritten."""
    if not path.endswith(".html"):
        raise ValueError(f"--html {path}: the name of a page ends in .html")


def save_page(path, text):
    """Write a page, whole or not at all. OSError if it cannot be written."""
    write_whole(path, text.encode())
    print(f"wrote {path}")


def write_page(path, page, problem, outcome, checkpoint):
    """Write the page of a search. OSError if it cannot be written."""
    prompt = problem.prompt.rstrip()
    about = {"prompt": prompt, "outcome": outcome, "checkpoint": checkpoint}
    data = json.dumps(page | about, separators=(",", ":")).replace("<", "\\u003c")      # no </script> in it
    text = TEMPLATE.read_text(encoding="utf-8").replace("{{prompt}}", html.escape(prompt))
    text = text.replace("{{rules}}", html.escape(TASKS[problem.task].rules))
    save_page(path, text.replace("{{data}}", data))


def make_row(line, note, exact=None, head=None, prior=None, first=0, depth=0):
    """
    exact: 1 if a solution can still be reached from here, else 0, None if unknown; head: the value head's
    value; first: the step at which the row appears.
    """
    return {"line": line[:WIDEST], "note": note[:WIDEST], "exact": exact, "head": rounded(head),
            "prior": rounded(prior), "first": first, "depth": depth, "parent": -1}


def rounded(number):
    return None if number is None else round(number, 3)


def exact_value(problem, completion):
    return int(state_value(problem, completion)) if TASKS[problem.task].enumerable else None


# ------------------------------------------------------------------------------------------------------------
# A tree

def line_of(node):
    """The last step of a node as text, without its newline; of the root the prompt."""
    return decode(node.ids[len(node.parent.ids) if node.parent else 0:]).rstrip("\n")


def tree_page(search, steps):
    """
    What the page of a tree shows. steps: (the node from which a value was backed up, the value, tokens spent
    so far). Rows are in the order of the page: each node above its children.
    """
    first, answer = {search.root: 0}, search.result().completion
    for k, (node, _, _) in enumerate(steps[:MOST], 1):
        first.setdefault(node, k)
    rows, number, waiting = [], {None: -1}, [search.root]
    while waiting:                          # no recursion: paths may have thousands of lines
        node = waiting.pop()
        number[node], above = len(rows), number[node.parent]
        depth = rows[above]["depth"] + 1 if node.parent else 0
        rows.append(node_row(search, node, answer) | {"first": first[node], "parent": above, "depth": depth})
        waiting += [child for child in reversed(node.children) if child in first]
    shown = [(number[node], round(value, 3), spent) for node, value, spent in steps[:MOST]]
    return {"kind": "tree", "rows": rows, "steps": shown, "total": len(steps)}


def node_row(search, node, answer):
    """A node on its own: its line, and what model, enumeration and verifier say of it."""
    completion = search.completion(node)
    exact = exact_value(search.problem, completion)
    if not node.parent:                     # the prompt, which the model did not write
        return make_row(line_of(node), "", exact)
    note = ""
    if node.finished:
        correct = verify(search.problem, completion).correct
        exact = exact if exact is None else int(correct)
        note = ("right" if correct else "wrong") + ", the answer" * (completion == answer)
    return make_row(line_of(node), note, exact, node.head, node.prior)


# ------------------------------------------------------------------------------------------------------------
# A stream

def stream_page(problem, tokens):
    """What the page of a stream shows, a row for each line. tokens: (token, P(correct) before it)."""
    ids = [token for token, _ in tokens]
    values = [value for _, value in tokens] + [None]    # the last, of the whole, is not known
    ends = [i + 1 for i, token in enumerate(ids) if token == NEWLINE]
    *lines, tail = decode(ids).split("\n")
    rows = [make_row(problem.prompt.rstrip(), "the problem", exact_value(problem, ""), values[0])]
    standing = replay(problem, "").standing
    for i, (line, end) in enumerate(zip(lines[:MOST], ends), 1):
        text = "\n".join(lines[:i]) + "\n"
        read = replay(problem, text)
        # Steps that stood before and no longer stand were taken back here
        taken, standing = standing[len(read.standing):], read.standing
        for step in taken:                  # row 0 is the prompt, so line 0 is row 1
            rows[step.line + 1]["taken"] = i
        note, exact = what_it_does(line, read, len(taken)), exact_value(problem, text)
        rows.append(make_row(line, note, exact, values[end], first=i, depth=len(standing) - 1))
    steps = [(i, rows[i]["head"], end) for i, end in enumerate(ends[:MOST], 1)]
    if tail and len(rows) <= MOST:
        note = "the end" if tail == "<|eos|>" else "cut off in mid-line"
        rows.append(make_row(tail, note, first=len(rows)))
        steps.append((len(rows) - 1, None, len(tokens)))
    return {"kind": "stream", "rows": rows, "steps": steps, "total": len(lines) + bool(tail)}


def what_it_does(line, read, n_taken):
    """What a line of a stream does, in words; read is the replay up to its end."""
    if read.fault:
        return read.fault
    if n_taken:
        return f"takes back {n_taken} line{'s' * (n_taken > 1)}"
    if line in ("?yes", "?no"):
        return "its own verdict"
    if CHECK.fullmatch(line):
        return "a check"
    error = read.standing[-1].error
    return f"wrong: {error}" if error else "stands"
