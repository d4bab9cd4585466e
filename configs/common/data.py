"""Where training samples come from: a data set made by `deepdisc prepare`, cut into random windows.

Give data.path=FOLDER. `bands` selects and orders; the training crops are mirrored, rotated and sometimes made noisier.
"""

from deepdisc.config import L
from deepdisc.data.dataset import NoiseAugmentation, TileDataset, eval_loader, train_loader

bands = ["g", "r", "i"]

data = {
    "path": "???",
    "crop_size": 160,
    "batch_size": 4,
    # loading processes; with cache=True one process does it in passing
    "num_workers": 0,
    "cache": True,
    "seed": 0,
    # label: column of the truth, or one column per band; spin2: pairs of components that turn with the sky
    "labels": {"redshift": "redshift"},
    "spin2": {},
    # label: lowest and highest value that a data set may hold
    "ranges": {"redshift": [0.0, 20.0]},
    "train": L(train_loader)(
        dataset=L(TileDataset)(
            root="${data.path}",
            split="train",
            bands="${bands}",
            crop_size="${data.crop_size}",
            augment=True,
            noise=L(NoiseAugmentation)(probability=0.3, max_factor=2.0, label_snr=5.0),
            seed="${data.seed}",
            labels="${data.labels}",
            spin2="${data.spin2}",
            ranges="${data.ranges}",
            cache="${data.cache}",
        ),
        batch_size="${data.batch_size}",
        num_workers="${data.num_workers}",
        seed="${data.seed}",
    ),
    "val": L(eval_loader)(
        dataset=L(TileDataset)(
            root="${data.path}",
            split="val",
            bands="${bands}",
            crop_size="${data.crop_size}",
            labels="${data.labels}",
            spin2="${data.spin2}",
            ranges="${data.ranges}",
            cache="${data.cache}",
        ),
        batch_size="${data.batch_size}",
        num_workers="${data.num_workers}",
    ),
}
