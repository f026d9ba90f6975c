/**
 * The server's measures, as `/admin.v1/health` has them: counters, gauges and histograms by their names in docs/operations.md.
 *
 * Law: no I/O and no elements. Counters only grow; a smaller one is that of a server that has started anew.
 */

export class Measures {
  #samples = new Map(); // name, with a histogram's suffix → [{labels, value}]

  constructor(measures) {
    for (const { name, samples } of measures) {
      for (const { labels, value, suffix } of samples) {
        const known = this.#samples.get(name + suffix);
        if (known === undefined) this.#samples.set(name + suffix, [{ labels, value }]);
        else known.push({ labels, value });
      }
    }
  }

  has(name) {
    return this.#samples.has(name) || this.#samples.has(`${name}_bucket`);
  }

  all(name) {
    return this.#samples.get(name) ?? [];
  }

  /** The sum of those that have these labels; null if there are none. */
  value(name, labels = {}) {
    const wanted = Object.entries(labels);
    const found = this.all(name).filter((sample) => wanted.every(([label, value]) => sample.labels[label] === value));
    return found.length ? found.reduce((sum, { value }) => sum + value, 0) : null;
  }

  /** The bound below which this part of a histogram's observations since `before` is; null if there were none. */
  quantile(name, part, before) {
    const counts = new Map();
    for (const [measures, sign] of [[this, 1], [before, -1]]) {
      for (const { labels, value } of measures.all(`${name}_bucket`)) {
        const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
        counts.set(bound, (counts.get(bound) ?? 0) + sign * value);
      }
    }
    const total = counts.get(Infinity) ?? 0;
    if (total <= 0) return null;
    let [low, below] = [0, 0];
    for (const bound of [...counts.keys()].sort((one, other) => one - other)) {
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
