/**
 * The part "Documents": collections, and the documents of one.
 *
 * Law: what is asked (collection, filter, sort) stands in the address. What is shown comes by `watch`.
 */

import { eraseAll, eraseThese } from "./erase.js";
import { openEditor } from "./editor.js";
import { filterEditor } from "./filter.js";
import { Grid } from "./grid.js";
import { h, icon, show } from "./dom.js";
import { planDialog } from "./plan.js";
import { schemaDialog } from "./schema.js";
import { exportDialog, importDialog } from "./transfer.js";
import { pathOf } from "./session.js";
import { actions, button, complain, confirm, dialog, field, number, placeAfter, say, sentence } from "./ui.js";
import { every, showAgain } from "./table.js";
import { watch } from "./watch.js";

const PAGE = 100;
/** Of documents so large that a page of them is too much for one response. */
const LEAST_PAGE = 4;
/** Newest first. A token's rule may hide `createdAt`; the order of insertion is the same. */
const newest = ({ kind }) => (kind === "token" ? "-" : "-createdAt");
const REFRESH_MS = 15_000;
/** Changes that come faster are shown together. */
const SHOW_MS = 100;
const SLOW_COUNT_MS = 200;
/** A first page that takes longer says how it was found. */
const SLOW_MS = 700;
const NAME = /^[A-Za-z0-9_-]{1,64}$/;

export function documents(context) {
  const { session, path } = context;
  const name = path[0];
  const fixed = (element) => ({ element, close: () => {} });
  const isName = NAME.test(name ?? "");
  const list = collectionList(context, isName ? name : undefined);
  const shown = isName ? collectionView(context, name, list) : fixed(name === undefined ? welcome(session, list) : unknown(name));
  return {
    element: h("div", { class: `documents${name ? " chosen" : ""}` }, list.element, shown.element),
    start: isName ? shown.element : undefined,
    close: () => {
      list.close();
      shown.close();
    },
  };
}

function welcome({ canWrite, isFull }, list) {
  const title = h("h1", {}, "Choose a collection");
  const first = h("div", { hidden: true }, button("Insert the first document", list.create, { class: "primary" }));
  list.listen((all) => {
    const isNone = isFull && all.length === 0;
    title.textContent = isNone ? "There are no collections yet" : "Choose a collection";
    first.hidden = !isNone;
  });
  return h("div", { class: "empty panel" }, title,
    h("p", {}, canWrite ? "A collection is made by its first document." : "This credential reads only."), first);
}

const unknown = (name) => h("p", { class: "note bad" }, `There can be no collection of the name '${name}'.`);

// --- the list of collections ---------------------------------------------------------------------

function collectionList({ session, address, go }, current) {
  const items = h("ol", { "aria-label": "Collections", onkeydown: move, onfocusin: ({ target }) => reach(target) });
  const listeners = new Set();
  let all = [];
  let isOver = false;

  const links = () => [...items.querySelectorAll("a")];

  /** One link is in the order of the Tab key; arrows move between them: there may be hundreds. */
  function reach(link) {
    for (const one of links()) one.tabIndex = one === link ? 0 : -1;
  }

  function move(event) {
    const to = placeAfter(event.key, links().indexOf(event.target), links().length);
    if (to === undefined) return;
    event.preventDefault();
    links()[to].focus();
  }

  async function refresh() {
    try {
      all = (await session.collections()).filter(({ name }) => NAME.test(name));
    } catch (error) {
      return void show(items, h("li", { class: "refused" }, sentence(error)));
    }
    if (isOver) return undefined;
    const names = new Set(all.map(({ name }) => name));
    const rows = current && !names.has(current) ? [{ name: current, count: null }, ...all] : all;
    showAgain(items, rows.length === 0 && h("li", { class: "hint" }, "There are none yet."), rows.map(({ name, count }) =>
      h("li", {}, h("a", { href: address("documents", [name]), "aria-current": name === current && "page" },
        h("span", {}, name), h("span", {}, count === null ? "" : number(count))))));
    if (!items.contains(document.activeElement)) reach(items.querySelector("[aria-current]") ?? links()[0]);
    for (const listener of listeners) listener(all);
    return undefined;
  }

  /** Of a token for every collection, nobody knows the names. */
  const mayOpen = session.kind === "token";

  async function create() {
    const name = await dialog(mayOpen ? "Open a collection" : "New collection", (close) => {
      const input = h("input", { autocomplete: "off", spellcheck: "false", maxlength: "64", required: true, pattern: "[A-Za-z0-9_\\-]{1,64}", autofocus: true });
      return h("form", { onsubmit: (event) => {
        event.preventDefault();
        if (NAME.test(input.value)) close(input.value);
      } },
      field("Name", input, mayOpen ? null : "Letters, digits, _ and -; 64 at most. Its first document makes it."),
      actions(h("button", { class: "primary" }, "Go on"), h("button", { type: "button", onclick: () => close() }, "Cancel")));
    });
    if (name === undefined) return;
    if (mayOpen || (await openEditor({ session, name })) !== undefined) go("documents", [name]);
  }

  const end = every(REFRESH_MS, refresh, complain);
  const label = mayOpen ? "Open a collection" : "New collection";
  const head = h("div", { class: "row" }, h("h2", { class: "grow" }, "Collections"),
    (session.isFull || mayOpen) && button([icon("plus"), h("span", { class: "unseen" }, label)], create, { class: "quiet", title: label }));
  return {
    element: h("aside", { class: "collections", "aria-label": "Collections" }, head, items),
    refresh,
    create,
    get: (name) => all.find((one) => one.name === name),
    listen: (listener) => listeners.add(listener),
    close: () => {
      isOver = true;
      end();
    },
  };
}

// --- one collection ------------------------------------------------------------------------------

function filterOf(query) {
  try {
    const filter = JSON.parse(query.get("filter") ?? "{}");
    if (filter !== null && typeof filter === "object" && !Array.isArray(filter)) return filter;
  } catch {
    // told below
  }
  say("The filter in the address is not a JSON object.", "bad");
  return {};
}

function collectionView(context, name, list) {
  const { session, query, rename, go } = context;
  const isSecret = session.isFull;
  let filter = filterOf(query);
  let sort = query.get("sort") ?? newest(session);
  let cursors = [undefined]; // where each page begins; the last one is shown
  let view = null;
  let end = () => {};
  let began = 0;
  let size = PAGE;
  let pending = null; // a view that is shown when `timer` runs out
  let timer = null;

  const count = h("span", { class: "hint" });
  const status = h("span", { class: "status loading", role: "status" }, "Loading");
  const notice = h("div", { role: "status" });
  const empty = h("div", { class: "empty", hidden: true });
  const chosen = h("div", { class: "row", hidden: true });
  const pager = h("div", { class: "row", role: "group", "aria-label": "Pages" });
  const form = filterEditor({ filter, onApply: (next) => ask({ filter: next }) });
  const grid = new Grid(`Documents of ${name}`, {
    open: (id) => void edit(id),
    remove: session.canWrite ? (id) => void removeOne(id) : undefined,
    sort: (next) => ask({ sort: next }),
    select: session.canWrite ? select : undefined,
  });

  const isAll = () => Object.keys(filter).length === 0;

  function ask(next) {
    filter = next.filter ?? filter;
    sort = next.sort ?? sort;
    cursors = [undefined];
    rename([name], { filter: isAll() ? "" : JSON.stringify(filter), sort: sort === newest(session) ? "" : sort });
    start();
  }

  function start() {
    end();
    clearTimeout(timer);
    view = pending = timer = null;
    began = performance.now();
    grid.clear();
    show(notice);
    form.refuse("");
    tell("loading");
    render();
    void recount();
    end = watch({ session, name, filter, sort, size, after: cursors.at(-1), onView: soon });
  }

  /** The first at once, later ones at most each `SHOW_MS`. */
  function soon(next) {
    pending = next;
    if (timer !== null) return;
    timer = setTimeout(() => {
      timer = null;
      if (pending !== null) soon(pending);
    }, SHOW_MS);
    pending = null;
    onView(next);
  }

  function onView(next) {
    if (next.error?.code === "RESULT_TOO_LARGE" && size > LEAST_PAGE) {
      size = Math.floor(size / 5);
      return void back([undefined]);
    }
    const isFirst = view === null || view.status === "loading";
    view = next;
    tell(next.status, next.error);
    if (next.status === "loading") return;
    if (next.error?.status === 400) form.refuse(sentence(next.error));
    else if (next.error) show(notice, h("p", { class: "note bad" }, sentence(next.error)));
    if (next.why) show(notice, h("p", { class: "note" }, `This page does not follow changes: ${sentence(next.why)}`, " ", button("Load again", start)));
    grid.show(next.documents, sort, next.gone, !isFirst);
    form.fields(["_id", ...grid.columns]);
    render();
    if (isFirst) measured();
    else recountSoon();
  }

  function tell(what, error) {
    const words = { loading: "Loading", live: "Live", stale: "Catching up", fixed: "Not live", error: error?.message ?? "Failed" };
    status.className = `status ${what}`;
    if (status.textContent !== words[what]) status.textContent = words[what];
  }

  function measured() {
    const milliseconds = performance.now() - began;
    if (milliseconds < SLOW_MS || !isSecret || view.error) return;
    const words = `This page took ${(milliseconds / 1000).toFixed(1)} s.`;
    show(notice, h("div", { class: "note row" }, h("span", { class: "grow" }, words), button("How it was found", plan)));
  }

  // --- how many there are ------------------------------------------------------------------------

  let counting = 0;
  let countTimer = null;
  let countMs = 0; // what the last one took

  async function recount() {
    const mine = (counting += 1);
    const known = list.get(name);
    if (isAll()) return void (count.textContent = known ? `${number(known.count ?? 0)} documents` : "");
    count.textContent = "counting…";
    let words;
    const from = performance.now();
    try {
      const found = await session.get(`/${name}/count`, { filter: JSON.stringify(filter) });
      words = `${number(found.count)} match${known?.count ? ` of ${number(known.count)}` : ""}`;
    } catch (error) {
      words = error.code === "QUERY_TIMEOUT" ? "too many to count in time" : "";
    }
    if (mine !== counting) return;
    countMs = performance.now() - from;
    count.textContent = words;
  }

  /** After a change. A count that is work for the server is not made again and again. */
  function recountSoon() {
    if (!isAll() && countMs > SLOW_COUNT_MS) return;
    countTimer ??= setTimeout(() => {
      countTimer = null;
      if (isAll()) void list.refresh();
      else void recount();
    }, 2000);
  }
  list.listen(() => isAll() && void recount());

  // --- pages -------------------------------------------------------------------------------------

  /** Where the page that is shown ends. A live one ends where the same find does. */
  async function cursorBehind() {
    if (view.next !== undefined) return view.next;
    const about = { sort, limit: size, select: "_id", filter: isAll() ? undefined : JSON.stringify(filter) };
    return (await session.get(`/${name}/docs`, about)).next;
  }

  async function older() {
    const next = await cursorBehind();
    if (next === undefined) return say("This is the last page.");
    cursors.push(next);
    return start();
  }

  function back(pages) {
    cursors = pages;
    start();
  }

  let drawn = ""; // buttons stay the same while nothing of this changes: somebody may be about to press one

  function render() {
    const page = cursors.length;
    const rows = view?.documents.length ?? 0;
    const isEmpty = view !== null && rows === 0 && view.status !== "loading" && !view.error;
    const now = [page, rows, view?.hasMore, isEmpty, isAll()].join();
    if (now === drawn) return;
    drawn = now;
    const from = (page - 1) * size;
    show(
      pager,
      page > 1 && h("button", { type: "button", onclick: () => back([undefined]) }, icon("first"), "First"),
      page > 1 && h("button", { type: "button", onclick: () => back(cursors.slice(0, -1)) }, icon("left"), "Previous"),
      h("span", { class: "hint" }, rows ? `${number(from + 1)} to ${number(from + rows)}` : ""),
      view?.hasMore && button(["Next", icon("right")], older),
    );
    empty.hidden = !isEmpty;
    grid.element.hidden = rows === 0;
    show(empty, h("p", {}, isAll() ? "There are no documents here." : "No document matches."),
      isAll() && session.canWrite && button("Insert the first one", insert, { class: "primary" }));
  }

  // --- what one does -----------------------------------------------------------------------------

  const insert = async () => {
    if ((await openEditor({ session, name })) !== undefined) void list.refresh();
  };
  const edit = async (id) => {
    try {
      await openEditor({ session, name, id });
    } catch (error) {
      complain(error);
    }
    grid.focus(id);
  };
  const plan = () => planDialog({ session, name, filter, sort, limit: size, after: cursors.at(-1), onIndexed: start });

  async function removeOne(id) {
    if (!(await confirm("Delete this document?", `${name} / ${id}`, "Delete", { danger: true }))) return;
    try {
      await session.call("DELETE", pathOf(name, id));
      say("Deleted.");
    } catch (error) {
      complain(error);
    }
  }

  let selected = "";

  function select(ids) {
    if (ids.join("\n") === selected) return;
    selected = ids.join("\n");
    chosen.hidden = ids.length === 0;
    show(chosen, h("span", {}, `${number(ids.length)} selected`),
      button(`Delete ${number(ids.length)}…`, () => eraseThese({ session, name, ids }), { class: "danger" }));
  }

  async function erase() {
    const done = await eraseAll({ session, name, filter });
    if (done === "dropped") go("documents");
    else if (done) {
      await list.refresh();
      start();
    }
  }

  const element = h(
    "section",
    { class: "stack", "aria-label": `Collection ${name}`, tabindex: "-1" },
    h("div", { class: "head" },
      h("a", { class: "button quiet to-collections", href: "#/documents" }, icon("left"), "Collections"),
      h("h1", {}, name), count, status, h("span", { class: "space" }),
      session.canWrite && button([icon("plus"), "Insert"], insert, { class: "primary" }),
      session.canWrite && button("Import", () => importDialog({ session, name, onDone: list.refresh })),
      button("Export", () => exportDialog({ session, name, filter, sort, total: list.get(name)?.count })),
      isSecret && button("Plan", plan),
      session.hasKey && button("Schema", () => schemaDialog({ session, name })),
      session.canWrite && button("Delete…", erase)),
    form.element,
    notice,
    chosen,
    grid.element,
    empty,
    pager,
  );
  start();
  return {
    element,
    close: () => {
      clearTimeout(countTimer);
      clearTimeout(timer);
      counting += 1;
      end();
    },
  };
}
