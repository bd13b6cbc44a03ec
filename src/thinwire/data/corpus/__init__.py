"""Texts: read from files, packages and the Hub, cleaned, split and tokenised."""
