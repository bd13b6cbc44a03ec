"""Codecs around other codecs: residuals, chains, clipping, entropy coding, roles and ranks."""
