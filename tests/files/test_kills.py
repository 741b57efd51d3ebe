"""Saves, scores and pushes that are killed between operations on files: the old or the new, never both, never neither.

`tests/fuzz/kill_points.py` tries out every system call; here, every eleventh or so of the operations that Python tells.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import kills
import pytest
from kills import cases, judge, killed, push_cases
from test_folders import AFTER, NEW, OLD, read, save, write

from optimum_optin import OptinPruner
from optimum_optin.commands import run
from optimum_optin.files import exchange, held, locks
from optimum_optin.files.exchange import NOTE_FILE, check_whole
from optimum_optin.files.folders import atomic_folder, recover_folder, write_file
from optimum_optin.files.held import make_held, temporary_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for every kill")
STRIDE = 11
LONGER = {"save over another": 31, "save in the working directory": 31, "save over shards": 19, "report": 19}
LONGER |= {"push": 19, "push of a folder": 19}
CASES = (
    *("save", "save over another", "save over shards", "save in the working directory", "save of a plain module"),
    *("report", "scores", "push", "push of a folder"),
)


@pytest.fixture(scope="module")
def made():
    """Every case but pushes."""
    return cases()


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_moment_nothing_is_broken_and_nothing_missing(name, made, tmp_path, monkeypatch, request):
    monkeypatch.setattr(kills.tempfile, "tempdir", None)  # to be undone
    found = push_cases(request.getfixturevalue("hub")) if name.startswith("push") else made
    moment = 1 + CASES.index(name)
    while killed(found[name], tmp_path / "place", moment):
        assert judge(found[name], tmp_path / "place") == [], f"killed before operation {moment}"
        moment += LONGER.get(name, STRIDE)
    assert moment > 33


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "out", OLD)
    return tmp_path / "out"


def _killed_half_way(folder, moves=6, files=None):
    """A save that was killed before one of its renames."""
    child = os.fork()
    if not child:
        left, replace = [moves], os.replace

        def move(*arguments):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), 9)
            replace(*arguments)

        os.replace = move
        save(folder, files)
        os._exit(0)
    assert kills.was_killed(child)


def test_a_half_moved_folder_is_refused_with_what_to_do(folder, capsys, caplog):
    _killed_half_way(folder)
    message = f"is not whole: a save to it was killed .*`optimum-cli optin recover {folder}`"
    with pytest.raises(FileNotFoundError, match=message):
        OptinPruner.from_pretrained(folder)
    assert run("info", [str(folder)]) == 2 and "optin recover" in capsys.readouterr().err
    assert f"optimum-cli optin recover {folder}" in (folder / NOTE_FILE).read_text()
    assert run("recover", [str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder), "finished": True}
    assert "an earlier save to" in caplog.text and "it is finished now" in caplog.text
    assert read(folder) == AFTER and not list(folder.glob(".*"))
    assert run("recover", [str(folder)]) == 0
    assert "no save to it was killed while it moved files" in capsys.readouterr().out
    assert run("recover", [str(folder / "nowhere")]) == 2 and "there is no such folder" in capsys.readouterr().err


def test_while_somebody_saves_nobody_recovers(folder):
    _killed_half_way(folder)
    handle = locks.open_folder(folder)
    assert locks.take(handle)
    try:
        with pytest.raises(BlockingIOError, match="somebody is saving to .* wait until that is done"):
            check_whole(folder)
        with pytest.raises(BlockingIOError, match="somebody else is saving"):
            recover_folder(folder)
    finally:
        locks.release(handle)
    assert recover_folder(folder) and read(folder) == AFTER


def test_what_was_made_since_is_not_overwritten(folder):
    _killed_half_way(folder)
    (folder / "config.json").write_text("made since")
    for call in (recover_folder, save):
        with pytest.raises(
            FileExistsError, match=r"the config\.json that is there now was made since.*move one of them"
        ):
            call(folder)
    assert (folder / "config.json").read_text() == "made since"
    (folder / "config.json").unlink()
    assert recover_folder(folder) and read(folder) == AFTER


def test_what_was_changed_before_it_was_moved_is_not_overwritten(folder):
    _killed_half_way(folder, moves=4)
    assert (folder / "config.json").read_text() == "old"
    (folder / "config.json").write_text("changed since")
    with pytest.raises(FileExistsError, match=r"config\.json that is there now was made since"):
        recover_folder(folder)


@pytest.mark.parametrize(
    "journal",
    [
        {"files": ["../victim"], "folders": [], "replaced": {}},
        {"files": ["/victim"], "folders": [], "replaced": {}},
        {"files": [], "folders": [], "replaced": {"../victim": [6, 0.0]}},
        {"files": "config.json", "folders": [], "replaced": {}},
        {"files": [], "folders": [], "replaced": {"config.json": 3}},
        {"files": [], "folders": []} | {"replaced": ["config.json"]},
        {"folders": []},
        [],
    ],
    ids=str,
)
def test_a_strangers_journal_moves_nothing_outside(journal, folder, tmp_path):
    (tmp_path / "victim").write_text("victim")
    _killed_half_way(folder)
    (file,) = folder.glob(".optin-draft-*/journal.json")
    file.write_text(json.dumps(journal))
    before = read(tmp_path)
    for call in (recover_folder, save):
        with pytest.raises(ValueError, match=r"journal\.json is damaged"):
            call(folder)
    assert read(tmp_path) == before


def test_a_strangers_links_move_nothing_outside(folder, tmp_path):
    _killed_half_way(folder)
    (tmp_path / "elsewhere").mkdir()
    (work,) = folder.glob(".optin-draft-*")
    shutil.move(folder / "1_Pooling", tmp_path / "moved")
    (folder / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="1_Pooling is to be a folder, and is a link"):
        recover_folder(folder)
    (folder / "1_Pooling").unlink()
    shutil.move(work / "new", tmp_path / "elsewhere/new")
    (work / "new").symlink_to(tmp_path / "elsewhere/new")
    with pytest.raises(ValueError, match="its folders are links"):
        recover_folder(folder)
    assert sorted(read(tmp_path / "elsewhere/new"))


def test_what_an_earlier_version_had_moved_is_put_back(folder, caplog):
    _killed_half_way(folder)
    (file,) = folder.glob(".optin-draft-*/journal.json")
    journal = json.loads(file.read_text())
    del journal["replaced"]
    file.write_text(json.dumps(journal))
    file.parent.rename(folder / ".optin-draft-abcd_123")
    assert recover_folder(folder) and read(folder) == OLD
    assert "the files that it had moved are back" in caplog.text


def _leave(prefix, place, content, host=None, age=0.0):
    """A folder as a killed process leaves it."""
    folder, handle = make_held(prefix, place)
    held.let_go(handle)
    write(folder, content)
    if host:
        folder = folder.rename(folder.with_name(f"{prefix}{host}-{folder.name[-8:]}"))
    for file in (*folder.rglob("*"), folder):
        os.utime(file, (time.time() - age, time.time() - age))
    return folder


def test_what_a_killed_process_left_is_removed_with_a_word(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kills.tempfile, "tempdir", str(tmp_path))
    gone = [
        _leave(".optin-draft-", folder, {"new/model.safetensors": "half"}),
        _leave(".optin-draft-", folder, {"new/model.safetensors": "half"}, host="f" * 8, age=25 * 3600),
        _leave(".optin-probe-", folder, {"file": "optin"}),
        _leave(".optin-probe-", tmp_path, {"file": "optin"}),
        _leave("optin-temporary-", tmp_path, {"model.safetensors": "whole"}),
    ]
    kept = [
        _leave(".optin-draft-", folder, {"new/model.safetensors": "half"}, host="f" * 8, age=3600),
        _leave(".optin-draft-", folder, {"mine.txt": "no part of a save"}),
        _leave("optin-", tmp_path, {"model.safetensors": "saved here by a command"}, age=1e6),
    ]
    (tmp_path / "optin-temporary-link").symlink_to(folder)
    save(folder)
    with temporary_folder() as place:
        assert place.parent == tmp_path
    assert not any(map(os.path.exists, gone)) and all(map(os.path.exists, kept)) and (folder / "notes.txt").exists()
    assert all(f"removed what a process that was killed had left: {place}" in caplog.text for place in gone)


def test_what_a_live_process_writes_is_not_removed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(kills.tempfile, "tempdir", str(tmp_path))
    package = f"""
import sys, tempfile, types
package = sys.modules["optimum_optin"] = types.ModuleType("optimum_optin")  # its other files are slow to import
package.__path__ = [{str(Path(held.__file__).parents[1])!r}]
from optimum_optin.files.held import make_held
made = [make_held(prefix, place) for prefix, place in zip(("optin-temporary-", ".optin-probe-"), sys.argv[1:])]
print(*(folder for folder, _ in made), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", package, str(tmp_path), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        places = [Path(place) for place in other.stdout.readline().split()]
        assert len(places) == 2
        with temporary_folder():
            save(folder)
            write_file(folder / "notes.txt", "mine")
        assert all(place.is_dir() for place in places)
        other.kill()
    with temporary_folder():
        save(folder)
    assert not any(place.exists() for place in places)


def test_a_folder_that_is_swept_away_before_it_is_held_is_made_again(tmp_path, monkeypatch):
    taken = []

    def take(handle):
        taken.append(handle)
        if len(taken) == 1:
            for each in tmp_path.iterdir():
                each.rmdir()
        return len(taken) != 2  # then somebody looks whether it is held

    monkeypatch.setattr(held, "take", take)
    folder, handle = make_held("x-", tmp_path)
    held.let_go(handle)
    assert len(taken) == 3 and folder.is_dir()


def test_without_locks_nothing_is_removed_and_a_save_just_begun_is_left_alone(folder, tmp_path, monkeypatch):
    _killed_half_way(folder)
    left = _leave(".optin-draft-", folder, {"new/model.safetensors": "half"})
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(BlockingIOError, match="somebody else has begun to move files in .* within 10 minutes"):
        save(folder)
    (journal,) = folder.glob(".optin-draft-*/journal.json")
    os.utime(journal, (time.time() - 700, time.time() - 700))
    save(folder)
    assert left.exists() and read(folder).items() >= AFTER.items()
    with atomic_folder(tmp_path / "more") as draft:
        write(draft, NEW)
    assert read(tmp_path / "more") == NEW


def test_another_computers_save_is_left_alone_for_a_while(folder):
    _killed_half_way(folder)
    (journal,) = folder.glob(".optin-draft-*/journal.json")
    work = journal.parent.rename(folder / ".optin-draft-ffffffff-abcdefgh")
    with pytest.raises(BlockingIOError, match="somebody else has begun"):
        recover_folder(folder)
    os.utime(work / journal.name, (time.time() - exchange._PATIENCE - 1,) * 2)
    assert recover_folder(folder) and read(folder) == AFTER


ENTRY = json.dumps({"quantization_config": {"quant_method": "optin"}})


def _age(folder, days=2.0):
    for file in (*folder.rglob("*"), folder):
        os.utime(file, (time.time() - days * 24 * 3600,) * 2, follow_symlinks=False)


@pytest.mark.parametrize(
    "left",
    [
        (".out-abcd_123", {"config.json": ENTRY, "model.safetensors": "half"}, 2, True),
        (".out-abcd_123", {"config.json": ENTRY, "model.safetensors": "half"}, 0.5, False),  # who knows
        (".out-abcd_123", {"config.json": "{}", "model.safetensors": "whose?"}, 2, False),
        (".out-abcd_123", {"config.json": ENTRY, "thesis.tex": "only here"}, 2, False),
        (".out-abcd_123", {"config.json": ENTRY, "notes.txt": "mine"}, 2, True),  # a copy
        (".out-abcd_123", {}, 2, True),
        (".out-abcdefghi", {"config.json": ENTRY}, 2, False),  # not as mkdtemp calls them
        (".output-abcd_123", {"config.json": ENTRY}, 2, False),
        (".out-old-abcd_123", {"out/config.json": ENTRY, "out/notes.txt": "mine"}, 2, True),
        (".out-old-abcd_123", {"out/config.json": ENTRY, "out/notes.txt": "mine", "out/thesis.tex": ""}, 2, False),
        (".out-old-abcd_123", {"out/config.json": ENTRY, "thesis.tex": ""}, 2, False),
    ],
)
@pytest.mark.parametrize("where", ["beside", "inside"])
def test_litter_of_early_versions(left, where, folder, tmp_path, caplog):
    name, content, days, gone = left
    write(folder, {"config.json": ENTRY})
    place = (tmp_path if where == "beside" else folder) / name
    place.mkdir()
    write(place, content)
    _age(tmp_path, days)
    before = read(place)
    save(folder, NEW)
    assert place.exists() != gone
    assert gone or read(place) == before
    if gone and content:
        assert f"removed what a killed save of an early version had left: {place}" in caplog.text
    if "tex" in str(content):
        assert re_named(caplog.text, place) and "thesis.tex" in caplog.text


def re_named(text, place):
    """Whether a person is told of a folder."""
    return f"{place} was left by a killed save of an early version, and holds" in text


def test_an_early_versions_only_copy_stays(tmp_path):
    """Killed between its two renames, such a version left no folder."""
    write(
        tmp_path / ".out-old-abcd_123", {"out/config.json": ENTRY, "out/model.safetensors": "old", "out/notes.txt": "m"}
    )
    _age(tmp_path)
    before = read(tmp_path)
    save(tmp_path / "out", {"README.md": "new"})
    assert read(tmp_path) == before | {"out/README.md": "new"}
