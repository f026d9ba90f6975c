// A page that shows the notes of a room, in the framework that the address names. tests/web/test_frameworks.py drives it
// by `setRoom`, `add` and `unmount`, and reads what it shows.
import { createClient } from "paperdb";

const { framework, server, tokens, collection } = Object.fromEntries(new URLSearchParams(location.search));
const pages = {
  react: () => import("./react.mjs"),
  vue: () => import("./vue.mjs"),
  svelte: () => import("./svelte.mjs"),
  tanstack: () => import("./tanstack.mjs"),
};

window.asked = []; // the actions that the server was sent
class Watched extends WebSocket {
  send(text) {
    window.asked.push(JSON.parse(text).action);
    super.send(text);
  }
}

window.rendered = []; // all that was ever shown
new MutationObserver(() => {
  const shown = [...document.querySelectorAll("li")].map((item) => item.textContent).join();
  if (shown !== window.rendered.at(-1)) window.rendered.push(shown);
}).observe(document.getElementById("app"), { childList: true, subtree: true, characterData: true });

window.db = createClient({
  baseUrl: server,
  getToken: async () => (await fetch(tokens)).text(),
  tokenMarginSeconds: 25,
  WebSocket: Watched,
});
window.notes = window.db.collection(collection);
const { mount } = await pages[framework]();
Object.assign(window, mount(window.notes, document.getElementById("app"), "a"));
window.mounted = true;
