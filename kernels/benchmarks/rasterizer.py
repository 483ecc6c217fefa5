"""Times the Gaussian rasterizer and prints one JSON line per stage.

    python kernels/benchmarks/rasterizer.py --cases small big
    python kernels/benchmarks/rasterizer.py --cases big --channels 3 32 --tile-sizes 8 16

What the fields mean is in `jwm_kernels.gaussian_rasterizer.benchmark`; `jwm benchmark rasterizer`
is the same command.
"""

import argparse
import json

from jwm_kernels.gaussian_rasterizer.benchmark import benchmarks
from jwm_kernels.gaussian_rasterizer.cases import CASES


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["tiny", "small"])
    parser.add_argument("--channels", nargs="+", type=int, default=[3])
    parser.add_argument("--tile-sizes", nargs="+", type=int, default=[None])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--even-if-slow", action="store_true", help="also `huge` on a CPU")
    options = parser.parse_args()
    try:
        lines = benchmarks(**vars(options))
    except ValueError as error:
        parser.error(str(error))
    for line in lines:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
