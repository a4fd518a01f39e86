"""`python -m odn_hybrid.cli`: `odn` for launchers that start a module, such as torchrun and accelerate."""

import sys

from odn_hybrid.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
