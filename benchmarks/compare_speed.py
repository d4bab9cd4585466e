"""Time and peak memory of Mask R-CNN R50-FPN, ours against torchvision's, on the same pixels in one run.

    python benchmarks/compare_speed.py [--cases infer-512-100x1 train-512-30x2 ...] [--repeats 5] [--output DIR]

A case is WHAT-SIDE-OBJECTSxBATCH. Both models have nine bands, two classes, random weights and the same settings; the
thresholds let exactly OBJECTS detections of each image through. "crowded" cases (2,000 detections) have small anchors
and 6,000 proposals. Each variant of each case runs in a process of its own; the rounds alternate between the variants,
so that a busy machine hurts all alike. Timed is what a user calls: the model on a list of images, masks included.

Variants: torchvision as it comes, and with its weights in channels-last order ("cl"), which is how `load_model`
delivers ours; both under bfloat16 autocast; ours with the light mask head of our own configurations (two convolutions
of 64 channels instead of four of 256).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from deepdisc.config import instantiate, load
from deepdisc.structures import Instances

BANDS, CLASSES = 9, 2
CROWDED = 2000
CASES = [
    "infer-512-100x1",
    "infer-512-100x4",
    "infer-1024-100x1",
    "infer-1024-100x2",
    "infer-512-2000x1",
    "infer-512-2000x2",
    "infer-1024-2000x1",
    "train-512-30x2",
]
VARIANTS = ["torchvision", "torchvision cl", "ours cl", "torchvision cl bf16", "ours cl bf16", "ours cl light"]


def anchor_sizes(objects: int) -> list[list[float]]:
    """Those of the published model, or the small ones of crowded fields."""
    return [[float(smallest * 2**i)] for smallest in ((8,) if objects >= CROWDED else (32,)) for i in range(5)]


def proposals(objects: int) -> int:
    """Proposals of an image."""
    return 6000 if objects >= CROWDED else 1000


def make_ours(objects: int, light: bool) -> nn.Module:
    """Our Mask R-CNN R50-FPN; no suppression among detections, so that the number of these is known."""
    count = proposals(objects)
    cfg = load(
        "configs/common/resnet_fpn.py",
        [
            f"num_bands={BANDS}",
            f"num_classes={CLASSES}",
            "model.backbone.bottom_up.stride_in_1x1=False",  # as torchvision
            f"model.proposal_generator.anchor_generator.sizes={anchor_sizes(objects)}",
            f"model.proposal_generator.pre_nms_topk=[2000,{count}]",
            f"model.proposal_generator.post_nms_topk=[2000,{count}]",
            "model.roi_heads.box_predictor.test_score_thresh=0.0",
            "model.roi_heads.box_predictor.test_nms_thresh=1.0",
            f"model.roi_heads.box_predictor.test_topk_per_image={objects}",
        ],
    )
    if light:
        cfg.model.roi_heads.mask_head.conv_dim = 64
        cfg.model.roi_heads.mask_head.num_conv = 2
    return instantiate(cfg.model)


def make_torchvision(side: int, objects: int) -> nn.Module:
    """torchvision's, with the same sizes, limits and first weights of the predictor."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    backbone.body.conv1 = nn.Conv2d(BANDS, 64, 7, stride=2, padding=3, bias=False)
    model = MaskRCNN(
        backbone,
        num_classes=CLASSES + 1,
        min_size=side,
        max_size=side,
        image_mean=[0.0] * BANDS,
        image_std=[1.0] * BANDS,
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, anchor_sizes(objects))), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=2000,
        rpn_pre_nms_top_n_test=proposals(objects),
        rpn_post_nms_top_n_test=proposals(objects),
        box_score_thresh=0.0,
        box_nms_thresh=1.0,
        box_detections_per_img=objects,
    )
    predictor = model.roi_heads.box_predictor
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    return model


def truth(side: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes (N, 4), classes (N,) from 0 and masks (N, side, side) of round objects of 10 to 60 pixels."""
    center = torch.rand(count, 2) * (side - 80) + 40
    radius = torch.rand(count, 1) * 25 + 5
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    masks = (x - center[:, 0, None, None]) ** 2 + (y - center[:, 1, None, None]) ** 2 < radius[..., None] ** 2
    return torch.cat((center - radius, center + radius), dim=1), torch.arange(count) % CLASSES, masks


def make_step(variant: str, what: str, side: int, objects: int, batch: int) -> Callable[[], int]:
    """The call to be timed; it returns the detections of an image (0 in training)."""
    torch.manual_seed(0)
    ours = variant.startswith("ours")
    model = make_ours(objects, "light" in variant) if ours else make_torchvision(side, objects)
    images = [torch.randn(BANDS, side, side) for _ in range(batch)]
    if "cl" in variant:
        model = model.to(memory_format=torch.channels_last)
    if what == "infer":
        model.eval()
        inputs = [{"image": image} for image in images] if ours else images

        def infer() -> int:
            with torch.inference_mode():
                first = model(inputs)[0]
            return len(first["instances"] if ours else first["boxes"])

        return infer
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
    truths = [truth(side, objects) for _ in images]

    def train() -> int:
        if ours:
            losses = model(
                [{"image": x, "instances": _instances(side, *t)} for x, t in zip(images, truths, strict=True)]
            )
        else:
            targets = [{"boxes": b, "labels": c + 1, "masks": m.to(torch.uint8)} for b, c, m in truths]
            losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return 0

    return train


def _instances(side: int, boxes: torch.Tensor, classes: torch.Tensor, masks: torch.Tensor) -> Instances:
    return Instances((side, side), gt_boxes=boxes, gt_classes=classes, gt_masks=masks)


def serve(case: str, variant: str) -> None:
    """In a process of its own: print a line of JSON for each line that comes in, until the input ends."""
    what, side, rest = case.split("-")
    objects, batch = (int(number) for number in rest.split("x"))
    step = make_step(variant, what, int(side), objects, batch)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if "bf16" in variant else contextlib.nullcontext()
    for _ in sys.stdin:
        start = time.perf_counter()
        with autocast:
            count = step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "count": count, "peak": peak}), flush=True)


def measure(case: str, repeats: int) -> list[dict]:
    """Median seconds (after one warm-up) and peak memory of each variant of a case."""
    command = [sys.executable, __file__, "--serve", case]
    what = case.split("-")[0]
    variants = [name for name in VARIANTS if what == "infer" or "light" not in name]
    workers = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in variants
    }
    answers: dict[str, list[dict]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, worker in workers.items():
            print("go", file=worker.stdin, flush=True)
            line = worker.stdout.readline()
            if not line:
                sys.exit(f"{case}, {name}: the process died, most likely for lack of memory; leave this case out")
            answers[name].append(json.loads(line))
    rows = []
    for name, worker in workers.items():
        worker.communicate()
        seconds = [answer["seconds"] for answer in answers[name][1:]]
        last = answers[name][-1]
        rows.append({
            "case": case, "variant": name, "seconds": statistics.median(seconds), "fastest": min(seconds),
            "detections": last["count"], "peak_mib": last["peak"] / 1024,
        })  # fmt: skip
    return rows


def cpu_name() -> str:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def table(rows: list[dict]) -> str:
    """Markdown; ratios to torchvision as it comes."""
    lines = [
        "| case | variant | detections | seconds (fastest) | times as fast | peak memory, MiB | memory ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reference = next(x for x in rows if x["case"] == row["case"] and x["variant"] == "torchvision")
        lines.append(
            f"| {row['case']} | {row['variant']} | {row['detections']} | {row['seconds']:.2f} ({row['fastest']:.2f}) "
            f"| {reference['seconds'] / row['seconds']:.2f} | {row['peak_mib']:.0f} "
            f"| {row['peak_mib'] / reference['peak_mib']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CASE")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds after one that warms up (default: 5)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write compare_speed.md there")
    parser.add_argument("--serve", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return
    rows = []
    for case in args.cases:
        rows += measure(case, args.repeats)
        print(f"{case} done", file=sys.stderr, flush=True)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    what = f"median of {args.repeats} rounds, peak resident memory of the process"
    text = f"{cpu_name()}; {versions}; {what}\n\n{table(rows)}\n"
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "compare_speed.md").write_text(text)


if __name__ == "__main__":
    main()
