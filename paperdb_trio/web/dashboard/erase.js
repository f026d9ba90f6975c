/**
 * Deleting many documents.
 *
 * Law: nothing is deleted before the collection's name has been typed. Each document has its event; what others delete
 * meanwhile is no error.
 */

import { h } from "./dom.js";
import { actions, confirmByName, dialog, number, progress, say, sentence } from "./ui.js";

const STEP = 500;

/** Delete documents of a collection by their ids, in batches; returns how many there were. */
async function erase(session, name, ids, signal) {
  let left = ids;
  while (left.length) {
    const operations = left.map((id) => ({ op: "delete", collection: name, id }));
    try {
      await session.send("POST", "/batch", { operations }, { signal });
      return left.length;
    } catch (error) {
      if (error.code !== "NOT_FOUND" || error.index === undefined) throw error;
      left = left.filter((_, at) => at !== error.index);
    }
  }
  return 0;
}

export async function eraseThese({ session, name, ids }) {
  const words = `${number(ids.length)} selected ${ids.length === 1 ? "document" : "documents"} of ${name}. This cannot be undone in one step.`;
  if (!(await confirmByName("Delete the selected documents?", words, name, `Delete ${number(ids.length)}`))) return;
  await session.record("documents.delete", name, `${number(ids.length)} that were selected`);
  say(`${number(await erase(session, name, ids))} deleted.`);
}

/** Delete what matches the filter, or the collection. Resolves to "dropped", true (some were deleted) or undefined. */
export async function eraseAll({ session, name, filter }) {
  const hasFilter = Object.keys(filter).length > 0;
  const text = hasFilter ? JSON.stringify(filter) : undefined;
  const { count } = await session.get(`/${name}/count`, { filter: text });
  if (hasFilter && count === 0) return void say("No document matches.");
  const drops = !hasFilter && session.isFull;
  const what = hasFilter ? `${number(count)} documents that match ${text}` : `All ${number(count)} documents`;
  const words = `${what} of ${name} will be deleted${drops ? ", and its schema with them" : ""}.`;
  const title = drops ? `Delete the collection ${name}?` : "Delete these documents?";
  if (!(await confirmByName(title, words, name, `Delete ${number(count)} documents`))) return undefined;
  if (drops) {
    const { deleted } = await session.send("DELETE", `/${name}`, undefined, { query: { confirm: name } });
    say(`The collection and its ${number(deleted)} documents are deleted.`);
    return "dropped";
  }
  await session.record("documents.delete", name, what);
  await eraseMatching({ session, name, filter: text, count });
  return true;
}

function eraseMatching({ session, name, filter, count }) {
  const bar = progress("Deleting");
  const abort = new AbortController();
  let done = 0;
  const run = async (close) => {
    try {
      while (done < count) {
        const { documents } = await session.get(`/${name}/docs`, { filter, select: "_id", limit: Math.min(STEP, count - done) });
        if (documents.length === 0 || abort.signal.aborted) break;
        const erased = await erase(session, name, documents.map(({ _id }) => _id), abort.signal);
        done += erased;
        bar.to(done, count, `${number(done)} of ${number(count)} deleted`);
      }
      close();
      say(`${number(done)} documents are deleted.`);
    } catch (error) {
      if (!abort.signal.aborted) bar.to(done, count, `${number(done)} are deleted, then: ${sentence(error)}`);
    }
  };
  return dialog("Deleting", (close) => {
    void run(close);
    return [bar.element, actions(h("button", { type: "button", onclick: () => close(abort.abort()) }, "Stop"))];
  }).then(() => abort.abort());
}
