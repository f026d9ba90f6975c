/**
 * The part "Access": databases, keys, signing secrets, webhooks, and the record of who did what.
 *
 * Law: a key is shown once, when it is made. What cannot be undone asks for a name.
 */

import { h, icon, show } from "./dom.js";
import { all } from "./session.js";
import { table } from "./table.js";
import { ask, button, complain, confirm, confirmByName, field, moment, number, say, select, showOnce, tabs, time } from "./ui.js";
import { webhooks } from "./webhooks.js";

const PLANS = [["team", "team"], ["pro", "pro"], ["free", "free: no realtime"]];
const DAY_MS = 86_400_000;
const EXPIRIES = [["", "never"], ["1", "in a day"], ["30", "in 30 days"], ["365", "in a year"]];

const part = (name) => encodeURIComponent(name);
const when = (text, none = "never") => (text === null || text === undefined ? none : moment(text));
const expiry = (days) => (days === "" ? null : new Date(Date.now() + Number(days) * DAY_MS).toISOString());

export function access({ session, address, path, rename }) {
  const isAdmin = session.kind === "admin";
  let close = () => {};
  const panel = h("div", { class: "stack" });
  const loading = (load) => {
    const element = h("div", { class: "stack" }, h("p", { class: "hint" }, "Loading…"));
    const again = () => load(again).then((content) => show(element, content), complain);
    void again();
    return element;
  };
  const views = [
    ["databases", "Databases", () => loading((again) => databases(session, isAdmin, again))],
    ["keys", "Keys", () => loading((again) => keys(session, isAdmin, again))],
    isAdmin && ["secrets", "Signing secrets", () => loading((again) => secrets(session, again))],
    isAdmin && ["webhooks", "Webhooks", () => {
      const view = webhooks({ session });
      ({ close } = view);
      return view.element;
    }],
    isAdmin && ["audit", "Record", () => loading(() => audit(session))],
  ].filter(Boolean).map(([id, label, make]) => [id, label, () => {
    close();
    close = () => {};
    rename([id]);
    return make();
  }]);
  return {
    element: h("section", { class: "stack", "aria-label": "Access" },
      h("h1", {}, "Access"),
      !isAdmin && h("p", { class: "hint" }, "A secret key sees its own database. To change anything, sign in with an admin key: paperdb keys create --admin."),
      tabs(views, panel, path[0]), panel,
      h("p", { class: "hint" }, "Sessions: the ", h("a", { href: address("inspector") }, "inspector"), " shows who is connected now, with which token, and can end it.")),
    close: () => close(),
  };
}

const nameInput = (value = "") => h("input", { required: true, value, autocomplete: "off", spellcheck: "false", autofocus: true, maxlength: "64" });

// --- databases -----------------------------------------------------------------------------------

async function databases(session, isAdmin, again) {
  const [found, { audience }] = await Promise.all([all(session, "/admin.v1/databases", "databases"), session.get("/admin.v1/health")]);
  const create = async () => {
    const [name, plan] = [nameInput(), select(PLANS, "team")];
    const made = await ask("New database", [field("Name", name), field("Plan", plan)], "Create",
      () => session.send("POST", "/admin.v1/databases", { name: name.value, plan: plan.value }));
    if (made) await again(say(`The database ${made.name} is there.`));
  };
  const change = async ({ name, plan }) => {
    const [called, planned] = [nameInput(name), select(PLANS, plan)];
    const done = await ask(`Change ${name}`, [field("Name", called, "Tokens and connections go on over a rename."), field("Plan", planned, "Without realtime, its connections end.")], "Save",
      () => session.send("PATCH", `/admin.v1/databases/${part(name)}`, { name: called.value, plan: planned.value }));
    if (done) await again(say("Saved."));
  };
  const remove = async ({ name, documents }) => {
    const words = `Its ${number(documents)} documents, keys and connections end at once.`;
    if (!(await confirmByName(`Delete the database ${name}?`, words, name, "Delete it"))) return;
    await session.send("DELETE", `/admin.v1/databases/${part(name)}`, undefined, { query: { confirm: name } });
    await again(say("Deleted."));
  };
  return [
    isAdmin && h("div", {}, button([icon("plus"), "New database"], create)),
    table("Databases", ["Name", "Plan", "Collections", "Documents", "Last seq", "Connections", "Created", ...(isAdmin ? [null] : [])], found.map((one) => [
      h("strong", {}, one.name), one.plan, number(one.collections), number(one.documents), number(one.seq), number(audience.byDatabase[one.name] ?? 0), moment(one.createdAt),
      ...(isAdmin ? [[button("Change", () => change(one)), " ", button("Delete", () => remove(one))]] : []),
    ])),
  ];
}

// --- keys ----------------------------------------------------------------------------------------

const stateOf = ({ revokedAt, expiresAt }) => {
  if (revokedAt) return h("span", { class: "badge bad" }, "revoked");
  if (expiresAt && Date.parse(expiresAt) <= Date.now()) return h("span", { class: "badge warn" }, "expired");
  return h("span", { class: "badge good" }, "valid");
};

async function keys(session, isAdmin, again) {
  const found = await all(session, "/admin.v1/keys", "keys");
  const create = async () => {
    const names = (await all(session, "/admin.v1/databases", "databases")).map(({ name }) => [name, name]);
    const database = select(names, names[0]?.[0]);
    const where = field("Database", database);
    const kind = select([["secret", "secret: reads, writes, mints tokens"], ["public", "public: reads all of its database"], ["admin", "admin: the whole server"]], "secret",
      { onchange: () => (where.hidden = kind.value === "admin") });
    const label = h("input", { maxlength: "128", autocomplete: "off", placeholder: "back end of the shop" });
    const ends = select(EXPIRIES, "");
    const made = await ask("New key", [field("Kind", kind), where, field("Label", label), field("Expires", ends)], "Create", () =>
      session.send("POST", "/admin.v1/keys", {
        kind: kind.value, label: label.value, expiresAt: expiry(ends.value), ...(kind.value !== "admin" && { database: database.value }),
      }));
    if (made === undefined) return;
    await showOnce(`The new ${made.kind} key`, "Key", made.key, "This is the only time that it is shown. The server keeps a hash of it.");
    await again();
  };
  const change = async (one) => {
    const label = h("input", { maxlength: "128", value: one.label, autofocus: true });
    const ends = select([["keep", `as it is: ${one.expiresAt ? time(one.expiresAt) : "never"}`], ...EXPIRIES], "keep");
    const done = await ask(`Change the key ${one.id}`, [field("Label", label), field("Expires", ends)], "Save", () =>
      session.send("PATCH", `/admin.v1/keys/${part(one.id)}`, { label: label.value, ...(ends.value !== "keep" && { expiresAt: expiry(ends.value) }) }));
    if (done) await again(say("Saved."));
  };
  const revoke = async (one) => {
    const words = `${one.kind} key${one.database ? ` of ${one.database}` : ""}${one.label ? `, "${one.label}"` : ""}. Its tokens and connections end within a second.`;
    if (!(await confirm(`Revoke the key ${one.id}?`, words, "Revoke it", { danger: true }))) return;
    await session.send("DELETE", `/admin.v1/keys/${part(one.id)}`);
    await again(say("Revoked."));
  };
  const isOwn = (one) => one.id === session.me?.id;
  const doing = (one) => [button("Change", () => change(one)), " ", !isOwn(one) && button("Revoke", () => revoke(one))];
  return [
    isAdmin && h("div", {}, button([icon("plus"), "New key"], create)),
    table("Keys", ["Id", "Kind", "Database", "Label", "State", "Created", "Last used", "Expires", ...(isAdmin ? [null] : [])], found.map((one) => [
      [h("span", { class: "mono" }, one.id), isOwn(one) && h("span", { class: "hint" }, " (you)")],
      one.kind, one.database ?? "", one.label, stateOf(one), moment(one.createdAt), when(one.lastUsedAt), when(one.expiresAt),
      ...(isAdmin ? [one.revokedAt ? "" : doing(one)] : []),
    ])),
  ];
}

// --- secrets and the record ----------------------------------------------------------------------

async function secrets(session, again) {
  const { secrets: found } = await session.get("/admin.v1/secrets");
  const rotate = async () => {
    if (!(await confirm("Rotate the signing secret?", "New tokens are signed with a new secret. Tokens that exist stay valid until they expire.", "Rotate"))) return;
    await session.send("POST", "/admin.v1/secrets");
    await again(say("New tokens are signed with the new secret."));
  };
  return [
    h("p", { class: "hint" }, "A secret signs tokens. After a leak, rotate it, and revoke the subjects concerned."),
    h("div", {}, button("Rotate", rotate)),
    table("Signing secrets", ["Id", "Created", "Retired"], found.map((one) => [h("span", { class: "mono" }, one.id), moment(one.createdAt), when(one.retiredAt, "signs new tokens")])),
  ];
}

async function audit(session) {
  const list = h("div", { class: "stack" });
  const more = h("div");
  const entries = [];
  const load = async (after) => {
    const page = await session.get("/admin.v1/audit", { limit: 100, after });
    entries.push(...page.entries);
    show(list, table("Record of who did what, newest first", ["When", "Who", "Did", "Database", "What", "Details"], entries.map((one) => [
      moment(one.at), one.by, h("span", { class: "badge mono" }, one.action), one.database ?? "", one.target ?? "",
      Object.keys(one.details ?? {}).length ? h("code", {}, JSON.stringify(one.details)) : "",
    ]), "Nothing has been done yet."));
    show(more, page.next !== undefined && button("Older", () => load(page.next)));
  };
  await load();
  return [list, more];
}
