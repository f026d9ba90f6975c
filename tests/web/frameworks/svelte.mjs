// Without the compiler: what a component does with a store, by the store contract and svelte/store.
import { derived, writable } from "svelte/store";

export function mount(notes, element, first) {
  const room = writable(first);
  let off;
  const shown = derived(room, (name, set) => notes.live({ filter: { room: name }, sort: "text" }).subscribe(set));
  const texts = derived(shown, (view) => ({ status: view?.status, items: view?.documents.map(({ text }) => text) ?? [] }));
  const start = () => {
    off = texts.subscribe(({ status, items }) => {
      const list = document.createElement("ul");
      for (const text of items) list.append(Object.assign(document.createElement("li"), { textContent: text }));
      element.replaceChildren(Object.assign(document.createElement("p"), { id: "status", textContent: status }), list);
    });
  };
  start();
  return { setRoom: (name) => room.set(name), add: (note) => notes.insert(note), unmount: () => off() };
}
