"""Observe a run: count bytes and seconds, record a trace, compare what ranks must hold equal."""
