"""What is printed about long work."""

import pytest

from normlab.console import show_loading


@pytest.mark.parametrize("step", [1, 7, 256])
def test_loading_is_said_past_each_tenth_however_large_the_steps_are(step, capsys):
    total = 100 * step + 3
    for _ in range(2):  # the same folder again begins anew
        for done in [*range(step, total, step), total]:
            show_loading("decoding photos", done, total)
        lines = capsys.readouterr().err.splitlines()
        shown = [int(line.removeprefix("decoding photos: ").removesuffix(f"/{total}")) for line in lines]
        assert [done * 10 // total for done in shown] == list(range(1, 11))
