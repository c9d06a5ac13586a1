"""Train a model and leave a run folder.

optimizers   Adam, SGD, Muon; the average of the weights
memory       will a batch fit?
progress     what a training tells whoever watches it
learner      a model and what it learns from: a batch becomes a loss
rate         the range test of a recipe on its data
state        what changes while a training goes on, as tensors for the disk
loop         the training, top to bottom
reproduction a finished run trained again, and compared
"""

from .learner import Learner
from .loop import train
from .progress import Progress
from .rate import find_lr, range_tests, suggested
from .reproduction import Reproduction, reproduce

__all__ = ["Learner", "Progress", "Reproduction", "find_lr", "range_tests", "reproduce", "suggested", "train"]
