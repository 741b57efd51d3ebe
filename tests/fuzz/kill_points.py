"""Kills before every system call of saves, scores, work folders and pushes; counts what is broken and what is missing.

    PYTHONPATH=tests:tests/files:tests/stages python tests/fuzz/kill_points.py [CASE ...]

Needs Linux and `strace`, which is attached to a fork and kills it at its n-th call of a kind that changes files,
writes, opens, or sends. So a file may be half-written by whatever writes it, safetensors' own code as well. Prints one
JSON object for each case. The cases are those of tests/files/kills.py, and work folders (tests/stages/runs.py).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import conftest  # noqa: F401  (offline)
import kills
import pytest
import surroundings
import torch
from runs import CASES, prepared

from optimum_optin import Scores
from optimum_optin.stages import resuming

CALLS = (
    *("openat", "write", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync", "rename", "renameat", "renameat2"),
    *(
        "unlink",
        "unlinkat",
        "mkdir",
        "mkdirat",
        "rmdir",
        "chmod",
        "fchmod",
        "flock",
        "link",
        "symlink",
        "copy_file_range",
    ),
    *("sendfile", "sendto", "connect"),
)


def main(names):
    torch.set_num_threads(1)
    resuming.EVERY, resuming.SHARE = 0, 0  # every step is kept
    place = Path(tempfile.mkdtemp(prefix="kill-points-"))
    hub = contextmanager(getattr(surroundings.hub, "__wrapped__", None) or surroundings.hub._get_wrapped_function())
    with pytest.MonkeyPatch.context() as patch, hub(patch, place / "hub") as server:
        found = {**kills.cases(), **kills.push_cases(server), **_work_cases()}
        for name in names or found:
            tempfile.tempdir = None
            print(json.dumps({"case": name, **enumerated(found[name], place / "place")}), flush=True)
    shutil.rmtree(place)


def enumerated(case, place):
    """Counts over all kill points of a case."""
    counts, kinds, wrong, started = Counter(), {}, [], time.time()
    for call in CALLS:
        moment = 1
        while _killed(case, place, call, moment):
            found = kills.judge(case, place)
            counts["kills"] += 1
            counts["broken"] += any(each.startswith("broken") for each in found)
            counts["missing"] += any(each.startswith("missing") for each in found)
            counts["litter"] += any(each.startswith("litter") for each in found)
            wrong += [f"{call} {moment}: {each}" for each in found]
            moment += 1
        kinds[call] = moment - 1
    names = ("kills", "broken", "missing", "litter")
    return {
        **{name: counts[name] for name in names},
        "calls": {call: count for call, count in kinds.items() if count},
        "wrong": wrong[:20],
        "seconds": round(time.time() - started),
    }


def _killed(case, place, call, moment):
    """Whether the work came to its moment-th call of a kind, before which it was killed."""
    kills.prepare(case, place)
    waiting, go = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(go)
            os.read(waiting, 1)
            case.work(place)
            code = 0
        finally:
            os._exit(code)
    os.close(waiting)
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(child), "-e", f"trace={call}"]
    with subprocess.Popen([*command, "-e", f"inject={call}:signal=KILL:when={moment}"]) as tracer:
        while "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text():
            assert tracer.poll() is None, "strace cannot trace here"
            time.sleep(0.005)
        time.sleep(0.01)
        os.write(go, b"x")
        os.close(go)
        killed = kills.was_killed(child)
    return killed


def _work_cases():
    return {f"work folder: {name}": _work_case(name) for name in CASES}


def _work_case(name):
    """Scoring with a work folder: every run that is not killed gives what an undisturbed one gives, to the last bit."""
    _, run = prepared(name)
    expected = run(None)

    def begin(place):
        kills.write_mine(place)

    def states(place):
        try:
            found = Scores.from_pretrained(place / "out" / "optin_scores")
        except FileNotFoundError as error:  # none yet, or half moved
            return {"scores": "old" if "holds no scores" in str(error) else kills.REFUSED}
        return {"scores": "new" if _same(found, expected) else "mixed"}

    def recover(place):
        if (place / "out" / "optin_scores").is_dir():
            kills.recover_folder(place / "out" / "optin_scores")

    def work(place):
        scores = run(place / "out")
        assert _same(scores, expected), "another result"

    return kills.Case(begin, work, states, recover)


def _same(scores, expected):
    pairs = ((scores.terms, expected.terms), (scores.merges, expected.merges))
    return all(
        one.keys() == other.keys()
        and all(torch.equal(one[term][key], score) for term, by_key in other.items() for key, score in by_key.items())
        for one, other in pairs
    )


if __name__ == "__main__":
    main(sys.argv[1:])
