"""Folders written completely or not at all: what is there, in the worst moments, is the old state or the new one."""

import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from optimum_optin import Scores
from optimum_optin.files.exchange import NOTE_FILE, check_whole
from optimum_optin.files.folders import atomic_folder, check_folder, recover_folder, write_file
from optimum_optin.files.model_files import is_model_file, left_over

OLD = {
    "config.json": "old",
    "pytorch_model.bin": "old",
    "notes.txt": "mine",
    "checkpoint-5/model.safetensors": "mine",
    "1_Pooling/config.json": "old",
}
NEW = dict.fromkeys(("config.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors"), "new")
AFTER = {name: content for name, content in (OLD | NEW).items() if name != "pytorch_model.bin"}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def read(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "out", OLD)
    return tmp_path / "out"


def save(folder, files=None):
    with atomic_folder(folder) as draft:
        write(draft, NEW if files is None else files)


def test_what_is_not_replaced_is_not_touched(folder):
    others = [folder / "notes.txt", folder / "checkpoint-5", folder / "checkpoint-5/model.safetensors"]
    os.mkfifo(folder / "pipe")
    os.link(folder / "notes.txt", folder / "hard link")
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in others]
    with (folder / "notes.txt").open("a") as log:
        save(folder)
        log.write(", still open")
    assert [(file.stat().st_ino) for file in others] == [inode for inode, _ in before]
    assert others[1].stat().st_mtime_ns == before[1][1]
    assert read(folder) == AFTER | {"notes.txt": "mine, still open", "hard link": "mine, still open"}
    assert (folder / "pipe").is_fifo() and not list(folder.glob(".*"))


def test_a_hard_link_keeps_what_it_had(folder, tmp_path):
    os.link(folder / "config.json", tmp_path / "copy.json")
    (folder / "1_Pooling/config.json").unlink()
    (folder / "1_Pooling/config.json").symlink_to(tmp_path / "copy.json")
    save(folder)
    assert (tmp_path / "copy.json").read_text() == "old" and read(folder) == AFTER


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [False, True], ids=["new folder", "existing folder"])
def test_a_failure_at_any_move_changes_nothing(folder, tmp_path, monkeypatch, error, there):
    """Every rename and every unlink in turn is the one that fails, or in which Ctrl-C comes."""
    folder = folder if there else tmp_path / "deep/new"
    before = read(tmp_path)
    calls = 0
    while True:
        left = calls = calls + 1

        def failing(call):
            def move(*arguments, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    raise error("now")
                return call(*arguments, **options)

            return move

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing(os.replace))
            patch.setattr(Path, "unlink", failing(Path.unlink))
            try:
                save(folder)
                break
            except error:
                pass
        assert read(tmp_path) == before, f"after a failure of call {calls}"
        assert there or not (tmp_path / "deep").exists()
    assert calls > 6 and read(folder) == (AFTER if there else NEW)


def test_what_cannot_be_put_back_is_kept_and_finished_next_time(folder, monkeypatch):
    calls, replace = 0, os.replace

    def move(*arguments):
        nonlocal calls
        calls += 1
        if calls > 7:
            raise OSError(5, "Input/output error")
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", move)
        with pytest.raises(OSError, match=r"cannot be put back .*Input/output error.*the next save to that folder"):
            save(folder)
    assert "config.json" not in read(folder)
    with pytest.raises(FileNotFoundError, match="not whole: a save to it was killed .* `optimum-cli optin recover"):
        check_whole(folder)
    with pytest.raises(ZeroDivisionError), atomic_folder(folder):
        raise ZeroDivisionError
    assert read(folder) == AFTER


def test_a_single_file_is_written_whole_and_not_through_links(folder, monkeypatch):
    os.link(folder / "notes.txt", folder / "copy.txt")
    write_file(folder / "notes.txt", "new")
    assert (folder / "copy.txt").read_text() == "mine" and (folder / "notes.txt").read_text() == "new"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(folder / "notes.txt", "newer")
    assert (folder / "notes.txt").read_text() == "new" and not list(folder.glob(".*"))


def test_a_single_file_takes_the_place_of_files_alone(folder):
    os.mkfifo(folder / "pipe")
    for name, kind in (("pipe", "pipe"), ("checkpoint-5", "folder")):
        with pytest.raises(FileExistsError, match=f"{name} is to be a file, and is a {kind}"):
            write_file(folder / name, "new")
    with pytest.raises(FileNotFoundError, match="cannot write .*there is no folder"):
        write_file(folder / "missing/report.json", "new")
    assert (folder / "pipe").is_fifo() and read(folder) == OLD


def killed_at(moves):
    """`os.replace`, but this process is killed instead of so many."""
    replace = os.replace

    def move(*arguments):
        nonlocal moves
        moves -= 1
        if moves == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    return move


def in_a_fork(work):
    """The exit code of work that another process does: 0, 3 if somebody else is saving, or less if it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BlockingIOError as error:
            code = 3 if "somebody else is saving" in str(error) else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_any_move_it_does_not_load_or_is_whole(folder, tmp_path):
    """In forks, for speed: each is killed at one move; what had begun to move is finished."""
    before, moves = read(folder), 0
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    while True:
        moves += 1
        child = os.fork()
        if child == 0:
            os.replace = killed_at(moves)
            save(folder)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        now = {name: text for name, text in read(folder).items() if not name.startswith((".optin-", NOTE_FILE))}
        assert now in (before, AFTER) or "config.json" not in now, f"killed at move {moves}"
        if "config.json" not in now:
            assert "optimum-cli optin recover" in (folder / NOTE_FILE).read_text()
            with pytest.raises(FileNotFoundError, match=f"is not whole.*optimum-cli optin recover {folder}"):
                check_whole(folder)
        if recover_folder(folder):
            assert read(folder) == AFTER
        assert read(folder) in (before, AFTER) and not recover_folder(folder) and not list(folder.glob(".*"))
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "copy", folder, symlinks=True)
    assert moves > 8 and read(folder) == AFTER


def test_killed_scores_are_not_mixed(tmp_path):
    old = dict.fromkeys(("optin_scores.json", "optin_scores.safetensors"), "old")
    new = dict.fromkeys(old, "new")
    for moves in (4, 5, 6):
        write(tmp_path / str(moves), old)
        child = os.fork()
        if child == 0:
            os.replace = killed_at(moves)
            save(tmp_path / str(moves), new)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        with pytest.raises(FileNotFoundError, match="is not whole: a save to it was killed"):
            Scores.from_pretrained(tmp_path / str(moves))


def test_a_killed_process_leaves_no_lock(folder):
    before = read(folder)

    def work():
        os.replace = killed_at(6)
        save(folder)

    assert in_a_fork(work) == -9
    assert read(folder) != before
    save(folder)
    assert read(folder) == AFTER and not list(folder.glob(".*"))


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "existing folder"])
def test_of_two_savers_one_is_refused_at_once(folder, tmp_path, there):
    folder = folder if there else tmp_path / "new"
    with atomic_folder(folder) as draft:
        write(draft, NEW)
        started = time.monotonic()
        with pytest.raises(BlockingIOError, match=re.escape(f"somebody else is saving to {folder} at this moment")):
            save(folder, {"config.json": "of another thread"})
        assert in_a_fork(lambda: save(folder)) == 3
        assert time.monotonic() - started < 60
    assert read(folder) == (AFTER if there else NEW)
    save(folder, {"config.json": "later"})
    assert read(folder)["config.json"] == "later"


def test_many_savers_at_once_leave_one_whole_folder(tmp_path):
    folder, saved, refused = tmp_path / "deep/out", [], []

    def work(number):
        for _ in range(20):
            try:
                save(folder, {"config.json": str(number), "model.safetensors": str(number)})
                saved.append(number)
            except BlockingIOError:
                refused.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(saved) + len(refused) == 80 and saved
    assert len(set(read(folder).values())) == 1 and sorted(read(folder)) == ["config.json", "model.safetensors"]


def _folder_for_a_file(path):
    (path / "model.safetensors").mkdir(parents=True)


def _pipe_for_a_file(path):
    path.mkdir()
    os.mkfifo(path / "README.md")


def _socket_for_a_file(path):
    path.mkdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_folder_for_a_file, "model.safetensors"),
        (_pipe_for_a_file, "README.md"),
        (_socket_for_a_file, "tokenizer.json"),
    ],
)
def test_what_stands_in_the_way_is_named_before_the_work(make, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "out")
    with pytest.raises(FileExistsError, match=f"{re.escape(name)} is to be a file"):
        check_folder(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]


def test_what_stands_in_the_way_of_other_files_is_named_before_anything_moves(folder):
    (folder / "2_Dense").write_text("a file")
    before = read(folder)
    with pytest.raises(FileExistsError, match="2_Dense is to be a folder, and is a file"):
        save(folder)
    assert read(folder) == before


def test_names_as_long_as_names_can_be(tmp_path):
    for length in (246, 255):
        save(check_folder(tmp_path / ("x" * length)))
        assert read(tmp_path / ("x" * length)) == NEW
        save(tmp_path / ("x" * length))
    for path in (tmp_path / ("x" * 256), tmp_path / "new" / ("x" * 256)):
        with pytest.raises(OSError, match=r"cannot save to .*File name too long; give another folder"):
            check_folder(path)
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_not_utf8_is_refused_before_the_work(tmp_path):
    with pytest.raises(OSError, match="cannot save to .*udce9.*: safetensors writes to paths of UTF-8 only"):
        check_folder(tmp_path / os.fsdecode(b"caf\xe9"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_where_nothing_can_be_made_is_refused_before_the_work():
    for path in ("/proc/out", "/proc/a/out", "/proc/self/out"):
        with pytest.raises(OSError, match="cannot save to /proc"):
            check_folder(path)
        with pytest.raises(OSError, match="cannot save to /proc"):
            save(path)


def test_links_to_folders(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    save(tmp_path / "link")
    save(tmp_path / "dangling")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()
    assert read(folder) == AFTER and read(tmp_path / "later") == NEW
    with pytest.raises(OSError, match="cannot save to .*loop"):
        check_folder(tmp_path / "loop")


def test_trying_out_leaves_nothing(folder, tmp_path):
    before = read(tmp_path)
    for path in (folder, tmp_path / "deep/new", tmp_path / "notes"):
        check_folder(path)
    assert read(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.fixture
def shared():
    """A folder below one that others may enter, which pytest's are not."""
    if os.geteuid() != 0:
        pytest.skip("needs a user to change from")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        write(Path(place, "out"), OLD)
        yield Path(place, "out")


def _as_nobody(work):
    """The exit code of work that another user does: root may write everywhere."""
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            work()
        except PermissionError as error:
            os._exit(1 if "cannot save to" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("where", ["read-only", "of somebody else", "sticky"])
def test_places_that_may_not_be_written_are_refused_before_the_work(where, shared):
    if where == "sticky":
        shared.chmod(0o1777)
    if where == "read-only":
        shared.chmod(0o555)
        os.chown(shared, 65534, 65534)
    assert _as_nobody(lambda: check_folder(shared)) == 1
    assert _as_nobody(lambda: save(shared)) == 1
    assert read(shared) == OLD


def test_a_folder_of_ones_own_in_a_sticky_or_foreign_parent(shared):
    for path in (shared, *shared.rglob("*")):
        os.chown(path, 65534, 65534)
    for mode in (0o1777, 0o755):
        shared.parent.chmod(mode)
        assert _as_nobody(lambda: save(shared)) == 0
        assert read(shared) == AFTER


MODEL_FILES = """model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json model.fp16.safetensors
model.fp16-00001-of-00002.safetensors model-00001-of-00002.fp16.safetensors model.safetensors.index.fp16.json
pytorch_model.bin pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json pytorch_model.fp16.bin tf_model.h5
tf_model-00001-of-00002.h5 tf_model.h5.index.json flax_model.msgpack flax_model-00001-of-00002.msgpack
flax_model.msgpack.index.json adapter_model.safetensors adapter_model.bin adapter_config.json modeling_optin.py"""
OTHERS = """config.json model_teacher.safetensors checkpoint-5 training_args.bin optimizer.bin model.onnx notes.txt
pytorch_model.txt tokenizer.json models.safetensors my_model.safetensors modules.json modeling_custom.py"""


def test_which_files_are_a_model():
    assert all(map(is_model_file, MODEL_FILES.split()))
    assert not any(map(is_model_file, OTHERS.split()))


def test_a_save_without_weights_keeps_those_there(folder):
    save(folder, {"optin_report.json": "new"})
    assert read(folder) == OLD | {"optin_report.json": "new"}


def test_what_is_not_of_the_model_that_loads(tmp_path):
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    shards = {"model-00001-of-00002.safetensors": "", "model.safetensors.index.json": index}
    write(tmp_path, shards | {"model-00001-of-00003.safetensors": "", "tf_model.h5": "", "notes.txt": ""})
    assert left_over(tmp_path) == ["model-00001-of-00003.safetensors", "tf_model.h5"]
    write(tmp_path, {"model.safetensors": ""})
    assert left_over(tmp_path) == sorted([*shards, "model-00001-of-00003.safetensors", "tf_model.h5"])
