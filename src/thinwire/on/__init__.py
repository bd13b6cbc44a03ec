"""On which tensors: gradients during backward, deltas of many local steps, or the parameters themselves."""

from thinwire.on.deltas import deltas
from thinwire.on.gradients import gradients
from thinwire.on.outer import nesterov, sgd
from thinwire.on.parameters import parameters

__all__ = ["deltas", "gradients", "nesterov", "parameters", "sgd"]
