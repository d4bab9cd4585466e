"""Cascade Mask R-CNN MViTv2-T-FPN for crowded fields, in any bands.

Give bands, pixel_scale_arcsec, data.path, and train.init_checkpoint where there is one.
"""

from deepdisc.config import L
from deepdisc.detector.stretch import NoiseStretch

from .common.data import data  # noqa: F401
from .common.mvitv2_fpn import model
from .common.optim import optim, train

bands = ["g", "r", "i"]
num_bands = "${len:${bands}}"
class_names = ["galaxy", "star"]
num_classes = "${len:${class_names}}"
pixel_scale_arcsec = 0.2

model.stretch = L(NoiseStretch)(softening=1.0)
# Galaxies are smaller than people and cars, and there are more of them in an image.
model.proposal_generator.anchor_generator.sizes = [[8.0], [16.0], [32.0], [64.0], [128.0]]
model.proposal_generator.pre_nms_topk = [2000, 6000]
model.proposal_generator.post_nms_topk = [1000, 6000]
# Of the three stages the last one decides: one row of the catalogue for each object, whatever its class.
model.roi_heads.box_predictors[2].test_topk_per_image = 3000
model.roi_heads.box_predictors[2].one_class_per_object = True
model.roi_heads.box_predictors[2].test_score_thresh = 0.5

train.init_bands.method = "wavelength"
optim.optimizer.lr = 1e-4
optim.optimizer.layer_decay = 0.7
optim.phases = [{"iters": 1000, "lr": 1e-3, "train": ["proposal_generator", "roi_heads"]}, {"lr": 1e-4}]
train.output_dir = "runs/cascade_mvitv2_t"
