"""Read tokens and records from disk, in the order and batches of each rank."""
