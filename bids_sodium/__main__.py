"""``python -m bids_sodium``."""

from __future__ import annotations

import sys

from bids_sodium.cli import main

if __name__ == "__main__":
    sys.exit(main())
