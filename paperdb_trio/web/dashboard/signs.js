/**
 * The signs of health: where each comes from, when it is bad, and what to do then.
 *
 * Law: a table. `names` are measures, of which the first that the server shows is taken: those of the whole server for an admin
 * key, those of its database for a secret key. `of(name, {now, before, seconds})` gives a number for each line, null for one that
 * is not known, and `none` says what that means. `warn` and `bad` are bounds for the last of them; `below`: it is bad beneath them.
 */

import { rate } from "./measures.js";
import { bytes, number } from "./ui.js";

const perSecond = (value) => (value < 10 ? value.toLocaleString("en", { maximumFractionDigits: 1 }) : number(Math.round(value)));
export const milliseconds = (value) => `${(value * 1000).toLocaleString("en", { maximumFractionDigits: value < 0.01 ? 2 : 0 })} ms`;
export const percent = (value) => `${Math.round(100 * value)} %`;
const counter = (name, { now, before, seconds }) => [rate(name, now, before, seconds)];
const gauge = (labels) => (name, { now }) => [now.value(name, labels)];
const most = (name, { now }) => [Math.max(...now.all(name).map(({ value }) => value))];
const quantiles = (name, { now, before }) => [0.5, 0.99].map((part) => (before ? now.quantile(name, part, before) : null));

export const SIGNS = [
  {
    name: "Writes per second",
    names: ["paperdb_operations_total", "paperdb_database_log_head"],
    of: counter,
    unit: perSecond,
    what: "Inserts, updates and deletes that clients asked for.",
  },
  {
    name: "Events per second",
    names: ["paperdb_deliveries_total", "paperdb_database_deliveries_total"],
    of: counter,
    unit: perSecond,
    what: "Deliveries to subscribers that have everything.",
  },
  {
    name: "Requests per second",
    names: ["paperdb_http_requests_total", "paperdb_database_requests_total"],
    of: counter,
    unit: perSecond,
    what: "Over all routes.",
  },
  {
    name: "Commit, p50 / p99",
    names: ["paperdb_commit_duration_seconds"],
    of: quantiles,
    unit: milliseconds,
    warn: 0.1,
    bad: 0.5,
    what: "Time of a transaction, its fsync included. All writes wait for it.",
    todo: "The disk is slow. See what else writes to it, or move the data directory to a faster one. --durability process does not wait for it, and may lose the last seconds in a power cut.",
  },
  {
    name: "Loop delay, p50 / p99",
    names: ["paperdb_event_loop_delay_seconds"],
    of: quantiles,
    unit: milliseconds,
    warn: 0.05,
    bad: 0.25,
    what: "How late a task of the event loop wakes up. Every request and event waits that long.",
    todo: "The process has more to do than one core can. Look at the requests and at the slow queries; give keys a rate (--requests-per-second), or the server more processes.",
  },
  {
    name: "Live connections",
    names: ["paperdb_subscribers", "paperdb_database_subscribers"],
    of: gauge({}),
    unit: number,
    what: "WebSockets, event streams, and long polls that wait.",
  },
  {
    name: "Furthest behind",
    names: ["paperdb_subscriber_lag_changes", "paperdb_database_subscriber_lag_changes"],
    of: most,
    unit: number,
    warn: 1_000,
    bad: 100_000,
    what: "Changes that the slowest subscriber has not got yet.",
    todo: "A client reads slowly, or was away for long. The inspector shows it. It costs others nothing; beyond the change log it gets a gap.",
    link: ["inspector"],
  },
  {
    name: "Residual queries",
    names: ["paperdb_residual_queries"],
    of: gauge({}),
    unit: number,
    warn: 80,
    bad: 1_000,
    what: "Live queries that no index finds. Each change is held against all of them. Beyond --max-residual-queries (100) of a database, new ones are refused.",
    todo: "Add a condition to their filters that every match satisfies, such as equality on a field.",
  },
  {
    name: "Write-ahead log",
    names: ["paperdb_storage_bytes"],
    of: gauge({ part: "wal" }),
    unit: bytes,
    warn: 256 * 2 ** 20,
    bad: 2 ** 30,
    what: "What is not yet in the database file.",
    todo: "A read that lasts keeps it from being written back: a backup, an export, a query that looks at everything.",
  },
  {
    name: "Free on the disk",
    names: ["paperdb_storage_bytes"],
    of: gauge({ part: "free" }),
    unit: bytes,
    warn: 2 ** 30,
    bad: 128 * 2 ** 20,
    below: true,
    what: "When it is 0, writes are refused with 507. Reads and deletes go on.",
    todo: "Make room on the disk, delete documents, or keep less of the change log (--retention-age, --retention-count).",
  },
  {
    name: "Database file",
    names: ["paperdb_storage_bytes"],
    of: gauge({ part: "file" }),
    unit: bytes,
    what: "Documents, indexes and the change log.",
  },
  {
    name: "Unused in the file",
    names: ["paperdb_storage_unused_bytes"],
    of: gauge({}),
    unit: bytes,
    what: "Free pages, which new documents use first. The server gives them back in small steps; paperdb compact does so at once.",
  },
  {
    name: "Slow queries per second",
    names: ["paperdb_slow_queries_total"],
    of: counter,
    unit: perSecond,
    what: "Finds and counts that took --slow-query-ms or longer. The newest are listed below.",
  },
  {
    name: "Gets from memory",
    names: ["paperdb_cache_hits_total"],
    of: (_, { now, before, seconds }) => {
      const [hits, misses] = ["hits", "misses"].map((name) => rate(`paperdb_cache_${name}_total`, now, before, seconds));
      return [hits + misses > 0 ? hits / (hits + misses) : null];
    },
    unit: percent,
    what: "Documents that were in the cache.",
    todo: "Raise --cache-bytes, if gets are slow.",
  },
  {
    name: "Last backup",
    names: ["paperdb_backup_last_success_timestamp_seconds"],
    of: (name, { now }) => {
      const every = now.value("paperdb_backup_every_seconds");
      return [every > 0 ? Math.max(Date.now() / 1000 - now.value(name), 0) / every : null];
    },
    unit: (value) => (value < 1000 ? `${value.toFixed(1)} intervals ago` : "never"),
    none: "not set up",
    warn: 2,
    bad: 3,
    what: "Since the server last made a backup by itself, in intervals of --backup-every.",
    todo: "The log says why it failed. The server tries again each minute.",
  },
  {
    name: "Webhooks that fail",
    names: ["paperdb_webhooks"],
    of: (name, { now }) => [now.value(name, { state: "retrying" }) + now.value(name, { state: "dead" })],
    unit: number,
    warn: 0,
    bad: 9,
    what: "They try again, or gave up.",
    todo: "Access shows the last failure of each. A dead one goes on once somebody resumes it.",
    link: ["access", ["webhooks"]],
  },
];

/** good, warn, bad, or none if there is no bound. */
export function state({ warn, bad, below }, value) {
  if (warn === undefined || value === null || value === undefined) return "none";
  const isOver = (bound) => (below ? value < bound : value > bound);
  return isOver(bad) ? "bad" : isOver(warn) ? "warn" : "good";
}
