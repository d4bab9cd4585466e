"""Mask R-CNN R50-FPN for crowded fields, in any bands: where fine-tuning of a detectron2 checkpoint starts.

Give bands, pixel_scale_arcsec, data.path and train.init_checkpoint; model_zoo/README.md has the whole recipe. Redshifts
are one more head: see ugriz_r18.py.
"""

from deepdisc.config import L
from deepdisc.detector.stretch import NoiseStretch

from .common.data import data  # noqa: F401
from .common.optim import optim, train
from .common.resnet_fpn import model

bands = ["g", "r", "i"]
num_bands = "${len:${bands}}"
class_names = ["galaxy", "star"]
num_classes = "${len:${class_names}}"
pixel_scale_arcsec = 0.2

model.stretch = L(NoiseStretch)(softening=1.0)
# The frozen norms expect the spread of the images that they were trained on: 58 of 255 grey values. The stretch has 1.
model.pixel_std = [0.017]
# Galaxies are smaller than people and cars, and there are more of them in an image.
model.proposal_generator.anchor_generator.sizes = [[8.0], [16.0], [32.0], [64.0], [128.0]]
model.proposal_generator.pre_nms_topk = [2000, 6000]
model.proposal_generator.post_nms_topk = [1000, 6000]
model.roi_heads.box_predictor.test_topk_per_image = 3000
# One row of the catalogue for each object, whatever its class.
model.roi_heads.box_predictor.one_class_per_object = True
model.roi_heads.box_predictor.test_score_thresh = 0.5

train.init_bands.method = "wavelength"
# At first only the heads, so that the large gradients of the new layers do not spoil the backbone; then everything.
optim.phases = [{"iters": 1000, "lr": 1e-3, "train": ["proposal_generator", "roi_heads"]}, {"lr": 1e-4}]
train.output_dir = "runs/mask_rcnn_r50"
