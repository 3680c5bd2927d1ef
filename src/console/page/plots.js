// Plots with axes, by uPlot; colours of services.
import { state } from "./state.js";

const PALETTE = ["#3f7fd9", "#1f9d73", "#e08a2e", "#9b5fd0", "#d64f78", "#2aa5bd", "#c9a91f", "#5f6fb0"];
export const OTHER_COLOR = "#8b93a3";

/// A colour that a service has on every page: by a hash of its name.
export function colorOf(service) {
  let hash = 0;
  for (const letter of service) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
  return PALETTE[hash % PALETTE.length];
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axis(values, more = {}) {
  return { stroke: () => css("--dim"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line"), size: 4 },
    font: "11px system-ui, sans-serif", values, ...more };
}

const pad = (n) => String(n).padStart(2, "0");

/// Labels of a time axis in the chosen zone: the date where the day changes or the step is a day.
function timeLabels(_, splits, __, ___, step) {
  let day = null;
  return splits.map((seconds) => {
    const date = new Date(seconds * 1000);
    const utc = state.tz === "utc";
    const [month, dayOf] = utc ? [date.getUTCMonth(), date.getUTCDate()] : [date.getMonth(), date.getDate()];
    const [hour, minute, second] = utc ? [date.getUTCHours(), date.getUTCMinutes(), date.getUTCSeconds()]
      : [date.getHours(), date.getMinutes(), date.getSeconds()];
    const isNewDay = day !== null && day !== dayOf;
    day = dayOf;
    if (step >= 86400 || (isNewDay && hour === 0 && minute === 0)) return `${pad(month + 1)}-${pad(dayOf)}`;
    return step < 60 ? `${pad(hour)}:${pad(minute)}:${pad(second)}` : `${pad(hour)}:${pad(minute)}`;
  });
}

export const timeAxis = () => axis(timeLabels, { space: 70, size: 28 });
export const valueAxis = (format) => axis((_, splits) => splits.map(format), { size: 52, space: 28 });

/// Keeps the width of a plot that of its box.
export function follows(plot, box) {
  const observer = new ResizeObserver(() => {
    if (box.clientWidth > 0 && box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: plot.height });
  });
  observer.observe(box);
  return () => { observer.disconnect(); plot.destroy(); };
}

/// The least span of a line plot, so that the first samples do not fill it.
const SPAN_MIN_S = 120;

/// A small line plot over time. Returns `{ update(times, values), destroy }`.
export function linePlot(box, { color, format, max, least = 1 }) {
  let shown = [];
  const plot = new window.uPlot({
    width: box.clientWidth || 300, height: 130, legend: { show: false }, padding: [8, 8, 0, 0],
    cursor: { points: { size: 6 }, drag: { x: false, y: false } },
    scales: {
      x: { range: () => {
        const end = shown.at(-1) ?? Date.now() / 1000;
        return [Math.min(shown[0] ?? end, end - SPAN_MIN_S), end];
      } },
      y: { range: (_, __, top) => [0, max ?? Math.max(least, (top || 0) * 1.1)] },
    },
    axes: [timeAxis(), valueAxis(format)],
    series: [{}, { stroke: color, width: 1.5, fill: `${color}22`, points: { show: false }, spanGaps: false }],
  }, [[], []], box);
  const stop = follows(plot, box);
  return { update: (times, values) => { shown = times; plot.setData([times, values]); }, destroy: stop };
}
