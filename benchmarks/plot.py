"""The figures against their goals, as an SVG file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from benchmarks.rows import Goal

WIDTH, ROW, TOP, LEFT, RIGHT = 1080, 30, 70, 400, 250
_COLOURS = {"goal": "#2e7d32", "pass": "#f9a825", "FAIL": "#c62828"}


def plot(figures: Sequence[tuple[Goal, Sequence[float]]], about: str) -> str:
    """A bar for each figure, as a share of its goal: the line at 1 is the goal, the tick is what is asked at least.

    A bar that reaches further to the right is better, also where less is better; the thin line shows its spread.
    """
    shown = [(goal, values) for goal, values in figures if values]
    height = TOP + ROW * len(shown) + 30
    span = WIDTH - LEFT - RIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<text x="16" y="26" font-size="17" font-weight="bold">eventbus, measured against its goals</text>',
        f'<text x="16" y="46" fill="#666" font-size="11">{escape(about)}</text>',
    ]
    for index, (goal, values) in enumerate(shown):
        middle = statistics.median(values)
        y = TOP + index * ROW
        colour = _COLOURS[goal.judge(middle)]
        low, high = sorted((_share(goal, min(values)), _share(goal, max(values))))
        tick = f"{LEFT + _share(goal, goal.least) * span / 2:.1f}"
        asked = f"(at {'most' if goal.less_is_better else 'least'} {goal.least:g}, goal {goal.goal:g})"
        out += [
            f'<text x="{LEFT - 12}" y="{y + 15}" text-anchor="end">{goal.row}  {escape(goal.text)}</text>',
            f'<rect x="{LEFT}" y="{y + 3}" width="{_share(goal, middle) * span / 2:.1f}" height="16" fill="{colour}" opacity="0.85"/>',
            f'<line x1="{LEFT + low * span / 2:.1f}" x2="{LEFT + high * span / 2:.1f}" y1="{y + 11}" y2="{y + 11}" stroke="black"/>',
            f'<line x1="{tick}" x2="{tick}" y1="{y}" y2="{y + 22}" stroke="#555" stroke-width="2"/>',
            f'<text x="{WIDTH - RIGHT + 12}" y="{y + 15}">{middle:.3g}{escape(goal.unit)} <tspan fill="#666">{asked}</tspan></text>',
        ]
    at = LEFT + span / 2
    out += [
        f'<line x1="{at}" x2="{at}" y1="{TOP - 8}" y2="{height - 26}" stroke="black" stroke-dasharray="4 3"/>',
        f'<text x="{at}" y="{height - 10}" text-anchor="middle" font-size="11">goal</text>',
        "</svg>",
    ]

    return "\n".join(out) + "\n"


def _share(goal: Goal, value: float) -> float:
    """The value as a share of its goal, more being better; what is twice as good or more is 2."""
    share = (goal.goal / value if value > 0 else 2.0) if goal.less_is_better else value / goal.goal

    return max(0.0, min(2.0, share))
