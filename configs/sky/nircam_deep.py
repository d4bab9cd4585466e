"""A JWST NIRCam field as deep as JADES: nine bands, 2 x 2 arcmin at 0.03 arcsec, galaxies where 3D-HST found them.

deepdisc simulate --config-file configs/sky/nircam_deep.py --output DIR --seed 1 sky.workers=2
"""

from deepdisc.config import L
from deepdisc.simulate import Effects, Sky

sky = L(Sky)(
    instrument="nircam",
    population="deep",
    positions="catalogue",
    fields=1,
    shape=[4096, 4096],
    center=[53.1, -27.8],
    population_part="all",
    ebv=[0.008, 0.008],
    knot_fraction=[0.0, 0.4],
    label_snr=8.0,
    draw_snr=1.0,
    effects=L(Effects)(
        resampling="gaussian",  # neighbouring pixels of drizzled mosaics correlate by 0.3 (short) to 0.5 (long waves)
        resampling_sigma_pix=0.5,
        saturation=True,
        depth_steps=1,
        depth_step_share=[0.5, 0.9],
    ),
    workers=1,
)
