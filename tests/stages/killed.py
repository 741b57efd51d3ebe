"""Runs that are killed: forks of one process that has everything imported, each killed at another moment.

    python killed.py FOLDER [each]

leaves work folders FOLDER/<case>/<kind>/<moment>: a run of the case was killed in its moment-th forward pass ("pass"),
or before its moment-th operation on files of the work folder ("file"); the last run of a kind was not. With `each`,
there is a run for each moment of each case; otherwise, for some of them.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from runs import CASES, prepared

from optimum_optin.stages import resuming

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
BY_FILE = {"surgeon": 7}  # case -> between how many operations


def main(folder, each=""):
    torch.set_num_threads(1)  # forks have no other threads
    resuming.EVERY, resuming.SHARE = 0, 0  # every step is kept
    strides = [(case, "pass", chosen.stride) for case, chosen in CASES.items()]
    strides += [(case, "file", stride) for case, stride in BY_FILE.items()]
    if each:
        strides = [(case, kind, 1) for case in CASES for kind in ("pass", "file")]
    ready = {case: prepared(case) for case in CASES}
    for case, kind, stride in strides:
        moment = 1
        while _killed(Path(folder, case, kind, str(moment)), *ready[case], kind, moment):
            moment += stride


def _killed(work, model, run, kind, moment):
    """Whether a run is killed at a moment; if not, there is no such moment."""
    child = os.fork()
    if not child:
        code = 1
        try:
            count = _countdown(moment)
            if kind == "pass":
                model.register_forward_hook(lambda *_: count())
            else:
                sys.addaudithook(lambda event, given: _count_file(event, given, work, count))
            run(work)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if os.WEXITSTATUS(status):
        sys.exit(f"the run in {work} failed")
    return False


def _count_file(event, given, work, count):
    if event in OPERATIONS and any(isinstance(each, (str, os.PathLike)) and str(work) in str(each) for each in given):
        count()


def _countdown(moment):
    left = [moment]

    def count():
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


if __name__ == "__main__":
    main(*sys.argv[1:])
