"""What a reader has to know besides the means: which runs are missing, failed, diverged or doubtful."""

from collections import Counter
from dataclasses import dataclass

import pandas as pd

from normlab.report.cells import plain_value, show
from normlab.report.contrasts import contrasts
from normlab.report.study import DEFAULTS, NOT_OF_IDENTITY, Study
from normlab.report.tables import NOT_FINISHED
from normlab.run_state import counted

ALWAYS_SAID = ("model", "data", "data.train_samples", "epochs", "batch_size", "world_size", "virtual_ranks")


@dataclass(frozen=True)
class Finding:
    """A statement about the study, with the names of the runs that it is about."""

    text: str
    names: tuple[str, ...] = ()


def findings(study: Study, metric: str, baseline: str | None = None) -> list[Finding]:
    """Counts, shared settings and the meaning of differences come first, followed by problems."""
    runs = study.runs
    made = [Finding(f"{len(runs)} runs: " + counted(runs["state"], ("finished", *NOT_FINISHED)))]
    finished = runs[runs["state"] == "finished"]
    made += [Finding(text) for text in _conditions(study, finished)]
    made += [Finding(text) for one in contrasts(study, baseline) if (text := one.explanation(metric))]
    for state in NOT_FINISHED:
        chosen = runs[runs["state"] == state]
        if len(chosen):
            named = [f"{run}: {detail}".removesuffix(": ") for run, detail in chosen[["run", "detail"]].values]
            made.append(Finding(f"{len(chosen)} {state}", tuple(named)))
    if study.race_problem:
        made.append(Finding(study.race_problem))
    if study.missing and study.race is None:  # a race trains as little of the grid as it can
        made.append(Finding(f"{len(study.missing)} missing from the grid", tuple(study.missing)))
    if study.duplicates:
        text = "runs of one cell and seed, which differ in something that is not in config.yaml, such as the data"
        made.append(Finding(f"{len(study.duplicates)} pairs of {text}", tuple(study.duplicates)))
    if study.unplaced:
        text = "runs that belong to no cell, since their norm, seed or a swept key is unknown"
        made.append(Finding(f"{len(study.unplaced)} {text}", tuple(study.unplaced)))
    without = finished[finished[metric].isna()]
    if len(without):
        made.append(Finding(f"{len(without)} finished without {metric}", tuple(without["run"])))
    problems = runs[runs["problem"] != ""]
    if len(problems):
        named = [f"{run}: {problem}" for run, problem in problems[["run", "problem"]].values]
        made.append(Finding(f"{len(problems)} with files that could not be read completely", tuple(named)))
    return made + _mixtures(study, finished)


def _mixtures(study: Study, finished: pd.DataFrame) -> list[Finding]:
    """Settings that differ between runs, so that the norms cannot simply be compared."""
    runs, made = study.runs, []
    if "results_version" in study.axes:
        versions = Counter(show(plain_value(v)) for v in runs["results_version"])
        words = ", ".join(f"{version} ({n} runs)" for version, n in sorted(versions.items()))
        made.append(
            Finding(f"results_version is mixed, {words}: the same settings give other results, kept apart")
        )
    for key in ("eval_split", "torch", "device_name", "device"):
        if key in finished and finished[key].nunique() > 1:
            words = ", ".join(f"{value} ({n} runs)" for value, n in finished[key].value_counts().items())
            made.append(Finding(f"{key} is mixed: {words}"))
    if "norm" not in runs:
        return made
    begun = runs[runs["model"].notna()] if "model" in runs else runs.iloc[:0]
    for key in study.settings:
        if key not in NOT_OF_IDENTITY and (lacking := _lacking(begun, key)).any():
            text = f"{key} is not in config.yaml of {lacking.sum()} runs, so its value there is unknown"
            made.append(Finding(text, tuple(begun["run"][lacking])))
        own = key.startswith("norm.") or key in {"norm", "seed"} or key in NOT_OF_IDENTITY
        if own or key in study.axes or key not in runs:
            continue
        if words := _differing(runs, key, "norm"):
            made.append(Finding(f"{key} differs between norms, which may explain their difference: {words}"))
    if "study" in study.axes:
        for key in study.settings:
            if key not in {"norm", "seed", *NOT_OF_IDENTITY, *study.axes} and (
                words := _differing(runs, key, "study")
            ):
                made.append(Finding(f"{key} differs between studies, which may explain their difference: {words}"))
    return made


def _differing(runs: pd.DataFrame, key: str, by: str) -> str:
    """The values of `key` for each value of `by`, if they differ; a norm's own key is compared within the norm."""
    runs = runs.dropna(subset=[by, key])
    norms = dict.fromkeys(runs["norm"]) if key.startswith("norm.") else [None]
    for norm in norms:
        first = (runs if norm is None else runs[runs["norm"] == norm]).groupby(by)[key].first()
        if first.nunique() > 1:
            return f"{norm}: " * bool(norm) + ", ".join(
                f"{name} {show(plain_value(v))}" for name, v in first.items()
            )
    return ""


def _lacking(begun: pd.DataFrame, key: str) -> "pd.Series[bool]":
    """Runs without a key that others of their kind have, such as runs of an older version of normlab."""
    section = key.split(".")[0] if "." in key else ""
    kind = begun[section] if section in begun else pd.Series("", index=begun.index)
    known = begun[key].notna()
    return ~known & known.groupby(kind).transform("any")


def _conditions(study: Study, finished: pd.DataFrame) -> list[str]:
    """What all finished runs share: model, data and length, and each setting that differs from its default."""
    shared = [
        key
        for key in study.settings
        if key not in {*NOT_OF_IDENTITY, "norm", "seed"} and _is_shared(finished, key)
    ]
    own = [key for key in shared if plain_value(finished[key].iloc[0]) not in DEFAULTS.get(key, ())]
    keys = [*ALWAYS_SAID, *own, "eval_split", "results_version", "device_name", "torch"]
    said = [
        f"{key} {show(plain_value(finished[key].iloc[0]))}"
        for key in dict.fromkeys(keys)
        if _is_shared(finished, key)
    ]
    made = ["all have " + "; ".join(said)] if said else []
    if "eval_split" in finished and (finished["eval_split"] == "test").any():
        made.append(
            "eval_split test: val/* is the test folder, so choosing a setting by it is choosing on test data"
        )
    return made


def _is_shared(finished: pd.DataFrame, key: str) -> bool:
    return key in finished and finished[key].nunique() == 1 and finished[key].notna().all()
