"""On which tensors: gradients during backward, Adam's momentum, deltas of many local steps, or the
parameters themselves."""

from thinwire.on.deltas import deltas
from thinwire.on.gradients import gradients
from thinwire.on.momentum import momentum
from thinwire.on.outer import nesterov, optim, sgd
from thinwire.on.parameters import parameters

__all__ = ["deltas", "gradients", "momentum", "nesterov", "optim", "parameters", "sgd"]
