"""The models that Thinwire trains: presets, models of transformers, and a small GPT of its own."""
