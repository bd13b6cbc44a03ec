"""Start the ranks of one machine, watch them, and let all ranks meet."""
