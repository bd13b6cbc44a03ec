"""Codecs around other codecs: residuals, chains, clipping, entropy coding, a choice by role or rank."""
