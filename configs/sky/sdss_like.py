"""A training sky like the SDSS: one exposure's depth, with what the camera and the reduction leave in its frames.

deepdisc simulate --config-file configs/sky/sdss_like.py --output DIR --seed 1 sky.workers=2

The ranges were set around run 94, camcol 1, field 12: its noise per pixel (deeper in r than the survey's medians say,
relative to the other bands), seeing (r: 1.5 arcsec), numbers of stars and galaxies, and the correlation of neighbouring
pixels (0.07 to 0.2 in the bands that were brought to the grid of r). Its frames mark neither saturated pixels nor
trails, so they are not marked here.
"""

from deepdisc.config import L
from deepdisc.simulate import Effects

from .ugriz_ground import sky

sky.depth_offset = [-0.7, 0.2]
sky.depth_jitter = 0.25
sky.seeing_factor = [0.75, 1.3]
sky.psf_ellipticity_rms = 0.015
sky.psf_width_rms = 0.02
sky.star_density = [0.3, 1.8]
sky.galaxy_density = [0.55, 1.4]
sky.knot_fraction = [0.0, 0.5]
sky.background_only_variance = 0.8
sky.effects = L(Effects)(
    resampling="lanczos3",
    resampling_reference="r",
    sky_gradient=[-0.1, 0.1],
    sky_residual=0.05,
    sky_residual_arcsec=30.0,
    halo_share=[-0.005, 0.03],
    halo_radius_arcsec=5.0,
    spikes=4,
    spike_angle_deg=45.0,
    spike_share=0.005,
    saturation=True,
    bleed_trails=True,
    cosmic_rays=0.5,  # those that the reduction missed: short ones
    cosmic_ray_length_pix=3.0,
    satellite_trails=0.15,
    trail_level=[0.3, 5.0],
    psf_mismatch=0.05,
    misalignment_pix=0.1,
    masked=["no_data"],
)
