"""Galaxies and stars with fluxes, redshifts and shears in ground-based u, g, r, i, z mosaics: a narrow ResNet18-FPN.

Galaxies of such mosaics are 5 to 30 pixels large. So the stem has no max-pool (strides 2 to 16, maps p1 to p4, p5
for proposals) and anchors begin at 5 pixels. Half the usual widths keep it fast on a CPU.
"""

from deepdisc.config import L
from deepdisc.detector.stretch import NoiseStretch

from .common.data import data
from .common.heads import labels, measuring_heads, spin2
from .common.optim import optim, train
from .common.resnet_fpn import model

bands = ["u", "g", "r", "i", "z"]
num_bands = "${len:${bands}}"
class_names = ["galaxy", "star"]
num_classes = "${len:${class_names}}"
pixel_scale_arcsec = 0.396

_maps = ["p1", "p2", "p3", "p4"]

model.stretch = L(NoiseStretch)(softening=1.0)
model.backbone.out_channels = 64
model.backbone.bottom_up.depth = 18
model.backbone.bottom_up.stem_out_channels = 32
model.backbone.bottom_up.res2_out_channels = 32
model.backbone.bottom_up.stem_max_pool = False
model.backbone.bottom_up.norm = "BN"

model.proposal_generator.in_features = [*_maps, "p5"]
# Small objects differ more in size than in shape: two sizes per map, one ratio. Boxes of a few pixels rarely reach an
# IoU of 0.7 with any anchor of a 2-pixel grid.
model.proposal_generator.anchor_generator.sizes = [[5.0, 8.0], [12.0, 18.0], [25.0, 36.0], [50.0, 72.0], [100.0, 144.0]]
model.proposal_generator.anchor_generator.aspect_ratios = [1.0]
model.proposal_generator.head.num_anchors = 2
model.proposal_generator.anchor_matcher.thresholds = [0.3, 0.6]
# Per image: the larger budget is that of prediction, whose tiles are 16 times the area of a training crop.
model.proposal_generator.pre_nms_topk = [1000, 8000]
model.proposal_generator.post_nms_topk = [500, 4000]

model.roi_heads.batch_size_per_image = 128
model.roi_heads.positive_fraction = 0.4
model.roi_heads.box_pooler.in_features = _maps
model.roi_heads.box_head.fc_dim = 256
# 96 % of such a catalogue is real; `predict --score-threshold 0.05` lists the doubtful ones too.
model.roi_heads.box_predictor.test_score_thresh = 0.5
model.roi_heads.box_predictor.test_topk_per_image = 3000
model.roi_heads.box_predictor.one_class_per_object = True
model.roi_heads.mask_head.conv_dim = 64
model.roi_heads.mask_head.num_conv = 2
model.roi_heads.heads = measuring_heads()
# several views of the same pixels teach little and cost as much
model.roi_heads.views_per_object = 1

data.labels = labels
data.spin2 = spin2
data.crop_size = 128
data.batch_size = 4
optim.optimizer.lr = 1e-3
train.output_dir = "runs/ugriz_r18"
