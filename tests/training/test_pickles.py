"""Weight files of strangers: plain contents arrive, nothing is ever executed."""

import codecs
import pickle
import re
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from deepdisc.errors import InputError
from deepdisc.training import pickles
from deepdisc.training.weights import read_weights

PLAIN = {
    "a": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 4), np.int64),
    "scalar": np.float64(3.5),
    "rest": ["x", b"yz", 1, None, (2, 0.5)],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_are_read(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(PLAIN, protocol))
    found = pickles.load_pickle(tmp_path / "a.pkl")
    np.testing.assert_equal(found, PLAIN)
    assert found["fortran"].dtype == np.dtype("f4") and type(found["scalar"]) is float


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_values_of_old_schedulers_in_a_pth_are_read(tmp_path, zipped):
    state = {"model": {"w": torch.ones(2)}, "scheduler": PLAIN | {"base_lrs": [np.float64(0.02), np.float32(1)]}}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = pickles.load_torch(tmp_path / "a.pth")
    np.testing.assert_equal(found["scheduler"], state["scheduler"])
    assert torch.equal(read_weights(tmp_path / "a.pth").tensors["w"], torch.ones(2))


def test_a_pickle_of_python_2_is_read(tmp_path):
    """NumPy 1 under Python 2 wrote the bytes of an array as a string."""
    raw = np.array([1.5, -2.0], "<f4").tobytes()
    text = (
        b"(dp0\nS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
        b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS"
        + repr(raw)[1:].encode("ascii")
        + b"\ntbs."
    )
    (tmp_path / "a.pkl").write_bytes(text)
    np.testing.assert_equal(pickles.load_pickle(tmp_path / "a.pkl"), {"w": np.array([1.5, -2.0], np.float32)})


class Reduced:
    """Pickles as a call of the attacker's choice."""

    def __init__(self, *steps):
        self.steps = steps

    def __reduce__(self):
        return self.steps


def attacks(mark):
    """Pickles that would create the file `mark`, or reach for something that could."""
    import numpy._core.multiarray as multiarray
    import numpy.testing

    command = f"open({str(mark)!r}, 'w').close()"
    objects = np.array([Reduced(open, (str(mark), "w"))], dtype=object)
    return {
        "os.system": Reduced(__import__("os").system, (f"touch {mark}",)),
        "subprocess": Reduced(subprocess.Popen, (["touch", str(mark)],)),
        "eval": Reduced(eval, (command,)),
        "exec": Reduced(exec, (command,)),
        "open": Reduced(open, (str(mark), "w")),
        "getattr": Reduced(getattr, ("x", "format")),
        "__import__": Reduced(__import__, ("os",)),
        "numpy.testing": Reduced(numpy.testing.measure, (command,)),
        "numpy.load": Reduced(np.load, ("a.npy", None, True)),
        "numpy.save": Reduced(np.save, (str(mark), np.ones(1))),
        "memmap": Reduced(np.memmap, (str(mark), "uint8", "w+", 0, (1,))),
        "object array": objects,
        "object scalar": Reduced(multiarray.scalar, (np.dtype("O"), b"x")),
        "record array": np.zeros(2, dtype=[("a", "O")]),
        "codec": Reduced(codecs.encode, ("x", "hex")),
        "torch.load": Reduced(torch.load, ("a.pth",)),
        "whole model": torch.nn.Linear(2, 2),
    }


@pytest.mark.parametrize("kind", ["pkl", "zip", "legacy"])
@pytest.mark.parametrize("attack", list(attacks("x")))
def test_a_malicious_pickle_is_refused_and_nothing_of_it_is_executed(tmp_path, attack, kind):
    mark, path = tmp_path / "executed", tmp_path / ("a.pkl" if kind == "pkl" else "a.pth")
    contents = {"model": {"w": np.ones(2) if kind == "pkl" else torch.ones(2), "x": attacks(mark)[attack]}}
    if kind == "pkl":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "zip")
    before = set(sys.modules)
    with pytest.raises(InputError, match=f"{path.name}: cannot be read as") as caught:
        read_weights(path)
    assert not mark.exists() and set(tmp_path.iterdir()) == {path}
    assert not {name for name in set(sys.modules) - before if name.startswith(("numpy.f2py", "numpy.distutils"))}
    message = str(caught.value)
    assert "\n" not in message and "weights_only" not in message and "add_safe_globals" not in message
    if attack in ("os.system", "subprocess", "numpy.load"):
        assert "it would call" in message
    if attack in ("object array", "object scalar", "record array"):
        assert "only numbers are allowed" in message and re.search("of type '[OV]8'", message)


def test_the_attacks_would_work_on_an_open_door(tmp_path):
    """The same files do execute with a plain unpickler: the tests above can fail."""
    for attack in ("os.system", "eval", "exec", "open", "numpy.testing", "object array"):
        mark = tmp_path / attack
        pickle.loads(pickle.dumps(attacks(mark)[attack]))
        assert mark.exists(), attack


@pytest.mark.parametrize(
    "name", ["numpy.f2py dtype", "numpy.testing.overrides ndarray", "os _reconstruct", "numpy.core.multiarray fromfile"]
)
def test_a_known_name_of_another_module_is_not_even_imported(tmp_path, name):
    module, name = name.split()
    before = set(sys.modules)
    (tmp_path / "a.pkl").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(InputError, match=f"it would call {module}.{name}"):
        pickles.load_pickle(tmp_path / "a.pkl")
    assert module in before or module not in sys.modules


def test_the_state_of_a_type_cannot_smuggle_objects_in(tmp_path):
    """A dtype whose pickled state claims fields of objects would make NumPy follow pointers of the file."""
    forged = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt"
        b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\ntp9\n(dp8\nS'a'\n(cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR"
        b"I0\ntsI8\nI1\nI0\ntbI00\nS'AAAAAAAA'\ntb."
    )
    (tmp_path / "a.pkl").write_bytes(forged)
    with pytest.raises(InputError, match="it holds an array of records"):
        pickles.load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("state", [b"}S'__defaults__'\n(I1\ntsb", b"(N}S'function'\nI1\nstb"])
def test_our_readers_cannot_be_changed_by_a_file(tmp_path, state):
    before = pickles._SCALAR.function
    (tmp_path / "a.pkl").write_bytes(b"cnumpy.core.multiarray\nscalar\n" + state + b".")
    with pytest.raises(InputError, match="it changes a function"):
        pickles.load_pickle(tmp_path / "a.pkl")
    assert pickles._SCALAR.function is before


def test_a_bad_pickle_inside_a_good_archive(tmp_path):
    """data.pkl of a torch archive replaced by another pickle, and a second archive nested in it."""
    mark = tmp_path / "executed"
    torch.save({"w": torch.ones(2)}, tmp_path / "good.pth")
    evil = pickle.dumps({"w": Reduced(eval, (f"open({str(mark)!r}, 'w')",))}, protocol=2)
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for item in good.namelist():
            bad.writestr(item, evil if item.endswith("data.pkl") else good.read(item))
        bad.write(tmp_path / "good.pth", "good/nested.pth")
    with pytest.raises(InputError, match="bad.pth: cannot be read as a checkpoint: it would call"):
        read_weights(tmp_path / "bad.pth")
    assert not mark.exists()


@pytest.mark.parametrize("raw", [b"F", b"N" * 16, b""])
def test_an_array_of_the_wrong_length_is_refused(tmp_path, raw):
    good = pickle.dumps({"w": np.full(3, 1.0, "<f4")}, protocol=3)
    three = np.full(3, 1.0, "<f4").tobytes()
    assert good.count(b"C\x0c" + three) == 1
    (tmp_path / "a.pkl").write_bytes(good.replace(b"C\x0c" + three, b"C" + bytes([len(raw)]) + raw))
    with pytest.raises(InputError, match=rf"it holds {len(raw)} bytes for an array \(3,\) of float32"):
        pickles.load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_only_dense_tensors_are_weights(tmp_path, kind):
    tensor = torch.eye(3).to_sparse() if kind == "sparse" else torch.ones(3, device="meta")
    torch.save({"w": tensor}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="w is no plain dense tensor|cannot be read"):
        read_weights(tmp_path / "a.pth")


# files that are small and become large -------------------------------------------------------------------------------
def bomb():
    """A list of 10^10 texts, of which all but 91 are the same lists again."""
    found = ["x"] * 10
    for _ in range(9):
        found = [found] * 10
    return found


@pytest.mark.parametrize("kind", ["pkl", "zip", "legacy"])
def test_what_a_file_holds_once_is_copied_once(tmp_path, kind):
    loop = []
    loop.append((loop, {"again": loop}))
    contents = {"w": np.ones(3) if kind == "pkl" else torch.ones(3), "b": bomb(), "loop": loop}
    path = tmp_path / ("a.pkl" if kind == "pkl" else "a.pth")
    if kind == "pkl":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "zip")
    found = pickles.load_pickle(path) if kind == "pkl" else pickles.load_torch(path)
    assert found["b"][0] is found["b"][9] and found["b"][0][0][0][0][0][0][0][0][0] == ["x"] * 10
    assert found["loop"][0][0] is found["loop"] and found["loop"][0][1]["again"] is found["loop"]
    assert read_weights(path).tensors["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("code", [b"p1000000000\n", b"r" + (10**9).to_bytes(4, "little")])
def test_a_part_numbered_far_beyond_the_others_takes_no_memory(tmp_path, code):
    (tmp_path / "a.pkl").write_bytes(b"N" + code + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert pickles.load_pickle(tmp_path / "a.pkl") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the table would have 16 GB


def test_too_deep_a_file_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(InputError, match="a.pkl: cannot be read as a .pkl of weights: .*RecursionError"):
        pickles.load_pickle(tmp_path / "a.pkl")


def test_a_compressed_archive_is_refused_before_it_is_inflated(tmp_path):
    torch.save({"w": torch.zeros(2_000_000)}, tmp_path / "good.pth")
    assert read_weights(tmp_path / "good.pth").tensors["w"].numel() == 2_000_000
    with zipfile.ZipFile(tmp_path / "good.pth") as good:
        with zipfile.ZipFile(tmp_path / "bad.pth", "w", zipfile.ZIP_DEFLATED) as bad:
            for item in good.namelist():
                bad.writestr(item, good.read(item))
    with pytest.raises(
        InputError, match=r"bad.pth: .* its \d+ bytes would become 80\d+, and weights are not compressed"
    ):
        read_weights(tmp_path / "bad.pth")


@pytest.mark.parametrize("kind", [np.longdouble, np.clongdouble])
def test_numbers_that_torch_does_not_have_are_refused(tmp_path, kind):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.ones(3, kind)}))
    with pytest.raises(InputError, match=r"a.pkl: .* it holds an array of type '(f16|c32)', .*64 bits"):
        read_weights(tmp_path / "a.pkl")
