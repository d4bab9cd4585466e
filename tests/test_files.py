"""Nothing half-written is left behind."""

import errno
import json

import numpy as np
import pytest

from deepdisc.errors import InputError, first_line
from deepdisc.files import (
    atomic_path,
    read_yaml,
    refuse_to_overwrite,
    refuse_unwritable,
    sha256,
    write_json,
    write_text,
)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [1, 2\n", r"f\.yaml, line 3: not valid YAML: .*; correct it there"),
        (b"a: 1\nb: {c: d: e}\n", r"f\.yaml, line 2: not valid YAML"),
        (b"a: 2024-13-01\n", r"f\.yaml: not valid YAML: month must be in 1..12"),
        (b"a: \x00\n", r"f\.yaml: not valid YAML: .*control characters|special characters"),
        (b"\xff\xfe\x00a", r"f\.yaml is not a text file \(.* at byte 0\); give YAML"),
        (None, r"cannot read the recipe .*f\.yaml: No such file or directory; check its path"),
    ],
)
def test_what_is_no_yaml_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "f.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(path, "recipe")
    assert "\n" not in str(caught.value)


def test_yaml_becomes_plain_values(tmp_path):
    (tmp_path / "f.yaml").write_text("a: [1, 2.5, null]\nb: {c: ä}\n", encoding="utf-8")
    assert read_yaml(tmp_path / "f.yaml", "recipe") == {"a": [1, 2.5, None], "b": {"c": "ä"}}


def test_nothing_that_exists_is_overwritten(tmp_path):
    (tmp_path / "there").symlink_to(tmp_path / "nowhere")
    refuse_to_overwrite([tmp_path / "free"])
    with pytest.raises(InputError, match=r"there exists already .*choose another --output"):
        refuse_to_overwrite([tmp_path / "free", tmp_path / "there"])


def test_a_folder_that_cannot_be_written_into_is_refused(tmp_path, monkeypatch):
    refuse_unwritable(tmp_path)
    refuse_unwritable(tmp_path / "new" / "newer")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into .*sub: .*file is no folder; choose another output"):
        refuse_unwritable(tmp_path / "file" / "sub")
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever runs this may be allowed everything
    with pytest.raises(InputError, match="is not writable; choose another output"):
        refuse_unwritable(tmp_path / "new")


def test_the_first_line_of_an_error_without_a_message_is_its_type():
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(MemoryError()) == "MemoryError"


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
