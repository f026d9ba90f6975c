import { createCollection } from "@tanstack/db";
import { paperdbOptions } from "paperdb/tanstack";

export function mount(notes, element, first) {
  let collection;
  let subscription;
  const show = (status) => {
    const texts = [...collection.values()].map(({ text }) => text).sort();
    const list = document.createElement("ul");
    for (const text of texts) list.append(Object.assign(document.createElement("li"), { textContent: text }));
    element.replaceChildren(Object.assign(document.createElement("p"), { id: "status", textContent: status }), list);
  };
  const unmount = () => {
    subscription?.unsubscribe();
    return collection?.cleanup();
  };
  function setRoom(room) {
    void unmount();
    const own = (collection = createCollection(paperdbOptions({ collection: notes, filter: { room }, startSync: true })));
    subscription = own.subscribeChanges(() => own === collection && show(own.status));
    void own.preload().then(() => own === collection && show(own.status));
  }
  setRoom(first);
  const add = (note) => collection.insert({ _id: crypto.randomUUID(), ...note }).isPersisted.promise.then(() => true);
  return { setRoom, add, unmount };
}
