"""What goes into a simulation and what comes out."""

from thinwire.drive._report import Launch, Report


def test_a_launch_may_start_at_one_time_or_at_each_ranks_own() -> None:
    assert Launch({}, at=3.0).at_rank(5) == 3.0
    assert [Launch({}, at={1: 2.0}).at_rank(rank) for rank in (0, 1)] == [0.0, 2.0]


def test_a_report_ends_with_its_last_rank() -> None:
    report = Report(ends={0: 1.0, 1: 4.0}, outcomes=[[{0: "a", 1: "b"}]])
    assert report.seconds == 4.0
    assert report.outcome == {0: "a", 1: "b"}
    assert Report().seconds == 0.0
