/**
 * Import and export: NDJSON (a document a line) and CSV (a field a column).
 *
 * Law: in pieces, so that a million documents fit. Documents stay the text that they are, but for CSV. Nothing is written twice
 * by a retry: each bulk has its `Idempotency-Key`.
 */

import { cellOf, headerOf, parseRows, rowOf, textCell, toDocument } from "./csv.js";
import { h } from "./dom.js";
import { documentsOf, elements, members, problem } from "./json-text.js";
import { actions, bytes, check, confirm, dialog, download, field, number, progress, select, sentence } from "./ui.js";

const PAGE = 1000;
const BULK = 500;
const BULK_CHARACTERS = 2 ** 20;
const MAX_COMPLAINTS = 100;
const FORMATS = [["ndjson", "NDJSON, one JSON document a line"], ["csv", "CSV, for spreadsheets"]];
const TYPES = { ndjson: "application/x-ndjson", csv: "text/csv" };

/** A dialog whose work can be stopped. `form(start)`: what to choose; `work(choice, bar, signal)`. */
function working(title, form, work) {
  const abort = new AbortController();
  let busy = false;
  const mayClose = () => {
    if (!busy) return true;
    void confirm("Stop?", "What is done stays done.", "Stop", { danger: true }).then((yes) => yes && abort.abort());
    return false;
  };
  return dialog(title, (close) => {
    const bar = progress(title);
    const result = h("div", { class: "stack", role: "status" });
    bar.element.hidden = true;
    const stop = h("button", { type: "button", onclick: () => mayClose() && close() }, "Close");
    const start = async (choice) => {
      busy = true;
      bar.element.hidden = false;
      stop.textContent = "Stop";
      try {
        await work(choice, bar, result, abort.signal);
      } catch (error) {
        result.append(h("p", { class: "refused" }, abort.signal.aborted ? "Stopped." : sentence(error)));
      } finally {
        busy = false;
        stop.textContent = "Close";
      }
    };
    return [form(start), bar.element, result, actions(stop)];
  }, { mayClose });
}

const later = (element, start, choice) =>
  h("form", { onsubmit: (event) => {
    event.preventDefault();
    event.submitter.disabled = true;
    void start(choice());
  } }, element);

// --- export --------------------------------------------------------------------------------------

export function exportDialog({ session, name, filter, sort, total }) {
  const hasFilter = Object.keys(filter).length > 0;
  const format = select(FORMATS, "ndjson");
  const which = select([["shown", "What the filter matches, sorted as shown"], ["all", "All documents"]], hasFilter ? "shown" : "all");
  const form = (start) => later(
    [
      field("Format", format),
      hasFilter && field("Documents", which),
      actions(h("button", { class: "primary", autofocus: true }, "Export")),
    ],
    start,
    () => ({ format: format.value, filter: which.value === "shown" && hasFilter ? filter : null }),
  );
  return working(`Export ${name}`, form, async (choice, bar, result, signal) => {
    const text = choice.filter && JSON.stringify(choice.filter);
    const all = text ? (await session.get(`/${name}/count`, { filter: text })).count : total ?? 0;
    const pages = [];
    const columns = new Set();
    let count = 0;
    for await (const documents of pagesOf(session, name, { filter: text ?? undefined, sort: text ? sort : undefined }, signal)) {
      if (choice.format === "csv") for (const document of documents) for (const { name: column } of members(document)) columns.add(column);
      pages.push(new Blob([documents.map((document) => `${document}\n`).join("")]));
      count += documents.length;
      bar.to(count, all, `${number(count)} of ${number(Math.max(all, count))} documents`);
    }
    const parts = choice.format === "csv" ? await asCsv(pages, [...columns]) : pages;
    download(`${name}.${choice.format}`, parts, TYPES[choice.format]);
    result.append(h("p", {}, `${number(count)} documents are in ${name}.${choice.format}.`));
  });
}

/** The documents, page by page, each as text. */
async function* pagesOf(session, name, query, signal) {
  for (let after; ;) {
    const { text } = await session.call("GET", `/${name}/docs`, { query: { ...query, limit: PAGE, after }, signal });
    const documents = documentsOf(text);
    if (documents.length) yield documents;
    const next = members(text).find((member) => member.name === "next");
    if (next === undefined) return;
    after = JSON.parse(next.text);
  }
}

/** The columns are known once all documents have been seen, so the pages are read again, from memory or disk. */
async function asCsv(pages, columns) {
  const parts = [rowOf(columns.map(textCell))];
  for (const page of pages) {
    const lines = (await page.text()).split("\n").filter(Boolean);
    const rows = lines.map((line) => {
      const cells = new Map(members(line).map((member) => [member.name, member.text]));
      return rowOf(columns.map((column) => cellOf(cells.get(column))));
    });
    parts.push(new Blob(rows));
  }
  return parts;
}

// --- import --------------------------------------------------------------------------------------

export function importDialog({ session, name, onDone }) {
  const file = h("input", { type: "file", accept: ".ndjson,.jsonl,.json,.csv,.txt", required: true });
  const typed = check("In CSV, recognise numbers, true, false, null and JSON", true);
  const form = (start) => later(
    [
      field("File", file, "NDJSON (a document a line), a JSON array, or CSV with names in its first line."),
      typed.element,
      h("p", { class: "hint" }, "An _id that is taken is reported and left alone. The server sets createdAt and updatedAt anew; `paperdb import` keeps them."),
      actions(h("button", { class: "primary" }, "Import")),
    ],
    start,
    () => ({ file: file.files[0], typed: typed.box.checked }),
  );
  return working(`Import into ${name}`, form, async (choice, bar, result, signal) => {
    const tally = { inserted: 0, failed: 0, complaints: [] };
    const size = choice.file.size;
    const tell = (read) => bar.to(read, size, `${number(tally.inserted)} inserted, ${number(tally.failed)} refused; ${bytes(read)} of ${bytes(size)}`);
    await session.record("documents.import", name, `${choice.file.name}, ${bytes(size)}`);
    try {
      for await (const { lines, read } of bulksOf(documentsIn(choice, tally))) {
        signal.throwIfAborted();
        if (lines.length) await insert(session, name, lines, tally, signal);
        tell(read);
      }
    } finally {
      result.append(outcome(tally));
      void onDone();
    }
  });
}

async function insert(session, name, lines, tally, signal) {
  const body = `[${lines.map(({ text }) => text).join(",")}]`;
  const headers = { "Idempotency-Key": `${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(4)).join("-")}` };
  const send = () => session.call("POST", `/${name}/bulk`, { body, headers, signal });
  const answer = await send().catch((error) => (error.code === "NETWORK" ? send() : Promise.reject(error)));
  const { inserted, errors = [] } = answer.json();
  tally.inserted += inserted;
  for (const { index, error } of errors) refuse(tally, lines[index].line, error);
}

function refuse(tally, line, error) {
  tally.failed += 1;
  if (tally.complaints.length < MAX_COMPLAINTS) tally.complaints.push(`Line ${number(line)}: ${error}`);
}

function outcome({ inserted, failed, complaints }) {
  return [
    h("p", {}, `${number(inserted)} inserted, ${number(failed)} refused.`),
    complaints.length > 0 && h("ul", { class: "snippet", tabindex: "0", "aria-label": "What was refused" }, complaints.map((text) => h("li", {}, text))),
  ].reduce((list, child) => (child ? (list.append(child), list) : list), h("div", { class: "stack" }));
}

/** `{text, line, read}` of each document of a file; what is none is refused. */
async function* documentsIn({ file, typed }, tally) {
  const isCsv = /\.csv$/i.test(file.name);
  const texts = textsOf(file);
  if (!isCsv && (await file.slice(0, 64).text()).trimStart().startsWith("[")) {
    const text = await file.text();
    JSON.parse(text);
    const all = elements(text);
    yield* all.map((one, at) => ({ text: one, line: at + 1, read: (file.size * (at + 1)) / all.length }));
    return;
  }
  if (isCsv) {
    let header = null;
    for await (const { cells, line, read } of parseRows(texts)) {
      if (header === null) header = headerOf(cells, typed);
      else if (cells.length > header.length) refuse(tally, line, `${cells.length} cells, but ${header.length} names`);
      else yield { text: toDocument(header, cells, typed), line, read };
    }
    return;
  }
  let line = 0;
  for await (const { text, read } of linesOf(texts)) {
    line += 1;
    if (text.trim() === "") continue;
    const found = problem(text);
    if (found) refuse(tally, line, found.message);
    else yield { text, line, read };
  }
}

/** `{text, read}`: pieces of a file, and how many bytes were read. */
async function* textsOf(file) {
  const reader = file.stream().getReader();
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let read = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    read += value.length;
    yield { text: decoder.decode(value, { stream: true }), read };
  }
}

async function* linesOf(texts) {
  let rest = "";
  let read = 0;
  for await (const piece of texts) {
    const lines = (rest + piece.text).split(/\r?\n/);
    rest = lines.pop();
    ({ read } = piece);
    for (const text of lines) yield { text, read };
  }
  if (rest) yield { text: rest, read };
}

/** Bulks of documents. */
async function* bulksOf(documents) {
  let lines = [];
  let size = 0;
  let read = 0;
  for await (const document of documents) {
    lines.push(document);
    size += document.text.length;
    ({ read } = document);
    if (lines.length < BULK && size < BULK_CHARACTERS) continue;
    yield { lines, read };
    [lines, size] = [[], 0];
  }
  yield { lines, read };
}
