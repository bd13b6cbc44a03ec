"""`python -m thinwire.train`: train a small GPT on real English with the strategy of your choice."""

import sys

from thinwire.train.command import main

if __name__ == "__main__":
    sys.exit(main())
