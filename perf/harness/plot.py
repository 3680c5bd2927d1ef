"""Small SVG plots: lines over a logarithmic or named x axis, and bars."""

import math
from xml.sax.saxutils import escape

COLOURS = [
    "#4878a8",
    "#c8762c",
    "#5a9a5a",
    "#9a5aa0",
    "#888888",
    "#b04848",
    "#2a9d8f",
    "#6a51a3",
    "#c4a000",
    "#222222",
    "#e377c2",
]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 80, 230, 46, 56


def number(value):
    """A short label of a value: 5, 1,000, 2 M."""
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def text(x, y, content, anchor="middle", size=12, fill="#444"):
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(str(content))}</text>'


def line(x1, y1, x2, y2, stroke, style=""):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" {style}/>'


def frame(title, y_title, body, height=HEIGHT):
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            text(LEFT, 20, title, "start", 15, "#222"),
            text(LEFT, 38, y_title, "start"),
            *body,
            "</svg>",
            "",
        ]
    )


def powers(low, high):
    """The powers of ten around low to high."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**nth for nth in range(first, max(last, first + 1) + 1)]


def lines(title, x_title, y_title, series, log_x=False, log_y=False, limit=None):
    """`series` is a list of (name, [(x, y, low, high)]); `x` is a name unless `log_x`. `limit` is (y, label)."""
    names = list(dict.fromkeys(point[0] for _, points in series for point in points))
    values = [value for _, points in series for point in points for value in point[1:]]
    if log_y:
        ticks = powers(max(min(values), 1e-3), max(values))
    else:
        step = 10.0 ** math.floor(math.log10(max(values)))
        step = next(candidate for candidate in (step / 5, step / 2, step, 2 * step) if max(values) / candidate <= 6)
        ticks = [step * nth for nth in range(math.ceil(max(values) / step) + 1)]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    if log_x:
        x_ticks = powers(min(names), max(names))
        low_x, high_x = math.log10(min(names)), math.log10(max(names))

    def x(value):
        share = (math.log10(value) - low_x) / (high_x - low_x) if log_x else (names.index(value) + 0.5) / len(names)
        return LEFT + (right - LEFT) * share

    def y(value):
        if log_y:
            share = math.log10(max(value, ticks[0]) / ticks[0]) / math.log10(ticks[-1] / ticks[0])
        else:
            share = value / ticks[-1]
        return bottom - (bottom - TOP - 10) * share

    body = []
    for tick in ticks:
        body.append(line(LEFT, y(tick), right, y(tick), "#ddd"))
        body.append(text(LEFT - 6, y(tick) + 4, number(tick), "end"))
    for tick in [tick for tick in x_ticks if min(names) <= tick <= max(names)] if log_x else names:
        body.append(text(x(tick), bottom + 18, number(tick) if log_x else tick))
    body.append(text((LEFT + right) / 2, HEIGHT - 14, x_title))
    if limit:
        body.append(line(LEFT, y(limit[0]), right, y(limit[0]), "#c33", 'stroke-dasharray="6 4"'))
        body.append(text(right - 4, y(limit[0]) - 5, limit[1], "end", fill="#c33"))
    for nth, (name, points) in enumerate(series):
        colour = COLOURS[nth % len(COLOURS)]
        path = " ".join(f"{x(point[0]):.1f},{y(point[1]):.1f}" for point in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for at, median, low, high in points:
            body.append(line(x(at), y(low), x(at), y(high), colour, 'opacity="0.5" stroke-width="4"'))
            body.append(f'<circle cx="{x(at):.1f}" cy="{y(median):.1f}" r="3.5" fill="{colour}"/>')
        body.append(f'<rect x="{right + 14}" y="{TOP + 20 * nth}" width="12" height="12" fill="{colour}"/>')
        body.append(text(right + 32, TOP + 10 + 20 * nth, name, "start"))
    return frame(title, y_title, body)


def bars(title, unit, rows, parts):
    """Horizontal stacked bars. `rows` is a list of (name, [values], note); `parts` names the values."""
    step, left = 34, 210
    height = TOP + 30 + step * len(rows) + 30
    longest = max(sum(values) for _, values, _ in rows)
    scale = (WIDTH - left - 180) / longest
    body = []
    for nth, part in enumerate(parts if len(parts) > 1 else []):
        body.append(f'<rect x="{left + 150 * nth}" y="{TOP}" width="12" height="12" fill="{COLOURS[nth]}"/>')
        body.append(text(left + 150 * nth + 18, TOP + 10, part, "start"))
    for row, (name, values, note) in enumerate(rows):
        top, at = TOP + 26 + step * row, float(left)
        body.append(text(left - 8, top + 15, name, "end"))
        for nth, value in enumerate(values):
            body.append(f'<rect x="{at:.1f}" y="{top}" width="{value * scale:.1f}" height="22" fill="{COLOURS[nth]}"/>')
            at += value * scale
        body.append(text(at + 8, top + 15, note, "start"))
    return frame(title, unit, body, height)
