"""Say what a strategy would send and keep, and which codec suits a gradient, without a run."""
