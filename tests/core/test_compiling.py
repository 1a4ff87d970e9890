import pytest

from lightning_bbox.core.compiling import default_precision


def test_the_environment_says_the_precision_where_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_BBOX_PRECISION", raising=False)
    own = default_precision()
    for asked in ("bf16-mixed", "32-true"):
        monkeypatch.setenv("LIGHTNING_BBOX_PRECISION", asked)
        assert default_precision() == asked
    monkeypatch.setenv("LIGHTNING_BBOX_PRECISION", "")
    assert default_precision() == own
