"""The training sky: many small ugriz fields between one SDSS exposure and the Stripe 82 coadd.

deepdisc simulate --config-file configs/sky/ugriz_ground.py --output DIR --seed 1 sky.workers=2
"""

from deepdisc.config import L
from deepdisc.simulate import Lensing, Sky

sky = L(Sky)(
    instrument="sdss",
    bands=["u", "g", "r", "i", "z"],
    fields=240,
    shape=[512, 512],
    center=[150.0, 2.0],
    population_part="train",
    depth_offset=[0.0, 1.9],  # r = 22.7 (one exposure) to 24.6 (coadd)
    depth_jitter=0.15,
    seeing_factor=[0.72, 1.15],  # r: 0.95 to 1.52 arcsec
    seeing_jitter=0.08,
    moffat_beta=[2.6, 4.5],
    ebv=[0.0, 0.15],
    galaxy_density=[0.7, 1.6],
    star_density=[0.3, 2.0],
    clustered_fraction=0.2,
    cluster_members=8.0,
    cluster_radius_arcsec=15.0,
    pair_fraction=0.25,
    pair_separation_fwhm=[0.5, 3.0],
    background_only_variance=0.5,
    label_snr=6.0,
    draw_snr=0.5,
    isophote=1.2,
    peak_fraction=0.2,
    # wider than the real sky's: heads learn the response to a shear from both signs of it
    lensing=L(Lensing)(g1=[-0.1, 0.1], g2=[-0.1, 0.1]),
    workers=1,
)
