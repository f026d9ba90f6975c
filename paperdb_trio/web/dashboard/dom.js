/**
 * Elements, made of text.
 *
 * Law: no text becomes markup, whoever wrote it. There is no way here to parse HTML, to set a handler by its text, or to
 * link to a `javascript:` address; the linter refuses the ways around (eslint.config.mjs), the browser too (the page's
 * trusted types).
 */

const SVG = "http://www.w3.org/2000/svg";
const LINK = /^(#|https?:\/\/|blob:)/;

/** `h("button", {class: "primary", onclick: save}, "Save")`. Children that are null or false are left out. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) set(element, name, value);
  put(element, ...children);
  return element;
}

export function set(element, name, value) {
  if (value === undefined || value === null || value === false) return void element.removeAttribute(name);
  if (name.startsWith("on")) {
    if (typeof value !== "function") throw new TypeError(`${name} must be a function`);
    return void element.addEventListener(name.slice(2), value);
  }
  if (name === "value") return void (element.value = value);
  if (name === "href" && !LINK.test(value)) throw new TypeError("A link must be to a part of this page, or to http");
  if (name === "style" || name === "srcdoc") throw new TypeError(`${name} is not allowed`);
  return void element.setAttribute(name, value === true ? "" : String(value));
}

/** Append children: elements, texts, arrays of them. */
export function put(element, ...children) {
  for (const child of children.flat(3)) {
    if (child !== undefined && child !== null && child !== false) element.append(child);
  }
  return element;
}

/** Have these children, and no others. */
export function show(element, ...children) {
  element.replaceChildren();
  return put(element, ...children);
}

const OUTLINES = {
  check: "M3 8.5l3.5 3.5L13 4.5",
  close: "M4 4l8 8M12 4l-8 8",
  down: "M4 6l4 4 4-4",
  left: "M10 3L5 8l5 5",
  right: "M6 3l5 5-5 5",
  first: "M12 3L7 8l5 5M4 3v10",
  plus: "M8 3v10M3 8h10",
  moon: "M13 9.5A5.5 5.5 0 0 1 6.5 3 5.5 5.5 0 1 0 13 9.5z",
  documents: "M3.5 2h6l3 3v9h-9zM6 7h4M6 10h4",
  live: "M1.5 8h3l2-5 3 10 2-5h3",
  tokens: "M5.5 7.5a3 3 0 1 1 2 2.8L6 12H4v2H2v-2.5l3.7-3.7zM11 5h.01",
  inspector: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM10.5 10.5L14 14",
  health: "M8 13.5S2 10 2 5.8A3 3 0 0 1 8 4.6a3 3 0 0 1 6 1.2C14 10 8 13.5 8 13.5z",
  access: "M4 7h8v6.5H4zM5.5 7V5a2.5 2.5 0 0 1 5 0v2",
};

/** A picture that says nothing to a screen reader: the words beside it do. */
export function icon(name) {
  return svg(
    "svg",
    { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: OUTLINES[name] }),
  );
}
