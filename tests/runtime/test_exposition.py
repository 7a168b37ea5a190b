"""
L{usbip_server.runtime.exposition}.
"""

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.runtime.exposition import EventCounter, Histogram, Kind, Metric, Sample, page


class PageTests(SynchronousTestCase):
    """
    A page of metrics.
    """

    def test_escapes(self) -> None:
        r"""Backslashes, quotes and line feeds are escaped; a lone surrogate does no harm."""
        metric = Metric("x", Kind.GAUGE, 'a\\b\n"', [Sample(1, ('a\\b\n"\udc80',))], ("name",))
        self.assertEqual(
            page([metric]),
            b'# HELP x a\\\\b\\n"\n# TYPE x gauge\nx{name="a\\\\b\\n\\"\\udc80"} 1\n',
        )

    def test_numbers(self) -> None:
        """Whole numbers are written without a fraction, however large; others in full."""
        for value, shown in ((0, "0"), (2.0, "2"), (0.1, "0.1"), (2**60, str(2**60))):
            metric = Metric("x", Kind.GAUGE, "h", [Sample(value)])
            self.assertEqual(page([metric]).splitlines()[-1].decode(), f"x {shown}")

    def test_counter(self) -> None:
        """A counter counts by labels; one without labels begins at 0."""
        counter = EventCounter("x_total", "h", ("a", "b"))
        self.assertEqual(list(counter.metric().samples), [])
        for labels in (("1", "2"), ("1", "2"), ("1", "3")):
            counter.add(*labels)
        self.assertEqual(
            page([counter.metric()]).decode().splitlines()[2:],
            ['x_total{a="1",b="2"} 2', 'x_total{a="1",b="3"} 1'],
        )
        self.assertEqual(list(EventCounter("y_total", "h").metric().samples), [Sample(0)])

    def test_histogram(self) -> None:
        """Buckets are cumulative, and include their upper bounds."""
        histogram = Histogram("x_seconds", "h", "command", (0.5, 2))
        for value in (0.5, 0.6, 2, 3):
            histogram.observe(value, "attach")
        self.assertEqual(
            page([histogram]).decode().splitlines()[1:],
            [
                "# TYPE x_seconds histogram",
                'x_seconds_bucket{command="attach",le="0.5"} 1',
                'x_seconds_bucket{command="attach",le="2"} 3',
                'x_seconds_bucket{command="attach",le="+Inf"} 4',
                'x_seconds_sum{command="attach"} 6.1',
                'x_seconds_count{command="attach"} 4',
            ],
        )
