"""A training without a data set: its samples are drawn on the fly."""

import math

import pytest
from runs import records
from weight_files import NARROW

from deepdisc.config import load
from deepdisc.training import train

pytest.importorskip("galsim", reason='needs the extra "sim"')


def test_a_config_trains_on_a_sky_that_is_drawn_on_the_fly(tmp_path, repository):
    (tmp_path / "configs").symlink_to(repository / "configs")
    config = tmp_path / "drawn.py"
    config.write_text("from .configs.ugriz_r18 import *\nfrom .configs.common.stream import data, sky\n")
    run = tmp_path / "run"
    lines = [
        *NARROW, "data.crop_size=64", "data.batch_size=2", "data.val_samples=2", "train.device=cpu",
        "train.ema_decay=0", "train.max_iter=2", "train.eval_period=2", "train.log_period=1", f"train.output_dir={run}",
        "sky.depth_offset=[1.5,1.5]", "optim.schedule.warmup_iters=0",
    ]  # fmt: skip
    assert train(load(config, lines)).is_file()
    losses = [record["loss"] for record in records(run) if "loss" in record]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
