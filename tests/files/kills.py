"""Work with folders that is killed at one of its operations on files: each in a fork, and what is left is judged.

A case prepares a place, works in it, and says what of it is old, new, both mixed ("broken") or gone ("missing").
"""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache

import torch
from tiny import tiny_model
from tokenizers import models
from toys import Transformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores, load_pruned
from optimum_optin.files.folders import recover_folder
from optimum_optin.publishing.pruned_folders import push_folder, read_config, write_report

OPERATIONS = {
    *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.chmod", "os.link"),
    *("shutil.rmtree", "shutil.copyfile", "tempfile.mkdtemp", "fcntl.flock"),
}
MINE = {"notes.txt": "mine", "checkpoint-5/config.json": "mine"}
REFUSED = "refused"


@dataclass
class Case:
    """What is killed.

    Args:
        begin: puts the old state into a place.
        work: makes it the new one.
        states: what the readers make of a place, each a name of a state or `REFUSED`.
        recover: what a person does after the kill.
    """

    begin: callable
    work: callable
    states: callable
    recover: callable = lambda place: recover_folder(place / "out")


def killed(case, place, moment):
    """Kill a case's work in a new place before its moment-th operation on files there; whether it came to that."""
    prepare(case, place)
    child = os.fork()
    if not child:
        code = 1
        try:
            left = [moment]

            def count(event, given):
                if event in OPERATIONS and _is_below(place, event, given):
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            case.work(place)
            code = 0
        finally:
            os._exit(code)
    return was_killed(child)


def prepare(case, place):
    """The old state in a new place, which has a temporary directory of its own."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "temporary").mkdir(parents=True)
    tempfile.tempdir = str(place / "temporary")
    case.begin(place)


def was_killed(child):
    """Whether a fork was killed; a failure of its own is an error."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the work itself failed: {status}"
    return status != 0


def judge(case, place):
    """What is wrong after a kill, by what is loaded at once, what after recovery, and what after the next work."""
    wrong = []
    now = set(case.states(place).values()) - {REFUSED}
    if len(now) > 1 or "mixed" in now:
        wrong.append(f"broken: {case.states(place)}")
    case.recover(place)
    after = case.states(place)
    if set(after.values()) not in ({"old"}, {"new"}):
        wrong.append(f"missing: {after}")
    if "new" in now and "new" not in after.values():
        wrong.append("missing: what was new already is old again")
    case.work(place)
    last = case.states(place)
    if set(last.values()) != {"new"}:
        wrong.append(f"missing: the next work leaves {last}")
    if any((place / "out" / name).read_text() != text for name, text in MINE.items()):
        wrong.append("missing: files of mine")
    if litter := [str(file.relative_to(place)) for file in place.rglob("*") if is_litter(file)]:
        wrong.append(f"litter: {litter}")
    return wrong


def is_litter(file):
    """Whether a file is one that should not outlive the next work."""
    ours = file.name.startswith((".optin", ".out-", "optin_unfinished")) or file.name.endswith(".part")
    return ours or file.parent.name == "temporary"


def _is_below(place, event, given):
    if event == "fcntl.flock":
        return True
    return any(isinstance(each, (str, bytes, os.PathLike)) and str(place) in os.fsdecode(each) for each in given)


def cases():
    """Every case but pushes, by name."""
    old, new = _pruner(0), _pruner(1)
    states = _states(old, new)
    return {
        "save": Case(write_mine, _save(new), lambda place: states(place, first=True), _recover_if_there),
        "save over another": Case(_saved(old), _save(new), states),
        "save over shards": Case(_shards(old), _save(new), states),
        "save in the working directory": Case(_saved(old), _save_here(new), states),
        "report": _report_case(old, new),
        **_module_case(),
        **_score_case(old, new),
    }


def push_cases(hub):
    """Cases of pushes to a running hub, by name."""
    old, new = _pruner(0), _pruner(1)
    return {
        "push": Case(*_push(hub, old, new, lambda place: new.push_to_hub("me/small"))),
        "push of a folder": Case(*_push(hub, old, new, lambda place: push_folder(place / "other", "me/small"))),
    }


@cache
def _pruner(seed):
    """A pruner that has pruned; with another seed, another model, tokenizer and report."""
    tokenizer = word_tokenizer()
    if seed:
        tokenizer.backend_tokenizer.model = models.WordLevel({**tokenizer.get_vocab(), "other": 98}, unk_token="[UNK]")
    pruner = OptinPruner(tiny_model(seed=seed, num_hidden_layers=2), tokenizer)
    pruner.prune(TEXTS, OptinConfig(flops=0.6 - 0.2 * seed, probes=4, num_samples=8))
    return pruner


def write_mine(place):
    for name, text in MINE.items():
        (place / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "out" / name).write_text(text)


def _recover_if_there(place):
    if (place / "out").is_dir():
        recover_folder(place / "out")


def _saved(pruner):
    def begin(place):
        write_mine(place)
        pruner.save_pretrained(place / "out")

    return begin


def _shards(pruner):
    def begin(place):
        _saved(pruner)(place)
        (place / "out" / "model.safetensors").unlink()
        pruner.pruned_model.save_pretrained(place / "out", max_shard_size=20_000)
        assert (place / "out" / "model.safetensors.index.json").is_file()

    return begin


def _save(pruner):
    return lambda place: pruner.save_pretrained(place / "out")


def _save_here(pruner):
    def work(place):
        before = os.getcwd()
        os.chdir(place / "out")
        try:
            pruner.save_pretrained(".")
        finally:
            os.chdir(before)

    return work


def _states(old, new):
    """What plain transformers, its tokenizers, and our own loader and reports make of a folder."""
    digests = [_digest(each.pruned_model) for each in (old, new)]
    words = [len(each.processor) for each in (old, new)]
    reports = [each.report.to_dict() for each in (old, new)]

    def states(place, first=False):
        out = place / "out"

        def model():
            return digests.index(_digest(AutoModelForSequenceClassification.from_pretrained(out)))

        def tokenizer():
            return words.index(len(AutoTokenizer.from_pretrained(out)))

        def ours():
            return digests.index(_digest(OptinPruner.from_pretrained(out).model))

        def report():
            return _report(out, reports)

        found = {each.__name__: _state(each) for each in (model, tokenizer, ours, report)}
        if first and set(found.values()) == {REFUSED}:  # where nothing was
            return {"nothing": "old"}
        return found

    return states


def _report(out, reports):
    read_config(out)
    return reports.index(PruningReport.load(out).to_dict())


def _state(read):
    try:
        return ("old", "new")[read()]
    except (OSError, ValueError) as error:
        return "mixed" if "is not in list" in str(error) else REFUSED
    except Exception:  # no refusal, but what happens with files that do not belong together
        return "mixed"


def _digest(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _report_case(old, new):
    """The figures of one and the same model."""
    before = replace(new.report, seconds={"prune": 1.0})
    reports = [each.to_dict() for each in (before, new.report)]
    whole = _states(new, new)

    def begin(place):
        _saved(new)(place)
        write_report(place / "out", before)

    def states(place):
        found = whole(place)
        assert found["model"] == "old" and found["ours"] in ("old", REFUSED)  # the same in both
        return {"report": _state(lambda: _report(place / "out", reports))}

    return Case(begin, lambda place: write_report(place / "out", new.report), states)


def _module_case():
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        samples = torch.randint(0, 50, (16, 9))
        pruner = OptinPruner.from_model(Transformer().eval(), samples[:1])
        pruner.prune(samples, OptinConfig(flops=0.5, probes=4, seed=seed))
        made.append(pruner)
    digests = [_digest(pruner.pruned_model) for pruner in made]
    reports = [pruner.report.to_dict() for pruner in made]

    def states(place):
        def module():
            return digests.index(_digest(load_pruned(Transformer, place / "out")))

        def report():
            return _report(place / "out", reports)

        return {each.__name__: _state(each) for each in (module, report)}

    return {"save of a plain module": Case(_saved(made[0]), _save(made[1]), states)}


def _score_case(*pruners):
    config = OptinConfig(probes=4, num_samples=8)
    scores = [pruner.score(TEXTS, config) for pruner in pruners]

    def begin(place):
        write_mine(place)
        scores[0].save_pretrained(place / "out")

    def states(place):
        def read():
            return [each.fingerprint for each in scores].index(Scores.from_pretrained(place / "out").fingerprint)

        return {"scores": _state(read)}

    return {"scores": Case(begin, lambda place: scores[1].save_pretrained(place / "out"), states)}


def _push(hub, old, new, work):
    """Cases whose states are those of a repository; the folder that is pushed stays."""
    wanted = {}

    def begin(place):
        write_mine(place)
        new.save_pretrained(place / "other")
        hub.repos.clear()
        hub.lfs.clear()
        if not wanted:
            old.push_to_hub("me/small")
            wanted["old"] = dict(hub.files("me/small"))
            work(place)
            wanted["new"] = dict(hub.files("me/small"))
            hub.repos.clear()
            hub.lfs.clear()
        old.push_to_hub("me/small")

    def states(place):
        now = hub.files("me/small")
        return {"repository": next((name for name, files in wanted.items() if files == now), "mixed")}

    return begin, work, states, lambda place: None
