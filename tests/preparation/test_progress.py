"""What a run tells of its way."""

import multiprocessing
import time

from mg3d.preparation.progress import count, new_tally, rate_line, share, telling


def test_a_rate_line_tells_speed_and_time_left():
    assert rate_line(50, 200, 10_000_000_000, 20.0) == "50 of 200 volumes, 2.5 volumes/s, 500 MB/s, 0:01:00 left"
    assert rate_line(0, 200, 0, 20.0).endswith("unknown left")


def test_lines_come_without_a_terminal(capsys):
    tally = new_tally(multiprocessing.get_context("spawn"))
    share(tally)
    count(5, 100)  # of an earlier part
    with telling("ct_rate", 10, tally, every_s=0.02):
        count(4, 2_000_000)
        for _ in range(500):
            if "4 of 10" in capsys.readouterr().out:
                break
            time.sleep(0.01)
        else:
            raise AssertionError("no line came")
    assert list(tally) == [9, 2_000_100]
