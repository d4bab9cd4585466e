"""Two-phase schedules: what learns when, how fast, and exact resuming around the boundary."""

import re

import pytest
import torch
from omegaconf import OmegaConf
from runs import assert_same_run, states_equal, trainer_of, weights_of
from tiny_model import config

from deepdisc.config import L
from deepdisc.errors import InputError
from deepdisc.training import Trainer, distributed, train
from deepdisc.training.optim import WarmupCosine, WarmupSteps, build_optimizer
from deepdisc.training.phases import Phase, read_phases

HEAD_FIRST = "optim.phases=[{iters: 5, lr: 1e-2, train: [last]}, {lr: 1e-3}]"
TEN = ["train.max_iter=10", "train.eval_period=10", "train.checkpoint_period=10", "optim.schedule.warmup_iters=2"]


def step(trainer, count):
    batches = iter(trainer.loader)
    for _ in range(count):
        trainer.step(batches)


# learning ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_first_phase_moves_nothing_else_not_even_statistics_and_the_second_moves_all(blobs, tmp_path, optimizer):
    trainer = trainer_of(config(blobs, tmp_path, *TEN, HEAD_FIRST, f"optim.optimizer.name={optimizer}"))
    model, before = trainer.plain_model, weights_of(trainer)
    step(trainer, 5)
    after = weights_of(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"last.weight", "last.bias"}
    assert model.first.weight.grad is None and model.norm.weight.grad is None and model.last.weight.grad is not None
    step(trainer, 5)
    end = weights_of(trainer)
    # a bias before a batch norm has no effect and no gradient
    assert {name for name in end if torch.equal(after[name], end[name])} <= {"first.bias"}
    assert end["norm.num_batches_tracked"] == 5


def test_what_starts_to_learn_later_starts_with_fresh_moments(blobs, tmp_path):
    trainer = trainer_of(config(blobs, tmp_path, *TEN, HEAD_FIRST))
    step(trainer, 5)
    states, model = trainer.optimizer.state, trainer.plain_model
    assert model.first.weight not in states and states[model.last.weight]["step"] == 5
    step(trainer, 2)
    assert states[model.first.weight]["step"] == 2 and states[model.last.weight]["step"] == 7


def test_a_part_that_has_learned_can_be_frozen_again(blobs, tmp_path):
    """With momentum and weight decay in the optimiser's state."""
    phases = "optim.phases=[{iters: 3}, {iters: 3, train: [last]}, {}]"
    trainer = trainer_of(config(blobs, tmp_path, *TEN, phases, "optim.optimizer.name=sgd"))
    step(trainer, 3)
    before = weights_of(trainer)
    step(trainer, 3)
    after = weights_of(trainer)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"last.weight", "last.bias"}
    step(trainer, 1)
    assert not torch.equal(weights_of(trainer)["first.weight"], after["first.weight"])


def test_what_is_frozen_for_good_stays_so_in_every_phase(blobs, tmp_path):
    cfg = config(blobs, tmp_path, *TEN, HEAD_FIRST, "optim.optimizer.lr_factors={first: 0, norm: 0}")
    trainer = trainer_of(cfg)
    before = weights_of(trainer)
    step(trainer, 8)
    after = weights_of(trainer)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"last.weight", "last.bias"}


def test_each_phase_has_its_rate_and_its_warm_up(blobs, tmp_path):
    trainer = trainer_of(config(blobs, tmp_path, *TEN, HEAD_FIRST, "optim.optimizer.lr_factors={last: 0.5}"))
    rates = []
    batches = iter(trainer.loader)
    for _ in range(10):
        trainer.step(batches)
        rates.append({group["lr"] for group in trainer.optimizer.param_groups})
    # warm-up over two steps from 0.001, then a cosine over the other three of the five
    shape = [0.001, 0.5005, 1.0, 0.7525, 0.2575]
    for i, found in enumerate(rates):
        base = (1e-2 if i < 5 else 1e-3) * shape[i % 5]
        assert sorted(found) == pytest.approx([0.5 * base, base], rel=1e-3), i


def test_phases_by_hand():
    cosine = OmegaConf.create({"node": L(WarmupCosine)(max_iter=7, warmup_iters=2, final_factor=0.0)}).node
    first, second = read_phases([{"iters": 3, "warmup_iters": 0}, {"lr": 0.5, "train": ["a", "b"]}], cosine, 10)
    assert first == Phase(0, 3, WarmupCosine(3, 0))
    assert second == Phase(3, 10, WarmupCosine(7, 2), 0.5, ("a", "b"))
    steps = L(WarmupSteps)(steps=[4], gamma=0.1)
    [first, second] = read_phases([{"iters": 3}, {"iters": 7}], steps, 10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.25)
    assert [first.rate_factor(i, optimizer) for i in (0, 2)] == [1.0, 1.0]
    # counted from the phase's start: the fourth iteration of the second phase is the seventh of all
    assert [second.rate_factor(i, optimizer) for i in (3, 6, 7)] == pytest.approx([1.0, 1.0, 0.1])
    assert read_phases([], steps, 10) == [Phase(0, 10, WarmupSteps([4]))]


# resuming ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["adamw", "sgd"])
def uninterrupted(blobs, tmp_path_factory, request):
    lines = [*TEN, HEAD_FIRST, f"optim.optimizer.name={request.param}"]
    folder = tmp_path_factory.mktemp("whole")
    train(config(blobs, folder, *lines))
    return folder, lines


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_run_killed_around_the_boundary_resumes_bit_for_bit(blobs, tmp_path, stop_in, uninterrupted, stop):
    whole, lines = uninterrupted
    stop_in(stop)
    with pytest.raises(KeyboardInterrupt):
        train(config(blobs, tmp_path, *lines))
    stop_in(-1)
    train(config(blobs, tmp_path, *lines), resume=True)
    assert_same_run(whole / "model_final.pth", tmp_path / "model_final.pth")


# what the user sees -----------------------------------------------------------------------------------------------
def test_the_start_of_each_phase_says_what_learns(blobs, tmp_path, capsys):
    train(config(blobs, tmp_path, *TEN, HEAD_FIRST))
    lines = [line for line in capsys.readouterr().err.splitlines() if "learn: " in line]
    assert lines == [
        "phase 1 of 2, until iteration 5: learn: 55 parameters in 2 groups, frozen 126",
        "phase 2 of 2, until iteration 10: learn: 181 parameters in 2 groups, frozen 0",
    ]


def test_a_warm_up_longer_than_its_phase_is_told_once(blobs, tmp_path, capsys):
    train(config(blobs, tmp_path, *TEN, HEAD_FIRST, "optim.phases.1.warmup_iters=200"))
    told = [line for line in capsys.readouterr().err.splitlines() if "warm-up" in line]
    assert told == ["warning: optim.phases.1: its warm-up of 200 iterations is longer than its 5"]
    train(config(blobs, tmp_path / "one", "train.max_iter=1", "optim.schedule.warmup_iters=2"))
    assert "warning: optim.schedule: its warm-up of 2 iterations is longer than its 1\n" in capsys.readouterr().err
    train(config(blobs, tmp_path / "fits", "train.max_iter=2", "optim.schedule.warmup_iters=2"))
    assert "warm-up" not in capsys.readouterr().err


def test_the_progress_shows_the_range_of_the_rates_that_learn(blobs, tmp_path, capsys):
    lines = ["optim.optimizer.lr_factors={last: 0.1}", "train.log_period=1", "optim.schedule.warmup_iters=0"]
    train(config(blobs, tmp_path, "train.max_iter=2", *lines, "optim.phases=[{iters: 1, train: [last]}, {}]"))
    shown = re.findall(r" \| lr (.*) \S+ s/step", capsys.readouterr().err)
    assert shown == ["1.00e-03", "1.00e-03 to 1.00e-02"]


def test_without_phases_the_line_counts_groups_and_frozen_parameters(blobs, tmp_path, capsys):
    lines = ["optim.optimizer.lr_factors={norm: 0, last: 0.1}", "model.width=100"]
    train(config(blobs, tmp_path, "train.max_iter=1", *lines))
    assert "\nlearn: 2.8 k parameters in 4 groups, frozen 200\n" in "\n" + capsys.readouterr().err


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (
            "[{iters: 5, train: [lats]}, {}]",
            r"optim.phases.0.train: no parameter is below 'lats'; the nearest .* 'last'",
        ),
        ("[{iters: 5, train: last}, {}]", r"optim.phases.0.train='last' must be a list of module names: \[last\]"),
        ("[{iters: 5, trian: [last]}, {}]", "optim.phases.0.trian is not one of iters, lr, .*; nearest: 'train'"),
        ("[{lr: 1.0}, {}]", "optim.phases.0: give iters; only the last phase can do without"),
        (
            "[{iters: 5}, {iters: 6}]",
            "optim.phases.1 runs from iteration 5 to 11,.* train.max_iter is 10.* sum of all iters",
        ),
        ("[{iters: 5}, {iters: 4}]", "optim.phases.1 runs from iteration 5 to 9, train.max_iter is 10"),
        ("[{iters: 10}, {}]", "optim.phases.1 runs from iteration 10 to 10"),
        ("[{iters: 0}, {}]", "optim.phases.0.iters=0 must be an integer of at least 1"),
        ("[{iters: 2.5}, {}]", "optim.phases.0.iters=2.5 must be an integer"),
        ("[{iters: 5}, {lr: 0}]", "optim.phases.1.lr=0 must be a positive number"),
        ("[{iters: 5}, {warmup_iters: -1}]", "optim.phases.1.warmup_iters=-1 must be an integer of at least 0"),
        ("[{iters: 2, train: [1]}, {}]", r"optim.phases.0.train=\[1\] must be a list of module names such as"),
        ("[{iters: 2, train: 5}, {}]", "optim.phases.0.train=5 must be a list of module names"),
        ("[{iters: 2, train: {last: 1}}, {}]", "optim.phases.0.train=.* must be a list of module names"),
        ("[{iters: 5}, {lr: .nan}]", "optim.phases.1.lr=nan must be a positive number"),
        ("[{iters: 5}, {lr: .inf}]", "optim.phases.1.lr=inf must be a positive number"),
        ("[heads, {}]", "optim.phases.0='heads' is not a mapping of iters, lr, train, warmup_iters"),
    ],
)
def test_wrong_phases_are_named_before_the_first_step(blobs, tmp_path, phases, message):
    with pytest.raises(InputError, match=message):
        train(config(blobs, tmp_path / "run", *TEN, f"optim.phases={phases}"))
    assert not (tmp_path / "run").exists()


def test_a_phase_that_trains_only_what_is_frozen_for_good_is_named(blobs, tmp_path):
    with pytest.raises(InputError, match=r"optim.phases.0.train: freeze_at or lr_factors freezes all of 'last'"):
        train(config(blobs, tmp_path, *TEN, HEAD_FIRST, "optim.optimizer.lr_factors={last: 0}"))


# several processes ------------------------------------------------------------------------------------------------
class Halves(torch.nn.Module):
    """Two layers and the same loss for every sample: the mean over processes is that over the batch."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.unused = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1), torch.nn.Linear(2, 2)

    def forward(self, batch):
        return {"loss": self.last(self.first(batch).tanh()).square().mean()}


def halves_in_phases(path=None):
    """Train `Halves` for six steps in two phases, on this process's share of the batch; return all parameters."""
    with distributed.joined("cpu") as device:
        torch.manual_seed(0)
        model = Halves()
        batch = torch.randn(4, 3)[distributed.rank() :: distributed.world_size()]
        optimizer = build_optimizer(model, "sgd", lr=0.5, weight_decay=0.01)
        phases = [Phase(0, 3, lambda i: 1.0, None, ("last",)), Phase(3, 6, lambda i: 1.0, 0.25)]
        trainer = Trainer(model, [batch] * 6, optimizer, phases, device)
        trainer.train()
        values = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        everywhere = distributed.gather_objects(values)
        if path is not None and distributed.is_main():
            torch.save(everywhere, path)
        return values


@pytest.mark.slow
def test_two_processes_change_phase_together_and_train_as_one_would(tmp_path):
    distributed.launch(halves_in_phases, 2, "cpu", (tmp_path / "found.pt",))
    first, second = torch.load(tmp_path / "found.pt")
    assert torch.equal(first, second)
    torch.testing.assert_close(first, halves_in_phases(), rtol=1e-5, atol=1e-7)
    torch.manual_seed(0)
    untouched = Halves()
    assert not torch.allclose(first[:12], untouched.first.weight.detach().flatten(), atol=1e-3)
    assert states_equal(first[-6:], torch.cat([p.detach().flatten() for p in untouched.unused.parameters()]))
