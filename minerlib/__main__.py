"""`python -m minerlib`: the command line."""

from __future__ import annotations

import sys

from minerlib.cli import main

if __name__ == "__main__":
    sys.exit(main())
