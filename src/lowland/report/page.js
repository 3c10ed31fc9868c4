"use strict";
(() => {
  // Tables: a header's button sorts; the field above filters.
  const valueOf = (cell) => {
    const raw = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(raw);
    return raw !== "" && !Number.isNaN(number) ? number : raw;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      header.setAttribute("aria-sort", "none");
      header.querySelector("button").addEventListener("click", () => {
        const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        headers.forEach((other) => other.setAttribute("aria-sort", "none"));
        header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
        const body = table.tBodies[0];
        const keyed = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
        keyed.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : direction * compare(a, b)));
        body.append(...keyed.map(([, row]) => row));
      });
    });
  }
  for (const field of document.querySelectorAll("input[data-filters]")) {
    const table = document.getElementById(field.dataset.filters);
    const count = document.getElementById(`${table.id}-count`);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = `${shown} rows`;
    });
  }

  // Curves: the pointer, or the arrow keys, choose an x; the values there are listed below.
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const short = (x) => (x === 0 ? "0" : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5 ? x.toExponential(1) : String(Number(x.toPrecision(4))));
  const scale = (low, high, from, to, log) => {
    const map = log ? Math.log10 : (x) => x;
    const [a, b] = [map(low), map(high)];
    return (x) => from + ((map(x) - a) / (b - a || 1)) * (to - from);
  };
  const ticks = (low, high, log) => {
    if (log) {
      const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
      const step = Math.max(1, Math.ceil((last - first) / 6));
      const found = [];
      for (let power = first; power <= last; power += step) found.push(10 ** power);
      return found;
    }
    const rough = (high - low) / 5;
    const unit = 10 ** Math.floor(Math.log10(rough || 1));
    const step = [1, 2, 5, 10].map((k) => k * unit).find((s) => s >= rough) ?? unit;
    const found = [];
    for (let x = Math.ceil(low / step) * step; x <= high + 1e-9 * step; x += step) found.push(Number(x.toPrecision(12)));
    return found;
  };
  const [width, height, left, right, top, bottom] = [720, 300, 64, 12, 28, 40];
  const draw = (place, chart) => {
    const usable = chart.series.map((one) => ({
      ...one,
      points: one.points.filter(([x, y]) => (!chart.logX || x > 0) && (!chart.logY || y > 0)),
    }));
    const all = usable.flatMap((one) => one.points);
    if (all.length === 0) return;
    const [xs, ys] = [all.map((p) => p[0]), all.map((p) => p[1])];
    const sorted = [...ys].sort((a, b) => a - b);
    const highest = chart.logY ? Math.max(...ys) : sorted[Math.floor(0.98 * (sorted.length - 1))];
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), highest];
    const X = scale(x0, x1, left, width - right, chart.logX);
    const Y = scale(y0, y1, height - bottom, top, chart.logY);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    svg.append(make("text", { x: left, y: 16, "font-weight": 600 }, chart.y));
    svg.append(make("text", { x: width - right, y: height - 4, "text-anchor": "end" }, chart.x));
    for (const x of ticks(x0, x1, chart.logX)) {
      svg.append(make("line", { class: "grid", x1: X(x), x2: X(x), y1: top, y2: height - bottom }));
      svg.append(make("text", { x: X(x), y: height - bottom + 16, "text-anchor": "middle" }, short(x)));
    }
    for (const y of ticks(y0, y1, chart.logY)) {
      svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }));
      svg.append(make("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, short(y)));
    }
    const legend = document.createElement("ul");
    legend.setAttribute("aria-live", "polite");
    const items = usable.map((one, i) => {
      const d = one.points.map(([x, y], k) => `${k ? "L" : "M"}${X(x).toFixed(1)} ${Math.max(top, Y(y)).toFixed(1)}`).join("");
      svg.append(make("path", { d, stroke: `var(--c${i % 8})`, "stroke-dasharray": i >= 8 ? "6 3" : "none" }));
      const item = document.createElement("li");
      item.style.setProperty("--color", `var(--c${i % 8})`);
      item.textContent = one.name;
      legend.append(item);
      return item;
    });
    const cursor = make("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    svg.append(cursor);
    const grid = [...new Set(xs)].sort((a, b) => a - b);
    let at = grid.length - 1;
    const show = (index) => {
      at = Math.min(grid.length - 1, Math.max(0, index));
      const x = grid[at];
      cursor.setAttribute("visibility", "visible");
      cursor.setAttribute("x1", X(x));
      cursor.setAttribute("x2", X(x));
      usable.forEach((one, i) => {
        const point = one.points.find((p) => p[0] === x);
        items[i].textContent = point ? `${one.name}: ${short(point[1])}` : one.name;
      });
      place.dataset.at = x;
      label.textContent = `${chart.x} ${short(x)}`;
    };
    const label = document.createElement("output");
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const where = ((event.clientX - box.left) / box.width) * width;
      let nearest = 0;
      grid.forEach((x, i) => { if (Math.abs(X(x) - where) < Math.abs(X(grid[nearest]) - where)) nearest = i; });
      show(nearest);
    });
    place.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      show(at + step);
    });
    place.append(svg, label, legend);
  };
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  for (const place of document.querySelectorAll(".chart")) draw(place, data[place.dataset.figure][Number(place.dataset.index)]);
})();
