"""Wrap what others offer, each through its own public interface; see `thinwire.bench.job` for what
a module here must hold."""
