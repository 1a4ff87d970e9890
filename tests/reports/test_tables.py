from lightning_bbox.reports.tables import format_metrics


def test_the_model_stands_beside_predicting_the_mean() -> None:
    metrics = {"mae_px": 0.5, "mae_px_predict_mean": 2.5, "iou_before": 0.7, "iou_after": 0.9}
    first, error, overlap, row = format_metrics(metrics, [("class", "cell", 40, 0.25)]).splitlines()
    assert first.split() == ["test", "model", "predict", "the", "mean"]
    assert error.split() == ["error", "of", "the", "centre,", "px", "0.500", "2.500"]
    assert overlap.split() == ["IoU", "after", "(before:", "0.700)", "0.900", "-"]
    assert row.split() == ["class", "cell", "40", "draws", "0.250", "px"]
