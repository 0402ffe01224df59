"""A race between norms: race_decisions.py says what to train, a launcher trains it, race.json has the state.

Imports torch only while it plans.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, flag_override

from launch.composing import Composer
from launch.jobs import Job, forget_ended, plan_jobs, study_name
from launch.norm_options import leave_out_options_of_others
from launch.race_config import RaceConfig
from launch.race_decisions import Grid, Race, State, Trial, decide
from normlab.atomic import atomic_write
from normlab.config import Config, ConfigError
from normlab.config.mistakes import to_typed
from normlab.config.schema import identity
from normlab.console import duration, plain_console, print_table
from normlab.report.race import NAME, table, verdict
from normlab.run import writable
from normlab.run_files import is_number, read_object

if TYPE_CHECKING:
    from normlab.data.dataset import Dataset

VAL_FRACTION = 0.1
"""The fraction held out to choose rates by, unless the command sets it."""


def run_race(
    config: DictConfig, loader: ConfigLoader, launcher: Launcher, arguments: Sequence[str], settings: RaceConfig
) -> None:
    """Train the runs that decide which norm is best, until that is decided or the budget is spent.

    Raises: ConfigError before any run is started; SystemExit if a run has stopped or failed.
    """
    if config.hydra.launcher.get("wait") is False:
        raise ConfigError("hydra.launcher.wait=false: a race needs the results of its runs; leave it out.")
    question = Question(config, loader, arguments, settings)
    record = Record(question, settings)
    if question.holds_out:
        say(f"data.val_fraction={VAL_FRACTION}: this share of the training data is held out, to choose rates by")
    known: dict[Trial, float | None] = {}
    while True:
        state = decide(question.race, known)
        record.tell(state)
        if not state.next:
            break
        orders = [[*question.overrides(trial), "progress=false"] for trial in state.next]
        jobs = {state.next[place]: job for job in plan_jobs(config, loader, orders) for place in job.places}
        if not any(job.run.ended() for job in jobs.values()):
            record.foresee(*next(iter(jobs.items())))
            if record.budget_ends(sum(job.total_samples for job in jobs.values())):
                break
            began = time.monotonic()
            try:
                launcher.launch([question.overrides(trial) for trial in state.next], initial_job_idx=len(known))
            finally:  # also after a stop signal
                forget_ended()
                record.spend(time.monotonic() - began, [job for job in jobs.values() if job.run.ended()])
                record.write(state)
            if left := [trial for trial, job in jobs.items() if not job.run.ended()]:
                first = f"norm={left[0].norm} {' '.join(left[0].setting)} seed={left[0].seed}"
                say(f"{first}{' and others' * (len(left) > 1)} did not end; the same command goes on")
                raise SystemExit(1)
        for trial, job in jobs.items():
            if job.run.ended():
                known[trial] = record.keep(trial, job)
    record.write(state)
    record.show()


class Question:
    """A race as the command line asks for it. Raises: ConfigError for what a race cannot answer."""

    def __init__(
        self, config: DictConfig, loader: ConfigLoader, arguments: Sequence[str], settings: RaceConfig
    ) -> None:
        from normlab import data
        from normlab.step_cost import step_cost

        params = [f"{key}={value}" for key, value in (settings.params or {}).items()]
        self._fixed, ranges = _fixed_and_swept(loader, [*params, *arguments])
        norms = ranges.pop("norm", [])
        if len(norms) < 2:
            raise ConfigError("a race is between two norms at least; list them: norm=bn,syncbn,gn")
        composer = Composer(config, loader)
        configs: dict[str, Config] = {}
        for norm in norms:
            task, choices = composer.compose([*self._fixed.values(), f"norm={norm}"])
            leave_out_options_of_others(task.norm, norms)
            configs[norm] = to_typed(task)
        cfg = self.config = configs[norms[0]]
        self._check(cfg)
        self.study = study_name(cfg, {"experiment": "race"} | {k: v for k, v in choices.items() if v})
        own = {"study": self.study}
        dataset = data.load(cfg.data)
        self.holds_out = not self._has_val(cfg, dataset)
        """Whether training data are held out without the command saying so."""
        if self.holds_out:
            own["data.val_fraction"] = str(VAL_FRACTION)
        self._fixed |= {key: f"{key}={value}" for key, value in own.items()}
        with flag_override(config, "readonly", False):  # as if the command set them: they are in no job's name
            config.hydra.overrides.task = [*config.hydra.overrides.task, *(self._fixed[key] for key in own)]
        lists = [[f"{key}={value}" for value in values] for key, values in ranges.items()]
        given = tuple(product(*lists)) if lists else ()
        grids = {norm: Grid(one.optim.lr, given) for norm, one in configs.items()}
        self.race = Race(grids, cfg.epochs, cfg.seed, settings.max_seeds, settings.error_rate)
        plan = {
            "norms": {norm: identity(one) for norm, one in configs.items()},
            "settings": given,
            "max_seeds": settings.max_seeds,
            "error_rate": settings.error_rate,
        }
        self.plan: dict[str, Any] = json.loads(json.dumps(plan))
        """What the error rate was planned for, as JSON values."""
        ranks = cfg.logical_ranks(cfg.world_size or 1)
        self.costs = {norm: asdict(step_cost(one, dataset, ranks)) for norm, one in configs.items()}
        """The cost of one rank's step with each norm, without the time."""

    def _check(self, cfg: Config) -> None:
        if cfg.max_samples is not None:
            raise ConfigError(
                f"max_samples={cfg.max_samples}: a race shortens runs by epochs; set epochs instead."
            )
        if cfg.rerun:
            raise ConfigError("rerun=true: a race goes by the results that are there; give a new study=<name>.")

    def _has_val(self, cfg: Config, dataset: "Dataset") -> bool:
        """Whether there are images other than those of the comparison to choose rates by."""
        if cfg.data.val_fraction > 0 or dataset.test is not None:  # a separate val folder
            return True
        if "data.val_fraction" in self._fixed:
            raise ConfigError(
                "data.val_fraction=0 leaves no images to choose rates by but those of the comparison; "
                f"set it to {VAL_FRACTION}, or leave it out."
            )
        return False

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir) / self.study

    def overrides(self, trial: Trial) -> list[str]:
        """The command line of a run."""
        own = [f"norm={trial.norm}", f"epochs={trial.epochs}", *trial.setting, f"seed={trial.seed}"]
        mine = {word.partition("=")[0] for word in own}
        return [*own, *(line for key, line in self._fixed.items() if key not in mine)]

    def metric(self, trial: Trial) -> str:
        """Rates are chosen by val; norms are compared by test."""
        return f"{'val' if trial.seed == self.race.seed else 'test'}/{self.config.main_metric}"


def _fixed_and_swept(loader: ConfigLoader, words: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(key -> override of every run, key -> swept values); norms and settings of optim may be swept.

    Raises: ConfigError if anything else is swept.
    """
    given = {one.get_key_element(): one for one in OverridesParser.create(loader).parse_overrides(list(words))}
    swept = {key: one for key, one in given.items() if one.is_sweep_override()}
    for key, one in swept.items():
        if not one.is_discrete_sweep() or (key != "norm" and not key.startswith("optim.")):
            raise ConfigError(
                f"{key}={one.get_value_string()}: a race goes over a list of norms, and over lists of values of "
                f"optim.*; give {key} one value."
            )
    fixed = {k: f"{k}={one.get_value_element_as_str()}" for k, one in given.items() if k not in swept}
    return fixed, {key: list(dict.fromkeys(one.sweep_string_iterator())) for key, one in swept.items()}


class Record:
    """What a race has spent and found so far: kept in race.json, printed line by line, shown at the end."""

    def __init__(self, question: Question, settings: RaceConfig) -> None:
        self._question, self._settings = question, settings
        self._path = question.folder / NAME
        self._samples = 0
        self._runs: list[dict[str, Any]] = []
        self._said: set[str] = set()
        self._over, self._foreseen = "", False
        found, problem = read_object(self._path)
        if problem:
            raise ConfigError(f"{self._path.parent}: {problem}; remove it, or give another study=<name>.")
        planned = (found or {}).get("plan", question.plan)
        if differing := [key for key in question.plan if planned.get(key) != question.plan[key]]:
            raise ConfigError(
                f"{self._path} is of a race with other {', '.join(differing)}, and its error rate holds as it was "
                "planned; give another study=<name>, or the same command (a budget may be raised)."
            )
        self._used_s = float((found or {}).get("used_s", 0))
        self._trained = int((found or {}).get("trained_samples", 0))

    def tell(self, state: State) -> None:
        """Print the decisions that have not been printed yet."""
        for line in state.log:
            if line not in self._said:
                self._said.add(line)
                say(line + self._left())

    def _left(self) -> str:
        minutes, samples = self._settings.budget_min, self._settings.budget_samples
        words = []
        if minutes is not None:
            words.append(duration(max(0.0, 60 * minutes - self._used_s)))
        if samples is not None:
            words.append(f"{max(0, samples - self._samples):,} samples")
        return f" [{' and '.join(words)} left]" if words else ""

    def foresee(self, first: Trial, job: Job) -> None:
        """Say once, as soon as the speed is known, if the budget does not reach the first comparison."""
        if self._trained and not self._foreseen:
            self._foreseen = True
            least = self._question.race.least_epochs * job.total_samples // first.epochs
            if words := self._too_little_for("rates and a first comparison", least - self._samples):
                say(f"{words}; fewer epochs or norms would do")

    def budget_ends(self, needed: int) -> bool:
        """Whether runs of `needed` samples would take more than is left."""
        self._over = self._too_little_for("the next runs", needed)
        if self._over:
            say(f"{self._over}; the same command with more goes on")
        return bool(self._over)

    def _too_little_for(self, what: str, needed: int) -> str:
        """A message if training `needed` samples would take more than is left; else empty."""
        minutes, samples = self._settings.budget_min, self._settings.budget_samples
        needed_s = needed * self._used_s / self._trained if self._trained else 0.0
        if minutes is not None and self._used_s + needed_s > 60 * minutes:
            return f"budget_min={minutes:g} is too short for {what}, which need about {duration(needed_s)} more"
        if samples is not None and self._samples + needed > samples:
            return f"budget_samples={samples} is too few for {what}, which need {needed} more"
        return ""

    def spend(self, seconds: float, trained: Sequence[Job]) -> None:
        self._used_s += seconds
        self._trained += sum(job.total_samples for job in trained)

    def keep(self, trial: Trial, job: Job) -> float | None:
        """Record an ended run. Returns its score, None if it diverged."""
        result = job.run.result()
        assert result is not None
        self._samples += job.total_samples
        diverged = result["status"] == "diverged"
        score = None if diverged else float(result["metrics"][self._question.metric(trial)])
        speed = result.get("images_per_second")
        self._runs.append(
            asdict(trial)
            | {"run": job.run.directory.name, "score": score}
            | {"images_per_second": speed if is_number(speed) else None}
        )
        return score

    def write(self, state: State) -> None:
        race = self._question.race
        self._data: dict[str, Any] = {
            "plan": self._question.plan,
            "epochs": race.epochs,
            "rungs": race.rungs,
            "seed": race.seed,
            "looks": race.looks,
            "level": race.level,
            "error_rate": race.error_rate,
            "main_metric": self._question.config.main_metric,
            "used_s": self._used_s,
            "trained_samples": self._trained,
            "over": self._over,
            "decisions": state.log,
            "untrained": dict(state.untrained or {}),
            "standings": [asdict(one) for one in state.standings],
            "runs": self._runs,
            "costs": self._question.costs,
        }
        self._data["verdict"] = verdict(self._data)
        with writable(self._question.config.output_dir):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as file:
                json.dump(self._data, file, indent=1, allow_nan=False)

    def show(self) -> None:
        """Show the end of a race: its table, figure and verdict."""
        from normlab.report.figures import of_race, save

        if self._data["standings"]:
            print_table(plain_console(), *table(self._data))
            with writable(self._question.config.output_dir):
                save(of_race(self._data), self._path.parent)
            print()
        print(self._data["verdict"])
        print(f"see: {self._path}, {self._path.with_suffix('.png')}")
        print(f"see: python -m normlab.report {self._path.parent}", flush=True)


def say(line: str) -> None:
    print(f"race: {line}", file=sys.stderr, flush=True)
