"""Write docs/source/supported_models.mdx from docs/coverage.json, which examples/benchmarks/coverage.py measured.

python docs/make_supported_models.py
"""

import json
from collections import Counter
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "source/supported_models.mdx"
BAR = ("attention", "ffn")  # the kinds of groups that should all be there

TEXT = """# Supported models

A group of units is found by running the model, and nothing is cut that was not [proved on that very
model](concepts/discovery). This page says what that comes to for every model type that `AutoModel` makes, with the
[table of architectures](concepts/architectures) out of the way. It is measured on **tiny models of random weights**,
made from each type's default config by rules: it is about the code of the classes, and says nothing of accuracy. A
type that did not run here may well work: `optimum-cli optin check MODEL` tries yours, and says of each group why not.
Scores and refits ask for more than a cut: that is in its answer, and not in this table.

Measured {date} with {versions} ({machine}; {seconds} s for a type, in the median):

```bash
python examples/benchmarks/coverage.py --out coverage.jsonl
python examples/benchmarks/coverage.py --out coverage.jsonl --summary docs/coverage.json
python docs/make_supported_models.py
```

{figures}
## What should be there

It is judged by the graph that autograd records, independently of how groups are found. A weight whose input goes back
to another weight through an activation is a feed-forward network; through a product with a softmax, it is attention.
Two things are not asked for: heads of attention that has a single one, and what a normalisation over all channels
couples between the two weights. A normalisation of the queries of all heads (OLMo 2) is no excuse, though no head can
go then. Convolutions, experts, state spaces and other products have no bar to meet; what is proved of them is in the
column of roles. Groups that stand in no layer (decode heads, projectors between towers) are cut where they work on
every token or place, left whole where they run once for each sample (pooling attention, classifiers), and counted
apart.

## Why not

Code that does not run when it is cut mostly reshapes to the width of the hidden states (`led`, `blip`,
`timesformer`), has a norm for the queries of all heads (`olmo2`), or makes something for a fixed number of heads
elsewhere. Nothing of these groups is cut, and the rest of the model is.

{reasons}
## All types

*Attention* and *FFN* say how many groups are proved of those that should be in the layers, *roles* how many are
proved of all that were found. *MACs* is what is left of them when all proved groups are cut to one half, as PyTorch
counts them (it does not see the grouped products of experts), and *loaded* says whether the cut model was saved,
loaded by plain `AutoModel`, and gave equal outputs.

{table}"""


def page():
    """The page's text."""
    found = json.loads((DOCS / "coverage.json").read_text(encoding="utf-8"))
    about, types = found["about"], found["types"]
    return TEXT.format(
        date=about["date"],
        versions=", ".join(f"{name.replace('_', '-')} {version}" for name, version in about["versions"].items()),
        machine=about["machine"],
        seconds=about["seconds"],
        figures="".join(f"- {line}\n" for line in figures(types)),
        reasons="".join(f"- {line}\n" for line in _reasons(types)),
        table=_table(types),
    )


def figures(types):
    """What the lines of all types come to, in sentences."""
    runs = [line for line in types.values() if line["runs"]]
    asked = [counts for line in runs if (counts := _both(line))[0]]
    every = sum(wanted == proved for wanted, proved in asked)
    some = sum(any(proved for _, proved in line.get("roles", {}).values()) for line in runs)
    cut = [line for line in runs if "macs" in line]
    apart = [line["apart"] for line in runs if "apart" in line]
    yield f"{len(runs)} of {len(types)} model types run as tiny models made by rules."
    yield (
        f"{len(asked)} of these have attention or feed-forward networks in their layers; in "
        f"**{_share(every, asked)}**, every one of these groups is found and proved."
    )
    yield f"Groups of at least one role are proved in **{_share(some, runs)}** of those that run."
    yield (
        f"{len(cut)} were cut to one half, in all that is proved, and run; counted MACs fell in "
        f"{sum(line['macs'] < 1 for line in cut)}. {sum(line.get('loaded', False) for line in cut)} were saved, loaded "
        "by plain `AutoModel`, and gave outputs equal to 1e-4."
    )
    yield (
        f"{len(apart)} types have groups that stand in no layer: {sum(proved for _, proved in apart)} of "
        f"{sum(count for count, _ in apart)} are proved."
    )


def _both(line):
    """How many groups of the bar should be there, and how many of them are proved."""
    counts = [count for kind, count in line.get("expected", {}).items() if kind in BAR]
    return sum(count[0] for count in counts), sum(count[2] for count in counts)


def _share(some, of):
    return f"{some} ({some / max(len(of), 1):.0%})"


def _reasons(types):
    """Each reason, with the types that it stands beside, the most frequent first."""
    by_reason = {}
    for name, line in types.items():
        for reason in line.get("reason", "").split("; "):
            what = reason if line["runs"] else f"not run: {reason}"
            by_reason.setdefault(what, []).append(f"`{name}`")
    count = Counter({reason: len(names) for reason, names in by_reason.items() if reason})
    return [f"{_plain(reason)} ({number}): {', '.join(by_reason[reason])}" for reason, number in count.most_common()]


def _table(types):
    rows = [["model type", "attention", "FFN", "roles", "MACs", "loaded", "remarks"]]
    rows.append(["---"] * len(rows[0]))
    for name, line in types.items():
        expected = line.get("expected", {})
        counts = [f"{expected[kind][2]} of {expected[kind][0]}" if kind in expected else "" for kind in BAR]
        roles = ", ".join(f"{role} {proved} of {found}" for role, (found, proved) in line.get("roles", {}).items())
        macs = f"{line['macs']:.0%}" if "macs" in line else ""
        loaded = {True: "yes", False: "no", None: ""}[line.get("loaded")]
        remarks = line.get("reason") or line.get("not_loaded", "")
        rows.append(
            [f"`{name}`", *counts, roles, macs, loaded, _plain(remarks if line["runs"] else f"not run: {remarks}")]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _plain(text):
    """Text without what Markdown would take for something else."""
    return " ".join(
        text.replace("|", "/").replace("<", "(").replace(">", ")").replace("{", "(").replace("}", ")").split()
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
