"""Optimizers and learning-rate schedules from a job's ``how``."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


def make_optimizer(model: torch.nn.Module, recipe: Any) -> torch.optim.Optimizer:
    """The optimizer that ``how.optimizer`` names, over all parameters that want a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    kind = torch.optim.AdamW if recipe.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=recipe.lr, betas=tuple(recipe.betas), weight_decay=recipe.weight_decay)


def make_schedule(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> LambdaLR:
    """Multiplies the learning rate step by step as ``how.schedule`` says; a function of the step alone."""
    every = schedule.every or max(1, steps // 4)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
        return warm * (0.5 ** (step // every) if schedule.kind == "halve" else 1.0)

    return LambdaLR(optimizer, factor)
