/**
 * The part "Tokens": compose rules, mint a token, see the data as its holder does, take the code along.
 *
 * Law: what is minted here is a token like any other, good until it ends or is revoked. It is kept nowhere.
 */

import { filterEditor } from "./filter.js";
import { h, icon, show } from "./dom.js";
import { claims } from "./session.js";
import { LANGUAGES } from "./snippets.js";
import { actions, button, check, copy, field, newId, say, select, sentence, tabs, time } from "./ui.js";

const LIFETIMES = [["300", "5 minutes"], ["900", "15 minutes"], ["3600", "1 hour"], ["86400", "1 day"]];
const EVERY = "*";

export function tokens({ session, asToken }) {
  const isSecret = session.isFull;
  const rules = [];
  let names = [];

  const list = h("div", { class: "stack" });
  const subject = h("input", { autocomplete: "off", spellcheck: "false", maxlength: "128", placeholder: "alice", oninput: render });
  const lifetime = select(LIFETIMES, "900", { onchange: render });
  const wrong = h("p", { class: "refused", role: "alert", id: newId("wrong") });
  const minted = h("div", { class: "stack", role: "status" });
  const code = h("div", { class: "stack" });

  // --- the rules ---------------------------------------------------------------------------------

  function add(name = names.find((each) => !rules.some((rule) => rule.name === each)) ?? "messages") {
    rules.push({ name, filter: {}, fields: "", write: false });
    layOut();
  }

  function ruleForm(rule, at) {
    const known = [...new Set([...names, rule.name, ...(isSecret ? [EVERY] : [])])];
    const name = select(known.map((each) => [each, each === EVERY ? "every collection (*)" : each]), rule.name, { onchange: () => {
      rule.name = name.value;
      layOut();
    } });
    const filter = filterEditor({ filter: rule.filter, onApply: (next) => {
      rule.filter = next;
      render();
    } });
    const fields = h("input", { spellcheck: "false", placeholder: "all fields", value: rule.fields, oninput: () => {
      rule.fields = fields.value;
      render();
    } });
    const write = check("May write, within the rule", rule.write, (yes) => {
      rule.write = yes;
      render();
    });
    void session.get(`/${rule.name}/docs`, { limit: 1 }).then(({ documents: [first] }) => filter.fields(Object.keys(first ?? {})), () => {});
    return h("fieldset", {},
      h("legend", {}, rule.name === EVERY ? "Every collection" : rule.name),
      field("Collection", name),
      h("div", { class: "stack" }, h("h3", {}, "Documents that the filter matches"), filter.element),
      field("Visible fields", fields, "Names, with commas between them. _id is always visible."),
      isSecret && write.element,
      rules.length > 1 && h("div", {}, h("button", { type: "button", onclick: () => {
        rules.splice(at, 1);
        layOut();
      } }, icon("close"), "Remove")));
  }

  function layOut() {
    show(list, rules.map(ruleForm));
    render();
  }

  /** What `POST /realtime/token` takes. */
  function request() {
    const isPlain = rules.every(({ filter, fields, write }) => Object.keys(filter).length === 0 && !fields.trim() && !write);
    const collections = isPlain ? rules.map(({ name }) => name) : Object.fromEntries(rules.map((rule) => [rule.name, ruleOf(rule)]));
    const body = { collections, expiresIn: Number(lifetime.value) };
    if (subject.value.trim()) body.subject = subject.value.trim();
    return body;
  }

  // --- the token ---------------------------------------------------------------------------------

  async function mint() {
    wrong.textContent = "";
    show(minted);
    try {
      const found = await session.send("POST", "/realtime/token", request());
      show(minted, result(found));
    } catch (error) {
      wrong.textContent = sentence(error);
    }
  }

  function result({ token, expiresAt, subject: whose }) {
    const about = claims(token);
    const revoke = async (which) => {
      await session.send("POST", "/realtime/revoke", which);
      say(which.subject ? `All tokens of ${which.subject} are revoked.` : "The token is revoked.");
    };
    return h("div", { class: "panel" },
      h("h2", {}, "The token"),
      field("Token", h("textarea", { rows: "4", readonly: true, class: "wrap", value: token }), `It ends at ${time(expiresAt)}.`),
      h("div", { class: "row" },
        button("See the data as this token", () => asToken(token), { class: "primary" }),
        button("Copy", () => copy(token)),
        isSecret && about.jti && button("Revoke it", () => revoke({ jti: about.jti })),
        isSecret && whose && button(`Revoke all of ${whose}`, () => revoke({ subject: whose }))),
      h("details", {}, h("summary", {}, "What it says; its holder can read this"),
        h("pre", { class: "snippet", tabindex: "0" }, JSON.stringify(about, null, 2))));
  }

  // --- the code ----------------------------------------------------------------------------------

  let language = 0;
  const panel = h("div");
  const bar = tabs(LANGUAGES.map(({ label, make }, at) => [at, label, () => {
    language = at;
    return snippet(make);
  }]), panel);

  function snippet(make) {
    const text = rules.length ? make(request()) : "";
    return h("div", { class: "stack" }, h("pre", { class: "snippet", tabindex: "0", role: "region", "aria-label": "Code" }, text), actions(button("Copy", () => copy(text))));
  }

  function render() {
    show(panel, snippet(LANGUAGES[language].make));
  }

  show(code, h("h2", {}, "In your back end, and in the front end"), bar, panel);
  void session.collections().then((all) => {
    names = all.map(({ name }) => name);
    if (rules.length === 0) add();
    else layOut();
  }, () => rules.length === 0 && add());

  return {
    element: h("section", { class: "stack", "aria-label": "Tokens" },
      h("h1", {}, "Tokens"),
      h("p", { class: "hint" }, "A front end holds a token, never a key. Say what it may see and do, mint it, and look at the data with its eyes."),
      h("div", { class: "parts" },
        h("div", { class: "panel" },
          h("h2", {}, "Rules"), list,
          h("div", {}, h("button", { type: "button", onclick: () => add() }, icon("plus"), "Another collection")),
          h("div", { class: "row top" }, h("div", { class: "grow" }, field("Subject", subject, "Whose token it is, so that it can be revoked.")), field("It lasts", lifetime)),
          wrong,
          actions(button("Mint", mint, { class: "primary" }))),
        h("div", { class: "stack" }, minted, h("div", { class: "panel" }, code)))),
    close: () => {},
  };
}

function ruleOf({ filter, fields, write }) {
  const rule = {};
  if (Object.keys(filter).length) rule.filter = filter;
  const select_ = fields.split(",").map((name) => name.trim()).filter(Boolean);
  if (select_.length) rule.select = select_;
  if (write) rule.permissions = ["read", "write"];
  return rule;
}
