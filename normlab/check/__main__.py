"""Whether a norm, yours or ours, keeps what training on several ranks relies on: a line for each property.

python -m normlab.check norm.target=my_norms:MyNorm norm.args.groups=4
python -m normlab.check norm=gn norm.num_groups=4 --shape 8x32x4x4

No formula is asked for: outputs are compared with each other, in float64, and with those of real ranks (gloo).
Exit code 1 where a property does not hold.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.process import USER_ERROR
from normlab.bench.__main__ import Parser, shape
from normlab.config import ConfigError
from normlab.config.mistakes import explain, no_such_key
from normlab.config.norm import NormConfig
from normlab.config.section import SCHEMAS

BROKEN = 1
"""The exit code if a property does not hold."""

_WORDS = {True: "holds", False: "DOES NOT HOLD", None: "not claimed"}


def norm_of(words: Sequence[str]) -> NormConfig:
    """The norm that `words` such as norm=gn norm.num_groups=4 choose; norm.target alone chooses norm=custom.

    Raises: ConfigError.
    """
    try:
        given = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(list(words))}
        name = str(given.pop("norm", "custom" if "norm.target" in given else ""))
        if name not in SCHEMAS["norm"]:
            known = ", ".join(SCHEMAS["norm"])
            raise ConfigError(f"norm={name} is unknown; give norm.target=my_norms:MyNorm, or one of {known}.")
        node = OmegaConf.create({"norm": OmegaConf.structured(SCHEMAS["norm"][name])})
        for key, value in given.items():
            if not key.startswith("norm."):
                raise ConfigError(f"{key} is no key of a norm; give norm=<name> and norm.<key>=<value> alone.")
            if key.split(".")[1] not in node.norm:
                raise ConfigError(no_such_key(key, f"norm={name}"))
            OmegaConf.update(node, key, value)
        norm = OmegaConf.to_object(node.norm)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from None
    assert isinstance(norm, NormConfig)
    return norm


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m normlab.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("norm", nargs="+", metavar="key=value", help="norm=, norm.target=, and the norm's keys")
    parser.add_argument(
        "--shape", type=shape, metavar="BxCxHxW", default=(8, 16, 3, 3), help="each rank's batch (8x16x3x3)"
    )
    args = parser.parse_intermixed_args(arguments)
    try:
        sys.exit(run(norm_of(args.norm), args.shape))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


def run(norm: NormConfig, batch_shape: tuple[int, int, int, int]) -> int:
    """Print the verdict on each property as it is found. Returns the exit code."""
    from normlab.bench.ranks import RankPool
    from normlab.check.layers import Subject
    from normlab.check.properties import WORLD_SIZES, verdicts

    _, channels, *_ = batch_shape
    norm.check({"": channels}, batch_shape[0], max(WORLD_SIZES), 1)
    needs = ", ".join(f"{name}={getattr(norm, name)}" for name in ("needs_batch", "needs_ranks"))
    print(f"{norm.name}: {needs}; inputs {'x'.join(map(str, batch_shape))} on each rank", flush=True)
    counts: dict[Any, int] = dict.fromkeys(_WORDS, 0)
    with RankPool(max(WORLD_SIZES)) as pool:
        for verdict in verdicts(Subject(norm, batch_shape, pool)):
            counts[verdict.holds] += 1
            print(f"{_WORDS[verdict.holds]:<14} {verdict.name:<16} {verdict.said}", flush=True)
    print(", ".join(f"{_WORDS[key].lower()}: {count}" for key, count in counts.items() if count))
    return BROKEN if counts[False] else 0


if __name__ == "__main__":
    main()
