"""Fragments that talk by turns are of about one size, and layers are strided over them."""

from __future__ import annotations
