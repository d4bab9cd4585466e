"""Training samples drawn on the fly from a simulated sky, without files, in place of `common/data.py`.

    from .common.stream import bands, data, sky
    sky.depth_offset = [0.0, 1.0]

Every sample is a sky of its own of `data.crop_size` pixels; the validation samples show galaxies that training never
draws. `data.device` draws them on a GPU, in the training process (num_workers=0).
"""

from deepdisc.config import L
from deepdisc.data.dataset import SampledDataset, eval_loader, train_loader
from deepdisc.simulate.stream import SkyStream

from ..sky.ugriz_ground import sky

bands = ["u", "g", "r", "i", "z"]

sky.bands = "${bands}"
sky.shape = ["${data.crop_size}", "${data.crop_size}"]

data = {
    "crop_size": 160,
    "batch_size": 4,
    # processes that draw, one core each
    "num_workers": 0,
    "device": "cpu",
    "seed": 0,
    "val_samples": 64,
    # as in common/data.py, of the simulated objects
    "labels": {"redshift": "redshift"},
    "spin2": {},
    "train": L(train_loader)(
        dataset=L(SampledDataset)(
            source=L(SkyStream)(
                sky="${sky}",
                seed="${data.seed}",
                device="${data.device}",
                labels="${data.labels}",
                spin2="${data.spin2}",
            ),
            length=1,
        ),
        batch_size="${data.batch_size}",
        num_workers="${data.num_workers}",
        seed="${data.seed}",
    ),
    "val": L(eval_loader)(
        dataset=L(SampledDataset)(
            source=L(SkyStream)(
                sky="${sky}",
                seed=1_000_003,
                population_part="test",
                device="${data.device}",
                labels="${data.labels}",
                spin2="${data.spin2}",
            ),
            length="${data.val_samples}",
        ),
        batch_size="${data.batch_size}",
        num_workers="${data.num_workers}",
    ),
}
