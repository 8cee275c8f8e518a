"""`python -m prefmoe`: the same as the console script."""

import sys

from prefmoe.cli import main

sys.exit(main())
