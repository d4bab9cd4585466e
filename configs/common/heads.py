"""The measuring heads: flux in every band, redshift from features and these fluxes, shear.

    from .common.heads import labels, measuring_heads, spin2
    model.roi_heads.heads = measuring_heads()
    data.labels, data.spin2 = labels, spin2

Heads run in this order, and the redshift's reads what the flux head measured. Objects without a label cost nothing, but
a data set must have the columns; `del model.roi_heads.heads["shear"]` does without a head.
"""

from deepdisc.config import L
from deepdisc.detector.pooling import ROIPooler
from deepdisc.heads.flux import FluxHead
from deepdisc.heads.flux_colours import FluxColours
from deepdisc.heads.redshift import RedshiftHead
from deepdisc.heads.shape_network import ShapeNetwork
from deepdisc.heads.shear import ShearHead

# label: columns of the truth
labels = {"redshift": "redshift", "flux": "flux_{band}"}
spin2 = {"shear": ["g1", "g2"], "ellipticity": ["e1", "e2"]}


def measuring_heads():
    """The heads by name, linked to a config that has `num_bands` and `model`."""
    return {
        "flux": L(FluxHead)(
            num_bands="${num_bands}",
            num_components=4,
            window=25,
            truncated=False,
            exclude_flags=["EDGE", "SATURATED"],
            loss_weight=0.3,
        ),
        "redshift": L(RedshiftHead)(
            pooler=L(ROIPooler)(
                output_size=7,
                in_features="${model.roi_heads.box_pooler.in_features}",
                sampling_ratio=0,
                canonical_box_size="${model.roi_heads.box_pooler.canonical_box_size}",
                canonical_level="${model.roi_heads.box_pooler.canonical_level}",
            ),
            in_channels="${model.backbone.out_channels}",
            hidden=[256, 64],
            num_components=5,
            photometry=L(FluxColours)(num_bands="${num_bands}"),
            loss="nll",
            label_weights=None,
            exclude_flags=["EDGE"],
            loss_weight=1.0,
        ),
        "shear": L(ShearHead)(
            network=L(ShapeNetwork)(num_bands="${num_bands}", window=25, psf="image"),
            target="ellipticity",
            exclude_flags=["EDGE", "SATURATED"],
            loss_weight=1.0,
        ),
    }
