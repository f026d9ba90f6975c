/**
 * What all parts use to speak with a person: dialogs, messages, fields, numbers.
 *
 * Law: knows no document and no server. A dialog is the browser's own `<dialog>`: it keeps the focus, gives it back, and
 * closes with Escape.
 */

import { h, icon, put, show } from "./dom.js";

let ids = 0;
export const newId = (prefix) => `${prefix}-${(ids += 1)}`;

/** A word that comes and goes, and is read out. `tone`: good or bad. */
export function say(text, tone = "good") {
  const toast = h("p", { class: `toast ${tone}` }, text);
  document.getElementById("toasts").append(toast);
  setTimeout(() => toast.remove(), tone === "bad" ? 8000 : 3500);
}

/** What a refusal says to a person. */
export const sentence = (error) => (error.code && error.code !== "NETWORK" ? `${error.message} (${error.code})` : error.message);

export const complain = (error) => say(sentence(error), "bad");

/** A labelled control. */
export function field(label, control, hint) {
  const id = (control.id ||= newId("field"));
  const words = hint && h("p", { class: "hint", id: `${id}-hint` }, hint);
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: "field" }, h("label", { for: id }, label), control, words);
}

export function select(options, value, props = {}) {
  const made = options.map(([key, text]) => h("option", { value: key, selected: key === value }, text));
  return h("select", props, made);
}

export function check(label, isChecked, onchange) {
  const box = h("input", { type: "checkbox", checked: isChecked, onchange: () => onchange?.(box.checked) });
  return { box, element: h("label", { class: "check" }, box, h("span", {}, label)) };
}

/** A button whose `run` may take a while, and whose failure is told. */
export function button(label, run, props = {}) {
  const made = h("button", { type: "button", ...props, onclick: async () => {
    made.setAttribute("aria-busy", "true");
    try {
      await run(made);
    } catch (error) {
      complain(error);
    } finally {
      made.removeAttribute("aria-busy");
    }
  } }, label);
  return made;
}

/**
 * A dialog; `build(close)` returns its content. Resolves to what `close` was called with, or undefined after Escape.
 * `mayClose()`: whether Escape closes it.
 */
export function dialog(title, build, { wide = false, mayClose = () => true } = {}) {
  return new Promise((resolve) => {
    const id = newId("dialog");
    let result;
    const close = (value) => {
      result = value;
      element.close();
    };
    const leave = () => mayClose() && close();
    const cross = h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: leave }, icon("close"));
    const element = h(
      "dialog",
      {
        class: wide ? "wide" : "",
        "aria-labelledby": id,
        oncancel: (event) => {
          if (event.target !== element) return;
          event.preventDefault();
          leave();
        },
        onclose: (event) => {
          if (event.target !== element) return;
          element.remove();
          resolve(result);
        },
      },
      h("header", {}, h("h2", { id }, title), cross),
    );
    document.body.append(element);
    put(element, build(close));
    element.showModal();
    element.querySelector("[autofocus]")?.focus();
  });
}

export const actions = (...buttons) => h("div", { class: "actions" }, buttons);

/** A dialog with fields that sends them; resolves to the response, or undefined. */
export function ask(title, fields, yes, send) {
  return dialog(title, (close) => h("form", { onsubmit: async (event) => {
    event.preventDefault();
    try {
      close(await send());
    } catch (error) {
      complain(error);
    }
  } }, fields, actions(h("button", { class: "primary" }, yes), h("button", { type: "button", onclick: () => close() }, "Cancel"))));
}

/** What the server shows only now. */
export const showOnce = (title, label, secret, words) =>
  dialog(title, (close) => [
    h("p", { class: "note" }, words),
    field(label, h("input", { class: "mono", readonly: true, value: secret })),
    actions(button("Copy", () => copy(secret), { class: "primary", autofocus: true }), h("button", { type: "button", onclick: () => close() }, "Close")),
  ]);

/** Tabs `[id, label, make]`, of which one shows its content in `panel`: first that with the id `first`, if there is one. */
export function tabs(views, panel, first) {
  panel.id ||= newId("panel");
  panel.setAttribute("role", "tabpanel");
  const choose = (chosen) => {
    for (const [at, tab] of [...list.children].entries()) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      if (tab === chosen) show(panel, views[at][2]());
    }
    panel.setAttribute("aria-labelledby", chosen.id);
  };
  const made = views.map(([, label]) =>
    h("button", { type: "button", role: "tab", id: newId("tab"), "aria-controls": panel.id, onclick: ({ currentTarget }) => choose(currentTarget) }, label),
  );
  const list = h("div", {
    role: "tablist",
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = made[(made.indexOf(document.activeElement) + step + made.length) % made.length];
      next.focus();
      choose(next);
    },
  }, made);
  choose(made[Math.max(0, views.findIndex(([id]) => id === first))]);
  return list;
}

/** Where a key that moves leads to in a list, from the place `at`; undefined for other keys. */
export function placeAfter(key, at, length) {
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: length - 1, PageDown: at + 10, PageUp: at - 10 }[key];
  return to === undefined ? undefined : Math.max(0, Math.min(length - 1, to));
}

/** Yes or no. */
export function confirm(title, text, yes = "Yes", { danger = false } = {}) {
  return dialog(title, (close) => [
    h("p", {}, text),
    actions(
      h("button", { type: "button", class: danger ? "danger" : "primary", onclick: () => close(true) }, yes),
      h("button", { type: "button", autofocus: true, onclick: () => close(false) }, "Cancel"),
    ),
  ]);
}

/** Yes, if `name` is typed. */
export function confirmByName(title, text, name, yes) {
  return dialog(title, (close) => {
    const input = h("input", { autocomplete: "off", spellcheck: "false", autofocus: true, oninput: () => {
      go.disabled = input.value !== name;
    } });
    const go = h("button", { class: "danger", disabled: true }, yes);
    return h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          if (input.value === name) close(true);
        },
      },
      h("p", {}, text),
      field(["Type ", h("strong", { class: "mono" }, name), " to go on"], input),
      actions(go, h("button", { type: "button", onclick: () => close(false) }, "Cancel")),
    );
  });
}

/** A bar that fills. `to(done, total, words)`. */
export function progress(label) {
  const bar = h("progress", { "aria-label": label, max: "1" });
  const words = h("p", { role: "status" });
  return {
    element: h("div", { class: "progress" }, bar, words),
    to(done, total, text) {
      if (total > 0) bar.value = Math.min(1, done / total);
      show(words, text);
    },
  };
}

/** Texts on lines with what is new and what is gone. */
export function diffView(lines, label) {
  const context = 3;
  const near = new Set();
  lines.forEach(({ sign }, at) => {
    if (sign === " ") return;
    for (let n = at - context; n <= at + context; n += 1) near.add(n);
  });
  const shown = [];
  let isHidden = false;
  lines.forEach(({ sign, text }, at) => {
    if (!near.has(at)) {
      if (!isHidden) shown.push(h("span", { class: "line skipped" }, "  ⋯\n"));
      isHidden = true;
      return;
    }
    isHidden = false;
    const kind = { " ": "", "-": " out", "+": " in" }[sign];
    const word = { "-": "removed: ", "+": "added: " }[sign];
    shown.push(h("span", { class: `line${kind}` }, word && h("span", { class: "unseen" }, word), `${sign} ${text}\n`));
  });
  if (near.size === 0) return h("p", { class: "hint" }, "No difference.");
  return h("pre", { class: "diff", tabindex: "0", role: "region", "aria-label": label }, shown);
}

export const number = (value) => Number(value).toLocaleString("en");

/** "1 change", "2 changes". */
export const count = (value, thing) => `${number(value)} ${thing}${value === 1 ? "" : "s"}`;

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value) {
  const power = value > 0 ? Math.min(UNITS.length - 1, Math.floor(Math.log2(value) / 10)) : 0;
  return `${(value / 1024 ** power).toLocaleString("en", { maximumFractionDigits: power ? 1 : 0 })} ${UNITS[power]}`;
}

/** A time of the server's, in this browser's zone. */
export function time(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return String(text);
  const two = (value) => String(value).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** The same as an element that does not break. */
export const moment = (text) => h("time", { datetime: text }, time(text));

export function download(name, parts, type) {
  const address = URL.createObjectURL(new Blob(parts, { type }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

export async function copy(text) {
  await navigator.clipboard.writeText(text);
  say("Copied.");
}
