"""Diffusion processes and samplers: pure functions around a network that predicts noise, an image or a velocity."""

from densezoo.diffusion.processes import SCHEDULES, TARGETS, Process
from densezoo.diffusion.samplers import METHODS, Sampler, make_sampler

__all__ = ["METHODS", "SCHEDULES", "TARGETS", "Process", "Sampler", "make_sampler"]
