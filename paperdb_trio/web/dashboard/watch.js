/**
 * One page of a query, that changes as one watches.
 *
 * Law: no elements. The first page is a live query of the SDK's: documents come and go. A later page begins behind a cursor,
 * so its rows stay where they are: they change in place, and those that leave it are marked as gone. Without realtime (a plan
 * that has none) a page is what a find saw.
 */

/**
 * `onView({documents, status, error, hasMore, next, gone: Set})` is called at each change; status is loading, live, stale,
 * fixed (no realtime) or error. `next` is the cursor behind a page, but for a live one. Returns a function that ends it.
 */
export function watch({ session, name, filter, sort, size, after, onView }) {
  const collection = session.client.collection(name);
  const query = { filter: Object.keys(filter).length ? filter : undefined, sort, limit: size };
  let isOver = false;
  let end = () => {};

  const view = (more) => isOver || onView({ documents: [], status: "loading", error: null, hasMore: false, gone: new Set(), ...more });

  async function list(about) {
    try {
      const documents = await collection.find({ ...query, after });
      view({ documents, hasMore: documents.hasMore, next: documents.next, status: "fixed", ...about });
      return documents;
    } catch (error) {
      view({ status: "error", error });
      return null;
    }
  }

  function first() {
    const live = collection.live(query);
    end = () => live.close();
    live.subscribe((now) => {
      if (now.status !== "error") return view(now);
      live.close();
      return void (isRefusal(now.error) ? view(now) : list({ why: now.error }));
    });
  }

  /** What came while the list was on its way is applied to it, if it is newer. */
  function later() {
    let rows = null;
    const early = [];
    const gone = new Set();
    const show = () => view({ documents: rows, status: "live", hasMore: rows.hasMore, next: rows.next, gone });
    const change = ({ type, data, seq }) => {
      if (rows === null) return void early.push({ type, data, seq });
      const at = rows.findIndex(({ _id }) => _id === data._id);
      if (seq <= rows.seq || at < 0) return undefined;
      if (type === "delete") gone.add(data._id);
      else {
        gone.delete(data._id);
        rows[at] = data;
      }
      return show();
    };
    const load = async (status, about) => {
      const found = await list({ status, ...about });
      if (found === null || isOver) return;
      rows = found;
      for (const event of early.splice(0)) change(event);
    };
    end = session.client.realtime.subscribe(name, change, {
      filter: query.filter,
      onReady: () => void load("live"),
      onGap: () => void load("live"),
      onError: (why) => void (rows === null && load("fixed", { why })),
    });
  }

  if (after === undefined) first();
  else later();
  return () => {
    isOver = true;
    end();
  };
}

/** The query itself is wrong, and a find would say the same. */
const isRefusal = ({ status, code }) => status === 400 || code === "NOT_IN_TOKEN";
