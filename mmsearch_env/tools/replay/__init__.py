"""Search calls written down once and replayed for ever: frozen tools for training and evaluation."""
