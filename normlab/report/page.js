"use strict";
// Every name and value from a run reaches the page as a text node, or through plain() into Plotly's labels.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["sendChartToCloud"], plotlyServerURL: "" };
const OTHER_STATES = ["diverged", "failed", "running", "queued", "waiting", "stale", "unreadable"];

function element(tag, text, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined && text !== null) made.textContent = text;
  return made;
}

// Plotly reads a little HTML in labels.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const isAccuracy = (metric) => metric.endsWith("accuracy");
const show = (value, digits = 4) => {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(1) : size >= 0.01 || size === 0 ? value.toFixed(digits) : value.toPrecision(3);
};

function fill(select, values, chosen, label = String) {
  select.replaceChildren(...values.map((value, place) => element("option", label(value), { value: String(place) })));
  select.selectedIndex = Math.max(0, values.indexOf(chosen));
  select.values = values;
}
const chosen = (select) => select.values[select.selectedIndex];

// --- what is chosen -------------------------------------------------------------------------------------------

const KINDS = ["mean"].concat(data.baseline ? [`difference to ${data.baseline}`] : []);
const curveTags = data.metrics.filter((tag) => data.runs.some((run) => run.curves[tag]));
const xKeys = data.axes.filter((axis) => axis !== "study").concat(data.axes.includes("batch_size") ? [] : ["batch_size"]);

function valuesOf(axis) {
  const found = new Map(data.cells.map((cell) => [JSON.stringify(cell.at[axis] ?? null), cell.at[axis] ?? null]));
  return [...found.values()].sort(compare);
}
function compare(a, b) {
  const numbers = typeof a === "number" && typeof b === "number";
  if (a === b) return 0;
  if (a === null || a === undefined || a === "") return 1;
  if (b === null || b === undefined || b === "") return -1;
  return numbers ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
}

fill(at("metric"), data.metrics, data.metric);
fill(at("x"), xKeys.concat(data.metrics), xKeys.includes("batch_size") ? "batch_size" : xKeys[0]);
fill(at("kind"), KINDS, "mean");
fill(at("curve"), curveTags, data.metric);

// One choice for every other swept key but a norm's own, which make lines: no mean is over unlike settings.
function choices(place, redraw) {
  const made = data.axes.filter((axis) => !axis.startsWith("norm.")).map((axis) => {
    const label = element("label", axis + " "), select = element("select");
    select.dataset.axis = axis;
    fill(select, valuesOf(axis), valuesOf(axis)[0]);
    select.addEventListener("change", redraw);
    label.append(select);
    at(place).append(label);
    return { axis, label, select };
  });
  return {
    hide: (axis) => made.forEach((one) => { one.label.hidden = one.axis === axis; }),
    match: (one, except) => made.every(({ axis, select }) => axis === except || (one.at[axis] ?? null) === chosen(select)),
  };
}
const facets = choices("facets", drawAgainst), curveFacets = choices("curve-facets", drawCurves);
for (const id of ["metric", "x", "kind", "error", "logy"]) at(id).addEventListener("change", drawAll);
for (const id of ["curve", "logx", "curvelogy"]) at(id).addEventListener("change", drawCurves);

// --- against a swept key --------------------------------------------------------------------------------------

function scaleOf(metric, difference = false) {
  const error = at("error").checked && isAccuracy(metric);
  if (!error) return { label: metric, of: (v) => v };
  return difference
    ? { label: `${metric}: error, percentage points`, of: (v) => -100 * v }
    : { label: `${metric}: error, %`, of: (v) => 100 * (1 - v) };
}

function hoverOfCell(cell, metric, [n, mean, half], scale) {
  const value = scale.of(mean), width = half === null ? "" : ` ± ${show(Math.abs(scale.of(half) - scale.of(0)))}`;
  const states = Object.entries(cell.states).map(([state, count]) => `, ${count} ${state}`).join("");
  const where = Object.entries(cell.at).map(([axis, v]) => `${axis}=${v}`).join(", ");
  return plain(`${cell.series}; ${where}`) + `<br>${plain(scale.label)} ${show(value)}${width} (n=${n}${states})` +
    (cell.nbs === null ? "" : `<br>NBS ${show(cell.nbs)}`);
}

function drawAgainst() {
  const metric = chosen(at("metric")), x = chosen(at("x")), byKey = xKeys.includes(x);
  const difference = at("kind").selectedIndex === 1, scale = scaleOf(metric, difference);
  facets.hide(x);
  const cells = data.cells.filter((cell) => facets.match(cell, byKey ? x : null));
  const names = [...new Set(cells.map((cell) => cell.series))];
  const places = byKey ? [...new Set(cells.map((cell) => cell.at[x] ?? "all"))].sort(compare) : [];
  const numeric = byKey && places.every((place) => typeof place === "number" && place > 0);
  const traces = [];
  names.forEach((name, index) => {
    const mine = cells.filter((cell) => cell.series === name).sort((a, b) => compare(a.at[x], b.at[x]));
    const [color, symbol] = data.styles[mine[0].norm];
    const nudge = numeric && places.length > 1 ? 1.03 ** (index - (names.length - 1) / 2) : 1;
    const xOf = (one) => byKey ? (numeric ? one.at[x] * nudge : String(one.at[x] ?? "all")) : one.values[x];
    const common = { legendgroup: name, type: "scatter", marker: { color, symbol } };
    const found = mine.map((cell) => [cell, (difference ? cell.differences : cell.estimates)[metric]])
      .filter(([, estimate]) => estimate && estimate[0]);
    traces.push({
      ...common, name: plain(name), mode: byKey ? "lines+markers" : "markers", line: { color, width: 2 },
      marker: { color, symbol, size: 10 },
      x: found.map(([cell]) => byKey ? xOf(cell) : cell.estimates[x][1]),
      y: found.map(([, [, mean]]) => scale.of(mean)),
      error_y: { array: found.map(([, [, , half]]) => half === null ? 0 : Math.abs(scale.of(half) - scale.of(0))), color, thickness: 1.3, width: 4 },
      text: found.map(([cell, estimate]) => hoverOfCell(cell, metric, estimate, scale)), hoverinfo: "text",
    });
    const runs = data.runs.filter((run) => run.series === name && facets.match(run, byKey ? x : null));
    const single = difference ? [] : runs.filter((run) => run.state === "finished" && run.values[metric] !== null);
    traces.push({
      ...common, name: plain(name), mode: "markers", showlegend: false, marker: { color, symbol, size: 5, opacity: .45 },
      x: single.map(xOf), y: single.map((run) => scale.of(run.values[metric])), customdata: single.map((run) => run.name),
      text: single.map((run) => `${plain(run.name)}<br>${show(scale.of(run.values[metric]))}`), hoverinfo: "text",
    });
    const gone = byKey ? runs.filter((run) => run.state === "diverged") : [];
    if (gone.length) traces.push({
      ...common, name: plain(name), mode: "markers", showlegend: false, yaxis: "y2", cliponaxis: false,
      marker: { color, symbol: "x-thin", size: 9, line: { color, width: 2 } },
      x: gone.map(xOf), y: gone.map(() => .985), customdata: gone.map((run) => run.name),
      text: gone.map((run) => `${plain(run.name)}<br>diverged`), hoverinfo: "text",
    });
  });
  const axis = byKey
    ? (numeric ? { type: "log", tickvals: places, ticktext: places.map(String) } : { type: "category", categoryarray: places.map(String) })
    : {};
  draw("against", traces, {
    xaxis: { ...axis, title: { text: plain(x === "batch_size" ? "batch size per rank" : x) }, zeroline: false },
    yaxis: { title: { text: plain(scale.label + (difference ? ` minus that of ${data.baseline}` : "")) }, zeroline: difference, type: at("logy").checked ? "log" : "linear" },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
  });
}

function draw(id, traces, layout) {
  const base = { margin: { l: 70, r: 20, t: 20, b: 50 }, hovermode: "closest", hoverlabel: { align: "left" },
    legend: { itemsizing: "constant" }, uirevision: id, font: { family: "system-ui, DejaVu Sans, sans-serif", size: 13 } };
  Plotly.react(id, traces, { ...base, ...layout }, CONFIG);
  const plot = at(id);
  if (!plot.listening) {
    plot.listening = true;
    plot.on("plotly_click", ({ points }) => points[0].customdata && showRun(points[0].customdata));
  }
}

// --- learning curves ------------------------------------------------------------------------------------------

function curveTrace(run, tag, scale, extra) {
  const [grid, values] = run.curves[tag], [color, symbol] = data.styles[run.norm] ?? ["#888", "circle"];
  return {
    type: "scatter", mode: values.length > 30 ? "lines" : "lines+markers", x: data.grids[grid], y: values.map(scale.of),
    line: { color, width: 1.3, dash: run.state === "finished" ? "solid" : "dot" }, marker: { color, symbol, size: 5 },
    customdata: values.map(() => run.name), hovertemplate: `${plain(run.name)}<br>%{x} samples: %{y:.5g}<extra></extra>`, ...extra,
  };
}

const SERIES = [...new Set(data.cells.map((cell) => cell.series))];

function drawCurves() {
  const tag = chosen(at("curve"));
  if (tag === undefined) return;
  const scale = scaleOf(tag), seen = new Set(), traces = [];
  for (const run of data.runs) {
    if (!run.series || !run.curves[tag] || !curveFacets.match(run, null)) continue;
    traces.push(curveTrace(run, tag, scale, { name: plain(run.series), legendgroup: run.series, showlegend: !seen.has(run.series), legendrank: SERIES.indexOf(run.series) }));
    seen.add(run.series);
  }
  draw("curves", traces, {
    xaxis: { title: { text: "samples seen" }, type: at("logx").checked ? "log" : "linear" },
    yaxis: { title: { text: plain(scale.label) }, type: at("curvelogy").checked ? "log" : "linear" },
  });
}

// --- tables ---------------------------------------------------------------------------------------------------

const EXACT = new Set([...data.axes, "seed", "NBS", "value"]);

function table(target, columns, rows, whenChosen) {
  const body = element("tbody"), head = element("tr");
  const order = target.order ?? { column: 0, descending: false };
  target.order = order;
  const paint = () => {
    const sorted = [...rows].sort((a, b) => compare(a.cells[order.column], b.cells[order.column]));
    if (order.descending) sorted.reverse();
    body.replaceChildren(...sorted.map((row) => {
      const line = element("tr", null, { className: row.className ?? "" });
      row.cells.forEach((cell, place) => {
        const text = EXACT.has(columns[place]) ? cell : show(cell);
        line.append(element("td", text, { className: typeof cell === "number" ? "number" : "" }));
      });
      if (whenChosen) line.addEventListener("click", () => whenChosen(row, line));
      return line;
    }));
    [...head.children].forEach((th, place) => th.setAttribute("aria-sort", place !== order.column ? "none" : order.descending ? "descending" : "ascending"));
  };
  columns.forEach((column, place) => {
    const numbers = rows.some((row) => typeof row.cells[place] === "number");
    const th = element("th", column, { className: numbers ? "number" : "" });
    th.addEventListener("click", () => {
      order.descending = order.column === place && !order.descending;
      order.column = place;
      paint();
    });
    head.append(th);
  });
  const top = element("thead");
  top.append(head);
  target.replaceChildren(top, body);
  paint();
}

function drawCells() {
  const metric = chosen(at("metric"));
  const states = OTHER_STATES.filter((state) => data.cells.some((cell) => cell.states[state]));
  const columns = ["norm", ...data.axes, "NBS", "n", metric, "± 95%"].concat(data.baseline ? [`minus ${data.baseline}`, "± 95%", "pairs"] : [], states);
  table(at("cells"), columns, data.cells.map((cell) => {
    const [n, mean, half] = cell.estimates[metric], pair = cell.differences[metric];
    const difference = data.baseline ? (pair ? [pair[1], pair[2], pair[0]] : ["", "", ""]) : [];
    const axes = data.axes.map((axis) => cell.at[axis] ?? "");
    return { cells: [cell.norm, ...axes, cell.nbs, n, mean, half ?? "", ...difference, ...states.map((state) => cell.states[state] ?? 0)] };
  }));
}

function drawRuns() {
  const metric = chosen(at("metric")), words = at("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = data.runs.map((run) => ({
    run, className: run.state,
    cells: [run.name, run.state, run.norm, ...data.axes.map((axis) => run.at[axis]), run.seed, run.values[metric], run.values.images_per_second ?? null, run.detail],
  })).filter(({ cells }) => { const text = cells.join(" ").toLowerCase(); return words.every((word) => text.includes(word)); });
  at("count").textContent = `${rows.length} of ${data.runs.length} runs`;
  table(at("runs"), ["run", "state", "norm", ...data.axes, "seed", metric, "images/s", ""], rows, (row, line) => {
    for (const other of at("runs").querySelectorAll(".chosen")) other.classList.remove("chosen");
    line.classList.add("chosen");
    showRun(row.run.name);
  });
}
at("find").addEventListener("input", drawRuns);

function showRun(name) {
  const run = data.runs.find((one) => one.name === name), tag = run.curves[chosen(at("curve"))] ? chosen(at("curve")) : Object.keys(run.curves)[0];
  at("run").hidden = false;
  at("run-name").textContent = run.name;
  at("run-state").textContent = [run.state, run.detail].filter(Boolean).join(": ");
  at("run-link").href = run.href;
  at("run-log").textContent = run.log || "no log.txt";
  const settings = Object.entries({ ...(Object.keys(run.settings).length ? data.common : {}), ...run.settings });
  table(at("run-settings"), ["key", "value"], settings.map((pair) => ({ cells: pair })));
  if (tag) {
    const scale = scaleOf(tag);
    draw("run-curve", [curveTrace(run, tag, scale, { showlegend: false })], { xaxis: { title: { text: "samples seen" } }, yaxis: { title: { text: plain(scale.label) } } });
  } else Plotly.purge("run-curve");
  at("run").scrollIntoView({ behavior: "instant", block: "nearest" });
}

// --- all together ---------------------------------------------------------------------------------------------

for (const { text, names } of data.findings) {
  const item = element("li");
  if (!names.length) item.textContent = text;
  else {
    const details = element("details"), list = element("ul");
    details.append(element("summary", text), list);
    for (const name of names) { const li = element("li"); li.append(element("code", name)); list.append(li); }
    item.append(details);
  }
  at("findings").append(item);
}
at("thinned").textContent = data.thinned ? `${data.thinned[0].toUpperCase()}${data.thinned.slice(1)}.` : "";
for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());

function drawAll() {
  drawAgainst();
  drawCurves();
  drawCells();
  drawRuns();
}
drawAll();
