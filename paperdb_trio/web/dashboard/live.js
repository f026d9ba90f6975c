/**
 * The part "Live": every change as it happens, and what it changed.
 *
 * Law: at most `MAX_SHOWN` changes are on the page, and in memory. A pause holds back what is shown, not what comes.
 */

import { h, icon, show } from "./dom.js";
import { openEditor } from "./editor.js";
import { Feed } from "./feed.js";
import { versionsOf } from "./history.js";
import { difference, editable, problem } from "./json-text.js";
import { button, check, complain, diffView, field, number, sentence, select, time } from "./ui.js";

const MAX_SHOWN = 400;
/** As many as a token may name. */
const MAX_COLLECTIONS = 100;
const TYPES = ["insert", "update", "delete"];

export function live(context) {
  const { session, query, rename } = context;
  const wanted = { collection: query.get("collection") ?? "", filter: query.get("filter") ?? "", since: query.get("since") ?? "" };
  const kinds = new Set(TYPES);
  const events = []; // newest first
  const waiting = []; // oldest first: what a pause or the next frame holds back
  let feed = null;
  let turn = 0; // of starts: what an earlier one asked for is dropped
  let isPaused = false;
  let frame = null;
  let total = 0;
  let text = "";

  const list = h("ol", { class: "feed", "aria-label": "Changes, newest first", reversed: true });
  const empty = h("p", { class: "empty" }, "Waiting for a change.");
  const status = h("span", { class: "status stale", role: "status" }, "Connecting");
  const notice = h("div", { role: "status" });
  const counted = h("span", { class: "hint" });

  // --- what comes --------------------------------------------------------------------------------

  /** The names of what is wanted. */
  async function names() {
    if (wanted.collection) return [wanted.collection];
    if (session.isFull) return ["*"];
    return (await session.collections()).map(({ name }) => name).slice(0, MAX_COLLECTIONS);
  }

  async function start() {
    stop();
    const mine = turn;
    clear();
    show(notice);
    rename([], wanted);
    const filter = wanted.filter.trim();
    const wrong = filter && problem(filter);
    if (wrong) return void show(notice, h("p", { class: "note bad" }, `The filter is not JSON: ${wrong.message}`));
    const collections = await names();
    if (mine !== turn) return undefined;
    if (collections.length === 0) return tell("error", "There are no collections yet.");
    feed = new Feed({
      session,
      collections,
      filter: wanted.collection && filter ? JSON.parse(filter) : null,
      since: wanted.since || "now",
      onEvent: receive,
      onState: tell,
      onGap: ({ since, oldest }) => show(notice, h("p", { class: "note" }, `The log no longer holds what came between seq ${number(since)} and ${number(oldest)}.`)),
    });
    return undefined;
  }

  function stop() {
    turn += 1;
    feed?.close();
    feed = null;
  }

  const restart = () => void start().catch(complain);

  function tell(state, words) {
    status.className = `status ${state}`;
    status.textContent = { live: "Live", stale: "Connecting again", error: "Ended" }[state];
    if (state === "error") show(notice, h("p", { class: "note bad" }, words));
  }

  function receive(event) {
    total += 1;
    waiting.push(event);
    if (waiting.length > MAX_SHOWN) waiting.shift();
    frame ??= requestAnimationFrame(() => {
      frame = null;
      render();
    });
  }

  // --- what is shown -----------------------------------------------------------------------------

  const isShown = (event) => kinds.has(event.type) && (text === "" || JSON.stringify(event).toLowerCase().includes(text));

  function render() {
    if (!isPaused) {
      for (const event of waiting.splice(0)) {
        const item = row(event);
        events.unshift({ event, item });
        item.hidden = !isShown(event);
        list.prepend(item);
      }
      for (const { item } of events.splice(MAX_SHOWN)) item.remove();
    }
    empty.hidden = events.some(({ item }) => !item.hidden);
    list.hidden = !empty.hidden;
    const held = isPaused && waiting.length ? `, ${number(waiting.length)} held back` : "";
    counted.textContent = `${number(total)} changes${held}`;
  }

  function refilter() {
    for (const { event, item } of events) item.hidden = !isShown(event);
    render();
  }

  function clear() {
    events.length = waiting.length = total = 0;
    show(list);
    render();
  }

  function row(event) {
    const { seq, type, collection, data } = event;
    const details = h("div", { class: "details", hidden: true });
    const head = h("button", { type: "button", class: "event", "aria-expanded": "false", onclick: () => {
      details.hidden = !details.hidden;
      head.setAttribute("aria-expanded", !details.hidden);
      if (!details.hidden && !details.hasChildNodes()) show(details, inside(event));
    } },
    h("span", { class: "mono" }, number(seq)), h("span", { class: `badge ${type}` }, type), h("span", {}, collection),
    h("span", { class: "mono" }, data._id), h("span", { class: "hint" }, summary(data)));
    return h("li", {}, head, details);
  }

  function inside({ seq, type, collection, data, txn, cause }) {
    const now = editable(JSON.stringify(data));
    const compared = h("div", { class: "stack" }, h("p", { class: "hint" }, "Looking for the version before…"));
    const facts = [`seq ${number(seq)}`, data.updatedAt && `written ${time(data.updatedAt)}`, txn && `in the transaction of seq ${number(txn)}`, cause && cause !== type && `caused by an ${cause}`];
    before(collection, data._id, seq).then(
      (old) => show(compared, ...versus(type, old, now)),
      (error) => show(compared, h("p", { class: "hint" }, sentence(error)), ...versus(type, null, now)),
    );
    return [
      h("p", { class: "hint" }, facts.filter(Boolean).join(" · ")),
      compared,
      h("div", { class: "row" },
        type === "delete"
          ? session.canWrite && button("Bring it back", () => openEditor({ session, name: collection, text: now, key: data._id, restored: `${data._id}, as it was until seq ${seq}` }))
          : button("Open the document", () => openEditor({ session, name: collection, id: data._id })),
        h("a", { class: "button", href: context.address("documents", [collection], { filter: JSON.stringify({ _id: data._id }) }) }, "Show it in its collection")),
    ];
  }

  /** The document before a change: of an earlier change here, else of the change log; null if there is none. */
  async function before(collection, id, seq) {
    const known = events.find(({ event }) => event.collection === collection && event.data._id === id && event.seq < seq)?.event;
    if (known && !wanted.filter) return known.type === "delete" ? null : editable(JSON.stringify(known.data));
    if (!session.hasKey) return null;
    const versions = await versionsOf(session, collection, id, 100);
    const found = versions.find((version) => version.seq < seq);
    return found === undefined || found.type === "delete" ? null : found.text;
  }

  function versus(type, old, now) {
    if (type === "update" && old === null) return [h("p", { class: "hint" }, "The version before is not known here."), h("pre", { class: "snippet", tabindex: "0" }, now)];
    const lines = type === "delete" ? difference(now, "") : difference(type === "insert" ? "" : old, now);
    return [diffView(lines, "What changed")];
  }

  // --- controls ----------------------------------------------------------------------------------

  const collection = select([["", "All collections"]], "", { onchange: () => {
    wanted.collection = collection.value;
    filterField.hidden = !collection.value;
    restart();
  } });
  void session.collections().then((all) => {
    const names = [...new Set([...all.map(({ name }) => name), wanted.collection])].filter((name) => name && name !== "*");
    show(collection, h("option", { value: "" }, "All collections"), names.map((name) => h("option", { value: name }, name)));
    collection.value = wanted.collection;
  }, complain);
  const filter = h("input", { class: "mono", spellcheck: "false", placeholder: '{"room": "r1"}', value: wanted.filter });
  const filterField = h("div", { class: "grow", hidden: !wanted.collection }, field("Filter", filter, "Only changes of documents that match, as JSON."));
  const since = h("input", { inputmode: "numeric", pattern: "[0-9]*", placeholder: "now", value: wanted.since, size: "8" });
  const begin = h("form", { class: "row end", onsubmit: (event) => {
    event.preventDefault();
    wanted.filter = filter.value;
    wanted.since = since.value.trim();
    restart();
  } }, field("Collection", collection), filterField, field("From seq", since), h("button", { class: "primary" }, "Start"));
  const find = h("input", { type: "search", placeholder: "a text in the change", oninput: () => {
    text = find.value.toLowerCase();
    refilter();
  } });
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    isPaused = !isPaused;
    pause.setAttribute("aria-pressed", isPaused);
    pause.textContent = isPaused ? "Go on" : "Pause";
    render();
  } }, "Pause");
  const boxes = TYPES.map((type) => check(type, true, (yes) => {
    kinds[yes ? "add" : "delete"](type);
    refilter();
  }).element);

  render();
  restart();
  return {
    element: h("section", { class: "stack", "aria-label": "Live" },
      h("div", { class: "head" }, h("h1", {}, "Live"), counted, status),
      begin,
      h("div", { class: "row end" }, h("div", { class: "grow" }, field("Show only", find)), boxes, pause,
        h("button", { type: "button", onclick: clear }, icon("close"), "Clear")),
      notice, empty, list),
    close: () => {
      stop();
      if (frame !== null) cancelAnimationFrame(frame);
    },
  };
}

function summary({ _id: _i, createdAt: _c, updatedAt: _u, ...fields }) {
  const text = JSON.stringify(fields);
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
