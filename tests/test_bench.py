"""The ratio of two calls is what their durations say."""

from cam_helpers import bench


def test_ratios_are_medians_within_turns_and_leave_compiling_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def taking(*seconds):
        left = iter(seconds)

        def call():
            clock[0] += next(left)

        return call

    calls = {"one": taking(9, 1, 2, 1, 4, 1), "three": taking(9, 3, 6, 50, 12, 3)}
    assert bench.ratios(calls, turns=5) == {"one": 1, "three": 3}
