"""What is kept of a type's results: counts and reasons, for the table in the docs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

BAR = ("attention", "ffn")
"""The kinds of groups that the bar is about."""

NOT_RUN = {  # pattern in the error -> what is said of the type
    r"requires the (\w+) library": r"needs {0}",
    r"are not tiny": "no tiny config by rule: too many parameters",
    r"is known$": "no input by rule: its forward takes other arguments than data",
    r"Could not find \w+ neither|Unrecognized configuration class|auto_factory": "has no class that AutoModel makes",
}
NOT_PROVED = {  # pattern in the reason -> what is said of the group
    r"runs once for each sample": "stands apart from all layers and runs once for each sample, and is left whole",
    r"random numbers are drawn": "draws random numbers in evaluation mode, so that nothing can be compared",
    r"out of time": "not measured: out of time",
    r"does not run for this sample": "does not run for the sample",
    r"together with all other groups it cannot": "can be cut alone, but not with all others",
    r"it does not run \(|the model does not run": "cut, it does not run, whichever attributes are set",
    r"normalised as a whole|behind a normalisation": "a normalisation over all channels couples them",
    r"one unit only": "there is one unit only, such as one key-value head for all queries",
    r"reaches the model's output": "channels reach the model's output, whose shape must stay",
    r"of its size off": "does not compute the same when it is cut",
    r"does not lie in blocks": "units do not lie in blocks",
    r"computed from": "a weight is computed from others",
    r"holds what all layers add for each head": "all layers share a bias of all heads, which none is handed",
}


def summarised(result: Mapping[str, Any]) -> dict[str, Any]:
    """The line of one type."""
    if result["stage"] in ("build", "run", "killed"):
        return {"runs": False, "reason": _not_run(result)}
    expected = [each for each in result.get("expected", []) if not each["apart"]]
    line: dict[str, Any] = {"runs": True}
    for kind in sorted({each["kind"] for each in expected}):
        some = [each for each in expected if each["kind"] == kind]
        line.setdefault("expected", {})[kind] = [
            len(some),
            *(sum(each[w] for each in some) for w in ("found", "proved")),
        ]
    apart = [each for each in result.get("expected", []) if each["apart"] and each["kind"] in BAR]
    if apart:
        line["apart"] = [len(apart), sum(each["proved"] for each in apart)]
    groups = result.get("groups", {})
    for role in sorted({role_of(key) for key in groups}):
        some = [group for key, group in groups.items() if role_of(key) == role]
        line.setdefault("roles", {})[role] = [len(some), sum(group["cut"] is None for group in some)]
    if "macs" in result:
        line["macs"] = round(result["macs"][1] / result["macs"][0], 4)
    if "loaded" in result:
        line |= {"loaded": not result["loaded"], "unsaved": len(result["unsaved"])}
        if result["loaded"]:
            line["not_loaded"] = result["loaded"][:160]
    missing = [each for each in expected if each["kind"] in BAR and not each["proved"]]
    if missing or result["stage"] != "done":
        line["reason"] = "; ".join(dict.fromkeys(_reasons(missing, result)))
    return line


def role_of(key: str) -> str:
    """`"heads"` for `"decoder.0.EncDecAttention_heads"`."""
    return key.rpartition(".")[2].rpartition("_")[2]


def _reasons(missing: Iterable[Mapping[str, Any]], result: Mapping[str, Any]) -> Iterable[str]:
    error = result.get("error", "")
    for each in missing:
        text = each.get("reason") or error
        said = next((said for pattern, said in NOT_PROVED.items() if re.search(pattern, text)), text[:160])
        yield f"{each['kind']}: {said or 'not found by tracing'}"
    if not missing and error:
        yield next((said for pattern, said in NOT_PROVED.items() if re.search(pattern, error)), error[:160])


def _not_run(result: Mapping[str, Any]) -> str:
    text = result.get("error", "")
    for pattern, said in NOT_RUN.items():
        if match := re.search(pattern, text):
            return said.format(*match.groups())
    return "no tiny config by rule" if result["stage"] == "build" else "no input by rule on which it runs"
