"""How to train: optimiser, learning-rate schedule, and the run itself."""

from deepdisc.backbones.stem import BandAdapter
from deepdisc.config import L
from deepdisc.training.optim import WarmupCosine, build_optimizer

optim = {
    # name: adamw, sgd
    # weight_decay: of weights; norms, biases and position tables are exempt (detectron2 decays biases)
    # lr_factors: module name -> factor of its learning rate, e.g. {"backbone": 0.1}; 0 freezes
    # layer_decay: factor of the learning rate from each layer of the backbone to the one below it, e.g. 0.7; 1 for none
    "optimizer": L(build_optimizer)(name="adamw", lr=5e-4, weight_decay=0.05, lr_factors={}, layer_decay=1.0),
    # or L(WarmupSteps)(steps=[6000, 8000], gamma=0.1, warmup_iters=200)
    "schedule": L(WarmupCosine)(max_iter="${train.max_iter}", warmup_iters=200, final_factor=0.01),
    # each runs the schedule anew: [{iters: 1000, lr: 1e-3, train: [proposal_generator, roi_heads]}, {lr: 1e-4}] trains
    # only these modules at first, then everything until train.max_iter; warmup_iters may be given, too
    "phases": [],
    "clip_grad_norm": 5.0,  # of the total norm; 0 for no limit
}

train = {
    "output_dir": "runs/new",
    "max_iter": 10000,
    "seed": 0,
    "device": "auto",  # auto, cpu, cuda
    "precision": "float32",  # or bfloat16, float16 (autocast; the latter with a gradient scaler)
    "channels_last": True,
    "ema_decay": 0.999,  # average of the weights, which is validated and exported; 0 for none
    "init_checkpoint": None,  # weights to start from: .pth, .pkl or .safetensors, of this or another program
    # the first convolution for other bands than the checkpoint's. method: mean, repeat, wavelength; wavelengths_um:
    # {g: 0.48, r: 0.62, ...}; file_bands: names of the checkpoint's bands, where it does not tell: [blue, green, red]
    "init_bands": L(BandAdapter)(method="mean", wavelengths_um=None, file_bands=None),
    "log_period": 20,
    "eval_period": 1000,
    "checkpoint_period": 1000,
    "keep_checkpoints": 2,
    "best_metric": "val_loss",  # or one term, e.g. val_loss_redshift
    "trackers": [],  # tensorboard, wandb (extra: track)
}
