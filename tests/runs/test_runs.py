"""A run's directory: files that are whole, rows that are whole, errors by name."""

import hashlib
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lowland
from full_disk import files_of_at_most
from lowland.errors import InputError, one_of
from lowland.runs import Run, config_hash, describe_environment
from lowland.runs.atomic import replace_atomically, write_json


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_by_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    replace_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x"]


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # on the same file system
        assert path.read_text() == "old"

    replace_atomically(path, write)


@pytest.mark.parametrize("error", [OSError("No space left"), KeyboardInterrupt(), ValueError("not JSON")])
def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("ha")
        raise error

    with pytest.raises(type(error)):
        replace_atomically(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with files_of_at_most(100), pytest.raises(OSError):
        replace_atomically(path, lambda temporary: temporary.write_bytes(bytes(1000)))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def owned(name: str, *, pid: int, process: str = "0" * 8) -> str:
    """The name of a temporary file of a process of this machine."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f".{name}.{host}-{pid}-{process}-0.tmp"


def a_process_that_is_gone() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_what_a_killed_process_left_is_removed_by_the_next_write_and_nothing_else(tmp_path: Path) -> None:
    gone = a_process_that_is_gone()
    left = {owned("x", pid=gone), owned("y", pid=gone), owned("x", pid=os.getpid())}  # an earlier process's
    kept = {
        owned("x", pid=os.getppid()),
        f".x.{'0' * 8}-{gone}-{'0' * 8}-0.tmp",  # another machine's
        "x.tmp",
        ".hidden",
    }
    for name in left | kept:
        (tmp_path / name).touch()
    replace_atomically(tmp_path / "z", lambda temporary: temporary.write_text("new"))
    assert set(names(tmp_path)) == kept | {"z"}


def test_a_file_that_this_process_is_writing_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.touch()
        replace_atomically(tmp_path / "other", lambda t: t.write_text("in between"))
        temporary.write_text("new")

    replace_atomically(tmp_path / "x", write)
    assert (tmp_path / "x").read_text() == "new"
    assert names(tmp_path) == ["other", "x"]


def test_a_directory_in_which_only_a_temporary_file_was_left_can_become_a_run(tmp_path: Path) -> None:
    (tmp_path / owned("env.json", pid=a_process_that_is_gone())).write_text('{"pyth')
    assert new(tmp_path).config == {"m": 1}
    assert set(names(tmp_path)) == {"checkpoint", "config.json", "env.json"}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_may_be_read_by_those_that_the_user_allows(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        replace_atomically(tmp_path / "x", lambda t: t.touch(mode=0o600))
        found = os.umask(mask)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode
    assert found == mask


def test_json_is_finite_and_ends_in_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"a": [1, 2.5, None]})
    text = (tmp_path / "x").read_text()
    assert json.loads(text) == {"a": [1, 2.5, None]}
    assert text.endswith("}\n")
    with pytest.raises(ValueError):
        write_json(tmp_path / "x", {"a": float("nan")})
    assert (tmp_path / "x").read_text() == text


def new(path: Path, config: dict[str, Any] | None = None) -> Run:
    return Run.create(path, config or {"m": 1}, {"place": {}})


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    run = new(tmp_path / "x")
    assert run.rows() == []
    rows = [{"epoch": 0.1, "full": True}, {"epoch": 2, "note": "é\n"}, {"epoch": 1e-300}]
    for row in rows:
        run.append(row)
    assert run.rows() == rows
    assert Run.open(tmp_path / "x").rows() == rows
    assert len(run.metrics_path.read_text().splitlines()) == 3


def test_a_half_written_last_row_is_not_one(tmp_path: Path) -> None:
    run = new(tmp_path / "x")
    run.append({"a": 1})
    with run.metrics_path.open("ab") as file:
        file.write(b'{"a": 2')
    assert run.rows() == [{"a": 1}]


@pytest.mark.parametrize("damaged", [b"{\n", b'{"a": 1}\nnonsense\n', b"\xff\xfe\n", b"\n"])
def test_a_damaged_row_is_refused_by_the_files_name(tmp_path: Path, damaged: bytes) -> None:
    run = new(tmp_path / "x")
    run.metrics_path.write_bytes(damaged)
    with pytest.raises(InputError, match=f"^{run.metrics_path} must hold one JSON object per line"):
        run.rows()


@pytest.mark.usefixtures("untyped")
def test_a_row_that_is_no_object_is_refused(tmp_path: Path) -> None:
    run = new(tmp_path / "x")
    run.metrics_path.write_bytes(b"3\n")
    with pytest.raises(InputError, match="one JSON object per line"):
        run.rows()


@pytest.mark.parametrize("half", [b"", b'{"a": 3, "b', b'{"a": 3}'])
def test_rows_after_those_to_keep_are_dropped_byte_for_byte(tmp_path: Path, half: bytes) -> None:
    run = new(tmp_path / "x")
    for i in range(4):
        run.append({"a": i})
    whole = run.metrics_path.read_bytes()
    with run.metrics_path.open("ab") as file:
        file.write(half)
    run.keep_rows(4)
    assert run.metrics_path.read_bytes() == whole
    run.keep_rows(2)
    assert run.rows() == [{"a": 0}, {"a": 1}]
    run.append({"a": 9})
    assert run.rows() == [{"a": 0}, {"a": 1}, {"a": 9}]
    run.keep_rows(0)
    assert run.rows() == []


def test_fewer_rows_than_were_to_be_kept_are_refused_and_a_half_one_does_not_count(tmp_path: Path) -> None:
    run = new(tmp_path / "x")
    with pytest.raises(InputError, match="must have the checkpoint's 1 rows, has 0"):
        run.keep_rows(1)
    run.append({"a": 1})
    with run.metrics_path.open("ab") as file:
        file.write(b'{"a": 2')
    with pytest.raises(InputError, match="must have the checkpoint's 2 rows, has 1"):
        run.keep_rows(2)


def test_a_row_that_cannot_be_written_whole_is_not_written_at_all(tmp_path: Path) -> None:
    run = new(tmp_path / "x")
    run.append({"a": 1})
    before = run.metrics_path.read_bytes()
    for room in (0, 1, 7, 20):
        with files_of_at_most(len(before) + room), pytest.raises(OSError):
            run.append({"a": "x" * 30})
        assert run.metrics_path.read_bytes() == before, room
    with files_of_at_most(len(before) + 9000), pytest.raises(OSError):
        run.append({"a": "x" * 20_000})  # beyond any buffer
    assert run.metrics_path.read_bytes() == before
    run.append({"a": 2})
    assert run.rows() == [{"a": 1}, {"a": 2}]


def test_a_new_run_knows_its_config_and_environment_and_is_not_finished(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a" / "b", {"m": 1, "names": ["x"]}, {"python": "3"})
    assert run.config == {"m": 1, "names": ["x"]}
    assert run.environment == {"python": "3"}
    assert run.summary is None
    run.finish({"last": {"a": 1}})
    assert Run.open(tmp_path / "a" / "b").summary == {"last": {"a": 1}}


def test_an_empty_directory_may_become_a_run_and_a_run_is_found_again(tmp_path: Path) -> None:
    first = Run.create(tmp_path, {"m": 1, "names": ("x",)}, {"python": "3"})
    first.append({"a": 1})
    again = Run.create(tmp_path, {"m": 1, "names": ("x",)}, {"python": "4"})
    assert again.rows() == [{"a": 1}]
    assert again.environment == {"python": "3"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"m": 2}, "(m is 1 there, 2 here)"),
        ({"m": 1, "rho": 0.1}, "(rho is None there, 0.1 here)"),
        ({}, "(m is 1 there, None here)"),
    ],
)
def test_another_config_is_refused_by_the_first_difference(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    new(tmp_path / "x")
    with pytest.raises(InputError) as caught:
        Run.create(tmp_path / "x", other, {})
    assert message in str(caught.value)


def test_a_run_whose_beginning_was_cut_off_can_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, value: Any) -> None:
        if path.name == "config.json":
            raise OSError("No space left on device")
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr("lowland.runs.directory.write_json", fails)
        with pytest.raises(OSError, match="No space"):
            new(tmp_path / "x")
    assert new(tmp_path / "x").config == {"m": 1}


def opened(path: Path) -> Any:
    return Run.open(path)


def config(path: Path) -> Any:
    return Run(path).config


@pytest.mark.parametrize(
    ("content", "of", "message"),
    [
        (None, opened, "a run directory is needed, but {path} has no config.json."),
        (None, config, "{path} must be a run directory, but has no config.json."),
        ("{", config, "{path}/config.json must be a JSON file: "),
        ("[1]", config, "{path}/config.json must hold a JSON object, got list."),
        (b"\xff\xfe", config, "{path}/config.json must be a JSON file: "),
    ],
)
def test_what_is_no_run_is_refused_by_its_path(
    tmp_path: Path, content: str | bytes | None, of: Callable[[Path], Any], message: str
) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(InputError) as caught:
        of(tmp_path)
    assert str(caught.value).startswith(message.format(path=tmp_path))


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(InputError, match=f"there is no directory {path}"):
            Run.open(path)


def test_a_hash_depends_on_the_values_and_not_on_their_order() -> None:
    first = config_hash({"rho": 0.1, "m": 1})
    assert first == config_hash({"m": 1, "rho": 0.1})
    assert len(first) == 10
    assert int(first, 16) >= 0
    others = [{"rho": 0.1, "m": 2}, {"rho": 0.1}, {"rho": 0.1, "m": "1"}, {"rho": 0.1, "m": None}]
    assert len({first, *(config_hash(other) for other in others)}) == 5


def test_the_environment_names_versions_and_the_commit() -> None:
    found = describe_environment()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["versions"].keys() >= {"lowland", "numpy", "safetensors"}
    root = Path(lowland.__file__).parents[2]
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        assert (found["git_commit"] or "").removesuffix("-dirty") == commit
    else:
        assert found["git_commit"] is None


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    one_of("loss", "ce", ["ce", "gce"])
    with pytest.raises(InputError, match=r"^loss must be one of ce, gce, got 'gcee'; nearest: gce"):
        one_of("loss", "gcee", ["ce", "gce"])
    with pytest.raises(ValueError, match=r"^loss must be one of ce, gce, got 'zzz'\.$"):
        one_of("loss", "zzz", ["ce", "gce"])
