"""Policies and rollouts: what plays the environment, with and without a model.

Import from the modules; nothing is loaded here, so that a policy without a model needs no model library.
"""
