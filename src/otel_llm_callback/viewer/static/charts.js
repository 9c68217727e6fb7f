// The charts, which move as calls end.

import { ask, on, soon } from "./api.js";
import { el, replace, visible } from "./dom.js";
import * as f from "./format.js";

const WINDOWS = [
  [300, "5 minutes"],
  [900, "15 minutes"],
  [3600, "1 hour"],
  [21600, "6 hours"],
  [86400, "24 hours"],
];
const REFRESH_MS = 1000;
const STEADY_MS = 10_000;
const HEIGHT = 190;

const rate = (value) => (value === null || value === undefined ? f.NONE : `${f.short(value)}/s`);
const perHour = (value) => (value === null || value === undefined ? f.NONE : `${f.usd(value)}/h`);

const CHARTS = [
  { id: "calls", title: "Calls", show: rate, total: ({ calls }) => f.plural(calls, "call"), lines: (told) => [["calls", told.calls]], fills: true, zero: true },
  { id: "errors", title: "Errors by type", show: rate, total: ({ errors }) => f.plural(errors, "error"), lines: (told) => Object.entries(told.errors), zero: true, empty: "no errors" },
  { id: "latency", title: "Latency", show: f.ms, lines: (told) => percentiles(told.latency) },
  { id: "first-chunk", title: "Time to first chunk", show: f.ms, lines: (told) => percentiles(told.first_chunk) },
  { id: "tokens", title: "Tokens per second", show: rate, lines: (told) => [["input", told.input_tokens], ["output", told.output_tokens]] },
  { id: "cost", title: "Cost per hour", show: perHour, total: ({ cost_usd: cost }) => f.usd(cost), lines: (told) => [["cost", told.cost_per_hour]], fills: true, empty: "no call reported a cost" },
];

function percentiles(told) {
  return Object.entries(told);
}

export async function showCharts({ main, signal, atEnd }) {
  const chosen = el("select", { "aria-label": "Time shown" }, WINDOWS.map(([value, label]) => el("option", { value, selected: value === 900 }, `last ${label}`)));
  const grid = el("div", { class: "charts" });
  replace(main, el("div", { class: "bar" }, el("h1", {}, "Charts"), chosen), grid);
  const drawn = CHARTS.map((chart) => new Chart(chart, grid));
  atEnd(() => drawn.forEach((chart) => chart.remove()));

  let told = null;
  const load = async () => {
    told = await ask(`/api/figures?window=${chosen.value}`, signal);
    drawn.forEach((chart) => chart.draw(told));
  };
  chosen.addEventListener("change", () => load().catch(() => null));
  const redraw = () => told && drawn.forEach((chart) => chart.draw(told, { anew: true }));
  const watcher = new ResizeObserver(redraw);
  watcher.observe(grid);
  atEnd(() => watcher.disconnect());
  document.addEventListener("theme", redraw);
  atEnd(() => document.removeEventListener("theme", redraw));
  await load();
  const loadSoon = soon(load, REFRESH_MS);
  atEnd(on("stored", loadSoon));
  atEnd(on("refresh", loadSoon));
  const steady = setInterval(loadSoon, STEADY_MS); // time goes on also when nothing arrives
  atEnd(() => clearInterval(steady));
}

class Chart {
  constructor(chart, grid) {
    this.chart = chart;
    this.place = el("div", { class: "plot", role: "img" });
    this.legend = el("p", { class: "legend" });
    this.table = el("details", {}, el("summary", {}, "as a table"));
    this.table.addEventListener("toggle", () => this.fillTable());
    this.figure = el("figure", { id: `chart-${chart.id}` }, el("figcaption", {}, chart.title), this.legend, this.place, this.table);
    grid.append(this.figure);
    this.names = "";
  }

  draw(told, { anew = false } = {}) {
    const lines = this.chart.lines(told).map(([name, values]) => [visible(name), values]);
    const isEmpty = !lines.some(([, values]) => values.some((value) => value !== null));
    this.told = { times: told.times, lines };
    const names = lines.map(([name]) => name).join("\n");
    if (anew || names !== this.names || !this.plot) {
      this.plot?.destroy();
      this.plot = this.make(lines);
      this.names = names;
    }
    this.plot.setData([told.times, ...lines.map(([, values]) => values)]);
    this.describe(lines, isEmpty || !lines.length, this.chart.total?.(told.totals));
    this.fillTable();
  }

  make(lines) {
    const probe = el("span", { hidden: true });
    this.place.append(probe);
    const color = (name) => {
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color; // as the theme has it: a canvas knows no variables
    };
    const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1 }, font: "11px system-ui" };
    const show = this.chart.show;
    const strokes = lines.map((_, at) => color(`--line-${(at % 6) + 1}`));
    probe.remove();
    return new uPlot(
      {
        width: Math.max(this.place.clientWidth, 200),
        height: HEIGHT,
        legend: { show: false },
        cursor: { y: false },
        scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
        axes: [{ ...axis }, { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => show(tick)) }],
        series: [
          {},
          ...lines.map(([name], at) => {
            const stroke = strokes[at];
            return { label: name, stroke, width: 2, spanGaps: false, points: { show: !this.chart.zero, size: 5, fill: stroke }, fill: this.chart.fills ? stroke.replace("rgb(", "rgba(").replace(")", ", 0.2)") : undefined };
          }),
        ],
      },
      [[0], ...lines.map(() => [null])],
      this.place,
    );
  }

  /** Say what is drawn: the sum over the time shown, which a point that has only begun cannot hide, and the latest. */
  describe(lines, isEmpty, total) {
    const latest = lines.map(([name, values]) => [name, values.findLast((value) => value !== null)]);
    const items = latest.map(([name, value], at) => el("span", { class: `key key-${(at % 6) + 1}` }, `${name} ${this.chart.show(value)}`));
    const sum = total ? el("strong", { class: "sum" }, total) : null;
    replace(this.legend, isEmpty ? (this.chart.empty ?? "no calls yet") : [sum, items]);
    const told = [total, ...latest.map(([name, value]) => `${name} ${this.chart.show(value)}`)].filter(Boolean).join(", ");
    this.place.setAttribute("aria-label", `${this.chart.title}: ${isEmpty ? "nothing" : told}`);
  }

  fillTable() {
    if (!this.table.open || !this.told) return;
    const { times, lines } = this.told;
    const shown = times.map((_, at) => at).filter((at) => lines.some(([, values]) => values[at]));
    const rows = shown.reverse().slice(0, 30).map((at) =>
      el("tr", {}, el("th", { scope: "row" }, f.time(times[at] * 1000)), lines.map(([, values]) => el("td", {}, this.chart.show(values[at])))),
    );
    this.table.querySelector("table")?.remove();
    this.table.append(el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), lines.map(([name]) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)));
  }

  remove() {
    this.plot?.destroy();
    this.figure.remove();
  }
}
