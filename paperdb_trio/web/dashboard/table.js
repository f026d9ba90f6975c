/** Tables of what the server knows, and looking at it again and again. Law: asks nobody. */

import { h, show } from "./dom.js";
import { newId } from "./ui.js";

/** `heads`: texts, or null for a column of buttons. `rows`: arrays of texts and elements. */
export function table(label, heads, rows, none = "There are none.") {
  if (rows.length === 0) return h("p", { class: "hint" }, none);
  const id = newId("table");
  const names = heads.map((head) => h("th", { scope: "col" }, head ?? h("span", { class: "unseen" }, "What to do")));
  const body = rows.map((cells) => h("tr", {}, cells.map((cell, at) => h("td", { class: heads[at] === null ? "do" : "", "data-head": heads[at] }, cell))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": id },
    h("table", { class: "list" }, h("caption", { class: "unseen", id }, label), h("thead", {}, h("tr", {}, names)), h("tbody", {}, body)));
}

/** As `show`; what had the focus is made anew, and has it again. */
export function showAgain(element, ...children) {
  const controls = () => [...element.querySelectorAll("button, a, input, [tabindex]")];
  const place = controls().indexOf(document.activeElement);
  show(element, ...children);
  controls()[place]?.focus({ preventScroll: true });
}

/** Call `run` now and each so many milliseconds while the page is seen. Returns a function that ends it. */
export function every(milliseconds, run, onError) {
  let isOver = false;
  let timer = null;
  const turn = async () => {
    try {
      if (!document.hidden) await run();
    } catch (error) {
      if (!isOver) onError(error);
    }
    if (!isOver) timer = setTimeout(turn, milliseconds);
  };
  void turn();
  return () => {
    isOver = true;
    clearTimeout(timer);
  };
}
