"""Write docs/source/supported_models.mdx from docs/coverage.json, which examples/benchmarks/coverage.py measured.

python docs/make_supported_models.py
"""

import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/source/supported_models.mdx"
sys.path.append(str(ROOT / "examples/benchmarks"))  # behind all others
from tiny_models.summary import BAR, figures  # noqa: E402

INTRODUCTION = """# Supported models

Any model of `transformers` is traced: its groups of removable units are found by running it, and nothing is cut that was
not [proved](guides/choose) on that very model. This page says what that comes to for every model type that `AutoModel`
makes. It is measured on **tiny models of random weights**, made of each type's default config by rules, so it is about
the classes' code and says nothing of accuracy. A type that is not here, or that failed here, may well work:
`optimum-cli optin check MODEL` tries yours, and says of each group why not.

Measured {date} with {versions} ({machine}; {seconds} seconds for a type, in the median):

    python examples/benchmarks/coverage.py --out coverage.jsonl
    python examples/benchmarks/coverage.py --out coverage.jsonl --summary docs/coverage.json
    python docs/make_supported_models.py

{figures}

What *should* be found is judged by the graph that autograd records, independently of tracing: a weight whose input goes
back to another weight through an activation is a feed-forward network, through a product of computed tensors it is
attention. Attention with a single head has no heads to remove, and is not counted; nor is what a normalisation over all
channels couples on its way from weight to weight. A normalisation of all heads' queries together (OLMo 2) is counted, though
heads cannot go then. Convolutions, experts and state spaces have no bar to meet, and are in the column of roles where they are
found.

## Why not

{reasons}

## All types

*Attention* and *FFN* are groups proved of groups that should be there, of the layers; *roles* what was proved of all that was
found; *MACs* what is left after every proved group was cut to one half; *loaded*, whether the cut model was saved, loaded by
plain `AutoModel`, and gave equal outputs.

{table}"""


def page():
    """The page's text."""
    found = json.loads((ROOT / "docs/coverage.json").read_text(encoding="utf-8"))
    about, types = found["about"], found["types"]
    versions = ", ".join(f"{name.replace('_', '-')} {version}" for name, version in about["versions"].items())
    return INTRODUCTION.format(
        date=about["date"],
        versions=versions,
        machine=about["machine"],
        seconds=about["seconds"],
        figures="".join(f"- {line}\n" for line in figures(types)),
        reasons=_reasons(types),
        table=_table(types),
    )


def _reasons(types):
    """Each reason, with the types that it stands beside."""
    by_reason = {}
    for name, line in types.items():
        for reason in line.get("reason", "").split("; "):
            by_reason.setdefault(reason, []).append(f"`{name}`")
    count = Counter({reason: len(names) for reason, names in by_reason.items() if reason})
    return "".join(f"- {reason} ({number}): {', '.join(by_reason[reason])}\n" for reason, number in count.most_common())


def _table(types):
    rows = [["model type", "attention", "FFN", "roles", "MACs", "loaded", "remarks"]]
    rows.append(["---"] * len(rows[0]))
    for name, line in types.items():
        expected = line.get("expected", {})
        counts = ["{2} of {0}".format(*expected[kind]) if kind in expected else "" for kind in BAR]
        roles = ", ".join(f"{role} {proved} of {all_}" for role, (all_, proved) in line.get("roles", {}).items())
        macs = f"{line['macs']:.0%}" if "macs" in line else ""
        loaded = {True: "yes", False: "no", None: ""}[line.get("loaded")]
        remarks = line.get("reason") or line.get("not_loaded", "")
        remarks = remarks if line["runs"] else f"not run: {remarks}"
        rows.append([f"`{name}`", *counts, roles, macs, loaded, remarks.replace("|", "/").replace("<", "&lt;")])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
