"""Training in 16 bits: as good as in 32, overflowing steps are skipped, and resuming is exact."""

import json
import math

import pytest
import torch
from runs import assert_same_run, records, trainer_of, weights_of
from tiny_model import config

from deepdisc.training import train
from deepdisc.training.checkpoint import load_state
from deepdisc.training.trainer import TrainingDivergedError

HALF = "train.precision=float16"
# So large a loss overflows at the first scale, 65536, and no longer at one some steps later.
STEEP = [HALF, "model.gain=100.0"]


def losses(folder):
    return [record["loss"] for record in records(folder) if "loss" in record]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bits_learn_as_thirty_two_do(blobs, tmp_path, precision):
    for name in ("float32", precision):
        train(config(blobs, tmp_path / name, f"train.precision={name}", "train.max_iter=30", "train.eval_period=30"))
    assert losses(tmp_path / precision)[-1] < 0.8 * losses(tmp_path / precision)[0]
    assert losses(tmp_path / precision) == pytest.approx(losses(tmp_path / "float32"), rel=0.03)
    whole, half = (load_state(tmp_path / name / "model_final.pth")["model"] for name in ("float32", precision))
    assert {value.dtype for value in half.values()} == {torch.float32, torch.int64}
    assert not torch.equal(whole["first.weight"], half["first.weight"]), "this was no training in 16 bits"


def test_a_step_that_overflows_is_skipped_and_halves_the_scale(blobs, tmp_path):
    trainer = trainer_of(config(blobs, tmp_path, *STEEP))
    batches, before, skipped = iter(trainer.loader), weights_of(trainer), 0
    for i in range(12):
        trainer.step(batches)
        skipped += trainer.last["skipped"]
        assert trainer.iteration == i + 1 and trainer.last["grad_scale"] == 65536 / 2**skipped
        moved = not torch.equal(before["last.weight"], trainer.plain_model.last.weight)
        assert moved == (skipped < i + 1) == ("grad_norm" in trainer.last)
    assert 1 <= skipped < 8
    assert trainer.ema.n_averaged == 12 - skipped
    assert all(value.isfinite().all() for value in trainer.plain_model.state_dict().values())


def test_the_record_tells_how_many_steps_were_skipped(blobs, tmp_path):
    train(config(blobs, tmp_path, *STEEP, "train.log_period=12"))
    [record] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "skipped" in line]
    assert 0 < record["skipped"] < 1 and math.isfinite(record["grad_norm"])


@pytest.mark.parametrize("stop", [1, 7])
def test_a_resumed_run_in_float16_is_exact_with_its_scale(blobs, tmp_path, stop_in, stop):
    train(config(blobs, tmp_path / "whole", *STEEP))
    stop_in(stop)
    with pytest.raises(KeyboardInterrupt):
        train(config(blobs, tmp_path / "parts", *STEEP))
    assert load_state(tmp_path / "parts" / f"model_{stop:07d}.pth")["scaler"]["scale"] < 65536
    stop_in(-1)
    train(config(blobs, tmp_path / "parts", *STEEP), resume=True)
    assert_same_run(tmp_path / "whole" / "model_final.pth", tmp_path / "parts" / "model_final.pth")


def test_overflowing_again_and_again_is_an_error_whose_remedy_works(blobs, tmp_path):
    hopeless = "model.gain=1e12"
    with pytest.raises(TrainingDivergedError) as error:
        train(config(blobs, tmp_path, HALF, hopeless, "train.max_iter=40"))
    text = str(error.value)
    assert "gradients overflow float16 even at a scale of 0.5" in text and "iteration 16" in text
    assert "train.precision=bfloat16" in text and "tiles [window]: " in text
    assert load_state(tmp_path / "model_0000016.pth")["iteration"] == 16
    train(config(blobs, tmp_path, "train.precision=bfloat16", hopeless, "train.max_iter=20"), resume=True)
    assert load_state(tmp_path / "model_final.pth")["iteration"] == 20


def test_a_run_in_float32_goes_on_in_float16(blobs, tmp_path):
    train(config(blobs, tmp_path, "train.max_iter=4"))
    train(config(blobs, tmp_path, "train.max_iter=6", HALF), resume=True)
    assert 1 <= load_state(tmp_path / "model_final.pth")["scaler"]["scale"] <= 65536


def test_a_loss_that_is_not_finite_is_no_overflow_of_gradients(blobs, tmp_path):
    cfg = config(blobs, tmp_path, HALF)
    cfg.model.explode_at = 3
    with pytest.raises(TrainingDivergedError, match="iteration 3: .*loss_edge=nan.*train.precision=bfloat16"):
        train(cfg)
