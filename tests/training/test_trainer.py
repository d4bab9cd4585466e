"""The loop: learning, exact resuming, validation, stopping."""

import json
import logging
import shutil
import signal
import threading

import numpy as np
import pytest
import torch
import yaml
from runs import assert_same_run, records, states_equal, trainer_of
from tiny_model import TinyDetector, config

from deepdisc.config import load
from deepdisc.data.dataset import TileDataset, eval_loader
from deepdisc.errors import InputError
from deepdisc.training import evaluate_losses, train
from deepdisc.training.checkpoint import load_state
from deepdisc.training.interrupt import interrupt_flag
from deepdisc.training.randomness import random_state, set_random_state
from deepdisc.training.trainer import TrainingDivergedError


def test_the_loss_falls_and_the_files_are_there(blobs, tmp_path):
    best = train(config(blobs, tmp_path / "run", "train.max_iter=40", "train.eval_period=10"))
    assert best == tmp_path / "run" / "model_best.pth"
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    numbered = [f"model_{i:07d}.pth" for i in range(4, 40, 4)]
    assert names == sorted(["config.yaml", "metrics.jsonl", "model_best.pth", "model_final.pth", *numbered])
    losses = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    validated = [record["val_loss"] for record in records(tmp_path / "run") if "val_loss" in record]
    assert len(validated) == 4 and validated[-1] < validated[0]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(blobs, tmp_path, stop_in):
    train(config(blobs, tmp_path / "whole"))
    stop_in(7)
    with pytest.raises(KeyboardInterrupt):
        train(config(blobs, tmp_path / "parts"))
    # Ctrl-C saved where it stopped; a crash would have left model_0000004.pth
    assert load_state(tmp_path / "parts" / "model_0000007.pth")["iteration"] == 7
    (tmp_path / "parts" / "model_0000007.pth").unlink()
    stop_in(-1)
    train(load(tmp_path / "parts" / "config.yaml"), resume=True)
    for name in ("model_final.pth", "model_best.pth", "model_0000008.pth"):
        assert_same_run(tmp_path / "whole" / name, tmp_path / "parts" / name)
    timing = {"data_s", "step_s", "images_per_s", "eta_s", "val_s"}
    whole, parts = (
        [{key: value for key, value in record.items() if key not in timing} for record in records(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert parts == whole


def test_resuming_from_the_interrupt_is_exact_too(blobs, tmp_path, stop_in):
    train(config(blobs, tmp_path / "whole"))
    stop_in(7)
    with pytest.raises(KeyboardInterrupt):
        train(config(blobs, tmp_path / "parts"))
    stop_in(-1)
    train(config(blobs, tmp_path / "parts"), resume=True)
    assert_same_run(tmp_path / "whole" / "model_final.pth", tmp_path / "parts" / "model_final.pth")


def test_a_second_interrupt_aborts_at_once_and_saves_nothing(blobs, tmp_path, stop_in):
    handler = signal.getsignal(signal.SIGINT)
    stop_in(7, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(config(blobs, tmp_path))
    assert load_state(max(tmp_path.glob("model_0*.pth")))["iteration"] == 4
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_reaches_a_training_that_was_started_with_interrupts_ignored(blobs, tmp_path, stop_in):
    """As in a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop_in(3)
        with pytest.raises(KeyboardInterrupt):
            train(config(blobs, tmp_path))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert load_state(tmp_path / "model_0000003.pth")["iteration"] == 3


def test_outside_the_main_thread_signals_are_left_alone():
    def enter():
        with interrupt_flag() as flag:
            found.append((flag.is_set(), signal.getsignal(signal.SIGINT)))

    found, handler = [], signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, handler)]


def test_the_number_of_workers_does_not_change_the_training(blobs, tmp_path):
    for name, workers in (("none", 0), ("one", 1)):
        train(config(blobs, tmp_path / name, f"data.num_workers={workers}", "train.max_iter=6"))
    assert_same_run(tmp_path / "none" / "model_final.pth", tmp_path / "one" / "model_final.pth")


def test_a_finished_run_can_be_made_longer(blobs, tmp_path):
    folder = tmp_path / "run"
    steps = ("optim.schedule.max_iter=12", "train.eval_period=4")
    train(config(blobs, tmp_path / "whole", *steps))
    train(config(blobs, folder, "train.max_iter=8", *steps))
    train(config(blobs, folder, "train.max_iter=12", *steps), resume=True)
    assert load_state(folder / "model_final.pth")["iteration"] == 12
    assert load_state(folder / "model_0000008.pth")["iteration"] == 8
    assert_same_run(tmp_path / "whole" / "model_final.pth", folder / "model_final.pth")


def test_resuming_a_finished_run_changes_nothing(blobs, tmp_path):
    train(config(blobs, tmp_path))
    before = (tmp_path / "model_final.pth").read_bytes()
    train(config(blobs, tmp_path), resume=True)
    assert (tmp_path / "model_final.pth").read_bytes() == before


def test_a_run_is_not_overwritten_without_resume(blobs, tmp_path):
    train(config(blobs, tmp_path, "train.max_iter=2"))
    with pytest.raises(InputError, match="already holds a run; add --resume"):
        train(config(blobs, tmp_path))


def test_only_the_last_checkpoints_are_kept(blobs, tmp_path):
    train(config(blobs, tmp_path, "train.keep_checkpoints=2", "train.checkpoint_period=2"))
    assert sorted(path.name for path in tmp_path.glob("model_0*.pth")) == ["model_0000008.pth", "model_0000010.pth"]


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(blobs, tmp_path):
    train(config(blobs, tmp_path / "whole"))
    folder = tmp_path / "run"
    train(config(blobs, folder))
    for name in ("model_final.pth", "model_0000008.pth"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match="model_0000008.pth: cannot be read.*trying the checkpoint before it"):
        train(config(blobs, folder), resume=True)
    assert_same_run(tmp_path / "whole" / "model_final.pth", folder / "model_final.pth")
    for path in folder.glob("model_*.pth"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(InputError, match="none of the 3 checkpoints in .* can be read"):
        train(config(blobs, folder), resume=True)


def test_a_checkpoint_of_another_model_is_refused_on_resume(blobs, tmp_path):
    train(config(blobs, tmp_path, "train.max_iter=2"))
    with pytest.raises(InputError, match="cannot resume from .*model_final.pth: it is of another model"):
        train(config(blobs, tmp_path, "model.width=7"), resume=True)
    assert load(tmp_path / "config.yaml").model.width == 6, "the run's own config must survive"
    with pytest.raises(InputError, match="averages its weights, train.ema_decay says otherwise"):
        train(config(blobs, tmp_path, "train.ema_decay=0"), resume=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bands=[r,g]", r"with bands=\['r', 'g'\]: the run has bands=\['g', 'r'\]; use its config.yaml"),
        ("optim.optimizer.name=sgd", "with optim.optimizer.name=sgd: the run has optim.optimizer.name=adamw"),
    ],
)
def test_a_run_is_not_resumed_with_other_bands_or_another_optimiser(blobs, tmp_path, override, message):
    """Both have the same shapes, so the weights would load."""
    train(config(blobs, tmp_path, "train.max_iter=2"))
    with pytest.raises(InputError, match=f"cannot resume from .*model_final.pth {message}"):
        train(config(blobs, tmp_path, "train.max_iter=4", override), resume=True)
    saved = load(tmp_path / "config.yaml")
    assert saved.bands == ["g", "r"] and saved.optim.optimizer.name == "adamw"


def test_a_run_is_not_resumed_with_other_classes(blobs, tmp_path):
    """Even when the data set was made anew with the classes in that order."""
    train(config(blobs, tmp_path / "run", "train.max_iter=2"))
    swapped = with_classes(blobs, tmp_path / "swapped", ["star", "galaxy"])
    cfg = config(swapped, tmp_path / "run", "train.max_iter=4", "class_names=[star,galaxy]")
    with pytest.raises(InputError, match=r"with class_names=\['star', 'galaxy'\]: the run has .*\['galaxy', 'star'\]"):
        train(cfg, resume=True)


def with_classes(dataset, folder, names):
    """A copy of a data set whose classes are named so."""
    shutil.copytree(dataset, folder)
    about = yaml.safe_load((folder / "dataset.yaml").read_text())
    (folder / "dataset.yaml").write_text(yaml.safe_dump({**about, "class_names": names}))
    return folder


@pytest.mark.parametrize("lines", [[], ["data.train.dataset.root=%s"], ["data.val.dataset.root=%s"]])
def test_classes_must_be_those_of_the_data_set_in_their_order(blobs, tmp_path, lines):
    swapped = with_classes(blobs, tmp_path / "swapped", ["star", "galaxy"])
    cfg = config(blobs if lines else swapped, tmp_path / "run", *(line % swapped for line in lines))
    message = r"class_names=\[galaxy,star\], but the data set .*swapped has \[star,galaxy\].*set class_names=\[star,gal"
    with pytest.raises(InputError, match=message):
        train(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["class_names=[galaxy]", "class_names=[galaxy,star,quasar]"])
def test_classes_must_be_as_many_as_the_data_set_has(blobs, tmp_path, override):
    with pytest.raises(InputError, match=r"has \[galaxy,star\]: .*; set class_names=\[galaxy,star\]"):
        train(config(blobs, tmp_path, override))
    with pytest.raises(InputError, match=r"has \[galaxy,star\]"):
        train(config(blobs, tmp_path, override), eval_only=True)


def test_a_number_of_classes_that_is_stated_must_be_the_data_sets_too(blobs, tmp_path):
    cfg = config(blobs, tmp_path)
    cfg.num_classes = 1
    with pytest.raises(InputError, match="num_classes=1, but the data set .* has 2 classes"):
        train(cfg)


def test_validation_uses_all_batches_weighted_by_their_images(blobs):
    torch.manual_seed(0)
    model = TinyDetector()
    data = TileDataset(blobs, "val", crop_size=32)
    unequal = eval_loader(data, 5)
    batches = list(unequal)
    assert len(batches[-1]) != len(batches[0])
    expected = {}
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        model.eval()
        with torch.no_grad():
            losses = model.losses(batch)
        for name, value in losses.items():
            expected[f"val_{name}"] = expected.get(f"val_{name}", 0) + float(value) * len(batch) / len(data)
    found = evaluate_losses(model, unequal)
    assert found.pop("val_loss") == pytest.approx(sum(expected.values()))
    assert found == pytest.approx(expected)


def test_validation_is_repeatable_and_leaves_no_trace(blobs):
    model = TinyDetector().train()
    loader = eval_loader(TileDataset(blobs, "val", crop_size=48), 2)
    weights, state = {name: value.clone() for name, value in model.state_dict().items()}, random_state()
    first = evaluate_losses(model, loader)
    torch.rand(5)
    assert evaluate_losses(model, loader) == first
    set_random_state(state)
    evaluate_losses(model, loader)
    assert states_equal(random_state(), state)
    assert states_equal(dict(model.state_dict()), weights), "batch-norm statistics must not change"
    assert model.training and all(p.grad is None for p in model.parameters())


def test_an_empty_validation_set_is_an_error():
    with pytest.raises(InputError, match="validation set is empty"):
        evaluate_losses(TinyDetector(), [])


def test_the_best_checkpoint_is_the_one_with_the_smallest_validation_loss(blobs, tmp_path):
    train(config(blobs, tmp_path, "train.max_iter=24", "train.eval_period=3", "optim.optimizer.lr=0.3"))
    values = {r["iteration"]: r["val_loss"] for r in records(tmp_path) if "val_loss" in r}
    best = load_state(tmp_path / "model_best.pth")
    assert best["iteration"] == min(values, key=values.get)
    assert best["hooks"]["CheckpointHook"]["best"] == min(values.values())


def test_an_unknown_best_metric_names_those_that_exist(blobs, tmp_path):
    with pytest.raises(InputError, match="'val_loss_maks' is not measured; there are val_loss, val_loss_mask"):
        train(config(blobs, tmp_path, "train.best_metric=val_loss_maks"))


def test_without_validation_the_final_checkpoint_is_returned(blobs, tmp_path):
    assert train(config(blobs, tmp_path, "data.val=null", "train.max_iter=2")) == tmp_path / "model_final.pth"


def test_a_loss_that_is_not_finite_stops_the_run_with_all_terms(blobs, tmp_path):
    cfg = config(blobs, tmp_path)
    cfg.model.explode_at = 5
    with pytest.raises(TrainingDivergedError) as error:
        train(cfg)
    text = str(error.value)
    assert "iteration 5" in text and "loss_edge=nan" in text and "loss_mask=0." in text and "tiles [window]: " in text
    # the weights that were good are not overwritten by bad ones
    state = load_state(tmp_path / "model_0000004.pth")
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert not (tmp_path / "model_final.pth").exists()


def test_gradients_are_clipped_by_their_total_norm(blobs, tmp_path):
    cfg = config(
        blobs, tmp_path, "optim.optimizer.name=sgd", "optim.optimizer.weight_decay=0", "optim.clip_grad_norm=0.01"
    )
    cfg.optim.optimizer.momentum = 0.0
    cfg.optim.schedule.warmup_iters = 0
    trainer = trainer_of(cfg)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.plain_model.parameters()])
    trainer.step(iter(trainer.loader))
    moved = torch.cat([p.detach().flatten() for p in trainer.plain_model.parameters()]) - before
    assert trainer.last["grad_norm"] > 0.01
    assert float(moved.norm()) == pytest.approx(0.01 * 0.01, rel=1e-3)


def test_a_batch_norm_that_sees_one_pixel_is_named(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(TinyDetector, "losses", lambda self, batch: self.norm(torch.zeros(len(batch), 6, 1, 1)))
    message = r"a batch norm cannot learn from a single pixel \(.*\[1, 6, 1, 1\]\)\): raise data.crop_size .*GN or Froz"
    with pytest.raises(InputError, match=message):
        train(config(blobs, tmp_path, "data.batch_size=1"))


def test_other_errors_of_a_model_are_not_the_users(blobs, tmp_path, monkeypatch):
    def fail(self, batch):
        raise ValueError("a fault")

    monkeypatch.setattr(TinyDetector, "losses", fail)
    with pytest.raises(ValueError, match="a fault"):
        train(config(blobs, tmp_path))


def test_eval_only_reports_the_last_checkpoint(blobs, tmp_path):
    cfg = config(blobs, tmp_path)
    with pytest.raises(InputError, match="no checkpoint in .*; give train.init_checkpoint"):
        train(cfg, eval_only=True)
    train(cfg)
    path = train(cfg, eval_only=True)
    found = json.loads(path.read_text())
    assert found["checkpoint"] == "model_final.pth"
    assert found["val_loss"] == pytest.approx(records(tmp_path)[-1]["val_loss"])


def test_the_saved_config_trains_again(blobs, tmp_path):
    train(config(blobs, tmp_path / "first"))
    again = load(tmp_path / "first" / "config.yaml", [f"train.output_dir={tmp_path / 'second'}"])
    train(again)
    first, second = (load_state(tmp_path / name / "model_final.pth")["model"] for name in ("first", "second"))
    assert states_equal(first, second)


def test_training_starts_from_given_weights(blobs, tmp_path):
    train(config(blobs, tmp_path / "first", "train.max_iter=30", "train.eval_period=30"))
    start = tmp_path / "first" / "model_final.pth"
    train(config(blobs, tmp_path / "second", f"train.init_checkpoint={start}", "train.max_iter=1"))
    validated = [[r["val_loss"] for r in records(tmp_path / n) if "val_loss" in r][-1] for n in ("first", "second")]
    assert validated[1] == pytest.approx(validated[0], rel=0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.precision=float8", "precision='float8' is not one of float32, bfloat16, float16"),
        ("train.ema_decay=1.5", "ema_decay=1.5 must be below 1"),
        ("optim.clip_grad_norm=-1", "optim.clip_grad_norm=-1 must not be negative"),
        ("optim.clip_grad_norm=.nan", "optim.clip_grad_norm=nan must not be negative"),
        ("data.batch_size=0", "data.batch_size=0 must be an integer of at least 1"),
        ("data.batch_size=-2", "data.batch_size=-2 must be an integer of at least 1"),
        ("data.batch_size=1.5", "data.batch_size=1.5 must be an integer of at least 1"),
        ("train.max_iter=0", "train.max_iter=0 must be an integer of at least 1"),
        ("train.max_iter=-3", "train.max_iter=-3 must be an integer of at least 1"),
        ("optim.optimizer.lr=.nan", "lr=nan must be positive"),
        ("train.log_period=0", "train.log_period=0 must be at least 1"),
        ("train.trackers=[wandbb]", "'wandbb' is not one of tensorboard, wandb"),
        ("train.device=tpu", "train.device='tpu' is not one of auto, cpu, cuda"),
        ("data.path=nowhere", "no data set at nowhere"),
        ("optim.optimizer.name=adam", "optimizer 'adam' is not one of adamw, sgd; did you mean 'adamw'"),
        ("optim.optimizer.lr_factors={frist: 0.1}", "no parameter is below 'frist'; the nearest module is 'first'"),
    ],
)
def test_wrong_settings_are_named(blobs, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        train(config(blobs, tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_written_is_named(blobs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*config.yaml"):
        train(config(blobs, tmp_path / "file" / "run"))


def test_tensorboard_writes_events(blobs, tmp_path):
    pytest.importorskip("tensorboard")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    train(config(blobs, tmp_path, "train.trackers=[tensorboard]", "train.max_iter=4"))
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_losing_the_tracker_does_not_stop_the_run(blobs, tmp_path, monkeypatch):
    from deepdisc.training.hooks import TensorBoardHook

    pytest.importorskip("tensorboard")

    def fail(self, record):
        raise RuntimeError("no space")

    monkeypatch.setattr(TensorBoardHook, "_write", fail)
    with pytest.warns(UserWarning, match="TensorBoardHook failed .no space.; the training goes on"):
        train(config(blobs, tmp_path, "train.trackers=[tensorboard]", "train.max_iter=4"))
    assert (tmp_path / "model_final.pth").is_file()


def test_a_missing_tracker_says_what_to_install(blobs, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'pip install "deepdisc\[track\]"'):
        train(config(blobs, tmp_path, "train.trackers=[wandb]"))


@pytest.mark.slow
def test_two_processes_on_the_cpu_train_one_model(blobs, tmp_path):
    """Runs under gloo; both processes must end with the same weights, and the files must be written once."""
    cfg = config(blobs, tmp_path, "train.max_iter=4", "train.checkpoint_period=2", "train.eval_period=2")
    best = train(cfg, num_gpus=2)
    state = load_state(best.with_name("model_final.pth"))
    assert state["iteration"] == 4 and len(state["rng"]) == 2 and state["sampler"] == {"draws": 8}
    assert not torch.equal(state["rng"][0]["torch"], state["rng"][1]["torch"])
    logged = records(tmp_path)
    assert [r["iteration"] for r in logged if "val_loss" in r] == [2, 4]
    # the validation over both processes is that of one process
    alone = json.loads(train(cfg, eval_only=True).read_text())
    assert alone["val_loss"] == pytest.approx(logged[-1]["val_loss"], rel=0.05)


@pytest.mark.slow
def test_an_error_in_a_process_reaches_the_user(blobs, tmp_path):
    cfg = config(blobs, tmp_path, "data.batch_size=3")
    with pytest.raises(InputError, match="batch_size=3 must be a multiple of the number of processes, 2"):
        train(cfg, num_gpus=2)
