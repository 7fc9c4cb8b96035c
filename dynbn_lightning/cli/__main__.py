"""`python -m dynbn_lightning.cli`, the same as `dynbn`."""

import sys

from dynbn_lightning.cli import main

sys.exit(main())
