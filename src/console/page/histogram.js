// The counts over the chosen time, stacked by service, with axes, a hover and a drag that zooms.
import { h } from "./dom.js";
import { count, moment, short } from "./format.js";
import { OTHER_COLOR, colorOf, follows, timeAxis, valueAxis } from "./plots.js";

const SERVICES_MAX = 7;
const BARS_MAX = 120;
const STEPS_S = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

/// Adds counts up by service, the largest first.
export function byService(counts) {
  const sums = new Map();
  for (const { service, count: n } of counts) sums.set(service, (sums.get(service) ?? 0) + n);
  return [...sums].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1));
}

/// Bars of at least `unit` seconds between two times, at most BARS_MAX: `{ starts, step, layers: [{ service, values }] }`.
export function bars(counts, from, to, unit) {
  const step = STEPS_S.find((s) => s >= unit && (to - from) / s <= BARS_MAX) ?? 86400;
  const first = Math.floor(from / step) * step;
  const starts = [];
  for (let at = first; at < to; at += step) starts.push(at);
  const services = byService(counts).map(([service]) => service);
  const shown = services.slice(0, SERVICES_MAX);
  const layers = shown.map((service) => ({ service, color: colorOf(service), values: starts.map(() => 0) }));
  if (services.length > shown.length) layers.push({ service: "other services", color: OTHER_COLOR, values: starts.map(() => 0) });
  for (const { start, service, count: n } of counts) {
    const at = Math.floor((start - first) / step);
    const layer = layers[shown.indexOf(service)] ?? layers.at(-1);
    if (at >= 0 && at < starts.length) layer.values[at] += n;
  }
  return { starts, step, layers };
}

/// Draws into `box`; `onZoom(from, to)` in seconds. Returns a function that removes the plot.
export function draw(box, { starts, step, layers }, range, onZoom) {
  const tip = h("div", { class: "tip", hidden: true });
  // Each layer is drawn over the sum of itself and those that follow, so the first is on top.
  const sums = layers.map(() => []);
  starts.forEach((_, at) => {
    let sum = 0;
    for (let nth = layers.length - 1; nth >= 0; nth -= 1) sums[nth][at] = sum += layers[nth].values[at];
  });
  const showTip = (plot) => {
    const { idx: at, left } = plot.cursor;
    if (at == null || left < 0) { tip.hidden = true; return; }
    tip.replaceChildren(h("b", {}, `${moment(starts[at] * 1000)}, ${step < 3600 ? `${step / 60} min` : `${step / 3600} h`}`),
      ...layers.filter((layer) => layer.values[at]).map((layer) => {
        const dot = h("i", { class: "dot" });
        dot.style.setProperty("--color", layer.color);
        return h("span", {}, dot, layer.service, h("em", {}, count(layer.values[at])));
      }));
    tip.hidden = false;
    tip.style.setProperty("left", `${Math.min(left + 64, box.clientWidth - tip.offsetWidth - 4)}px`);
  };
  const plot = new window.uPlot({
    width: box.clientWidth || 600, height: 150, legend: { show: false }, padding: [8, 8, 0, 0],
    cursor: { points: { show: false }, drag: { x: true, y: false, setScale: false } },
    scales: { x: { range: () => range }, y: { range: (_, __, top) => [0, Math.max(1, (top || 0) * 1.05)] } },
    axes: [timeAxis(), valueAxis(short)],
    series: [{}, ...layers.map((layer) => ({ stroke: layer.color, fill: layer.color, width: 0, points: { show: false },
      paths: window.uPlot.paths.bars({ size: [0.9, 80], align: 1 }) }))],
    hooks: {
      setCursor: [showTip],
      setSelect: [(self) => {
        if (self.select.width < 4) return;
        const [from, to] = [self.select.left, self.select.left + self.select.width].map((px) => self.posToVal(px, "x"));
        self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        onZoom(from, to);
      }],
    },
  }, [starts, ...sums], box);
  box.append(tip);
  return follows(plot, box);
}
