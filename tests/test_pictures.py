"""Pictures of predictions, asked for their size: what they show is not compared."""

import pytest
import torch

from normlab.pictures import LEGEND_COLUMNS, confusion, predictions


@pytest.mark.parametrize("rows", [2, 4])
def test_the_legend_has_room_for_each_of_its_rows(rows):
    def height(classes):
        palette_K3 = torch.zeros(classes, 3, dtype=torch.uint8)
        mask_HW = torch.zeros(4, 4, dtype=torch.int64)
        sample = torch.zeros(4, 4, 3, dtype=torch.uint8), mask_HW, mask_HW
        return len(predictions([sample], palette_K3, [f"class_{index}" for index in range(classes)]))

    assert height(LEGEND_COLUMNS * rows) - height(LEGEND_COLUMNS) == pytest.approx(22 * (rows - 1), abs=1)


def test_a_dollar_in_the_name_of_a_class_is_no_formula():
    classes, mask_HW = [r"US$ \frac$", "$_$"], torch.zeros(4, 4, dtype=torch.int64)
    sample = torch.zeros(4, 4, 3, dtype=torch.uint8), mask_HW, mask_HW
    assert predictions([sample], torch.zeros(2, 3, dtype=torch.uint8), classes).ndim == 3
    assert confusion(torch.ones(2, 2), classes).ndim == 3
