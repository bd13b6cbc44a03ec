"""Read files of other machines: HTTP, object stores, other ranks, and the cache in front of
them."""
