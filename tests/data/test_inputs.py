"""What a model's inputs are normalised with: the training data's moments, or those that are given."""

import pytest
import torch

from tests.runs import EXACT, SEGMENTATION, Recorder, build

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GIVEN = [f"data.input_mean={MEAN}", f"data.input_std={STD}"]


def seen_in_a_run(tmp_path, *overrides):
    """The trainer, and every input of the model and its twins, in training and in all that evaluation does."""
    trainer = build(0, [*EXACT, f"output_dir={tmp_path}", "batch_size=16", "max_samples=32", *overrides])
    seen = []
    trainer.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    trainer.train(Recorder(), lambda: 0)
    return trainer, seen


@pytest.mark.parametrize("what", [["norm.precise_samples=32"], [*SEGMENTATION, "data.crop_size=32"]])
def test_given_moments_normalise_every_input_of_a_run(what, tmp_path):
    what = [*what, "norm.running_stats=precise", "data.augment=false"]
    own, inputs = seen_in_a_run(tmp_path, *what)
    given, others = seen_in_a_run(tmp_path, *what, *GIVEN)
    assert given.run.hash != own.run.hash
    assert len(inputs) == len(others) > 8
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    for x_BCHW, y_BCHW in zip(inputs, others, strict=True):
        pixels = x_BCHW * own.dataset.std_C.view(3, 1, 1) + own.dataset.mean_C.view(3, 1, 1)
        torch.testing.assert_close(y_BCHW, (pixels - mean) / std, rtol=1e-12, atol=1e-12)
