/**
 * The dashboard: signing in, the parts, and the way between them.
 *
 * Law: an address (`#/documents/messages?filter=…`) says what is shown, never who is signed in. A part is a function
 * of a context that returns `{element, close, start}`; nothing of it runs on after `close`. `start` is where the keyboard
 * begins, if that is not the whole element.
 */

import { h, icon, put, show } from "./dom.js";
import { access } from "./access.js";
import { documents } from "./documents.js";
import { health } from "./health.js";
import { inspector } from "./inspector.js";
import { live } from "./live.js";
import { Session, all, server } from "./session.js";
import { themeButton } from "./theme.js";
import { tokens } from "./tokens.js";
import { complain, sentence, time } from "./ui.js";

/** `isFor(session)`: whether there is the part. */
const PARTS = [
  { id: "documents", label: "Documents", view: documents, isFor: (one) => one.hasDocuments },
  { id: "live", label: "Live", view: live, isFor: (one) => one.hasDocuments },
  { id: "tokens", label: "Tokens", view: tokens, isFor: (one) => one.hasKey },
  { id: "inspector", label: "Inspector", view: inspector, isFor: (one) => one.isOperator },
  { id: "health", label: "Health", view: health, isFor: (one) => one.isOperator },
  { id: "access", label: "Access", view: access, isFor: (one) => one.isOperator },
];

const app = document.getElementById("app");
const welcome = [...app.childNodes];
let session = null;
let signedIn = null; // who is behind a session that shows the data as a token
let part = null; // {element, close, start}

// --- signing in ----------------------------------------------------------------------------------

for (const span of document.querySelectorAll("[data-address]")) span.textContent = new URL(span.textContent, server).href;
const form = document.getElementById("sign-in");
const input = document.getElementById("key");
const refused = document.getElementById("refused");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  refused.textContent = "";
  const candidate = attempt(input.value.trim());
  if (candidate && (await enter(candidate))) candidate.remember();
});

function attempt(key) {
  try {
    return new Session(key);
  } catch (error) {
    refused.textContent = sentence(error);
    return null;
  }
}

/** Whether the server takes the credential. */
async function enter(candidate) {
  try {
    await candidate.check();
  } catch (error) {
    candidate.close();
    if (error.status === 401) Session.forget();
    refused.textContent = sentence(error);
    return false;
  }
  session = candidate;
  session.onLost = lost;
  form.reset();
  frame();
  navigate();
  begin();
  return true;
}

/** The key was revoked, or the token has ended. */
function lost(error) {
  if (signedIn === null) {
    leave();
    refused.textContent = sentence(error);
  } else {
    asMyself();
    complain(error);
  }
}

function leave() {
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  for (const one of [session, signedIn]) one?.close();
  session = signedIn = null;
  Session.forget();
  closePart();
  location.hash = "";
  show(app, welcome);
  input.focus();
}

// --- as a token ----------------------------------------------------------------------------------

/** Show the data as the holder of a token sees it, until `asMyself`. */
function asToken(token) {
  signedIn = session;
  session = new Session(token);
  session.onLost = lost;
  frame();
  go("documents");
}

function asMyself() {
  session.close();
  session = signedIn;
  signedIn = null;
  frame();
  go("tokens");
}

function banner() {
  if (signedIn === null) return null;
  const { subject, exp } = session.claims;
  const who = subject ? `the token of ${subject}` : "a token";
  const until = exp ? `, which ends at ${time(exp * 1000)}` : "";
  const back = h("button", { type: "button", onclick: asMyself }, "Back to my key");
  return h("div", { class: "banner", role: "note" }, h("span", {}, `You see the data as ${who}${until}.`), back);
}

// --- the frame -----------------------------------------------------------------------------------

const available = () => PARTS.filter(({ isFor }) => isFor(session));

function frame() {
  closePart();
  const links = available().map(({ id, label }) =>
    h("li", {}, h("a", { href: `#/${id}`, id: `to-${id}` }, icon(id), h("span", {}, label))),
  );
  const title = h("a", { class: "brand", href: "#/" }, "PaperDB");
  const kind = h("span", { class: "badge kind" }, session.kind === "token" ? "token" : `${session.kind} key`);
  const where = session.kind === "admin" ? databaseChoice() : session.me && h("span", { class: "badge" }, session.me.database);
  show(
    app,
    h(
      "header",
      { class: "top" },
      title,
      h("span", { class: "address mono" }, server.host + server.pathname.replace(/\/$/, "")),
      kind,
      where,
      h("span", { class: "space" }),
      themeButton(),
      h("button", { type: "button", class: "quiet", onclick: leave }, "Sign out"),
    ),
    banner(),
    h(
      "div",
      { class: "frame" },
      h("nav", { "aria-label": "Parts" }, h("ul", {}, links)),
      h("main", { id: "main", tabindex: "-1" }),
    ),
  );
}

/** An admin key sees the server; the documents of a database, if one is chosen. */
function databaseChoice() {
  const none = [h("option", { value: "" }, "Choose a database"), session.database && h("option", { value: session.database }, session.database)];
  const choice = put(h("select", { "aria-label": "Database", onchange: () => choose(choice.value || null) }), none);
  choice.value = session.database ?? "";
  void all(session, "/admin.v1/databases", "databases").then((databases) => {
    show(choice, none[0], databases.map(({ name }) => h("option", { value: name }, name)));
    choice.value = session.database ?? "";
  }, complain);
  return choice;
}

function choose(database) {
  const before = session;
  session = before.on(database);
  session.onLost = lost;
  before.close();
  session.remember();
  frame();
  if (database !== null) go("documents");
  else navigate();
}

// --- the way between parts -----------------------------------------------------------------------

/** What the address says: `{id, path: [...], query: URLSearchParams}`. */
function route() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [id, ...rest] = path.split("/").map(decoded);
  return { id, path: rest, query: new URLSearchParams(search) };
}

function decoded(segment) {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

function address(id, path = [], query = {}) {
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== ""));
  const all = [id, ...path].map(encodeURIComponent).join("/");
  return `#/${all}${search.size ? `?${search}` : ""}`;
}

function go(id, path, query) {
  const target = address(id, path, query);
  if (location.hash === target) navigate();
  else location.hash = target;
}

function navigate() {
  if (session === null) return;
  const now = route();
  const found = available().find(({ id }) => id === now.id) ?? available()[0];
  const main = document.getElementById("main");
  const wasWithin = main.contains(document.activeElement);
  closePart();
  if (found === undefined) return void show(main, h("p", {}, "There is nothing here for this key."));
  for (const link of document.querySelectorAll("nav a")) {
    if (link.id === `to-${found.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const context = {
    session,
    path: found.id === now.id ? now.path : [],
    query: found.id === now.id ? now.query : new URLSearchParams(),
    go,
    address,
    /** Have another address for what is shown already. */
    rename: (path, query) => history.replaceState(null, "", address(found.id, path, query)),
    asToken,
  };
  document.title = `${found.label} · PaperDB`;
  try {
    part = found.view(context);
  } catch (error) {
    complain(error);
    throw error;
  }
  show(main, part.element);
  if (wasWithin) begin();
}

/** Give the focus to what the part is about. */
function begin() {
  (part?.start ?? document.getElementById("main")).focus({ preventScroll: true });
}

function closePart() {
  part?.close?.();
  part = null;
}

addEventListener("hashchange", navigate);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says what is shown
  begin();
});

const remembered = Session.remembered();
if (remembered !== null) void enter(remembered);
put(app.querySelector(".welcome"), themeButton());
