"""The keys of hydra/sweeper=race."""

from dataclasses import dataclass

from normlab.config.section import Section, setting


@dataclass(kw_only=True)
class RaceConfig(Section):
    """Keys under `hydra.sweeper` with hydra/sweeper=race."""

    group = "hydra.sweeper"

    _target_: str = "hydra_plugins.normlab_race.RaceSweeper"

    budget_min: float | None = setting(None, above=0)
    """Minutes by the clock, of all commands that go on with the race together. Runs that would take longer, at the
    speed so far, are not begun. null: no limit."""

    budget_samples: int | None = setting(None, minimum=1, maximum=2**53)
    """Training samples of all runs of the race together. null: no limit."""

    max_seeds: int = setting(8, minimum=2, maximum=1000)
    """Most seeds per norm."""

    error_rate: float = setting(0.05, above=0, below=1)
    """Largest probability that anything the race says is wrong: a norm that is called behind and is not, or an
    interval that misses the true difference."""

    params: dict[str, str] | None = None
    """What a preset sweeps over: norm, and keys of optim."""
