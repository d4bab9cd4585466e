"""First convolutions for other bands: what every method keeps, and what each does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdisc.backbones.mvit import MViT
from deepdisc.backbones.resnet import ResNet
from deepdisc.backbones.stem import METHODS, BandAdapter
from deepdisc.errors import InputError

RGB = ("red", "green", "blue")
UGRIZYJHK = {"u": 0.37, "g": 0.48, "r": 0.62, "i": 0.75, "z": 0.88, "y": 1.0, "J": 1.25, "H": 1.65, "K": 2.15}


def kernel(bands=3, out=4, dtype=torch.float32):
    return torch.randn(out, bands, 7, 7, generator=torch.Generator().manual_seed(bands), dtype=dtype)


def colours(count):
    return [f"c{i}" for i in range(count)], {f"c{i}": 0.3 + 0.1 * i for i in range(count)}


@given(
    method=st.sampled_from(METHODS),
    given_bands=st.integers(1, 6),
    bands=st.integers(1, 10),
    shared=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_the_answer_to_a_grey_image_is_kept(method, given_bands, bands, shared):
    """The sum over the bands is all that a grey image sees; by name, with bands in common or none."""
    names, wavelengths = colours(given_bands)
    wanted = [*names[::-1][:shared], *(f"n{i}" for i in range(bands))][:bands]
    wavelengths |= {f"n{i}": 0.25 + 0.17 * i for i in range(bands)}
    old = kernel(given_bands, dtype=torch.float64)
    new = BandAdapter(method, wavelengths)(old, names, wanted)
    assert new.shape == (4, bands, 7, 7)
    torch.testing.assert_close(new.sum(dim=1), old.sum(dim=1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", [lambda n: ResNet(18, n), lambda n: MViT(n, embed_dim=8)], ids=["ResNet", "MViT"])
def test_a_grey_image_leaves_the_stem_of_either_backbone_as_before(method, network):
    three, nine = network(3), network(9)
    first = (lambda net: net.stem.conv1) if hasattr(three, "stem") else (lambda net: net.patch_embed.proj)
    new = BandAdapter(method, UGRIZYJHK)(first(three).weight, RGB, list(UGRIZYJHK))
    with torch.no_grad():
        first(nine).load_state_dict(first(three).state_dict() | {"weight": new})
        grey = torch.randn(1, 1, 32, 32)
        expected = first(three)(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(first(nine)(grey.expand(-1, 9, -1, -1)), expected, atol=1e-5, rtol=1e-5)


def test_mean_gives_every_band_the_same():
    old = kernel()
    new = BandAdapter()(old, None, 9)
    torch.testing.assert_close(new, (old.sum(dim=1, keepdim=True) / 9).expand(-1, 9, -1, -1))


def test_repeat_cycles_through_the_bands_and_answers_a_colour_as_strongly_as_before():
    old = kernel()
    new = BandAdapter("repeat")(old, None, 6)
    torch.testing.assert_close(new, old.repeat(1, 2, 1, 1) / 2)


def test_wavelength_follows_the_spectrum():
    """Kernels that are linear in the wavelength stay so between the file's bands, and constant beyond them."""
    places = torch.tensor([0.64, 0.55, 0.46], dtype=torch.float64)
    old = places.view(1, 3, 1, 1).expand(2, 3, 7, 7)
    new = BandAdapter("wavelength", UGRIZYJHK)(old, RGB, list(UGRIZYJHK))
    follows = torch.tensor([0.46, 0.48, 0.62, *[0.64] * 6], dtype=torch.float64)
    shape = follows - follows.mean()
    torch.testing.assert_close(new[0, :, 0, 0], shape * 3 / 9 + places.sum() / 9)
    again = BandAdapter("wavelength")(old, RGB, ["blue", "red", "green"])
    assert torch.equal(again, old[:, [2, 0, 1]])
    same_places = BandAdapter("wavelength", {"a": 0.46, "b": 0.55, "c": 0.64})(old, RGB, ["a", "b", "c"])
    torch.testing.assert_close(same_places, old[:, [2, 1, 0]])


def test_by_name_bands_are_reordered_bit_for_bit():
    old = kernel(5)
    assert torch.equal(BandAdapter()(old, tuple("ugriz"), list("zirgu")), old.flip(1))


def test_by_name_a_dropped_band_leaves_its_share_to_the_others():
    old = kernel(5)
    new = BandAdapter("wavelength")(old, tuple("ugriz"), list("gri"))
    kept = old[:, 1:4]
    torch.testing.assert_close(new - new.mean(1, keepdim=True), kept - kept.mean(1, keepdim=True))
    torch.testing.assert_close(new.sum(1), old.sum(1))


@pytest.mark.parametrize("method", METHODS)
def test_by_name_a_new_band_leaves_the_colours_of_the_known_ones(method):
    old = kernel(3)
    new = BandAdapter(method, UGRIZYJHK)(old, tuple("gri"), list("rigzJ"))
    contrast = new[:, 0] - new[:, 1]
    torch.testing.assert_close(contrast, old[:, 1] - old[:, 2])
    if method == "wavelength":  # z and J lie beyond i
        torch.testing.assert_close(new[:, 3], new[:, 1])
        torch.testing.assert_close(new[:, 4], new[:, 1])
    if method == "mean":  # no colour of its own: what all bands have in common
        color = old[:, [1, 2, 0]] - old.mean(1, keepdim=True)
        common = (old.sum(1) - color.sum(1)) / 5
        torch.testing.assert_close(new[:, 3], common)
        torch.testing.assert_close(new[:, 4], common)


def test_the_type_of_the_kernel_is_kept():
    assert BandAdapter("repeat")(kernel().half(), None, 5).dtype == torch.float16


@pytest.mark.parametrize(
    ("adapter", "arguments", "message"),
    [
        (
            {"method": "median"},
            None,
            "method='median' is no way to adapt bands: choose one of mean, repeat, wavelength",
        ),
        ({"wavelengths_um": {"g": "abc"}}, None, "wavelengths_um: g is 'abc', not a positive number of micrometres"),
        ({"wavelengths_um": {"g": None}}, None, "wavelengths_um: g is None, not a positive number of micrometres"),
        ({"wavelengths_um": {"g": 480}}, None, "g is 480; wavelengths are in micrometres: 480 nm is 0.48"),
        ({"wavelengths_um": [1]}, None, r"wavelengths_um=\[1\]: give a mapping, as in {g: 0.48, r: 0.62}"),
        ({"file_bands": [1, 2, 3]}, None, r"file_bands=\[1, 2, 3\]: give a list of names, each another"),
        ({"file_bands": "gri"}, None, "file_bands='gri': give a list of names"),
        ({"file_bands": ["g", "g", "r"]}, None, r"file_bands=\['g', 'g', 'r'\]: give a list of names, each another"),
        ({"wavelengths_um": {"g": -0.5}}, None, "g is -0.5, not a positive number of micrometres"),
        ({}, (("g", "r"), ["g"]), r"2 bands are named \(g, r\), but the file's first convolution reads 3"),
        ({"method": "wavelength"}, (None, ["g"]), r"needs the names of the file's \(train.init_bands.file_bands"),
        ({"method": "wavelength"}, (RGB, 9), r"needs the names of the model's bands \(bands="),
        ({"method": "wavelength"}, (RGB, ["g", "Y"]), r"wavelengths_um lacks g, Y: give the effective wavelength"),
        (
            {"method": "wavelength", "wavelengths_um": {"a": 0.5, "b": 0.5, "c": 0.7, "n": 0.6}},
            (("a", "b", "c"), ["n"]),
            "two bands of the file have the same wavelength",
        ),
    ],
)
def test_wrong_settings_are_named(adapter, arguments, message):
    with pytest.raises(InputError, match=message):
        made = BandAdapter(**adapter)
        made(kernel(), *arguments)
