"""Every key a user may set: its type, meaning, unit and range. Imports no torch.

The YAML files under conf/ hold values only; these dataclasses are their schema, so a misspelt key or a bad
value fails while Hydra composes, before any rank starts. Library code takes these typed sections or plain
values, never a DictConfig.
"""

from normlab.config.config import Config
from normlab.config.section import ConfigError

__all__ = ["Config", "ConfigError"]
