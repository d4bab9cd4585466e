"""A field of the CSST wide survey: seven bands from the near ultraviolet on, 5 x 5 arcmin at 0.074 arcsec.

deepdisc simulate --config-file configs/sky/csst_wide.py --output DIR --seed 1 sky.workers=2
"""

from deepdisc.config import L
from deepdisc.simulate import Effects, Sky

sky = L(Sky)(
    instrument="csst",
    population="wide",
    fields=1,
    shape=[4096, 4096],
    center=[180.0, 30.0],
    population_part="all",
    ebv=[0.02, 0.02],
    ebv_rms=0.1,
    clustered_fraction=0.2,
    knot_fraction=[0.0, 0.4],
    psf_width_rms=0.02,
    psf_ellipticity_rms=0.02,
    label_snr=7.0,
    draw_snr=0.7,
    effects=L(Effects)(
        saturation=True,
        bleed_trails=True,
        cosmic_rays=5.0,  # those that are left when two exposures are compared
        cosmic_ray_length_pix=20.0,
    ),
    workers=1,
)
