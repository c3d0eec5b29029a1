"""Learning-rate schedules of torch and transformers, to compare with."""

import torch
import transformers.optimization as hf
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

PEAK = 0.01


def make_optimizer(*rates):
    """Returns SGD with a parameter group of one weight for each rate; one group with `PEAK` by default."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (PEAK,)]
    return torch.optim.SGD(groups, lr=groups[0]["lr"])


def recorded_rates(scheduler, optimizer, steps):
    """Returns the learning rate of the first parameter group at each of `steps` steps, and after the last."""
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


SCHEDULES = {
    "constant": (
        {"decay": None},
        lambda optimizer, warmup, total: hf.get_constant_schedule_with_warmup(optimizer, warmup),
    ),
    "linear": ({"decay": "linear"}, hf.get_linear_schedule_with_warmup),
    "cosine": ({"decay": "cosine"}, hf.get_cosine_schedule_with_warmup),
    "cosine to a floor": (
        {"decay": "cosine", "eta_min": 1e-3},
        lambda *arguments: hf.get_cosine_with_min_lr_schedule_with_warmup(*arguments, min_lr=1e-3),
    ),
    "polynomial": (
        {"decay": "polynomial", "polynomial_power": 2.0, "polynomial_end_lr": 1e-4},
        lambda *arguments: hf.get_polynomial_decay_schedule_with_warmup(*arguments, lr_end=1e-4, power=2.0),
    ),
    "exponential": ({"decay": "exponential", "decay_rate": 0.5, "decay_steps": 4}, None),
    "staircase": ({"decay": "exponential", "decay_rate": 0.5, "decay_steps": 4, "staircase": True}, None),
    "restarts": ({"decay": "cosine", "t_0": 5, "eta_min": 1e-3}, None),
    "growing restarts": ({"decay": "cosine", "t_0": 3, "t_mult": 2}, None),
    "inverse_sqrt": (
        {"decay": "inverse_sqrt"},
        lambda optimizer, warmup, total: hf.get_inverse_sqrt_schedule(optimizer, warmup, timescale=warmup),
    ),
}
"""Settings, and the same schedule of transformers as a function of the optimizer, the warm-up and the total steps."""
WARMUPS = {
    "none": ({}, 0),
    "fraction": ({"warmup_fraction": 0.15}, None),
    "evaluations": ({"warmup_evaluations": 2}, None),
}
ROWS = 37
LENGTHS = {"epochs": ({"epochs": 3}, None), "train_steps": ({"train_steps": 23}, 23)}


def expected_rates(schedule, warmup, total):
    """Returns the rates of another library where it has the schedule, else those of the formula."""
    settings, library = SCHEDULES[schedule]
    optimizer = make_optimizer()
    if library is not None:
        return recorded_rates(library(optimizer, warmup, total), optimizer, total)
    if "t_0" in settings:
        restarts = CosineAnnealingWarmRestarts(
            optimizer, settings["t_0"], settings.get("t_mult", 1), settings.get("eta_min", 0)
        )
        after_warmup = recorded_rates(restarts, optimizer, total - warmup)
    else:
        periods = [step // 4 if settings.get("staircase") else step / 4 for step in range(total - warmup + 1)]
        after_warmup = [PEAK * 0.5**period for period in periods]
    return [PEAK * step / warmup for step in range(warmup)] + after_warmup
