/**
 * How a query finds its documents, and the index that would help.
 *
 * Law: the server knows (`explain`); an index is a line of the collection's schema.
 */

import { h, put, show } from "./dom.js";
import { readSchema, withIndex, writeSchema } from "./schema.js";
import { actions, button, dialog, number, sentence } from "./ui.js";

const POLL_MS = 1000;
const list = (names) => names.join(", ");

export function planDialog({ session, name, filter, sort, limit, after, onIndexed }) {
  const body = h("div", { class: "stack" }, h("p", { class: "hint" }, "Asking…"));
  const foot = h("div", { class: "row" });
  let isOver = false;

  async function explain() {
    const began = performance.now();
    const about = { sort, limit, after, explain: "true" };
    if (Object.keys(filter).length) about.filter = JSON.stringify(filter);
    const { explain: plan, documents } = await session.get(`/${name}/docs`, about);
    return { ...plan, found: documents.length, milliseconds: performance.now() - began };
  }

  async function look() {
    try {
      const plan = await explain();
      if (isOver) return;
      render(plan);
      if (plan.building.length) setTimeout(look, POLL_MS);
    } catch (error) {
      show(body, h("p", { class: "refused" }, sentence(error)));
    }
  }

  function render(plan) {
    const fact = (term, value) => [h("dt", {}, term), h("dd", {}, value)];
    const isCostly = plan.looksAt > 50 * Math.max(plan.found, 20);
    show(
      body,
      h("dl", { class: "facts" },
        fact("Index", plan.index ? list(plan.index) : "none"),
        fact("Order", plan.order),
        fact("Looks at", `${number(plan.looksAt)} of ${number(plan.documents)} documents`),
        fact("Found", `${number(plan.found)} on this page`),
        fact("Took", `${plan.milliseconds.toFixed(0)} ms, with the way to here`),
        plan.building.length > 0 && fact("Being built", plan.building.map(list).join("; "))),
    );
    if (isCostly && !plan.suggestion) put(body, h("p", { class: "note" }, "No index would help: narrow the filter by a field that is compared with a value."));
    show(foot, plan.suggestion && button(`Make the index ${list(plan.suggestion)}`, () => make(plan.suggestion), { class: "primary" }));
  }

  async function make(fields) {
    await writeSchema(session, name, withIndex(await readSchema(session, name), fields));
    await look();
    onIndexed?.();
  }

  void look();
  return dialog("How this page is found", (close) => [
    body,
    actions(foot, h("button", { type: "button", onclick: () => close(), autofocus: true }, "Close")),
  ]).then(() => (isOver = true));
}
