"""`python -m thinwire`: the command line, also as `torchrun … -m thinwire train`."""

import sys

from thinwire.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
