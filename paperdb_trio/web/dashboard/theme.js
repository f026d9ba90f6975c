/** Light, dark, or as the system has it; this browser remembers which. */

import { h, icon } from "./dom.js";

const STORED = "paperdb.theme";
const THEMES = { system: "Theme: system", light: "Theme: light", dark: "Theme: dark" };

let now = localStorage.getItem(STORED);
if (!(now in THEMES)) now = "system";
document.documentElement.dataset.theme = now;

function nextTheme() {
  const names = Object.keys(THEMES);
  now = names[(names.indexOf(now) + 1) % names.length];
  localStorage.setItem(STORED, now);
  document.documentElement.dataset.theme = now;
  for (const words of document.querySelectorAll(".theme span")) words.textContent = THEMES[now];
}

export function themeButton() {
  return h("button", { type: "button", class: "quiet theme", onclick: nextTheme }, icon("moon"), h("span", {}, THEMES[now]));
}
