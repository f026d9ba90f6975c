/**
 * Handlers as owners of live queries: those with a filter, and whole collections of which a token shows a part only.
 *
 * Law: knows of connections only what a query's owner is told (queries.js).
 */

const silent = { snapshot() {}, progress() {}, current() {}, stale() {} };

/** The query and the owner for a handler with `filter` or `select`. */
export function following(calls, collection, handler, options) {
  if (typeof handler !== "function") throw new TypeError("subscribe(collection, handler) needs a function");
  const { filter, select } = options;
  const subscription = { collection, options };
  let from = null;
  const later = (run, ...args) => run && calls.queue(() => calls.run(subscription, run, ...args));
  const owner = {
    ...silent,
    begin(seq) {
      if (from === null) later(options.onReady);
      else later(options.onGap, { since: from, oldest: seq });
      from = seq;
    },
    change({ type, data, seq }) {
      from = seq;
      calls.run(subscription, handler, { type, collection, data, seq });
    },
    progress: (seq) => (from = seq),
    failed: (error) => calls.queue(() => calls.report(error, subscription)),
  };
  return [{ collection, filter, select: select && list(select) }, owner];
}

const list = (select) => (Array.isArray(select) ? [...select] : String(select).split(","));

export class Ruled {
  #subscriptions;
  #queries;
  #followed = new Map(); // collection → its query

  constructor(subscriptions, queries) {
    this.#subscriptions = subscriptions;
    this.#queries = queries;
  }

  clear() {
    for (const query of this.#followed.values()) this.#queries.delete(query);
    this.#followed.clear();
  }

  /** Follow the subscribed collections that the token has rules for. These are no longer to be joined as a whole. `cursor`:
   * the seq up to which they were given changes as a whole. */
  align(token, generation, cursor) {
    const wanted = this.#subscriptions.wanted().filter((name) => token.covers(name) && token.hasRule(name));
    for (const [name, query] of this.#followed) {
      if (wanted.includes(name)) continue;
      this.#followed.delete(name);
      this.#queries.delete(query);
      // It is joined as a whole from now on, if it is still subscribed: what was hidden was missed.
      this.#subscriptions.again(name, query.cursor);
    }
    for (const name of wanted) {
      const taken = this.#subscriptions.take(name, generation);
      const query = this.#followed.get(name);
      if (query === undefined) this.#follow(name, generation, cursor);
      else if (query.id !== null && query.cursor !== null) this.#subscriptions.begin(taken, query.cursor, generation);
    }
    return wanted;
  }

  #follow(name, generation, cursor) {
    let since = cursor;
    const begin = (seq) => this.#subscriptions.begin(this.#subscriptions.of(name), seq, generation);
    const owner = {
      ...silent,
      begin: (seq) => {
        this.#gap(name, since, seq);
        begin(seq);
        since = seq;
      },
      change: (event) => {
        since = event.seq;
        this.#subscriptions.deliver(event, JSON.stringify(event), generation);
      },
      current: () => begin(this.#followed.get(name).cursor),
      failed: (error) => this.#subscriptions.deny(name, error),
    };
    this.#followed.set(name, this.#queries.add({ collection: name }, owner));
  }

  /** For the handlers that had begun. */
  #gap(name, since, oldest) {
    this.#subscriptions.gap({ since, oldest }, oldest, null, name);
  }
}
