// The newest point of each metric that was sent.

import { ask } from "./api.js";
import { el, replace, visible } from "./dom.js";
import * as f from "./format.js";

const COLUMNS = ["Metric", "Attributes", "Service", "Count", "Sum or value", "Average", "At"];

export async function showMetrics({ main, signal }) {
  const body = el("tbody", { role: "rowgroup" });
  replace(
    main,
    el("h1", {}, "Metrics"),
    el("p", { class: "muted" }, "The newest point of each series that was sent here. Charts are drawn from spans."),
    el(
      "table",
      { class: "traces", role: "table", "aria-label": "Metric series" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, COLUMNS.map((name) => el("th", { scope: "col", role: "columnheader" }, name)))),
      body,
    ),
  );
  const { series } = await ask("/api/metrics", signal);
  if (!series.length) main.append(el("p", { class: "note" }, "No metrics have arrived yet."));
  replace(body, series.map(row));
}

function row(point) {
  const cells = [
    el("code", {}, visible(point.name)),
    attributes(point.attributes),
    visible(point.service),
    point.count === null ? f.NONE : f.count(point.count),
    figure(point.count === null ? point.value : point.total, point.unit),
    point.count ? figure(point.total / point.count, point.unit) : f.NONE,
    f.time(point.at_ms),
  ];
  return el("tr", { role: "row" }, cells.map((cell, at) => el("td", { role: "cell", "data-label": COLUMNS[at] }, el("div", {}, cell))));
}

function attributes(told) {
  return Object.entries(told ?? {}).map(([name, value]) => el("span", { class: "chip" }, visible(`${name.split(".").slice(-2).join(".")} ${value}`)));
}

function figure(value, unit) {
  if (value === null || value === undefined) return f.NONE;
  if (unit === "s") return f.ms(value * 1000);
  const shown = Number.isInteger(value) ? f.count(value) : value.toPrecision(4);
  return unit && !unit.startsWith("{") && unit !== "1" ? `${shown} ${visible(unit)}` : shown;
}
