import { StrictMode, createElement, useState } from "react";
import { createRoot } from "react-dom/client";
import { useLive } from "paperdb/react";

export function mount(notes, element, first) {
  let setRoom;
  function Notes() {
    const [room, set] = useState(first);
    setRoom = set;
    const { documents, status } = useLive(notes, { filter: { room }, sort: "text", limit: 20 });
    const items = documents.map(({ _id, text }) => createElement("li", { key: _id }, text));
    return [createElement("p", { id: "status", key: "status" }, status), createElement("ul", { key: "list" }, items)];
  }
  const root = createRoot(element);
  root.render(createElement(StrictMode, null, createElement(Notes)));
  return { setRoom: (room) => setRoom(room), add: (note) => notes.insert(note), unmount: () => root.unmount() };
}
