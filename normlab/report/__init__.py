"""Runs -> tables, figures, a page, a TensorBoard comparison. Imports no torch.

    from normlab.report import load
    runs, points = load("runs/batch_size")      # two pandas DataFrames

python -m normlab.report runs/batch_size
"""

from normlab.report.reading import load

__all__ = ["load"]
