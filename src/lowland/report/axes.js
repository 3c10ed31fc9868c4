// Axes that show the differences: their range, their ticks, and what a number looks like.
const DWARFS = 4; // a part is cut off where all spans so many times what the rest spans
const byValue = (a, b) => a - b;
const ends = (values) => [Math.min(...values), Math.max(...values)];
// What values span; without a share of them at an end, one at least, if these alone make it half as long again.
const core = (values, share, map) => {
  const sorted = [...values].sort(byValue);
  const last = sorted.length - 1;
  const [low, high] = [sorted[0], sorted[last]];
  const spared = last < 9 ? 0 : Math.max(1, Math.floor(share * last));
  const [a, b] = [sorted[spared], sorted[last - spared]];
  const half = (map(b) - map(a)) / 2;
  return b > a ? [map(a) - map(low) > half ? a : low, map(high) - map(b) > half ? b : high] : [low, high];
};
const heights = (curve) => curve.flatMap(([, ...ys]) => ys);

// The values of a curve once a third of its axis is over.
const later = (curve, mapX) => {
  const [first, last] = [mapX(curve[0][0]), mapX(curve.at(-1)[0])];
  const begun = first + (last - first) / 3;
  return heights(curve.filter(([x], i) => mapX(x) > begun || i === curve.length - 1));
};

// Without the curves that end so far above the others that these could not be told apart.
const withoutFar = (curves, spanOf, map) => {
  const found = curves.map((curve) => ({ curve, span: spanOf(curve).map(map) }));
  found.sort((a, b) => a.span[1] - b.span[1]);
  const low = Math.min(...found.map(({ span }) => span[0]));
  while (found.length > 2) {
    const high = found.at(-2).span[1];
    if (high <= low || found.at(-1).span[1] - low <= DWARFS * (high - low)) break;
    found.pop();
  }
  return found.map(({ curve }) => curve);
};

// The range of a vertical axis, whether it is logarithmic, and what it leaves out.
const rangeOf = (curves, { mode, mapX, isTime }) => {
  const [lowest, highest] = ends(curves.flatMap(heights));
  const isPositive = lowest > 0;
  if (mode === "whole") return padded(lowest, highest, false, lowest, highest);
  if (mode === "log" && isPositive) return padded(lowest, highest, true, lowest, highest);
  const map = isPositive ? Math.log : (y) => y;
  const spanOf = (curve) => core(isTime ? later(curve, mapX) : heights(curve), 0.05, map);
  const near = withoutFar(curves, spanOf, map);
  const values = near.flatMap(heights);
  const last = near.flatMap((curve) => curve.at(-1).slice(1)); // where curves end is what they came to
  const [low, high] = ends(values);
  if (isPositive && high > 10 * low) return padded(...ends([...core(values, 0.02, map), ...last]), true, lowest, highest);
  const [a, b] = ends([...near.flatMap(spanOf), ...last]);
  const isDwarfed = curves.length > 1 && b > a && high - low > DWARFS * (b - a);
  return padded(...(isDwarfed ? [a, b] : [low, high]), false, lowest, highest);
};
const padded = (low, high, log, lowest, highest) => {
  const said = [];
  if (highest > high) said.push(`cut above: up to ${short(highest)}`);
  if (lowest < low) said.push(`cut below: from ${short(lowest)}`);
  if (log) {
    const pad = Math.max((high / low) ** 0.05, 1.001);
    return { low: low / pad, high: high * pad, log, said: [...said, "logarithmic"] };
  }
  const pad = (high - low || Math.abs(high) || 1) * 0.05;
  return { low: low - pad, high: high + pad, log, said };
};

const short = (x) => {
  const size = Math.abs(x);
  return x !== 0 && (size < 1e-3 || size >= 1e6) ? x.toExponential(2) : String(Number(x.toPrecision(5)));
};
const scale = ({ low, high, log }, from, to) => {
  const map = log ? Math.log10 : (x) => x;
  const [a, b] = [map(low), map(high)];
  return (x) => from + ((map(x) - a) / (b - a || 1)) * (to - from);
};

// Places and labels of about `most` ticks; labels of one axis have the same decimals, so that none is ambiguous.
const ticks = ({ low, high, log }, most) => {
  if (log && high / low >= 100) return decades(low, high, most);
  if (log && high / low > 5) return mantissas(low, high).map((x) => ({ x, label: plain(x) }));
  const rough = (high - low) / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * unit).find((s) => s >= rough * 0.999);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const places = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) places.push(k * step);
  const largest = Math.max(...places.map(Math.abs));
  const exponent = digits > 5 || largest >= 1e6;
  const figures = Math.max(0, Math.floor(Math.log10(largest || 1)) - Math.floor(Math.log10(step) + 1e-9));
  return places.map((x) => ({ x, label: exponent ? x.toExponential(figures) : x.toFixed(digits) }));
};
const decades = (low, high, most) => {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const step = Math.max(1, Math.ceil((last - first) / most));
  const found = [];
  for (let power = first; power <= last; power += step) found.push({ x: 10 ** power, label: plain(10 ** power) });
  return found.length > 2 ? found : mantissas(low, high).map((x) => ({ x, label: plain(x) }));
};
const mantissas = (low, high) => {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    found.push(...[1, 2, 5].map((k) => k * 10 ** power).filter((x) => x >= low && x <= high));
  }
  return found;
};
const plain = (x) => (x >= 1e-3 && x < 1e6 ? String(Number(x.toPrecision(6))) : x.toExponential(0));
