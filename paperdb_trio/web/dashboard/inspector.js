/**
 * The part "Inspector": who is connected, what they follow, how far they are, and why somebody did or did not get a change.
 *
 * Law: the server explains; here it is asked and shown. A page of connections is looked at again and again; all of them only
 * when somebody looks for one.
 */

import { h, icon, show } from "./dom.js";
import { all } from "./session.js";
import { every, showAgain, table } from "./table.js";
import { actions, button, bytes, complain, confirm, count, dialog, field, moment, newId, number, say, select, sentence, time } from "./ui.js";

const LOOK_MS = 2000;
/** To look for a text means to ask for all connections: not for each key. */
const TYPING_MS = 200;
const PAGE = 100;
const STATES = { live: "good", "catching up": "warn", closed: "bad" };

/** What a person may type to find a connection. */
const textOf = (connection) => JSON.stringify(connection).toLowerCase();

export function inspector({ session, query }) {
  const body = h("div", { class: "stack" });
  const counted = h("span", { class: "hint" });
  const notice = h("div", { role: "status" });
  let keys = new Map(); // id → label
  let cursors = [undefined];
  let database = query.get("database") ?? "";
  let looked = ""; // for what somebody looks
  let typing = null;
  let end = () => {};

  const path = "/admin.v1/connections";

  async function look() {
    const mine = `${cursors.length} ${database} ${looked}`;
    const about = { database, limit: PAGE, after: cursors.at(-1) };
    const found = looked ? await search() : await session.get(path, about);
    if (mine !== `${cursors.length} ${database} ${looked}`) return;
    show(notice);
    const { connections, total, next } = found;
    counted.textContent = looked ? `${number(connections.length)} of ${count(total, "connection")}` : count(total, "connection");
    showAgain(body, rows(connections), pager(next));
  }

  /** Of all connections those that somebody looks for, the furthest behind first. */
  async function search() {
    const every_ = await all(session, path, "connections", { database });
    const found = every_.filter((one) => textOf(one).includes(looked)).sort((one, other) => other.lagChanges - one.lagChanges);
    return { connections: found.slice(0, 5 * PAGE), total: every_.length };
  }

  function rows(connections) {
    const heads = ["State", "Who", "Address", "Follows", "Behind", "Unsent", "Since", null];
    return table("Connections", heads, connections.map((one) => [
      h("span", { class: `badge ${STATES[one.state] ?? ""}` }, one.state),
      who(one, keys),
      h("span", { class: "mono" }, `${one.address} · ${one.transport}`),
      follows(one),
      one.lagChanges ? count(one.lagChanges, "change") : "0",
      bytes(one.unsentBytes),
      moment(one.since),
      button("Look", () => connectionDialog({ session, connection: one, keys, onEnd: again })),
    ]), looked ? "No connection has this text." : "Nobody is connected.");
  }

  function pager(next) {
    if (looked) return null;
    return h("div", { class: "row", role: "group", "aria-label": "Pages" },
      cursors.length > 1 && button([icon("first"), "First"], () => turn([undefined])),
      next !== undefined && button(["Next", icon("right")], () => turn([...cursors, next])));
  }

  function turn(next) {
    cursors = next;
    again();
  }

  function again() {
    end();
    end = every(looked ? 5 * LOOK_MS : LOOK_MS, look, (error) => show(notice, h("p", { class: "note bad" }, sentence(error))));
  }

  const find = h("input", { type: "search", placeholder: "an address, a subject, a collection, a state", oninput: () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      looked = find.value.trim().toLowerCase();
      again();
    }, TYPING_MS);
  } });
  const chosen = select([["", "All databases"]], "", { onchange: () => {
    database = chosen.value;
    turn([undefined]);
  } });
  const isAdmin = session.kind === "admin";
  if (isAdmin) {
    void all(session, "/admin.v1/databases", "databases").then((found) => {
      show(chosen, h("option", { value: "" }, "All databases"), found.map(({ name }) => h("option", { value: name }, name)));
      chosen.value = database;
    }, complain);
  }
  void all(session, "/admin.v1/keys", "keys").then((found) => (keys = new Map(found.map(({ id, label }) => [id, label]))), complain);
  again();
  return {
    element: h("section", { class: "stack", "aria-label": "Inspector" },
      h("div", { class: "head" }, h("h1", {}, "Inspector"), counted),
      h("div", { class: "row end" }, h("div", { class: "grow" }, field("Find", find)), isAdmin && field("Database", chosen)),
      notice, body),
    close: () => {
      clearTimeout(typing);
      end();
    },
  };
}

function who({ subject, key, database }, keys) {
  const label = keys.get(key) || `key ${key}`;
  return h("span", {}, subject ? h("strong", {}, subject) : "", subject ? " · " : "", label, h("span", { class: "hint" }, ` in ${database}`));
}

function follows({ follows: all_ }) {
  const names = [...new Set(all_.map(({ collection }) => collection ?? "every collection"))];
  const queries = all_.filter(({ query }) => query !== null).length;
  const shown = names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${number(names.length - 3)} more` : "");
  return `${shown || "nothing"}${queries ? ` · ${number(queries)} ${queries === 1 ? "query" : "queries"}` : ""}`;
}

const followed = (collection, filter, fields) =>
  [collection ?? "every collection", filter && [" ", h("code", {}, JSON.stringify(filter))], fields && ` (${fields.join(", ")})`];

// --- one connection ------------------------------------------------------------------------------

function connectionDialog({ session, connection, keys, onEnd }) {
  const { id } = connection;
  const fact = (term, value) => value !== null && value !== undefined && value !== "" && [h("dt", {}, term), h("dd", {}, value)];
  const json = (value) => h("code", {}, JSON.stringify(value));
  const rules = Object.entries(connection.rules ?? {}).map(([name, rule]) => h("div", {}, `${name}: `, json(rule)));
  const queries = connection.follows.map(({ collection, filter, select: fields }) => h("li", {}, followed(collection, filter, fields)));
  const finish = async (close, revoke, words) => {
    if (!(await confirm(words, `${connection.address}, connected since ${time(connection.since)}`, "Yes, end it", { danger: true }))) return;
    await session.send("DELETE", `/admin.v1/connections/${encodeURIComponent(id)}`, undefined, { query: { revoke } });
    say("The connection is ended.");
    close();
    onEnd();
  };
  return dialog(`Connection ${id}`, (close) => h("div", { class: "stack" },
    h("dl", { class: "facts" },
      fact("State", `${connection.state}, at seq ${number(connection.seq)} of ${number(connection.head)}`),
      fact("Behind", count(connection.lagChanges, "change")),
      fact("Not yet sent", bytes(connection.unsentBytes)),
      fact("Sent", connection.sentBytes === null ? null : bytes(connection.sentBytes)),
      fact("Address", `${connection.address}, ${connection.transport}, ${connection.mode} mode`),
      fact("Database", connection.database),
      fact("Key", `${connection.key}${keys.get(connection.key) ? ` (${keys.get(connection.key)})` : ""}`),
      fact("Subject", connection.subject),
      fact("Token", connection.jti),
      fact("Ends", connection.expiresAt && time(connection.expiresAt)),
      fact("Permissions", connection.permissions?.join(", ")),
      fact("Collections", connection.collections === null ? "every one of the token" : connection.collections?.join(", ")),
      rules.length > 0 && fact("Rules", rules),
      fact("Follows", queries.length ? h("ul", {}, queries) : "nothing now")),
    whyForm(session, connection),
    actions(
      button("End it; it connects again", () => finish(close, undefined, "End this connection?"), { class: "danger" }),
      connection.jti && button("Revoke its token", () => finish(close, "token", "Revoke this token, and end all its connections?"), { class: "danger" }),
      connection.subject && button(`Revoke all of ${connection.subject}`, () => finish(close, "subject", `Revoke all tokens of ${connection.subject}?`), { class: "danger" }),
      h("button", { type: "button", onclick: () => close() }, "Close"))), { wide: true });
}

const OUTCOMES = { sent: "good", waiting: "warn" };

/** Why did it get a change, or not? */
function whyForm(session, { id, collections, head }) {
  const seq = h("input", { inputmode: "numeric", pattern: "[0-9]*", size: "10", placeholder: String(head) });
  const collection = h("input", { spellcheck: "false", value: collections?.[0] ?? "", size: "16" });
  const document_ = h("input", { spellcheck: "false", size: "16" });
  const result = h("div", { class: "stack", role: "status", id: newId("why") });
  const ask = async (event) => {
    event.preventDefault();
    const about = document_.value ? { collection: collection.value, id: document_.value } : { seq: seq.value || head };
    try {
      show(result, explained(await session.get(`/admin.v1/connections/${encodeURIComponent(id)}/why`, about)));
    } catch (error) {
      show(result, h("p", { class: "refused" }, sentence(error)));
    }
  };
  return h("form", { onsubmit: ask },
    h("fieldset", {}, h("legend", {}, "Why did it get a change, or not?"),
      h("div", { class: "row end" }, field("Seq", seq), h("span", {}, "or the newest change of"), field("Collection", collection), field("Document", document_), h("button", {}, "Why?")),
      result));
}

function explained({ seq, outcome, text, change, topics }) {
  return [
    h("p", {}, h("span", { class: `badge ${OUTCOMES[outcome] ?? "bad"}` }, outcome), " ", text),
    change && h("p", { class: "hint" }, `Seq ${number(seq)}: ${change.type} of ${change.collection} / ${change.id}`),
    h("ul", {}, topics.map(({ collection, filter, select: fields, event, since }) => h("li", {},
      followed(collection, filter, fields), `: ${event ? `it is an event there (${event})` : "it is no event there"}`, since > 0 && `, followed since seq ${number(since)}`))),
  ];
}
