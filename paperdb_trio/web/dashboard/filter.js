/**
 * The filter of a query: rows of conditions, or its JSON.
 *
 * Law: asks nobody; `onApply(filter)` is called with a filter that is a JSON object. Whether the server takes it, the
 * server says.
 */

import { OPERATORS, kindOf, toConditions, toFilter } from "./conditions.js";
import { h, icon, show } from "./dom.js";
import { problem } from "./json-text.js";
import { newId, select } from "./ui.js";

const EMPTY = { field: "", op: "eq", text: "" };

/** `{element, fields(names)}`. */
export function filterEditor({ filter, onApply }) {
  const list = h("datalist", { id: newId("fields") });
  const body = h("div", { class: "stack" });
  const wrong = h("p", { class: "refused", role: "alert", id: newId("wrong") });
  let { conditions, any } = toConditions(filter) ?? { conditions: null, any: false };
  let raw = conditions ? null : JSON.stringify(filter, null, 2);

  const current = () => (raw === null ? toFilter(conditions.filter(({ field }) => field !== ""), any) : JSON.parse(raw));

  function apply() {
    const found = raw === null ? null : problem(raw);
    wrong.textContent = found ? `This filter is not JSON: ${found.message}` : "";
    if (!found) onApply(current());
  }

  function row(condition, at) {
    const kind = h("span", { class: "kind" });
    const isKnown = condition.op === "exists";
    const tell = () => (kind.textContent = isKnown ? "" : kindOf(condition.text, condition.op));
    tell();
    const field = h("input", {
      "aria-label": "Field", list: list.id, placeholder: "field", value: condition.field, spellcheck: "false",
      autocapitalize: "off", oninput: () => (condition.field = field.value.trim()),
    });
    const op = select(Object.entries(OPERATORS), condition.op, { "aria-label": "Operator", onchange: () => {
      condition.op = op.value;
      if (op.value === "exists") condition.text = "true";
      render(at, "select");
    } });
    const value = isKnown
      ? select([["true", "yes"], ["false", "no"]], condition.text, { class: "value", "aria-label": "Value", onchange: () => (condition.text = value.value) })
      : h("input", {
        class: "value", "aria-label": "Value", placeholder: "value", value: condition.text, spellcheck: "false",
        oninput: () => {
          condition.text = value.value;
          tell();
        },
      });
    const remove = h("button", { type: "button", class: "quiet", "aria-label": "Remove this condition", onclick: () => {
      conditions.splice(at, 1);
      render(Math.max(0, at - 1));
      apply();
    } }, icon("close"));
    return h("div", { class: "condition", role: "group", "aria-label": `Condition ${at + 1}` }, field, op, value, kind, remove);
  }

  function rawText() {
    const text = h("textarea", {
      rows: "4", "aria-label": "Filter as JSON", spellcheck: "false", value: raw, "aria-describedby": wrong.id,
      oninput: () => (raw = text.value),
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
      },
    });
    return text;
  }

  function toggle() {
    if (raw === null) raw = JSON.stringify(current(), null, 2);
    else {
      const found = problem(raw) ?? (toConditions(JSON.parse(raw)) ? null : { message: "rows cannot say this filter" });
      if (found) return void (wrong.textContent = `It stays as JSON: ${found.message}`);
      ({ conditions, any } = toConditions(JSON.parse(raw)));
      raw = null;
    }
    wrong.textContent = "";
    return render();
  }

  function render(focusAt, part = "input") {
    const isRaw = raw !== null;
    const joined = select([["all", "All of these"], ["any", "Any of these"]], any ? "any" : "all", {
      "aria-label": "How conditions combine", onchange: () => (any = joined.value === "any"),
    });
    const add = h("button", { type: "button", onclick: () => {
      conditions.push({ ...EMPTY });
      render(conditions.length - 1);
    } }, icon("plus"), "Condition");
    const mode = h("button", { type: "button", class: "quiet", onclick: toggle }, isRaw ? "As rows" : "As JSON");
    const hasAny = isRaw || conditions.length > 0;
    show(
      body,
      isRaw ? rawText() : conditions.map(row),
      h("div", { class: "row" },
        !isRaw && conditions.length > 1 && joined,
        !isRaw && add,
        mode,
        hasAny && h("button", { class: "primary" }, "Apply"),
        hasAny && h("button", { type: "button", onclick: clear }, "Clear")),
    );
    if (focusAt !== undefined) body.querySelectorAll(".condition")[focusAt]?.querySelector(part)?.focus();
  }

  function clear() {
    [conditions, any, raw] = [[], false, null];
    wrong.textContent = "";
    render();
    onApply({});
  }

  const form = h("form", {
    class: "filter", role: "search", "aria-label": "Filter",
    onsubmit: (event) => {
      event.preventDefault();
      apply();
    },
  }, list, body, wrong);
  render();
  return {
    element: form,
    /** Names to offer. */
    fields: (names) => show(list, names.map((name) => h("option", { value: name }))),
    /** The server's word on it. */
    refuse: (text) => (wrong.textContent = text),
  };
}
