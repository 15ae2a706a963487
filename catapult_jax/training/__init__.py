"""Training with instruments: one step (``step``), many of them (``chunks``), members side by side (``trainer``)."""

from catapult_jax.training.problem import MemberState, Problem
from catapult_jax.training.trainer import Members, Start, State, Trainer, make_trainer

__all__ = ["MemberState", "Members", "Problem", "Start", "State", "Trainer", "make_trainer"]
