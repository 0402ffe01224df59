"use strict";
// Every name and value from a run becomes a text node, or goes through plain() into Plotly's labels.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["sendChartToCloud"], plotlyServerURL: "" };

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

const KINDS = ["mean", ...data.contrasts];
const curveTags = data.metrics.filter((tag) => data.runs.some((run) => run.curves[tag]));
const xKeys = data.x;

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
fill(at("x"), xKeys.concat(data.metrics), xKeys[0]);
fill(at("kind"), KINDS, "mean");
fill(at("curve"), curveTags, data.metric);

// A choice for every other swept key except the norms' own, which make lines: no mean mixes settings. Not every
// combination has runs, so the first one chosen has some, and changing one choice adapts the others.
function choices(place, redraw, drawn) {
  const axes = data.axes.filter((axis) => !axis.startsWith("norm."));
  const first = data.cells.find(drawn) ?? data.cells[0];
  const made = axes.map((axis) => {
    const label = element("label", axis + " "), select = element("select");
    select.dataset.axis = axis;
    fill(select, valuesOf(axis), first.at[axis] ?? null);
    select.addEventListener("change", () => { follow(axis); redraw(); });
    label.append(select);
    at(place).append(label);
    return { axis, label, select };
  });
  const match = (one, except) => made.every(({ axis, select }) => axis === except || (one.at[axis] ?? null) === chosen(select));
  const alike = (cell) => made.filter(({ axis, select }) => (cell.at[axis] ?? null) === chosen(select)).length;
  function follow(axis) {
    const shown = made.filter((one) => one.label.hidden).map((one) => one.axis)[0];
    if (data.cells.some((cell) => match(cell, shown))) return;
    const value = chosen(made.find((one) => one.axis === axis).select);
    const there = data.cells.filter((cell) => (cell.at[axis] ?? null) === value);
    const nearest = there.reduce((best, cell) => (alike(cell) > alike(best) ? cell : best));
    for (const one of made) one.select.selectedIndex = one.select.values.indexOf(nearest.at[one.axis] ?? null);
  }
  return {
    hide: (axis) => { made.forEach((one) => { one.label.hidden = one.axis === axis; }); if (made.length) follow(made[0].axis); },
    match,
  };
}
const hasMean = (cell) => cell.estimates[data.metric]?.[0];
const hasCurve = (cell) => data.runs.some((run) => run.series === cell.series && run.curves[chosen(at("curve"))] && data.axes.every((axis) => (run.at[axis] ?? null) === (cell.at[axis] ?? null)));
const facets = choices("facets", drawAgainst, hasMean), curveFacets = choices("curve-facets", drawCurves, hasCurve);
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

// A norm's own keys make lines, except the one that is the axis.
function seriesAgainst(one, x) {
  if (!x.startsWith("norm.")) return one.series;
  const own = data.axes.filter((axis) => axis.startsWith("norm.") && axis !== x && (one.at[axis] ?? null) !== null);
  return [one.norm, ...own.map((axis) => `${axis.slice(5)}=${one.at[axis]}`)].join(" ");
}

// The range of the means, extended on both sides by their spread or the length of the typical interval. An interval
// that is much wider would flatten all others; it is cut, with an arrow.
function limitsOf(means, singles, found, possible) {
  if (!means.length) return null;
  const halves = found.map(([mean, end]) => Math.abs(end - mean)).sort((a, b) => a - b);
  const least = Math.min(...means), most = Math.max(...means);
  const reach = Math.max(most - least, halves.length ? 2 * halves[Math.floor((halves.length - 1) / 2)] : 0);
  const ends = [...means, ...found.flatMap(([mean, end]) => [end, 2 * mean - end])];
  const low = Math.min(Math.max(Math.min(...ends), least - reach), ...singles);
  const high = Math.max(Math.min(Math.max(...ends), most + reach), ...singles);
  const margin = .06 * (high - low) || .05 * Math.abs(high) || 1;
  return [Math.max(low - margin, possible[0] ?? -Infinity), Math.min(high + margin, possible[1] ?? Infinity)];
}

function hoverOfCell(cell, metric, [n, mean, half, p], scale) {
  const value = scale.of(mean), width = half === null ? "" : ` ± ${show(Math.abs(scale.of(half) - scale.of(0)))}`;
  const states = Object.entries(cell.states).map(([state, count]) => `, ${count} ${state}`).join("");
  const where = Object.entries(cell.at).map(([axis, v]) => `${axis}=${v}`).join(", ");
  return plain(`${cell.series}; ${where}`) + `<br>${plain(scale.label)} ${show(value)}${width} (n=${n}${states})` +
    (p === undefined || p === null ? "" : `<br>p ${show(p)}, by Holm's method`) + (cell.nbs === null ? "" : `<br>NBS ${show(cell.nbs)}`);
}

function drawAgainst() {
  const metric = chosen(at("metric")), x = chosen(at("x")), byKey = xKeys.includes(x);
  const kind = at("kind").selectedIndex, difference = kind > 0, scale = scaleOf(metric, difference);
  facets.hide(x);
  const cells = data.cells.filter((cell) => facets.match(cell, byKey ? x : null));
  const estimateOf = (cell) => (difference ? cell.differences[kind - 1] : cell.estimates)[metric];
  const placeOf = (one) => one.at[x] ?? `without ${x}`;
  const names = [...new Set(cells.map((cell) => seriesAgainst(cell, x)))];
  const places = byKey ? [...new Set(cells.map(placeOf))].sort(compare) : [];
  const numeric = byKey && places.every((place) => typeof place === "number" && place > 0);
  const traces = [], means = [], singles = [], intervals = [];
  names.forEach((name, index) => {
    const mine = cells.filter((cell) => seriesAgainst(cell, x) === name).sort((a, b) => compare(a.at[x], b.at[x]));
    const [color, symbol] = data.styles[mine[0].norm];
    const nudge = numeric && places.length > 1 ? 1.03 ** (index - (names.length - 1) / 2) : 1;
    const xOf = (one) => byKey ? (numeric ? one.at[x] * nudge : String(placeOf(one))) : one.values[x];
    const common = { legendgroup: name, type: "scatter", marker: { color, symbol } };
    const found = mine.map((cell) => [cell, estimateOf(cell)]).filter(([, estimate]) => estimate && estimate[0]);
    const xOfFound = found.map(([cell]) => byKey ? xOf(cell) : cell.estimates[x][1]);
    means.push(...found.map(([, [, mean]]) => scale.of(mean)));
    found.forEach(([, [, mean, half]], i) => {
      if (half !== null) intervals.push({ mean: scale.of(mean), end: scale.of(mean + half), x: xOfFound[i], color, name });
    });
    traces.push({
      ...common, name: plain(name), mode: byKey ? "lines+markers" : "markers", line: { color, width: 2 },
      marker: { color, symbol, size: 10 },
      x: xOfFound,
      y: found.map(([, [, mean]]) => scale.of(mean)),
      error_y: { array: found.map(([, [, , half]]) => half === null ? 0 : Math.abs(scale.of(half) - scale.of(0))), color, thickness: 1.3, width: 4 },
      text: found.map(([cell, estimate]) => hoverOfCell(cell, metric, estimate, scale)), hoverinfo: "text",
    });
    const runs = data.runs.filter((run) => run.series && seriesAgainst(run, x) === name && facets.match(run, byKey ? x : null));
    const single = difference ? [] : runs.filter((run) => run.state === "finished" && run.values[metric] !== null);
    traces.push({
      ...common, name: plain(name), mode: "markers", showlegend: false, marker: { color, symbol, size: 5, opacity: .45 },
      x: single.map(xOf), y: single.map((run) => scale.of(run.values[metric])), customdata: single.map((run) => run.name),
      text: single.map((run) => `${plain(run.name)}<br>${show(scale.of(run.values[metric]))}`), hoverinfo: "text",
    });
    singles.push(...single.map((run) => scale.of(run.values[metric])));
    const gone = byKey ? runs.filter((run) => run.state === "diverged") : [];
    if (gone.length) traces.push({
      ...common, name: plain(name), mode: "markers", showlegend: false, yaxis: "y2", cliponaxis: false,
      marker: { color, symbol: "x-thin", size: 9, line: { color, width: 2 } },
      x: gone.map(xOf), y: gone.map(() => .985), customdata: gone.map((run) => run.name),
      text: gone.map((run) => `${plain(run.name)}<br>diverged`), hoverinfo: "text",
    });
  });
  const logarithmic = at("logy").checked;
  const possible = difference ? [null, null] : scale.label === metric ? data.possible[metric] : [0, 100];
  const limits = logarithmic ? null : limitsOf(means, singles, intervals.map(({ mean, end }) => [mean, end]), possible);
  for (const [place, symbol] of limits ? [[0, "triangle-down"], [1, "triangle-up"]] : []) {
    const cut = intervals.filter(({ mean, end }) => {
      const [low, high] = [end, 2 * mean - end].sort((a, b) => a - b);
      return place ? high > limits[1] : low < limits[0];
    });
    for (const { name, x, mean, end, color } of cut) traces.push({
      type: "scatter", mode: "markers", name: "cut", legendgroup: name, showlegend: false, cliponaxis: false,
      x: [x], y: [limits[place]], marker: { symbol, size: 9, color }, hoverinfo: "text",
      text: [`${plain(name)}: its interval goes on, ${show(mean)} ± ${show(Math.abs(end - mean))}`],
    });
  }
  const axis = byKey
    ? (numeric ? { type: "log", tickvals: places, ticktext: places.map(String) } : { type: "category", categoryarray: places.map(String) })
    : {};
  draw("against", traces, {
    xaxis: { ...axis, title: { text: plain(x === "batch_size" ? "batch size per rank" : x) }, zeroline: false },
    yaxis: { title: { text: plain(scale.label + (difference ? `, ${KINDS[kind]}` : "")) }, zeroline: difference, type: logarithmic ? "log" : "linear",
      uirevision: `${metric} ${kind} ${scale.label}`, ...(limits ? { range: limits } : { autorange: true }) },
    annotations: traces.some((trace) => trace.x.length) ? [] : [{ text: "nothing to show of this choice", showarrow: false, xref: "paper", yref: "paper", x: .5, y: .5 }],
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
  const states = data.states.filter((state) => data.cells.some((cell) => cell.states[state]));
  const columns = ["norm", ...data.axes, "NBS", "n", metric, "± 95%", ...data.contrasts.flatMap((label) => [label, "± 95%", "pairs", "p (Holm)"]), ...states];
  table(at("cells"), columns, data.cells.map((cell) => {
    const [n, mean, half] = cell.estimates[metric];
    const differences = cell.differences.flatMap((of) => (of[metric] ? [of[metric][1], of[metric][2] ?? "", of[metric][0], of[metric][3] ?? ""] : ["", "", "", ""]));
    const axes = data.axes.map((axis) => cell.at[axis] ?? "");
    return { cells: [cell.norm, ...axes, cell.nbs, n, mean, half ?? "", ...differences, ...states.map((state) => cell.states[state] ?? 0)] };
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

// --- made again -----------------------------------------------------------------------------------------------

// A page that `--watch` serves is loaded again when it has changed, with what was chosen in it.
const controls = () => [...document.querySelectorAll("form select, form input")].map((control) => {
  const name = control.id || `${control.closest("span").id} ${control.dataset.axis}`;
  return { control, name, key: { "select-one": "selectedIndex", checkbox: "checked" }[control.type] ?? "value" };
});

function keepChoices() {
  const held = ({ control, key }) => (key === "selectedIndex" ? control.selectedOptions[0]?.textContent : control[key]);
  sessionStorage.setItem("choices", JSON.stringify(Object.fromEntries(controls().map((one) => [one.name, held(one)]))));
}

function restoreChoices() {
  const kept = JSON.parse(sessionStorage.getItem("choices") ?? "{}");
  sessionStorage.removeItem("choices");
  for (const { control, name, key } of controls()) {
    if (!(name in kept)) continue;
    if (key !== "selectedIndex") control[key] = kept[name];
    else control.selectedIndex = Math.max(0, [...control.options].findIndex((one) => one.textContent === kept[name]));
  }
}

if (["127.0.0.1", "localhost"].includes(location.hostname)) {
  restoreChoices();
  let loaded = null;
  setInterval(async () => {
    const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" }).catch(() => null);
    const now = answer?.ok ? `${answer.headers.get("Last-Modified")} ${answer.headers.get("Content-Length")}` : null;
    if (loaded && now && now !== loaded) {
      keepChoices();
      location.reload();
    }
    loaded = now ?? loaded;
  }, 2000);
}

drawAll();
