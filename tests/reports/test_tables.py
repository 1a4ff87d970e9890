import pytest

from lightning_bbox.reports.tables import format_metrics


def test_the_model_stands_beside_predicting_the_mean() -> None:
    metrics = {"mae_px": 0.5, "mae_px_predict_mean": 2.5, "iou_before": 0.7, "iou_after": 0.9}
    first, error, overlap, row = format_metrics(metrics, [("class", "cell", 40, 0.25)]).splitlines()
    assert first.split() == ["test", "model", "predict", "the", "mean"]
    assert error.split() == ["error", "of", "the", "centre,", "px", "0.500", "2.500"]
    assert overlap.split() == ["IoU", "after", "(before:", "0.700)", "0.900", "-"]
    assert row.split() == ["class", "cell", "40", "draws", "0.250", "px"]


@pytest.mark.parametrize(
    ("measured", "line"),
    [
        (
            {"groups": 8, "pictures": 8, "mae_px_low": 0.41, "mae_px_high": 0.59},
            "95 % over 8 pictures         0.410 to 0.590 px",
        ),
        (
            {"groups": 8, "pictures": 90, "mae_px_low": 0.41, "mae_px_high": 0.59},
            "95 % over 8 groups           0.410 to 0.590 px",
        ),
        (
            {"groups": 3, "pictures": 90},
            "95 % over 3 groups           too few groups for an interval",
        ),
    ],
)
def test_the_interval_says_what_it_is_over_or_that_there_are_too_few(measured, line):
    assert format_metrics({"mae_px": 0.5} | measured, []).splitlines()[-1] == line
