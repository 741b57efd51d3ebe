"""Files from strangers, by the thousand: each mutant of a saved file must be refused by name, or be what was saved.

    python tests/fuzz/strangers.py --count 10000 --seed 0 --out /tmp/strangers.jsonl

Kinds of mutants: pruned folders (their entry, their config, the header of their weights), JSON files, reports with the
cards that are written of them, and scores. `--only folders:17` does a single one again.
"""

# ruff: noqa: E402 (the environment and the path must be set before anything is imported)
from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import argparse
import contextlib
import copy
import io
import json
import logging as std_logging
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tiny import tiny_batch, tiny_model, tiny_samples
from toys import Transformer, perturbed, token_ids
from transformers.utils import logging
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores, load_pruned
from optimum_optin.commands import info
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.publishing.pruned_folders import read_config, write_report
from optimum_optin.storage.loading import load_model

MEGABYTES, SECONDS = 500, 5.0  # that no mutant may take
RAW = (KeyError, TypeError, IndexError, AttributeError, RecursionError, ZeroDivisionError, AssertionError, MemoryError)
NASTY = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    10**6,
    10**9,
    2**63,
    10**400,
    0.5,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "0-2",
    "0-999999",
    "1,1",
    "2,1",
    "0-3 of 4",
    "a",
    "layers.0.heads",
    "..",
    "\x00",
    "\ud800",
    "\u202e<script>",
    "x" * 20_000,
    "9" * 5000,
    [],
    {},
    [[]],
    [0],
    [None],
    ["a"],
    {"a": 1},
    {"": {}},
    [1] * 5000,
]


class Rng(random.Random):
    """Draws mutations, and notes what they were."""

    def __init__(self, seed: str):
        super().__init__(seed)
        self.notes: list[str] = []

    def nasty(self) -> Any:
        return copy.deepcopy(self.choice(NASTY))


def places_of(value: Any, owner: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """The owner and the key of every value inside of a JSON value."""
    if owner is not None:
        yield owner, key
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in list(inside):
        yield from places_of(each, value, name)


def mutate_json(data: Any, rng: Rng) -> None:
    """Change one thing in a JSON value, in place."""
    owner, key = rng.choice(list(places_of(data)) or [(data, None)])
    if key is None:
        return
    value = owner[key]
    ways: list[Callable[[], None]] = [lambda: owner.__setitem__(key, rng.nasty()), lambda: owner.__delitem__(key)]
    if isinstance(owner, dict):
        ways += [lambda: owner.__setitem__(rng.choice(["a", "", "layers.9.heads", str(key) + "x"]), owner.pop(key))]
        ways += [lambda: owner.__setitem__(f"{key}.0", copy.deepcopy(value)), lambda: _swap(owner, key, rng)]
    if isinstance(owner, list):
        ways += [lambda: owner.append(copy.deepcopy(value)), lambda: rng.shuffle(owner)]
    if isinstance(value, bool):
        ways = [lambda: owner.__setitem__(key, not value), *ways]
    elif isinstance(value, int):
        ways = [lambda step=step: owner.__setitem__(key, value + step) for step in (1, -1, 7)] * 2 + ways
        ways += [lambda: owner.__setitem__(key, value / 1 if abs(value) < 2**63 else value)]
        ways += [lambda: owner.__setitem__(key, str(value))]
    elif isinstance(value, float):
        ways = [lambda: owner.__setitem__(key, value * 2), lambda: owner.__setitem__(key, -value), *ways]
    elif isinstance(value, str):
        ways = [lambda: owner.__setitem__(key, mutate_text(value, rng))] * 4 + ways
    elif isinstance(value, (dict, list)):
        ways += [lambda: owner.__setitem__(key, [value]), value.clear]
    before = repr(value)
    rng.choice(ways)()
    left = key in owner if isinstance(owner, dict) else key < len(owner)
    after = owner[key] if left else "gone"
    rng.notes.append(f"{key}: {before[:60]} -> {after!r:.60}")


def _swap(owner: dict, key: Any, rng: Rng) -> None:
    other = rng.choice(list(owner))
    owner[key], owner[other] = owner[other], owner[key]


def mutate_text(text: str, rng: Rng) -> str:
    """Change, insert or delete a character; of digits, keep the form."""
    place = rng.randrange(len(text) + 1)
    letters = "0123456789" if any(letter.isdigit() for letter in text) and rng.random() < 0.7 else '0,-a. {"\n\x00é'
    return rng.choice(
        [
            text[:place] + rng.choice(letters) + text[place:],
            text[:place] + rng.choice(letters) + text[place + 1 :],
            text[:place] + text[place + 1 :],
            text[:place],
            text + text,
        ]
    )


def mutate_file(file: Path, rng: Rng) -> None:
    """Damage the text of a JSON file."""
    text = file.read_text()
    place = rng.randrange(len(text) + 1)
    damages = [
        text[:place],
        text[:place] + rng.choice('{}[],:"0\\\x00é') + text[place + 1 :],
        text[:place] + text[place + rng.randrange(1, 30) :],
        '{"a":' * rng.choice([900, 100_000]) + text,
        text + text,
        "\ufeff" + text,
        text.replace(":", ": " + "[" * 5000, 1),
        text.replace(":", ": " + "9" * 5000, 1),
        "",
    ]
    file.write_text(rng.choice(damages))


def change_json(file: Path, rng: Rng, inside: str | None = None) -> None:
    """Change up to three things in a JSON file, or in one of its entries."""
    data = json.loads(file.read_text())
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutate_json(data if inside is None else data[inside], rng)
    file.write_text(json.dumps(data))


def mutate_header(file: Path, rng: Rng) -> None:
    """Change the header of a safetensors file, or its length."""
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, values = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    alike = [each for each in names if header[each]["shape"] == header[name]["shape"]]
    way = rng.randrange(9)
    rng.notes.append(f"header, way {way}: {name} {header[name]}, {other}")
    if way == 0:
        header[f"{name}x"] = header.pop(name)
    elif way == 1:  # two weights of one shape
        other = rng.choice(alike)
        header[name], header[other] = header[other], header[name]
    elif way == 2:
        header[name]["shape"] = header[name]["shape"][::-1]
    elif way == 3:
        header[name]["dtype"] = rng.choice(["I32", "U32", "F64", "F16", "BOOL", "a"])
    elif way == 4:
        del header[name]
    elif way == 5:
        mutate_json(header, rng)
    elif way == 6:
        header[name]["shape"] = [*header[name]["shape"], 1]
    elif way == 7:
        header.pop("__metadata__", None)
    else:
        header[name]["data_offsets"] = header[other]["data_offsets"]
    text = json.dumps(header).encode()
    if way == 4 and rng.random() < 0.7:  # a file that is whole without this one
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        del tensors[name]
        save_file(tensors, file, json.loads(content[8 : 8 + size]).get("__metadata__"))
        return
    content = struct.pack("<Q", len(text)) + text + values
    file.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)


def take_digest_off(file: Path, inside: str | None) -> None:
    """Make a folder like one of an earlier version, whose entry and weights nothing ties to each other."""
    data = json.loads(file.read_text())
    (data[inside] if inside else data["pruned"]).pop("digest", None)
    file.write_text(json.dumps(data))
    for weights in file.parent.glob("*.safetensors"):
        content = weights.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        header["__metadata__"] = {"format": "pt"}
        text = json.dumps(header).encode()
        weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


class Warned(std_logging.Handler):
    """What our code warned of, for one mutant."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: std_logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


WARNED = Warned()


class Subject:
    """A folder to mutate, and what it holds.

    Args:
        folder: as it was saved.
        load: folder -> outputs.
        entry: the file of its entry, and where in it.
    """

    def __init__(self, folder: Path, load: Callable[[Path], torch.Tensor], entry: tuple[str, str]):
        self.folder = folder
        self.load = load
        self.entry = entry
        self.outputs = load(folder)


@torch.no_grad()
def _outputs(folder: Path, batch: dict) -> torch.Tensor:
    found = load_model(folder, None)(**batch)
    return found.logits if "logits" in found else found[0]


@torch.no_grad()
def _module_outputs(folder: Path, batch: torch.Tensor) -> torch.Tensor:
    return load_pruned(Transformer, folder).eval()(batch)


def subjects(folder: Path) -> dict[str, Subject]:
    """Pruned folders of several kinds, made on the spot."""
    found = {}
    for name, model_type, options in (
        ("bert", "bert", {}),
        ("mpnet", "mpnet", {}),
        ("bert without sublayers", "bert", {"depth": 2, "flops": 0.4}),
        ("vit that merges", "vit", {"merging": [2, 3, 0], "flops": 0.6}),
        ("beit", "beit", {}),
    ):
        model = tiny_model(model_type)
        text = model_type in ("bert", "mpnet")
        pruner = OptinPruner(model, word_tokenizer() if text else None)
        data = TEXTS if text else tiny_samples(24, model=model)
        place = folder / name.replace(" ", "_")
        pruner.prune(data, OptinConfig(**{"flops": 0.5, "probes": 8, **options}), save_dir=place)
        batch = tiny_batch(model)
        found[name] = Subject(
            place, lambda each, batch=batch: _outputs(each, batch), ("config.json", "quantization_config")
        )
    pruner = OptinPruner.from_model(
        perturbed(Transformer()), token_ids(), config=OptinConfig(flops=0.6, probes=8, min_heads=2)
    )
    data = torch.randint(0, 50, (16, 9), generator=torch.Generator().manual_seed(1))
    pruner.prune(data, save_dir=folder / "module")
    found["module"] = Subject(
        folder / "module", lambda each: _module_outputs(each, data), ("optin_structure.json", "pruned")
    )
    return found


def folders(work: Path, subjects: dict[str, Subject], rng: Rng) -> Callable[[], str]:
    """A folder with a changed entry, a changed config or a changed header."""
    name = rng.choice(list(subjects))
    subject = subjects[name]
    folder = shutil.copytree(subject.folder, work / "folder")
    file, inside = subject.entry
    way = rng.choice(["entry"] * 6 + ["config", "text", "header", "header"])
    alone = rng.random() < 0.3  # whoever changes a folder may take its digest off
    rng.notes.append(f"{name}, {way}{', without a digest' * alone}")
    if alone:
        take_digest_off(folder / file, inside)
    if way == "entry":
        change_json(folder / file, rng, inside)
    elif way == "config":
        change_json(folder / file, rng)
    elif way == "text":
        mutate_file(folder / file, rng)
    else:
        mutate_header(next(folder.glob("*.safetensors")), rng)

    def read() -> str:
        with contextlib.suppress(ValueError, FileNotFoundError):
            info.run(argparse.Namespace(folder=str(folder), verify=False))
        outputs = subject.load(folder)
        if outputs.shape == subject.outputs.shape and torch.allclose(outputs, subject.outputs, atol=1e-5):
            return "equal"
        # What transformers' own fields say is no business of ours: `hidden_act` is what the config says.
        if way in ("config", "text") and _same(folder / file, subject.folder / file, inside):
            return "other config"
        try:
            info.run(argparse.Namespace(folder=str(folder), verify=True))
        except ValueError:
            return "found by --verify alone"
        return "warned" if alone and any("digest" in each for each in WARNED.messages) else "silent"

    return read


def _same(file: Path, other: Path, inside: str | None) -> bool:
    one, two = (json.loads(each.read_text()) for each in (file, other))
    return inside is not None and one.get(inside) == two.get(inside)


def json_files(work: Path, subjects: dict[str, Subject], rng: Rng) -> Callable[[], str]:
    """JSON files of ours, each read by what reads it: accepted ones must survive another round."""
    subject = subjects[rng.choice(list(subjects))]
    kind = rng.choice(["configuration", "schedule", "entry"])
    if kind == "configuration":
        OptinConfig(flops=0.5, floors={"heads": 2}, keep={"layers.0.heads": [0]}, exclude=["layers.1"]).save_pretrained(
            work
        )
        file = work / "optin_config.json"
        mutate_file(file, rng) if rng.random() < 0.2 else change_json(file, rng)

        def read() -> str:
            config = OptinConfig.from_pretrained(work)
            return "accepted" if OptinConfig.from_dict(config.to_dict()) == config else "silent"

    elif kind == "schedule":
        data = {"form": TokenSchedule(1, {"layers.0": 3, "layers.1": 8}).to_json()}
        for _ in range(rng.choice([1, 1, 2])):
            mutate_json(data, rng)

        def read() -> str:
            schedule = TokenSchedule.from_json(data.get("form"))
            form = schedule.to_json()
            schedule.lengths(["layers.0", "layers.1"], 17)
            return "accepted" if TokenSchedule.from_json(form).to_json() == form else "silent"

    else:
        folder = work / "entry"
        folder.mkdir()
        file = shutil.copy(subject.folder / subject.entry[0], folder)
        mutate_file(Path(file), rng) if rng.random() < 0.2 else change_json(Path(file), rng)

        def read() -> str:
            read_config(folder)
            info.run(argparse.Namespace(folder=str(folder), verify=False))
            return "accepted"

    return read


def reports(work: Path, subjects: dict[str, Subject], rng: Rng) -> Callable[[], str]:
    """Reports, what is printed of them, and the cards that are written: accepted ones say the same when saved again."""
    subject = subjects[rng.choice(list(subjects))]
    folder = shutil.copytree(subject.folder, work / "folder")
    file = folder / "optin_report.json"
    mutate_file(file, rng) if rng.random() < 0.15 else change_json(file, rng)

    def read() -> str:
        report = PruningReport.load(folder)
        str(report)
        write_report(folder, report)
        again = PruningReport.load(folder)
        size = (folder / "README.md").stat().st_size
        same = json.dumps(again.to_dict()) == json.dumps(report.to_dict())
        return "accepted" if same and size < 2**20 else "silent"

    return read


def scores(work: Path, subjects: dict[str, Subject], rng: Rng) -> Callable[[], str]:
    """Saved scores: those that are read must be those that were saved."""
    saved = subjects["scores"]
    folder = shutil.copytree(saved.folder, work / "scores")
    if rng.random() < 0.6:
        file = folder / "optin_scores.json"
        mutate_file(file, rng) if rng.random() < 0.2 else change_json(file, rng)
    else:
        mutate_header(folder / "optin_scores.safetensors", rng)

    def read() -> str:
        outputs = saved.load(folder)
        return "equal" if torch.equal(outputs, saved.outputs) else "silent"

    return read


def _scored(folder: Path) -> Subject:
    pruner = OptinPruner(tiny_model(), word_tokenizer())
    pruner.score(TEXTS, OptinConfig(flops=0.5, probes=8)).save_pretrained(folder)

    def load(folder: Path) -> torch.Tensor:
        found = Scores.from_pretrained(folder).combine(1.0)
        return torch.cat([found[key] for key in sorted(found)])

    return Subject(folder, load, ("optin_scores.json", None))


KINDS = {"folders": folders, "json files": json_files, "reports": reports, "scores": scores}
SHARES = {"folders": 0.5, "json files": 0.2, "reports": 0.2, "scores": 0.1}


def _peak() -> float:
    """The most memory that this process has had since `_forget_peak`, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _forget_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _ours(error: BaseException) -> bool:
    """Whether an error was raised by our code, or by Python or PyTorch as we called them."""
    while error.__cause__ is not None and isinstance(error, RAW):
        error = error.__cause__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/optimum_optin/" in frame.filename:
            return True
        if "/transformers/" in frame.filename or "/huggingface_hub/" in frame.filename:
            return False
    return True


def outcome_of(read: Callable[[], str]) -> tuple[str, str]:
    """The class that a mutant falls into, and what was said."""
    WARNED.messages.clear()
    before, start = _forget_peak(), time.process_time()
    signal.setitimer(signal.ITIMER_REAL, 60)
    said = ""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = read()
    except RAW as error:
        outcome = "raw, ours" if _ours(error) else "raw, of transformers"
        said = f"{type(error).__name__}: {error}"[:200] + " | " + _where(error)
    except (ValueError, OSError) as error:
        outcome, said = "refused", f"{type(error).__name__}: {error}"[:200]
    except Exception as error:
        outcome = "raw, ours" if _ours(error) else "raw, of transformers"
        said = f"{type(error).__name__}: {error}"[:200] + " | " + _where(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took, grown = time.process_time() - start, _peak() - before
    if took > SECONDS or grown > MEGABYTES:
        return "too much", f"{outcome}: {took:.1f} s, {grown:.0f} MB; {said}"
    return outcome, said


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))


def _alarm(*_: Any) -> None:
    raise TimeoutError("60 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kind and number of a single mutant, such as folders:17")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    ours = std_logging.getLogger("optimum_optin")
    ours.handlers, ours.propagate = [WARNED], False
    signal.signal(signal.SIGALRM, _alarm)
    with tempfile.TemporaryDirectory() as temporary:
        made = subjects(Path(temporary))
        all_subjects = {**made, "scores": _scored(Path(temporary, "scores"))}
        limit = 1024 * int(Path("/proc/self/statm").read_text().split()[0]) * 4 + 6 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for kind in arguments.kinds:
            numbers = range(round(arguments.count * SHARES[kind]))
            if arguments.only:
                only, _, number = arguments.only.partition(":")
                numbers = [int(number)] if only == kind else []
            counts: Counter[str] = Counter()
            start = time.monotonic()
            for number in numbers:
                rng = Rng(f"{arguments.seed} {kind} {number}")
                work = Path(temporary, "work")
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                chosen = all_subjects if kind == "scores" else made
                outcome, said = outcome_of(KINDS[kind](work, chosen, rng))
                said = " | ".join([*rng.notes, said])
                counts[outcome] += 1
                if arguments.only or outcome in ("silent", "raw, ours", "too much"):
                    print(f"  {kind}:{number}: {outcome}: {said}", flush=True)
                    if arguments.only:
                        shutil.copytree(work, "/tmp/stranger", dirs_exist_ok=True)
                if arguments.out:
                    with arguments.out.open("a") as stream:
                        stream.write(
                            json.dumps({"mutant": f"{kind}:{number}", "outcome": outcome, "said": said}) + "\n"
                        )
            total = ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items()))
            print(f"{kind}: {len(numbers)} in {time.monotonic() - start:.0f} s: {total}", flush=True)


if __name__ == "__main__":
    main()
