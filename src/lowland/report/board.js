// Boards of curves: panels that share a legend, whose buttons toggle, and what is under the pointer.
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["none", "8 4", "2 3", "10 3 2 3", "5 2"];
const SHOWN = 24; // so many curves are shown at first
const make = (name, attributes, text) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const html = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const stroke = ({ color, dash }) => ({ stroke: `var(--c${color})`, "stroke-dasharray": DASHES[dash] });
const swatch = (entry) => {
  const svg = make("svg", { width: 28, height: 10, class: "swatch", "aria-hidden": "true" });
  svg.append(make("line", { x1: 0, x2: 28, y1: 5, y2: 5, ...stroke(entry) }));
  return svg;
};

// Exponential smoothing that does not lean on where it begins; a band is smoothed with its mean.
const smoothed = (points, weight) => {
  if (weight === 0) return points;
  let sums = points[0].slice(1).map(() => 0);
  return points.map(([x, ...ys], k) => {
    sums = sums.map((sum, i) => weight * sum + (1 - weight) * ys[i]);
    return [x, ...sums.map((sum) => sum / (1 - weight ** (k + 1)))];
  });
};

const board = (place, data) => {
  const state = { view: data.views[0], shown: new Set(), weight: 0, mode: "auto", at: null };
  const grid = html("div", { className: "panels" });
  const legend = html("ul", { className: "legend" });
  const spoken = html("output", { className: "spoken" });
  const more = html("details", { className: "more" }, html("summary", { textContent: "More curves" }));
  const moreGrid = html("div", { className: "panels" });
  more.append(moreGrid);
  let panels = [];

  const start = (view) => {
    state.view = view;
    state.shown = new Set([...view.legend.keys()].slice(0, SHOWN));
    panels = view.panels.map((panel) => panelOf(panel, data, state, read));
    grid.replaceChildren(...panels.filter((one) => !one.more).map((one) => one.element));
    moreGrid.replaceChildren(...panels.filter((one) => one.more).map((one) => one.element));
    more.hidden = moreGrid.children.length === 0;
    legend.replaceChildren(...view.legend.map((entry, i) => item(entry, i)), all);
    update();
  };
  const update = () => {
    legend.querySelectorAll(".series").forEach((button, i) => {
      button.setAttribute("aria-pressed", String(state.shown.has(i)));
    });
    panels.forEach((panel) => panel.draw());
  };
  const read = (x, from) => {
    state.at = x;
    panels.forEach((panel) => panel.point(x, panel === from));
    if (from) spoken.textContent = from.said(x);
  };
  const isolate = (i) => {
    const isAlone = state.shown.size === 1 && state.shown.has(i);
    state.shown = new Set(isAlone ? state.view.legend.keys() : [i]);
    update();
  };
  const item = (entry, i) => {
    const name = html("button", { type: "button", className: "series" }, swatch(entry), entry.name);
    name.addEventListener("click", () => {
      if (!state.shown.delete(i)) state.shown.add(i);
      update();
    });
    name.addEventListener("dblclick", () => isolate(i));
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]]) {
      name.addEventListener(event, () => panels.forEach((panel) => panel.stress(on ? i : null)));
    }
    const only = html("button", { type: "button", className: "only", textContent: "only" });
    only.setAttribute("aria-label", `show only ${entry.name}, or all again`);
    only.addEventListener("click", () => isolate(i));
    return html("li", {}, name, state.view.legend.length > 1 ? only : "");
  };
  const everything = html("button", { type: "button", textContent: "show all" });
  everything.addEventListener("click", () => {
    state.shown = new Set(state.view.legend.keys());
    update();
  });
  const all = html("li", {}, everything);
  place.replaceChildren(controls(data, state, start, update), legend, grid, more, spoken);
  place.classList.add("drawn");
  start(state.view);
  new ResizeObserver(() => panels.forEach((panel) => panel.fit())).observe(place);
  more.addEventListener("toggle", () => panels.forEach((panel) => panel.draw()));
};

const controls = (data, state, start, update) => {
  const row = html("div", { className: "controls" });
  if (data.views.length > 1) {
    const buttons = data.views.map((view) => {
      const button = html("button", { type: "button", textContent: view.name });
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        start(view);
      });
      button.setAttribute("aria-pressed", String(view === state.view));
      return button;
    });
    const group = html("div", { className: "views" }, ...buttons);
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "what a curve is");
    row.append(group);
  }
  const value = html("output", { textContent: "off" });
  const slider = html("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: 0, className: "smoothing" });
  slider.addEventListener("input", () => {
    state.weight = Number(slider.value);
    value.textContent = state.weight ? state.weight.toFixed(2) : "off";
    update();
  });
  const names = { auto: "show the differences", whole: "whole range", log: "logarithmic" };
  const choices = Object.entries(names).map(([key, text]) => html("option", { value: key, textContent: text }));
  const axis = html("select", {}, ...choices);
  axis.addEventListener("change", () => {
    state.mode = axis.value;
    update();
  });
  row.append(html("label", {}, "smoothing ", slider, value), html("label", {}, "vertical axis ", axis));
  return row;
};
