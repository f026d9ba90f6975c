/**
 * The part "Health": how the server is, while one watches, and what to do where it is not well.
 *
 * Law: the server counts (`/admin.v1/health`); here counts become rates. The last minutes are in this tab only.
 */

import { chart } from "./chart.js";
import { h, put, show } from "./dom.js";
import { Measures, rate } from "./measures.js";
import { SIGNS, milliseconds, percent, state } from "./signs.js";
import { every, showAgain, table } from "./table.js";
import { button, bytes, moment, number, say, sentence } from "./ui.js";

const LOOK_MS = 2000;
/** Looks that are kept: five minutes. */
const KEPT = 150;
/** A rate is over so many looks, so that it does not jump. */
const WINDOW = 5;
const BUSIEST = 10;
const WORDS = { good: "well", warn: "look at it", bad: "act", none: "" };

export function health({ session, address }) {
  const looks = []; // {at, measures}, oldest first
  const history = SIGNS.map(() => []);
  const cards = SIGNS.map((sign) => card(sign, address));
  const notice = h("div", { role: "status" });
  const facts = h("p", { class: "hint" });
  const slow = h("div", { class: "stack" });
  const busy = h("div", { class: "stack" });
  const each = h("div", { class: "stack" });

  async function look() {
    const about = await session.get("/admin.v1/health");
    const now = new Measures(about.measures);
    show(notice, trouble(now));
    tell(about, now);
    showSlow(about.slowQueries);
    looks.push({ at: performance.now(), measures: now, processes: about.processes });
    if (looks.length > KEPT) looks.shift();
    const before = looks.length > 1 ? looks.at(-1 - Math.min(WINDOW, looks.length - 1)) : null;
    const seen = { now, before: before?.measures, seconds: before && (looks.at(-1).at - before.at) / 1000 };
    for (const [at, sign] of SIGNS.entries()) {
      const name = sign.names.find((one) => now.has(one));
      cards[at].element.hidden = name === undefined;
      if (name === undefined) continue;
      history[at].push(sign.of(name, seen));
      if (history[at].length > KEPT) history[at].shift();
      cards[at].show(history[at]);
    }
    showBusy(seen);
    showProcesses(about.processes, before?.processes ?? [], seen.seconds);
  }

  function trouble(now) {
    if (now.value("paperdb_storage_full") > 0) return h("p", { class: "note bad" }, "The disk is full: writes are refused until there is room. Deletes are done.");
    const fault = now.all("paperdb_storage_fault").find(({ value }) => value > 0)?.labels.reason;
    return fault && h("p", { class: "note bad" }, `The database file is ${fault}: see the server's log, and restart it once the file is as it should be.`);
  }

  function tell({ at, version, processes, audience }, now) {
    const started = now.value("process_start_time_seconds");
    const built = now.value("paperdb_index_builds_total");
    const open = Object.entries(audience.byTransport).map(([name, count]) => `${number(count)} by ${name}`);
    const words = [`PaperDB ${version}`, started && `up for ${span(Date.parse(at) / 1000 - started)}`, processes.length > 1 && `${number(processes.length)} processes`,
      `${number(audience.live + audience.catchingUp)} listening${open.length ? ` (${open.join(", ")})` : ""}`,
      audience.catchingUp > 0 && `${number(audience.catchingUp)} of them catching up`, built > 0 && `${number(built)} indexes built`];
    facts.textContent = words.filter(Boolean).join(" · ");
  }

  function showSlow(queries) {
    showAgain(slow, table("Slow queries, those first that took most together", ["Collection", "Filter", "Sort", "Found by", "Times", "Longest", "Last", null], alike(queries).map(({ last: one, times, longest }) => [
      `${one.database} / ${one.collection}`, h("code", {}, one.filter), one.sort && h("code", {}, one.sort),
      one.index === null || one.index === "none" ? "no index" : `index ${one.index}`, number(times), `${number(longest)} ms`, moment(one.at),
      one.suggestion ? button(`Make the index ${one.suggestion}`, () => makeIndex(session, one)) : "",
    ]), "There were none (--slow-query-ms)."));
  }

  function showBusy({ now, before, seconds }) {
    const name = "paperdb_collection_changes_total";
    const sizes = new Map(now.all("paperdb_collection_documents").map(({ labels, value }) => [`${labels.database}/${labels.collection}`, value]));
    const rows = now.all(name).map(({ labels }) => ({
      labels, now: rate(name, now, before, seconds, labels), total: now.value(name, labels), size: sizes.get(`${labels.database}/${labels.collection}`),
    }));
    rows.sort((one, other) => other.now - one.now || other.total - one.total);
    showAgain(busy, h("h2", {}, "Busiest collections"), table("Busiest collections", ["Collection", "Changes per second", "Changes since the start", "Documents"],
      rows.slice(0, BUSIEST).map(({ labels, now: current, total, size }) => [
        h("span", {}, `${labels.database} / ${labels.collection || "others"}`), current === null ? "…" : current.toFixed(1), number(total), size === undefined ? "" : number(size),
      ]), "Nothing has changed since the start."));
  }

  /** What each process of a server has to do. Of a single one, the charts say it. */
  function showProcesses(now, before, seconds) {
    if (now.length < 2) return;
    const known = new Map(before.map((one) => [one.name, one.cpuSeconds]));
    showAgain(each, h("h2", {}, "Processes"), table("Processes", ["Process", "CPU, of one core", "Memory", "Connections", "Longest loop delay"], now.map((one) => {
      const used = one.cpuSeconds - (known.get(one.name) ?? Infinity);
      return [one.name, used >= 0 ? percent(used / seconds) : "", bytes(one.memoryBytes), number(one.connections), milliseconds(one.maxLoopDelaySeconds)];
    })));
  }

  const end = every(LOOK_MS, look, (error) => show(notice, h("p", { class: "note bad" }, sentence(error))));
  return {
    element: h("section", { class: "stack", "aria-label": "Health" },
      put(h("div", { class: "head" }), h("h1", {}, "Health"), facts, h("div", { class: "row" }, jump("Busiest collections", busy), jump("Slow queries", slow))),
      notice, h("div", { class: "cards" }, cards.map(({ element }) => element)), each, busy, h("h2", {}, "Slow queries"), slow),
    close: end,
  };
}

/** Queries that differ in their values only, together. The newest come first. */
function alike(queries) {
  const found = new Map();
  for (const one of queries) {
    const shape = JSON.stringify([one.database, one.collection, one.filter, one.sort, one.index, one.suggestion]);
    const of = found.get(shape) ?? { last: one, times: 0, longest: 0, sum: 0 };
    found.set(shape, { ...of, times: of.times + 1, longest: Math.max(of.longest, one.ms), sum: of.sum + one.ms });
  }
  return [...found.values()].sort((one, other) => other.sum - one.sum);
}

const jump = (label, element) => button(`${label} ↓`, () => element.scrollIntoView({ block: "center" }), { class: "quiet" });

/** Seconds, for a person. */
function span(seconds) {
  const hours = seconds / 3600;
  if (seconds < 120) return `${Math.round(seconds)} seconds`;
  if (hours < 1) return `${Math.round(seconds / 60)} minutes`;
  return hours < 48 ? `${Math.round(hours)} hours` : `${Math.round(hours / 24)} days`;
}

async function makeIndex(session, { database, collection, suggestion }) {
  const [where, name] = [database, collection].map(encodeURIComponent);
  await session.send("POST", `/admin.v1/databases/${where}/collections/${name}/indexes`, { fields: suggestion.split(",") });
  say("The index is being built; it is used once it is whole.");
}

function card(sign, address) {
  const plot = chart();
  const value = h("strong", { class: "value" });
  const badge = h("span", { class: "badge", hidden: true });
  const link = sign.link && [" ", h("a", { href: address(...sign.link) }, "Look there.")];
  const todo = h("p", { class: "note", hidden: true }, sign.todo, link);
  const help = h("details", {}, h("summary", {}, "What it is"), h("p", { class: "hint" }, sign.what), sign.todo && h("p", { class: "hint" }, `If it is red: ${sign.todo}`));
  return {
    element: h("article", { class: "panel card", "aria-label": sign.name }, h("div", { class: "row" }, h("h2", {}, sign.name), badge), value, plot.element, todo, help),
    show(samples) {
      const last = samples.at(-1);
      const none = samples.length > 1 ? sign.none ?? "none" : "…"; // a rate needs two looks
      const words = last.every((one) => one === null) ? none : last.map((one) => (one === null ? none : sign.unit(one))).join(" / ");
      value.textContent = words;
      const lines = last.map((_, at) => samples.map((sample) => sample[at] ?? null));
      plot.show(lines, `${sign.name}, last five minutes; now ${words}`, sign.unit);
      const now = state(sign, last.at(-1));
      badge.hidden = now === "none";
      badge.className = `badge ${now}`;
      badge.textContent = WORDS[now];
      todo.hidden = now !== "bad" && now !== "warn";
      todo.className = `note ${now}`;
    },
  };
}
