"""The trainer: how a policy learns, from groups of trajectories to saved weights.

Start with :mod:`training.train` (the loop), then :mod:`training.task` (what the loop needs from outside) and
:mod:`training.algorithms` (what is learnt). Only :mod:`training.engine` knows DeepSpeed.
"""
