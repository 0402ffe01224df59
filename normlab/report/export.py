"""All points of a study in one file, for other programs."""

from pathlib import Path

from normlab.atomic import atomic_write
from normlab.config import ConfigError
from normlab.report.study import Study


def export(study: Study, path: Path) -> None:
    """One row per logged point: run, state, norm, seed, every swept key, step, and one column per metric.

    `path` ends in .csv or .parquet. Raises: ConfigError for another ending, or if it cannot be written.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--export {path} is neither .csv nor .parquet; give one of these endings.")
    keys = ["run", "state", "norm", "seed", *study.axes]
    about = study.runs[[key for key in keys if key in study.runs]]
    if path.suffix == ".parquet":
        # Parquet has no type for a key that is a number in one norm and a word in another.
        mixed = [key for key in about if about[key].dtype == object]
        about = about.astype(dict.fromkeys(mixed, str))
    points = about.merge(study.points.astype({"run": str}), on="run", how="right")
    try:
        with atomic_write(path, "wb") as file:
            if path.suffix == ".csv":
                points.to_csv(file, index=False)
            else:
                points.to_parquet(file, index=False)
    except ImportError:
        raise ConfigError(f"--export {path} needs pyarrow: pip install pyarrow, or give a .csv.") from None
    except OSError as error:
        raise ConfigError(f"--export {path} cannot be written: {error.strerror}.") from None
