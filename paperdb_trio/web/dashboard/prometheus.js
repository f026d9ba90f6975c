/**
 * Prometheus's text format, as the server's `/metrics` has it.
 *
 * Law: no I/O and no elements. Counters only grow; a smaller one is that of a server that has started anew.
 */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

export class Metrics {
  #samples = new Map(); // name → [{labels, value}]

  constructor(text) {
    for (const line of text.split("\n")) {
      const found = LINE.exec(line);
      if (found === null) continue;
      const labels = {};
      for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\[n"\\]/g, (all) => ESCAPED[all]);
      if (!this.#samples.has(found[1])) this.#samples.set(found[1], []);
      this.#samples.get(found[1]).push({ labels, value: Number(found[3]) });
    }
  }

  has(name) {
    return this.#samples.has(name);
  }

  all(name) {
    return this.#samples.get(name) ?? [];
  }

  /** The sum of those that have these labels, of all processes; null if there are none. */
  value(name, labels = {}) {
    const found = this.#with(name, labels);
    return found.length ? found.reduce((sum, value) => sum + value, 0) : null;
  }

  /** The greatest of them. */
  most(name, labels = {}) {
    const found = this.#with(name, labels);
    return found.length ? Math.max(...found) : null;
  }

  #with(name, labels) {
    const wanted = Object.entries(labels);
    return this.all(name).filter((sample) => wanted.every(([label, value]) => sample.labels[label] === value)).map(({ value }) => value);
  }

  /** The part of a histogram's observations since `before` that is below a quantile: its bound; null without any. */
  quantile(name, part, before) {
    const counts = new Map();
    for (const [metrics, sign] of [[this, 1], [before, -1]]) {
      for (const { labels, value } of metrics?.all(`${name}_bucket`) ?? []) {
        const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
        counts.set(bound, (counts.get(bound) ?? 0) + sign * value);
      }
    }
    const bounds = [...counts.keys()].sort((one, other) => one - other);
    const total = counts.get(Infinity) ?? 0;
    if (total <= 0) return null;
    let [low, below] = [0, 0];
    for (const bound of bounds) {
      const count = counts.get(bound);
      if (count >= part * total) return bound === Infinity ? low : low + ((bound - low) * (part * total - below)) / (count - below || 1);
      [low, below] = [bound, count];
    }
    return low;
  }
}

/** How much a counter has grown in a second. One that was not there before has begun at 0. */
export function rate(name, now, before, seconds, labels) {
  const young = now.value(name, labels);
  const old = before ? before.value(name, labels) ?? 0 : null;
  return young === null || old === null || young < old ? null : (young - old) / seconds;
}
