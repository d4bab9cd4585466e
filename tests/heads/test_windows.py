"""Windows around objects: the right pixels, at native resolution and summed."""

import numpy as np
import pytest
import torch

from deepdisc.heads.windows import cut_windows, iterate_windows
from deepdisc.structures import Instances


def pixels(height: int = 60, width: int = 72, bands: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (1, bands, height, width)
    return {
        "flux": torch.randn(shape, generator=generator),
        "variance": torch.rand(shape, generator=generator) + 1,
        "valid": torch.ones(shape, dtype=torch.bool),
    }


def at(*boxes: tuple[float, float, float, float]) -> list[Instances]:
    return [Instances((60, 72), pred_boxes=torch.tensor(boxes).reshape(-1, 4))]


@pytest.mark.parametrize("size", [9, 10])
def test_small_objects_are_seen_at_native_resolution(size):
    features = pixels()
    windows = cut_windows(features, at((30.2, 20.1, 33.2, 24.3)), "pred_boxes", size)
    start_x, start_y = 31 - size // 2 + (size % 2 == 0), 22 - size // 2
    assert windows.flux[0].equal(features["flux"][0, :, start_y : start_y + size, start_x : start_x + size])
    x, y = windows.axes()
    assert x[0].numpy() == pytest.approx(np.arange(start_x, start_x + size) + 0.5 - 31.7, abs=1e-5)
    assert y[0].numpy() == pytest.approx(np.arange(start_y, start_y + size) + 0.5 - 22.2, abs=1e-5)
    assert windows.binning.tolist() == [1] and windows.box[0].tolist() == pytest.approx([3.0, 4.2], abs=1e-5)


def test_summed_pixels_hold_all_flux_and_variance_of_the_image():
    features = pixels()
    windows = cut_windows(features, at((0.0, 0, 66, 58)), "pred_boxes", 33)
    assert windows.binning.tolist() == [4] and windows.box[0].tolist() == [16.5, 14.5]
    # The window of 132 pixels holds the whole image.
    for name in ("flux", "variance"):
        total = getattr(windows, name)[0].double().sum((-2, -1))
        assert total.numpy() == pytest.approx(features[name][0].double().sum((-2, -1)).numpy(), rel=1e-3, abs=1e-3)
    x, y = windows.axes()
    assert (33.0 + 4 * x[0]).numpy() == pytest.approx(2 + 4 * np.arange(-8, 25), abs=1e-4)
    assert (29.0 + 4 * y[0]).numpy() == pytest.approx(2 + 4 * np.arange(-9, 24), abs=1e-4)


def test_a_summed_pixel_is_valid_where_half_of_it_is_and_then_stands_for_all_of_it():
    features = pixels()
    features["flux"][:] = 1.0
    features["variance"][:] = 2.0
    features["valid"][..., 20:22, :] = False
    features["valid"][..., 40:43, 40:44] = False
    windows = cut_windows(features, at((0.0, 0, 64, 60)), "pred_boxes", 33)
    x, y = windows.axes()
    row, column = int((30 + 4 * y[0] - 22).abs().argmin()), int((32 + 4 * x[0] - 42).abs().argmin())
    assert windows.flux[0, 0, row, column] == 16 and windows.variance[0, 0, row, column] == 2 * 16 * 2
    assert not windows.valid[0, 0, row + 5, column] and windows.flux[0, 0, row + 5, column] == 0


def test_pixels_without_a_number_or_noise_are_not_valid():
    features = pixels()
    features["flux"][0, 0, 30, 30] = np.nan
    features["variance"][0, 0, 30, 31] = np.inf
    features["variance"][0, 0, 30, 32] = 0.0
    windows = cut_windows(features, at((29.5, 29.5, 31.5, 31.5)), "pred_boxes", 5)
    assert windows.valid[0, 0, 2].tolist() == [True, True, False, False, False]
    assert torch.isfinite(windows.flux).all() and torch.isfinite(windows.variance).all()


def test_beyond_the_image_nothing_is_valid():
    windows = cut_windows(pixels(), at((-30.0, -30, -20, -20), (68, 56, 76, 64)), "pred_boxes", 9)
    assert not windows.valid[0].any()
    assert windows.valid[1].sum().item() == 2 * 4 * 4 and (windows.flux[1][~windows.valid[1]] == 0).all()


def test_chunks_are_the_whole_in_parts():
    features, generator = pixels(), torch.Generator().manual_seed(1)
    corners = torch.rand(20, 2, generator=generator) * 50
    boxes = torch.cat((corners, corners + torch.rand(20, 2, generator=generator) * 40), 1)
    instances = [Instances((60, 72), pred_boxes=boxes)]
    whole = cut_windows(features, instances, "pred_boxes", 17)
    parts = list(iterate_windows(features, instances, "pred_boxes", 17, chunk=7))
    assert [len(part) for part in parts] == [7, 7, 6] and whole.binning.unique().numel() > 2
    pair = {name: torch.cat((value, value)) for name, value in features.items()}
    shared = list(iterate_windows(pair, [instances[0][:4], instances[0][4:]], "pred_boxes", 17, chunk=30))
    assert len(shared) == 1 and shared[0].flux.equal(whole.flux) and shared[0].image.tolist() == [0] * 4 + [1] * 16
    assert all(value.equal(torch.cat([getattr(part, name) for part in parts])) for name, value in vars(whole).items())


def test_no_objects_give_no_windows():
    windows = cut_windows(pixels(), at(), "pred_boxes", 33)
    assert windows.flux.shape == (0, 2, 33, 33) and len(windows) == 0
