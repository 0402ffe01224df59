"""Decode a data set into the cache before anything is trained, in a job of its own.

python -m launch.prepare data=image_folder data.root=/data/birds

It takes `data`, its keys, and presets, as train.py does. Runs with the same data.root, data.image_size and
data.cache_dir find the cache made. It prints what the data hold, and their fingerprint, which is part of a run's
identity.
"""

import argparse
import sys
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.plugins import register_launchers
from launch.process import USER_ERROR
from normlab.config import ConfigError
from normlab.config.data import DataConfig
from normlab.config.mistakes import check_keys, check_overrides, explain
from normlab.config.schema import CONF, register_schemas


def data_of(words: Sequence[str]) -> DataConfig:
    """The data that `words` such as data=cifar10 data.root=... choose. Raises: ConfigError."""
    register_schemas()
    register_launchers()
    try:
        check_overrides(OverridesParser.create().parse_overrides(list(words)))
        with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            composed = compose("config", overrides=list(words))
        check_keys(composed.data, "data.")
        found = OmegaConf.to_object(composed.data)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, words)) from None
    assert isinstance(found, DataConfig)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words", nargs="+", metavar="key=value", help="data=<name> data.root=<folder> and more keys"
    )
    args = parser.parse_args()
    try:
        cfg = data_of(args.words)
        from normlab import data
        from normlab.console import show_loading

        dataset = data.load(cfg, show_loading)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    for note in dataset.notes:
        print(note)
    classes = len(dataset.classes)
    print(f"{len(dataset.train)} samples of {classes} classes to train on; fingerprint {dataset.fingerprint}")


if __name__ == "__main__":
    main()
