"""Times the Gaussian rasterizer and prints one JSON line per stage.

    python kernels/benchmarks/rasterizer.py --cases small big
    python kernels/benchmarks/rasterizer.py --cases big --channels 3 32 --tile-sizes 8 16

What the fields mean is in `jwm_kernels.gaussian_rasterizer.benchmark`; `jwm benchmark rasterizer`
is the same command.
"""

import argparse
import itertools
import json

from jwm_kernels.gaussian_rasterizer.benchmark import benchmark
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
    options = parser.parse_args()
    for case, channels, tile_size in itertools.product(
        options.cases, options.channels, options.tile_sizes
    ):
        for line in benchmark(
            case,
            channels=channels,
            tile_size=tile_size,
            backend=options.backend,
            repeats=options.repeats,
        ):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
