"""Sluiceway: routes each job to the cheapest model tier that can be trusted with it."""

__version__ = "0.1.0"
