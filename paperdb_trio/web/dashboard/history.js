/**
 * The versions of a document that the change log still holds.
 *
 * Law: shows and offers; who restores a version is the one that it is given to.
 */

import { h, show } from "./dom.js";
import { difference, editable, elements, members } from "./json-text.js";
import { pathOf } from "./session.js";
import { button, count, diffView, number, sentence, time } from "./ui.js";

const LIMIT = 50;

/** `[{seq, type, text, at}]`, newest first: `text` is the document's own fields, laid out. */
export async function versionsOf(session, name, id, limit = LIMIT) {
  const { text } = await session.call("GET", `${pathOf(name, id)}/history`, { query: { limit } });
  return elements(members(text)[0].text).map((version) => {
    const about = Object.fromEntries(members(version).map((member) => [member.name, member.text]));
    const updated = members(about.data).find((member) => member.name === "updatedAt");
    return {
      seq: Number(about.seq),
      type: JSON.parse(about.type),
      text: editable(about.data),
      at: updated ? JSON.parse(updated.text) : null,
    };
  });
}

/** `onRestore(text, seq)`: false if there is no way back. */
export function historyView({ session, name, id, onRestore }) {
  const element = h("div", { class: "stack" }, h("p", { class: "hint" }, "Reading the change log…"));
  versionsOf(session, name, id).then(
    (versions) => show(element, list(versions, onRestore)),
    (error) => show(element, h("p", { class: "refused" }, sentence(error))),
  );
  return element;
}

function list(versions, onRestore) {
  const items = versions.map((version, at) => {
    const before = versions[at + 1];
    const isDelete = version.type === "delete";
    const old = isDelete || !before || before.type === "delete" ? "" : before.text;
    const lines = isDelete ? difference(version.text, "") : difference(old, version.text);
    const title = [h("span", { class: `badge ${version.type}` }, version.type), ` seq ${number(version.seq)}`, version.at && ` · ${time(version.at)}`];
    const isOldest = !before && version.type === "update";
    return h(
      "li",
      { class: "panel" },
      h("div", { class: "row" },
        h("h3", { class: "grow" }, title),
        onRestore && at > 0 && button(`Back to seq ${version.seq}`, () => onRestore(version.text, version.seq))),
      isOldest
        ? h("p", { class: "hint" }, "The log no longer holds what was before.")
        : diffView(lines, `What changed at seq ${version.seq}`),
    );
  });
  const hint = `The change log holds ${count(versions.length, "version")} of it (--retention-age, --retention-count).`;
  return [h("p", { class: "hint" }, hint), h("ol", { class: "stack" }, items)];
}
