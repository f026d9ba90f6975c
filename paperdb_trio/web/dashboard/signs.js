/**
 * The signs of health: where each comes from, when it is bad, and what to do then.
 *
 * Law: a table. `of({now, before, seconds})` gives an array of numbers, one for each line; null for one that is not known.
 * `warn` and `bad` are bounds for the last of them; `below`: it is bad beneath them.
 */

import { rate } from "./prometheus.js";
import { bytes, number } from "./ui.js";

const perSecond = (value) => (value < 10 ? value.toLocaleString("en", { maximumFractionDigits: 1 }) : number(Math.round(value)));
const milliseconds = (value) => `${(value * 1000).toLocaleString("en", { maximumFractionDigits: value < 0.01 ? 2 : 0 })} ms`;
const percent = (value) => `${Math.round(100 * value)} %`;
const counter = (name) => ({ now, before, seconds }) => [rate(name, now, before, seconds)];
const gauge = (name, labels) => ({ now }) => [now.value(name, labels)];
const most = (name, labels) => ({ now }) => [now.most(name, labels)];
const quantiles = (name) => ({ now, before }) => [before && now.quantile(name, 0.5, before), before && now.quantile(name, 0.99, before)];

export const SIGNS = [
  {
    name: "Writes per second",
    of: counter("paperdb_operations_total"),
    unit: perSecond,
    what: "Inserts, updates and deletes that clients asked for.",
  },
  {
    name: "Events per second",
    of: counter("paperdb_deliveries_total"),
    unit: perSecond,
    what: "Deliveries to subscribers that have everything.",
  },
  {
    name: "Requests per second",
    of: counter("paperdb_http_requests_total"),
    unit: perSecond,
    what: "Over all routes.",
  },
  {
    name: "Commit time, p50 and p99",
    of: quantiles("paperdb_commit_duration_seconds"),
    unit: milliseconds,
    warn: 0.1,
    bad: 0.5,
    what: "Time of a transaction, its fsync included. All writes wait for it.",
    todo: "The disk is slow. See what else writes to it, or move the data directory to a faster one. --durability process does not wait for it, and may lose the last seconds in a power cut.",
  },
  {
    name: "Event loop delay, p50 and p99",
    of: quantiles("paperdb_event_loop_delay_seconds"),
    unit: milliseconds,
    warn: 0.05,
    bad: 0.25,
    what: "How late a task wakes up. Every request and event waits that long.",
    todo: "The process has more to do than one core can. Look at the requests and at the slow queries; give keys a rate (--requests-per-second), or the server more processes.",
  },
  {
    name: "Live connections",
    of: gauge("paperdb_live_connections"),
    unit: number,
    what: "WebSockets and event streams.",
  },
  {
    name: "Furthest behind",
    of: most("paperdb_subscriber_lag_changes"),
    unit: number,
    warn: 1_000,
    bad: 100_000,
    what: "Changes that the slowest subscriber has not got yet.",
    todo: "A client reads slowly, or was away for long. The inspector shows it. It costs others nothing; beyond the change log it gets a gap.",
    link: "inspector",
  },
  {
    name: "Residual queries",
    of: gauge("paperdb_residual_queries"),
    unit: number,
    warn: 100,
    bad: 1_000,
    what: "Live queries that no index finds. Each change is held against all of them.",
    todo: "Add a condition to their filters that every match satisfies, such as equality on a field.",
  },
  {
    name: "Write-ahead log",
    of: most("paperdb_storage_bytes", { part: "wal" }),
    unit: bytes,
    warn: 256 * 2 ** 20,
    bad: 2 ** 30,
    what: "What is not yet in the database file.",
    todo: "A read that lasts keeps it from being written back: a backup, an export, a query that looks at everything.",
  },
  {
    name: "Free on the disk",
    of: most("paperdb_storage_bytes", { part: "free" }),
    unit: bytes,
    warn: 2 ** 30,
    bad: 128 * 2 ** 20,
    below: true,
    what: "When it is 0, writes are refused with 507. Reads and deletes go on.",
    todo: "Make room on the disk, delete documents, or keep less of the change log (--retention-age, --retention-count).",
  },
  {
    name: "Database file",
    of: most("paperdb_storage_bytes", { part: "file" }),
    unit: bytes,
    what: "Documents, indexes and the change log.",
  },
  {
    name: "Gets from memory",
    of: ({ now, before, seconds }) => {
      const [hits, misses] = ["hits", "misses"].map((name) => rate(`paperdb_cache_${name}_total`, now, before, seconds));
      return [hits + misses > 0 ? hits / (hits + misses) : null];
    },
    unit: percent,
    what: "Documents that were in the cache.",
    todo: "Raise --cache-bytes, if gets are slow.",
  },
];

/** good, warn, bad, or none if there is no bound. */
export function state({ warn, bad, below }, value) {
  if (warn === undefined || value === null || value === undefined) return "none";
  const isOver = (bound) => (below ? value < bound : value > bound);
  return isOver(bad) ? "bad" : isOver(warn) ? "warn" : "good";
}
