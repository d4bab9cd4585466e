"""Nothing half-written is left behind."""

import errno
import json

import numpy as np
import pytest

from deepdisc.errors import InputError
from deepdisc.files import atomic_path, sha256, write_json, write_text


def test_the_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "result.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and [p.name for p in target.parent.iterdir()] == ["result.txt"]


def test_a_failure_keeps_the_old_file_and_removes_the_new(tmp_path):
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_the_users_error_and_names_the_path(tmp_path):
    with (
        pytest.raises(InputError, match=r"cannot write .*result\.txt: No space left on device"),
        atomic_path(tmp_path / "result.txt") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_exist_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "m.json", {"a": float("nan"), "b": np.float32(1.5), "c": np.arange(2), "d": (1, None)})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": None, "b": 1.5, "c": [0, 1], "d": [1, None]}


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
