"""The simulation: seeded worlds in virtual time, with the real core, runner, role, publisher and pool in them."""
