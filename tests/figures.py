"""What every figure must satisfy, and how to find what was drawn."""

from __future__ import annotations

from matplotlib.axes import Axes


def line(axes: Axes, label: str):
    """The one line whose label starts so."""
    (found,) = [entry for entry in axes.lines if str(entry.get_label()).startswith(label)]
    return found


def assert_readable(axes: Axes, name: str = "") -> None:
    """Labels and a title, nothing cut off, nothing covered by the legend, no two names on each other."""
    figure = axes.get_figure(root=True)
    figure.draw_without_rendering()
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left"), name
    # savefig(bbox_inches="tight") widens the page for a long title, but never for the width of the axes
    assert axes.get_window_extent().width > 0.4 * figure.bbox.width, name
    if axes.get_legend() is not None:
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent()), name
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert len(texts) == len(set(texts)), (name, texts)
    page = figure.get_tightbbox().padded(1e-6)
    for text in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
        box = text.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, (name, text)
    assert_apart(axes, name)


def assert_apart(axes: Axes, name: str = "") -> None:
    """No two names inside the axes on each other, and no two numbers along an axis; of a figure that was drawn."""
    groups = [axes.texts]
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low, high = sorted(limits)
        groups.append([t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high])
    for texts in groups:
        shown = [text for text in texts if text.get_text() and text.get_visible()]
        boxes = [text.get_window_extent() for text in shown]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[i + 1 :]), (name, shown[i])
