"""`python -m holdgate` is the command `holdgate`."""

import sys

from .cli import main

sys.exit(main())
