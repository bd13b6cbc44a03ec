"""Hide the wire behind the next forward pass: means land, and parameters are stepped, when it needs
them."""
