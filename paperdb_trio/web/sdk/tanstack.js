/**
 * A live query as a collection of `@tanstack/db`: `createCollection(paperdbOptions({ collection: db.messages, filter }))`.
 *
 * Law: imports nothing; these are options. The live query shows what the server has and will have; it is compared with what
 * was told before, and the difference is told.
 */

export function paperdbOptions({ collection, filter, sort, limit, select, ...options }) {
  const about = Object.fromEntries(Object.entries({ filter, sort, limit, select }).filter(([, value]) => value !== undefined));

  function sync({ begin, write, commit, markReady, markError }) {
    const live = collection.live(about);
    let told = new Map();
    const tell = ({ documents, status, error }) => {
      if (status === "loading") return;
      const now = new Map(documents.map((document) => [document._id, document]));
      const gone = [...told].filter(([id]) => !now.has(id));
      const changed = documents.filter((document) => told.get(document._id) !== document);
      if (gone.length + changed.length > 0) {
        begin();
        for (const [, value] of gone) write({ type: "delete", value });
        for (const value of changed) write({ type: told.has(value._id) ? "update" : "insert", value });
        commit();
      }
      told = now;
      if (status === "error" && markError) markError(error);
      else markReady();
    };
    live.subscribe(tell);
    return () => live.close();
  }

  const each = (run) => ({ transaction }) => Promise.all(transaction.mutations.map(run));
  return {
    getKey: (document) => document._id,
    sync: { sync, rowUpdateMode: "full" },
    onInsert: each(({ modified }) => collection.insert(written(modified))),
    onUpdate: each(({ original, changes }) => collection.update(original._id, written(changes))),
    onDelete: each(({ original }) => collection.delete(original._id)),
    ...options,
  };
}

/** Without what only the server writes. */
function written({ createdAt: _, updatedAt: __, ...fields }) {
  return fields;
}
