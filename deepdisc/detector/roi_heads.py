"""Second stage: which proposals are learned from, and the heads that measure regions.

Legend: N images, K classes without background, which is class K. `gt_` fields describe the object that a proposal
matches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deepdisc.detector.matcher import Matcher, sample_labels
from deepdisc.detector.pooling import ROIPooler
from deepdisc.errors import InputError
from deepdisc.structures import Instances, sample_map

# the objectness of a true box among the proposals: a probability of 1 - 1e-10, as in detectron2
TRUE_BOX_LOGIT = math.log((1.0 - 1e-10) / 1e-10)


class ROIHeads(nn.Module):
    """Classifies and refines proposals, then lets every head measure what was found.

    Heads follow `deepdisc.heads.head.Head`; nothing here knows what they measure.
    """

    def __init__(
        self,
        num_classes: int,
        proposal_matcher: Matcher,
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        heads: Mapping[str, nn.Module] | None = None,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        chunk_size: int = 1024,
        views_per_object: int = 0,
    ):
        """Assemble the heads.

        Args:
            num_classes: K.
            proposal_matcher: which proposal stands for which object.
            box_pooler: cuts the proposals out of the maps.
            box_head: pooled regions -> features.
            box_predictor: features -> class and box.
            mask_head: the head of masks, or None.
            heads: further heads by name, in the order in which they run: each sees what those before it measured.
            batch_size_per_image: proposals of an image in the losses.
            positive_fraction: largest fraction of these that match an object.
            chunk_size: proposals that are classified at a time in prediction, which bounds the memory.
            views_per_object: at most so many proposals of each object, drawn at random, go to the further heads in
                training: several views of the same pixels teach little and cost as much. 0 = all. The mask's head
                always gets all.

        Raises:
            InputError: parts of another number of classes; a head that needs what no head before it measures.
        """
        super().__init__()
        self.num_classes = num_classes
        self.proposal_matcher = proposal_matcher
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_head = mask_head
        self.heads = nn.ModuleDict(dict(heads or {}))
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.chunk_size = chunk_size
        self.views_per_object = views_per_object
        if type(views_per_object) is not int or views_per_object < 0:
            raise InputError(f"views_per_object={views_per_object} must be an integer; 0 takes all views")
        check_order(self.heads)
        if num_classes < 1:
            raise InputError(f"num_classes={num_classes}: there must be at least one class")
        for part in [*box_predictor.modules(), mask_head]:
            own = getattr(part, "num_classes", num_classes)
            if own != num_classes:
                raise InputError(
                    f"the ROI heads have num_classes={num_classes}, their {type(part).__name__} {own}: set the one "
                    "num_classes (or class_names) at the top of the config, which all of them follow"
                )

    def all_heads(self) -> dict[str, nn.Module]:
        """The heads of detected objects by name, the mask's first."""
        return ({} if self.mask_head is None else {"mask": self.mask_head}) | dict(self.heads.items())

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        maps: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Losses of all heads.

        Args:
            features: maps of the batch by name.
            proposals: of each image, from the proposal network.
            targets: the true objects of each image: `gt_boxes`, `gt_classes` and what the heads need.
            maps: for each image the quantities (scalar or coarse grid) that heads want at the box centres, by name.
        """
        sampled, foreground = [], []
        for proposal, target, values in zip(proposals, targets, maps, strict=True):
            regions, objects = self.sample(proposal, target)
            sampled.append(regions)
            foreground.append(_with_maps(objects, objects.proposal_boxes, values))
        losses = self.box_losses(features, sampled, targets)
        if self.mask_head is not None:
            losses.update(self.mask_head.losses(features, foreground))
        if self.views_per_object and len(self.heads):
            foreground = [_limit_views(objects, self.views_per_object) for objects in foreground]
        for head in self.heads.values():
            losses.update(head.losses(features, foreground))
        return losses

    def box_losses(
        self, features: dict[str, Tensor], sampled: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of class and box of the sampled regions of each image (see `sample`)."""
        pooled = self.box_pooler(features, [x.proposal_boxes for x in sampled])
        return self.box_predictor.losses(*self.box_predictor(self.box_head(pooled)), sampled)

    @torch.no_grad()
    def sample(self, proposals: Instances, target: Instances) -> tuple[Instances, Instances]:
        """Choose the proposals of one image that are learned from; the true boxes take part as proposals.

        Returns:
            all sampled regions (objects first) with `proposal_boxes`, `gt_classes` and `gt_boxes`, and the objects
            among them with every `gt_*` field of their matches and `gt_object`, the index of the match in `target`.
        """
        boxes = torch.cat((proposals.proposal_boxes, target.gt_boxes.to(proposals.proposal_boxes)))
        true_logits = proposals.objectness_logits.new_full((len(target),), TRUE_BOX_LOGIT)
        logits = torch.cat((proposals.objectness_logits, true_logits))
        index, classes = self.match(self.proposal_matcher, boxes, target)
        positive, negative = sample_labels(
            classes, self.batch_size_per_image, self.positive_fraction, background=self.num_classes
        )
        chosen = torch.cat((positive, negative))
        regions = Instances(
            target.image_size,
            proposal_boxes=boxes[chosen],
            objectness_logits=logits[chosen],
            gt_classes=classes[chosen],
            gt_boxes=target.gt_boxes[index[chosen]] if len(target) else boxes[chosen],
        )
        objects = regions[: len(positive)]
        for name, value in target[index[positive]].fields().items():
            if name.startswith("gt_"):
                objects.set(name, value)
        objects.gt_object = index[positive]
        return regions, objects

    def match(self, matcher: Matcher, boxes: Tensor, target: Instances) -> tuple[Tensor, Tensor]:
        """The true object (its index) and class (K = background, -1 = ignored) of each box (N, 4) of one image."""
        index, label = matcher(target.gt_boxes, boxes)
        if not len(target):
            return index, torch.full_like(index, self.num_classes)
        classes = torch.where(label == 1, target.gt_classes[index], self.num_classes)
        return index, torch.where(label == -1, -1, classes)

    def predict(
        self, features: dict[str, Tensor], proposals: list[Instances], maps: list[dict[str, Tensor]]
    ) -> list[Instances]:
        """Detections of each image with the fields of every head; for the arguments see `losses`."""
        found = []
        for i, (proposal, values) in enumerate(zip(proposals, maps, strict=True)):
            own = {name: features[name][i : i + 1] for name in self.box_pooler.in_features}
            chunks = proposal.proposal_boxes.split(self.chunk_size)
            parts = [self.refine(own, chunk, proposal.image_size) for chunk in chunks]
            scores, boxes = (torch.cat(part) for part in zip(*parts, strict=True))
            objects = self.final_predictor.detect(scores, boxes, proposal.image_size)
            found.append(_with_maps(objects, objects.pred_boxes, values))
        for head in self.all_heads().values():
            found = head.predict(features, found)
        for head in self.all_heads().values():
            found = head.calibrate(found)
        return found

    @property
    def final_predictor(self) -> nn.Module:
        """The predictor whose thresholds select the detections; they may be changed on a trained model."""
        return self.box_predictor

    def refine(self, features: dict[str, Tensor], boxes: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Class probabilities (R, K + 1) and refined boxes (R, 4 K or R, 4), not clipped, of proposals of one image.

        Args:
            features: maps (1, C, H, W) by name.
            boxes: the proposals (R, 4).
            image_size: (height, width) before padding.
        """
        logits, deltas = self.box_predictor(self.box_head(self.box_pooler(features, [boxes])))
        return logits.float().softmax(dim=1), self.box_predictor.box_coder.decode(deltas, boxes)


def check_order(heads: Mapping[str, nn.Module]) -> None:
    """Check that every head runs after those whose fields it reads (`adds` and `needs` of `Head`).

    Raises:
        InputError: one does not; names both heads, or the missing field.
    """
    known: set[str] = set()
    for name, head in heads.items():
        for field in getattr(head, "needs", ()):
            if field in known:
                continue
            makers = [other for other, maker in heads.items() if field in getattr(maker, "adds", ())]
            what = f"list {makers[0]!r} before {name!r}" if makers else "add the head that measures it before"
            raise InputError(
                f"the head {name!r} reads {field!r}, which none of the heads before it measures (heads, in their "
                f"order: {', '.join(heads)}): {what} in roi_heads.heads"
            )
        known.update(getattr(head, "adds", ()))


def _limit_views(objects: Instances, count: int) -> Instances:
    """At most `count` random proposals of each true object (`gt_object`) of one image, in their order."""
    shuffled = torch.randperm(len(objects), device=objects.gt_object.device)
    ids, by_object = objects.gt_object[shuffled].sort(stable=True)
    rank = torch.arange(len(ids), device=ids.device) - torch.searchsorted(ids, ids)
    return objects[shuffled[by_object[rank < count]].sort().values]


def _with_maps(instances: Instances, boxes: Tensor, maps: dict[str, Tensor]) -> Instances:
    for name, value in maps.items():
        instances.set(name, sample_map(value, boxes, instances.image_size))
    return instances
