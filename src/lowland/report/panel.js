// One panel of a board: it draws its curves, and reads off their values at one place.
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 10, 8, 34];
const [LISTED, LONG] = [40, 10]; // values beside the pointer at most, and from when on in two columns
let clips = 0;

const panelOf = (panel, data, state, read) => {
  const title = html("p", { className: "panel-title" });
  const tip = html("div", { className: "tip", hidden: true });
  const element = html("div", { className: "panel", tabIndex: 0 }, title, tip);
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", `${panel.y} over ${data.x}: left and right arrows read off values`);
  const mapX = data.logX ? Math.log10 : (x) => x;
  const series = panel.series.map((one) => ({ ...one, points: one.points.filter(([x]) => !data.logX || x > 0) }));
  const clip = `clip-${(clips += 1)}`;
  let [svg, cursor, lines, X, width, drawn] = [null, null, [], null, 0, []];

  const draw = () => {
    width = element.clientWidth || 560;
    const height = Math.round(Math.min(300, Math.max(200, 0.55 * width)));
    const visible = series.filter((one) => state.shown.has(one.of) && one.points.length > 0);
    drawn = visible.map((one) => ({ ...one, line: smoothed(one.points, state.weight), look: state.view.legend[one.of] }));
    svg?.remove();
    svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", class: "plot" });
    title.replaceChildren(html("strong", { textContent: panel.y }));
    element.append(svg);
    tip.hidden = true;
    if (drawn.length === 0) return;
    const xs = ends(drawn.flatMap((one) => one.points.map(([x]) => x)));
    const isTime = data.x !== "t";
    const range = rangeOf(drawn.map((one) => one.points), { mode: state.mode, mapX, isTime });
    title.append(html("span", { className: "said", textContent: range.said.join("; ") }));
    const across = { low: xs[0], high: xs[1], log: data.logX };
    X = scale(across, LEFT, width - RIGHT);
    const Y = scale(range, height - BOTTOM, TOP);
    frame(svg, { across, range, X, Y, width, height, x: data.x });
    const box = make("clipPath", { id: clip });
    box.append(make("rect", { x: LEFT - 2, y: TOP - 2, width: width - LEFT - RIGHT + 4, height: height - TOP - BOTTOM + 4 }));
    const inside = make("g", { "clip-path": `url(#${clip})` });
    lines = drawn.map((one) => curve(one, X, Y, range.log, state.weight > 0));
    inside.append(...lines);
    cursor = make("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
    svg.append(box, inside, cursor);
    svg.addEventListener("pointermove", (event) => {
      const outer = svg.getBoundingClientRect();
      read(nearest(((event.clientX - outer.left) / outer.width) * width), self);
    });
    svg.addEventListener("pointerleave", () => read(null, null));
  };
  const grid = () => [...new Set(drawn.flatMap((one) => one.points.map(([x]) => x)))].sort(byValue);
  const nearest = (where) => grid().reduce((best, x) => (Math.abs(X(x) - where) < Math.abs(X(best) - where) ? x : best));
  const values = (x) => {
    const found = drawn.map((one) => {
      const k = one.points.findIndex((point) => point[0] === x);
      return k < 0 ? null : { look: one.look, raw: one.points[k], line: one.line[k] };
    });
    return found.filter(Boolean).sort((a, b) => b.line[1] - a.line[1]);
  };
  const text = ({ raw, line }) => {
    const band = raw.length > 2 ? ` (${short(raw[2])} to ${short(raw[3])})` : "";
    return state.weight ? `${short(line[1])} smoothed, ${short(raw[1])}${band}` : `${short(raw[1])}${band}`;
  };
  const point = (x, isHere) => {
    element.dataset.at = x ?? "";
    tip.hidden = !isHere || x === null;
    if (!cursor || drawn.length === 0) return;
    cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x === null) return;
    cursor.setAttribute("x1", X(x));
    cursor.setAttribute("x2", X(x));
    if (!isHere) return;
    const found = values(x);
    const rows = found.slice(0, LISTED).map((one) => html("li", {}, swatch(one.look), `${one.look.name}: `, html("b", { textContent: text(one) })));
    if (found.length > LISTED) rows.push(html("li", { textContent: `and ${found.length - LISTED} more below` }));
    tip.classList.toggle("long", found.length > LONG);
    tip.replaceChildren(html("p", { textContent: `${data.x} ${short(x)}` }), html("ul", {}, ...rows));
    const share = (X(x) - LEFT) / (width - LEFT - RIGHT);
    tip.style.left = share < 0.5 ? `${X(x) + 10}px` : "auto";
    tip.style.right = share < 0.5 ? "auto" : `${width - X(x) + 10}px`;
  };
  const said = (x) => `${panel.y}, ${data.x} ${short(x)}: ${values(x).slice(0, LISTED).map((one) => `${one.look.name} ${text(one)}`).join("; ")}`;
  const stress = (of) => lines.forEach((line, i) => line.classList.toggle("faded", of !== null && drawn[i].of !== of && state.shown.has(of)));
  element.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") read(null, null);
    if (step === undefined || drawn.length === 0) return;
    event.preventDefault();
    const places = grid();
    const now = places.indexOf(state.at);
    read(places[Math.max(0, Math.min(places.length - 1, (now < 0 ? places.length - 1 : now) + step))], self);
  });
  element.addEventListener("blur", () => read(null, null));
  const fit = () => {
    if (element.clientWidth && element.clientWidth !== width) draw();
  };
  const self = { element, more: panel.more, draw, point, said, stress, fit };
  return self;
};

// Grid, ticks and their labels.
const frame = (svg, { across, range, X, Y, width, height, x }) => {
  for (const tick of ticks(across, Math.max(3, Math.min(8, width / 90)))) {
    svg.append(make("line", { class: "grid", x1: X(tick.x), x2: X(tick.x), y1: TOP, y2: height - BOTTOM }));
    svg.append(make("text", { x: X(tick.x), y: height - BOTTOM + 15, "text-anchor": "middle" }, tick.label));
  }
  for (const tick of ticks(range, 6)) {
    svg.append(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: Y(tick.x), y2: Y(tick.x) }));
    svg.append(make("text", { x: LEFT - 6, y: Y(tick.x) + 4, "text-anchor": "end" }, tick.label));
  }
  svg.append(make("text", { x: (LEFT + width - RIGHT) / 2, y: height - 3, "text-anchor": "middle" }, x));
};

// A line; behind it the unsmoothed one, and the band of a mean over seeds.
const curve = (one, X, Y, log, isSmoothed) => {
  const group = make("g", {});
  const usable = (points) => points.filter(([, ...ys]) => !log || ys.every((y) => y > 0));
  const path = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
  const [line, raw] = [usable(one.line), usable(one.points)];
  if (line.length && line[0].length > 2) {
    const band = [...line.map(([x, , low]) => [x, low]), ...line.map(([x, , , high]) => [x, high]).reverse()];
    group.append(make("path", { d: `${path(band)}Z`, class: "band", fill: `var(--c${one.look.color})` }));
  }
  if (isSmoothed) group.append(make("path", { d: path(raw), class: "raw", stroke: `var(--c${one.look.color})` }));
  group.append(make("path", { d: path(line), class: "line", ...stroke(one.look) }));
  if (line.length === 1) {
    group.append(make("circle", { cx: X(line[0][0]), cy: Y(line[0][1]), r: 3, fill: `var(--c${one.look.color})` }));
  }
  return group;
};
