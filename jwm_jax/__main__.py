"""`python -m jwm_jax` is `jwm`."""

import sys

from jwm_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
