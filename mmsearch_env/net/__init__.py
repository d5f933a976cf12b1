"""The network: everything that leaves this machine or comes in from outside passes through here."""
