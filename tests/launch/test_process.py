"""Signals of one process."""

import signal

from launch.process import StopSignal


def test_a_signal_that_came_before_the_ranks_joined_counts_inside_too():
    with StopSignal() as early:
        signal.raise_signal(signal.SIGUSR2)
        with StopSignal() as late:
            assert late() == early() == signal.SIGUSR2
        assert early() == signal.SIGUSR2


def test_a_signal_inside_is_not_the_outer_ones_and_the_former_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as early:
        with StopSignal() as late:
            signal.raise_signal(signal.SIGTERM)
            assert late() == signal.SIGTERM
        assert early() == 0
    assert signal.getsignal(signal.SIGTERM) == before
