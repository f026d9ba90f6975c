/**
 * The part "Health": how the server is, while one watches, and what to do where it is not well.
 *
 * Law: the server counts (`/metrics`, `/admin.v1/health`); here counts become rates. The last minutes are in this tab only.
 */

import { chart } from "./chart.js";
import { h, put, show } from "./dom.js";
import { Metrics, rate } from "./prometheus.js";
import { SIGNS, state } from "./signs.js";
import { every, table } from "./table.js";
import { button, moment, number, say, sentence } from "./ui.js";

const LOOK_MS = 2000;
/** Looks that are kept: five minutes. */
const KEPT = 150;
/** A rate is over so many looks, so that it does not jump. */
const WINDOW = 5;
const BUSIEST = 10;
const WORDS = { good: "well", warn: "look at it", bad: "act", none: "" };

export function health({ session, address }) {
  const looks = []; // {at, metrics}, oldest first
  const history = SIGNS.map(() => []);
  const cards = SIGNS.map((sign) => card(sign, address));
  const notice = h("div", { role: "status" });
  const facts = h("p", { class: "hint" });
  const slow = h("div", { class: "stack" });
  const busy = h("div", { class: "stack" });
  const charts = h("div", { class: "cards" }, cards.map(({ element }) => element));
  let known = ""; // of slow queries: a table that is the same keeps its focus

  async function look() {
    const [about, metrics] = await Promise.all([session.get("/admin.v1/health"), read()]);
    show(notice, trouble(about));
    tell(about, metrics?.value("paperdb_index_builds_total"));
    showSlow(about.slowQueries);
    charts.hidden = metrics === null;
    if (metrics === null) return;
    looks.push({ at: performance.now(), metrics });
    if (looks.length > KEPT) looks.shift();
    const before = looks.length > 1 ? looks.at(-1 - Math.min(WINDOW, looks.length - 1)) : null;
    const seconds = before && (looks.at(-1).at - before.at) / 1000;
    const seen = { now: metrics, before: before?.metrics, seconds };
    for (const [at, sign] of SIGNS.entries()) {
      history[at].push(sign.of(seen));
      if (history[at].length > KEPT) history[at].shift();
      cards[at].show(history[at]);
    }
    showBusy(seen);
  }

  /** The server's counts; null if it keeps them behind a key of their own. */
  async function read() {
    try {
      return new Metrics((await session.call("GET", "/metrics")).text);
    } catch (error) {
      if (error.status === 401) return null;
      throw error;
    }
  }

  function trouble({ storage }) {
    if (storage?.full) return h("p", { class: "note bad" }, "The disk is full: writes are refused until there is room. Deletes are done.");
    if (storage?.fault) return h("p", { class: "note bad" }, `The database file is ${storage.fault}: see the server's log, and restart it once the file is back.`);
    return null;
  }

  function tell({ version, uptime, processes, connections }, built) {
    const hours = uptime / 3600;
    const since = hours < 1 ? `${Math.round(uptime / 60)} minutes` : hours < 48 ? `${Math.round(hours)} hours` : `${Math.round(hours / 24)} days`;
    const words = [version && `PaperDB ${version}`, uptime !== undefined && `up for ${since}`, processes > 1 && `${number(processes)} processes`,
      `${number(connections.open)} connections`, connections.catchingUp > 0 && `${number(connections.catchingUp)} catching up`, built > 0 && `${number(built)} indexes built`];
    facts.textContent = words.filter(Boolean).join(" · ");
  }

  function showSlow(queries) {
    const text = JSON.stringify(queries);
    if (text === known) return;
    known = text;
    show(slow, table("Slow queries, newest first", ["When", "Collection", "Took", "Filter", "Sort", "Looked at", null], queries.map((one) => [
      moment(one.at), `${one.database} / ${one.collection}`, `${(one.seconds * 1000).toFixed(0)} ms`, h("code", {}, JSON.stringify(one.filter ?? {})), one.sort ?? "",
      one.plan ? `${number(one.plan.looksAt)} of ${number(one.plan.documents)}` : "",
      one.suggestion ? button(`Make the index ${one.suggestion.join(", ")}`, () => makeIndex(session, one)) : "",
    ]), "There were none."));
  }

  function showBusy({ now, before, seconds }) {
    const name = "paperdb_collection_changes_total";
    if (!now.has(name)) return show(busy, h("p", { class: "hint" }, "An admin key (paperdb keys create --admin) also shows which collections are busiest."));
    if (!before) return undefined;
    const rows = now.all(name).map(({ labels }) => ({ labels, now: rate(name, now, before, seconds, labels), total: now.value(name, labels) }));
    rows.sort((one, other) => other.now - one.now || other.total - one.total);
    return show(busy, h("h2", {}, "Busiest collections"), table("Busiest collections", ["Collection", "Changes per second", "Changes since the start"],
      rows.slice(0, BUSIEST).map(({ labels, now: current, total }) => [
        h("span", {}, `${labels.database} / ${labels.collection || "others"}`), (current ?? 0).toFixed(1), number(total),
      ]), "Nothing has changed since the start."));
  }

  const end = every(LOOK_MS, look, (error) => show(notice, h("p", { class: "note bad" }, sentence(error))));
  return {
    element: h("section", { class: "stack", "aria-label": "Health" },
      put(h("div", { class: "head" }), h("h1", {}, "Health"), facts),
      notice, charts, busy, h("h2", {}, "Slow queries"), slow),
    close: end,
  };
}

async function makeIndex(session, { database, collection, suggestion }) {
  const [where, name] = [database, collection].map(encodeURIComponent);
  await session.send("POST", `/admin.v1/databases/${where}/collections/${name}/indexes`, { fields: suggestion });
  say("The index is being built; it is used once it is whole.");
}

function card(sign, address) {
  const plot = chart();
  const value = h("strong", { class: "value" });
  const badge = h("span", { class: "badge", hidden: true });
  const link = sign.link && [" ", h("a", { href: address(sign.link) }, "Look there.")];
  const todo = h("p", { class: "note", hidden: true }, sign.todo, link);
  const help = h("details", {}, h("summary", {}, "What it is"), h("p", { class: "hint" }, sign.what), sign.todo && h("p", { class: "hint" }, `If it is red: ${sign.todo}`));
  return {
    element: h("article", { class: "panel card", "aria-label": sign.name }, h("div", { class: "row" }, h("h2", {}, sign.name), badge), value, plot.element, todo, help),
    show(samples) {
      const last = samples.at(-1);
      const words = last.map((one) => (one === null || one === undefined ? "none" : sign.unit(one))).join(" / ");
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
