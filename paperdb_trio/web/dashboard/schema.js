/** The schema of a collection, its indexes among it. */

import { h } from "./dom.js";
import { pretty, problem } from "./json-text.js";
import { actions, button, dialog, field, newId, say, sentence } from "./ui.js";

/** The schema, or null. */
export async function readSchema(session, name) {
  try {
    return await session.get(`/${name}/schema`);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

export const writeSchema = (session, name, schema) => session.send("PUT", `/${name}/schema`, schema);

export function withIndex(schema, fields) {
  const { properties = {}, indexes = [], ...more } = schema ?? {};
  return { ...more, properties, indexes: [...indexes, fields] };
}

export async function schemaDialog({ session, name }) {
  const schema = await readSchema(session, name);
  const mayWrite = session.isFull;
  const text = pretty(JSON.stringify(schema ?? { properties: {}, indexes: [] }));
  return dialog(`Schema of ${name}`, (close) => {
    const wrong = h("p", { class: "refused", role: "alert", id: newId("wrong") });
    const area = h("textarea", { rows: "14", spellcheck: "false", value: text, readonly: !mayWrite, autofocus: true, "aria-describedby": wrong.id });
    const save = async () => {
      const found = problem(area.value);
      if (found) return void (wrong.textContent = found.message);
      try {
        await session.call("PUT", `/${name}/schema`, { body: area.value });
        say("The schema is in force for later writes.");
        return close(true);
      } catch (error) {
        return void (wrong.textContent = sentence(error));
      }
    };
    const remove = async () => {
      await session.call("DELETE", `/${name}/schema`);
      say("The schema is removed.");
      close(true);
    };
    const hint = 'For example {"properties": {"email": {"type": "string", "unique": true}}, "indexes": [["room", "-createdAt"]]}';
    return [
      field(schema ? "Schema as JSON" : "This collection has no schema yet", area, hint),
      wrong,
      actions(
        mayWrite && button("Save", save, { class: "primary" }),
        h("button", { type: "button", onclick: () => close() }, "Close"),
        h("span", { class: "space" }),
        mayWrite && schema && button("Remove the schema", remove, { class: "danger" }),
      ),
    ];
  });
}
