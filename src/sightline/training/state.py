"""What changes while a training goes on, as tensors for the disk."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from .optimizers import Average, parameters


@dataclass
class State:
    """A training's model, optimiser, scaler, average of weights (if there is one) and what it knows of the N images.

    scaler: of the loss in float16; else it does nothing.
    losses: (N,) float32 on the model's device, each image's cross entropy when it was last seen, infinite before.
    order: the places of this epoch's images, on the CPU.
    """

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    average: Average | None
    losses: Tensor
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def draw_order(self, kept: float, count: int, generator: Generator) -> None:
        """Take `count` images in random order: of all, or, where less than 1 is `kept`, those with the highest losses."""
        if kept == 1:
            self.order = torch.randperm(len(self.losses), generator=generator)[:count]
        else:
            hardest = self.losses.argsort(descending=True, stable=True)[:count].cpu()
            self.order = hardest[torch.randperm(count, generator=generator)]

    def tensors(self) -> dict[str, Tensor]:
        """Everything under flat names; `restore` takes it back."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i, kept in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in kept.items()}
        if self.average:
            tensors |= {f"average.{i}": value for i, value in enumerate(self.average.sums)}
            tensors["steps"] = torch.tensor(self.average.steps)
        if self.scaler.is_enabled():
            kept = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([kept["scale"], kept["_growth_tracker"]], dtype=torch.float64)
        return {**tensors, "losses": self.losses, "order": self.order}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave; nothing, where there is nothing."""
        if not tensors:
            return
        self.model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        learned = parameters(self.optimizer)
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                # The same strides as before: vectorised arithmetic may round differently at other places in memory.
                parameter = learned[int(i)]
                same_shape = value.shape == parameter.shape
                self.optimizer.state[parameter][key] = (
                    torch.empty_like(parameter).copy_(value) if same_shape else value.to(parameter.device)
                )
        if self.average:
            self.average.steps = int(tensors["steps"])
            for place, total in enumerate(self.average.sums):
                total.copy_(tensors[f"average.{place}"])
        if self.scaler.is_enabled():
            scale, grown = tensors["scaler"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(grown)})
        self.losses, self.order = tensors["losses"].to(self.losses.device), tensors["order"]
