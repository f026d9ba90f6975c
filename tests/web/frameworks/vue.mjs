import { createApp, h, ref } from "vue";
import { useLive } from "paperdb/vue";

export function mount(notes, element, first) {
  const room = ref(first);
  const app = createApp({
    setup() {
      const { documents, status } = useLive(notes, () => ({ filter: { room: room.value }, sort: "text", limit: 20 }));
      return () => [
        h("p", { id: "status" }, status.value),
        h("ul", documents.value.map(({ _id, text }) => h("li", { key: _id }, text))),
      ];
    },
  });
  app.mount(element);
  return { setRoom: (name) => (room.value = name), add: (note) => notes.insert(note), unmount: () => app.unmount() };
}
