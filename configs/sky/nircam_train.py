"""A training sky for NIRCam: small sheared nine-band fields, exposed half to 1.3 times as long as JADES Deep.

deepdisc simulate --config-file configs/sky/nircam_train.py --output DIR --seed 1 sky.workers=2
"""

from deepdisc.config import L
from deepdisc.simulate import Effects, Lensing

from .nircam_deep import sky

sky.positions = "clustered"
sky.clustered_fraction = 0.2
sky.cluster_members = 6.0
sky.cluster_radius_arcsec = 2.0
sky.pair_fraction = 0.15
sky.fields = 160
sky.shape = [512, 512]
sky.population_part = "train"
sky.depth_offset = [-0.4, 0.15]
sky.depth_jitter = 0.1
sky.ebv = [0.0, 0.05]
sky.galaxy_density = [0.7, 1.4]
sky.knot_fraction = [0.0, 0.2]
sky.background_only_variance = 0.3
sky.effects = L(Effects)(
    resampling="gaussian",
    resampling_sigma_pix=0.5,
    saturation=True,
)
sky.lensing = L(Lensing)(g1=[-0.1, 0.1], g2=[-0.1, 0.1])
