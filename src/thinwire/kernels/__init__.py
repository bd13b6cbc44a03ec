"""The arithmetic of the codecs. `reference` defines each kernel in plain torch; faster ones equal
it."""
