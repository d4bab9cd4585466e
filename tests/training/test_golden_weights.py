"""The reference models' weights, written by detectron2: they load strictly, and go back exactly as they were."""

import hashlib
import json

import pytest
import safetensors.torch
import torch
from detector.golden import Reference

from deepdisc.training.loading import load_weights
from deepdisc.training.weights import export_detectron2, read_weights


@pytest.mark.parametrize("name", ["A_tiny", "A_tiny18", "B_tiny"])
def test_detectron2s_weights_go_in_and_out_bit_for_bit(shared_data, tmp_path, name):
    folder = shared_data / "golden" / name
    keys = json.loads((folder / "keys.json").read_text())
    model = Reference.full(folder.parent, name).model()
    for value in model.state_dict().values():
        value.zero_()
    files = [folder / "state_dict.safetensors", *folder.glob("state_dict.pth")]
    for file in files:
        report = load_weights(model, read_weights(file), strict=True)
        assert set(report.matched) == set(keys)
        path = tmp_path / file.with_suffix(".out.pth").name
        export_detectron2(model, path)
        written = torch.load(path, weights_only=True)["model"]
        assert written.keys() == keys.keys()
        for key, value in written.items():
            assert list(value.shape) == keys[key]["shape"] and str(value.dtype) == f"torch.{keys[key]['dtype']}", key
            assert hashlib.sha256(value.numpy().tobytes()).hexdigest() == keys[key]["sha256"], key
        stored = safetensors.torch.load_file(files[0])
        again = read_weights(path).tensors
        assert all(torch.equal(again[key], value) for key, value in stored.items())
