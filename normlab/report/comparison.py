"""Event files from which TensorBoard itself shows the metric against the batch size.

<folder>                the figures, the layout of Custom Scalars, the columns of HParams
<folder>/<norm>         scalars whose step is the batch size; mean curves, whose step is samples_seen
<folder>/hparams/...    every run's settings and final metrics

Written with tensorboard's own protocol buffers and record writer, without torch.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.summary.writer.record_writer import RecordWriter

from normlab.report.cells import Axis, Cell, describe, plain_value
from normlab.report.curves import mean_curve
from normlab.report.folders import replacing
from normlab.report.study import Study

AGAINST = "against_batch_size"
INTERVAL = "against_batch_size_95_percent"
CURVES = "mean_curves"
STATUS = {"finished": api_pb2.STATUS_SUCCESS, "running": api_pb2.STATUS_RUNNING}


def write_comparison(study: Study, metric: str, figures: Sequence[Path], folder: Path) -> None:
    """Write `folder`, in place of what an earlier report wrote there.

    Margin charts of Custom Scalars show mean and interval against the batch size; the others show the mean
    curves, by batch size and by norm. Other swept keys are part of the tags.
    Raises: OSError if it cannot be written; ConfigError if it holds anything that no report wrote.
    """
    ended = {*study.final_metrics, *study.measured}
    finals = [tag for tag in study.shown_metrics(metric) if tag in ended]
    with replacing(folder) as unfinished:
        _write(unfinished, [*_images(figures), _layout(study, metric, finals), _experiment(study, finals)])
        for norm in dict.fromkeys(cell.norm for cell in study.cells):
            cells = [cell for cell in study.cells if cell.norm == norm]
            _write(unfinished / _folder_name(norm), [*_against(cells, finals), *_curves(study, cells, metric)])
        for cell in study.cells:
            for run in cell.runs:
                _write(unfinished / "hparams" / _folder_name(run["run"]), _session(cell, run, finals))


def _write(folder: Path, values: Iterable[tuple[int, Summary.Value]]) -> None:
    """One event file with an event per (step, value)."""
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    with (folder / f"events.out.tfevents.{int(now):010d}.normlab.report").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for step, value in values:
            event = Event(wall_time=now, step=step, summary=Summary(value=[value]))
            writer.write(event.SerializeToString())


def _folder_name(name: str) -> str:
    """A valid folder name, whatever a foreign config.yaml calls its norm."""
    return re.sub(r"[^\w=+-]", "_", name)


def _scalar(tag: str, value: float) -> Summary.Value:
    return Summary.Value(tag=tag, simple_value=value)


def _words(cell: Cell, *left_out: Axis) -> str:
    """The settings of a cell that its tag has to mention."""
    return describe(cell.without(*left_out)).replace("/", "_")


def _tag(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _against(cells: Sequence[Cell], finals: Sequence[str]) -> Iterator[tuple[int, Summary.Value]]:
    """Each metric's mean and, in a separate group, the ends of its interval, by increasing batch size."""
    for cell in sorted(cells, key=_batch_size):
        for metric in finals:
            found = cell.estimate(metric)
            words = _words(cell, "batch_size")
            if found.n:
                yield _batch_size(cell), _scalar(_tag(AGAINST, metric, words), found.mean)
            if found.n > 1:
                yield _batch_size(cell), _scalar(_tag(INTERVAL, metric, words, "low"), found.low)
                yield _batch_size(cell), _scalar(_tag(INTERVAL, metric, words, "high"), found.high)


def _batch_size(cell: Cell) -> int:
    size = cell.values.get("batch_size", next((run.get("batch_size") for run in cell.runs), None))
    return int(size) if isinstance(size, int | float) else 0


def _curves(study: Study, cells: Sequence[Cell], metric: str) -> Iterator[tuple[int, Summary.Value]]:
    for tag in _curve_metrics(study, metric):
        for cell in cells:
            curve = mean_curve(study, cell, tag)
            if curve is not None:
                name = _curve_tag(tag, cell)
                for samples_seen, value in zip(curve.samples_seen, curve.mean, strict=True):
                    yield int(samples_seen), _scalar(name, value)


def _curve_metrics(study: Study, metric: str) -> list[str]:
    return [tag for tag in dict.fromkeys([metric, "train/loss"]) if tag in study.points]


def _curve_tag(tag: str, cell: Cell) -> str:
    """The norm is part of the tag as well as of the run, so that a chart can show a single norm."""
    return _tag(CURVES, tag, cell.norm, _words(cell) or "all")


def _images(figures: Sequence[Path]) -> Iterator[tuple[int, Summary.Value]]:
    for path in figures:
        png = path.read_bytes()
        width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))  # from the PNG's first chunk
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
        yield 0, Summary.Value(tag=f"figures/{path.stem}", image=image)


def _layout(study: Study, metric: str, finals: Sequence[str]) -> tuple[int, Summary.Value]:
    """Custom Scalars: intervals against the batch size, curves by all keys but the norm, curves by norm."""
    categories = []
    margins = []
    for name in finals:
        for words in dict.fromkeys(
            _words(cell, "batch_size") for cell in study.cells if cell.estimate(name).n > 1
        ):
            ends = {"lower": _tag(INTERVAL, name, words, "low"), "upper": _tag(INTERVAL, name, words, "high")}
            series = layout_pb2.MarginChartContent.Series(value=_tag(AGAINST, name, words), **ends)
            chart = layout_pb2.MarginChartContent(series=[series])
            margins.append(layout_pb2.Chart(title=f"{name} {words}".strip(), margin=chart))
    categories.append(layout_pb2.Category(title="against the batch size, 95 percent intervals", chart=margins))
    for tag in _curve_metrics(study, metric):
        by_place = [
            _lines(words or "all", f"^{CURVES}/{re.escape(tag)}/[^/]+/{re.escape(words or 'all')}$")
            for words in dict.fromkeys(_words(cell) for cell in study.cells)
        ]
        by_norm = [
            _lines(norm, f"^{CURVES}/{re.escape(tag)}/{re.escape(norm)}/")
            for norm in dict.fromkeys(cell.norm for cell in study.cells)
        ]
        swept = ", ".join(study.axes) or "norm"
        categories.append(layout_pb2.Category(title=f"{tag} over samples_seen, by {swept}", chart=by_place))
        categories.append(layout_pb2.Category(title=f"{tag} over samples_seen, by norm", chart=by_norm))
    text = layout_pb2.Layout(category=categories).SerializeToString()
    metadata = SummaryMetadata.FromString(custom_scalar.create_summary_metadata().SerializeToString())
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[text])
    return 0, Summary.Value(tag=custom_scalar.CONFIG_SUMMARY_TAG, metadata=metadata, tensor=tensor)


def _lines(title: str, tags: str) -> layout_pb2.Chart:
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[tags]))


def _experiment(study: Study, finals: Sequence[str]) -> tuple[int, Summary.Value]:
    """The columns of HParams: norm, swept keys and seed with the values they take, and the final metrics."""
    infos = []
    for key in ("norm", *study.axes, "seed"):
        values: list[Any] = list(
            dict.fromkeys(map(plain_value, study.runs.get(key, study.runs["run"][:0]).dropna()))
        )
        number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        info = api_pb2.HParamInfo(name=key, display_name=key)
        info.type = api_pb2.DATA_TYPE_FLOAT64 if number else api_pb2.DATA_TYPE_STRING
        info.domain_discrete.extend(sorted(values) if number else sorted(map(str, values)))
        infos.append(info)
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=tag) for tag in finals]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=time.time())
    return 0, _hparams(hparams.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment))


def _session(cell: Cell, run: dict[str, object], finals: Sequence[str]) -> Iterator[tuple[int, Summary.Value]]:
    """A run's line in HParams.

    Its group is named after its directory, like that of the run's own event file if the study is the logdir, so
    TensorBoard shows the two as one line.
    """
    start = plugin_data_pb2.SessionStartInfo(group_name=str(run["run"]), start_time_secs=time.time())
    for key, value in {"norm": cell.norm, **cell.values, "seed": run["seed"]}.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            start.hparams[key].number_value = value
        else:
            start.hparams[key].string_value = str(value)
    yield 0, _hparams(hparams.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start))
    seen = run.get("samples_seen", 0)
    for tag in finals:
        value = run.get(tag)
        if run["state"] == "finished" and isinstance(value, float | int) and np.isfinite(value):
            yield int(seen) if isinstance(seen, float | int) else 0, _scalar(tag, value)
    end = plugin_data_pb2.SessionEndInfo(status=STATUS.get(str(run["state"]), api_pb2.STATUS_FAILURE))
    yield 0, _hparams(hparams.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end))


def _hparams(tag: str, content: plugin_data_pb2.HParamsPluginData) -> Summary.Value:
    metadata = SummaryMetadata.FromString(hparams.create_summary_metadata(content).SerializeToString())
    return Summary.Value(tag=tag, metadata=metadata, tensor=hparams.NULL_TENSOR)
