/**
 * A line over the last minutes.
 *
 * Law: asks nobody. What the picture says stands in words beside it: the number now, and the greatest.
 */

import { h, set, svg } from "./dom.js";

const [WIDTH, HEIGHT] = [300, 72];

/** So many samples fill the width at first; then it holds all that there are. */
const LEAST = 30;

/** `show(series, words, scale)`: arrays of numbers, oldest first; null is a gap. `words` are read instead of the picture. */
export function chart() {
  const lines = [];
  const top = h("span", { class: "top-value" });
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const element = h("figure", { class: "plot" }, top, picture);

  function line(at) {
    if (lines[at] === undefined) {
      const area = at === 0 && svg("path", { class: "area" });
      lines[at] = { path: svg("path", { class: `line-${at}` }), area };
      if (area) picture.append(area);
      picture.append(lines[at].path);
    }
    return lines[at];
  }

  function show(series, words, scale) {
    const most = Math.max(...series.flat().filter((value) => value !== null), 0);
    const full = most > 0 ? most : 1;
    top.textContent = series.flat().some((value) => value !== null) ? scale(most) : "";
    set(picture, "aria-label", words);
    for (const [at, samples] of series.entries()) {
      const length = Math.max(LEAST, samples.length);
      const points = samples.map((value, index) => {
        const x = WIDTH * ((index + length - samples.length) / (length - 1));
        return value === null ? null : [x.toFixed(1), (HEIGHT - 2 - ((HEIGHT - 6) * value) / full).toFixed(1)];
      });
      const runs = split(points);
      const { path, area } = line(at);
      set(path, "d", runs.map((run) => `M${run.join("L")}`).join(""));
      if (area) set(area, "d", runs.map((run) => `M${run[0][0]},${HEIGHT}L${run.join("L")}L${run.at(-1)[0]},${HEIGHT}Z`).join(""));
    }
  }

  return { element, show };
}

/** Points between gaps. */
function split(points) {
  const runs = [];
  let run = [];
  for (const point of [...points, null]) {
    if (point !== null) run.push(point);
    else if (run.length) {
      runs.push(run);
      run = [];
    }
  }
  return runs;
}
