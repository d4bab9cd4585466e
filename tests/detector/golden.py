"""Reference models of which detectron2's numbers are known: their weights, inputs and configuration.

Weights and images follow a rule of uniform and normal random numbers (numpy's legacy generator, whose stream never
changes), so that only outputs need to be stored. They were computed with detectron2 02b5c4e2 on torch 2.14.1, CPU.
"""

import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from deepdisc.config import instantiate, load
from deepdisc.structures import Instances, PolygonMasks

PIXEL_MEAN = [0.10, -0.05, 0.20, 0.00, 0.15, -0.10, 0.30, 0.05, -0.20]
PIXEL_STD = [8.0, 10.0, 12.0, 9.0, 11.0, 10.0, 14.0, 13.0, 16.0]
IMAGE_SIZES = [(192, 256), (224, 160)]

# configuration of the small models that have the structure of the full ones
TINY = [
    "num_bands=9",
    "num_classes=2",
    "model.proposal_generator.anchor_generator.sizes=[[16],[32],[64],[128],[256]]",
    "model.proposal_generator.batch_size_per_image=32",
    "model.roi_heads.batch_size_per_image=48",
    f"model.pixel_mean={PIXEL_MEAN}",
    f"model.pixel_std={PIXEL_STD}",
]
TINY_RESNET = [
    *TINY,
    "model.backbone.out_channels=32",
    "model.roi_heads.box_head.fc_dim=64",
    "model.roi_heads.mask_head.conv_dim=32",
]
MODELS = {
    "A_tiny": ("configs/common/resnet_fpn.py", [*TINY_RESNET, "model.backbone.bottom_up.stem_out_channels=8"]),
    "A_tiny18": (
        "configs/common/resnet_fpn.py",
        [*TINY_RESNET, "model.backbone.bottom_up.depth=18", "model.backbone.bottom_up.stem_out_channels=16"],
    ),
    "B_tiny": (
        "configs/common/mvitv2_fpn.py",
        [
            *TINY,
            "model.backbone.out_channels=24",
            "model.backbone.bottom_up.embed_dim=16",
            "model.backbone.bottom_up.drop_path_rate=0.0",
            "model.roi_heads.box_heads.0.conv_dim=24",
            "model.roi_heads.box_heads.0.fc_dim=48",
            "model.roi_heads.mask_head.conv_dim=24",
        ],
    ),
}

# (pattern of the key, mean, gain, fan): uniform of half width `gain`, over sqrt(fan-in / 3) where a fan is named
WEIGHT_RULES = [
    (r"num_batches_tracked$", 0.0, 0.0, None),
    (r"running_mean$", 0.0, 0.1, None),
    (r"running_var$", 1.0, 0.5, None),
    (r"res\d\.\d+\.conv2\.norm\.weight$", 0.60, 0.15, None),
    (r"res\d\.\d+\.conv3\.norm\.weight$", 0.55, 0.15, None),
    (r"bottom_up\..*norm(\d|_[qkv])?\.weight$", 1.0, 0.25, None),
    (r"norm\.weight$", 1.0, 0.25, None),
    (r"bias$", 0.0, 0.1, None),
    (r"rel_pos_[hw]$", 0.0, 0.2, None),
    (r"(pool_[qkv]|attn\.qkv|patch_embed\.proj)\.weight$", 0.0, 1.0, "in"),
    (r"(attn\.proj|mlp\.fc2)\.weight$", 0.0, 0.7, "in"),
    (r"fpn_lateral\d\.weight$", 0.0, 0.5, "in"),
    (r"fpn_output\d\.weight$", 0.0, 0.8, "in"),
    (r"objectness_logits\.weight$", 0.0, 2.0, "in"),
    (r"anchor_deltas\.weight$", 0.0, 0.2, "in"),
    (r"box_predictor\.\d\.cls_score\.weight$", 0.0, 2.0, "in"),
    (r"cls_score\.weight$", 0.0, 0.7, "in"),
    (r"box_predictor\.\d\.bbox_pred\.weight$", 0.0, 0.4, "in"),
    (r"bbox_pred\.weight$", 0.0, 1.0, "in"),
    (r"predictor\.weight$", 0.0, 2.0, "in"),
    (r"deconv\.weight$", 0.0, 1.4142, "transposed"),
    (r"weight$", 0.0, 1.4142, "in"),
]


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight or buffer of the reference models under a state-dict key."""
    mean, gain, fan = next(rule[1:] for rule in WEIGHT_RULES if re.search(rule[0], key))
    uniform = np.random.RandomState(zlib.crc32(b"v4:" + key.encode())).random_sample(shape) * 2.0 - 1.0
    if fan is None:
        return np.asarray(mean + gain * uniform, dtype=np.float32)
    inputs = shape[0] if fan == "transposed" else np.prod(shape[1:])
    return (uniform * (np.sqrt(3.0) * gain / np.sqrt(float(inputs)))).astype(np.float32)


def make_image(i: int) -> np.ndarray:
    """Reference image (9, h, w): noise and elliptical sources; equal to the stored one up to the rounding of exp."""
    height, width = IMAGE_SIZES[i]
    sky = 0.8 + 0.05 * np.arange(9)
    image = np.random.RandomState(2000 + i).standard_normal((9, height, width)) * sky[:, None, None]
    y, x = np.mgrid[0:height, 0:width] + 0.5
    random = np.random.RandomState(1000 + i)
    for _ in range(max(12, round(height * width / 1500.0))):
        x0, y0 = random.random_sample() * width, random.random_sample() * height
        radius = 1.5 + 7.0 * random.random_sample() ** 2
        axis_ratio, angle = 0.4 + 0.6 * random.random_sample(), np.pi * random.random_sample()
        peak, color = 10.0 ** (0.7 + 1.6 * random.random_sample()), 0.5 + 1.0 * random.random_sample(9)
        along = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
        across = (-(x - x0) * np.sin(angle) + (y - y0) * np.cos(angle)) / axis_ratio
        r = np.hypot(along, across) / radius
        profile = np.exp(-0.5 * r * r) if radius < 2.6 else np.exp(-1.6783 * r)
        image += peak * color[:, None, None] * profile
    return image.astype(np.float32)


@dataclass
class Reference:
    """What detectron2 computed for one model.

    Attributes:
        name: of the model, see `MODELS`.
        inputs: ground truth (and, in the full set, images).
        evaluation: inference, all stages, by key.
        training: by case, one forward and backward pass each.
        keys: shape of each entry of the state dict.
    """

    name: str
    inputs: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray]
    training: dict[str, dict[str, np.ndarray]]
    keys: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def full(cls, folder: Path, name: str) -> "Reference":
        """All numbers, from the folder beside the repository."""
        cases = {path.stem: dict(np.load(path)) for path in sorted((folder / name).glob("train_*.npz"))}
        for case, losses in json.loads((folder / name / "losses.json").read_text()).items():
            # stochastic depth: only losses are known
            if case not in cases:
                cases[case] = {f"loss/{key}": np.float64(value) for key, value in losses.items()}
        keys = {key: value["shape"] for key, value in json.loads((folder / name / "keys.json").read_text()).items()}
        return cls(name, dict(np.load(folder / "inputs.npz")), dict(np.load(folder / name / "eval.npz")), cases, keys)

    @classmethod
    def compact(cls, path: Path) -> "Reference":
        """The committed selection: one file, entries named `part:key`."""
        parts: dict[str, dict[str, np.ndarray]] = {}
        for entry, value in np.load(path).items():
            part, key = entry.split(":", 1)
            parts.setdefault(part, {})[key] = value
        inputs, evaluation = parts.pop("inputs"), parts.pop("eval")
        return cls(path.stem, inputs, evaluation, parts)

    def model(self, *overrides: str):
        """The model with the reference weights, in evaluation mode."""
        config, settings = MODELS[self.name]
        model = instantiate(load(config, [*settings, *overrides]).model)
        state = {key: torch.from_numpy(fill(key, tuple(value.shape))) for key, value in model.state_dict().items()}
        model.load_state_dict(state)
        return model.eval()

    def image(self, i: int) -> torch.Tensor:
        """Image (9, h, w)."""
        stored = self.inputs.get(f"image_{i}")
        return torch.from_numpy(make_image(i) if stored is None else stored)

    def truth(self, i: int, polygons: bool) -> Instances:
        """The true objects of image `i`, with masks of pixels or of polygons."""
        if polygons:
            parts = np.split(self.inputs[f"gt_poly_{i}_flat"], np.cumsum(self.inputs[f"gt_poly_{i}_len"])[:-1])
            owner = self.inputs[f"gt_poly_{i}_inst"].tolist()
            grouped = [[part for part, j in zip(parts, owner, strict=True) if j == k] for k in range(max(owner) + 1)]
            masks = PolygonMasks(grouped, IMAGE_SIZES[i])
        else:
            packed = self.inputs[f"gt_bitmasks_{i}_packed"]
            masks = torch.from_numpy(np.unpackbits(packed, axis=-1, count=IMAGE_SIZES[i][1]).astype(bool))
        return Instances(
            IMAGE_SIZES[i],
            gt_boxes=torch.from_numpy(self.inputs[f"gt_boxes_{i}"]),
            gt_classes=torch.from_numpy(self.inputs[f"gt_classes_{i}"]),
            gt_masks=masks,
        )

    @property
    def num_stages(self) -> int:
        """Box heads in series: 1, or 3 in a cascade."""
        return 3 if "given/logits_stage2" in self.evaluation else 1

    def get(self, key: str) -> torch.Tensor | None:
        """An array of the inference, or None where the selection lacks it."""
        value = self.evaluation.get(key)
        return None if value is None else torch.from_numpy(value)
