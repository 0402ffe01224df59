"""Norm options in a sweep over norms: with `-m norm=bn,gn norm.num_groups=4`, each norm gets those it has."""

from collections.abc import Sequence
from dataclasses import fields

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, flag_override

from launch.composing import given_overrides
from normlab.config.mistakes import unknown_keys
from normlab.config.section import SCHEMAS


def swept_norms(master_config: DictConfig, config_loader: ConfigLoader) -> list[str]:
    """The choices of `norm` in a sweep; none if it has only one norm."""
    params = master_config.hydra.sweeper.get("params") or {}
    words = [f"norm={params['norm']}"] if "norm" in params else []
    swept: list[str] = []
    for one in OverridesParser.create(config_loader).parse_overrides([*words, *given_overrides(master_config)]):
        if one.get_key_element() == "norm":  # the last one counts
            swept = list(one.sweep_string_iterator()) if one.is_discrete_sweep() else []
    return swept


def leave_out_options_of_others(norm: DictConfig, swept: Sequence[str]) -> list[str]:
    """Remove keys that another norm of the sweep has and this one does not. Returns them: `norm.num_groups`."""
    left_out = [key for key in unknown_keys(norm) if any(_has(name, key) for name in swept)]
    with flag_override(norm, "readonly", False):
        for key in left_out:
            del norm[key]
    return [f"norm.{key}" for key in left_out]


def _has(name: str, key: str) -> bool:
    # A name that is not ours is a user's own file, about which nothing is known here.
    return name not in SCHEMAS["norm"] or key in {spec.name for spec in fields(SCHEMAS["norm"][name])}
