/**
 * Documents as a table: a row each, a column for each field.
 *
 * Law: asks nobody. A row belongs to an id, and is made anew only when its document is another. One row at a time is in the
 * order of the Tab key; arrows move between rows.
 */

import { h, show } from "./dom.js";
import { placeAfter, time } from "./ui.js";

const MAX_COLUMNS = 14;
const MAX_TEXT = 160;
const LAST = ["createdAt", "updatedAt"];
const TIMES = new Set(LAST);
/** A field of which a `sort` can be made. */
const SORTABLE = /^[^-+,\s"'\\][^,"'\\]*$/;

const cut = (text) => (text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text);

/** The value's text and its kind. */
function cell(name, value) {
  if (value === undefined) return { text: "", kind: "" };
  if (value === null) return { text: "null", kind: "null" };
  if (typeof value === "string") return TIMES.has(name) ? { text: time(value), kind: "time" } : { text: cut(value), kind: "" };
  if (typeof value === "number") return { text: String(value), kind: "number" };
  return { text: cut(JSON.stringify(value)), kind: typeof value === "boolean" ? "" : "json" };
}

export class Grid {
  #rows = new Map(); // id → {tr, document}
  #columns = [];
  #sort = "";
  #selected = new Set();
  #focused = null;
  #on;
  #head = h("tr");
  #body = h("tbody");
  #all = h("input", { type: "checkbox", "aria-label": "Select all rows of this page", onchange: () => this.#selectAll() });

  /** `on`: `open(id)`, `remove(id)`, `sort(text)`, `select(ids)`; the latter two may be left out. */
  constructor(label, on) {
    this.#on = on;
    const table = h("table", { class: "grid", "aria-label": label }, h("thead", {}, this.#head), this.#body);
    this.element = h("div", { class: "scroll" }, table);
    this.#body.addEventListener("keydown", (event) => this.#key(event));
    this.#body.addEventListener("focusin", ({ target }) => this.#focus(target.closest("tr")?.dataset.id));
  }

  get columns() {
    return this.#columns;
  }

  get selected() {
    return [...this.#selected];
  }

  /** Forget everything: another query follows. */
  clear() {
    this.#rows.clear();
    this.#columns = [];
    this.#selected.clear();
    this.#focused = null;
    show(this.#body);
    show(this.#head);
    this.#tell();
  }

  /** `marks`: whether what is new is to be seen as such. */
  show(documents, sort, gone, marks) {
    if (this.#extend(documents) || sort !== this.#sort) this.#heading(sort);
    this.#drop(documents);
    const kept = new Map();
    let at = this.#body.firstChild;
    for (const document of documents) {
      const known = this.#rows.get(document._id);
      const isGone = gone.has(document._id);
      const isSame = known?.document === document && known.width === this.#columns.length;
      const row = isSame ? known : { tr: this.#row(document), document, width: this.#columns.length };
      if (!isSame && marks) row.tr.classList.add(known ? "changed" : "arrived");
      row.tr.classList.toggle("gone", isGone);
      if (known && !isSame) {
        if (at === known.tr) at = known.tr.nextSibling;
        this.#replace(known.tr, row.tr);
      }
      kept.set(document._id, row);
      if (row.tr === at) at = at.nextSibling;
      else if (row.tr.nextSibling !== at || row.tr.parentNode === null) this.#body.insertBefore(row.tr, at);
    }
    this.#rows = kept;
    if (!kept.has(this.#focused)) this.#focus(documents[0]?._id);
    this.#tell();
  }

  /** Remove the rows of all but these. */
  #drop(documents) {
    const ids = new Set(documents.map(({ _id }) => _id));
    for (const [id, { tr }] of this.#rows) {
      if (ids.has(id)) continue;
      tr.remove();
      this.#rows.delete(id);
      this.#selected.delete(id);
    }
  }

  /** Give the focus to a row, if nothing else has it: a dialog gives it back to a button that may be gone. */
  focus(id) {
    if (document.activeElement === document.body) this.#rows.get(id)?.tr.querySelector("button").focus();
  }

  /** A row that has the focus keeps it. */
  #replace(old, young) {
    const place = [...old.querySelectorAll("button, input")].indexOf(document.activeElement);
    old.replaceWith(young);
    if (place >= 0) young.querySelectorAll("button, input")[place]?.focus();
  }

  /** Whether there are columns that were not there before. Those that are stay where they are. */
  #extend(documents) {
    const known = new Set(this.#columns);
    const found = [];
    for (const document of documents) {
      for (const name of Object.keys(document)) {
        if (known.has(name) || name === "_id") continue;
        known.add(name);
        found.push(name);
      }
    }
    if (found.length === 0) return false;
    const own = [...this.#columns, ...found].filter((name) => !TIMES.has(name)).slice(0, MAX_COLUMNS);
    const before = this.#columns.length;
    this.#columns = [...own, ...LAST.filter((name) => known.has(name))];
    return this.#columns.length !== before;
  }

  #heading(sort) {
    this.#sort = sort;
    const [path, sign] = sort.startsWith("-") ? [sort.slice(1), "descending"] : [sort, "ascending"];
    const title = (name) => {
      const isSorted = name === path;
      const arrow = isSorted && h("span", { "aria-hidden": "true" }, sign === "ascending" ? "▲" : "▼");
      const next = isSorted && sign === "ascending" ? `-${name}` : name;
      const canSort = this.#on.sort && SORTABLE.test(name);
      const words = canSort
        ? h("button", { type: "button", class: "quiet", onclick: () => this.#on.sort(next), title: `Sort by ${name}` }, cut(name), arrow)
        : h("span", {}, cut(name));
      return h("th", { scope: "col", "aria-sort": isSorted && sign }, words);
    };
    show(this.#head, this.#on.select && h("th", { scope: "col" }, this.#all), ["_id", ...this.#columns].map(title));
  }

  #row(document) {
    const id = document._id;
    const tabindex = id === this.#focused ? "0" : "-1";
    const box = h("input", {
      type: "checkbox", "aria-label": `Select ${id}`, tabindex, checked: this.#selected.has(id),
      onchange: () => {
        this.#selected[box.checked ? "add" : "delete"](id);
        this.#tell();
      },
    });
    const open = h("button", { type: "button", tabindex, onclick: () => this.#on.open(id), title: id }, cut(id));
    const cells = this.#columns.map((name) => {
      const { text, kind } = cell(name, Object.hasOwn(document, name) ? document[name] : undefined);
      return h("td", { class: kind }, text);
    });
    const tr = h("tr", {}, this.#on.select && h("td", {}, box), h("td", { class: "id" }, open), cells);
    tr.dataset.id = id;
    return tr;
  }

  #tell() {
    const [all, some] = [this.#rows.size, this.#selected.size];
    this.#all.checked = all > 0 && some === all;
    this.#all.indeterminate = some > 0 && some < all;
    this.#on.select?.(this.selected);
  }

  #selectAll() {
    for (const [id, { tr }] of this.#rows) {
      tr.querySelector("input").checked = this.#all.checked;
      this.#selected[this.#all.checked ? "add" : "delete"](id);
    }
    this.#tell();
  }

  #focus(id) {
    for (const [each, tabindex] of [[this.#focused, "-1"], [id, "0"]]) {
      for (const control of this.#rows.get(each)?.tr.querySelectorAll("button, input") ?? []) control.tabIndex = Number(tabindex);
    }
    this.#focused = id ?? null;
  }

  #key(event) {
    const tr = event.target.closest("tr");
    const rows = [...this.#body.children];
    const at = rows.indexOf(tr);
    const place = [...tr.querySelectorAll("button, input")].indexOf(event.target);
    const to = placeAfter(event.key, at, rows.length);
    if (to !== undefined) {
      event.preventDefault();
      rows[to].querySelectorAll("button, input")[place]?.focus();
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      tr.querySelectorAll("button, input")[event.key === "ArrowLeft" ? 0 : 1]?.focus();
    } else if (event.key === "Delete") this.#on.remove?.(tr.dataset.id);
  }
}
