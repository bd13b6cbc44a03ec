"""Drivers: the only code that knows a network or a clock. `local` runs N ranks in one process,
`torch` any process group."""
